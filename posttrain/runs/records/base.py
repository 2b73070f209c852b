"""What every record of a run folder can do: be written as JSON, and be read from whatever JSON there is.

    @dataclass(frozen=True, slots=True)
    class Piece(Record):
        '''Piece("I am Pia.", trained=True)'''

        text: str
        trained: bool | None

    Piece("I am Pia.", True).to_json()      # {"text": "I am Pia.", "trained": True}
    Piece.from_json({"text": "I am Pia."})  # Piece("I am Pia.", trained=None)

The annotation of a field says how its key is read. A missing or odd value is None, of text without `| None` "", of a
sequence or mapping an empty one; an item of a sequence or mapping that cannot be read is dropped, unless its type
allows None: then it keeps its place. A key that no field names goes to the field marked `other_keys()`, or is ignored
where there is none, so that a line of a newer version is read for what is known of it.

A field without a default is always written, also as null; one with `optional_key()` is left out while it is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from posttrain.runs.values import as_finite, as_flag, as_list, as_mapping, as_number, as_text, as_whole

Reader = Callable[[object], Any]

Exact = Annotated[float, as_finite]
"""A measurement that must come back as it was written, however large: a loss of 1e200 is no gap."""


class Record:
    """Base of every record; the subclasses are frozen dataclasses."""

    __slots__ = ()

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def from_json(cls, content: object) -> Self:
        """The record of a JSON object; of anything else one in which everything is missing. Never raises."""
        # Key by key: one odd value, of a hand that edited the file say, must not cost the others.
        found = as_mapping(content)
        plan = _plan(cls)
        values = {name: reader(found.get(name)) for name, reader in plan.readers.items()}
        if plan.others is not None:
            values[plan.others] = plan.read_others({key: found[key] for key in found if key not in plan.readers})
        return cls(**values)

    @classmethod
    def parse(cls, content: object) -> Self | None:
        """None where there is no object at all."""
        return cls.from_json(content) if isinstance(content, dict) else None

    def to_json(self) -> dict[str, Any]:
        """The record as it is written; its keys stand in the order of its fields."""
        plan = _plan(type(self))
        content: dict[str, Any] = {}
        for name in plan.names:
            value = getattr(self, name)
            if name == plan.others:
                content.update(_plain(value))
            elif value is not None or name not in plan.optional:
                content[name] = _plain(value)
        return content


class LogLine(Record):
    """A line of a file that grows while the stage runs; FILE is its name in the stage's folder."""

    __slots__ = ()
    FILE: ClassVar[str]


class WholeFile(Record):
    """A whole file, replaced as often as it changes; FILE is its name in the folder of the stage or the run."""

    __slots__ = ()
    FILE: ClassVar[str]


def optional_key() -> Any:
    """A field whose key is left out of the file while its value is None."""
    return field(default=None, metadata={"optional": True})


def other_keys() -> Any:
    """The field, a mapping, that takes every key which no other field names."""
    return field(default_factory=dict, metadata={"others": True})


def keys_of(record: type[Record]) -> dict[str, Any]:
    """The keys that a record names, with their annotations."""
    hints = get_type_hints(record, include_extras=True)
    return {key.name: hints[key.name] for key in fields(record) if not key.metadata.get("others")}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


# ---------------------------------------------------------------- from annotations to readers


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one kind of record is read and written; made once a kind, since a log has thousands of lines of it."""

    names: tuple[str, ...]
    readers: Mapping[str, Reader]
    optional: frozenset[str]
    others: str | None
    read_others: Reader


def _make_plan(record: type[Record]) -> _Plan:
    hints = get_type_hints(record, include_extras=True)
    own = fields(record)
    others = next((key.name for key in own if key.metadata.get("others")), None)
    return _Plan(
        names=tuple(key.name for key in own),
        readers={key.name: _reader(hints[key.name]) for key in own if key.name != others},
        optional=frozenset(key.name for key in own if key.metadata.get("optional")),
        others=others,
        read_others=_reader(hints[others]) if others else as_mapping,
    )


_plan: Callable[[Any], _Plan] = cache(_make_plan)


def _reader(kind: Any) -> Reader:
    """Of `float | None`, `tuple[Piece, ...]`, `Mapping[str, Figure]` and the like."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        reader: Reader = inner[1]
        return reader
    if origin in (Union, UnionType):
        (known,) = (option for option in inner if option is not NoneType)
        return _or_none(known)
    if origin is tuple:
        return _sequence(inner[0])
    if origin is Mapping:
        return _mapping(inner[1])
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_json
    return SCALARS[kind]


SCALARS: Mapping[Any, Reader] = {
    float: as_number,
    int: as_whole,
    bool: as_flag,
    str: as_text,
    Any: lambda value: value,
}
"""How a single value is read."""


def _or_none(kind: Any) -> Reader:
    """A value that may be missing: what is empty where it is missing stays apart from what is empty."""
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.parse
    reader, origin = _reader(kind), get_origin(kind)
    needed = dict if origin is Mapping else list if origin is tuple else object

    def read(value: object) -> Any:
        return reader(value) if value is not None and isinstance(value, needed) else None

    return read


def _sequence(kind: Any) -> Reader:
    reader, keep = _item(kind)
    return lambda value: tuple(item for item in map(reader, as_list(value)) if keep or item is not None)


def _mapping(kind: Any) -> Reader:
    reader, keep = _item(kind)

    def read(value: object) -> dict[str, Any]:
        read = {key: reader(item) for key, item in as_mapping(value).items()}
        return {key: item for key, item in read.items() if keep or item is not None}

    return read


def _item(kind: Any) -> tuple[Reader, bool]:
    """How an item is read, and whether one that cannot be keeps its place."""
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.parse, False
    # Columns beside each other (log-probs, advantages) are told apart by place alone, so a gap stays where it is.
    return _reader(kind), kind is Any or get_origin(kind) in (Union, UnionType)
