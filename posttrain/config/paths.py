"""Which files a recipe means, settled before anything is loaded.

One rule for data, models, prompts, templates and rewards: a path in a recipe is relative to its file, a path in an
override to where the command runs, and `package://NAME` is data that comes with posttrain. A file that is not there is
refused with the nearest name that is. Models have names too: one of `CATALOGUE_NAMES` is always that model, anything
else that is there as a folder is that folder, and what is not there may be a hub id.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import posttrain.errors as errors
from posttrain.config.base import MakingStage
from posttrain.config.budget import BudgetSuite
from posttrain.config.custom import CustomPairwise, CustomStage, CustomTokens
from posttrain.config.engines import VLLMServedSettings
from posttrain.config.explain import KeyPath, Places, merge_errors, spell
from posttrain.config.find import beside, entries
from posttrain.config.merging import Merge
from posttrain.config.nested import FILE_KEYS, changed_within, model_keys, models_within
from posttrain.config.online import SamplingStage
from posttrain.config.rewards import AnyReward, ModelReward
from posttrain.config.schema import Recipe, data_of
from posttrain.config.select import Select
from posttrain.config.settings import Data, ReadSettings
from posttrain.config.stages import SFT, ConditionalSFT, DistilSFT, PreferenceStage, Reward, StageSettings
from posttrain.config.strategies.base import AnswerEquality, RewardsScorer
from posttrain.config.suites import AnySuite, FunctionSuite, PassAtKSuite, PromptSuite, WinRateSuite
from posttrain.config.text_suites import LmEvalSuite, TextPerplexitySuite, is_task_file
from posttrain.config.values import Settings
from posttrain.data.sources.hub import HUB_ID
from posttrain.data.sources.not_found import unlike_a_path
from posttrain.data.sources.shipped import PACKAGE_SCHEME, is_evaluation_set, shipped_file
from posttrain.data.sources.splits import SUFFIXES
from posttrain.data.templates.builtin import BUILTIN

TEMPLATES = ("auto", "chat", *BUILTIN)
"""Names of chat templates; anything else is the path of a Jinja file."""

CATALOGUE_NAMES = ("embedded", "smollm2-135m-instruct")
"""The models of `posttrain.models.folders.catalogue`, a layer above; a folder of such a name does not replace one."""

GENERATED = "reasoning_gym:"
"""An address that makes tasks instead of a file that holds them."""

S = TypeVar("S", bound=Settings)

_GLOB = re.compile(r"[*?\[]")


def resolve_paths(recipe: Recipe, raw: object, folder: Path, places: Places) -> tuple[Recipe, list[str]]:
    """The recipe with its files as absolute paths, and what was assumed about them.

    Args:
        raw: the recipe as it was written, for the words of errors.
        folder: where the recipe's file is.

    Raises:
        ConfigError: files that are not there, all of them in one error.
    """
    files = _Files(raw, folder, places)
    stages = tuple(files.of_stage(stage, ("stages", index)) for index, stage in enumerate(recipe.stages))
    suites = tuple(
        files.of_suite(suite, ("evaluate", "suites", index)) for index, suite in enumerate(recipe.evaluate.suites)
    )
    model = files.model(recipe.model, ("model",))
    if files.mistakes:
        raise merge_errors(files.mistakes, places.source)
    evaluate = recipe.evaluate.model_copy(update={"suites": suites})
    return recipe.model_copy(update={"stages": stages, "evaluate": evaluate, "model": model}), files.assumed


def resolve_within(record: S, raw: object, folder: Path, places: Places) -> S:
    """The same for a record that stands in a file of its own.

    Raises:
        ConfigError: files that are not there, all of them in one error.
    """
    files = _Files(raw, folder, places)
    resolved = files._strategies_of(record, ())
    if files.mistakes:
        raise merge_errors(files.mistakes, places.source)
    return resolved


def models_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Every model that the recipe names, with its key: ("model", "embedded"), ("gkd.teacher", "/home/me/large")."""
    yield "model", recipe.model
    for stage in recipe.stages:
        if isinstance(teacher := vars(stage).get("teacher"), str):
            yield f"{stage.name}.teacher", teacher
        if isinstance(stage, MakingStage | Merge | Select):
            yield from ((".".join(map(str, (stage.name, *path))), name) for path, name in models_within(stage))
    for suite in recipe.evaluate.suites:
        if isinstance(suite, WinRateSuite) and suite.reward_model is not None and suite.reward_model.path is not None:
            yield f"evaluate.suites.{suite.name}.reward_model.path", suite.reward_model.path
        if isinstance(suite, BudgetSuite):
            for path, name in models_within(suite):
                yield ".".join(map(str, ("evaluate", "suites", suite.name, *path))), name


