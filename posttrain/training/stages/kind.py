"""What a kind of stage is: a record of functions, and what these hand to each other.

    ctx = StageContext(stage, start, folder, seed, progress)
    kind = kind_of_stage(stage)           # table.py
    prepared = prepare(ctx)               # prepare.py calls inputs, policy, objective, checks, source, in this order
    run_stage(ctx)                        # run.py trains and calls finish, or calls make where nothing trains

A kind is a value, not a class to derive from: whoever asks what happens in a reward stage reads `REWARD` in `reward.py`
and finds seven names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from posttrain.config import StageSettings, TrainingStage
from posttrain.config.base import Output
from posttrain.config.suite_settings import SuiteSettings
from posttrain.data.encode import Encoder
from posttrain.data.read import Examples
from posttrain.data.sources.source import DataSource
from posttrain.models.folders.export_files import SpokenPrompt
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.tree.model import TreeModel
from posttrain.rewards.scorer import RewardFunction, Scorer
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.quiet import QuietFolder
from posttrain.runs.records.preflight import DecodedRow
from posttrain.runs.records.stage import DataCounts, StageRecord
from posttrain.training.checks.preflight import Check, Preflight
from posttrain.training.objectives import Algorithm
from posttrain.training.on_step import OnStep
from posttrain.training.pausing import Pause
from posttrain.training.source import Hooks, Source, Units
from posttrain.training.stages.speech import AnswerSettings
from posttrain.training.stages.starts import Start
from posttrain.training.step import Reference
from posttrain.training.work import Work
from posttrain.types import Task, TokenTree

S_co = TypeVar("S_co", bound=StageSettings, covariant=True)
S = TypeVar("S", bound=StageSettings)
T = TypeVar("T", bound=TrainingStage)
V = TypeVar("V")


RewardSpec = RewardFunction | Scorer | Mapping[str, Any] | str
"""What a program may pass as a reward: a function, or what a recipe writes, of which a kind's name is the shortest."""


@dataclass(frozen=True, slots=True)
class StageIdentity:
    """What a stage rests on, as far as it is known without loading it; `training/identity.py` makes it.

    StageIdentity("9f2c41...", {"data": "77aa...", "start_model": "e6f2..."}, files=((FileSource(...), "77aa..."),))
    """

    quick: str
    """Hash of the settings, the seeds and the contents: a finished stage with another one runs again."""
    contents: Mapping[str, str]
    """Hashes by key of the data, and of the start model."""
    files: tuple[tuple[DataSource, str], ...] = ()
    """The files that were hashed, each with what it held then."""


@dataclass(frozen=True, slots=True)
class StageContext(Generic[S_co]):
    """What every part of a stage needs, and what a program passed beside the recipe.

    StageContext(DPO(beta=0.1), "runs/mine/sft/model", StageFolder(Path("runs/mine/dpo")), seed=0, progress=Progress())
    """

    stage: S_co
    start: str | Path | LoadedModel
    """The model that it starts from, by name, by folder, or loaded."""
    folder: StageFolder
    seed: int
    progress: Progress
    examples: Examples | Sequence[Task] | None = None
    """Rows that are there already, in the place of `stage.data`."""
    held_out: Examples | Sequence[Task] | None = None
    """Rows to measure on that are there already, in the place of `stage.held_out`."""
    rewards: Sequence[RewardSpec] = ()
    """Functions or entries, for a stage that samples; beside those that it names."""
    resumed: StageRecord | None = None
    """stage.json of the attempt that this one goes on from; its micro-batch size is kept, since another one rounds
    differently."""
    proof_only: bool = False
    """Nothing will be trained, so nothing is computed beyond what the checks ask."""
    show_first: Callable[[str, Sequence[DecodedRow]], None] | None = None
    """Called with the stage's name and its first rows as the model will see them, before all others are read."""
    on_step: OnStep | None = None
    """Told of every step; from Python alone."""
    answers: AnswerSettings | None = None
    """How the start is asked, for kinds that let it answer; None: as its folder says."""
    split_seed: int = 0
    """What a held-out share is drawn from; apart from `seed`, so that seeds are measured on the same rows."""
    identity: StageIdentity | None = None
    """What it rests on; None where nothing will be trained, or nobody asks."""

    suites: tuple[SuiteSettings, ...] = ()
    """What the recipe asks every policy, for a stage that chooses by it."""
    pause: Pause | None = None
    """The rung of a sweep at which it ends, to be gone on with."""

    def __reduce__(self) -> tuple[Any, ...]:
        # To another rank, which writes nothing: what is called back, and the files' hashes, are rank 0's.
        there = {"folder": QuietFolder(self.folder.path), "show_first": None, "on_step": None, "identity": None}
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return _stage_context, (own | there,)

    def say(self, *lines: str) -> None:
        """Each line, under the stage's name."""
        for line in lines:
            self.progress.say(f"{self.folder.name}: {line}")

    def doing(self, what: str) -> AbstractContextManager[None]:
        return self.progress.doing(f"{self.folder.name}: {what}")


