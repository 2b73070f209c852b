"""Rows that are in memory already: lists and generators of dicts, pandas, `datasets`, Arrow tables.

memory_source([{"prompt": "2 + 2?", "completion": "4"}], "train")    # a source like any file's
data_items(["a.jsonl", pd.DataFrame(...)])                            # a path, and a source

None of these packages is imported here: whoever passes a DataFrame has pandas. What is neither a path nor rows is
refused by name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from posttrain.data.padding import unpadded, whole
from posttrain.data.refusals import named_type, quoted, shown
from posttrain.data.sources.columnar import BATCH_ROWS, batches_rows
from posttrain.data.sources.source import DataSource, Numbered
from posttrain.data.sources.splits import Split, choose_split, split_of
from posttrain.data.write import json_line
from posttrain.errors import ConfigError

_MISSING = ("NAType", "NaTType")
"""What pandas puts where a value is missing, beside NaN and None."""


@dataclass(frozen=True, slots=True)
class MemorySource:
    """MemorySource("rows in memory (list)", rows=[{"prompt": ..., "completion": ...}])."""

    name: str
    data: Any = field(repr=False)
    """A sequence of rows, a DataFrame, a data set or a table."""

    def rows(self) -> Iterator[Numbered]:
        kind = _table_kind(self.data)
        if kind == "table":
            return batches_rows(iter([self.data]), self.name)
        if kind == "dataset" and hasattr(self.data, "with_format") and hasattr(self.data, "num_rows"):
            return batches_rows(self.data.with_format("arrow").iter(batch_size=BATCH_ROWS), self.name)
        return unpadded(self._plain(), self._plain)

    def _plain(self) -> Iterator[Numbered]:
        is_frame = _table_kind(self.data) == "frame"
        for number, row in enumerate(_records(self.data) if is_frame else self.data, 1):
            record = json_value(row)
            # A frame holds whole numbers as floats beside a missing one, also inside the objects of a cell.
            if is_frame:
                record = {key: whole(item) if isinstance(item, dict | list) else item for key, item in record.items()}
            yield number, record, ""

    def fingerprint(self) -> str:
        # By what the rows say, not by the object: the same rows built anew find their encoded store again.
        digest = hashlib.sha256()
        for _, row, _ in self.rows():
            digest.update(json_line(row if isinstance(row, dict) else {"": row}).encode("utf-8", "surrogatepass"))
            digest.update(b"\n")
        return digest.hexdigest()


def memory_source(item: Any, split: str) -> DataSource:
    """The source of one item of `data_items` that is no path. Raises SourceError for a split that is not there."""
    if isinstance(item, MemorySource):
        if _table_kind(item.data) != "splits":
            return item
        name, item = item.name, item.data
    else:
        name = f"rows in memory ({type(item).__name__})"
    if _table_kind(item) == "splits":
        groups = {part: split_of(Path(part, "x")) for part in item}
        splits = [Split(part, known.group if known else None) for part, known in groups.items()]
        (part,) = choose_split(splits, split, name)
        return MemorySource(f"{name}, {part}", item[part])
    return MemorySource(name, item)


def data_items(data: Any) -> list[str | Path | MemorySource]:
    """What the user passed as `data`, item by item: paths, or sources of rows in memory.

    A generator is read into a list, so that its rows can be read again.

    Raises:
        ConfigError: it is neither; or it is empty.
    """
    if isinstance(data, str | Path | MemorySource):
        return [data]
    if isinstance(data, os.PathLike):
        return [Path(os.fspath(data))]
    if _table_kind(data) is not None:
        return [MemorySource(f"rows in memory ({type(data).__name__})", data)]
    # A Series or an array of numbers can be iterated, and its items are no rows.
    no_rows = isinstance(data, Mapping | bytes) or _package_of(data) in ("pandas", "numpy")
    if data is None or no_rows or not isinstance(data, Iterable):
        raise _no_data(data)
    items = list(data)
    if not items:
        raise ConfigError("no data is named", remedy="give a path, a glob, a folder, a hub id, rows or a list of these")
    # One mapping among them, and the list is rows: a wrong item in it is then a bad row, with its number.
    if any(isinstance(item, Mapping) and _table_kind(item) is None for item in items):
        return [MemorySource(f"rows in memory ({type(data).__name__})", items)]
    return [_item(item, number, len(items)) for number, item in enumerate(items, 1)]


def _item(item: Any, number: int, count: int) -> str | Path | MemorySource:
    if isinstance(item, str | Path | MemorySource):
        return item
    if isinstance(item, os.PathLike):
        return Path(os.fspath(item))
    if _table_kind(item) is not None:
        apart = f", item {number}" if count > 1 else ""
        return MemorySource(f"rows in memory ({type(item).__name__}{apart})", item)
    raise _no_data(item, f"item {number} of the data")


def _table_kind(data: Any) -> str | None:
    """The kind of table of another package, without importing it; None for what is no table."""
    # By the module of its class: importing pandas to ask would take a second, and it may not be installed.
    package, name = _package_of(data), type(data).__name__
    if package == "datasets":
        return "splits" if isinstance(data, Mapping) else "dataset"
    if package == "pyarrow":
        return "table" if name in ("Table", "RecordBatch") else None
    if package == "pandas" or any(base.__module__.startswith("pandas.") for base in type(data).__mro__):
        return "frame" if hasattr(data, "iloc") and hasattr(data, "columns") else None
    if package == "polars" and hasattr(data, "to_dicts"):
        return "frame"
    return None


def _package_of(data: Any) -> str:
    return type(data).__module__.partition(".")[0]


def _records(frame: Any) -> Iterator[dict[str, Any]]:
    if hasattr(frame, "to_dicts"):
        yield from frame.to_dicts()
        return
    columns = [str(column) for column in frame.columns]
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise ConfigError(
            f"the DataFrame has several columns named {quoted(repeated)}",
            found=quoted(columns),
            expected="each column once",
            remedy="rename or drop one of them: `frame.loc[:, ~frame.columns.duplicated()]` keeps the first",
        )
    # Column by column in slices: `iterrows` would turn whole numbers beside floats into floats, and is far slower.
    for start in range(0, len(frame), BATCH_ROWS):
        part = frame.iloc[start : start + BATCH_ROWS]
        for values in zip(*[part.iloc[:, place].tolist() for place in range(len(columns))], strict=True):
            yield dict(zip(columns, values, strict=True))


def json_value(value: Any) -> Any:
    """The value as a JSON file would hold it: lists for arrays, Python's numbers for numpy's, None for missing."""
    kind = type(value)
    if kind in (str, int, bool, float) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if kind.__name__ in _MISSING:
        return None
    # JSON has no decimals: a whole one is an integer there, another a float.
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return json_value(value.tolist())
    return value


def _no_data(data: Any, what: str = "the data") -> ConfigError:
    remedy = "give a path, a list of rows such as [{'prompt': '2 + 2?', 'completion': '4'}], a DataFrame or a Dataset"
    if isinstance(data, Mapping):
        columns = data and all(isinstance(value, Sequence) and not isinstance(value, str) for value in data.values())
        remedy = (
            "for columns, pass rows: `[dict(zip(data, row)) for row in zip(*data.values())]`"
            if columns
            else "for a single row, pass a list that holds it: `[data]`"
        )
    elif isinstance(data, list | tuple):
        remedy = 'a row is an object with columns: write each list of turns as {"messages": [...]}'
    elif _package_of(data) == "pandas":
        remedy = "pass the DataFrame with its columns, for example `series.to_frame('prompt')`"
    elif hasattr(data, "read") and isinstance(getattr(data, "name", None), str):
        remedy = "pass the file's path, not the open file: `data.name`"
    elif type(data).__module__ == "posttrain.types":
        remedy = (
            "pass the rows themselves, as `read` takes them, for example "
            "[{'prompt': '2 + 2?', 'completion': '4'}]; only a stage that samples takes a list of `Task`"
        )

    found = "None" if data is None else f"{named_type(data)}: {shown(data)}"
    return ConfigError(
        f"{what} is neither a path nor rows",
        found=found,
        expected="a path, glob, folder or hub id; a list or generator of dicts; a pandas DataFrame; a "
        "datasets.Dataset; or a list of these",
        remedy=remedy,
    )
