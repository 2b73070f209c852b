"""What a sweep is asked to do, and the recipe of each of its runs.

spec = SweepSpec.of("mine.yaml", ["dpo.beta=[0.05,0.1]", "seed=0..2", "dpo.steps=20"], name=None, out=None)
spec.recipe({"dpo.beta": 0.05}, seed=0)        # a Recipe, into runs/mine-sweep/dpo.beta-0.05_seed-0
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.arguments import checked_list, checked_path, checked_text, wrong_argument
from posttrain.config import Recipe, data_of, load_recipe
from posttrain.config.find import find_recipe
from posttrain.config.load import parse_recipe
from posttrain.config.naming import NAME, UNSAFE
from posttrain.config.stages import StageSettings
from posttrain.config.suite_settings import PromptSuite
from posttrain.config.yaml_text import parse
from posttrain.data.sources.files import combined_fingerprint, open_sources
from posttrain.errors import ConfigError
from posttrain.evaluate.runner import content_of_suite
from posttrain.runs.differences import setting_differences
from posttrain.sweeps.axes import SEED, Axis, assignment, axes_of, read_axes
from posttrain.sweeps.designs import Settings, seeds_of, without_seed
from posttrain.text_file import read_text
from posttrain.training.rl.tasks import is_generated

LONGEST_NAME = 80
"""Characters of a run's folder; settings that need more are numbered."""
SUFFIX = "-sweep"
FILE_KEYS = ("path", "prompts")
"""Keys of a recipe that name files of rows."""


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """The base recipe and what varies in it."""

    base: Recipe
    """With the settings that all runs share."""
    axes: tuple[Axis, ...]
    """Without the seed."""
    seeds: tuple[int, ...]
    folder: Path
    """Of the sweep."""
    text: str
    """The recipe's, from which each run's is read."""
    home: Path
    """What paths in it are relative to."""
    source: str
    fixed: tuple[str, ...]
    """Settings of all runs, as overrides."""

    @classmethod
    def of(
        cls,
        recipe: Recipe | str | Path,
        settings: Sequence[str] | Mapping[str, Any],
        *,
        name: str | None = None,
        out: str | Path | None = None,
    ) -> SweepSpec:
        """Read the recipe and what is varied.

        Raises:
            ConfigError, SourceError: as `load_recipe`, and `read_axes`; a name that none for a folder.
        """
        if isinstance(settings, Mapping):
            axes, fixed = axes_of(settings)
        else:
            lines = checked_list("settings", settings, of="settings", example='["dpo.beta=[0.05,0.1]", "seed=0..2"]')
            axes, fixed = read_axes([checked_text("settings", line, "dpo.beta=[0.05,0.1]") for line in lines])
        if isinstance(recipe, Recipe):
            text, home, source = recipe.to_yaml(), Path.cwd(), f"the recipe `{recipe.name}`"
        else:
            if isinstance(recipe, type) or not isinstance(recipe, str | Path):
                raise wrong_argument(
                    "recipe",
                    recipe,
                    expected="a recipe, or its path or name",
                    remedy="write `pt.sweep('mine.yaml', ...)`",
                )
            path = find_recipe(str(recipe))
            load_recipe(path, fixed)  # a mistake in the file is shown with its lines
            text, home, source = read_text(path, "the recipe"), path.resolve().parent, str(path)
        base = parse_recipe(text, fixed, folder=home, source=source, name=Path(source).stem)
        own = name if name is not None else f"{base.name}{SUFFIX}"
        if NAME.fullmatch(own) is None:
            raise ConfigError(
                "this is no name for a folder",
                where="--name",
                found=own,
                expected="letters, digits, . - and _",
                remedy="write other signs as -",
            )
        folder = Path(base.out if out is None else checked_path("out", out, "runs")) / own
        return cls(base, without_seed(axes), seeds_of(axes, base.seed), folder, text, home, source, tuple(fixed))

    def recipe(self, settings: Settings, seed: int, folder: str) -> Recipe:
        """The recipe of one run.

        Raises:
            ConfigError: a value that the recipe refuses; the error names the override.
        """
        lines = [*self.fixed, *(assignment(key, value) for key, value in settings.items())]
        own = {SEED: seed, "name": folder, "out": str(self.folder)}
        lines += [assignment(key, value) for key, value in own.items()]
        return parse_recipe(self.text, lines, folder=self.home, source=self.source, name=folder)

    def names(self, tried: Sequence[Settings], *, numbered: bool) -> list[str]:
        """The beginning of each setting's folders: its values, or its number where these make no name of their own."""
        by_number = [f"t{number:03d}" for number in range(len(tried))]
        if numbered or not self.axes:
            return by_number if self.axes else ["run"]
        by_values = [_name_of(settings) for settings in tried]
        fits = len(set(by_values)) == len(by_values) and all(len(name) <= LONGEST_NAME for name in by_values)
        return by_values if fits else by_number

    def changes(self, stored: str) -> list[str]:
        """What differs from the recipe with which the sweep began, in words; [] where nothing has an effect.

        Args:
            stored: recipe.yaml of the sweep's folder.
        """
        before, after = (_without_folders(parse(text, "recipe.yaml").value) for text in (stored, self.base.to_yaml()))
        found = []
        for settings in (before, after):
            for key in ("name", "out", "seed"):
                settings.pop(key, None)
        names = [[stage["name"] for stage in settings["stages"]] for settings in (before, after)]
        if names[0] != names[1]:
            return [f"the stages {', '.join(names[0])} -> {', '.join(names[1])}"]
        for one, two in zip(before.pop("stages"), after.pop("stages"), strict=True):
            found += [
                str(replace(change, key=f"{one['name']}.{change.key}")) for change in setting_differences(one, two)
            ]
        return [*(str(change) for change in setting_differences(before, after)), *found]


def run_folder(name: str, seed: int) -> str:
    return f"{name}_seed-{seed}"


def _name_of(settings: Settings) -> str:
    parts = []
    for key, value in settings.items():
        written = value if isinstance(value, str) else json.dumps(value)
        parts.append(f"{key}-{UNSAFE.sub('-', written).strip('-')}")
    return "_".join(parts)


def _without_folders(value: Any) -> Any:
    """Rows and prompts by the names of their files: where they lie has no effect, and what they hold is compared apart
    (`inputs_of_runs`)."""
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: [Path(path).name for path in ([inner] if isinstance(inner, str) else inner or ())]
        if key in FILE_KEYS
        else _without_folders(inner)
        for key, inner in value.items()
    }


def inputs_of_runs(recipes: Iterable[Recipe]) -> dict[str, str]:
    """Hashes of what the runs read, by who reads it: rows of stages and prompts of suites. A sweep that goes on over
    other rows would compare runs that are not comparable.

    Raises:
        DataError: a file that is not there.
    """
    found: dict[str, str] = {}
    for recipe in recipes:
        for suite in recipe.evaluate.suites:
            rows = f": {Path(suite.prompts).name}" if isinstance(suite, PromptSuite) else ""
            if (label := f"suite {suite.name}{rows}") not in found:
                found[label] = content_of_suite(suite)
        for stage in recipe.stages:
            for path, split in _files_of(stage):
                part = "" if split == "train" else f" ({split})"
                if (label := f"stage {stage.name}: {Path(path).name}{part}") not in found:
                    found[label] = combined_fingerprint(open_sources([path], split))
    return found


def _files_of(stage: StageSettings) -> Iterable[tuple[str, Any]]:
    for data in data_of(stage).values():
        for part in data.parts:
            yield from ((path, part.split) for path in part.path if part.stage is None and not is_generated(path))
