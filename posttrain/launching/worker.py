"""What each process of a job does before it runs a recipe: join, read it, and see that all of them do the same.

with rank_of_job(lambda: read_recipe(name, overrides), patience=1800) as (recipe, here):
    run_recipe(recipe)          # on every rank, in lockstep; rank 0 writes and speaks
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.config import Recipe
from posttrain.parallel.failure import Failure
from posttrain.parallel.sameness import file_hash, program_facts, require_same
from posttrain.parallel.start import Member, joined
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.run import Restart
from posttrain.training.provenance import now


@contextmanager
def rank_of_job(read: Callable[[], Recipe], *, patience: float) -> Iterator[tuple[Recipe, Member]]:
    """
    Args:
        read: gives the recipe; called on every rank.
        patience: see `joined`.

    Raises:
        PosttrainError: what `read` raises anywhere, on every rank; that the ranks do not run the same program on the
            same recipe and files.
    """
    with joined(patience=patience) as here:
        with here.world.together("reading the recipe"):
            recipe = read()
            facts = program_facts() | recipe_facts(recipe)
        require_same(facts, here.world)
        here.log_to(recipe.folder)
        with here.world.together("hashing what the recipe names"):
            inputs = input_facts(recipe)
        require_same(inputs, here.world)
        with here.world.together("noting the restart"):
            if here.is_main and here.job is not None and here.job.attempt:
                note_restart(RunFolder(recipe.folder), here.ended_by)
        yield recipe, here


def recipe_facts(recipe: Recipe) -> dict[str, str]:
    """Every value of the recipe by its key, so that a difference is named: {"sft.learning_rate": "1e-05", ...}."""
    names = {str(place): stage.name for place, stage in enumerate(recipe.stages)}
    facts = {}
    for path, value in _leaves(recipe.model_dump(mode="json"), ()):
        if path[:1] == ("stages",) and len(path) > 1:
            path = (names[path[1]], *path[2:])
        facts[".".join(path)] = json.dumps(value)
    return facts


def input_facts(recipe: Recipe) -> dict[str, str]:
    """A hash of every file and folder that the recipe names, models included; of large files a sample, see
    `file_hash`. What lies in the run folder itself is a result."""
    results = recipe.folder.resolve()
    facts: dict[str, str] = {}
    for key, value in _leaves(recipe.model_dump(mode="json", exclude={"out"}), ()):
        # Of the folder of the user's functions the modules alone: it may be a whole project, with its data and runs.
        is_code = key[-1:] == ("modules",)
        for path in sorted(Path(value).glob("*.py")) if is_code and isinstance(value, str) else _named(value):
            if not path.resolve().is_relative_to(results):
                facts[f"file {path}"] = _content(path)
    return facts


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _leaves(part, (*path, str(place)))
    else:
        yield path, value


def _named(value: object) -> Iterator[Path]:
    """What a value of a resolved recipe names on this machine: its paths are absolute; `file.py:function` is a file."""
    if not isinstance(value, str) or not value.startswith("/"):
        return
    if any(sign in value for sign in "*?["):
        yield from map(Path, sorted(glob.glob(value, recursive=True)))
    else:
        yield Path(value if Path(value).exists() else value.partition(":")[0])


def _content(path: Path) -> str:
    if path.is_file():
        return file_hash(path)
    if not path.is_dir():
        return "(not there)"
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    return found.hexdigest()


def note_restart(run: RunFolder, ended_by: Failure | None) -> None:
    """One more line under `restarts` of run.json, for the report; a run that had not begun yet has none."""
    if not run.exists:
        return
    restart = Restart(
        time=now(),
        rank=None if ended_by is None else ended_by.rank,
        phase=None if ended_by is None else ended_by.phase,
        problem=None if ended_by is None else ended_by.problem.splitlines()[0],
    )
    run.write_run(restarts=(*(run.run().restarts or ()), restart))
