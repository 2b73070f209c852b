"""The stages of a recipe, one record per `method`; the preference methods are the rows of the pairwise table.

    SFT(learning_rate=2e-5)
    DPO(beta=0.1, adapter=LoRA(rank=16))
    Preference("simpo", beta=2.0, gamma=1.0)

A stage has exactly the options that its method uses: `gamma` exists where the table's row has it, `reference`
where the row compares the policy with its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import Field, create_model, model_validator

from posttrain.config.settings import (
    Alarms,
    Checkpoints,
    Compute,
    Data,
    Export,
    Log,
    LoRA,
    Optimizer,
    PairEncoding,
    Preflight,
    ReferenceSettings,
    Schedule,
    SFTEncoding,
)
from posttrain.config.suites import Sampling
from posttrain.config.values import Float, Int, Settings, either, refuse
from posttrain.diagnostics.run_store import RESERVED_NAMES
from posttrain.errors import UnknownKeyError, nearest
from posttrain.losses.pairwise import PAIRWISE, PARAMETERS, PairwiseRow

LEARNING_RATES: Mapping[str, tuple[float, str]] = {
    "sft": (2e-5, "Alignment Handbook, zephyr-7b-beta sft"),
    "simpo": (6e-7, "Meng et al. 2024, arXiv:2405.14734, the authors' Llama-3-Base setting"),
    "orpo": (5e-6, "Alignment Handbook, zephyr-141b-A35b orpo"),
}
"""Rates of full fine-tuning, with their sources; a row that is not named takes `PREFERENCE_RATE`."""
PREFERENCE_RATE = (5e-7, "Tunstall et al. 2023 (Zephyr), arXiv:2310.16944")
LORA_FACTOR = 10.0
"""The best rate of LoRA is ten times that of full fine-tuning: Schulman et al. 2025, "LoRA Without Regret"."""


def default_learning_rate(method: str, adapter: LoRA | None) -> float:
    """default_learning_rate("dpo", LoRA()) -> 5e-6"""
    full, _ = LEARNING_RATES.get(method, PREFERENCE_RATE)
    return float(f"{full * (LORA_FACTOR if adapter else 1.0):.6g}")


if TYPE_CHECKING:
    HeldOut = float | Data
else:
    HeldOut = either(Annotated[Float, Field(ge=0, lt=1)], Data)


class StageSettings(Settings):
    """What every stage has."""

    IS_FAMILY: ClassVar[bool] = True

    method: str
    """What the stage does."""
    name: str = Field(
        default_factory=lambda stage: stage.get("method", "stage"), pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
    )
    """Letters, digits, - and _; names the stage's folder, and the stage in overrides. The method's name if absent."""
    data: Data | None = None
    """The rows. A recipe's stage needs them; in Python they can be passed apart."""

    @model_validator(mode="after")
    def _free_name(self) -> Self:
        if self.name in RESERVED_NAMES:
            raise refuse(
                f"`{self.name}` is a folder of its own in every run", path=("name",), remedy="choose another name"
            )
        return self


class TrainingStage(StageSettings):
    """What every stage that trains has."""

    held_out: HeldOut = 0.05
    """Rows to measure on and never train on: a share of the data, rounded down, or other data. 0: none."""
    adapter: LoRA | None = None
    """Train a low-rank adapter; null trains all weights."""
    learning_rate: Float = Field(
        default_factory=lambda stage: default_learning_rate(stage.get("method", ""), stage.get("adapter")), gt=0
    )
    """Highest learning rate. The default depends on the method, and is ten times as high with an adapter."""
    steps: Int | None = Field(default=None, ge=1)
    """Stop after this many steps; instead of `epochs`."""
    epochs: Float | None = Field(default_factory=lambda stage: None if stage.get("steps") else 1.0, gt=0)
    """How often each row is trained on. 1 unless `steps` is given, as in the Alignment Handbook."""
    rows_per_step: Int = Field(default=32, ge=1)
    """Rows (pairs, for preferences) of one update, on all devices together: 32 as in LIMA and Zephyr. Micro-batches
    are filled by themselves."""
    max_length: Int | None = Field(default=2048, ge=2)
    """Longest row in tokens, prompt included; null: as long as the model allows."""
    schedule: Schedule = Schedule()
    """The learning rate over the steps."""
    optimizer: Optimizer = Optimizer()
    """How gradients become updates."""
    compute: Compute = Compute()
    """How a step is computed."""
    checkpoint: Checkpoints = Checkpoints()
    """What a killed run goes on from."""
    preflight: Preflight = Preflight()
    """What is proven before step 1."""
    alarms: Alarms = Alarms()
    """What watches every step."""
    export: Export = Export()
    """The model folder that the stage writes."""
    log: Log = Log()
    """What is written while training."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise refuse(
                "`steps` and `epochs` both say when to stop",
                path=("epochs",),
                found=f"steps: {self.steps}, epochs: {self.epochs:g}",
                remedy="keep one of the two",
            )
        return self


class SFT(TrainingStage):
    """Supervised fine-tuning: imitate the answers."""

    method: Literal["sft"] = "sft"
    """Supervised fine-tuning."""
    encoding: SFTEncoding = SFTEncoding()
    """How messages become ids, and which of them train."""


class PreferenceStage(TrainingStage):
    """Prefer the chosen answers to the rejected ones, by a row of the pairwise table."""

    encoding: PairEncoding = PairEncoding()
    """How messages become ids."""

    @property
    def row(self) -> PairwiseRow:
        return PAIRWISE[self.method]

    @property
    def parameters(self) -> dict[str, float]:
        """The objective's own numbers, for training.algorithms.algorithm(stage.method, stage.parameters)."""
        values = self.model_dump()
        return {name: float(values[name]) for name in self.row.defaults}

    @property
    def reference_kind(self) -> str | None:
        """None where the objective needs no reference."""
        return None


