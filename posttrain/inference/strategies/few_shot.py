"""Few-shot: k examples with their answers stand before the question; then it is answered once, or by `then`.

    random     the first k of a seeded order, the same for every question     Brown et al. 2020, arXiv:2005.14165
    nearest    the k rows most like the question, the likest last             Liu et al. 2022, arXiv:2101.06804 (KATE)
    diverse    maximal marginal relevance: like it, and unlike each other     Carbonell and Goldstein 1998

The asked question itself is never an example, nor is any row with the same question.

Deviations: Liu compares embeddings of RoBERTa; here it is BM25 unless `similarity` says otherwise.
"""

from __future__ import annotations

from posttrain.config.strategies import FewShot
from posttrain.inference.demonstrations import shots_of, with_shots
from posttrain.inference.nested import CarryOut, answered
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Solving


async def solve(solving: Solving, settings: FewShot, carry_out: CarryOut) -> Solution:
    wanted = settings.demonstrations
    shots = shots_of(solving.asked, wanted).chosen(solving.prompt)
    solving.prompt = with_shots(solving.prompt, shots, wanted.form)
    solving.facts["demonstrations"] = len(shots)
    if len(shots) < wanted.count:
        solving.notes.append(f"{len(shots)} of {wanted.count} demonstrations: the others ask the same question")
    return await answered(solving, settings, carry_out)
