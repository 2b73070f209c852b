"""Null entries that a table format made up, separated from those that somebody wrote; each source passes its rows here.

Arrow stores a list of objects as a struct with the union of their keys, so a key that one object lacks comes back as
null: `{"city": "Oslo", "unit": null}` in the arguments of a call would teach the model to write `null`. Such entries
are removed again. They travel: `Dataset.to_json`, `to_list` and a pandas cell hold them as a Parquet file does, so
what a file is called says nothing.

The rule, the same for every source:

- In a table that knows its types (Parquet, Arrow, a saved data set), a null inside a value is removed where the key's
  type is known, which is to say that some row had a value there. A key of the type `null` was null in every row, and
  nobody pads with that: it stays.
- Rows without types (JSON, lists of dicts, pandas) are taken for padded if in every place all objects have the same
  keys, over all rows, and some key inside a value is null in one object and not in another. Then every null inside a
  value is removed. Rows that were written by hand or by a program differ somewhere: only a turn that calls has
  `tool_calls`. Their nulls are what somebody wrote, as in `{"default": null}` of a schema, and stay.

A column that is null stays null, and a null in a list stays: no padding puts them there. Beside missing values a table
holds whole numbers as floats; inside the values of such a table 2.0 is 2 again, as the arguments of a call show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from posttrain.data.sources.source import Numbered

NestedKey = tuple[str, ...]


def without_nulls(value: Any) -> Any:
    """The value without the null entries of its objects: {"a": 1, "b": None} -> {"a": 1}; lists keep theirs."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def whole(value: Any) -> Any:
    """A whole number that a file holds as a float, as an integer: pandas and Arrow write 42 as 42.0 beside a null.

    whole(42.0) -> 42        whole(0.5) -> 0.5        whole([1.0, "a"]) -> [1, "a"]
    """
    if type(value) is float:
        # Beyond 2**53 a float stands for several whole numbers, and which one was meant nobody knows: it stays a float.
        return int(value) if value.is_integer() and abs(value) <= _EXACT else value
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return value


_EXACT = 2**53
"""Up to here a float holds every whole number exactly."""


def without_padding(value: Any) -> Any:
    """A column's value without what a table makes of it: null entries inside it, and whole numbers as floats."""
    # Not the column itself: 2.0 there may be a score, and null says that the row has no value.
    return whole(without_nulls(value)) if isinstance(value, dict | list) else value


def unpadded(rows: Iterable[Numbered], again: Callable[[], Iterable[Numbered]]) -> Iterator[Numbered]:
    """The rows without made-up nulls; `again` gives them a second time, which only rows with such nulls cost."""
    # Decided once, at the first row with such a null, for all rows: reading them twice is what it costs, and a file
    # without such nulls pays nothing.
    padded: bool | None = None
    for number, row, note in rows:
        if padded is not False and row.__class__ is dict and _has_null_inside(row.values()):
            if padded is None:
                padded = is_padded(value for _, value, _ in again())
            if padded:
                row = {column: without_padding(value) for column, value in row.items()}
        yield number, row, note


def _has_null_inside(items: Iterable[Any]) -> bool:
    """Whether an object among these values, however deep, has a null; runs for every row, so it is written flat."""
    for item in items:
        # `__class__ is` and not isinstance, values() and not items(): this loop reads every value of every row.
        if item.__class__ is dict:
            inner = item.values()
            if None in inner or _has_null_inside(inner):
                return True
        elif item.__class__ is list and _has_null_inside(item):
            return True
    return False


def is_padded(rows: Iterable[Any]) -> bool:
    """Whether the rows look as if they had been through Arrow; reads no further than the first sign against it."""
    seen = _ObjectKeys()
    return all(seen.add(row, ()) for row in rows if isinstance(row, dict)) and seen.has_made_up


class _ObjectKeys:
    """The keys of the objects in each place, as long as those are the same everywhere."""

    def __init__(self) -> None:
        self._keys: dict[NestedKey, frozenset[str]] = {}
        self._null: set[NestedKey] = set()
        self._filled: set[NestedKey] = set()

    @property
    def has_made_up(self) -> bool:
        """Whether a key inside a value is null in one object and has a value in another."""
        # A key that is null in all objects is no padding: a table would not have known it.
        return any(len(place) > 1 and place in self._filled for place in self._null)

    def add(self, value: Any, place: NestedKey) -> bool:
        """False at the first object whose keys differ from those of another in its place."""
        if isinstance(value, dict):
            # Arrow gives every object of a place the union of all keys: one object with other keys, and the rows were
            # never in a table.
            keys = self._keys.setdefault(place, frozenset(value))
            if keys != value.keys():
                return False
            for key, item in value.items():
                (self._null if item is None else self._filled).add((*place, key))
            return all(self.add(item, (*place, key)) for key, item in value.items())
        if isinstance(value, list):
            return all(self.add(item, (*place, "[]")) for item in value)
        return True
