"""What comes back: from a model its figures of a batch, from a loss what to minimise, and metrics that know how they
add up.

    Batch -> TokenLogprobs -> LossOutput -> step

The nouns before them are in `posttrain.types`. As there, a docstring shows one filled-in instance, the shape suffixes
are the same, and loading this module imports neither torch nor numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

# Only for annotations: what reads a run's metrics loads no torch.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """What the routers of a mixture of experts did with a batch's tokens; the parts of a step add up.

    Routing(chosen_LE=[[3.0, 1.0], [2.0, 2.0]], probability_E=[4.4, 3.6], places=8.0): four tokens, two layers, and of
    two experts one for each token. A token counts once for each row that it stands in.
    """

    chosen_LE: Tensor
    """How many tokens each layer sent to each expert; no gradient."""
    probability_E: Tensor
    """The router's probability of each expert, summed over tokens and layers, with its gradient."""
    places: float
    """Tokens times layers."""

    def __add__(self, other: Routing) -> Routing:
        return Routing(
            self.chosen_LE + other.chosen_LE, self.probability_E + other.probability_E, self.places + other.places
        )

    def detach(self) -> Routing:
        return Routing(self.chosen_LE, self.probability_E.detach(), self.places)

    def to(self, device: Any) -> Routing:
        return Routing(self.chosen_LE.to(device), self.probability_E.to(device), self.places)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """log p(token) of each trained token, and the entropy of its distribution if asked for.

    TokenLogprobs(logprobs_N=[-0.11, -2.30, ...], entropy_N=None); nats, fp32 or the model's wider type. What was not
    asked for (`Wants`) is None.
    """

    logprobs_N: Tensor
    entropy_N: Tensor | None = None
    log_collision_N: Tensor | None = None
    """log sum_v p(v)^2 of that distribution, without gradient: what a token sampled from it has on average."""
    divergence_N: Tensor | None = None
    """Divergence over the whole vocabulary from another model, nats, with its gradient. Where it is measured at one of
    k tokens, it is k times as large there and 0 elsewhere, so that sums are right on average."""
    values_N: Tensor | None = None
    """What the state before each token is worth, by a head on the policy's own backbone, with its gradient."""
    routing: Routing | None = None
    """Where the tokens went in a mixture of experts, if asked for."""
    hidden_ND: Tensor | None = None
    """The backbone's last hidden states where each token is predicted."""
    distributions: Any = None
    """A `posttrain.models.tree.divergence.Distributions` at some of the tokens."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a reward model gives each response: one number per branch and output of its head.

    Scores(scores_BH=[[0.7], [-0.2]]) for one pair and a head of one output; fp32 or the model's wider type.
    """

    scores_BH: Tensor
    steps_SH: Tensor | None = None
    """The score of each marked step, of which `scores_BH` is made; None where responses are scored as a whole."""
    branch_S: Tensor | None = None
    """The branch of each step."""
    routing: Routing | None = None
    """Where the tokens went in a mixture of experts, if asked for."""


