"""The online family: a literal table over orthogonal choices.

    loss = reduction( weight * -surrogate(ratio, advantage) + kl_beta * KL - entropy_weight * entropy )

    advantage   what a response, or a token, was worth: a rule of `posttrain.advantages`
    ratio       π / π_old of a token, or of a response                                     (`surrogates.py`)
    surrogate   ratio and advantage to a loss per token: clip, clipped weight, soft gate, plain policy gradient
    reduction   tokens to one number: token mean, mean of sequence means, constant length
    kl          the estimator that keeps the policy near its reference (`kl.py`), in the loss or in the reward
    correction, token_mask, sequence_mask, outliers, proximal
                what becomes of tokens that another policy sampled than the one that trains     (`corrections.py`)
    groups      what becomes of groups without a signal; the rollout's business, as is the shaping of rewards

The loss itself is `policy.py`. To add an algorithm, add a row to `ONLINE`; to change one in a recipe,
`variant(row, kl="k2")`.

Notation: y_i a response, A the advantage, ρ the ratio, r the log-ratio to the reference.

Deviations from the papers
 1. Means over a group are means over the responses of the *step*: where all groups are equally large, the same thing.
    A response that was dropped counts nowhere, nor does one without any token; both keep their reward in their
    group's baseline. A stop token alone is an answer of one token, which trains.
 2. Log-ratios are cut at +-20 before e^x, where every clip has long acted.
 3. GRPO's k3 is the published penalty, though its gradient is that of the other KL (`kl.py`); `kl: reverse` and
    `kl: k3_corrected` have the right one.
 4. Dr. GRPO divides by a constant that its paper leaves open; the authors' code has the generation budget.
 5. CISPO as published also resamples groups and penalises length (it takes both from DAPO); the row does not.
 6. REINFORCE++ and its baseline variant are whitened over the rollout, not over each minibatch.
 7. DAPO's dynamic sampling (Eq. 11) asks for groups in which some answers are right and some are not. Here it asks for
    rewards that are not all equal, as they were before the overlong penalty: the same thing for rewards of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from posttrain.errors import unknown
from posttrain.losses.corrections import (
    CORRECTION_PARAMETERS,
    CORRECTIONS,
    MASKS,
    PROXIMAL,
    correction_defaults,
    mask_rules,
)
from posttrain.losses.kl import KL_TERMS
from posttrain.losses.online_fit import require_fit
from posttrain.losses.parameters import Parameter, resolve
from posttrain.losses.surrogates import RATIOS, REDUCTIONS, SURROGATES, Parameters

EXACT = "exact"
"""The kind of KL that is summed over the vocabulary instead of estimated from the sampled token."""


@dataclass(frozen=True, slots=True)
class OnlineRow:
    """One algorithm: OnlineRow("group_std", "token", "clip", "token_mean", {"clip_low": 0.2, ...}, "its source").

    Raises:
        ConfigError: columns that do not go together (`online_fit.py`): neither the table nor a recipe has such a row.
    """

    advantage: str
    """A rule of `posttrain.advantages.ADVANTAGES`."""
    ratio: str
    surrogate: str
    reduction: str
    defaults: Parameters
    """The row's parameters, all of them, with the values of `source`."""
    source: str
    kl: str = "none"
    """`none`, an estimator of `posttrain.losses.kl.KL_TERMS`, or `exact`."""
    kl_place: Literal["none", "loss", "reward"] = "none"
    correction: str = "none"
    token_mask: str = "none"
    sequence_mask: str = "none"
    outliers: Literal["keep", "drop"] = "keep"
    proximal: Literal["trainer", "sampler"] = "trainer"
    """The policy that ratios start from: the trainer's at the step's start, or the engine's."""
    groups: Literal["keep", "drop", "resample"] = "keep"
    """What becomes of a group whose rewards are all equal."""
    shaping: Literal["none", "soft_overlong"] = "none"
    """What is added to the reward for a response's length."""

    def __post_init__(self) -> None:
        require_fit(self)

    @property
    def needs_reference(self) -> bool:
        return self.kl_place != "none"

    @property
    def needs_teacher(self) -> bool:
        return self.advantage == "teacher"

    @property
    def needs_old(self) -> bool:
        """Whether the loss reads the log-probs of the policy that sampled, as the trainer computes them."""
        if self.proximal == "sampler":
            return False
        # `k3_corrected` is weighted by π/π_old even where the surrogate has no ratio of its own.
        corrects_kl = self.kl_place == "loss" and self.kl in KL_TERMS and KL_TERMS[self.kl].needs_ratio
        return self.ratio != "none" or corrects_kl or self.needs_sampler

    @property
    def exact_kl(self) -> bool:
        """Whether the loss has the KL over the whole vocabulary, for which the reference runs in each update."""
        return self.kl == EXACT

    @property
    def one_update(self) -> bool:
        """Without a ratio, a second update on the same rollout would follow the gradient of another policy."""
        return self.ratio == "none"

    @property
    def needs_values(self) -> bool:
        """Whether a value model learns beside the policy."""
        return self.advantage == "gae"

    @property
    def masks(self) -> bool:
        """Whether some tokens may be taken out."""
        return any(mask.rejects is not None for mask in mask_rules(self).values())

    @property
    def needs_sampler(self) -> bool:
        """Whether the loss reads the engine's own log-probs."""
        return self.correction != "none" or self.masks or self.proximal == "sampler"

    @property
    def compares_groups(self) -> bool:
        """Whether a prompt needs two completions or more."""
        return self.advantage not in ("gae", "batch_whiten", "teacher")

    @property
    def compares_step(self) -> bool:
        """Whether advantages are whitened over the tokens of a step without any baseline of their prompt's: a step then
        needs two completions, or what the only one was worth is taken away as the mean."""
        return self.advantage in ("gae", "batch_whiten")

    def resolve(self, given: Parameters, *, where: str = "online objective") -> dict[str, float]:
        """The row's defaults with `given` over them, all checked: what `policy_loss` takes.

        ONLINE["dr_grpo"].resolve({"constant_length": 40.0}) == {"constant_length": 40.0, "entropy_weight": 0.0}

        Raises:
            UnknownKeyError: a parameter that the row does not have; says which rows do, and the nearest name.
            ConfigError: a value out of range.
        """
        return resolve(given, self.defaults, PARAMETERS, where=where, owners=owners())


