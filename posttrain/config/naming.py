"""A run's name that carries settings: `name: mine-{dpo.beta}-{seed}` becomes mine-0.5-3, so that no run of a sweep
takes another one's folder.

A word in braces is a key as an override has it: a key of the recipe, or a stage's name and the keys inside it. It is
filled in after the overrides, with the value as it was typed; a default as Python writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from posttrain.config.explain import KeyPath, Places
from posttrain.config.schema import Recipe
from posttrain.config.yaml_text import parse
from posttrain.errors import ConfigError, unknown

BRACES = re.compile(r"\{([^{}]*)\}")
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
STAND_IN = "name"
"""Of a recipe whose own name is filled in once its values are known."""


def has_keys(name: object) -> bool:
    return isinstance(name, str) and "{" in name


def fill_name(template: str, recipe: Recipe, texts: Mapping[KeyPath, str], places: Places) -> str:
    """The name, with every key in braces replaced by its value.

    Args:
        recipe: as it was read, so that a default has a value too.
        texts: scalars of the file as they were typed, by their place; overrides are in `places`.

    Raises:
        UnknownKeyError: a key that the recipe does not have; names the nearest.
        ConfigError: a key that holds a group or a list; a name that is none for a folder.
    """
    document = recipe.model_dump(mode="json", by_alias=True)

    def filled(match: re.Match[str]) -> str:
        path, value = _find(match[1].strip(), template, document, places)
        typed = _typed(path, texts, places)
        # A value's slashes and blanks would make folders of the name, or break a command that it is pasted into.
        return UNSAFE.sub("-", _written(value) if typed is None else typed).strip("-")

    name = BRACES.sub(filled, template)
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            "`name` gives no name for a folder",
            where=places.of(("name",)),
            found=f"{template}, which becomes {name!r}",
            expected="letters, digits, . - and _, and keys in braces",
            example="name: mine-{dpo.beta}-{seed}",
            remedy="write other signs as -, and close every brace",
        )
    return name


def _find(key: str, template: str, document: Mapping[str, Any], places: Places) -> tuple[KeyPath, Any]:
    """The place of a key in the recipe, and its value."""
    first, *words = key.split(".")
    stages = {stage["name"]: index for index, stage in enumerate(document["stages"])}
    known = [name for name in document if name not in ("name", "stages")]
    path: list[str | int] = ["stages", stages[first]] if first in stages else [first]
    node: Any = document["stages"][stages[first]] if first in stages else document.get(first)
    if first not in stages and first not in known:
        raise _no_key(first, key, [*stages, *known], template, places)
    for word in words:
        step, inner = _step(node, word)
        if step is None:
            raise _no_key(word, key, _keys(node), template, places)
        path.append(step)
        node = inner
    if isinstance(node, (dict, list)):
        # Of its keys one that a name can hold: `data` begins with `path`, which is a list.
        inside = node.items() if isinstance(node, dict) else ()
        single = [name for name, value in inside if value is not None and not isinstance(value, (dict, list))]
        raise ConfigError(
            f"`{{{key}}}` in the recipe's name is no single value",
            where=places.of(("name",)),
            found="a list" if isinstance(node, list) else f"a group of keys: {', '.join(_keys(node))}",
            expected="a key that holds a number, a text, true or false",
            remedy=f"write `{{{key}.{single[0]}}}`, say" if single else "name another key",
        )
    return tuple(path), node


def _step(node: Any, word: str) -> tuple[str | int | None, Any]:
    if isinstance(node, dict) and word in node:
        return word, node[word]
    if isinstance(node, list):  # as in overrides: items by their name
        for index, item in enumerate(node):
            if isinstance(item, dict) and item.get("name") == word:
                return index, item
    return None, None


def _keys(node: Any) -> list[str]:
    if isinstance(node, dict):
        return list(node)
    return (
        [item["name"] for item in node if isinstance(item, dict) and "name" in item] if isinstance(node, list) else []
    )


def _no_key(word: str, key: str, known: list[str], template: str, places: Places) -> ConfigError:
    return unknown(
        "key",
        word,
        known,
        problem=f"`{{{key}}}` in the recipe's name is no key of it: there is no `{word}`",
        where=places.of(("name",)),
        found=template,
    )


def _typed(path: KeyPath, texts: Mapping[KeyPath, str], places: Places) -> str | None:
    """The value as it was typed, by the last override that set it or the file; None of a default."""
    for place, assignment in reversed(list(places.overrides.items())):
        if path[: len(place)] == place:
            # An override of the whole group took the file's values with it.
            return parse(assignment.partition("=")[2], f"override {assignment}").texts.get(path[len(place) :])
    return texts.get(path)


def _written(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
