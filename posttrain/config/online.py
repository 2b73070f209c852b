"""Online stages: one record per row of `posttrain.losses.online.ONLINE`, and what they sample, score and measure.

    GRPO(prompts_per_step=16, completions_per_prompt=8, learning_rate=1e-6, rewards=[{"kind": "math"}])
    Online("rloo", kl_beta=0.01)

Units are in the names: a step samples `prompts_per_step` x `completions_per_prompt` completions and makes
`updates_per_rollout` updates of `prompts_per_update` prompts each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, create_model, model_validator

from posttrain.arguments import checked_text
from posttrain.config.fields import parameter_field
from posttrain.config.rollout import require_weighed, weighing_older
from posttrain.config.sampled import ONLINE_RATE, HeldOutTasks, RolloutSampling, SamplingStage, Stop, online_rate
from posttrain.config.settings import PromptEncoding
from posttrain.config.values import Float, Int, Settings, choose, refuse
from posttrain.errors import ConfigError
from posttrain.losses.online import ONLINE, PARAMETERS, OnlineRow, online_row, variant
from posttrain.losses.pairwise import PAIRWISE

__all__ = [
    "GKD",
    "GRPO",
    "ONLINE_RATE",
    "ONLINE_STAGES",
    "PPO",
    "RFT",
    "SAMPLING_STAGES",
    "Choices",
    "HeldOutTasks",
    "Online",
    "OnlineDPO",
    "OnlineStage",
    "PPOStage",
    "PromptEncoding",
    "RolloutSampling",
    "SamplingStage",
    "Stop",
    "online_rate",
]


class Choices(Settings):
    """Where this stage departs from its method's row; null keeps the row's own."""

    ratio: str | None = None
    """`token`, `sequence`, `sequence_token` or `none`."""
    surrogate: str | None = None
    """`clip`, `dual_clip`, `clipped_weight`, `reinforce` or `soft_gate`."""
    reduction: str | None = None
    """`token_mean`, `sequence_mean`, `constant_length` or `sequence_sum`."""
    kl: str | None = None
    """`none`, `k1`, `k2`, `k3`, `reverse`, `k3_corrected`, or `exact` over the whole vocabulary; docs/online.md says
    what each is the gradient of."""
    kl_place: str | None = None
    """`loss` or `reward`."""
    correction: str | None = None
    """`truncated` weighs each token by how much likelier the trainer finds it than the engine did, up to a cap;
    `sequence_truncated` all tokens of a response by the product; `none`."""
    token_mask: str | None = None
    """Takes out tokens on which trainer and engine differ too much, by their `ratio` (IcePop) or by their
    `total_variation` (DPPO); `none`."""
    sequence_mask: str | None = None
    """Takes out responses, by the `geometric` mean of their tokens' ratios or by their `product`; `none`."""
    outliers: str | None = None
    """`drop` takes out a response that has one token whose ratio is beyond all rounding; `keep`."""
    proximal: str | None = None
    """What ratios start from: the `trainer`'s policy at the step's start, or the `sampler`'s, the engine's."""
    groups: str | None = None
    """Groups whose rewards are all equal: `keep` them, `drop` them, or `resample` others in their place."""
    shaping: str | None = None
    """`soft_overlong` takes up to 1 from the reward of a response near `max_new_tokens`; `none`."""
    parameters: dict[str, Float] = Field(default_factory=dict)
    """Of parameters that the choices bring along: `{importance_cap: 2.0}`."""

    @property
    def made(self) -> dict[str, str]:
        return {name: value for name, value in self if isinstance(value, str)}


