"""What all ways to make pairs give: pairs with their origins, and what gave none, with the reason.

made = Made()
made.pair(task, chosen="4", rejected="5", origin=Origin("pairs/judged", ...), votes=(2, 0))
made.skip(task, "disagreed", text="5")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from posttrain.auditing.fix import as_row
from posttrain.data.origin import Origin, with_origin
from posttrain.inference.rows import WITHOUT
from posttrain.runs.records.logs import DroppedRow
from posttrain.synthesis.attempts import REASONS
from posttrain.synthesis.teacher import Reply
from posttrain.types import Comparison, Message, Task

REASON_TEXTS = (
    REASONS
    | {key: WITHOUT[key] for key in ("one_answer", "same_score")}
    | {
        "same_text": "both sides would say the same",
        "small_margin": "the scores differ by less than `margin`",
        "disagreed": "the judge's verdict changed with the order of the two answers",
        "tie": "the judge found neither better, in both orders",
        "no_verdict": "the judge's reply ends in no verdict",
        "no_critique": "there is no critique, or it was cut",
        "no_revision": "there is no revision",
        "cut_revision": "the revision was cut by a limit",
        "unchanged": "the revision says what the answer said",
        "no_answer": "the row has no answer",
        "no_reply": "nobody answered",
        "cut_reply": "the reply was cut by a limit",
    }
)
"""Why answers made no pair."""


@dataclass(slots=True)
class Made:
    """Pairs as rows, and what made none: Made(rows=[...], skipped=[(task, "tie", "...")])."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[Task, str, str]] = field(default_factory=list)
    """(task, a key of REASON_TEXTS, the text that would have been a side)."""
    prompts_with_pair: set[int] = field(default_factory=set)
    """By `id` of their tasks; the tasks live as long as the stage's inputs."""

    def pair(
        self,
        task: Task,
        *,
        chosen: str,
        rejected: str,
        origin: Origin,
        scores: tuple[float, float] | None = None,
        votes: tuple[int, int] | None = None,
    ) -> None:
        responses = tuple((Message("assistant", text),) for text in (chosen, rejected))
        row = Comparison(task.prompt, responses, 0, task.row, scores=scores, votes=votes, tools=task.tools)
        self.rows.append(with_origin(as_row(row), origin))
        self.prompts_with_pair.add(id(task))

    def skip(self, task: Task, reason: str, text: str = "") -> None:
        assert reason in REASON_TEXTS, reason
        self.skipped.append((task, reason, text))

    @property
    def reasons(self) -> Counter[str]:
        return Counter(reason for _, reason, _ in self.skipped)

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The lines of dropped.jsonl."""
        for task, reason, text in self.skipped:
            yield DroppedRow(str(task.row), reason, REASON_TEXTS[reason], text).to_json()

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.reasons.items()))
        return f"{len(self.rows):,} pairs of {len(self.prompts_with_pair):,} prompts" + (
            f"; left out: {reasons}" if reasons else ""
        )


def unusable(reply: Reply, *, missing: str, cut: str) -> str | None:
    """Why a teacher's reply is no text to train on: one of the two reasons; None where it is one."""
    if reply.error is not None or not reply.text.strip():
        return missing
    return None if reply.ended else cut
