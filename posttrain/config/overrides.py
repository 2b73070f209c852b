"""Settings from the command line: `dpo.beta=0.2`, `seed=3`, `evaluate.suites.identity.sampling.temperature=0.7`.

The first word is a stage's name or a key of the recipe; items of a list are named by their `name`. Values are YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.config.explain import KeyPath, fields_of, foreign_key, misplaced_key, records_in, tag_of
from posttrain.config.schema import Recipe
from posttrain.config.yaml_text import split_assignment
from posttrain.errors import ConfigError, UnknownKeyError, unknown

SHORT_FORMS = ("data", "held_out", "keep")
"""Groups that a path may stand for; an override of one of their keys writes the path out first."""


def apply(recipe: dict[str, Any], assignments: Sequence[str]) -> dict[KeyPath, str]:
    """Change `recipe` in place; returns which value came from which assignment.

    Raises:
        ConfigError: an assignment without `=`, or into something that is not a group of keys.
        UnknownKeyError: no stage and no key of that name; says the nearest.
    """
    origins: dict[KeyPath, str] = {}
    for assignment in assignments:
        source = f"override {assignment}"
        words, value = split_assignment(assignment, source, example="dpo.beta=0.2", whose="the recipe or STAGE.KEY")
        origins[_set(recipe, words, value, assignment)] = assignment
    return origins


def _set(recipe: dict[str, Any], words: list[str], value: Any, assignment: str) -> KeyPath:
    path = list(_start(recipe, words[0], assignment))
    node: Any = recipe
    for step in path[:-1]:
        node = node[step]
    for word in words[1:]:
        node = _enter(node, path[-1], assignment)
        path.append(_index(node, word, assignment) if isinstance(node, list) else word)
    node[path[-1]] = value
    return tuple(path)


def _start(recipe: dict[str, Any], word: str, assignment: str) -> KeyPath:
    keys = [option.alias or name for name, option in Recipe.model_fields.items()]
    # Keys of the recipe first; a stage of the same name is refused when the recipe is read.
    if word in keys:
        return (word,)
    stages = recipe.get("stages")
    names = [_name(stage) for stage in stages] if isinstance(stages, list) else []
    if word in names:
        return ("stages", names.index(word))
    known = [name for name in names if name is not None] + keys
    if isinstance(stages, list) and (advice := of_a_stage(word, assignment, stages)):
        raise UnknownKeyError(
            f"`{word}` is neither a stage nor a key of the recipe",
            where=f"override {assignment}",
            found=word,
            remedy=advice,
        )
    raise unknown(
        "stage or key",
        word,
        known,
        problem=f"`{word}` is neither a stage nor a key of the recipe",
        where=f"override {assignment}",
        found=word,
    )


def of_a_stage(word: str, assignment: str, stages: list[Any]) -> str | None:
    """What to write for `learning_rate=1e-5` or `save_steps=10`, which are a stage's keys or another tool's."""
    kinds = {tag_of(record): record for record in records_in(fields_of(Recipe)["stages"].annotation)}
    known = [(item, kinds.get(str(item.get("method")))) for item in stages if isinstance(item, dict)]
    for item, record in known:
        if record is not None and word in fields_of(record):
            return f"write `{_name(item)}.{assignment}`"
    for item, record in known:
        if record is None:
            continue
        around = (word, assignment.partition("=")[2], record, record, Recipe)
        if advice := foreign_key(*around) or misplaced_key(*around):
            head = "write `"
            return f"{head}{_name(item)}.{advice.removeprefix(head)}" if advice.startswith(head) else advice
    return None


def _name(item: Any) -> str | None:
    return (item.get("name") or item.get("method")) if isinstance(item, dict) else None


def _enter(node: Any, step: str | int, assignment: str) -> Any:
    """The group or list at `step`, made if there is none."""
    inner = node.get(step) if isinstance(node, dict) else node[step]
    # `data: pairs.jsonl` with `sft.data.limit=10`: the path stays, and the limit stands beside it.
    if step in SHORT_FORMS and isinstance(inner, (str, list)):
        inner = {"path": inner}
    if inner is None:
        inner = {}
    if not isinstance(inner, (dict, list)):
        raise ConfigError(
            f"`{step}` is a value, not a group of keys",
            where=f"override {assignment}",
            found=f"{step}: {inner}",
            remedy=f"set it as a whole: {step}={{...}}",
        )
    node[step] = inner
    return inner


def _index(items: list[Any], word: str, assignment: str) -> int:
    names = [_name(item) for item in items]
    if word in names:
        return names.index(word)
    # By number only where no item has that name: names survive an item that is put before them.
    if word.isdigit() and int(word) < len(items):
        return int(word)
    known = [name for name in names if name is not None]
    raise unknown(
        "item",
        word,
        known,
        problem=f"no item is named `{word}`",
        where=f"override {assignment}",
        found=word,
        expected=f"one of {', '.join(known)}" if known else "the number of an item, from 0",
    )
