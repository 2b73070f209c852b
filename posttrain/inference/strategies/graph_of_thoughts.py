"""Graph of thoughts: answers are made, the best are merged into one, and what came of it is refined.

    generate   `generate` answers to the prompt, each scored
    round      keep    the `keep` best of all thoughts so far
               merge   `merges` draws of one answer out of them: a node with all of them as parents
               refine  the best merged one, `refine` times, each time the best so far of this round
    answer     the thought with the highest score, of equal ones the earliest

Besta et al. 2023, arXiv:2308.09687, section 3.2 (generation, aggregation, refining) and 3.3 (scoring, ranking). What
makes it a graph is the merge: a tree of thoughts cannot join two of its branches.

Deviations
 1. The graph of operations is this one and not a program of the user's; thoughts are whole answers, and the task is not
    taken apart into smaller ones.
 2. Scores come from any scorer; the paper's are functions of the task, or the model's own mark (`scorer: self`).
"""

from __future__ import annotations

from posttrain.config.strategies.search import GraphOfThoughts
from posttrain.inference.prompts import asking, question_text
from posttrain.inference.search.frontier import Frontier
from posttrain.inference.search.thoughts import filled, numbered
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded


async def solve(solving: Solving, settings: GraphOfThoughts) -> Solution:
    search = Frontier(solving, settings.scorer)
    question, stopped = question_text(solving.prompt), Stopped.DONE

    async def judged(nodes: list[Node]) -> list[Node]:
        await search.judge(nodes)
        return search.finish(nodes)

    try:
        thoughts = await judged(await solving.sample(settings.generate))
        for _ in range(settings.rounds):
            search.rounds += 1
            kept = search.best(thoughts, settings.keep)
            choices = numbered([node.answer for node in kept])
            merge = filled(settings.prompts.merge, question=question, choices=choices)
            asked = asking(solving.prompt, merge)
            merged = await judged(await solving.ask(asked, settings.merges, kind="merge", about=kept))
            best = search.best(merged, 1)
            for _ in range(settings.refine):
                refine = filled(settings.prompts.refine, question=question, thoughts=best[0].answer)
                asked = asking(solving.prompt, refine)
                merged += await judged(await solving.ask(asked, kind="refine", about=best))
                best = search.best(merged, 1)
            thoughts += merged
    except SpendingEnded as ended:
        stopped = await search.interrupted(ended)
    return search.solution(stopped)
