"""The groups of a reward stage: what is compared, what the head gives, and what becomes of its numbers.

    objective: {kind: bradley_terry, centre: 0.01}        objective: regression
    head: {kind: ensemble, members: 4, combine: worst}    head: {pooling: mean}
    normalise: whiten

A kind alone may stand for its group, and a group without a kind is the first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.fields import limits
from posttrain.config.values import Float, Int, Settings, listed, refuse
from posttrain.losses.reward import OBJECTIVES, PARAMETERS
from posttrain.losses.reward_rule import RewardRule

# ---------------------------------------------------------------- objectives


def _parameter(objective: str, name: str) -> Any:
    """A field with the default and the limits that the loss has."""
    # From the loss's own table, so that recipe and loss cannot come to differ. Without its words: those under the field
    # say more, and a description that is given would take their place.
    return Field(default=OBJECTIVES[objective].defaults[name], **limits(PARAMETERS[name]))


class ObjectiveSettings(Settings):
    """What every objective has."""

    IS_FAMILY: ClassVar[bool] = True

    kind: str
    """What the rewards are fitted to."""

    @property
    def parameters(self) -> dict[str, float]:
        return {name: value for name, value in self.model_dump().items() if name != "kind"}


class BradleyTerry(ObjectiveSettings):
    """The better response has the higher reward: -log sigma(r_w - r_l). A ranked list is all of its pairs."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    """Pairs, or all pairs of a ranked list."""
    margin_scale: Float = _parameter("bradley_terry", "margin_scale")
    """Reward by which the better response has to be ahead, per unit of the rows' `margin`: Touvron et al. 2023
    (Llama 2). 0: rows need no margin."""
    label_smoothing: Float = _parameter("bradley_terry", "label_smoothing")
    """Share of labels believed to be flipped."""
    centre: Float = _parameter("bradley_terry", "centre")
    """Weight of (r_w + r_l)^2, which holds the rewards around 0: Eisenstein et al. 2023, arXiv:2312.09244."""


class PlackettLuce(ObjectiveSettings):
    """The likelihood of the whole ranking; for two responses, Bradley-Terry."""

    kind: Literal["plackett_luce"] = "plackett_luce"
    """Ranked lists."""
    centre: Float = _parameter("plackett_luce", "centre")
    """Weight of (r_w + r_l)^2, which holds the rewards around 0."""


class Regression(ObjectiveSettings):
    """The reward is the annotators' score: squared error to the rows' `scores`."""

    kind: Literal["regression"] = "regression"
    """Scores."""


class StepLabels(ObjectiveSettings):
    """Each step is as right as its label says: binary cross-entropy. Needs `head: steps`, and rows whose steps are
    labelled: Lightman et al. 2023, arXiv:2305.20050; Wang et al. 2023, arXiv:2312.08935."""

    kind: Literal["step_labels"] = "step_labels"
    """Labels of steps."""


# ---------------------------------------------------------------- heads

PathList = Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)]


class HeadSettings(Settings):
    """What every head has."""

    IS_FAMILY: ClassVar[bool] = True

    kind: str
    """What the head's outputs stand for."""
    init: Literal["zero", "normal"] = "zero"
    """`zero`: every reward starts at 0 and the loss at ln 2. `normal`: standard deviation 1 / sqrt(D + 1)."""

    @property
    def rule(self) -> RewardRule:
        return RewardRule()


class Pooled(HeadSettings):
    """What the heads that score a whole response share."""

    pooling: Literal["last", "mean"] = "last"
    """Score the last token of the response (`transformers` does the same), or the mean of its tokens."""


class Single(Pooled):
    """One number per response."""

    kind: Literal["single"] = "single"
    """One output."""

    @property
    def rule(self) -> RewardRule:
        return RewardRule(pooling=self.pooling)


class Ensemble(Pooled):
    """Several outputs that start apart and train on the same rows; where they disagree, the reward is a guess.

    Members over seeds, which disagree more, are several stages with other seeds: `posttrain score A B FILE` combines.
    """

    kind: Literal["ensemble"] = "ensemble"
    """Members of an ensemble."""
    members: Int = Field(default=4, ge=2)
    """How many."""
    combine: Literal["mean", "worst", "mean_minus_std"] = "mean"
    """How their rewards become one: the mean, the least, or the mean minus `std_weight` standard deviations."""
    std_weight: Float = Field(default=1.0, ge=0)
    """For `mean_minus_std`."""
    init: Literal["normal"] = "normal"
    """Members that all start at zero would stay equal for ever."""

    @property
    def rule(self) -> RewardRule:
        names = tuple(f"member_{i + 1}" for i in range(self.members))
        return RewardRule(self.pooling, names, combine=self.combine, std_weight=self.std_weight)


class ByFile(Pooled):
    """What the heads with outputs of their own for each file share."""

    files: dict[str, PathList] = Field(min_length=2)
    """Which files train which: `{helpful: helpful.jsonl, harmless: [red-team-*.jsonl]}`; names of data files, or
    patterns."""

    @property
    def rule(self) -> RewardRule:
        return RewardRule(self.pooling, tuple(self.files), files=tuple(self.files.values()))