class ReferencedStage(PreferenceStage):
    """A preference stage whose objective compares the policy with its start."""

    reference: ReferenceSettings = ReferenceSettings()
    """The policy's start, with which the objective compares it."""

    @property
    def reference_kind(self) -> str | None:
        return self.reference.kind


class Correction(StageSettings):
    """Make pairs of the model's own mistakes: its answer is rejected, the row's answer is chosen. Trains nothing."""

    method: Literal["correction"] = "correction"
    """Sample the model's own answers and pair each with the wanted one."""
    sampling: Sampling = Sampling(temperature=0.7)
    """How the model's answers are drawn."""
    samples_per_prompt: Int = Field(default=2, ge=1)
    """Answers per prompt; each that differs from the wanted one makes a pair."""

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        if self.samples_per_prompt > 1 and self.sampling.temperature == 0:
            raise refuse(
                "temperature 0 draws the same answer each time",
                path=("samples_per_prompt",),
                found=f"samples_per_prompt: {self.samples_per_prompt}, temperature: 0",
                remedy="write `sampling: {temperature: 0.7}`, or `samples_per_prompt: 1`",
            )
        return self


WRITES_DATA = (Correction,)
"""Kinds of stage whose output a later stage can read with `data: {stage: NAME}`."""


# ---------------------------------------------------------------- one record per row of the table


def _preference(method: str, row: PairwiseRow) -> type[PreferenceStage]:
    """The stage of one row: its parameters are fields, with the row's values as defaults."""
    fields: dict[str, Any] = {"method": (Literal[method], Field(default=method, description=row.source))}
    for name, value in row.defaults.items():
        fields[name] = (Float, _parameter(name, value))
    base = ReferencedStage if row.needs_reference else PreferenceStage
    text = f"{base.__doc__}\n\n{row.source}"
    plain = {"use_attribute_docstrings": False}  # there is no source to look for them in; looking takes a second
    stage = create_model(method, __base__=base, __module__=__name__, __doc__=text, __cls_kwargs__=plain, **fields)
    stage.__qualname__ = method
    return stage


def _parameter(name: str, default: float) -> Any:
    known = PARAMETERS[name]
    limits: dict[str, Any] = {"ge": known.at_least, "gt": known.above, "lt": known.below}
    finite = {key: limit for key, limit in limits.items() if math.isfinite(limit)}
    return Field(default=default, description=known.meaning[:1].upper() + known.meaning[1:] + ".", **finite)


PREFERENCES: Mapping[str, type[PreferenceStage]] = {name: _preference(name, row) for name, row in PAIRWISE.items()}

STAGES: Mapping[str, type[StageSettings]] = {"sft": SFT, **PREFERENCES, "correction": Correction}

if TYPE_CHECKING:  # the table is only known when it runs
    Stage = StageSettings
else:
    Stage = Annotated[Union[tuple(STAGES.values())], Field(discriminator="method")]  # noqa: UP007

DPO: Callable[..., PreferenceStage] = PREFERENCES["dpo"]
"""DPO(beta=0.1, learning_rate=5e-7, ...)"""


def Preference(method: str, **options: Any) -> PreferenceStage:
    """A stage by its row of the pairwise table: Preference("simpo", beta=2.0, gamma=1.0).

    Raises:
        UnknownKeyError: no row of that name, or an option that it does not have.
        ConfigError: a value that it does not admit.
    """
    if method not in PREFERENCES:
        near = nearest(method, PREFERENCES)
        raise UnknownKeyError(
            f"the method `{method}` is not known",
            expected=f"one of {', '.join(PREFERENCES)}",
            remedy=f"did you mean `{near}`?" if near else "choose one of those",
        )
    return PREFERENCES[method](**options)
