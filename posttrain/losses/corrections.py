"""The columns of the online table for tokens that another policy sampled than the one that trains.

    correction     weight of each token by how much likelier the trainer finds it than the engine did
    token_mask     takes single tokens out on which trainer and engine differ too much
    sequence_mask  takes whole responses out, by the ratio of the response
    outliers       takes a response out that has one token whose ratio no rounding and no update explains
    proximal       which policy ratios start from: the trainer's at the step's start, or the engine's

Three policies take part: μ, the behaviour policy, is the engine's with the weights that it sampled with; π_prox, the
proximal policy, is the trainer's with the weights at the step's start; π is the trainer's now. The surrogate clips the
ratio π / π_prox, and what this file corrects is w = π_prox / μ: rounding where both have the same weights, and drift
where sampling ran ahead of training. A clipped ratio to π_prox with a weight w is the decoupled objective (Hilton et
al. 2022, arXiv:2110.00641; Fu et al. 2025 (AReaL), arXiv:2505.24298). With `proximal: sampler` π_prox is
μ itself: two policies, no forward pass for π_prox, and the masks look at π / μ.

Deviations from the sources
 1. Log-ratios are cut at +-20 before e^x (verl's bound), after sums and means were taken. `outliers` are found before.
 2. What is masked stays in the denominator, as in TRL, NeMo RL, OpenRLHF and prime-rl: the step's denominator is known
    before any forward pass and on every rank, and a step of which 90 % is masked moves a tenth as far. slime, and verl
    where it masks before the update, take masked tokens out of it, so that the tokens that are left weigh more.
 3. Masks and weights are of the policy term. The KL and the entropy are of the policy, whoever sampled, and stay.
 4. IcePop's weight inside its band is w itself. Here mask and weight are two columns: `correction: truncated` with
    `token_mask: ratio` is IcePop as long as importance_cap is not below token_high.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

from posttrain.lazy_torch import torch
from posttrain.losses.parameters import Parameter
from posttrain.losses.reduce import branch_sums, branch_tokens, mean_or_zero
from posttrain.losses.surrogates import Parameters, bounded
from posttrain.types import Batch

if TYPE_CHECKING:
    from torch import Tensor

PROXIMAL = ("trainer", "sampler")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far the trainer is from the engine that sampled, at the N trained tokens of a batch; without gradient."""

    log_ratio_N: Tensor
    """log w = log π_prox - log μ."""
    change_N: Tensor
    """π - μ, a difference of probabilities: of the policy now, since DPPO bounds where the update leads."""
    advantage_N: Tensor
    batch: Batch

    def token_N(self) -> Tensor:
        """w of each token."""
        return bounded(self.log_ratio_N).exp()

    def product_N(self) -> Tensor:
        """w of the response, Π w(t), at each of its tokens."""
        return bounded(self._at_tokens(branch_sums(self.log_ratio_N, self.batch))).exp()

    def geometric_N(self) -> Tensor:
        """(Π w(t))^(1/|y|) of the response, at each of its tokens."""
        sums_B = branch_sums(self.log_ratio_N, self.batch)
        mean_B = mean_or_zero(sums_B, branch_tokens(self.batch, self.log_ratio_N))
        return bounded(self._at_tokens(mean_B)).exp()

    def any_N(self, tokens_N: Tensor) -> Tensor:
        """True at every token of a response one of whose tokens is True."""
        return self._at_tokens(branch_sums(tokens_N.to(self.log_ratio_N), self.batch)) > 0

    def _at_tokens(self, values_B: Tensor) -> Tensor:
        return values_B[self.batch.branch_N.to(values_B.device)]


# ---------------------------------------------------------------- weights


@dataclass(frozen=True, slots=True)
class Correction:
    weight: Callable[[Mismatch, Parameters], Tensor] | None
    """(mismatch, parameters) -> weight [N], without gradient"""
    formula: str
    defaults: Parameters = field(default_factory=dict)
    source: str = ""


def _truncated(mismatch: Mismatch, parameters: Parameters) -> Tensor:
    return mismatch.token_N().clamp(max=parameters["importance_cap"])


def _sequence_truncated(mismatch: Mismatch, parameters: Parameters) -> Tensor:
    return mismatch.product_N().clamp(max=parameters["importance_cap"])


CORRECTIONS: Mapping[str, Correction] = MappingProxyType(
    {
        "none": Correction(None, "1"),
        "truncated": Correction(
            _truncated,
            "min(w(t), C)",
            {"importance_cap": 2.0},
            'TIS: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; C of verl',
        ),
        # The only unbiased weight of the four, but for its cap, and the one whose variance grows with length.
        "sequence_truncated": Correction(
            _sequence_truncated,
            "min(Π_t w(t), C)",
            {"importance_cap": 2.0},
            'Seq-TIS: Liu et al. 2025, "When speed kills stability"; C of verl, SkyRL has 5',
        ),
    }
)

# ---------------------------------------------------------------- masks


