"""Diverse verifier tree search: n / width answers that grow apart, each by the best of `width` next steps.

    for each of the n / width trees:
        draw `width` next steps, keep the one with the highest score, until it ends or has `max_steps` steps
    of the trees' answers: the highest score, or the weighted vote

Beeching, Tunstall, Rush 2024, "Scaling test-time compute with open models" (Hugging Face, search-and-learn). Beam
search puts all its places into the descendants of one good-looking step; trees that do not look at each other keep
their differences, which pays for large n.

Deviations
 1. A tree ends where the model ends the answer; search-and-learn also ends at the literal `boxed{`.
 2. The candidates are the trees' own answers; a next step that ended its answer and was not its tree's best is none.
"""

from __future__ import annotations

from posttrain.config.strategies.search import DVTS
from posttrain.inference.search.frontier import Frontier
from posttrain.inference.solution import Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded


async def solve(solving: Solving, settings: DVTS) -> Solution:
    search = Frontier(
        solving, settings.scorer, step=settings.step, max_steps=settings.max_steps, lookahead=settings.lookahead
    )
    stopped, width = Stopped.DONE, settings.width
    try:
        (first,) = await search.grow([None], settings.n)
        trees = [first[start : start + width] for start in range(0, settings.n, width)]
        while trees:
            candidates = [node for tree in trees for node in tree]
            await search.judge(candidates)
            best = [search.best(tree, 1)[0] for tree in trees]
            search.finish(best)
            trees = await search.grow(search.keep(candidates, best), width)
    except SpendingEnded as ended:
        stopped = await search.interrupted(ended)
    return search.solution(stopped, choose=settings.choose, answers=settings.answers)
