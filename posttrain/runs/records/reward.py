"""What a reward model is worth on its held-out rows, and what several of them think of several policies.

reward_evaluation.json      RewardEvaluation   of a model that scores answers
reward_scores.jsonl         PairRewards        one held-out pair
step_evaluation.json        StepEvaluation     of a process reward model
step_scores.jsonl           StepRewards        one held-out response, step by step
cross_scores.json (of the run)  CrossScores    policies by reward models
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.runs.records.base import LogLine, Record, WholeFile, optional_key
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.logs import Alarm


@dataclass(frozen=True, slots=True)
class BucketAccuracy(Record):
    """BucketAccuracy("up to 7 longer", Figure(0.81, 0.70, 0.89, 64))"""

    label: str
    accuracy: Figure | None


@dataclass(frozen=True, slots=True)
class CalibrationBin(Record):
    """Verdicts of like confidence: CalibrationBin(0.7, 0.75, n=20, confidence=0.72, accuracy=Figure(0.6, ...))."""

    low: float | None
    high: float | None
    n: int | None
    confidence: float | None
    accuracy: Figure | None


@dataclass(frozen=True, slots=True)
class ChanceError(Record):
    """ChanceError(mean=0.04, high=0.08)"""

    mean: float | None
    high: float | None
    """The 95th percentile."""


@dataclass(frozen=True, slots=True)
class Calibration(Record):
    """Calibration(0.06, by_chance=ChanceError(0.04, 0.08), gap=Figure(0.03, ...), bins=(CalibrationBin(...), ...))"""

    ece: float | None
    """Expected calibration error."""
    by_chance: ChanceError | None
    """The error that a perfectly calibrated model has on as many pairs."""
    gap: Figure | None
    """Mean confidence minus accuracy."""
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True, slots=True)
class LengthFigures(Record):
    """How far the reward is the length: LengthFigures(Figure(0.12, ...), Figure(0.2, ...), ...)."""

    correlation: Figure | None
    """Spearman's, of reward and tokens over all answers."""
    margin_correlation: Figure | None
    """Spearman's, of the margin and the difference in tokens, within pairs."""
    longer_chosen: Figure | None
    """How often the data's chosen answer is the longer one."""
    longer_preferred: Figure | None
    """How often the model's is."""


@dataclass(frozen=True, slots=True)
class ProbeFigures(Record):
    """ProbeFigures(below_chosen=Figure(0.97, ...), mean=Figure(-1.2, ...), gap=Figure(2.1, ...), judged=True)"""

    below_chosen: Figure | None
    """Share of prompts whose chosen answer scores higher, ties half."""
    mean: Figure | None
    gap: Figure | None
    """Chosen minus probe, in standard deviations of the rewards."""
    judged: bool | None
    """Whether it should lose to the chosen answer."""


@dataclass(frozen=True, slots=True)
class Agreement(Record):
    """Two scorers on the same answers: Agreement(Figure(0.61, ...), Figure(0.21, ...), Figure(0.14, n=96))."""

    same_order: Figure | None
    spearman: Figure | None
    kendall: Figure | None


@dataclass(frozen=True, slots=True)
class RewardEvaluation(WholeFile):
    """reward_evaluation.json.

    RewardEvaluation(schema=1, pairs=96, trained={"accuracy": Figure(0.78, 0.66, 0.87, 96), ...}, untrained={...},
                     gain=Figure(0.28, 0.15, 0.41, 96), by_length=(BucketAccuracy("as long", ...), ...), ...)
    """

    FILE = "reward_evaluation.json"

    schema: int | None
    """Of this file."""
    pairs: int | None
    trained: Mapping[str, Figure]
    """accuracy, margin, mean, std, confidence, ties, ..."""
    untrained: Mapping[str, Figure] | None
    """The same of the start's backbone with a random head."""
    gain: Figure | None
    """Accuracy above the untrained head's."""
    by_length: tuple[BucketAccuracy, ...]
    by_category: tuple[BucketAccuracy, ...]
    calibration: Calibration | None
    """None of a model whose rewards are no log-odds."""
    length: LengthFigures | None
    probes: Mapping[str, ProbeFigures]
    agreement: Mapping[str, Agreement]
    findings: tuple[Alarm, ...]


@dataclass(frozen=True, slots=True)
class PairRewards(LogLine):
    """One held-out pair: PairRewards("pairs.jsonl, row 3", "manners", 1.2, -0.4, 12, 31, 0.1, 0.0)."""

    FILE = "reward_scores.jsonl"

    row: str
    category: str | None
    chosen: float | None
    rejected: float | None
    tokens_chosen: int | None
    tokens_rejected: int | None
    untrained_chosen: float | None = optional_key()
    untrained_rejected: float | None = optional_key()

    def reward(self, head: str, side: str) -> float | None:
        """reward("untrained", "chosen")"""
        chosen, rejected = (
            (self.chosen, self.rejected) if head == "trained" else (self.untrained_chosen, self.untrained_rejected)
        )
        return chosen if side == "chosen" else rejected

    def tokens(self, side: str) -> int | None:
        return self.tokens_chosen if side == "chosen" else self.tokens_rejected


@dataclass(frozen=True, slots=True)
class StepEvaluation(WholeFile):
    """step_evaluation.json: StepEvaluation(1, responses=40, steps=180, trained={"step_accuracy": Figure(...)}, ...)."""

    FILE = "step_evaluation.json"

    schema: int | None
    """Of this file."""
    responses: int | None
    steps: int | None
    trained: Mapping[str, Figure]
    untrained: Mapping[str, Figure] | None
    gain: Mapping[str, Figure] | None


@dataclass(frozen=True, slots=True)
class StepRewards(LogLine):
    """One held-out response: StepRewards("steps.jsonl, row 1", (2.1, -0.3), (1.0, 0.0), (0.1, 0.2))."""

    FILE = "step_scores.jsonl"

    row: str
    scores: tuple[float | None, ...]
    labels: tuple[float | None, ...]
    untrained: tuple[float | None, ...] | None = optional_key()

    def head(self, head: str) -> tuple[float | None, ...]:
        return self.scores if head == "trained" else self.untrained or ()


# ---------------------------------------------------------------- several policies by several reward models


@dataclass(frozen=True, slots=True)
class CrossCell(Record):
    """One policy by one reward model: CrossCell(Figure(0.7, ...), 0.4, Figure(0.61, ...), (0.9, 0.5, ...))."""

    mean: Figure | None
    standardised: float | None
    """The mean in standard deviations of that reward model."""
    win_rate: Figure | None
    """Against the first policy; None of that itself."""
    rewards: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CrossAgreement(Record):
    """CrossAgreement(("reward", "public"), Figure(0.6, ...), Figure(0.2, ...), Figure(0.1, n=48))"""

    between: tuple[str, ...]
    same_order: Figure | None
    spearman: Figure | None
    kendall: Figure | None


@dataclass(frozen=True, slots=True)
class CrossScores(WholeFile):
    """cross_scores.json: CrossScores(48, ("start", "dpo"), ("reward",), {"reward": {"dpo": CrossCell(...)}}, ())."""

    FILE = "cross_scores.json"

    prompts: int | None
    policies: tuple[str, ...]
    """The first is the one that the others are compared with."""
    reward_models: tuple[str, ...]
    cells: Mapping[str, Mapping[str, CrossCell]]
    """{reward model: {policy: cell}}"""
    agreement: tuple[CrossAgreement, ...]
