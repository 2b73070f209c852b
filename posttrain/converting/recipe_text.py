"""A draft as the text of a recipe: values with what they come from, and above them what could not be said."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.config.stages import STAGES
from posttrain.config.yaml_text import dump
from posttrain.converting.draft import Draft, Line

COLUMN = 44
"""Where comments beside values begin."""
WIDTH = 116
SHOWN = 60
"""Letters of a foreign value that are shown."""


def recipe_text(draft: Draft, source: str, name: str) -> str:
    """The whole file; `posttrain.config.load` reads it."""
    parts = [*_head(draft, source), "", "schema: 1", f"name: {name}"]
    recipe = {key.removeprefix("/"): line for key, line in draft.lines.items() if key.startswith("/")}
    parts += _entries(_nested(recipe), 0)
    stage = _nested({key: line for key, line in draft.lines.items() if not key.startswith("/")})
    order = list(STAGES[draft.method].model_fields)
    keys = sorted(stage, key=lambda key: order.index(key) if key in order else len(order))
    parts += ["stages:", f"  - method: {draft.method}"]
    parts += _entries({key: stage[key] for key in keys}, 4)
    return "\n".join(line.rstrip() for line in parts) + "\n"


def document_of(draft: Draft, name: str) -> dict[str, Any]:
    """The same as values, as a reader of the text would have them."""
    recipe = {key.removeprefix("/"): line for key, line in draft.lines.items() if key.startswith("/")}
    stage = {key: line for key, line in draft.lines.items() if not key.startswith("/")}
    stages = [{"method": draft.method, **_values(_nested(stage))}]
    return {"schema": 1, "name": name, **_values(_nested(recipe)), "stages": stages}


def shown(value: Any) -> str:
    """A foreign value in one line."""
    found = str(value).replace("\n", " ")
    return found if len(found) <= SHOWN else found[: SHOWN - 3] + "..."


def _head(draft: Draft, source: str) -> Iterator[str]:
    yield from _comment(
        f"From {source}, a file of {draft.tool}: {len(draft.said)} keys are said here, {len(draft.idle)} say nothing "
        f"here, {len(draft.missed)} could not be said. Comments beside values name the keys that they come from."
    )
    if draft.missed:
        yield "#"
        yield "# Could not be said:"
        for entry in draft.missed:
            value = "" if entry.value is None else f": {shown(entry.value)}"
            yield from _comment(f"- {entry.key}{value}", "  ")
            yield from _comment(f"{entry.why}. Remedy: {entry.remedy}", "    ")
    if draft.assumed:
        yield "#"
        yield "# Assumed:"
        for sentence in draft.assumed:
            yield from _comment(f"- {sentence}", "  ", "    ")
    groups: dict[str, list[str]] = {}
    for key, because in draft.idle.items():
        groups.setdefault(because, []).append(key)
    if groups:
        yield "#"
        yield "# Nothing to write for:"
        for because, keys in groups.items():
            yield from _comment(f"- {', '.join(keys)}: {because}", "  ", "    ")


def _comment(sentence: str, indent: str = "", further: str | None = None) -> Iterator[str]:
    rest = indent if further is None else further
    # What a file of somebody else holds must not end the comment and become a key.
    clean = " ".join(sentence.split())
    clean = "".join(letter if letter.isprintable() else "?" for letter in clean)
    yield from textwrap.wrap(clean, WIDTH, initial_indent=f"# {indent}", subsequent_indent=f"# {rest}")


Tree = dict[str, Any]
"""{"adapter": {"rank": Line(16)}}"""


def _nested(lines: Mapping[str, Line]) -> Tree:
    tree: Tree = {}
    for key, line in lines.items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = line
    return tree


def _values(tree: Tree) -> dict[str, Any]:
    return {key: node.value if isinstance(node, Line) else _values(node) for key, node in tree.items()}


def _entries(tree: Tree, indent: int) -> Iterator[str]:
    for key, node in tree.items():
        if not isinstance(node, Line):
            yield " " * indent + f"{key}:"
            yield from _entries(node, indent + 2)
            continue
        head, *rest = dump({key: node.value}).rstrip("\n").split("\n")
        head = " " * indent + head
        if node.comment:
            clean = " ".join(node.comment.split())
            # Never behind an open block: a `#` there would be part of the text.
            above = head.endswith(("|", ">", "|-", "|+", ">-"))
            if above or len(head) + len(clean) > WIDTH:
                yield from (" " * indent + line for line in _comment(clean))
            else:
                head = f"{head:<{COLUMN}}  # {clean}"
        yield head
        yield from (" " * indent + line for line in rest)
