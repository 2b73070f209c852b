"""A reward over the ranks of a job: each judges the answers to its prompts, or rank 0 judges all.

Only where an answer's reward is its own business is it shared (`Scorer.shared`): verifiers that compute, and reward
models. A function of the user's own may count, draw numbers or look at the whole step, and a judge is a server that
rank 0 asks with as many requests at a time as its settings allow: these are asked by rank 0, as one process would.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.parallel.shares import shares
from posttrain.parallel.world import apart, world
from posttrain.rewards.scorer import Sampled, Scorer


def score_shared(scorer: Scorer, items: Sequence[Sampled]) -> list[float | None]:
    """`scorer.score(items)`, alike on every rank; collective.

    Raises:
        RewardError: on every rank.
    """
    here = world()
    if here.is_alone:
        return scorer.score(items)
    if not scorer.shared:
        return here.agreed(lambda: scorer.score(items))
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.group, []).append(index)
    # Whole groups: a reward model computes a prompt once for all answers to it.
    members = list(groups.values())
    costs = [sum(items[index].tokens for index in group) for group in members]
    mine = [index for unit in shares(costs, here.size)[here.rank] for index in members[unit]]
    own: list[float | None] = []
    with here.together(f"the reward `{scorer.name}`"), apart():
        own = scorer.score([items[index] for index in mine])
    values: dict[int, float | None] = {}
    for indices, scores in here.gather((mine, own)):
        values |= dict(zip(indices, scores, strict=True))
    return [values[index] for index in range(len(items))]
