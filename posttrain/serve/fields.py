"""A request's JSON object, read field by field: each is read, ignored by name, or refused by name.

    fields = Fields(body)
    fields.number("temperature", 1.0, least=0)
    fields.finish(IGNORED)          # refuses what nobody has read

Null is an absent field, as OpenAI's own clients send it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from posttrain.errors import did_you_mean, nearest
from posttrain.serve.refusals import RequestRefused, refused

SHOWN = 80
"""Characters of a client's value that an error repeats."""


def shown(value: Any) -> str:
    """A value as JSON, cut: shown({"a": 1}) -> '{"a": 1}'."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


class Fields:
    """The fields of one object.

    Args:
        place: what stands before a field's name in errors: "stream_options." for a nested object.
    """

    def __init__(self, values: Mapping[str, Any], place: str = ""):
        self._values, self._place = values, place
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def any(self, name: str) -> Any:
        """The value as it stands, or None."""
        self._read.add(name)
        return self._values.get(name)

    def param(self, name: str) -> str:
        """How errors name a field."""
        return f"{self._place}{name}"

    def wrong(self, name: str, expected: str, remedy: str | None = None) -> RequestRefused:
        """The error for a value of the wrong kind or range."""
        return refused(
            f"`{self.param(name)}` cannot be used as it is",
            param=self.param(name),
            found=shown(self._values.get(name)),
            expected=expected,
            remedy=remedy or f"correct `{self.param(name)}`, or leave it out",
        )

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, default: int | None, *, least: int | None = None, most: int | None = None) -> int | None:
        value = self.any(name)
        if value is None:
            return default
        # True is an int to Python, and 1.0 is what some languages write for 1.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not _within(value, least, most):
            raise self.wrong(name, f"a whole number{_bounds(least, most)}")
        return value

    def number(self, name: str, default: float, *, least: float | None = None, most: float | None = None) -> float:
        value = self.any(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # A whole number of 400 digits is JSON, and no float.
        if not is_number or abs(value) > 1e300 or not math.isfinite(value) or not _within(value, least, most):
            raise self.wrong(name, f"a number{_bounds(least, most)}")
        return float(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.any(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text, or a list of at most `most`; empty texts are refused."""
        value = self.any(name)
        texts = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or any(not isinstance(text, str) or not text for text in texts):
            raise self.wrong(name, "a text of at least one character, or a list of such texts")
        if len(texts) > most:
            raise self.wrong(name, f"at most {most} texts, and there are {len(texts)}")
        return tuple(texts)

    def must_be(self, name: str, allowed: Sequence[Any], why: str) -> None:
        """Refuses a field that is understood and not supported, unless it asks for what happens anyway."""
        value = self.any(name)
        # By type too: 1 == True, and a client that sends 1 for false means something else.
        if value is None or any(value == item and type(value) is type(item) for item in allowed):
            return
        raise refused(
            f"`{self.param(name)}` is not supported: {why}",
            param=self.param(name),
            found=shown(value),
            expected=" or ".join(shown(item) for item in allowed) or "no such field",
            remedy=f"leave `{self.param(name)}` out",
        )

    def finish(self, ignored: Collection[str] = ()) -> None:
        """Refuses fields that nobody has read: what a server drops in silence, its client believes to be obeyed."""
        for name, value in self._values.items():
            if name in self._read or name in ignored or value is None:
                continue
            known = sorted(self._read | set(ignored))
            raise refused(
                f"the field `{self.param(name)[:SHOWN]}` is not known here",
                param=self.param(name),
                found=shown(value),
                remedy=did_you_mean(
                    nearest(name[:SHOWN], known), "leave it out; docs/serve.md has the fields that there are"
                ),
                code="unknown_field",
            )


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    return f" of at least {least:g}" if least is not None else ""
