"""Tables of a recipe's keys, from its records: what may be written, the default, the meaning.

table(SFT)                      # | key | value | default | meaning |
group("encoding", SFTEncoding)  # the same under a title, with what the record says of itself
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from posttrain.config import repairs, settings
from posttrain.config.explain import fields_of, records_in, tag_of
from posttrain.config.meanings import meaning_of


def kinds(key: str, annotation: Any) -> list[str]:
    """A section for every record of a union."""
    return [
        part
        for record in records_in(annotation)
        for part in group(f"{key}: {{kind: {tag_of(record)}}}", record, ("kind",))
    ]


def group(title: str, record: type[BaseModel], leave_out: tuple[str, ...] = ()) -> list[str]:
    return [f"### `{title}`\n", f"{inspect.cleandoc(record.__doc__ or '')}\n", table(record, leave_out)]


def groups(record: type[BaseModel]) -> Iterator[str]:
    """A section for each group of keys in a record; `held_out` and `keep` are groups like `data`."""
    # A key of one kind is titled by its name, a key of several by name and kind.
    for name, option in fields_of(record).items():
        records = list(records_in(option.annotation)) if name not in ("held_out", "keep") else []
        for inner in records:
            chosen = f"{name}: {{kind: {tag_of(inner)}}}" if len(records) > 1 else name
            yield from group(chosen, inner, ("kind",) if len(records) > 1 else ())
            if inner is settings.Data:  # the groups inside the one group that every stage has
                yield from group("data: {sources: [...]}", settings.Source, tuple(fields_of(settings.ReadSettings)))
                yield from group(f"{name}: {{repairs: {{...}}}}", repairs.RepairSettings)


def table(record: type[BaseModel], leave_out: tuple[str, ...] = ()) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, option in fields_of(record).items():
        if name not in leave_out:
            lines.append(f"| `{name}` | {values(option)} | {default(option)} | {cell(meaning_of(record, name))} |")
    return "\n".join(lines) + "\n"


def values(option: FieldInfo) -> str:
    """What may be written, in words: "a whole number >= 1, or null"."""
    limits = " and ".join(
        f"{sign} {limit:.10g}"
        for item in option.metadata
        for sign, key in ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt"))
        if (limit := getattr(item, key, None)) is not None
    )
    # "null" last, whatever its place in the annotation: "a number >= 0, or null".
    words = list(dict.fromkeys(_kinds(option.annotation)))
    null = "null" in words
    text = " or ".join(word for word in words if word != "null")
    return cell(text + (f" {limits}" if limits else "") + (", or null" if null else ""))


def _kinds(annotation: Any) -> Iterator[str]:
    """The kinds of value that an annotation admits."""
    simple = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in simple:
        yield simple[annotation]
    elif origin is Annotated:
        yield from _kinds(arguments[0])
    elif origin is Literal:
        yield from (f"`{argument}`" for argument in arguments)
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _kinds(argument)
    elif origin is tuple:
        yield (
            "a list of groups"
            if list(records_in(arguments[0]))
            else f"a list of {next(_kinds(arguments[0])).removeprefix('a ')}s"
        )
    elif annotation is settings.Data:
        yield "a path, a list of paths, or a group"
    elif origin is dict:
        yield "names and their values"
    else:
        yield "a group"


def default(option: FieldInfo) -> str:
    if option.is_required():
        return "required"
    if option.default_factory is not None:  # it depends on other keys, and the meaning says how
        return ""
    if isinstance(option.default, BaseModel):
        changed = option.default.model_dump(exclude_unset=True)
        return f"`{plain(changed)}`" if changed else ""
    if option.default in ((), ""):
        return ""
    return f"`{plain(option.default)}`".replace("\n", "\\n")


def plain(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(plain(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
