"""Self-consistency: draw n answers, give the one that most of them agree on.

    argmax_a sum over i of 1[a_i = a]        Wang et al. 2022, arXiv:2203.11171, section 2

Of answers with equally many votes the one that was given first counts. The text that is given is the first, or the
likeliest, of those that said the winning answer; where no answer ends on anything, it is the first.

Deviation: the paper sums over reasoning paths that its parser could read; so do we, and `facts` say how many voted.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from posttrain.config.strategies import SelfConsistency
from posttrain.config.strategies.sampling import VotingStrategy
from posttrain.inference.answers import Equality
from posttrain.inference.choosing import candidates, vote_of
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded, first_best


async def solve(solving: Solving, settings: SelfConsistency) -> Solution:
    stopped = Stopped.DONE
    try:
        await solving.sample(settings.n)
    except SpendingEnded as ended:
        # Fewer answers than n still have a majority.
        stopped = ended.reason
    return elected(solving, settings, solving.asked.equality(settings.answers), stopped)


def elected(
    solving: Solving, settings: VotingStrategy, equality: Equality, stopped: Stopped, **facts: float
) -> Solution:
    """The majority's answer among all that was drawn."""
    answers = candidates(solving, stopped)
    vote = vote_of(answers, equality)
    voting = sum(number is not None for number in vote.numbers)
    facts = {"answers": len(answers), "voting": voting, "votes": vote.count, "share": vote.share, **facts}
    for node, number in zip(answers, vote.numbers, strict=True):
        node.facts["votes"] = 0.0 if number is None else vote.sums[number]
    members = [answers[place] for place in vote.members] or answers[:1]
    if not members:
        return solving.solution(None, stopped, answer=None, **facts)
    return solving.solution(representative(members, settings), stopped, answer=None, **facts)


def representative(members: Sequence[Node], settings: VotingStrategy) -> Node:
    """Of answers that say the same, the one whose text is given."""
    if settings.text == "first":
        return members[0]
    return first_best(members, [fmean(node.logprobs) if node.logprobs else float("-inf") for node in members])
