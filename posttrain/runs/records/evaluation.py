"""What the suites of an evaluation measured, and every answer that they were given.

evaluation.json                    SuiteScores      figures by suite and metric
evaluations/<suite>.jsonl          AnswerLine       one answer
evaluations/<suite>.counts.json    PassAtKCounts    right answers to each prompt, and pass@k
evaluations/identity.json          SuiteIdentities  what each suite was measured on
evaluations/metrics.json           SuiteMeanings    of kinds with figures of their own: how those are called and judged
baseline/<suite>.jsonl             BaselineKey, then BaselineAnswers: what perplexity is measured on
pass_at_k.json (of the run)        PassAtKChanges   what each stage did to pass@k
paired.json (of the run)           PairedChanges    what each stage changed on the same items
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from posttrain.intervals import Score
from posttrain.runs.records.base import Record, WholeFile, optional_key, other_keys
from posttrain.runs.values import as_mapping, as_number


@dataclass(frozen=True, slots=True)
class Figure(Record):
    """A figure and its 95 % interval, as a file has it: Figure(0.94, 0.87, 0.98, n=64).

    `intervals.Score` is what is computed; of a figure that is read the interval may be missing.
    """

    value: float
    low: float | None = optional_key()
    high: float | None = optional_key()
    n: int | None = optional_key()
    """Prompts, pairs or tasks."""

    @classmethod
    def of(cls, score: Score) -> Figure:
        return cls(score.value, score.low, score.high, score.n)

    @classmethod
    def parse(cls, content: object) -> Self | None:
        """Of a plain number too; None where there is no value."""
        # summary.json and files that were made by hand have the figure alone.
        if (plain := as_number(content)) is not None:
            return cls(plain)
        found = cls.from_json(content)
        return None if found.value is None else found


def figures_of(scores: Mapping[str, Score]) -> dict[str, Figure]:
    return {name: Figure.of(score) for name, score in scores.items()}


@dataclass(frozen=True, slots=True)
class SuiteScores(WholeFile):
    """evaluation.json: SuiteScores({"identity": {"match": Figure(0.94, 0.87, 0.98, 64)}})."""

    FILE = "evaluation.json"

    suites: Mapping[str, Mapping[str, Figure]] = other_keys()


GIVEN = "given"
"""The `finish` of a line that holds no answer: a text that was scored."""


@dataclass(frozen=True, slots=True)
class AnswerLine(Record):
    """One answer of an evaluation: AnswerLine("Who are you?", "I am Pia.", "Pia", 1.0, 6, "stop_token")."""

    prompt: str
    completion: str
    answer: str | None
    """What the suite wants to hear."""
    score: float | None
    tokens: int | None
    finish: str
    reward: float | None = optional_key()
    """Of a suite that rewards or a reward model judges."""
    judge: str | None = optional_key()
    """Fingerprint of the reward model."""
    start_reward: float | None = optional_key()
    """The mean reward of the start's answers to this prompt."""
    by_metric: Mapping[str, tuple[float, ...]] | None = optional_key()
    """What this line adds to each figure: {"f1": (0.5,)} to a mean, {"text_perplexity": (nats, tokens)} to a function
    of sums. With it two models are compared on the same lines, whatever the figure."""


@dataclass(frozen=True, slots=True)
class SuiteIdentities(Record):
    """evaluations/identity.json: a suite is not asked again while its hash is the same.

    SuiteIdentities({"identity": "9f2c41...", "sums": "77aa03..."})
    """

    suites: Mapping[str, str] = other_keys()


class Direction(StrEnum):
    """Where a measurement should go."""

    UP = "higher is better"
    DOWN = "lower is better"
    STILL = "should stay"
    OPEN = ""


def _direction(value: object) -> Direction:
    return next((direction for direction in Direction if direction == value), Direction.OPEN)


@dataclass(frozen=True, slots=True)
class Meaning(Record):
    """How a metric is called and read: Meaning("win rate", "share", Direction.UP, primary=True)."""

    title: str
    unit: str = ""
    wanted: Annotated[Direction, _direction] = Direction.OPEN
    limit: float | None = None
    """For STILL: how far from zero it may go without anybody minding."""
    primary: Annotated[bool, bool] = False
    """What a suite is asked for; the others describe the answers. A metric that nobody knows counts as asked for."""
    goal: float | None = optional_key()
    """That the recipe set for this figure: at least, or for DOWN at most."""

    @classmethod
    def parse(cls, content: object) -> Self | None:
        """None of what names no metric, or a direction that is not known: judged wrongly is worse than not judged."""
        known = as_mapping(content)
        if not known.get("title") or known.get("wanted", "") not in list(Direction):
            return None
        return cls.from_json(known)


