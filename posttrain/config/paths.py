"""Which files a recipe means, settled before anything is loaded.

Paths in a recipe are relative to its file, paths in an override to where the command runs, and `package://NAME` is
data that comes with posttrain. A file that is not there is refused with the nearest name that is.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

import posttrain.errors as errors
from posttrain.config.explain import KeyPath, Places, spell, together
from posttrain.config.online import SamplingStage
from posttrain.config.schema import Recipe, data_of
from posttrain.config.settings import Data
from posttrain.config.stages import SFT, ConditionalSFT, PreferenceStage
from posttrain.config.suites import WinRateSuite
from posttrain.data.builtin_templates import BUILTIN
from posttrain.data.hub import HUB_ID
from posttrain.data.shipped import PACKAGE_SCHEME, shipped_file
from posttrain.data.sources import SUFFIXES

TEMPLATES = ("chat", *BUILTIN)
"""Names of chat templates; anything else is the path of a Jinja file."""
PACKAGE = Path(__file__).parent.parent
RECIPE_FOLDERS = (PACKAGE / "recipes", PACKAGE.parent / "recipes")
"""Recipes that come with the package, and those of a source checkout."""

GENERATED = "reasoning_gym:"
"""An address that makes tasks instead of a file that holds them."""

_GLOB = re.compile(r"[*?\[]")


def find_recipe(name: str) -> Path:
    """A recipe by its file, or by the name of one that comes with posttrain: "quickstart".

    Raises:
        SourceError: there is neither; says the nearest.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = {path.stem: path for folder in RECIPE_FOLDERS for path in sorted(folder.glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    known = [*_entries(path.parent, ".yaml", ".yml"), *shipped]
    near = errors.nearest(path.name, known)
    raise errors.SourceError(
        "there is no such recipe",
        where=name,
        found="a folder" if path.is_dir() else None,
        expected=f"a YAML file, or one of {', '.join(shipped)}" if shipped else "a YAML file",
        remedy=f"did you mean `{_beside(path, near)}`?" if near else "check the path",
    )


def resolve_paths(recipe: Recipe, raw: object, folder: Path, places: Places) -> tuple[Recipe, list[str]]:
    """The recipe with its files as absolute paths, and what was assumed about them.

    Args:
        raw: the recipe as it was written, for the words of errors.
        folder: where the recipe's file is.

    Raises:
        ConfigError: files that are not there, all of them in one error.
    """
    mistakes: list[errors.ConfigError] = []
    assumed: list[str] = []

    def settle(text: str, path: KeyPath) -> str:
        from_override = places.of(path).startswith("override ")
        found = _locate(text, Path.cwd() if from_override else folder)
        if isinstance(found, str):
            if found == text and not Path(found).is_absolute() and not text.startswith("hub:"):
                assumed.append(f"{spell(raw, path)}: {text} is no file here; read as the id of a hub data set")
            return found
        expected, remedy = found
        near = errors.nearest(text, TEMPLATES) if path[-1] == "template" else None
        if near is not None:
            remedy = f"did you mean `{near}`?"
        name = spell(raw, path)
        problem = f"`{name}` names a file that is not there"
        mistakes.append(
            errors.ConfigError(problem, where=places.of(path), found=text, expected=expected, remedy=remedy)
        )
        return text

    def settle_data(data: Data, path: KeyPath) -> Data:
        return data.model_copy(update={"path": tuple(settle(text, path) for text in data.path)})

    stages = []
    for index, stage in enumerate(recipe.stages):
        changes: dict[str, object] = {
            key: settle_data(data, ("stages", index, key)) for key, data in data_of(stage).items()
        }
        if isinstance(stage, SamplingStage) and stage.modules is None:
            changes["modules"] = str(folder)
        asks = (SFT, ConditionalSFT, PreferenceStage, SamplingStage)
        if isinstance(stage, asks) and stage.encoding.template not in TEMPLATES:
            template = settle(stage.encoding.template, ("stages", index, "encoding", "template"))
            changes["encoding"] = stage.encoding.model_copy(update={"template": template})
        stages.append(stage.model_copy(update=changes))
    suites = []
    for index, suite in enumerate(recipe.evaluate.suites):
        here: KeyPath = ("evaluate", "suites", index)
        settled: dict[str, object] = {"prompts": settle(suite.prompts, (*here, "prompts"))}
        judge = suite.reward_model.path if isinstance(suite, WinRateSuite) else None
        if isinstance(suite, WinRateSuite) and judge is not None and _is_path(judge):
            path = settle(judge, (*here, "reward_model", "path"))
            settled["reward_model"] = suite.reward_model.model_copy(update={"path": path})
        suites.append(suite.model_copy(update=settled))
    model = settle(recipe.model, ("model",)) if _is_path(recipe.model) else recipe.model
    if mistakes:
        raise together(mistakes, places.source)
    evaluate = recipe.evaluate.model_copy(update={"suites": tuple(suites)})
    return recipe.model_copy(update={"stages": tuple(stages), "evaluate": evaluate, "model": model}), assumed


def _is_path(model: str) -> bool:
    """A model is a path only if it looks like one: a folder named as a catalogue entry is must not replace it."""
    return model.startswith((".", "/", "~", PACKAGE_SCHEME))


def _locate(text: str, folder: Path) -> str | tuple[str, str]:
    """The absolute path (or hub id) that `text` means, or what was expected and the remedy."""
    if text.startswith(GENERATED):
        return text
    if text.startswith(PACKAGE_SCHEME):
        try:
            return str(shipped_file(text))
        except errors.SourceError as error:
            return str(error.expected), error.remedy
    path = folder / Path(text).expanduser()
    if path.exists():
        return str(path.resolve())
    if _GLOB.search(text):
        if glob.glob(str(path), recursive=True):
            return str(path)
        return f"at least one file like this in {path.parent}", "check the pattern"
    is_hub_id = HUB_ID.fullmatch(text) and not text.endswith(SUFFIXES)
    if is_hub_id and (text.startswith("hub:") or not path.parent.exists()):
        return text
    return _nearest_file(text, path)


def _nearest_file(text: str, path: Path) -> tuple[str, str]:
    if not path.parent.is_dir():
        return f"a file in {path.parent}", f"there is no folder {path.parent} either; check the path"
    known = list(_entries(path.parent))
    stems = {name.split(".")[0]: name for name in reversed(known)}  # endings alone make unlike names look alike
    near = errors.nearest(path.name.split(".")[0], stems)
    if near is not None:
        return f"a file in {path.parent}", f"did you mean `{_beside(text, stems[near])}`?"
    return f"a file in {path.parent}", f"it holds {', '.join(known[:8])}" if known else "it is empty; check the path"


def _entries(folder: Path, *endings: str) -> Iterator[str]:
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if not entry.name.startswith(".") and (not endings or entry.suffix in endings):
                yield entry.name


def _beside(text: str | Path, name: str) -> str:
    """`name` in the folder of `text`, written as that is: _beside("./pears.json", "pairs.jsonl") -> "./pairs.jsonl"."""
    dots = "./" if str(text).startswith("./") else ""
    return f"{dots}{Path(text).parent / name}"
