"""What stages have in common, whatever they train on, and the learning rates that they take by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from posttrain.config.adapters import (
    Adapter,
    AdapterSettings,
    Continue,
    PrefixTuning,
    PromptTuning,
    PTuning,
    QLoRA,
)
from posttrain.config.compute import Compute
from posttrain.config.mixing import check_measured
from posttrain.config.new_tokens import NewToken, require_distinct
from posttrain.config.settings import (
    AlarmSettings,
    Checkpoints,
    Data,
    Export,
    Log,
    OptimizerSettings,
    PreflightSettings,
    ReferenceSettings,
    Schedule,
)
from posttrain.config.values import AutoWeight, Float, Int, Settings, either, refuse
from posttrain.runs.layout import RESERVED_NAMES

LEARNING_RATES: Mapping[str, tuple[float, str]] = {
    "sft": (2e-5, "Alignment Handbook, zephyr-7b-beta sft"),
    "reward": (1e-5, "Touvron et al. 2023 (Llama 2), arXiv:2307.09288, section 3.2.2"),
    "simpo": (6e-7, "Meng et al. 2024, arXiv:2405.14734, the authors' Llama-3-Base setting"),
    "orpo": (5e-6, "Alignment Handbook, zephyr-141b-A35b orpo"),
    "conditional_sft": (2e-5, "as sft"),
    "distil_sft": (2e-5, "as sft"),
    "alphapo": (7e-7, "Gupta et al. 2025, arXiv:2501.03884, Mistral-Instruct of Table 3"),
    "apo_zero": (2e-7, "D'Oosterlinck et al. 2024, arXiv:2408.06266, section 5.2"),
    "apo_down": (2e-7, "D'Oosterlinck et al. 2024, arXiv:2408.06266, section 5.2"),
    "exo_pair": (1e-6, "Ji et al. 2024, arXiv:2402.00856, appendix B"),
    "mpo": (5e-6, "Wang et al. 2024, arXiv:2411.10442, section 7"),
    "custom_tokens": (2e-5, "as sft"),
    "nca_pair": (5e-6, "Chen et al. 2024, arXiv:2402.05369, appendix C"),
}
"""Rates of full fine-tuning, with their sources; a row that is not named takes `PREFERENCE_RATE`."""
PREFERENCE_RATE = (5e-7, "Tunstall et al. 2023 (Zephyr), arXiv:2310.16944")


def default_learning_rate(method: str, adapter: AdapterSettings | None) -> float:
    """default_learning_rate("dpo", LoRA()) -> 5e-6"""
    full, _ = LEARNING_RATES.get(method, PREFERENCE_RATE)
    factor = adapter.RATE[0] if adapter is not None else 1.0
    # Rounded, since the number is written to config.yaml and compared there: 5e-06, not 4.9999999999999996e-06.
    return float(f"{full * factor:.6g}")


if TYPE_CHECKING:
    HeldOut = float | Data
else:
    HeldOut = either(Annotated[Float, Field(ge=0, lt=1)], Data)


Output = Literal["policy", "reward", "data"]


class StageSettings(Settings):
    """What every stage has."""

    IS_FAMILY: ClassVar[bool] = True
    OUTPUTS: ClassVar[Output]
    """What the stage makes: a policy, from which the stages after it start; a reward model, which leaves the policy as
    it is; or data, rows that a later stage reads with `data: {stage: NAME}`."""
    READS_ROWS: ClassVar[bool] = True
    """Whether it needs `data`: a merge is made of models alone."""
    MIXES: ClassVar[bool] = False
    """Whether its rows may come from several `sources` with shares and turns."""
    WITHOUT_SOURCES: ClassVar[str] = "reads its rows once, one after the other, so there are no turns to share"
    """Why not, for the error."""

    method: str
    """What the stage does."""
    name: str = Field(
        default_factory=lambda stage: stage.get("method", "stage"), pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
    )
    """Letters, digits, - and _; names the stage's folder, and the stage in overrides. The method's name if absent."""
    data: Data | None = None
    """The rows. A recipe's stage needs them; in Python they can be passed apart."""
    starts_from: str | None = None
    """The earlier stage whose policy this one starts from, or `start` for the recipe's model. If absent, the last
    policy before it. With it, several stages begin at the same place: siblings, which the report compares."""

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        for key, value in self:
            if isinstance(value, Data) and value.sources and not self.MIXES:
                raise refuse(
                    f"`{self.method}` takes no `sources`: it {self.WITHOUT_SOURCES}",
                    path=(key, "sources"),
                    remedy="give the files as one list: `path: [a.jsonl, b.jsonl]`",
                )
        return self

    @property
    def chosen_by(self) -> tuple[str, ...]:
        """Suites of the recipe that choose what it makes, as a search of a merge's weights does."""
        return ()

    @property
    def needs_rows(self) -> bool:
        """Whether a recipe has to give it `data`; for methods of which some kinds read none."""
        return self.READS_ROWS

    @property
    def keeps_output(self) -> bool:
        """Whether a later stage finds what this one made: a model folder may be spared (`export: none`)."""
        return True

    @model_validator(mode="after")
    def _free_name(self) -> Self:
        # The stage's folder would be mixed with the run's own files.
        if self.name in RESERVED_NAMES:
            raise refuse(
                f"`{self.name}` is a folder of its own in every run", path=("name",), remedy="choose another name"
            )
        return self


