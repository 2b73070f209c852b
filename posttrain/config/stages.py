"""The stages of a recipe, one record per `method`; the preference methods are the rows of the pairwise table.

    SFT(learning_rate=2e-5)
    DPO(beta=0.1, adapter=LoRA(rank=16))
    Preference("simpo", beta=2.0, gamma=1.0)

A stage has exactly the options that its method uses: `gamma` exists where the table's row has it, `reference`
where the row compares the policy with its start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import Field, create_model, model_validator

from posttrain.arguments import checked_text
from posttrain.config.base import Output, RowStage, StageSettings, require_reference_fits
from posttrain.config.base import TrainingStage as TrainingStage
from posttrain.config.best_of import BestOf
from posttrain.config.custom import CustomPairwise, CustomTokens
from posttrain.config.distil import Distil
from posttrain.config.fields import parameter_field
from posttrain.config.merging import Merge
from posttrain.config.online import SAMPLING_STAGES
from posttrain.config.pairs import Pairs
from posttrain.config.prompts import NewPrompts
from posttrain.config.reward_model import (
    BradleyTerry,
    HeadUnion,
    Length,
    NoNormalisation,
    NormaliseUnion,
    ObjectiveUnion,
    Single,
    StepLabels,
    Steps,
    Whiten,
)
from posttrain.config.search import Search
from posttrain.config.select import Select
from posttrain.config.settings import Audit, Data, PairEncoding, ReferenceSettings, SFTEncoding
from posttrain.config.suites import Sampling
from posttrain.config.values import Float, Int, Settings, choose, refuse, require_different_draws
from posttrain.errors import ConfigError, unknown
from posttrain.losses.feedback import OBJECTIVE_PARAMETERS, OBJECTIVES, FeedbackRow
from posttrain.losses.pairwise import PAIRWISE, PairwiseRow
from posttrain.losses.parameters import numbered
from posttrain.losses.preference import CHOSEN_NLL
from posttrain.losses.reward_rule import RewardRule


class SFT(RowStage):
    """Supervised fine-tuning: imitate the answers."""

    method: Literal["sft"] = "sft"
    """Supervised fine-tuning."""
    encoding: SFTEncoding = SFTEncoding()
    """How messages become ids, and which of them train."""


class DistilSFT(RowStage):
    """Follow a teacher's whole distribution at each token of the rows, instead of the token alone.

    The teacher reads the same ids as the policy, so its tokenizer has to be the same; it stays in memory while the
    stage trains.
    """

    method: Literal["distil_sft"] = "distil_sft"
    """Supervised fine-tuning on soft targets: KL(teacher || policy) over the whole vocabulary (Hinton et al. 2015,
    arXiv:1503.02531; Kim and Rush 2016, arXiv:1606.07947, equation 4)."""
    teacher: str
    """The model to learn from, with the same tokenizer: a catalogue name, a folder, or a hub id."""
    weight: Float = Field(default=1.0, gt=0, le=1)
    """Of the soft targets; the rest is of the rows' own tokens, as in `sft`."""
    encoding: SFTEncoding = SFTEncoding()
    """How messages become ids, and which of them train."""


class ConditionalSFT(RowStage):
    """Imitate good and bad answers alike, each behind a line that says which it is; then ask for good ones.

    The line that stands for good is what the model has to be given when it is used.
    """

    method: Literal["conditional_sft"] = "conditional_sft"
    """Korbak et al. 2023, arXiv:2302.08582 (conditional training), with a line of words as in Liu et al. 2023,
    arXiv:2302.02676 (Chain of Hindsight)."""
    good: str = Field(default="Give a good answer.", min_length=1)
    """The line before a good answer, and what to ask the trained model with."""
    bad: str = Field(default="Give a bad answer.", min_length=1)
    """The line before a bad answer."""
    place: Literal["system", "user"] = "system"
    """Where the line stands: at the end of the system turn (which is made where there is none), or of the last user
    turn, for templates without system turns."""
    encoding: PairEncoding = PairEncoding()
    """How messages become ids."""

    @model_validator(mode="after")
    def _lines_differ(self) -> Self:
        # One line for both: the model would learn to write bad answers when asked for good ones.
        if self.good == self.bad:
            raise refuse(
                "good and bad answers would stand behind the same line",
                path=("bad",),
                found=repr(self.bad),
                remedy="write two different lines",
            )
        return self


class PreferenceStage(RowStage):
    """Prefer the chosen answers to the rejected ones, by a row of the pairwise table."""

    encoding: PairEncoding = PairEncoding()
    """How messages become ids."""
    audit: Audit = Audit()
    """What is asked of the rows before they are encoded."""

    @property
    def row(self) -> PairwiseRow | FeedbackRow:
        return OBJECTIVES[self.method]

    @property
    def parameters(self) -> dict[str, float]:
        """The objective's own numbers, for training.objectives.algorithm(stage.method, stage.parameters)."""
        values = self.model_dump()
        return {name: float(values[name]) for name in self.row.defaults}