class OnlineStage(SamplingStage):
    """Reinforcement learning by a row of the online table: sample, score, assign credit, update."""

    choices: Choices = Choices()
    """Where the stage departs from its method's row."""
    kl_target: Float | None = Field(default=None, gt=0)
    """Nats of KL(policy || start) per response; `kl_beta` then follows the KL, up and down (Ziegler et al. 2019)."""

    @property
    def row(self) -> OnlineRow:
        """The method's row with the stage's choices."""
        row = variant(ONLINE[self.method], **self.choices.made) if self.choices.made else ONLINE[self.method]
        return weighing_older(row) if self.off_policy else row

    @property
    def parameters(self) -> dict[str, float]:
        """The row's numbers, for `policy_loss`."""
        row = self.row
        # A choice may have taken a parameter away: only what the row with its choices still reads.
        own = {name: float(vars(self)[name]) for name in ONLINE[self.method].defaults if name in row.defaults}
        return row.resolve({**own, **self.choices.parameters}, where=self.method)

    @property
    def credit_parameters(self) -> dict[str, float]:
        """What `posttrain.advantages.advantages` takes of them."""
        return {name: value for name, value in self.parameters.items() if name in ("gamma", "lam")}

    @property
    def needs_rewards(self) -> bool:
        return self.row.advantage != "teacher"

    @property
    def needs_reference(self) -> bool:
        return self.row.needs_reference

    @property
    def ratio_from_sampler(self) -> bool:
        return not self.row.needs_sampler

    @property
    def measures_kl(self) -> bool:
        return True

    @property
    def tied_groups(self) -> str:
        return self.row.groups

    @property
    def overlong_part(self) -> float | None:
        return self.parameters["overlong_share"] if self.row.shaping == "soft_overlong" else None

    @property
    def kl_place(self) -> str:
        return self.row.kl_place

    @property
    def on_policy(self) -> bool:
        """Whether the policy that trains is the one that sampled, so that every ratio is 1 and old log-probs are its
        own."""
        # From the second update on the policy has moved, and ratios are to the one that sampled.
        return self.updates_per_rollout == 1

    @property
    def follows_kl(self) -> bool:
        """Whether something is steered by the KL of the policy that sampled: the reward, `kl_beta`, the end."""
        return self.row.kl_place == "reward" or self.kl_target is not None or self.stop.kl_above is not None

    @model_validator(mode="after")
    def _row_fits(self) -> Self:
        try:
            row, _ = self.row, self.parameters
        except ConfigError as error:
            raise refuse(
                error.problem,
                path=("choices",),
                found=error.found or "",
                expected=error.expected,
                remedy=error.remedy or "correct it",
            ) from None
        require_weighed(self.method, row, self.rollout)
        # Its advantage would be 0 for every response: the run would go on, and learn nothing.
        if row.compares_groups and self.completions_per_prompt < 2:
            raise refuse(
                f"{self.method} compares the completions of a prompt with each other, and one has no other: it needs "
                "at least 2",
                path=("completions_per_prompt",),
                found=f"completions_per_prompt: {self.completions_per_prompt}",
                expected="at least 2",
                remedy="write `completions_per_prompt: 8`, or use reinforce_pp or ppo, which need no group",
            )
        if row.one_update and self.updates_per_rollout > 1:
            raise refuse(
                "without a ratio, each update after the first would follow the gradient of a policy that is gone",
                path=("updates_per_rollout",),
                found=f"{self.updates_per_rollout} updates; the ratio of {self.method}"
                f"{' with these choices' if self.choices.made else ''} is none",
                expected="1",
                remedy="write `updates_per_rollout: 1` without `prompts_per_update`, or `choices: {ratio: token}`",
            )
        return self

    @model_validator(mode="after")
    def _rewards_teach(self) -> Self:
        """Refuses what would take the signal away from every step."""
        row, each = self.row, self.completions_per_prompt
        if row.groups != "keep" and each < 2:
            raise refuse(
                f"`groups: {row.groups}` leaves out prompts whose rewards are all equal, and those of a single "
                "completion always are: every step would train nothing",
                path=("completions_per_prompt",),
                found=f"completions_per_prompt: {each}, groups: {row.groups}",
                expected="at least 2 completions, or groups: keep",
                remedy="write `completions_per_prompt: 8`, or `choices: {groups: keep}`",
            )
        if row.compares_step and self.prompts_per_step * each < 2:
            raise refuse(
                f"{self.method} compares the completions of a step with each other, and a step of one has no other: "
                "what it was worth is taken away as the mean",
                path=("prompts_per_step",),
                found=f"prompts_per_step: {self.prompts_per_step}, completions_per_prompt: {each}",
                expected="at least 2 completions in a step",
                remedy="write `prompts_per_step: 16`",
            )
        return self

    @model_validator(mode="after")
    def _kl_is_there(self) -> Self:
        follows = "kl_target" if self.kl_target is not None else "stop.kl_above"
        if self.row.kl_place == "none" and (self.kl_target is not None or self.stop.kl_above is not None):
            raise refuse(
                "there is no KL to follow: the method has none",
                path=tuple(follows.split(".")),
                remedy="write `choices: {kl: reverse}`, with `parameters: {kl_beta: 0.001}` for a weak one",
            )
        # The controller multiplies (Ziegler et al. 2019, Sec. 2.2): from 0 it never leaves 0.
        if self.kl_target is not None and not self.parameters["kl_beta"]:
            raise refuse(
                "`kl_target` multiplies the weight of the KL up and down, and 0 stays 0",
                path=("kl_target",),
                found=f"kl_target: {self.kl_target:g}, kl_beta: 0",
                expected="kl_beta above 0, at which it begins",
                remedy="write `kl_beta: 0.01` (of a KL that is chosen, `choices: {parameters: {kl_beta: 0.01}}`), or "
                "leave `kl_target` out",
            )
        return self

    @model_validator(mode="after")
    def _sampler_is_the_policy(self) -> Self:
        sampling = self.sampling
        # Cut or bent, the sampler's log-probs are of another distribution than the trainer's softmax: every ratio is
        # biased.
        neutral = {"top_k": None, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        odd = [name for name, value in neutral.items() if vars(sampling)[name] != value]
        if odd:
            wanted = ", ".join(f"{name}: {'null' if neutral[name] is None else neutral[name]}" for name in odd)
            raise refuse(
                "importance ratios compare whole distributions, and this sampling cuts or bends the policy's",
                path=("sampling", odd[0]),
                found=", ".join(f"{name}: {vars(sampling)[name]}" for name in odd),
                expected="temperature alone",
                remedy=f"write `sampling: {{{wanted}}}`; rejection sampling (`method: rft`) may cut",
            )
        if sampling.temperature == 0:
            raise refuse(
                "temperature 0 draws the same completion each time",
                path=("sampling", "temperature"),
                found="temperature: 0",
                remedy="write `sampling: {temperature: 1.0}`",
            )
        return self


class PPOStage(OnlineStage):
    """Reinforcement learning with a value model, which says what a state is worth before the answer is finished."""

    value_learning_rate: Float | None = Field(default=None, gt=0)
    """Of the value model's own optimizer; null: five times the policy's (Ouyang et al. 2022 take 9e-6 beside 1.5e-6 to
    2e-6)."""
    value_backbone: Literal["train", "freeze", "shared"] = "train"
    """What stands under the value head. `train`: a backbone of its own, from the start; under an adapter the base
    weights are shared, and it costs one more adapter. `freeze`: the same, and only the head trains. `shared`: the
    policy's own, which the value loss trains too, with `value_weight`."""

    @property
    def shares_value_backbone(self) -> bool:
        return self.value_backbone == "shared"

    @model_validator(mode="after")
    def _value_weight_has_an_effect(self) -> Self:
        # Only where it was written: as a default it is in every record.
        if self.value_backbone != "shared" and "value_weight" in self.model_fields_set:
            raise refuse(
                "the value model has a backbone and an optimizer of its own, so its loss has no weight",
                path=("value_weight",),
                found=f"value_backbone: {self.value_backbone}",
                remedy="write `value_backbone: shared`, or set `value_learning_rate` instead",
            )
        return self


class OnlineDPO(SamplingStage):
    """Preference optimisation on the policy's own completions: the best and the worst of each group are a pair.

    Guo et al. 2024 (OAIF), arXiv:2402.04792; with many updates per rollout it is iterated DPO (Yuan et al. 2024,
    arXiv:2401.10020).
    """

    method: Literal["online_dpo"] = "online_dpo"
    """Sample, score, pair, train."""
    objective: str = "dpo"
    """The row of the pairwise table that trains on the pairs."""
    parameters: dict[str, Float] = Field(default_factory=dict)
    """Of the objective: `{beta: 0.1}`."""
    least_margin: Float = Field(default=0.0, ge=0)
    """Pairs whose rewards differ by less are left out."""

    @property
    def needs_reference(self) -> bool:
        return PAIRWISE[self.objective].needs_reference

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        choose("objective", self.objective, PAIRWISE)
        try:
            PAIRWISE[self.objective].resolve(self.parameters, where=self.objective)
        except ConfigError as error:
            raise refuse(error.problem, path=("parameters",), remedy=error.remedy or "correct it") from None
        if self.completions_per_prompt < 2:
            raise refuse(
                "a pair is the best and the worst of a prompt's completions: it needs at least 2",
                path=("completions_per_prompt",),
                found=f"completions_per_prompt: {self.completions_per_prompt}",
                remedy="write `completions_per_prompt: 4`",
            )
        return _with_draws(self)


class RFT(SamplingStage):
    """Rejection sampling: imitate the completions that are good enough.

    Yuan et al. 2023, arXiv:2308.01825; the inner loop of ReST, Gulcehre et al. 2023, arXiv:2308.08998.
    """

    method: Literal["rft"] = "rft"
    """Sample, score, keep the good ones, imitate them."""
    # 1 is what a verifier gives a right answer; rewards of another scale need another bound.
    least_reward: Float = 1.0
    """What is good enough."""
    most_per_prompt: Int | None = Field(default=None, ge=1)
    """Of one prompt, only the best ones; null: all that differ."""

    @model_validator(mode="after")
    def _differs(self) -> Self:
        return _with_draws(self)


class GKD(SamplingStage):
    """On-policy distillation: the policy's own completions, and the teacher's distribution at each of their tokens.

    Agarwal et al. 2023 (GKD), arXiv:2306.13649, with all data sampled by the student (their lambda = 1). It needs no
    rewards, and logits exist for a chunk of tokens at a time.
    """

    method: Literal["gkd"] = "gkd"
    """Sample, and follow the teacher."""
    teacher: str
    """The model to learn from, with the same tokenizer: a catalogue name, a folder, or a hub id."""
    beta: Float = Field(default=0.5, ge=0, le=1)
    """Of the generalised JSD, beta KL(teacher || m) + (1 - beta) KL(policy || m): 0 is KL(teacher || policy), which
    covers all that the teacher says; 1 is KL(policy || teacher), which settles on what it says most."""
    reduction: Literal["sequence_mean", "token_mean"] = "sequence_mean"
    """The mean over responses of their mean per token, as published, or over all tokens."""
    # One: the teacher judges each token, so there is no group to compare.
    completions_per_prompt: Int = Field(default=1, ge=1)
    """Completions sampled of each prompt."""

    @property
    def needs_rewards(self) -> bool:
        return False

    @model_validator(mode="after")
    def _draws(self) -> Self:
        return _with_draws(self)


Sampler = TypeVar("Sampler", bound=SamplingStage)


def _with_draws(stage: Sampler) -> Sampler:
    """Refuses sampling under which a prompt's completions are all the same."""
    # Each of these leaves one possible token, so a group has nothing to compare.
    certain = {"temperature": 0.0, "top_k": 1, "min_p": 1.0}
    usual = {"temperature": "1.0", "top_k": "null", "min_p": "0.0"}
    for name, value in certain.items():
        if getattr(stage.sampling, name) == value and stage.completions_per_prompt > 1:
            raise refuse(
                f"{name} {value:g} draws the same completion each time",
                path=("sampling", name),
                found=f"{name}: {value:g}, completions_per_prompt: {stage.completions_per_prompt}",
                remedy=f"write `sampling: {{{name}: {usual[name]}}}`, or `completions_per_prompt: 1`"
                if not isinstance(stage, OnlineDPO)
                else f"write `sampling: {{{name}: {usual[name]}}}`",
            )
    return stage


# ---------------------------------------------------------------- one record per row of the table


def _online(method: str, row: OnlineRow) -> type[OnlineStage]:
    """The stage of one row: its parameters are fields, with the row's values as defaults."""
    fields: dict[str, Any] = {"method": (Literal[method], Field(default=method, description=row.source))}
    for name, value in row.defaults.items():
        fields[name] = (Float, parameter_field(PARAMETERS[name], value))
    # The run's own budget: with the paper's 3,000, one of 100 tokens would have a thirtieth of the gradient.
    if "constant_length" in fields:
        described = "Tokens that every response is divided by; `sampling.max_new_tokens` if absent."
        longest: Callable[[dict[str, Any]], float] = lambda stage: float(stage["sampling"].max_new_tokens)  # noqa: E731
        fields["constant_length"] = (Float, Field(default_factory=longest, gt=0, description=described))
    if row.advantage == "teacher":
        fields["teacher"] = (
            str,
            Field(description="The model to learn from: a catalogue name, a folder, or a hub id."),
        )
    base = PPOStage if row.needs_values else OnlineStage
    text = f"{base.__doc__}\n\n{row.source}"
    stage = create_model(method, __base__=base, __module__=__name__, __doc__=text, **fields)
    stage.__qualname__ = method
    return stage


ONLINE_STAGES: Mapping[str, type[OnlineStage]] = {name: _online(name, row) for name, row in ONLINE.items()}
SAMPLING_STAGES: Mapping[str, type[SamplingStage]] = {
    **ONLINE_STAGES,
    "online_dpo": OnlineDPO,
    "rft": RFT,
    "gkd": GKD,
}
"""Every method that trains on what its policy samples."""

GRPO: Callable[..., OnlineStage] = ONLINE_STAGES["grpo"]
"""GRPO(prompts_per_step=16, completions_per_prompt=8, ...)"""
PPO: Callable[..., OnlineStage] = ONLINE_STAGES["ppo"]
"""PPO(completions_per_prompt=1, ...)"""


def Online(method: str, **options: Any) -> SamplingStage:
    """A stage by its row of the online table, or `online_dpo`, `rft` or `gkd`: Online("rloo", kl_beta=0.01).

    Raises:
        UnknownKeyError: no row of that name, or an option that it does not have.
        ConfigError: a value that it does not admit.
    """
    checked_text("method", method, "grpo")
    if method not in SAMPLING_STAGES:
        method = online_row(method)[0]  # another name of a row, or the error that names the nearest one
    return SAMPLING_STAGES[method](**options)
