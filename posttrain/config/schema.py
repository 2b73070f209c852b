"""The recipe: a start model, what to ask the models, and the stages.

Recipe(name="mine", model="embedded", stages=[SFT(data="sft.jsonl"), DPO(data="pairs.jsonl", beta=0.1)])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from posttrain.config.base import MakingStage
from posttrain.config.budget import BudgetSuite
from posttrain.config.chain import check_adapters
from posttrain.config.lineage import START, check_starts
from posttrain.config.merging import Merge, MergeSource, sources_in
from posttrain.config.nested import scorers_of, teachers_of
from posttrain.config.notify import Notifications
from posttrain.config.online import SamplingStage
from posttrain.config.select import Select
from posttrain.config.settings import Data, ReadSettings
from posttrain.config.stages import STAGES, Stage, StageSettings
from posttrain.config.suites import Evaluation, WinRateSuite
from posttrain.config.values import Int, Settings, refuse
from posttrain.config.yaml_text import dump
from posttrain.errors import unknown

SCHEMA = 1
"""Version of the recipe's keys; a recipe of a later version is refused."""


class Recipe(Settings):
    """A start model, what to ask the models, and the stages."""

    schema_version: Int = Field(default=SCHEMA, alias="schema")
    """Version of these keys."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Letters, digits, . - and _; names the run folder, `<out>/<name>`. The file's name if absent. Keys in braces carry
    settings: mine-{dpo.beta}-{seed}."""
    model: str
    """The model that the first stage starts from: a catalogue name, a folder, or a hub id."""
    model_code: Literal["refuse", "run"] = "refuse"
    """`run` runs the Python files that a model's folder brings (`auto_map`) with your rights, of every model that the
    recipe names: read them first. `refuse` names them and ends."""
    seed: Int = Field(default=0, ge=0, lt=2**32)
    """Where all random streams start. Equal seeds on one machine give equal runs."""
    split_seed: Int = Field(default=0, ge=0, lt=2**32)
    """What a held-out share is drawn from, apart from `seed`: runs of several seeds are measured on the same rows."""
    out: str = "runs"
    """Folder that holds run folders; relative to where the command runs."""
    evaluate: Evaluation = Evaluation()
    """What the start model and each trained model are asked."""
    notify: Notifications = ()
    """Who is told when the run ends, fails, or an alarm rings: `[{url: $SLACK_URL, format: slack}]`."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """What is done, in this order; each stage starts from the last model before it, or from what its `starts_from`
    names."""

    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed while the recipe was read, one line each, to be shown."""
        return self._notes

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name

    def stage(self, name: str) -> StageSettings:
        return next(stage for stage in self.stages if stage.name == name)

    def to_yaml(self) -> str:
        """Every value, defaults included; `parse_recipe` reads it back as the same recipe."""
        return dump(self.model_dump(mode="json", by_alias=True))

    @field_validator("schema_version")
    @classmethod
    def _known_version(cls, version: int) -> int:
        if version != SCHEMA:
            raise refuse(
                "the recipe has a schema that this version does not know",
                found=f"schema: {version}",
                expected=f"schema: {SCHEMA}",
                remedy="install a newer posttrain" if version > SCHEMA else f"write schema: {SCHEMA}",
            )
        return version

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        before: dict[str, Any] = {}
        for index, stage in enumerate(self.stages):
            if stage.name in before:
                raise refuse(
                    f"two stages are named `{stage.name}`",
                    path=("stages", index, "name"),
                    remedy=f"give this one another name: `name: {stage.name}-{index + 1}`",
                )
            # `seed.x=1` on the command line would otherwise have two readings.
            if stage.name in type(self).model_fields or stage.name == "schema":
                raise refuse(
                    f"a stage cannot be named `{stage.name}`: the recipe has a key of that name",
                    path=("stages", index, "name"),
                    remedy="choose another name",
                )
            if stage.data is None and stage.needs_rows:
                raise refuse(
                    f"the stage `{stage.name}` has no data", path=("stages", index), remedy="add `data: FILE` to it"
                )
            # Here and not in the stage: from Python, `pt.train` is given functions that no recipe could hold.
            if isinstance(stage, SamplingStage) and not stage.rewards and stage.needs_rewards:
                raise refuse(
                    f"nothing says what a good completion of `{stage.name}` is",
                    path=("stages", index, "rewards"),
                    remedy="list rewards: `rewards: [{kind: math}]` (docs/rewards.md)",
                )
            if isinstance(stage, SamplingStage) and not stage.rewards and (keys := stage.waits_for_rewards):
                raise refuse(
                    f"nothing rewards a completion of `{stage.name}`, so `{keys[0]}` would watch a score of 0 for ever",
                    path=("stages", index, *keys[0].split(".")),
                    remedy=f"leave `{keys[0]}` out, or list `rewards`, which are then measured and do not train",
                )
            for key, data in data_of(stage).items():
                for place, part in enumerate(data.parts):
                    inside = ("sources", place) if data.sources else ()
                    _check_source(part, before, ("stages", index, key, *inside))
            for inner, scorer in scorers_of(stage) if isinstance(stage, MakingStage | Select) else ():
                if scorer.stage is not None:
                    _check_judge(scorer.stage, before, ("stages", index, *inner, "stage"))
            for inner, source in sources_in(stage):
                _check_merged(source, before, ("stages", index, *inner, "stage"))
            if isinstance(stage, Merge) and stage.search is not None:
                for name in stage.search.suite:
                    _check_suite(name, self.evaluate, ("stages", index, "search", "suite"))
            for inner, teacher in teachers_of(stage) if isinstance(stage, MakingStage) else ():
                if teacher.stage is not None:
                    _check_teacher(teacher.stage, before, ("stages", index, *inner, "stage"))
            # Only now: a stage cannot take its data from itself.
            before[stage.name] = stage
        check_starts(self.stages)
        check_adapters(self.stages)
        _check_saved(self.stages)
        for index, suite in enumerate(self.evaluate.suites):
            trained = suite.reward_model if isinstance(suite, WinRateSuite) else None
            if trained is not None and trained.stage is not None:
                _check_judge(trained.stage, before, ("evaluate", "suites", index, "reward_model", "stage"))
            if isinstance(suite, BudgetSuite):
                for inner, scorer in scorers_of(suite):
                    if scorer.stage is not None:
                        _check_judge(scorer.stage, before, ("evaluate", "suites", index, *inner, "stage"))
                _check_models(suite, before, ("evaluate", "suites", index, "models"))
        return self