class ReferencedStage(PreferenceStage):
    """A preference stage whose objective compares the policy with its start."""

    reference: ReferenceSettings = ReferenceSettings()
    """The policy's start, with which the objective compares it."""

    @model_validator(mode="after")
    def _reference_fits(self) -> Self:
        require_reference_fits(self.adapter, self.reference)
        return self

    @property
    def reference_kind(self) -> str | None:
        return self.reference.kind


class FeedbackStage(ReferencedStage):
    """Make good answers likelier and bad ones less likely, by a row of the feedback table."""

    @model_validator(mode="after")
    def _rows_have_company(self) -> Self:
        coupling = self.row.coupling
        # Its estimate pairs a prompt with another row's completion; with itself it would measure what it trains.
        if self.rows_per_step < 2 and coupling is not None and coupling.mismatched:
            raise refuse(
                f"{self.method} estimates a KL from the completions of other rows, and a step of one row has none",
                path=("rows_per_step",),
                found="1",
                expected="at least 2",
                remedy="write `rows_per_step: 32`; micro-batches are filled by themselves, whatever it is",
            )
        return self


class MixTerm(Settings):
    """One objective of a mix: {loss: dpo, weight: 0.8, parameters: {beta: 0.1}}."""

    loss: str
    """A method of the pairwise table, or `sft`: the negative log-likelihood of the chosen answer, per token."""
    weight: Float = Field(default=1.0, gt=0)
    """What the loss is multiplied with."""
    parameters: dict[str, Float] = Field(default_factory=dict)
    """The method's own parameters; those that are left out take its defaults."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        choose("method", self.loss, ("sft", *PAIRWISE))
        # Its memory is of one method's steps, and is saved as that of the whole algorithm.
        if self.pairwise.remembers:
            raise refuse(
                f"{self.loss} keeps a running mean of its own steps and is no term of a mix",
                path=("loss",),
                remedy=f"use `method: {self.loss}` by itself, or `dpo` in the mix",
            )
        try:
            self.pairwise.resolve(self.parameters, where=self.loss)
        except ConfigError as error:
            remedy = error.remedy or "correct the parameter"
            raise refuse(f"{self.loss}: {error.problem}", path=("parameters",), remedy=remedy) from None
        return self

    @property
    def pairwise(self) -> PairwiseRow:
        return CHOSEN_NLL if self.loss == "sft" else PAIRWISE[self.loss]


class Mix(ReferencedStage):
    """Several objectives on the same pairs at once, each with a weight and parameters of its own."""

    method: Literal["mix"] = "mix"
    """A weighted sum of methods of the pairwise table, as in MPO (Wang et al. 2024, arXiv:2411.10442)."""
    losses: tuple[MixTerm, ...] = Field(min_length=1)
    """The terms; the rewards that are reported are those of the first."""

    @property
    def parameters(self) -> dict[str, float]:
        keys = numbered(self.objective_names)
        return {f"{key}.weight": term.weight for key, term in zip(keys, self.losses, strict=True)}

    @property
    def reference_kind(self) -> str | None:
        return self.reference.kind if any(term.pairwise.needs_reference for term in self.losses) else None

    @property
    def objective_names(self) -> tuple[str, ...]:
        return tuple(term.loss for term in self.losses)


class Reward(RowStage):
    """A reward model: the start's backbone under a head that gives each response a number.

    The stages after it do not start from it, but from the policy before it.
    """

    OUTPUTS: ClassVar[Output] = "reward"

    method: Literal["reward"] = "reward"
    """A reward model."""
    objective: ObjectiveUnion = BradleyTerry()
    """What the rewards are fitted to, by its `kind`."""
    system: str = ""
    """System message for rows that have none; saved with the model and used whenever it scores."""
    head: HeadUnion = Single()
    """What the head's outputs stand for, by its `kind`."""
    length: Length = Length()
    """What a response's length does to its reward."""
    normalise: NormaliseUnion = NoNormalisation()
    """Scale and shift that are stored with the model, for reinforcement learning; `posttrain score --normalised`."""
    encoding: PairEncoding = PairEncoding()
    """How messages become ids."""
    audit: Audit = Audit()
    """What is asked of the rows before they are encoded."""
    category: str | None = Field(default=None, min_length=1)
    """Column of the rows that says what kind they are: held-out accuracy is given for each. If absent, `category`,
    `source`, `subset`, `task` or `domain`, where the rows have one, or else the files."""

    @property
    def objective_names(self) -> tuple[str, ...]:
        return (self.objective.kind,)

    @property
    def rule(self) -> RewardRule:
        """How the head's outputs become one reward."""
        length = self.length
        return replace(
            self.head.rule,
            length_offset=length.offset,
            length_penalty=length.penalty,
            length_target=length.target,
            system=self.system,
        )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if isinstance(self.normalise, Whiten) and self.held_out == 0:
            raise refuse(
                "whitening is measured on held-out rows, and none are held out",
                path=("normalise",),
                remedy="write `held_out: 0.05`, or `normalise: {kind: affine, scale: 1.0}`",
            )
        # The last token that trains would be the one before it: other tools, and vLLM, would score another place.
        if self.encoding.stop_token == "ignore":
            raise refuse(
                "a response is scored at its last token that trains, and other tools score it at its stop token",
                path=("encoding", "stop_token"),
                remedy="remove `encoding.stop_token`",
            )
        if isinstance(self.objective, StepLabels) and not isinstance(self.head, Steps):
            raise refuse(
                "labels of steps train a head that scores steps",
                path=("head",),
                found=self.head.kind,
                expected="steps",
                remedy="write `head: steps`",
            )
        # Each score is a step's; divided by the whole response's length it would shrink with every further step.
        if isinstance(self.head, Steps) and self.length.offset is not None:
            raise refuse(
                "the scores of steps are not divided by the response's length",
                path=("length", "offset"),
                remedy="remove `length.offset`, or score whole responses",
            )
        return self