def _stage_context(own: dict[str, Any]) -> StageContext[Any]:
    return StageContext(**own)


# ---------------------------------------------------------------- what the functions hand to each other


class Inputs(Protocol):
    """What a stage trains on, read and counted before a weight is loaded; `RowInputs` and `SamplingInputs`."""

    @property
    def encoder(self) -> Encoder: ...

    @property
    def counts(self) -> DataCounts:
        """What stage.json says under "data"."""
        ...

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of all content that the result depends on beside the settings and the start's weights."""
        ...

    @property
    def prompts(self) -> tuple[SpokenPrompt, ...]:
        """A few prompts, which the exported folder must build alike."""
        ...


@dataclass(frozen=True, slots=True)
class Learning:
    """What the policy learns with: Learning(algorithm("dpo")); a kind adds what its loss needs beside batches."""

    algorithm: Algorithm


I = TypeVar("I", bound=Inputs)  # noqa: E741
L = TypeVar("L", bound=Learning)


@dataclass(frozen=True, slots=True)
class Subject(Generic[I, L]):
    """What the checks are made on: the stage's inputs, its start, and what that learns with."""

    inputs: I
    loaded: LoadedModel
    policy: TreeModel
    learning: L
    finite: Check
    """The first check: its weights are numbers."""
    program_bytes: int
    """Of the process before the model was loaded."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What the checks found: Proven(preflight, tokens_per_microbatch=2048)."""

    preflight: Preflight
    tokens_per_microbatch: int


@dataclass(frozen=True, slots=True)
class Sourced:
    """What a loop draws its trees from, and what their log-probs are compared with."""

    source: Source | None
    """None where nothing will be trained."""
    preflight: Preflight
    """With what making the source has proven beyond the checks."""
    units: Units | None = None
    """The source's steps as its user counts them; None where there is no source."""
    hooks: Hooks = field(default_factory=Hooks)
    """What the source does beside giving batches."""
    rows: Sequence[TokenTree] = ()
    """Of which the loop shows samples; none where the source writes down what it samples."""
    held_out: Sequence[TokenTree] = ()
    """On which the loop measures; none where the source examines the policy itself."""
    reference: Reference | None = None
    """What the loss takes."""
    reference_kind: str | None = None
    """Of the policy's start, also where a learner takes it and not the loss."""


@dataclass(frozen=True, slots=True)
class Prepared(Generic[I]):
    """A stage that has passed its preflight."""

    work: Work
    loaded: LoadedModel
    preflight: Preflight
    inputs: I
    start_weights: str
    """Fingerprint of the weights before step 1."""
    reference_kind: str | None
    merge: bool = True
    """Whether the stage's folder will hold whole weights; else an adapter alone."""
    date: str | None = None
    """The day on which the run began, which an attempt that goes on from here keeps."""


class Pending(Protocol):
    """A model on its way to its folder: a `PendingSave`, or `NotSaved`."""

    def wait(self) -> object:
        """Until it is there and was read back; what it gives is said to the user as text."""
        ...

    def discard(self) -> None: ...