def _check_models(suite: BudgetSuite, before: dict[str, StageSettings], path: tuple[str | int, ...]) -> None:
    """A name that no model has would leave the suite unasked, without a word."""
    known = ["start", *(name for name, stage in before.items() if stage.OUTPUTS == "policy")]
    for place, name in enumerate(suite.models):
        if name not in known:
            refusal = unknown("model", name, known)
            raise refuse(
                f"no model of this recipe is called `{name}`",
                path=(*path, place),
                found=name,
                expected=refusal.expected,
                remedy=refusal.remedy,
            )


def _check_saved(stages: Sequence[StageSettings]) -> None:
    """Only the last stage may write no model: whatever comes after one starts from its folder, or asks it."""
    for index, stage in enumerate(stages[:-1]):
        if not stage.keeps_output:
            raise refuse(
                f"`{stage.name}` writes no model, and `{stages[index + 1].name}` comes after it",
                path=("stages", index, "export"),
                found="export: none",
                expected="a model folder, or no later stage",
                remedy="leave `export` out, or make it the last stage",
            )


def data_of(stage: StageSettings) -> dict[str, Data]:
    """The stage's data by key, in the order of its fields: {"data": ..., "held_out": ..., "keep": ...}."""
    return {key: value for key, value in stage if isinstance(value, Data)}