# PPO's one ε for both sides; rows that treat the sides differently name both.
_CLIP = {"clip_low": 0.2, "clip_high": 0.2}

ONLINE: Mapping[str, OnlineRow] = MappingProxyType(
    {
        "ppo": OnlineRow(
            "gae",
            "token",
            "clip",
            "token_mean",
            {
                **_CLIP,
                "kl_beta": 0.02,
                "gamma": 1.0,
                "lam": 0.95,
                "value_clip": 0.2,
                "value_weight": 0.1,
                "entropy_weight": 0.0,
            },
            # In the reward, not in the loss, so that returns count the KL and the value model learns to expect it.
            "Schulman et al. 2017, arXiv:1707.06347, Eq. 7; KL in the reward, beta, gamma and lambda of Ouyang et al. "
            "2022 (InstructGPT), arXiv:2203.02155, App. C; weight of the value loss of TRL",
            kl="k1",
            kl_place="reward",
        ),
        "grpo": OnlineRow(
            "group_std",
            "token",
            "clip",
            "sequence_mean",
            {**_CLIP, "kl_beta": 0.04, "entropy_weight": 0.0},
            # k3 as published has the gradient of the other KL (deviation 3).
            "Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, Eq. 3 and 4; beta of their experiments, clip of PPO",
            kl="k3",
            kl_place="loss",
        ),
        "dr_grpo": OnlineRow(
            # Neither the group's deviation nor a response's own length divides: the first weighs easy and hard prompts
            # up, the second makes long wrong answers cheap.
            "group_centre",
            "token",
            "clip",
            "constant_length",
            {**_CLIP, "constant_length": 3000.0, "entropy_weight": 0.0},
            "Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783, the section on Dr. GRPO; the length is their budget",
        ),
        "dapo": OnlineRow(
            "group_std",
            "token",
            "clip",
            "token_mean",
            {"clip_low": 0.2, "clip_high": 0.28, "overlong_share": 0.2, "entropy_weight": 0.0},
            "Yu et al. 2025 (DAPO), arXiv:2503.14476, Eq. 8, dynamic sampling of Eq. 11, overlong shaping of Eq. 13 "
            "(4,096 of 20,480 tokens)",
            # Prompts that are always or never solved are replaced, or the step shrinks as the policy gets better.
            groups="resample",
            shaping="soft_overlong",
        ),
        "gspo": OnlineRow(
            "group_std",
            "sequence",
            "clip",
            "sequence_mean",
            # The ratio is a geometric mean over the response and hardly leaves 1: PPO's 0.2 would never clip anything.
            {"clip_low": 3e-4, "clip_high": 4e-4, "entropy_weight": 0.0},
            "Zheng et al. 2025 (GSPO), arXiv:2507.18071, Eq. 5 and 7; clips of Sec. 5.1",
        ),
        "gspo_token": OnlineRow(
            "group_std",
            "sequence_token",
            "clip",
            "sequence_mean",
            {"clip_low": 3e-4, "clip_high": 4e-4, "entropy_weight": 0.0},
            "Zheng et al. 2025 (GSPO), arXiv:2507.18071, GSPO-token, Eq. 13 and 14; clips of Sec. 5.1",
        ),
        "rloo": OnlineRow(
            "leave_one_out",
            "none",
            "reinforce",
            "sequence_sum",
            {"kl_beta": 0.05, "entropy_weight": 0.0},
            "Ahmadian et al. 2024 (RLOO), arXiv:2402.14740, the section on RLOO, after Kool et al. 2019; beta of TRL",
            kl="k1",
            kl_place="reward",
        ),
        "reinforce_pp": OnlineRow(
            "batch_whiten",
            "token",
            "clip",
            "token_mean",
            {**_CLIP, "kl_beta": 0.01, "gamma": 1.0, "entropy_weight": 0.0},
            "Hu et al. 2025 (REINFORCE++), arXiv:2501.03262, the section on REINFORCE++; beta of OpenRLHF",
            kl="k1",
            kl_place="reward",
        ),
        "reinforce_pp_baseline": OnlineRow(
            # The group's mean is the baseline, the rollout's deviation the scale: a group's own is noise for few
            # completions.
            "group_centre_batch_std",
            "token",
            "clip",
            "token_mean",
            {**_CLIP, "kl_beta": 1e-5, "entropy_weight": 0.0},
            "Hu et al. 2025 (REINFORCE++), arXiv:2501.03262, the baseline variant; k2 and beta of OpenRLHF's script",
            kl="k2",
            kl_place="loss",
        ),
        "cispo": OnlineRow(
            "group_std",
            "token",
            "clipped_weight",
            "token_mean",
            # 1 - clip_low is 0, so there is no lower bound.
            {"clip_low": 1.0, "clip_high": 4.0, "entropy_weight": 0.0},
            "MiniMax 2025 (MiniMax-M1), arXiv:2506.13585, Eq. 4 and 5, no lower bound; weight up to 5 as in Khatri et "
            "al. 2025 (ScaleRL), arXiv:2510.13786",
        ),
        "sapo": OnlineRow(
            "group_std",
            "token",
            "soft_gate",
            "sequence_mean",
            # The gate closes faster on bad tokens: pushing one down raises all others of the vocabulary, most of them
            # wrong too.
            {"gate_positive": 1.0, "gate_negative": 1.05, "entropy_weight": 0.0},
            "Gao et al. 2025 (SAPO), arXiv:2511.20347, the section on the soft gate; temperatures of their experiments",
        ),
        "maxrl": OnlineRow(
            "maxrl",
            "none",
            "reinforce",
            # A whole response is one action, so its log-prob is the sum over its tokens and no mean.
            "sequence_sum",
            {"entropy_weight": 0.0},
            "Tajwar et al. 2026 (MaxRL), arXiv:2602.02710, Algorithm 1; for rewards of 0 and 1",
        ),
        "distil_reverse_kl": OnlineRow(
            "teacher",
            "token",
            "reinforce",
            "token_mean",
            {"entropy_weight": 0.0},
            "On-policy distillation by the reverse KL of sampled tokens: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, "
            "one step ahead only, as in Lu et al. 2025 (thinkingmachines.ai/blog/on-policy-distillation)",
        ),
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {"reinforce++": "reinforce_pp", "reinforce++_baseline": "reinforce_pp_baseline"}
)

# ---------------------------------------------------------------- parameters

PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "clip_low": Parameter("how far below 1 a ratio counts; 1 is no bound", at_least=0.0, at_most=1.0),
        "clip_high": Parameter("how far above 1 a ratio counts", at_least=0.0),
        "dual_clip": Parameter("most that a token of negative advantage may weigh (c of dual-clip PPO)", above=1.0),
        "gate_positive": Parameter("steepness of the gate for A > 0 (tau_pos of SAPO)", above=0.0),
        "gate_negative": Parameter("steepness of the gate for A <= 0 (tau_neg of SAPO)", above=0.0),
        "constant_length": Parameter("tokens that every response is divided by: the generation budget", above=0.0),
        "kl_beta": Parameter("weight of the KL to the reference, per token", at_least=0.0),
        "kl_every": Parameter("exact KL at one of so many tokens of a response; 1 is all of them", at_least=1.0),
        "entropy_weight": Parameter("weight of the entropy bonus", at_least=0.0),
        **CORRECTION_PARAMETERS,
        "gamma": Parameter("discount of later rewards", at_least=0.0, at_most=1.0),
        "lam": Parameter("how far ahead GAE trusts sampled rewards over values", at_least=0.0, at_most=1.0),
        "value_clip": Parameter("how far a value may move from what it was; 0 is no clip", at_least=0.0),
        "value_weight": Parameter("weight of the value loss where policy and value share a backbone", at_least=0.0),
        "overlong_share": Parameter("share of the length limit over which the penalty grows", above=0.0, at_most=1.0),
    }
)

