"""Whole recipes on ranks, and what their folders say: the same at 1, 2 and 4 processes.

runs_of(recipe_text, folder, 2)          # {1: RunFolder, 2: RunFolder}, each run by so many processes
compare(one, two)                        # what differs beyond rounding
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.training.pipeline import run_recipe
from tests.ranks import ranks

TIMED = ("seconds", "tokens_per_second")
"""What a clock says, by how its name begins."""


def run_here(path: str, out: str, overrides: Sequence[str] = (), fresh: bool = False) -> str:
    """Called on every rank; where the run folder is."""
    recipe = load_recipe(path, [f"out='{out}'", *overrides])
    return str(run_recipe(recipe, fresh=fresh, progress=False).folder)


def run_on(size: int, path: Path, out: Path, *overrides: str) -> Path:
    """A recipe by so many processes; its run folder, which each of them names."""
    folders = ranks(size).run(run_here, str(path), str(out), overrides)
    assert len(set(folders)) == 1, folders
    return Path(folders[0])


# ---------------------------------------------------------------- what a run came to


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def figures(folder: Path) -> list[tuple[str, int | None, dict[str, float | None]]]:
    """(split, step, values) of metrics.jsonl without what a clock says."""
    return [
        (line["split"], line["step"], {k: v for k, v in line["values"].items() if not k.startswith(TIMED)})
        for line in lines(folder / "metrics.jsonl")
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def files_of(folder: Path) -> set[str]:
    """Every file by its name: what is named by a process is left out, and what by a hash of other files' places has
    none."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = {re.sub(r"/encoded-[0-9a-f]+/", "/encoded-HASH/", name) for name in found}
    return {name for name in found if not name.endswith((".index", ".values"))}


def close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float | int) and isinstance(b, float | int) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def require_same_figures(one: Path, other: Path, tolerance: float, more: Sequence[str] = ()) -> None:
    """metrics.jsonl of two stages, line by line and figure by figure; `more` are figures that the other alone has."""
    left, right = figures(one), figures(other)
    assert [line[:2] for line in left] == [line[:2] for line in right]
    for (split, step, a), (_, _, b) in zip(left, right, strict=True):
        assert a.keys() == b.keys() - set(more), (split, step)
        for name in a:
            assert close(a[name], b[name], tolerance), f"{split} {step} {name}: {a[name]} and {b[name]}"


def require_same_weights(one: Path, other: Path, tolerance: float) -> None:
    a, b = weights(one / "model"), weights(other / "model")
    assert a.keys() == b.keys() and a
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