class Correction(StageSettings):
    """Make pairs of the model's own mistakes: its answer is rejected, the row's answer is chosen. Trains nothing."""

    OUTPUTS: ClassVar[Output] = "data"

    method: Literal["correction"] = "correction"
    """Sample the model's own answers and pair each with the wanted one."""
    sampling: Sampling = Sampling(temperature=0.7)
    """How the model's answers are drawn."""
    samples_per_prompt: Int = Field(default=2, ge=1)
    """Answers per prompt; each that differs from the wanted one makes a pair."""
    keep: Data | None = None
    """Prompts whose answers should stay as they are: there the model's likeliest answer is the chosen side."""

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        require_different_draws(self, "samples_per_prompt")
        return self


# ---------------------------------------------------------------- one record per row of the table


def _preference(method: str, row: PairwiseRow | FeedbackRow) -> type[PreferenceStage]:
    """The stage of one row: its parameters are fields, with the row's values as defaults."""
    fields: dict[str, Any] = {"method": (Literal[method], Field(default=method, description=row.source))}
    for name, value in row.defaults.items():
        fields[name] = (Float, parameter_field(OBJECTIVE_PARAMETERS[name], value))
    # An option exists only where it is used: `reference` on a method without one would be a setting without effect.
    base = (
        FeedbackStage if isinstance(row, FeedbackRow) else ReferencedStage if row.needs_reference else PreferenceStage
    )
    # The paper stands in the record's docstring, where `help()` finds it.
    text = f"{base.__doc__}\n\n{row.source}"
    stage = create_model(method, __base__=base, __module__=__name__, __doc__=text, **fields)
    stage.__qualname__ = method
    return stage


PREFERENCES: Mapping[str, type[PreferenceStage]] = {name: _preference(name, row) for name, row in OBJECTIVES.items()}

STAGES: Mapping[str, type[StageSettings]] = {
    "sft": SFT,
    "distil_sft": DistilSFT,
    "conditional_sft": ConditionalSFT,
    **PREFERENCES,
    "mix": Mix,
    "custom_pairwise": CustomPairwise,
    "custom_tokens": CustomTokens,
    "reward": Reward,
    **SAMPLING_STAGES,
    "correction": Correction,
    "search": Search,
    "merge": Merge,
    "select": Select,
    "distil": Distil,
    "best_of": BestOf,
    "pairs": Pairs,
    "prompts": NewPrompts,
}
"""Every `method` that a recipe knows. How a stage is carried out says the row of its type, or of a type above it, in
`posttrain.training.stages.table.KINDS`."""

if TYPE_CHECKING:  # the table is only known when it runs
    Stage = StageSettings
else:
    Stage = Annotated[Union[tuple(STAGES.values())], Field(discriminator="method")]  # noqa: UP007

DPO: Callable[..., PreferenceStage] = PREFERENCES["dpo"]
"""DPO(beta=0.1, learning_rate=5e-7, ...)"""


def Preference(method: str, **options: Any) -> PreferenceStage:
    """A stage by its row of the pairwise or the feedback table: Preference("simpo", beta=2.0, gamma=1.0).

    Raises:
        UnknownKeyError: no row of that name, or an option that it does not have.
        ConfigError: a value that it does not admit.
    """
    checked_text("method", method, "simpo")
    if method not in PREFERENCES:
        raise unknown("method", method, PREFERENCES)
    return PREFERENCES[method](**options)
