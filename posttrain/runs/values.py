"""Values of the type that is needed, or nothing: what the records of a run folder are read by.

A folder may be torn, edited by hand or of another version, so that any key may hold anything. Nothing here raises: a
value of another type than its own counts as missing. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

LARGEST = 1e100
"""Beyond every type that a model computes in but float64; NaN is not below it either."""


def as_number(value: object) -> float | None:
    """A number that can be plotted, or None: NaN, infinities, text and booleans are no measurement."""
    number = as_finite(value)
    return number if number is not None and abs(number) <= LARGEST else None


def as_finite(value: object) -> float | None:
    """A finite number however large: what a program compares, bit for bit, with what it wrote."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def as_whole(value: object) -> int | None:
    """A whole number, or None; 3.0 is one."""
    number = as_number(value)
    return int(number) if number is not None and number == int(number) else None


def as_flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def as_text(value: object) -> str:
    """Text as it is, None as "", a conversation as "role: content" lines, everything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        if len(value) == 1:
            return as_text(value[0]["content"])
        return "\n".join(f"{as_text(turn.get('role'))}: {as_text(turn['content'])}" for turn in value)
    return json.dumps(value, ensure_ascii=False, default=str)


def as_mapping(value: object) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def missing_steps(steps: Iterable[float], last: int | None = None) -> str:
    """The steps from 1 to `last` (None: the largest there is) that are not in `steps`, in words; "" if none is missing.

    missing_steps([5, 6, 9]) -> "steps 1 to 4, 7 to 8"
    """
    there = {int(step) for step in steps}
    parts: list[str] = []
    begin = 1
    # Only the gaps are walked: a run may have a million steps.
    for step in [*sorted(step for step in there if step > 0), (max(there, default=0) if last is None else last) + 1]:
        if step > begin:
            parts.append(f"{begin} to {step - 1}" if step - 1 > begin else f"{begin}")
        begin = max(begin, step + 1)
    return f"step{'s' if len(parts) > 1 or 'to' in parts[0] else ''} {', '.join(parts)}" if parts else ""
