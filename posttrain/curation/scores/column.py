"""The score `column`: a number that the rows carry already, from whoever scored them before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from posttrain.config.scores import ColumnScore
from posttrain.curation.rows import Pool, Tools
from posttrain.data.row_fields import ABSENT, field_of
from posttrain.errors import RowError, unknown


def column_score(settings: ColumnScore, pool: Pool, tools: Tools) -> np.ndarray:
    """The column as numbers; NaN where a row lacks it, or has null or NaN there.

    Raises:
        RowError: a value that is no number; or no row has the column.
    """
    rows, column = pool.rows, settings.column
    score_R = np.full(len(rows), np.nan)
    with tools.progress.phase(f"score {settings.label}", total=len(pool), unit="rows") as phase:
        for row in phase.track(pool.kept.tolist()):
            value = rows.column([row], column)[0]
            score_R[row] = math.nan if value is None else _number(value, column, pool, row)
    if np.isnan(score_R[pool.kept]).all():
        if field_of(rows.row(int(pool.kept[0])), column) is not ABSENT:
            raise RowError(
                f"no row has a number in the column `{column}`",
                reason="wrong_shape",
                where=f"score {settings.label}",
                found=f"null or NaN in each of {len(pool):,} rows",
                expected="a number in some of them",
                remedy="name another column, or score the rows first",
            )
        raise unknown(
            "column",
            column,
            rows.columns(),
            error=RowError,
            problem=f"no row has a number in the column `{column}`",
            reason="wrong_shape",
            where=f"score {settings.label}",
            otherwise="name a column that holds numbers (a dot leads into an object: `meta.quality`)",
        )
    return score_R


def _number(value: Any, column: str, pool: Pool, row: int) -> float:
    # Numbers as text are what CSV and some exporters write; true and false are a verdict and no number.
    try:
        if not isinstance(value, bool | list | dict):
            number = float(value)
            if not math.isinf(number):
                return number
    except ValueError:
        pass
    raise RowError(
        f"the column `{column}` holds no number in this row",
        reason="wrong_shape",
        where=pool.rows.ref(row),
        found=repr(value)[:80],
        expected="a number, or null for a row that nobody scored",
        remedy="mend the row, or name another column",
    )
