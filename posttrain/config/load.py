"""A recipe's file to a `Recipe`: read, override, validate, find its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import Field, ValidationError, create_model

from posttrain.arguments import checked_list, checked_path, checked_text
from posttrain.config import overrides as command_line
from posttrain.config.explain import Places, explain
from posttrain.config.naming import STAND_IN, fill_name, has_keys
from posttrain.config.paths import resolve_paths
from posttrain.config.schema import SCHEMA, Recipe
from posttrain.config.stages import STAGES
from posttrain.config.yaml_text import parse
from posttrain.errors import ConfigError
from posttrain.text_file import read_text

EXAMPLE = "{schema: 1, name: mine, model: embedded, stages: [{method: sft, data: sft.jsonl}]}"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's file.

    Args:
        overrides: settings that win over the file's, such as "dpo.beta=0.2" or "seed=3".

    Raises:
        SourceError: the file cannot be read.
        UnknownKeyError: keys that no option has, each with the nearest.
        ConfigError: any other mistake; several mistakes are shown together, each with its line.
    """
    path = checked_path("path", path, "recipe.yaml")
    overrides = _override_lines(overrides)  # before the file: parse_recipe comes to them later
    text = read_text(path, "the recipe")
    return parse_recipe(text, overrides, folder=path.resolve().parent, source=str(path), name=path.stem)


def parse_recipe(
    text: str,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    source: str = "recipe",
    name: str = "recipe",
) -> Recipe:
    """Read a recipe's text.

    Args:
        folder: what paths in the recipe are relative to; None: where the command runs.
        source: what errors call the recipe.
        name: the recipe's name if it has none of its own.
    """
    overrides = _override_lines(overrides)
    folder = None if folder is None else checked_path("folder", folder, "recipes")
    source, name = checked_text("source", source, "recipe.yaml"), checked_text("name", name, "mine")
    document = parse(checked_text("text", text, "schema: 1\n..."), source)
    raw = _group(document.value, source)
    # Said, not refused: a recipe without it is one of today, and stays readable when the keys change.
    notes = [] if "schema" in raw else [f"{source}: no `schema:`; read as schema {SCHEMA}"]
    raw.setdefault("name", name)
    # Overrides before validation, on the plain document: a mistake in one is reported like any other, with its own
    # place.
    places = Places(source, document.lines, command_line.apply(raw, overrides))
    template = raw["name"]
    # Keys in braces are filled in once every value is known, defaults included.
    filled = {**raw, "name": STAND_IN} if has_keys(template) else raw
    # The validator of all kinds of stage takes longer to build than a mistake should take to be shown.
    record = _of_kinds_used(raw)
    try:
        checked = record.model_validate(filled)
    except ValidationError as error:
        raise explain(error, record, raw, places) from None
    # What every caller knows is a `Recipe`; these values have passed its checks, which `record` inherits.
    recipe = Recipe.model_construct(checked.model_fields_set, **dict(checked))
    if has_keys(template):
        recipe = recipe.model_copy(update={"name": fill_name(template, recipe, document.texts, places)})
    recipe, assumed = resolve_paths(recipe, raw, folder or Path.cwd(), places)
    recipe._notes = (*notes, *assumed)
    return recipe


def _of_kinds_used(raw: dict[str, Any]) -> type[Recipe]:
    """A `Recipe` that knows only the kinds of stage that these stages name; all, where a name is none."""
    stages = raw.get("stages")
    named = [stage.get("method") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    methods = [method for method in named if isinstance(method, str) and method in STAGES]
    if not isinstance(stages, list) or not methods or len(methods) < len(stages):
        return Recipe
    kinds = tuple(STAGES[method] for method in dict.fromkeys(methods))
    union: Any = kinds[0] if len(kinds) == 1 else Annotated[Union[kinds], Field(discriminator="method")]  # noqa: UP007
    fields: Any = {"stages": (tuple[union, ...], Recipe.model_fields["stages"])}
    return create_model("Recipe", __base__=Recipe, **fields)


def _override_lines(overrides: Any) -> list[str]:
    lines = checked_list("overrides", overrides, of="settings", example='["dpo.beta=0.2"]')
    return [checked_text("overrides", line, "dpo.beta=0.2") for line in lines]


def _group(value: Any, source: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return dict(value)
    written = "nothing" if value is None else "a list" if isinstance(value, list) else repr(value)
    raise ConfigError(
        "the recipe is empty" if value is None else "a recipe is a group of keys",
        where=source,
        found=written,
        expected="keys such as model and stages",
        example=EXAMPLE,
        remedy="write the keys at the left margin; docs/recipes.md shows them all",
    )
