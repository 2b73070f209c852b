"""The groups of a training stage: data, encoding, schedule, optimizer, compute, and what is written when.

Each default is a vetted setting; the field says where it comes from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from posttrain.config.mixing import READS, Mixing, Moment, check_mixture, source_name, spread_keys
from posttrain.config.repairs import RepairSettings
from posttrain.config.trackers import Trackers, require_distinct_kinds
from posttrain.config.values import AutoBool, Float, Int, Settings, choose, is_changed, listed, refuse
from posttrain.data.encoder_settings import TrainOn
from posttrain.data.formats import FORMATS
from posttrain.data.templates.clock import TODAY, date_of
from posttrain.data.templates.header import check_values
from posttrain.data.truncate import PairTruncation, Truncation
from posttrain.diagnostics.alarms import make_checks
from posttrain.diagnostics.checks import CHECKS
from posttrain.errors import ConfigError


class ReadSettings(Settings):
    """Where rows come from, and how they are read."""

    path: tuple[str, ...] = ()
    """File, glob, folder, hub id (`owner/name:config`), or a list of these. `package://NAME` is shipped data."""
    stage: str | None = None
    """Name of an earlier stage that writes data; instead of `path`."""
    rows: Literal["random", "random_tokens"] | None = None
    """Of a stage `select`: not what it chose but its random twin, with as many rows, or with as many tokens."""
    format: str = "auto"
    """Row format; `auto` tells it from the keys of the first row, and names it."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Where the format's keys are found: `{prompt: question, chosen: best}`."""
    roles: dict[str, str] = Field(default_factory=dict)
    """What the file's role names mean: `{bot: assistant}`."""
    split: str = "train"
    """Which split of a folder, a pattern or a hub data set."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """`stop` at the first row that is wrong, or `skip` such rows, count them by reason, and list them in the run."""
    allow_ties: bool = False
    """Keep comparisons with equal scores instead of refusing them."""
    dialogues_in_text: Literal["refuse", "keep"] = "refuse"
    """A prompt or response that is a whole dialogue with the marks of a prompt format: `keep` it as one text."""
    limit: Int | None = Field(default=None, gt=0)
    """Read only this many rows."""
    skip: Int = Field(default=0, ge=0)
    """Leave out this many good rows first: `{skip: 400, limit: 400}` reads those after `{limit: 400}`, so that rounds
    take fresh rows of one file."""
    longest_row_mb: Int = Field(default=64, ge=1)
    """Megabytes of text in one row of JSON. A longer one is a bad row: to read it takes some eight times its size."""
    repairs: RepairSettings = Field(default_factory=RepairSettings)
    """What to mend in conversations that chat templates refuse; nothing, unless it is asked for."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        # The one key that nearly every recipe writes.
        return {"path": value} if isinstance(value, (str, os.PathLike, list, tuple)) else value

    @field_validator("path", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        paths = listed(value)
        # A program may pass them, and a recipe cannot: a source is hashed by its file, and read again after a kill.
        if isinstance(paths, list | tuple) and any(isinstance(path, Mapping) for path in paths):
            raise refuse(
                "rows in memory have no place in `path`",
                found=f"{len(paths):,} rows",
                expected="files, globs, folders or hub ids",
                remedy='write them to a file first: `posttrain.data.write_jsonl("rows.jsonl", rows)`; without other '
                "sources, `pt.train` takes the rows themselves as its `data`",
            )
        return paths

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        return choose("format", name, ("auto", *FORMATS))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        # With both it would be left open which rows train; `bool`, since an empty list of paths is no source either.
        if bool(self.path) == (self.stage is not None):
            raise refuse("data comes from a `path` or from a `stage`: give one of the two", remedy="write `path: FILE`")
        return self

    @model_validator(mode="after")
    def _twin_of_a_stage(self) -> Self:
        if self.rows is not None and self.stage is None:
            raise refuse(
                "only a stage that selects rows has random ones beside them",
                path=("rows",),
                found=f"rows: {self.rows}, of a file",
                remedy=f"write `data: {{stage: NAME, rows: {self.rows}}}`, or leave `rows` out",
            )
        return self

    def keywords(self, rejected: Path | None = None) -> dict[str, Any]:
        """As `posttrain.data.read.read` has them; rows that `bad_rows: skip` skips are listed in `rejected`."""
        names = [name for name in ReadSettings.model_fields if name not in ("path", "stage", "rows", "repairs")]
        return {
            **{name: getattr(self, name) for name in names},
            "rejected_path": rejected if self.bad_rows == "skip" else None,
            "repairs": self.repairs.model_dump(),
        }


class Source(ReadSettings):
    """One of several sources of rows; a path alone may stand for the group. It has the keys of `data` that say what is
    read, up to `longest_row_mb`, and:"""

    # It names metrics (`loss/maths`) and the source's own random order, so it is part of what a run is.
    name: str = Field(default_factory=source_name, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Letters, digits, . - and _; what metrics and lines call it. The stage's or the file's name if absent."""
    weight: Float | None = Field(default=None, gt=0)
    """Its share of the rows of every step, beside the weights of the other sources that are on."""
    epochs: Float | None = Field(default=None, gt=0)
    """How often the run goes through it, at most: afterwards the other sources share its turns."""
    repeat: Int = Field(default=1, ge=1)
    """How often each row stands in one epoch of the source."""
    begin: Moment = Field(default=0, alias="from")
    """After how many steps it is switched on, or after which share of the run: `50%`."""
    until: Moment | None = None
    """After how many steps, or which share of the run, it is switched off; null: never."""


class Data(ReadSettings):
    """Rows to read. A path alone may stand for the group: `data: pairs.jsonl`."""

    sources: tuple[Source, ...] = ()
    """Several sources with shares and turns of their own (docs/mixing.md); instead of `path` and `stage`. Keys of
    reading beside them hold for every source that does not write its own."""
    mixing: Literal["auto", "concatenate", "proportional", "weights", "temperature"] = "auto"
    """Shares of the sources in every step: as their rows (`proportional`), their `weights`, or rows to the power of
    1 / `temperature`. `concatenate` shuffles all rows as one pool, as a list of paths does. `auto`: what the other keys
    ask for, else `concatenate`."""
    temperature: Float | None = Field(default=None, gt=0)
    """1 is proportional, 2 takes the roots of the numbers of rows, and beyond it is ever more even. As in multilingual
    BERT, XLM-R and mT5, whose exponent it is the inverse of: Xue et al. 2021, arXiv:2010.11934, take 1 / 0.3."""
    epoch: Literal["total", "first_exhausted", "all_exhausted"] = "total"
    """How many rows an epoch of the mixture has: as many as all sources together, or as many as it takes until the
    first source, or every source, was gone through once. Says nothing under `steps`."""

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, value: Any) -> Any:
        return spread_keys(value, tuple(key for key in ReadSettings.model_fields if key not in READS))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.sources:
            check_mixture(self)
            return self
        for key in ("mixing", "temperature", "epoch"):
            if is_changed(self, key):
                raise refuse(f"`{key}` is of several `sources`", path=(key,), remedy="remove it, or list `sources`")
        if bool(self.path) == (self.stage is not None):
            raise refuse(
                "data comes from a `path`, from a `stage` or from `sources`: give one of the three",
                remedy="write `path: FILE`",
            )
        return self

    @property
    def parts(self) -> tuple[ReadSettings, ...]:
        """What is read, one after the other: the sources, or the group itself."""
        return self.sources or (self,)

    @property
    def mixes_by(self) -> Mixing:
        """`mixing` with `auto` resolved."""
        if self.mixing != "auto":
            return self.mixing
        if any(source.weight is not None for source in self.sources):
            return "weights"
        if self.temperature is not None:
            return "temperature"
        timed = any(is_changed(source, key) for source in self.sources for key in ("epochs", "begin", "until"))
        # A cap and a curriculum need turns, and under `first_exhausted` the sources have turns, too.
        return "proportional" if timed or self.epoch != "total" else "concatenate"

    def with_parts(self, change: Callable[[Any], Any]) -> Self:
        """A copy in which every part was given to `change`: the sources, or the group itself."""
        if not self.sources:
            return cast(Self, change(self))
        return self.model_copy(update={"sources": tuple(change(source) for source in self.sources)})


class PromptEncoding(Settings):
    """How prompts become ids: how the model is spoken to, which is saved with it."""

    template: str = "auto"
    """`auto` (as the start was trained; else its own), `chat` (the model's own), `chatml`, `raw` (bare texts, for base
    models), or the path of a Jinja file."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Values for the template: `{enable_thinking: false}`. They win over those that the start was trained with, and are
    saved with the model."""
    date: str | None = None
    """The day that a template writes which asks for today's: `2026-11-30`, or `today`, the day on which the run began.
    null: the day that the start was trained with, else as `today`."""
    lossy: Literal["refuse", "allow"] = "refuse"
    """What to do where the tokenizer cannot write the text of more than 1 % of the rows: refuse them all before
    training, or count them."""

    @field_validator("template_kwargs")
    @classmethod
    def _writable(cls, values: dict[str, Any]) -> dict[str, Any]:
        try:
            # While the recipe is read: otherwise a value that no template can take is met at the first row, after the
            # model is loaded.
            check_values(values)
        except ConfigError as error:
            raise refuse(error.problem, found=error.found, expected=error.expected, remedy=error.remedy) from None
        return values

    @field_validator("date")
    @classmethod
    def _day(cls, day: str | None) -> str | None:
        # `today` stays a word in the record, so that the same recipe is the same stage tomorrow.
        if day is not None and day != TODAY:
            try:
                date_of(day)
            except ConfigError as error:
                raise refuse(error.problem, found=error.found, expected=error.expected, remedy=error.remedy) from None
        return day


class PairEncoding(PromptEncoding):
    """How messages become ids, and which of them train."""

    stop_token: Literal["train", "ignore"] = "train"
    """Whether the token that ends a turn trains. A model that never trains on it does not learn to stop."""
    truncation: PairTruncation = "drop"
    """What happens to a row longer than `max_length`: leave it out, cut the beginning of its prompt, or cut its
    responses; each is counted. The last two are one policy, by its names for rows and for pairs."""
    special_tokens_in_text: Literal["keep", "refuse"] = "keep"
    """What to do with a text that holds the name of a special token: keep it, counted, or refuse the row."""


class SFTEncoding(PairEncoding):
    """How messages become ids, and which of them train."""

    truncation: Truncation = "drop"  # type: ignore[assignment]  # one value more than pairs have
    """What happens to a row longer than `max_length`: leave it out, cut the beginning of its prompt, or cut its
    responses; each is counted. `split` cuts bare texts into pieces, all of which train, and leaves out other rows."""
    train_on: TrainOn = "assistant_only"
    """Every assistant turn, the last one, the assistant turns after the last user turn, or every token."""
    train_roles: dict[str, bool] = Field(default_factory=dict)
    """Overrides `train_on` for a role: `{tool: true}`. A message's own `train` overrides both."""


class Schedule(Settings):
    """The learning rate over the steps; cosine with 10 % warm-up as in the Alignment Handbook's recipes (Zephyr)."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_ratio: Float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0."""
    final_ratio: Float = Field(default=0.0, ge=0, le=1)
    """The last step's rate as a share of `learning_rate`."""


class OptimizerSettings(Settings):
    """AdamW, Loshchilov and Hutter 2019."""

    kind: Literal["adamw"] = "adamw"
    """The optimizer."""
    betas: tuple[Float, Float] = (0.9, 0.95)
    """Decay of the two moments. 0.95: Zhou et al. 2023 (LIMA); 0.999 remembers 1,000 steps, longer than most runs."""
    eps: Float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: Float = Field(default=0.0, ge=0)
    """Pull of the weights of linear maps towards zero, not of biases, norms, embeddings and scales; none, as in the
    Alignment Handbook's recipes."""
    clip_norm: Float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient, 1.0 as in Llama 2 and the Alignment Handbook; null: no clipping."""

    @field_validator("betas")
    @classmethod
    def _shares(cls, betas: tuple[float, float]) -> tuple[float, float]:
        # At 1 a moment never forgets its start at 0, and the update is a division by 0.
        if not all(0 <= beta < 1 for beta in betas):
            raise refuse("a beta lies outside 0 <= beta < 1", remedy="write `betas: [0.9, 0.95]`", found=list(betas))
        return betas


class Checkpoints(Settings):
    """What a killed run goes on from."""

    every_steps: Int = Field(default=50, ge=1)
    """Steps between checkpoints; at most this many are lost."""
    every_minutes: Float | None = Field(default=10.0, gt=0)
    """Minutes after which a step is followed by a checkpoint, whatever `every_steps` says; null: steps alone count. No
    number of the run depends on it."""
    keep: Int = Field(default=2, ge=1)
    """How many are kept; the one before the last still stands if the machine dies while writing."""


class PreflightSettings(Settings):
    """What is proven before step 1. A mode alone may stand for the group: `preflight: fast`."""

    mode: Literal["full", "fast", "off"] = "full"
    """`full` proves all of it. `fast` leaves out what compares whole passes with each other, `off` everything but
    non-finite weights; both are said in the report. For experiments that are repeated (docs/preflight.md)."""
    on_failure: Literal["stop", "warn"] = "stop"
    """Whether a failed check stops the stage."""
    dead_layers: Literal["stop", "warn"] = "stop"
    """Whether an adapter's layer that gets no gradient is a failed check. `warn` trains the other layers; the dead
    ones keep the model as it was."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value


Gate = Literal["stop", "warn", "off"]


class Audit(Settings):
    """What is asked of the rows before they are encoded; docs/audit.md has the checks."""

    on_error: Gate = "stop"
    """Whether a finding of severity `error` stops the stage, before a model is loaded. `off`: no check runs."""


class AlarmSettings(Settings):
    """What watches every step."""

    on_critical: Literal["stop", "warn"] = "warn"
    """Whether a critical alarm stops the stage. A loss or gradient that is not finite always does."""
    off: tuple[str, ...] = ()
    """Names of alarms to switch off."""
    thresholds: dict[str, dict[str, Float]] = Field(default_factory=dict)
    """Other thresholds, by alarm: `{gradient_spike: {factor: 20}}`. docs/alarms.md has them all, with their values."""

    @field_validator("off", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return listed(value)

    @field_validator("off")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            choose("alarm", name, CHECKS)
        return names

    @field_validator("thresholds")
    @classmethod
    def _known_thresholds(cls, changes: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, change in changes.items():
            # One threshold at a time, so that the error names its key; an alarm that there is not is tried once, for
            # its error.
            for key, value in change.items() if name in CHECKS else [("", 0.0)]:
                try:
                    make_checks({name: {key: value}})
                except ConfigError as error:
                    raise refuse(
                        error.problem,
                        path=(name, key) if key else (name,),
                        found=error.found,
                        expected=error.expected,
                        remedy=error.remedy,
                    ) from None
        return changes

    @model_validator(mode="after")
    def _on_or_off(self) -> Self:
        for name in self.thresholds:
            # A threshold that has no effect looks like one that was set.
            if name in self.off:
                raise refuse(
                    f"the alarm `{name}` is off, so its thresholds have no effect",
                    path=("thresholds", name),
                    remedy="remove it from `off`, or its thresholds",
                )
        return self

    @property
    def changes(self) -> dict[str, dict[str, float] | Literal["off"]]:
        """For diagnostics.alarms.make_checks: {"gradient_spike": "off", "loss_divergence": {"rise": 1.0}}."""
        return {**self.thresholds, **dict.fromkeys(self.off, "off")}


class Export(Settings):
    """The model folder that a stage writes. `export: none` stands for `{save: false}`."""

    save: bool = True
    """false: no model folder is written, and none is read back, which takes most of a small experiment's time. The
    figures stay, the weights do not: no later stage can start from this one."""
    merge: AutoBool = "auto"
    """Fold an adapter into the weights, so that any tool loads the folder; false writes the adapter alone. `auto` folds
    what can be folded, and says so before training where an adapter cannot (docs/adapters.md)."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"save": False} if value == "none" else value


class Log(Settings):
    """What is written while training; nothing here changes the training."""

    samples_every: Int | None = Field(default=25, ge=1)
    """Steps between samples of what the model thinks of its rows; null: none."""
    held_out_every: Int | None = Field(default=25, ge=1)
    """Steps between measurements on the held-out rows; they are always measured at the start and the end."""
    stall_after: Float | None = Field(default=300.0, gt=0)
    """Seconds without progress after which a stall is reported: the part of the step that hangs is named, and where
    each thread stands goes to stalls.txt. Nothing is stopped. null: never."""
    to: Trackers = ()
    """Trackers that are told every step: `[tensorboard, {kind: wandb, project: mine}]`; `tensorboard`, `trackio`,
    `wandb`, `mlflow`. One that fails is named once and dropped, and the run goes on."""

    @field_validator("to")
    @classmethod
    def _distinct(cls, trackers: Trackers) -> Trackers:
        return require_distinct_kinds(trackers)

    @property
    def trackers(self) -> list[dict[str, Any]]:
        """The settings of each tracker, as `posttrain.training.tracking` takes them."""
        return [tracker.model_dump(mode="json") for tracker in self.to]


class ReferenceSettings(Settings):
    """The policy's start, with which a preference objective compares it."""

    kind: Literal["auto", "cached", "adapter_off", "live"] = "auto"
    """`cached` computes its log-probs once, `adapter_off` switches a fresh adapter off, `live` keeps a copy. All give
    the same numbers; `auto` takes the cheapest that can serve."""