@dataclass(frozen=True, slots=True)
class NotSaved:
    """What stands in the place of a save under `export: none`: NotSaved("dpo")."""

    stage: str

    def wait(self) -> str:
        return f"{self.stage}: no model folder is written (`export: none`)"

    def discard(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Finished:
    """The model on its way to its folder, and what has to be said of the stage as a whole."""

    pending: Pending
    warnings: Sequence[str] = ()


# ---------------------------------------------------------------- the kinds


def nothing_measured(ctx: StageContext[Any], prepared: Prepared[Any]) -> None:
    """For kinds that measure nothing before step 1."""


def as_written(stage: S, run: RunFolder | None, start: str | Path) -> S:
    """For kinds whose settings name no stage that makes a model, but where the pipeline knows the key."""
    return stage


def nothing_named(stage: Any) -> Mapping[str, str]:
    """For kinds whose settings name no model or file beside the data."""
    return {}


def ends_the_same(stage: Any, record: StageRecord) -> bool:
    """For kinds whose result depends on nothing beyond what their fingerprint counts."""
    return True


@dataclass(frozen=True, slots=True)
class TrainingKind(Generic[T, I, L]):
    """A kind of stage that trains a model by the one loop; its functions in the order in which they are called."""

    outputs: Output
    """As the settings say: `outputs=RowStage.OUTPUTS`."""
    inputs: Callable[[StageContext[T], Start], I]
    """Read, encode and count. No weight is loaded yet, so that a bad row is found within seconds."""
    policy: Callable[[StageContext[T], I, torch.device], tuple[LoadedModel, TreeModel]]
    """Load the start and wrap it as what trains."""
    objective: Callable[[StageContext[T], I, TreeModel], L]
    """The loss. Called when the weights are known to be finite: it may start engines and load teachers."""
    checks: Callable[[StageContext[T], Subject[I, L]], Proven]
    """All proofs on the run's own rows or rollouts, and the tokens of a micro-batch."""
    source: Callable[[StageContext[T], Subject[I, L], Proven], Sourced]
    """Where a step's trees come from, with the reference. Only now, since its log-probs are the dear part of a stage's
    preparation and the checks are what may stop it; under `proof_only` it computes nothing."""
    finish: Callable[[StageContext[T], Prepared[I], Any, int], Finished]
    """finish(ctx, prepared, what `measure_start` gave, steps): evaluate what only this kind can, begin the export."""
    measure_start: Callable[[StageContext[T], Prepared[I]], Any] = nothing_measured
    """What `finish` compares with. Before the loop, since a resumed loop loads the checkpoint's weights."""
    ends_as_asked: Callable[[T, StageRecord], bool] = ends_the_same
    """Whether a finished stage of the same fingerprint, by its stage.json, is what these settings ask for."""


@dataclass(frozen=True, slots=True)
class MakingKind(Generic[S, V]):
    """A kind of stage that makes its output without training: rows for a later stage, or a model out of others."""

    outputs: Output
    inputs: Callable[[StageContext[S]], V]
    """Read what it works on, so that a bad row is found before a model is loaded."""
    make: Callable[[StageContext[S], V], DataCounts | None]
    """Write the output into the stage's folder (see `OUTPUT_NAMES`); gives what stage.json says under "data", which is
    nothing of a stage that reads and writes no rows."""
    with_models: Callable[[S, RunFolder | None, str | Path], S] = as_written
    """(settings, run, the recipe's start) -> settings that name folders where they named stages that make models. Run
    None: those stages have not run, and what `check_recipe` reads in their place has their form."""
    content: Callable[[S], Mapping[str, str]] = nothing_named
    """(settings) -> hashes of what lies where its settings say and may change there: models, files."""
    stand_in: Callable[[StageContext[S], V], str] | None = None
    """For `check_recipe`: write an output of the same form, as far as it is known without a model that answers, so that
    the stages behind this one can be checked; says in a sentence what the rows are and what is not known yet."""


StageKind = TrainingKind[Any, Any, Any] | MakingKind[Any, Any]

OUTPUT_NAMES: Mapping[Output, str] = {"policy": "model", "reward": "model", "data": "data.jsonl"}
"""What a stage's output is called in its folder, by what it is."""


def row_of_type(table: Mapping[type, V], record: object) -> V:
    """The row of the record's type, or of the nearest type above it: settings are generated by table rows (`DPO` is a
    `ReferencedStage` is a `RowStage`), and a kind serves all that derive from the type that its row names.

    Raises:
        KeyError: no row for any of them.
    """
    # The order in which Python itself would look for a method: nearest type first.
    for above in type(record).__mro__:
        if above in table:
            return table[above]
    raise KeyError(type(record).__name__)