@dataclass(frozen=True, slots=True)
class Mask:
    rejects: Callable[[Mismatch, Parameters], Tensor] | None
    """(mismatch, parameters) -> [N], True at each token that is taken out"""
    formula: str
    """Of what is kept."""
    defaults: Parameters = field(default_factory=dict)
    source: str = ""


def _outside(values_N: Tensor, lowest: float, highest: float) -> Tensor:
    return (values_N < lowest) | (values_N > highest)


def _ratio(mismatch: Mismatch, parameters: Parameters) -> Tensor:
    return _outside(mismatch.token_N(), parameters["token_low"], parameters["token_high"])


def _total_variation(mismatch: Mismatch, parameters: Parameters) -> Tensor:
    # By the sign of the advantage, as a clip: a token that went too far and is pulled back still trains.
    too_high_N = (mismatch.advantage_N > 0) & (mismatch.change_N > parameters["variation_high"])
    return too_high_N | ((mismatch.advantage_N < 0) & (mismatch.change_N < -parameters["variation_low"]))


def _geometric(mismatch: Mismatch, parameters: Parameters) -> Tensor:
    return _outside(mismatch.geometric_N(), parameters["geometric_low"], parameters["geometric_high"])


def _product(mismatch: Mismatch, parameters: Parameters) -> Tensor:
    return _outside(mismatch.product_N(), parameters["product_low"], parameters["product_high"])


def _outlier(mismatch: Mismatch, parameters: Parameters) -> Tensor:
    # Uncut: cut at e^-20, a threshold of 1e-9 would never find anything.
    token_N = mismatch.log_ratio_N.exp()
    return mismatch.any_N(_outside(token_N, parameters["outlier_low"], parameters["outlier_high"]))


TOKEN_MASKS: Mapping[str, Mask] = MappingProxyType(
    {
        "none": Mask(None, "all"),
        "ratio": Mask(
            _ratio,
            "token_low <= w(t) <= token_high",
            {"token_low": 0.5, "token_high": 2.0},
            "IcePop: Ling Team 2025 (Ring-1T), arXiv:2510.18855; band of verl's token rejection, the authors' code has "
            "up to 5",
        ),
        "total_variation": Mask(
            _total_variation,
            "A > 0: π(t) - μ(t) <= variation_high; A < 0: π(t) - μ(t) >= -variation_low",
            {"variation_low": 0.2, "variation_high": 0.2},
            "DPPO, binary total variation: Qi et al. 2026, arXiv:2602.04879; bounds of prime-rl",
        ),
    }
)
SEQUENCE_MASKS: Mapping[str, Mask] = MappingProxyType(
    {
        "none": Mask(None, "all"),
        # A mean: a long response is not the likelier to be masked for its length, as it is by the product.
        "geometric": Mask(
            _geometric,
            "geometric_low <= (Π_t w(t))^(1/|y|) <= geometric_high",
            {"geometric_low": 0.99, "geometric_high": 1.01},
            'Geo-RS: Liu et al. 2025, "When speed kills stability"; band of SkyRL, verl has 0.999 to 1.001',
        ),
        "product": Mask(
            _product,
            "product_low <= Π_t w(t) <= product_high",
            {"product_low": 0.5, "product_high": 2.0},
            'Seq-MIS: Liu et al. 2025, "When speed kills stability"; band of SkyRL',
        ),
    }
)
OUTLIERS: Mapping[str, Mask] = MappingProxyType(
    {
        "keep": Mask(None, "all"),
        "drop": Mask(
            _outlier,
            "outlier_low <= w(t) <= outlier_high at every t",
            {"outlier_low": 1e-4, "outlier_high": 100.0},
            "The veto of verl (1e-4) with SkyRL's upper bound; prime-rl PR#1176",
        ),
    }
)
MASKS: Mapping[str, Mapping[str, Mask]] = MappingProxyType(
    {"token_mask": TOKEN_MASKS, "sequence_mask": SEQUENCE_MASKS, "outliers": OUTLIERS}
)
"""Column -> its rules. A token that any of them takes out is out."""

CORRECTION_PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "importance_cap": Parameter("largest weight for the gap between sampler and trainer (C of TIS)", above=0.0),
        # Each band holds 1: a token on which engine and trainer agree is never taken out.
        "token_low": Parameter("least ratio of a token that trains", at_least=0.0, at_most=1.0),
        "token_high": Parameter("largest ratio of a token that trains", at_least=1.0),
        "variation_low": Parameter("most that the probability of a bad token may have fallen", at_least=0.0),
        "variation_high": Parameter("most that the probability of a good token may have risen", at_least=0.0),
        "geometric_low": Parameter("least mean ratio of a response that trains", at_least=0.0, at_most=1.0),
        "geometric_high": Parameter("largest mean ratio of a response that trains", at_least=1.0),
        "product_low": Parameter("least ratio of a response that trains", at_least=0.0, at_most=1.0),
        "product_high": Parameter("largest ratio of a response that trains", at_least=1.0),
        "outlier_low": Parameter("a token's ratio below which its response is dropped", at_least=0.0, at_most=1.0),
        "outlier_high": Parameter("a token's ratio above which its response is dropped", at_least=1.0),
    }
)