# ---------------------------------------------------------------- metrics: numbers that know how they add up


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that carries its sum and its count: Mean(3.0, 12) merged with Mean(3.0, 4) is 0.375."""

    sum: float | Tensor
    count: float | Tensor
    empty: float | None = None
    """The value where nothing was counted; None: there is none. A loss has one, since what is minimised is then 0."""

    def merge(self, other: Mean) -> Mean:
        # Sums and counts add up; a mean of means would weigh a micro-batch of 3 tokens like one of 3,000.
        return Mean(self.sum + other.sum, self.count + other.count, self.empty)

    @property
    def value(self) -> float:
        """NaN where nothing was counted, unless `empty` says otherwise: an absent measurement is not a zero."""
        count = float(self.count)
        if count:
            return float(self.sum) / count
        return float("nan") if self.empty is None else self.empty


@dataclass(frozen=True, slots=True)
class Total:
    """A quantity that adds up over micro-batches and ranks: Total(512)."""

    sum: float | Tensor

    def merge(self, other: Total) -> Total:
        return Total(self.sum + other.sum)

    @property
    def value(self) -> float:
        return float(self.sum)


@dataclass(frozen=True, slots=True)
class Maximum:
    """The largest of what was seen: Maximum(3.5)."""

    largest: float | Tensor

    def merge(self, other: Maximum) -> Maximum:
        first, second = float(self.largest), float(other.largest)
        # max() keeps or drops a NaN by its place, and one that is dropped is a fault that nobody sees.
        return Maximum(first if math.isnan(first) or first >= second else second)

    @property
    def value(self) -> float:
        return float(self.largest)


@dataclass(frozen=True, slots=True)
class Deviation:
    """A standard deviation that carries what it needs to be merged: Deviation(count=3, mean=2.0, squares=2.0) is 0.816.

    `squares` is the sum of squared distances from the mean; merged as in Chan, Golub and LeVeque 1983, which loses no
    digits where the mean is large.
    """

    count: float
    mean: float | Tensor
    squares: float | Tensor

    def merge(self, other: Deviation) -> Deviation:
        count = self.count + other.count
        if not count:
            return self
        # By the distance of the means: squares of the values themselves would cancel where the mean is large.
        apart = other.mean - self.mean
        return Deviation(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart * apart * (self.count * other.count / count),
        )

    @property
    def value(self) -> float:
        """NaN where nothing was counted."""
        return (float(self.squares) / self.count) ** 0.5 if self.count else float("nan")


@dataclass(frozen=True, slots=True)
class EffectiveSize:
    """What share of a weighted sample counts, (Σw)² / (n Σw²): EffectiveSize(sum=4.0, squares=10.0, count=2) is 0.8.

    Kish 1965. 1 where all weights are equal; 1/n where one of them is everything.
    """

    sum: float | Tensor
    squares: float | Tensor
    count: float

    def merge(self, other: EffectiveSize) -> EffectiveSize:
        # Weights add up, shares do not: two even halves of different weight make one uneven whole.
        return EffectiveSize(self.sum + other.sum, self.squares + other.squares, self.count + other.count)

    @property
    def value(self) -> float:
        """NaN where nothing was counted."""
        squares = float(self.squares) * self.count
        return float(self.sum) ** 2 / squares if squares else float("nan")


@dataclass(frozen=True, slots=True)
class ExplainedVariance:
    """How much of a target a prediction explains: 1 - Var(target - prediction) / Var(target).

    ExplainedVariance(residual=Deviation(3, 0.0, 0.5), target=Deviation(3, 2.0, 2.0)) is 0.75. 1 is a perfect
    prediction, 0 is one no better than the mean, and below 0 it is worse.
    """

    residual: Deviation
    target: Deviation

    def merge(self, other: ExplainedVariance) -> ExplainedVariance:
        return ExplainedVariance(self.residual.merge(other.residual), self.target.merge(other.target))

    @property
    def value(self) -> float:
        """NaN where the target is constant: there is nothing to explain."""
        squares = float(self.target.squares)
        # Both around their own mean, so a constant offset costs nothing here; `value_mean` beside `return_mean` shows
        # it.
        return 1.0 - float(self.residual.squares) / squares if squares else float("nan")


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of many values from 0 up, to 1 % of itself: Quantile.of(tensor([0.1, 0.2, 9.0]), 0.5).value is 0.2.

    Values are counted in bins whose edges grow by 2 % (the sketch of Masson, Rim and Lee 2019, arXiv:1908.10693), so
    that it merges exactly, over micro-batches and ranks, and is as large for a million values as for ten.
    """

    share: float
    counts_K: Tensor
    """How many values each bin has."""

    GROWTH: ClassVar[float] = 1.02
    LEAST: ClassVar[float] = 1e-8
    """What is not above counts as 0."""
    BINS: ClassVar[int] = 1_280
    """Up to 1e3."""

    @classmethod
    def of(cls, values_N: Tensor, share: float) -> Quantile:
        """Of the values [N], none below 0. One that is NaN counts as the largest of all: it is no small number."""
        found_N = values_N.detach().nan_to_num(nan=math.inf).clamp(min=cls.LEAST)
        bins_N = ((found_N / cls.LEAST).log() / math.log(cls.GROWTH)).ceil().clamp(max=cls.BINS - 1).long()
        counts_K = bins_N.new_zeros(cls.BINS)
        return cls(share, counts_K.index_add(0, bins_N, bins_N.new_ones(bins_N.shape)))

    def merge(self, other: Quantile) -> Quantile:
        return Quantile(self.share, self.counts_K + other.counts_K)

    @property
    def value(self) -> float:
        """NaN where nothing was counted."""
        counts = self.counts_K.tolist()
        # The place of the value below which `share` of the others lie, rounded down as in the paper.
        place, below = math.floor(self.share * (sum(counts) - 1)), 0
        for number, count in enumerate(counts):
            below += count
            if below > place and count:
                return self.LEAST * self.GROWTH**number * 2 / (1 + self.GROWTH) if number else 0.0
        return math.nan


Metric = Mean | Total | Maximum | Deviation | EffectiveSize | ExplainedVariance | Quantile


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss to call backward on, and what is worth knowing about it.

    LossOutput(loss=tensor(0.6931), metrics={"loss": Mean(5.545, 8), "accuracy": Mean(5, 8)},
               per_tree={"rewards_chosen": tensor([...]), "rewards_rejected": tensor([...])})
    """

    loss: Tensor
    """Scalar, already divided by the *global* denominator: micro-batches add up to the step's loss."""
    metrics: dict[str, Metric]
    per_tree: dict[str, Tensor] = field(default_factory=dict)
    """Detached, one value per tree, for distributions and samples."""
    per_branch: dict[str, Tensor] = field(default_factory=dict)
    """Detached, one value per branch: what each response of a sample is shown with."""
    teaching: Tensor | None = None
    """The part of `loss` for which the method exists, without the penalties, bonuses and auxiliary losses beside it;
    None: all of it. A dead method cannot hide behind the gradient of those."""
