"""A column of the files that no format reads, by row: who judged it, or what kind of row it is.

For figures by category in the audit and in reward evaluation; the examples themselves do not carry such columns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from posttrain.data.padding import whole
from posttrain.data.read import Examples
from posttrain.data.row_fields import ABSENT, field_of
from posttrain.errors import DataError, unknown
from posttrain.types import RowRef

CATEGORY_COLUMNS = ("category", "source", "subset", "task", "domain")
"""Where data sets say what kind of row it is; the first one that the rows have is taken."""


def column_of(examples: Examples, column: str) -> dict[RowRef, str]:
    """{RowRef("pairs.jsonl", 1): "maths", ...} of the rows that have a value; reads the files once."""
    value_of_row: dict[RowRef, str] = {}
    for source in examples.sources:
        for number, row, _ in source.rows():
            value = field_of(row, column) if isinstance(row, dict) else None
            if value is not None and value is not ABSENT and value == value:  # NaN is a missing value
                value_of_row[RowRef(source.name, number)] = str(whole(value))
    return value_of_row


def first_unused(examples: Examples, names: Sequence[str]) -> str | None:
    """The first of `names` that the rows have and their format does not read."""
    unused = examples.counts.unused_columns
    return next((name for name in names if name in unused), None)


def categories_of(examples: Examples, column: str | None) -> dict[RowRef, str]:
    """What kind each row is, by a column that is named, or by one that has a usual name; {} where there is none.

    Raises:
        DataError: no row has the column that was named.
    """
    wanted = column or first_unused(examples, CATEGORY_COLUMNS)
    if wanted is None or (column is None and examples.is_remote):  # a second download for a guess is too much
        return {}
    category_of_row = column_of(examples, wanted)
    if not category_of_row:
        raise _no_such_column(wanted, examples.counts.unused_columns, [source.name for source in examples.sources])
    return category_of_row


def _no_such_column(column: str, columns: Collection[str], files: Sequence[str]) -> DataError:
    return unknown(
        "column",
        column,
        columns,
        error=DataError,
        problem=f"no row has the column `{column}`, which names the categories",
        where=", ".join(files[:3]),
        found=f"other columns: {', '.join(sorted(columns)) or 'none'}",
        expected="a column with the row's category",
        otherwise="name a column of the rows, or leave the option out",
    )
