"""Beam search with a process reward model: keep the n / width best of n answers so far, continue each `width` times.

    1  draw n first steps, score each
    2  keep the n / width with the highest scores
    3  draw `width` next steps of each; back to 2, for at most `max_steps` steps
    4  of all answers that came to their end: the highest score, or the weighted vote

Snell et al. 2024, arXiv:2408.03314, section 5.2 ("Beam search", "Lookahead search") and appendix; n beams, `width` = M,
40 steps, a step per "\\n\\n". With `lookahead` k a step's score is that of the answer k greedy steps later.

Deviations
 1. Answers come to their end after different numbers of steps. An answer that ends keeps its score, and if it was among
    the kept ones its place with it: the others go on with one place less. So the search ends by itself, with all ended
    answers as candidates; search-and-learn ends it when n answers are there, and drops better ones that are still
    written.
 2. The paper ends with best-of-n weighted (`choose: weighted`); `best` is the default here, for answers that are no
    numbers have no vote.
 3. Of equal answers so far one is kept, and the draws that are left go to the kept ones in turn, so that their number
    stays: a model that is sure of itself would fill all places with one step (search-and-learn: `filter_duplicates`).
 4. Answers that were cut at `max_new_tokens` are chosen only where none ended.
"""

from __future__ import annotations

from posttrain.config.strategies.search import PRMBeam
from posttrain.inference.search.frontier import Frontier
from posttrain.inference.solution import Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded


async def solve(solving: Solving, settings: PRMBeam) -> Solution:
    search = Frontier(
        solving, settings.scorer, step=settings.step, max_steps=settings.max_steps, lookahead=settings.lookahead
    )
    stopped, places = Stopped.DONE, settings.n // settings.width
    try:
        rows = await search.grow([None], settings.n)
        while rows:
            candidates = [node for row in rows for node in row]
            await search.judge(candidates)
            search.finish(candidates)
            kept = search.best(candidates, places)
            live = search.keep(candidates, kept)
            places -= len(kept) - len(live)
            rows = await search.grow(live, shares(places * settings.width, len(live)))
    except SpendingEnded as ended:
        stopped = await search.interrupted(ended)
    return search.solution(stopped, choose=settings.choose, answers=settings.answers)


def shares(total: int, among: int) -> list[int]:
    """A total in whole parts as equal as can be, the larger ones first: shares(7, 3) == [3, 2, 2]."""
    return [total // among + (place < total % among) for place in range(among)]