def _check_source(data: ReadSettings, before: dict[str, StageSettings], path: tuple[str | int, ...]) -> None:
    known = [name for name, stage in before.items() if stage.OUTPUTS == "data"]
    if data.stage is None:
        return
    if data.stage in known:
        _check_twin(data, before[data.stage], path)
        return
    writers = " or ".join(f"`method: {method}`" for method, stage in STAGES.items() if stage.OUTPUTS == "data")
    raise refuse(
        f"no earlier stage named `{data.stage}` writes data",
        path=(*path, "stage"),
        found=data.stage,
        expected=f"one of {', '.join(known)}" if known else f"a stage before this one, with {writers}",
        remedy="name the stage, or write `path: FILE`",
    )


def _check_twin(data: ReadSettings, stage: StageSettings, path: tuple[str | int, ...]) -> None:
    if data.rows is None:
        return
    if not isinstance(stage, Select):
        raise refuse(
            f"`{stage.name}` writes no random rows: it does not select",
            path=(*path, "rows"),
            found=f"method: {stage.method}",
            expected="a stage with `method: select`",
            remedy="leave `rows` out",
        )
    if data.rows == "random_tokens" and not stage.token_twin:
        raise refuse(
            f"`{stage.name}` writes no random rows of as many tokens",
            path=(*path, "rows"),
            remedy=f"write `token_twin: true` in `{stage.name}`, or `rows: random`",
        )


def _check_teacher(name: str, before: dict[str, StageSettings], path: tuple[str | int, ...]) -> None:
    policies = [stage.name for stage in before.values() if stage.OUTPUTS == "policy" and stage.keeps_output]
    if name not in policies:
        raise refuse(
            f"no earlier stage named `{name}` writes a policy that could be asked",
            path=path,
            found=name,
            expected=f"one of {', '.join(policies)}" if policies else "a stage before this one that trains a policy",
            remedy="name such a stage, write `{model: FOLDER}`, or `policy` for what the stage starts from",
        )


def _check_judge(name: str, stages: dict[str, StageSettings], path: tuple[str | int, ...]) -> None:
    judges = [stage.name for stage in stages.values() if stage.OUTPUTS == "reward"]
    if name in judges:
        if stages[name].keeps_output:
            return
        raise refuse(
            f"`{name}` writes no reward model that could judge",
            path=path,
            found=f"`export: none` in `{name}`",
            remedy=f"leave `export` out of `{name}`",
        )
    raise refuse(
        f"no stage named `{name}` trains a reward model",
        path=path,
        found=name,
        expected=f"one of {', '.join(judges)}" if judges else "a stage with `method: reward`",
        remedy="name the stage, or write `path: FOLDER`",
    )


def _check_merged(source: MergeSource, before: dict[str, StageSettings], path: tuple[str | int, ...]) -> None:
    known = [START, *(name for name, stage in before.items() if stage.OUTPUTS == "policy")]
    if source.stage is None or source.stage in known:
        return
    refusal = unknown("stage", source.stage, known)
    raise refuse(
        f"no earlier stage named `{source.stage}` makes a policy",
        path=path,
        found=source.stage,
        expected=refusal.expected,
        remedy=refusal.remedy,
    )


def _check_suite(name: str, evaluate: Evaluation, path: tuple[str | int, ...]) -> None:
    names = [suite.name for suite in evaluate.suites]
    if name not in names:
        refusal = unknown("suite", name, names, otherwise="add it to `evaluate.suites`")
        raise refuse(
            f"no suite of this recipe is called `{name}`", path=path, expected=refusal.expected, remedy=refusal.remedy
        )


def stage_yaml(stage: StageSettings, **seeds: int) -> str:
    """The stage's config.yaml: every value, defaults included, and the run's `seed` and `split_seed` if given."""
    return dump({**stage.model_dump(mode="json", by_alias=True), **seeds})
