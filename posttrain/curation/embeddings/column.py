"""Vectors that the rows carry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from posttrain.curation.diversity.vectors import unit_length
from posttrain.data.refusals import named_type, shown
from posttrain.errors import RowError, did_you_mean, nearest
from posttrain.types import RowRef

_AT_ONCE = 1024


def column_vectors(
    values: Iterable[tuple[RowRef, Any]], column: str, columns: Sequence[str] = ()
) -> Iterator[np.ndarray]:
    """Blocks of vectors of length 1, float32 [n, D].

    Args:
        values: what the column holds in each row; None where it is missing.
        columns: names that there are, for the error.

    Raises:
        RowError: no list of finite numbers, or one of another length than the first row's.
    """
    block: list[list[float]] = []
    dimensions: int | None = None
    for row, value in values:
        vector = _vector(row, value, column, columns)
        dimensions = dimensions or len(vector)
        if len(vector) != dimensions:
            problem = "has another length than the first row's"
            raise _wrong(row, column, problem, f"{len(vector)} numbers", f"{dimensions} numbers")
        block.append(vector)
        if len(block) == _AT_ONCE:
            yield unit_length(np.array(block, dtype=np.float64))
            block = []
    if block:
        yield unit_length(np.array(block, dtype=np.float64))


def _vector(row: RowRef, value: Any, column: str, columns: Sequence[str]) -> list[float]:
    expected = "a list of numbers such as [0.12, -0.4, 0.03]"
    if value is None:
        near = nearest(column, columns)
        raise RowError(
            f"the row has no embedding in `{column}`",
            reason="no_embedding",
            where=row,
            found=f"the columns {', '.join(columns)}" if columns else "nothing",
            expected=expected,
            remedy=did_you_mean(near, "name the column, or remove the rows without one"),
        )
    if not isinstance(value, list | tuple) or not value:
        raise _wrong(row, column, f"is {named_type(value)}", shown(value), expected)
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise _wrong(row, column, "holds what is no finite number", shown(number), expected)
    return [float(number) for number in value]


def _wrong(row: RowRef, column: str, problem: str, found: str, expected: str) -> RowError:
    return RowError(
        f"the embedding in `{column}` {problem}",
        reason="bad_embedding",
        where=row,
        found=found,
        expected=expected,
        remedy="compute the row's embedding again, or remove the row",
    )