ADVANTAGE_DEFAULTS: Mapping[str, Parameters] = MappingProxyType(
    {
        "gae": {"gamma": 1.0, "lam": 0.95, "value_clip": 0.2, "value_weight": 0.1},
        "batch_whiten": {"gamma": 1.0},
    }
)


def component_defaults(row: OnlineRow) -> dict[str, float]:
    """The parameters that a row's choices have, with the choices' own defaults."""
    found: dict[str, float] = {"entropy_weight": 0.0}
    found |= SURROGATES[row.surrogate].defaults
    found |= REDUCTIONS[row.reduction].defaults
    found |= correction_defaults(row)
    found |= ADVANTAGE_DEFAULTS.get(row.advantage, {})
    if row.kl_place != "none":
        # GRPO's, for a recipe that adds a KL to a row without one.
        found["kl_beta"] = 0.04
    if row.exact_kl:
        found["kl_every"] = 1.0
    if row.shaping == "soft_overlong":
        found["overlong_share"] = 0.2
    return found


def owners() -> dict[str, list[str]]:
    """Which rows have a parameter: owners()["lam"] == ["ppo"]."""
    return {key: [name for name, row in ONLINE.items() if key in row.defaults] for key in PARAMETERS}


def online_row(name: str) -> tuple[str, OnlineRow]:
    """(the row's own name, the row): online_row("reinforce++")[0] == "reinforce_pp". Raises UnknownKeyError."""
    name = ALIASES.get(name, name)
    if name not in ONLINE:
        raise unknown("method", name, ONLINE, found=name)
    return name, ONLINE[name]


CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ratio": tuple(RATIOS),
        "surrogate": tuple(SURROGATES),
        "reduction": tuple(REDUCTIONS),
        "kl": ("none", *KL_TERMS, EXACT),
        "kl_place": ("none", "loss", "reward"),
        "correction": tuple(CORRECTIONS),
        **{column: tuple(rules) for column, rules in MASKS.items()},
        "proximal": PROXIMAL,
        "groups": ("keep", "drop", "resample"),
        "shaping": ("none", "soft_overlong"),
    }
)
"""What a recipe may choose otherwise than a row does; `advantage` is the row's own."""


def variant(row: OnlineRow, **choices: str) -> OnlineRow:
    """The row with other choices: variant(ONLINE["grpo"], kl="reverse", correction="truncated").

    A choice brings its parameters with it, at its own defaults, and takes those along that nothing uses any more.
    `kl="none"` takes the KL away; a KL for a row without one goes into the loss unless `kl_place` says otherwise.

    Raises:
        UnknownKeyError: no such choice, or no such value for it.
        ConfigError: choices that do not go together, such as a place for a KL without a kind of KL, or a surrogate of
            the ratio without a ratio.
    """
    for name, value in choices.items():
        if name not in CHOICES:
            raise unknown("choice", name, CHOICES, found=name)
        if value not in CHOICES[name]:
            raise unknown(name, value, CHOICES[name], found=value)
    if "kl" in choices and "kl_place" not in choices:
        # Another estimator stays where the row has its KL.
        kept = row.kl_place if row.kl_place != "none" else "loss"
        choices["kl_place"] = "none" if choices["kl"] == "none" else kept
    changed = replace(row, **choices)  # type: ignore[arg-type]
    # Only what the new columns read: a recipe that still sets the parameter of a column it replaced is told so.
    defaults = {name: row.defaults.get(name, value) for name, value in component_defaults(changed).items()}
    return replace(changed, defaults=defaults)