# ---------------------------------------------------------------- together


class Columns(Protocol):
    """The columns of a row that this file reads."""

    @property
    def correction(self) -> str: ...

    @property
    def token_mask(self) -> str: ...

    @property
    def sequence_mask(self) -> str: ...

    @property
    def outliers(self) -> Literal["keep", "drop"]: ...


def mask_rules(row: Columns) -> dict[str, Mask]:
    """The row's choice in each column of masks, those that mask nothing included."""
    return {
        "token_mask": TOKEN_MASKS[row.token_mask],
        "sequence_mask": SEQUENCE_MASKS[row.sequence_mask],
        "outliers": OUTLIERS[row.outliers],
    }


def correction_defaults(row: Columns) -> dict[str, float]:
    """The parameters of the row's choices, with the choices' own defaults."""
    found = dict(CORRECTIONS[row.correction].defaults)
    for mask in mask_rules(row).values():
        found |= mask.defaults
    return found


@dataclass(frozen=True, slots=True)
class Corrected:
    """What the columns make of a batch's tokens: Corrected(weight_N=[1.2, 0.8], rejected={"token_mask": [F, T]})."""

    weight_N: Tensor | None
    rejected: Mapping[str, Tensor]
    """[N] for each column that masks: True at each token that its rule takes out."""
    unknown_N: Tensor
    """NaN where the engine gave no log-prob, else 0."""

    @property
    def out_N(self) -> Tensor:
        """True at each token that some rule takes out."""
        masks = list(self.rejected.values())
        return torch.stack(masks).any(0) if masks else torch.zeros_like(self.unknown_N, dtype=torch.bool)

    def of(self, loss_N: Tensor) -> Tensor:
        """Each token's loss, weighted; 0 and without a gradient where it is taken out."""
        if self.weight_N is not None:
            loss_N = loss_N * self.weight_N
        if self.rejected:
            loss_N = loss_N.masked_fill(self.out_N, 0.0)
        # A sampled token without a log-prob is a fault of the rollout: as one that is masked, or kept, it would be
        # hidden, and as a loss of NaN the step is refused.
        return loss_N + self.unknown_N


def corrected(row: Columns, parameters: Parameters, mismatch: Mismatch) -> Corrected | None:
    """The row's weights and masks of a batch; None where it has none."""
    weight = CORRECTIONS[row.correction].weight
    rules = {column: mask.rejects for column, mask in mask_rules(row).items() if mask.rejects is not None}
    if weight is None and not rules:
        return None
    return Corrected(
        # No gradient: it says whose samples these are. With one the policy would learn to fit the engine's rounding.
        weight_N=None if weight is None else weight(mismatch, parameters),
        rejected={column: rejects(mismatch, parameters) for column, rejects in rules.items()},
        unknown_N=torch.zeros_like(mismatch.log_ratio_N).masked_fill(mismatch.log_ratio_N.isnan(), torch.nan),
    )


# ---------------------------------------------------------------- as published


@dataclass(frozen=True, slots=True)
class Published:
    """A method of a paper or a tool in these columns: `choices` of a recipe, with the parameters that differ."""

    choices: Mapping[str, str]
    parameters: Parameters
    source: str


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "tis": Published({"correction": "truncated"}, {}, "Yao et al. 2025; token_truncate of TRL"),
        "seq_tis": Published(
            {"correction": "sequence_truncated"}, {}, "verl's decoupled_seq_is; sequence_truncate of TRL"
        ),
        "seq_mis": Published(
            {"correction": "sequence_truncated", "sequence_mask": "product"},
            {"product_low": 0.0},
            "verl's decoupled_seq_is_rs",
        ),
        "icepop": Published({"correction": "truncated", "token_mask": "ratio"}, {}, "arXiv:2510.18855"),
        "geo_rs": Published(
            {"sequence_mask": "geometric", "outliers": "drop"},
            {},
            "verl's decoupled_geo_rs; SkyRL's first recommendation",
        ),
        "geo_rs_seq_tis": Published(
            {"correction": "sequence_truncated", "sequence_mask": "geometric", "outliers": "drop"},
            {},
            "verl's geo_rs_seq_tis",
        ),
        # AReaL filters tokens beyond the cap where TIS truncates them.
        "decoupled": Published(
            {"correction": "truncated", "token_mask": "ratio"},
            {"importance_cap": 5.0, "token_low": 0.0, "token_high": 5.0},
            "arXiv:2505.24298, behav_imp_weight_cap 5",
        ),
        "dppo": Published(
            {"proximal": "sampler", "surrogate": "clipped_weight", "token_mask": "total_variation"},
            {"clip_low": 1.0, "clip_high": 19.0},
            "arXiv:2602.04879; ratio truncated at 20, as in verl's dppo_tv",
        ),
        "bypass": Published(
            {"proximal": "sampler"}, {}, "verl's ppo_is_bypass: the clip is around the engine's policy"
        ),
    }
)
"""Names that the field uses, in these columns: docs/online.md has a line for each, `benchmarks/corrections.py` runs
them."""