class Attributes(ByFile):
    """One output per attribute of a good answer, and a vector that mixes them into the reward."""

    kind: Literal["attributes"] = "attributes"
    """Attributes of an answer."""
    weights: dict[str, Float] = Field(default_factory=dict)
    """The mixing vector: `{helpful: 0.7, harmless: 0.3}`. Equal weights if absent."""

    @model_validator(mode="after")
    def _all_weighed(self) -> Self:
        # A missing weight read as 0 would drop an attribute from the reward without a word.
        if self.weights and set(self.weights) != set(self.files):
            raise refuse(
                "the mixing vector and the attributes differ",
                path=("weights",),
                found=", ".join(self.weights),
                expected=", ".join(self.files),
                remedy="give each attribute one weight",
            )
        return self

    @property
    def rule(self) -> RewardRule:
        # In the order of `files`, which is that of the head's outputs; the recipe's order of weights is its own.
        weights = tuple(self.weights[name] for name in self.files) if self.weights else ()
        return replace(super().rule, weights=weights)


class Groups(ByFile):
    """A shared trunk with one output per group of people; the reward is one group's, or the mean of all."""

    kind: Literal["groups"] = "groups"
    """Groups of annotators."""


class Conditional(ByFile):
    """One output, told in the system message which attribute or group it is to judge by."""

    kind: Literal["conditional"] = "conditional"
    """An attribute or group named in the prompt."""
    text: str = "Judge the answer by this standard: {name}."
    """What the system message says; `{name}` is the attribute or group."""

    @field_validator("text")
    @classmethod
    def _has_a_place(cls, text: str) -> str:
        # Without it every attribute would be asked for by the same words, and one output had to answer all.
        if "{name}" not in text:
            raise refuse("the text does not say which one is meant", remedy="put {name} into it", found=text)
        return text

    @property
    def rule(self) -> RewardRule:
        # `heads` stays at one output: which standard it judges by is said in the prompt.
        return RewardRule(
            self.pooling, conditions=tuple(self.files), files=tuple(self.files.values()), condition_text=self.text
        )


class Steps(HeadSettings):
    """A process reward model: a score at the end of each step of the response.

    Trained on labels of steps (`objective: step_labels`), or on comparisons of whole responses, where the aggregated
    score is what the objective compares.
    """

    kind: Literal["steps"] = "steps"
    """Steps of a response."""
    mark: str = Field(default="\n", min_length=1)
    """Text that ends a step; the end of the response ends the last one."""
    aggregate: Literal["min", "last", "product"] = "min"
    """How the scores of steps become the reward: the least, the last, or the log of their probabilities' product."""

    @property
    def rule(self) -> RewardRule:
        return RewardRule("steps", steps=self.aggregate, step_mark=self.mark)


# ---------------------------------------------------------------- length and scale


class Length(Settings):
    """What a response's length does to its reward: Singhal et al. 2023, arXiv:2310.03716, on why it matters."""

    offset: Float | None = Field(default=None, ge=0)
    """alpha: the reward is r / (alpha + tokens), in training and afterwards; null: no division."""
    penalty: Float = Field(default=0.0, ge=0)
    """Taken from the reward for each token away from `target`, when responses are scored."""
    target: Float = Field(default=0.0, ge=0)
    """Tokens of a response that has no penalty."""


class NormaliseSettings(Settings):
    """What every normalisation has."""

    IS_FAMILY: ClassVar[bool] = True

    kind: str
    """Where scale and shift come from."""


class NoNormalisation(NormaliseSettings):
    """The model carries none."""

    kind: Literal["none"] = "none"
    """No scale and shift."""


class Whiten(NormaliseSettings):
    """Mean 0 and standard deviation 1 over the responses of the held-out rows."""

    kind: Literal["whiten"] = "whiten"
    """Measured on the held-out rows."""


class Affine(NormaliseSettings):
    """scale * (reward - shift) with given numbers."""

    kind: Literal["affine"] = "affine"
    """As given."""
    # Not negative: that would turn the order of responses around.
    scale: Float = Field(gt=0)
    """Factor."""
    shift: Float = 0.0
    """The reward that becomes 0."""


# ---------------------------------------------------------------- the unions


def _named(kinds: Mapping[str, type[Settings]]) -> Any:
    """One record by its `kind`; a kind alone may stand for it, and a group without one is the first."""
    default = next(iter(kinds))

    def short(value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value}
        # First, so that a `kind` that is written wins.
        return {"kind": default, **value} if isinstance(value, Mapping) and "kind" not in value else value

    return Annotated[Union[tuple(kinds.values())], Field(discriminator="kind"), BeforeValidator(short)]  # noqa: UP007


OBJECTIVE_KINDS: Mapping[str, type[ObjectiveSettings]] = {
    "bradley_terry": BradleyTerry,
    "plackett_luce": PlackettLuce,
    "regression": Regression,
    "step_labels": StepLabels,
}
HEAD_KINDS: Mapping[str, type[HeadSettings]] = {
    "single": Single,
    "ensemble": Ensemble,
    "attributes": Attributes,
    "groups": Groups,
    "conditional": Conditional,
    "steps": Steps,
}
NORMALISE_KINDS: Mapping[str, type[NormaliseSettings]] = {"none": NoNormalisation, "whiten": Whiten, "affine": Affine}

if TYPE_CHECKING:  # the tables are only known when they run
    ObjectiveUnion = ObjectiveSettings
    HeadUnion = HeadSettings
    NormaliseUnion = NormaliseSettings
else:
    ObjectiveUnion = _named(OBJECTIVE_KINDS)
    HeadUnion = _named(HEAD_KINDS)
    NormaliseUnion = _named(NORMALISE_KINDS)