class MakingStage(StageSettings):
    """What every stage has that asks models for rows. It trains nothing; the models and files that it names, and the
    `scorer: {stage: NAME}` of it, are found wherever they stand among its keys."""

    OUTPUTS: ClassVar[Output] = "data"

    modules: str | None = None
    """Folder in which functions are looked for first; the recipe's own if absent."""


class TrainingStage(StageSettings):
    """What every stage that trains has, whether its rows come from a file or are sampled while it trains."""

    OUTPUTS: ClassVar[Output] = "policy"

    # On by default: without held-out rows a run that only memorises looks like one that learns.
    held_out: HeldOut = 0.05
    """Rows to measure on and never train on: a share of the data, rounded down, or other data. 0: none."""
    adapter: Adapter | None = None
    """Train an adapter, by its `kind`; null trains all weights. A kind alone may stand for it: `adapter: ia3`."""
    tokens: tuple[NewToken, ...] = ()
    """Tokens that the start gets, unless it has them: texts, or `{text: "<|call|>", special: true}`. Their rows begin
    as the mean of their pieces, and train; under `lora` and `adalora` too, beside the adapter."""
    learning_rate: Float = Field(
        default_factory=lambda stage: default_learning_rate(stage.get("method", ""), stage.get("adapter")), gt=0
    )
    """Highest learning rate. The default depends on the method and the kind of adapter; ten times as high with LoRA."""
    steps: Int | None = Field(default=None, ge=1)
    """Stop after this many steps; instead of `epochs`."""
    epochs: Float | None = Field(default_factory=lambda stage: None if stage.get("steps") else 1.0, gt=0)
    """How often each row is trained on. 1 unless `steps` is given, as in the Alignment Handbook."""
    max_length: Int | None = Field(default=2048, ge=2)
    """Longest row in tokens, prompt included; null: as long as the model allows."""
    router_aux_loss_coef: AutoWeight = "auto"
    """Weight of the load-balancing loss of a mixture of experts, which is added to the method's loss; 0: none. `auto`:
    the model's own, from its config, as in TRL 1.16; for reward models none, as there."""
    schedule: Schedule = Schedule()
    """The learning rate over the steps."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """How gradients become updates."""
    compute: Compute = Compute()
    """How a step is computed."""
    checkpoint: Checkpoints = Checkpoints()
    """What a killed run goes on from."""
    preflight: PreflightSettings = PreflightSettings()
    """What is proven before step 1."""
    alarms: AlarmSettings = AlarmSettings()
    """What watches every step."""
    export: Export = Export()
    """The model folder that the stage writes."""
    log: Log = Log()
    """What is written while training."""

    @field_validator("tokens")
    @classmethod
    def _distinct_tokens(cls, tokens: tuple[NewToken, ...]) -> tuple[NewToken, ...]:
        return require_distinct(tokens)

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        # Refused, not the smaller one taken: the schedule is stretched over the steps, so the two train differently.
        if self.steps is not None and self.epochs is not None:
            raise refuse(
                "`steps` and `epochs` both say when to stop",
                path=("epochs",),
                found=f"steps: {self.steps}, epochs: {self.epochs:g}",
                remedy="keep one of the two",
            )
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> Self:
        # The first only: these rule each other out, and the next one often goes when the first is mended.
        for wrong, path, problem, remedy in _misfits(self):
            if wrong:
                raise refuse(problem, path=path, remedy=remedy)
        return self

    @property
    def keeps_output(self) -> bool:
        return self.export.save

    @property
    def exports_adapter(self) -> bool | None:
        """Whether the stage's folder will hold an adapter alone; None where only the start can tell."""
        # What kind it is stands in the start's folder, which is read later.
        if isinstance(self.adapter, Continue):
            return None if self.export.merge == "auto" else not self.export.merge
        if self.adapter is None:
            return False
        return not self.adapter.MERGES or self.export.merge is False


