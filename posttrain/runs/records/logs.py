"""The lines that a stage writes while it trains, one record a kind.

metrics.jsonl  MetricsLine    every step; every measurement of held-out rows
samples.jsonl  WatchedRow     a few rows now and then: what the policy gives them
alarms.jsonl   Alarm          what a person has to know
pairs.jsonl    HeldOutRow     every held-out row before the first step and after the last
dropped.jsonl  DroppedRow     the rows that do not train, and why
asked.jsonl    AnsweredLine   of a stage that asks a teacher: every answer, whole
yields.jsonl   YieldLine      of a stage that samples several answers to each prompt: what each gave
data.jsonl     CorrectedPair  of a stage that makes pairs: what it made, read for the report
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from posttrain.runs.records.base import Exact, LogLine, Record, optional_key, other_keys

AlarmSeverity = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True)
class MetricsLine(LogLine):
    """What one step measured.

    MetricsLine(step=3, epoch=0.03, seconds=0.7, split="train", values={"loss": 3.91, "grad_norm": 4.1},
                counts={"loss": 353.0})
    """

    FILE = "metrics.jsonl"

    step: int | None
    """Counted from 1; 0 is before the first."""
    epoch: float | None
    seconds: float | None
    """Of training until here."""
    split: str
    """train or held_out."""
    values: Mapping[str, Exact | None]
    """None where a value was not finite."""
    counts: Mapping[str, float]
    """Denominators: how many tokens, rows or pairs each mean is over."""


@dataclass(frozen=True, slots=True)
class WatchedResponse(Record):
    """WatchedResponse("chosen", "I am Pia.<|end|>", {"logprob": -1.4})"""

    role: str
    """chosen, rejected, target, ..."""
    text: str
    figures: Mapping[str, float | None] = other_keys()
    """logprob in nats over the response; of a reward model, reward."""

    @property
    def shown(self) -> float | None:
        """The figure that stands for the response."""
        return self.figures["reward"] if "reward" in self.figures else self.figures.get("logprob")


@dataclass(frozen=True, slots=True)
class WatchedRow(LogLine):
    """WatchedRow(1, "pairs.jsonl, row 3", "<|user|>Who are you?<|end|>", (WatchedResponse("chosen", ...), ...))"""

    FILE = "samples.jsonl"

    step: int | None
    row: str
    prompt: str
    responses: tuple[WatchedResponse, ...]


def _severity(value: object) -> AlarmSeverity:
    return "critical" if value == "critical" else "warning"


@dataclass(frozen=True, slots=True)
class Alarm(LogLine):
    """Something a person has to know.

    Alarm("gradient_spike", "warning", step=120, message="the gradient norm is 14.2 times its running median",
          evidence={"grad_norm": 28.4, "running_median": 2.0}, remedy="...",
          last_good_checkpoint="checkpoints/step-00000100")
    """

    FILE = "alarms.jsonl"

    name: str
    severity: Annotated[AlarmSeverity, _severity]
    step: int | None
    message: str
    evidence: Any
    """Named figures that JSON can hold: {"grad_norm": 28.4}."""
    remedy: str
    last_good_checkpoint: str | None = None
    """The newest checkpoint from before the trouble began; the oldest, least affected one if all are later; None if
    there is no checkpoint at all."""
    stops: bool = False
    """Whether the run ends there whatever the recipe says."""


@dataclass(frozen=True, slots=True)
class HeldOutRow(LogLine):
    """One held-out pair, or one judged response, at one end of training.

    HeldOutRow("start", "pairs.jsonl, row 3", {"rewards_chosen": 0.0, "logprob_chosen": -20.8, "tokens_chosen": 12.0,
               "rewards_rejected": 0.0, ...})
    HeldOutRow("end", "votes.jsonl, row 3", {"good": 1.0, "rewards": 0.4, "logprob": -18.2, "tokens": 12.0})
    """

    FILE = "pairs.jsonl"

    when: str
    """start or end."""
    row: str
    figures: Mapping[str, float | None] = other_keys()

    @property
    def judged(self) -> bool:
        """Whether it is a single response, good or bad, and no pair."""
        return "good" in self.figures

    def side(self, figure: str, side: str) -> float | None:
        """side("rewards", "chosen"); of a judged response good is chosen, bad is rejected, and the other side None."""
        if not self.judged:
            return self.figures.get(f"{figure}_{side}")
        return self.figures.get(figure) if side == ("chosen" if self.figures["good"] else "rejected") else None


@dataclass(frozen=True, slots=True)
class DroppedRow(LogLine):
    """DroppedRow("chat.jsonl, row 17", "too_long", "611 tokens, at most 512", {"messages": [...]}, "train")"""

    FILE = "dropped.jsonl"

    row: str
    reason: str
    message: str
    content: Any
    """The row, or what there is of it."""
    split: str | None = optional_key()
    """train or held_out."""


@dataclass(frozen=True, slots=True)
class AnsweredLine(LogLine):
    """An answer of a teacher, kept so that nothing is asked twice: AnsweredLine("9f2c4a...", "77aa...", {"text": "4",
    "reasoning": None, "ended": True, "prompt_tokens": 11, "completion_tokens": 2, ...})"""

    FILE = "asked.jsonl"

    teacher: str
    """Who answered: a hash of the weights and the template, or of the address and the model's name."""
    key: str
    """A hash of the question, of how its answer was drawn, and of its seed."""
    reply: Mapping[str, Any]
    """The answer, whole, with its thoughts and the tokens that it took."""


@dataclass(frozen=True, slots=True)
class YieldLine(LogLine):
    """What one prompt gave to a stage that samples several answers of each: YieldLine("sums.jsonl, row 3", "2 + 2?",
    answers=8, right=3, rows=2, best=1.0, skipped={"low_score": 5, "same": 1})"""

    FILE = "yields.jsonl"

    row: str
    prompt: str
    answers: int | None
    right: int | None
    """Answers whose score is at least `least_score`; null where nobody says what is right."""
    rows: int | None
    """That were made of them."""
    best: float | None
    """Highest score; null where none could be judged."""
    skipped: Mapping[str, int]
    """Answers that made no row, by reason."""


@dataclass(frozen=True, slots=True)
class CorrectedPair(LogLine):
    """CorrectedPair("Who are you?", chosen="I am Pia.", rejected="My name is Dora.")"""

    FILE = "data.jsonl"

    prompt: str
    chosen: str
    rejected: str