class _Files:
    """The files of one recipe, and what is wrong with them; see `resolve_paths`."""

    def __init__(self, raw: object, folder: Path, places: Places):
        self._raw, self._folder, self._places = raw, folder, places
        self.mistakes: list[errors.ConfigError] = []
        self.assumed: list[str] = []

    def of_stage(self, stage: StageSettings, here: KeyPath) -> StageSettings:
        changes: dict[str, object] = {key: self._data(data, (*here, key)) for key, data in data_of(stage).items()}
        asks = (SFT, DistilSFT, ConditionalSFT, PreferenceStage, Reward, SamplingStage, CustomPairwise, CustomTokens)
        if isinstance(stage, asks) and stage.encoding.template not in TEMPLATES:
            template = self._file(stage.encoding.template, (*here, "encoding", "template"))
            changes["encoding"] = stage.encoding.model_copy(update={"template": template})
        if isinstance(stage, MakingStage):
            stage = self._strategies_of(stage, here)
            changes["modules"] = self._modules(stage.modules, (*here, "modules"))
        if isinstance(stage, Merge | Select):
            stage = self._strategies_of(stage, here)
        if isinstance(stage, CustomStage):
            changes["modules"] = self._modules(stage.modules, (*here, "modules"))
        if isinstance(stage, SamplingStage):
            changes["modules"] = self._modules(stage.modules, (*here, "modules"))
            changes["rewards"] = self._rewards(stage.rewards, (*here, "rewards"))
            judges = self._rewards(stage.examine.rewards, (*here, "examine", "rewards"))
            changes["examine"] = stage.examine.model_copy(update={"rewards": judges})
            if isinstance(stage.engine, VLLMServedSettings):
                changes["engine"] = self._served(stage.engine, (*here, "engine"))
        teacher = vars(stage).get("teacher")  # a key of the methods that have one
        if isinstance(teacher, str):
            changes["teacher"] = self.model(teacher, (*here, "teacher"))
        return stage.model_copy(update=changes)

    def _served(self, engine: VLLMServedSettings, here: KeyPath) -> VLLMServedSettings:
        changes: dict[str, object] = {}
        if engine.weights_folder is not None:
            path = self._base((*here, "weights_folder")) / Path(engine.weights_folder).expanduser()
            changes["weights_folder"] = str(path.resolve())
        launch = engine.launch
        # A bare name is looked for on the PATH.
        if launch is not None and launch.python is not None and "/" in launch.python:
            path = self._base((*here, "launch", "python")) / Path(launch.python).expanduser()
            # Links are kept: the python of an environment is one to the system's, which has none of its packages.
            changes["launch"] = launch.model_copy(update={"python": os.path.abspath(path)})
        return engine.model_copy(update=changes)

    def of_suite(self, suite: AnySuite, here: KeyPath) -> AnySuite:
        changes: dict[str, object] = {}
        if isinstance(suite, PromptSuite):
            changes["prompts"] = self._file(suite.prompts, (*here, "prompts"))
        if isinstance(suite, TextPerplexitySuite):
            changes["texts"] = self._file(suite.texts, (*here, "texts"))
        if isinstance(suite, LmEvalSuite):
            changes["tasks"] = tuple(
                self._file(task, (*here, "tasks", at), local=True) if is_task_file(task) else task
                for at, task in enumerate(suite.tasks)
            )
        if isinstance(suite, BudgetSuite):
            suite = self._strategies_of(suite, here)
        if isinstance(suite, (PassAtKSuite, FunctionSuite, BudgetSuite)):
            changes["modules"] = self._modules(suite.modules, (*here, "modules"))
        if isinstance(suite, PassAtKSuite):
            changes["rewards"] = self._rewards(suite.rewards, (*here, "rewards"))
        if isinstance(suite, WinRateSuite):
            changes |= self._judges(suite, here)
        return suite.model_copy(update=changes)

    def _judges(self, suite: WinRateSuite, here: KeyPath) -> dict[str, object]:
        """Who judges in a win rate: a model, a judge's cache, or a file of votes."""
        changes: dict[str, object] = {}
        if suite.reward_model is not None and suite.reward_model.path is not None:
            path = self.model(suite.reward_model.path, (*here, "reward_model", "path"))
            changes["reward_model"] = suite.reward_model.model_copy(update={"path": path})
        if suite.judge is not None and suite.judge.cache is not None:
            cache = self._base((*here, "judge", "cache")) / Path(suite.judge.cache).expanduser()
            changes["judge"] = suite.judge.model_copy(update={"cache": str(cache)})
        if suite.votes is not None:
            changes["votes"] = self._file(suite.votes, (*here, "votes"), local=True)
        return changes

    def _strategies_of(self, record: S, here: KeyPath) -> S:
        """The record with the files and models that strategies, scorers and merges name, wherever they stand."""

        def located(found: Settings, path: KeyPath) -> Settings:
            changes: dict[str, object] = {
                key: self.model(name, (*path, key))
                for key in model_keys(found)
                if isinstance(name := getattr(found, key), str)
            }
            for key in FILE_KEYS.get(type(found), ()):
                value = getattr(found, key)
                if isinstance(value, tuple):
                    changes[key] = tuple(self._set(name, (*path, key, at)) for at, name in enumerate(value))
                elif value is not None:
                    changes[key] = self._file(value, (*path, key), local=True)
            if isinstance(found, RewardsScorer | AnswerEquality):
                changes["modules"] = self._modules(found.modules, (*path, "modules"))
            return found.model_copy(update=changes) if changes else found

        return changed_within(record, located, here)

    def model(self, text: str, path: KeyPath) -> str:
        # An empty name stays one, which no model has: joined to the folder, it would be the folder itself.
        if text in CATALOGUE_NAMES or not text.strip():
            return text
        if text.startswith((".", "/", "~", PACKAGE_SCHEME)):
            return self._file(text, path, local=True)
        base = self._base(path)
        if (base / text).exists():
            return str((base / text).resolve())
        # Loading a model looks where the command runs: the same recipe would be of another model from another folder.
        if Path(text).exists():
            self.mistakes.append(
                errors.ConfigError(
                    f"`{spell(self._raw, path)}` names a folder that is where the command runs, not beside the recipe",
                    where=self._places.of(path),
                    found=text,
                    expected=f"a folder in {base}, where paths in a recipe begin",
                    remedy=f"write `{os.path.relpath(text, base)}`, or give it on the command line, "
                    f"`{spell(self._raw, path)}={text}`",
                )
            )
        return text

    def _data(self, data: Data, path: KeyPath) -> Data:
        # The path's own key, not the group's: an override of `data.path` is an override, however the group was written.
        places = {id(part): (*path, "sources", at) if data.sources else path for at, part in enumerate(data.parts)}

        def of(part: ReadSettings) -> ReadSettings:
            here = places[id(part)]
            name = spell(self._raw, here)
            located = [self._file(text, (*here, "path", at), name=name) for at, text in enumerate(part.path)]
            return part.model_copy(update={"path": tuple(located)})

        return data.with_parts(of)

    def _set(self, name: str, path: KeyPath) -> str:
        """An evaluation set by a name that comes along stays one; anything else is a file or a hub data set."""
        return name if is_evaluation_set(name) else self._file(name, path)

    def _rewards(self, rewards: tuple[AnyReward, ...], path: KeyPath) -> tuple[AnyReward, ...]:
        return tuple(self._reward(reward, (*path, at)) for at, reward in enumerate(rewards))

    def _reward(self, reward: AnyReward, path: KeyPath) -> AnyReward:
        if isinstance(reward, ModelReward):
            return reward.model_copy(update={"model": self.model(reward.model, (*path, "model"))})
        return reward

    def _modules(self, text: str | None, path: KeyPath) -> str:
        return str(self._folder) if text is None else self._file(text, path, local=True)

    def _base(self, path: KeyPath) -> Path:
        """What a path at this key is relative to."""
        # An override is typed in a shell, whose completion knows the paths from there.
        return Path.cwd() if self._places.of(path).startswith("override ") else self._folder

    def _file(self, text: str, path: KeyPath, *, local: bool = False, name: str | None = None) -> str:
        """What is there as an absolute path; else `text`, and a mistake is noted.

        Args:
            local: it is no id of a hub data set, however much it looks like one.
            name: what errors call it, if not by its own key: the group that a path stands for.
        """
        located = _locate(text, self._base(path), local=local)
        name = name or spell(self._raw, path)
        if not text.startswith((PACKAGE_SCHEME, GENERATED)) and (
            refusal := unlike_a_path(text, self._base(path) / Path(text).expanduser())
        ):
            problem = f"`{name}` names no file: {refusal.problem}"
            self.mistakes.append(
                errors.ConfigError(
                    problem,
                    where=self._places.of(path),
                    found=refusal.found,
                    expected=refusal.expected,
                    remedy=refusal.remedy,
                )
            )
            return text
        if isinstance(located, str):
            if located == text and not Path(located).is_absolute() and not text.startswith(("hub:", GENERATED)):
                self.assumed.append(f"{name}: {text} is no file here; read as the id of a hub data set")
            return located
        expected, remedy = located
        # A template may be a name or a file; a near name is the likelier slip.
        if path[-1] == "template":
            remedy = errors.did_you_mean(errors.nearest(text, TEMPLATES), remedy)
        problem = f"`{name}` names a file that is not there"
        self.mistakes.append(
            errors.ConfigError(problem, where=self._places.of(path), found=text, expected=expected, remedy=remedy)
        )
        return text


