"""A file of another tool as a recipe, with the list of what it could not say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.config.explain import explain
from posttrain.config.schema import Recipe
from posttrain.converting.draft import Draft, Missed
from posttrain.converting.recipe_text import document_of, recipe_text
from posttrain.converting.rows import Folders
from posttrain.converting.sources import Source, read_source
from posttrain.errors import ConfigError, PosttrainError


@dataclass(frozen=True, slots=True)
class Converted:
    """Converted("Axolotl", "schema: 1...", said={"lora_r": "adapter.rank"}, idle={}, missed=(), assumed=())"""

    tool: str
    text: str
    """The recipe, with comments."""
    said: Mapping[str, str]
    """Keys of the file -> the key of the recipe that says the same."""
    idle: Mapping[str, str]
    """Keys for which nothing has to be written -> why."""
    missed: tuple[Missed, ...]
    """What could not be said."""
    assumed: tuple[str, ...]
    """What has to hold for the recipe to do the same."""


def convert(
    path: str | Path, *, tool: str | None = None, method: str | None = None, processes: int = 1, out: Path | None = None
) -> Converted:
    """Reads a file of Axolotl, LLaMA-Factory, TRL or OpenRLHF and says the same as a recipe.

    Args:
        tool: "axolotl", "llamafactory", "trl" or "openrlhf"; None: told from the file's keys.
        method: what a file of TRL trains by, where neither its keys nor its name say it: "dpo".
        processes: how many the other tool was started with; its batch sizes are of one of them.
        out: where the recipe will stand; its paths are relative to that folder. None: where the command runs.

    Raises:
        SourceError: the file cannot be read.
        ConfigError: it is none of these tools' files, or one that trains nothing; or its values are refused here.
    """
    source = read_source(path, tool=tool, method=method)
    folders = Folders(source.path.resolve().parent, (out or Path()).resolve().parent if out else Path.cwd())
    draft = _read(source, folders, processes)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.path.stem).strip("-.") or "converted"
    _settle(draft, name, source)
    draft.finish()
    text = recipe_text(draft, source.path.name, name)
    return Converted(draft.tool, text, draft.said, draft.idle, tuple(draft.missed), tuple(draft.assumed))


def _read(source: Source, folders: Folders, processes: int) -> Draft:
    try:
        return source.kind.read(source.document, folders, processes, source.method)
    except PosttrainError as error:
        error.where = error.where or source.path
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # The boundary: a list where the tool has a number, a text where it has a group.
        raise ConfigError(
            f"a value is of another kind than {source.kind.name} takes there",
            where=source.path,
            found=f"{type(error).__name__}: {error}",
            remedy=f"mend the file until {source.kind.name} itself reads it",
        ) from error


def _settle(draft: Draft, name: str, source: Source) -> None:
    """Takes out what posttrain refuses, and lists it, until the recipe is one that it reads.

    Files are not looked for: they may lie elsewhere. What no single key of the file stands for is an error.
    """
    while True:
        document: dict[str, Any] = document_of(draft, name)
        try:
            Recipe.model_validate(document)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            context = detail.get("ctx", {})
            steps = [str(step) for step in (*detail["loc"], *context.get("path", ()))]
            refused = max((key for key in draft.lines if _is_within(key, steps)), key=len, default=None)
            if refused is None or refused in REQUIRED:
                found = explain(error, Recipe, document, "the recipe")
                raise ConfigError(
                    f"a value of {draft.tool}'s file is refused here\n\n{found}\n",
                    where=source.path,
                    remedy="change it in the file, and convert it again",
                ) from None
            _take_out(draft, refused, detail["msg"], context)
        else:
            return


REQUIRED = ("/model", "data", "rewards", "teacher", "losses")
"""Without these there is no recipe."""


def _is_within(key: str, steps: Sequence[str]) -> bool:
    """Whether a line is what an error points at: the words of its key, in this order, among the steps of the place."""
    rest = iter(steps)
    return all(word in rest for word in key.lstrip("/").split("."))


def _take_out(draft: Draft, refused: str, message: str, context: Mapping[str, Any]) -> None:
    line = draft.lines.pop(refused)
    keys = [key for key, here in draft.said.items() if here == refused]
    why = str(context.get("problem") or message)
    remedy = str(context.get("remedy") or f"see `{refused.lstrip('/')}` in docs/recipes.md")
    for key in keys or [f"{refused}: {line.value}"]:
        draft.miss(key, f"`{refused.lstrip('/')}: {line.value}` is refused: {why}", remedy)
