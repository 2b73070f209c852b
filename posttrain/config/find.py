"""Which file the name of a recipe means; what a name that leads nowhere could have meant.

Apart from `paths`, which needs every record of a recipe: that there is no such file is known without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import posttrain.errors as errors
from posttrain.arguments import checked_path

PACKAGE = Path(__file__).parent.parent
RECIPE_FOLDERS = (PACKAGE / "recipes", PACKAGE.parent / "recipes")
"""Recipes that come with the package, and those of a source checkout."""


def find_recipe(name: str) -> Path:
    """A recipe by its file, or by the name of one that comes with posttrain: "quickstart".

    Raises:
        SourceError: there is neither; says the nearest.
    """
    path = checked_path("name", name, "quickstart").expanduser()
    if path.is_file() and path.name.endswith(_data_suffixes()) and not _is_json_group(path):
        raise errors.SourceError(
            "this is data, not a recipe",
            where=name,
            expected="a YAML file that names the data, or a recipe that comes with posttrain",
            remedy=f"`posttrain new chat --data {name}` writes a recipe for it; `posttrain audit {name}` reads it",
        )
    if path.is_file():
        return path
    shipped = {path.stem: path for folder in RECIPE_FOLDERS for path in sorted(folder.glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    there = list(entries(path.parent, ".yaml", ".yml"))
    near = errors.nearest(path.name, [*there, *shipped])
    if near is None and path.suffix:  # "recipes/identity.yaml" of somebody who has no checkout
        near = errors.nearest(path.stem, shipped)
    raise errors.SourceError(
        "there is no such recipe",
        where=name,
        found="a folder" if path.is_dir() else None,
        expected=f"a YAML file, or one of {', '.join(shipped)}" if shipped else "a YAML file",
        remedy=errors.did_you_mean(beside(name, near) if near in there else near, "check the path"),
    )


def _is_json_group(path: Path) -> bool:
    """A recipe may be JSON, which is YAML: a group of keys. Rows in a .json file are a list."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def _data_suffixes() -> tuple[str, ...]:
    from posttrain.data.sources.splits import SUFFIXES  # here, for it brings every reader of rows along

    return tuple(SUFFIXES)


def entries(folder: Path, *endings: str) -> Iterator[str]:
    """Names in a folder, sorted: entries(Path("recipes"), ".yaml"). None of those that begin with a point."""
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if not entry.name.startswith(".") and (not endings or entry.suffix in endings):
                yield entry.name


def beside(text: str | Path, name: str) -> str:
    """`name` in the folder of `text`, written as that is: beside("./pears.json", "pairs.jsonl") -> "./pairs.jsonl"."""
    dots = "./" if str(text).startswith("./") else ""
    return f"{dots}{Path(text).parent / name}"
