"""The recipe and what belongs beside it, as files."""

from __future__ import annotations

from pathlib import Path

from posttrain.data.write import write_jsonl
from posttrain.starting.plan import Start, refuse_existing
from posttrain.starting.text import recipe_text


def write(start: Start) -> list[Path]:
    """Write the recipe, its questions and rows; returns the paths, the recipe's first.

    Raises:
        ConfigError: one of the files is there already; then none is written.
    """
    beside = {start.out.with_name(name): rows for name, rows in start.beside.items()}
    refuse_existing([start.out, *beside])
    start.out.parent.mkdir(parents=True, exist_ok=True)
    # The recipe last: one whose files are not there yet must not exist.
    for path, rows in beside.items():
        write_jsonl(path, rows)
    # "x": a recipe that somebody else wrote since it was looked for stays as it is.
    with start.out.open("x", encoding="utf-8", newline="\n") as file:
        file.write(recipe_text(start))
    return [start.out, *beside]
