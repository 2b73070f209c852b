"""So many rows of each category, language or source.

quota_sizes({"code": 0.5, "maths": 0.5}, there={"code": 10, "maths": 900}, budget=100, shortfall="fill")
# ({"code": 10, "maths": 90}, {"code": 40}): what each value gets, and what it was short of
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from posttrain.config.diversity import Quotas
from posttrain.curation.diversity.chosen import Choice
from posttrain.errors import DataError, unknown

OTHER = "other"
"""In `shares` and `counts`: all values that are not named."""
MISSING = "missing"
OVER_QUOTA, NO_QUOTA = "over_quota", "no_quota"


def quotas(
    values: Sequence[str], settings: Quotas, *, scores: np.ndarray | None, budget: int | None, order_R: np.ndarray
) -> Choice:
    """In each value the best rows by score, or the first of a drawn order.

    Args:
        values: what each row is, [R].
        order_R: the rows in an order drawn by seed.

    Raises:
        UnknownKeyError: a quota for a value that no row has.
        DataError: too few rows of one, with `shortfall: refuse`.
    """
    wanted = settings.counts or settings.shares
    named = [value if value in wanted else OTHER if OTHER in wanted else None for value in values]
    there = Counter(name for name in named if name is not None)
    absent = [name for name in wanted if name != OTHER and not there[name] and wanted[name]]
    if absent and settings.shortfall != "fill":
        raise unknown(
            settings.column or settings.by,
            absent[0],
            [name for name, _ in Counter(values).most_common(20)],
            problem=f"no row has the {settings.column or settings.by} `{absent[0]}`, which has a quota",
            otherwise="name one of those, or leave the quota out",
        )
    sizes, short = quota_sizes(wanted, there, budget, settings.shortfall, as_shares=bool(settings.shares))
    if short and settings.shortfall == "refuse":
        name, missing = next(iter(short.items()))
        raise DataError(
            f"`{name}` has too few rows for its quota",
            found=f"{there[name]:,} rows",
            expected=f"{there[name] + missing:,} rows",
            remedy="lower the quota, or write `shortfall: fewer` or `shortfall: fill`",
        )

    order = order_R
    if scores is not None:
        # Stable: of equal scores, and of those without one, the drawn order decides.
        order = order_R[np.argsort(-np.where(np.isnan(scores), -np.inf, scores)[order_R], kind="stable")]
    left = dict(sizes)
    kept, reasons = [], {}
    for row in order.tolist():
        name = named[row]
        if name is not None and left[name] > 0:
            left[name] -= 1
            kept.append(row)
        else:
            reasons[row] = NO_QUOTA if name is None else OVER_QUOTA
    return Choice(np.array(kept, dtype=np.int64), reasons, notes=_notes(there, sizes, short, settings.shortfall))


def quota_sizes(
    wanted: Mapping[str, float],
    there: Mapping[str, int],
    budget: int | None,
    shortfall: str,
    *,
    as_shares: bool,
) -> tuple[dict[str, int], dict[str, int]]:
    """(rows that each value gives, rows that it was short of, where it was)

    Shares become whole numbers by the largest remainder, so that they come to the budget exactly where the shares come
    to 1. With numbers of rows, a smaller budget shrinks all in proportion.
    """
    sizes = {name: int(value) for name, value in wanted.items()}
    if as_shares:
        assert budget is not None  # `Diversify` refuses shares without one
        sizes = _apportioned(wanted, round(budget * min(1.0, sum(wanted.values()))))
    elif budget is not None and sum(sizes.values()) > budget:
        sizes = _apportioned(wanted, budget)
    short = {name: size - there.get(name, 0) for name, size in sizes.items() if size > there.get(name, 0)}
    given = {name: min(size, there.get(name, 0)) for name, size in sizes.items()}
    missing = sum(short.values())
    while shortfall == "fill" and missing:
        # Round by round: what a value is given may be more than it has, and goes on to those that are left.
        room = {name: value for name, value in wanted.items() if value and there.get(name, 0) > given[name]}
        if not room:
            break
        added = _apportioned(room, missing)
        for name, more in added.items():
            taken = min(more, there[name] - given[name])
            given[name] += taken
            missing -= taken
    return given, short


def _apportioned(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """A whole number in proportion to weights, by the largest remainder (Hamilton); of equal ones the first named."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole if whole else 0.0 for name, weight in weights.items()}
    sizes = {name: math.floor(value) for name, value in exact.items()}
    largest = sorted(exact, key=lambda name: sizes[name] - exact[name])
    for name in largest[: (total - sum(sizes.values())) if whole else 0]:
        sizes[name] += 1
    return sizes


def _notes(
    there: Mapping[str, int], sizes: Mapping[str, int], short: Mapping[str, int], shortfall: str
) -> tuple[str, ...]:
    notes = [f"`{name}` is {missing:,} short: it has {there.get(name, 0):,} rows" for name, missing in short.items()]
    unfilled = sum(short.values()) - sum(max(0, sizes[name] - there.get(name, 0)) for name in sizes)
    if short and shortfall == "fill":
        notes.append("the other values that are named fill in, as far as they have rows")
    elif short:
        notes.append(f"{unfilled:,} rows fewer are kept than the quotas come to")
    return tuple(notes)
