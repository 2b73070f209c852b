"""Pairs that a judge decides: two of the policy's answers, asked about in both orders (RLAIF).

    verdict(A, B) and verdict(B, A) name the same answer: it is chosen, with votes (2, 0)
    else: no pair                                       Lee et al. 2023, arXiv:2309.00267, section 2.1

A judge leans to the answer that it reads first (Zheng et al. 2023, arXiv:2306.05685, section 3.3), so a verdict that
changes with the order says nothing of the answers.

Deviation: the paper averages the two orders' probabilities into a soft label; an endpoint gives none, so only verdicts
that agree count, and the others are counted as what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config.judge_endpoint import STANDARD
from posttrain.data.origin import Origin
from posttrain.inference.prompts import question_text
from posttrain.rewards.judge import Match, pair_question, verdict_of
from posttrain.synthesis.attempts import Attempt
from posttrain.synthesis.pairs.best_worst import different
from posttrain.synthesis.pairs.made import Made
from posttrain.synthesis.teacher import Ask, Drawing, OnReply, Reply, Teacher
from posttrain.types import Message, Task


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two answers to one prompt that a judge is to compare: Meeting(task, Attempt(...), Attempt(...))."""

    task: Task
    first: Attempt
    second: Attempt

    def asks(self, standard: str, drawing: Drawing) -> tuple[Ask, Ask]:
        """The same question in both orders."""
        prompt = question_text(self.task.prompt)
        forth, back = Match(prompt, self.first.text, self.second.text), Match(prompt, self.second.text, self.first.text)
        return _ask(forth, standard, drawing), _ask(back, standard, drawing)


def _ask(match: Match, standard: str, drawing: Drawing) -> Ask:
    turns = tuple(Message(turn["role"], turn["content"]) for turn in pair_question(match, standard))  # type: ignore[arg-type]
    return Ask(turns, drawing)


def meetings(made: Made, task: Task, attempts: Sequence[Attempt]) -> list[Meeting]:
    """Who meets whom: the first different answer the second, the third the fourth; each is judged once."""
    for attempt in attempts:
        if attempt.reason is not None:
            made.skip(task, attempt.reason, attempt.text)
    fit = different(attempts)
    if len(fit) < 2:
        said_twice = sum(attempt.reason is None for attempt in attempts) > 1
        made.skip(task, "same_text" if said_twice else "one_answer", fit[0].text if fit else "")
        return []
    return [Meeting(task, first, second) for first, second in zip(fit[::2], fit[1::2], strict=False)]


def judge_meetings(
    made: Made,
    due: Sequence[Meeting],
    judge: Teacher,
    *,
    drawing: Drawing,
    policy: str,
    standard: str = STANDARD,
    sampled: Callable[[Attempt], Mapping[str, Any]] = lambda attempt: {},
    on_reply: OnReply | None = None,
) -> None:
    """A pair of every meeting in which both orders agree.

    Args:
        policy: who wrote the answers.
        sampled: (the chosen answer) -> `sampling` and `seed` of its origin.

    Raises:
        EngineError, ConfigError: the judge answers nothing at all.
    """
    asks = [ask for meeting in due for ask in meeting.asks(standard, drawing)]
    replies = judge.ask(asks, on_reply)
    for place, meeting in enumerate(due):
        forth, back = replies[2 * place : 2 * place + 2]
        decision = decide(forth, back)
        if isinstance(decision, str):
            made.skip(meeting.task, decision, meeting.first.text)
            continue
        chosen, rejected = (meeting.first, meeting.second) if decision else (meeting.second, meeting.first)
        origin = Origin(
            "pairs/judged",
            model=policy,
            source=str(meeting.task.row),
            scores={"agreement": 1.0},
            details={"judge": judge.name, "standard": standard, "verdicts": [forth.text, back.text]},
            **sampled(chosen),
        )
        made.pair(meeting.task, chosen=chosen.text, rejected=rejected.text, origin=origin, votes=(2, 0))


def decide(forth: Reply, back: Reply) -> bool | str:
    """Whether the first answer is the better one, by the verdicts in both orders; else why nobody knows."""
    # A reply that was cut may quote a verdict in its last line that it has not come to.
    points = [verdict_of(reply.text) if reply.error is None and reply.ended else None for reply in (forth, back)]
    if None in points:
        return "no_verdict"
    if points == [0.5, 0.5]:
        return "tie"
    # In the second question the answers have changed places: the first one's points are what is left of 1.
    first, swapped = points
    assert first is not None and swapped is not None
    if first == 1 - swapped and first != 0.5:
        return first == 1.0
    return "disagreed"