def _misfits(stage: TrainingStage) -> list[tuple[bool, tuple[str, ...], str, str]]:
    """(whether it is so, where, what is wrong, what to do) of settings that an adapter rules out."""
    adapter = stage.adapter
    if adapter is None:
        return []
    kind, compute = adapter.kind, stage.compute
    return [
        (
            bool(stage.tokens) and not adapter.TRAINS_TOKENS,
            ("tokens",),
            "an adapter that goes on training has the rows that it began with"
            if isinstance(adapter, Continue)
            else f"beside an adapter of kind {kind} the rows of new tokens would stay as they begin",
            "add them in the stage that began it, or fold it in under a new one: `adapter: {kind: lora}`"
            if isinstance(adapter, Continue)
            else "choose `kind: lora` or `adalora`, or train all weights",
        ),
        (
            adapter.VIRTUAL and compute.logprobs == "tree",
            ("compute", "logprobs"),
            f"rows with virtual tokens ({kind}) share no prompt, so they run padded",
            "remove `compute.logprobs`",
        ),
        (
            isinstance(adapter, PrefixTuning) and compute.activation_checkpointing,
            ("compute", "activation_checkpointing"),
            "a prefix lies in the cache of keys and values, which a recomputation would fill twice",
            "remove `compute.activation_checkpointing`, or choose another adapter",
        ),
        (
            stage.OUTPUTS == "reward" and isinstance(adapter, QLoRA),
            ("adapter", "kind"),
            "the backbone of a reward model is not quantised",
            "choose `kind: lora`",
        ),
        (
            stage.OUTPUTS == "reward" and isinstance(adapter, (PromptTuning, PTuning, Continue)),
            ("adapter", "kind"),
            "there is no adapter of a reward model to go on with"
            if isinstance(adapter, Continue)
            else "behind virtual embeddings, transformers would score the last column of a padded row",
            "choose `kind: lora`, another adapter of the weights, or `kind: prefix`",
        ),
        (
            not adapter.MERGES and stage.export.merge is True,
            ("export", "merge"),
            f"an adapter of kind {kind} cannot be folded into the weights",
            "remove `export.merge` to export the adapter alone, or choose `kind: lora`",
        ),
        (
            isinstance(adapter, QLoRA) and stage.export.merge is False,
            ("export", "merge"),
            "on the weights of the base it would be another model than the one that was trained on quantised weights",
            "remove `export.merge`: it is folded into the dequantised weights",
        ),
        (
            isinstance(adapter, QLoRA) and compute.device in ("cpu", "mps"),
            ("compute", "device"),
            "qlora needs a CUDA device: bitsandbytes trains 4 and 8 bit weights there",
            "choose `kind: lora`, or a CUDA device",
        ),
    ]


class RowStage(TrainingStage):
    """A stage that trains on rows that are there before it begins."""

    MIXES: ClassVar[bool] = True

    rows_per_step: Int = Field(default=32, ge=1)
    """Rows (pairs, for preferences) of one update: 32 as in LIMA and Zephyr. Micro-batches are filled by
    themselves."""

    @model_validator(mode="after")
    def _mixture_fits(self) -> Self:
        if isinstance(self.held_out, Data):
            check_measured(self.held_out)
        if self.data is not None and self.data.epoch != "total" and self.steps is not None:
            raise refuse(
                "`steps` says when to stop, so `epoch` has no effect",
                path=("data", "epoch"),
                found=f"steps: {self.steps}, epoch: {self.data.epoch}",
                remedy="keep one of the two",
            )
        return self

    @property
    def reference_kind(self) -> str | None:
        """How the log-probs of the policy's start are had; None where the objective needs no reference."""
        return None

    @property
    def objective_names(self) -> tuple[str, ...]:
        """The rows of the tables of losses that the stage's loss is made of."""
        return (self.method,)


def require_reference_fits(adapter: AdapterSettings | None, reference: ReferenceSettings) -> None:
    """For validators: refuses `adapter_off` where the model without its adapter is not the stage's start."""
    # A fresh LoRA changes nothing, so the model without it is the start; virtual tokens change it from their first
    # values on.
    if reference.kind == "adapter_off" and adapter is not None and (adapter.VIRTUAL or isinstance(adapter, Continue)):
        raise refuse(
            f"the model without its adapter ({adapter.kind}) is not the start of this stage",
            path=("reference", "kind"),
            found="adapter_off",
            remedy="remove `reference.kind`, or write `cached` or `live`",
        )