def _locate(text: str, folder: Path, *, local: bool = False) -> str | tuple[str, str]:
    """The absolute path (or hub id) that `text` means, or what was expected and the remedy."""
    if text.startswith(GENERATED):
        return text
    if text.startswith(PACKAGE_SCHEME):
        try:
            return str(shipped_file(text))
        except errors.SourceError as error:
            return str(error.expected), error.remedy
    path = folder / Path(text).expanduser()
    # A file before anything else: a folder called like a hub id is what its owner means.
    if path.exists():
        return str(path.resolve())
    if _GLOB.search(text):
        if glob.glob(str(path), recursive=True):
            return str(path)
        return f"at least one file like this in {path.parent}", "check the pattern"
    is_hub_id = not local and HUB_ID.fullmatch(text) and not text.endswith(SUFFIXES)
    # `data/pairs` looks like an id; where the folder `data` is there, it is a file that is missing.
    if is_hub_id and (text.startswith("hub:") or not path.parent.exists()):
        return text
    return _nearest_file(text, path)


def _nearest_file(text: str, path: Path) -> tuple[str, str]:
    if not path.parent.is_dir():
        return f"a file in {path.parent}", f"there is no folder {path.parent} either; check the path"
    known = list(entries(path.parent))
    near = errors.nearest_file(path.name, known)
    remedy = f"it has {', '.join(known[:8])}" if known else "it is empty; check the path"
    return f"a file in {path.parent}", errors.did_you_mean(near and beside(text, near), remedy)
