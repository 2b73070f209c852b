"""Stages that make rows from a program: the policy's best answers, pairs, corrections, searches, as a recipe has them.

    best = {"method": "best_of", "samples": 8, "scorer": {"kind": "rewards", "rewards": ["math"]}}
    rows = pt.make(best, "runs/mine/sft/model", "tasks.jsonl", out="runs/best")
    pt.train("sft", "runs/mine/sft/model", rows, out="runs/next")

One door for all of them, and the recipe's own: what is made lies in a run folder with its records, goes on after a
kill, and is not made again while nothing has changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.arguments import checked_flag, checked_path, checked_seed, described
from posttrain.auditing.fix import as_row
from posttrain.config import STAGES, Recipe, StageSettings, TrainingStage
from posttrain.config.settings import Data
from posttrain.data.given import as_examples
from posttrain.data.read import Examples, read
from posttrain.data.write import write_jsonl
from posttrain.errors import ConfigError, unknown
from posttrain.models.folders.source import require_name
from posttrain.parallel.world import world
from posttrain.runs.showing import Shown
from posttrain.training.pipeline import run_recipe
from posttrain.training.stages.kind import OUTPUT_NAMES

GIVEN = "given.jsonl"
"""In the run folder: rows that a program passed, where a recipe has a file."""
MAKING = tuple(
    name for name, stage in STAGES.items() if stage.OUTPUTS == "data" and not issubclass(stage, TrainingStage)
)


def make(
    stage: StageSettings | str | Mapping[str, Any],
    model: str | Path,
    data: Any,
    *,
    out: str | Path,
    seed: int = 0,
    fresh: bool = False,
    progress: Shown = None,
) -> Examples:
    """Run one stage that makes rows, into the run folder `out`, and give the rows.

    Args:
        stage: a method's name, or what a recipe writes: {"method": "best_of", "samples": 8, ...}.
        model: the policy that answers, by its name or folder.
        data: the prompts or rows: a path, or a list of paths; `pt.Data(...)`; or rows as `read` takes them, which are
            written to `out/given.jsonl`.
        seed: where all random streams start.
        fresh: forget what the folder holds of an earlier call.
        progress: None shows it in a terminal, a notebook and, seldom, a log; False is silent.

    Raises:
        ConfigError: the stage makes no rows, or an argument is wrong.
        UnknownKeyError: a method or a key that there is not.
        PosttrainError: what the stage raises; what it had from a teacher by then is kept.
    """
    require_name(model)
    folder = checked_path("out", out, "runs/best")
    checked_seed(seed)
    settings = _settings_of(stage)
    # Rows that a program passed are written once, by the rank that runs the stage.
    settings = settings.changed(data=world().agreed(lambda: _data_of(data, folder)))
    recipe = Recipe(name=folder.name, model=os.fspath(model), out=str(folder.parent), seed=seed, stages=(settings,))
    run_recipe(recipe, fresh=checked_flag("fresh", fresh), progress=progress)
    return read(folder / settings.name / OUTPUT_NAMES["data"])


def _settings_of(given: Any) -> StageSettings:
    options: dict[str, Any] = {"method": given} if isinstance(given, str) else {}
    if isinstance(given, Mapping):
        options = {str(key): value for key, value in given.items()}
    if options:
        method = options.pop("method", None)
        if method not in STAGES:
            raise unknown("method", method, MAKING, example='{"method": "best_of", "samples": 8}')
        given = STAGES[method](**options)
    made: Any = tuple(STAGES[name] for name in MAKING)
    if isinstance(given, made):
        stage: StageSettings = given
        return stage
    raise ConfigError(
        "the first argument of make() is no stage that makes rows",
        found=described(given),
        expected=f"one of {', '.join(MAKING)}, or its keys as a recipe has them",
        example='pt.make({"method": "best_of", "samples": 8}, "embedded", "tasks.jsonl", out="runs/best")',
        remedy="a stage that trains is `pt.train(...)`, a merge is `pt.merge(...)`",
    )


def _data_of(data: Any, folder: Path) -> Any:
    """What a recipe's `data` says: paths and groups of keys as they are, rows by the file that they are written to."""
    paths = data if isinstance(data, list | tuple) else [data]
    if isinstance(data, Data | Mapping) or (paths and all(isinstance(path, str | os.PathLike) for path in paths)):
        return data
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / GIVEN, map(as_row, as_examples(data)))
    return str(folder / GIVEN)
