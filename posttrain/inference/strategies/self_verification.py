"""Self-verification: n answers, each checked k times by the model itself (Zhao et al. 2025, "Sample, Scrutinize and
Scale", arXiv:2502.01839, algorithm 1).

    s_i = share of the k checks of answer i that end on "right", of those with a verdict
    best    argmax_i s_i; of equal shares the answer that more of the n come to, then the earlier
    vote    the answer that most of those come to that have s_i >= at_least; a plain vote of all, if there are none

Deviations:
1. The paper compares the best few in pairs where their shares are near; here votes part equal shares.
2. A check reads the answer as it stands; the paper has it rewritten as theorem, lemmas and proof first.
3. A check without a verdict, or one that was cut, says nothing; an answer with no other checks is chosen last.
"""

from __future__ import annotations

import asyncio
import re

from posttrain.config.strategies import SelfVerification
from posttrain.inference.choosing import candidates, vote_of
from posttrain.inference.prompts import asking, question_text
from posttrain.inference.scorers import ABSTAINED
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded

SCORE = "verified"
"""What the share of checks is called in a node's scores."""
_VERDICT = re.compile(r"\b(?:(not\s+(?:right|correct)|wrong|incorrect)|(right|correct))\b", re.IGNORECASE)


async def solve(solving: Solving, settings: SelfVerification) -> Solution:
    stopped = Stopped.DONE
    try:
        await solving.sample(settings.n)
        answers = [node for node in solving.nodes if node.kind == "answer"]
        # All are waited for: a check that is given up in the middle would have tokens that nobody counts.
        ends = await asyncio.gather(*(check(solving, settings, answer) for answer in answers), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
    except SpendingEnded as ended:
        # What is checked by now is chosen from; an answer whose checks were not all paid has those that were.
        stopped = ended.reason
    answers = candidates(solving, stopped)
    if not answers:
        return solving.solution(None, stopped)
    for answer in answers:
        verdicts = [value for value in verdicts_of(solving, answer) if value is not None]
        answer.scores[SCORE] = sum(verdicts) / len(verdicts) if verdicts else ABSTAINED
        answer.facts["checks"] = len(verdicts)
    checks = [node for node in solving.nodes if node.kind == "check"]
    unread = sum(_verdict(node) is None for node in checks)
    chosen = choose(solving, settings, answers)
    return solving.solution(chosen, stopped, answers=len(answers), checks=len(checks), without_verdict=unread)


async def check(solving: Solving, settings: SelfVerification, answer: Node) -> None:
    text = settings.check_prompt.format(question=question_text(solving.prompt), answer=answer.answer)
    asked = asking(solving.prompt, text)
    await solving.ask(asked, settings.checks, kind="check", about=[answer], max_new_tokens=settings.check_tokens)


def verdicts_of(solving: Solving, answer: Node) -> list[bool | None]:
    """What each check of an answer says."""
    checks = [node for node in solving.nodes if node.kind == "check" and answer.number in node.parents]
    return [_verdict(node) for node in checks]


def _verdict(check: Node) -> bool | None:
    # "It is right that 2 and 2" may still come to say that the answer is wrong.
    return verdict_of(check.text) if check.ended else None


def verdict_of(text: str) -> bool | None:
    """The last verdict of a check: verdict_of("Not wrong, I find: right.") is True; None where there is none."""
    found = list(_VERDICT.finditer(text))
    return found[-1][2] is not None if found else None


def choose(solving: Solving, settings: SelfVerification, answers: list[Node]) -> Node:
    equality = solving.asked.equality(settings.answers)
    if settings.choose == "vote":
        passed = [node for node in answers if node.scores[SCORE] >= settings.at_least]
        vote = vote_of(passed or answers, equality)
        return (passed or answers)[vote.members[0] if vote.members else 0]
    numbers = equality.classes([node.answer for node in answers])
    votes = [0 if number is None else numbers.count(number) for number in numbers]
    best = max(range(len(answers)), key=lambda at: (answers[at].scores[SCORE], votes[at], -at))
    return answers[best]