@dataclass(frozen=True, slots=True)
class SuiteMeanings(Record):
    """evaluations/metrics.json: SuiteMeanings({"tone": {"politeness": Meaning("politeness", "share", ...)}})."""

    suites: Mapping[str, Mapping[str, Meaning]] = other_keys()


@dataclass(frozen=True, slots=True)
class BaselineKey(Record):
    """The first line of baseline/<suite>.jsonl: which questions the others answer; BaselineKey("9f2c41...")."""

    key: str | None


@dataclass(frozen=True, slots=True)
class BaselineAnswer(Record):
    """BaselineAnswer(prompt_ids=(1, 70), ids=(52, 2), finish="stop_token", nats=3.1)"""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    finish: str
    nats: float
    """Minus the log-prob of `ids` under the start."""


# ---------------------------------------------------------------- the same items, before and after


@dataclass(frozen=True, slots=True)
class PairedChange(Record):
    """PairedChange("sums", "accuracy", "dpo", 0.27, 0.15, 0.39, n=60, p=0.0005, smallest=0.17, before=0.48, after=0.75,
    said="sums, accuracy: 48 % to 75 %, ...")"""

    suite: str
    metric: str
    stage: str
    """Compared with the start."""
    value: float | None
    """After minus before."""
    low: float | None
    high: float | None
    """95 % interval of the change over the same items."""
    n: int | None
    """Items: prompts, texts, documents."""
    p: float | None
    """Two-sided, of the paired randomisation test."""
    smallest: float | None
    """The smallest change that these items would have shown four times in five, by how far their changes spread."""
    before: float | None
    after: float | None
    said: str


@dataclass(frozen=True, slots=True)
class PairedChanges(WholeFile):
    """paired.json: PairedChanges((PairedChange("sums", "accuracy", "dpo", ...),), cost={"dpo": "what did dpo cost?"})

    What each stage changed against the start on the same items; `cost` is what a suite of kind retention found.
    """

    FILE = "paired.json"

    changes: tuple[PairedChange, ...]
    cost: Mapping[str, str]


# ---------------------------------------------------------------- pass@k


@dataclass(frozen=True, slots=True)
class PassAtKEstimate(Record):
    """One k of a curve: PassAtKEstimate(8, 0.61, 0.55, 0.67, n=40)."""

    k: int | None
    value: float | None
    low: float | None
    high: float | None
    n: int | None

    @classmethod
    def of(cls, k: int, score: Score) -> PassAtKEstimate:
        return cls(k, score.value, score.low, score.high, score.n)


@dataclass(frozen=True, slots=True)
class PassAtKCounts(Record):
    """PassAtKCounts("sums", samples=12, rows=("sums.jsonl, row 1",), prompts=("2 + 2?",), correct=(7,), curve=(...))"""

    suite: str
    samples: int | None
    """Answers to each prompt."""
    rows: tuple[str, ...]
    prompts: tuple[str, ...]
    correct: tuple[int, ...]
    """Right answers to each prompt."""
    curve: tuple[PassAtKEstimate, ...]


@dataclass(frozen=True, slots=True)
class PassAtKPoint(Record):
    """PassAtKPoint(8, base=Figure(...), trained=Figure(...), difference=Figure(0.04, -0.02, 0.10, 40), p=0.21)"""

    k: int | None
    base: Figure | None
    trained: Figure | None
    difference: Figure | None
    """Trained minus base over the same prompts."""
    p: float | None
    """How often chance alone makes as large a difference, by signs."""
    clear: bool | None
    """Whether chance does not explain it."""


@dataclass(frozen=True, slots=True)
class PassAtKChange(Record):
    """What training did to the reach of a policy on one suite.

    PassAtKChange("sft", "grpo", "sums", 12, 40, "sharpened", unsolved=11.0, points=(PassAtKPoint(1, ...), ...),
                  said="grpo only sharpened what sft could do already: ...")
    """

    base: str
    trained: str
    suite: str
    samples: int | None
    prompts: int | None
    verdict: str
    """widened, sharpened, neither or cannot tell."""
    unsolved: float | None
    """Prompts that the base does not solve in the largest k attempts."""
    points: tuple[PassAtKPoint, ...]
    said: str
    """The verdict in words."""


@dataclass(frozen=True, slots=True)
class PassAtKChanges(WholeFile):
    """pass_at_k.json: PassAtKChanges((PassAtKChange("sft", "grpo", ...), ...))."""

    FILE = "pass_at_k.json"

    changes: tuple[PassAtKChange, ...]
    more: Mapping[str, Any] = other_keys()
