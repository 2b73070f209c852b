"""Keys inside a row that nothing reads, and repairs, noted while the row is read: nothing is done without a count.

The formats pass a `KeyNotes` down to whatever reads turns, parts, tools and calls; `RowReader` adds up what it took.

noted = KeyNotes()
noted.key("turn", "timestamp")
noted.take()        # {"turn.timestamp": 1}, and empty again
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

KNOWN_KEYS: Mapping[str, frozenset[str]] = {
    "tool call": frozenset({"id", "type", "function", "index", "name", "arguments"}),
    "tool": frozenset({"type", "function", "name", "description", "parameters", "strict", "return", "returns"}),
    "part": frozenset({"type", "text", "value", "reasoning", "thinking"}),
}
"""Place inside a row -> the keys that are read there; what a turn may say is in `messages.py`."""


class KeyNotes:
    """The keys of one row that nothing reads, and its repairs; `take` empties it for the next row."""

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}
        self._repairs: dict[str, int] = {}

    def repair(self, name: str) -> None:
        """Notes that a conversation was repaired; see `repairs.DONE`."""
        self._repairs[name] = self._repairs.get(name, 0) + 1

    def take_repairs(self) -> dict[str, int]:
        repairs = self._repairs
        if repairs:
            self._repairs = {}
        return repairs

    def key(self, place: str, key: str) -> None:
        name = f"{place}.{key}"
        self._keys[name] = self._keys.get(name, 0) + 1

    def others(self, place: str, value: Mapping[str, Any], known: Iterable[str] = ()) -> None:
        """Notes the keys of an object that are not known in its place; leaving out an empty value loses nothing."""
        known = known or KNOWN_KEYS[place]
        # Empty values are passed over: exports write every key of their schema into every object.
        for key, item in value.items():
            if key not in known and is_filled(item):
                self.key(place, key)

    def take(self) -> dict[str, int]:
        keys = self._keys  # nearly always empty, and then it is used again: this runs for every row
        if keys:
            self._keys = {}
        return keys


def is_filled(value: Any) -> bool:
    """Whether leaving this value out loses anything; a null, an empty text and an empty list do not."""
    return value is not None and not (isinstance(value, str | list | tuple | Mapping) and not value)
