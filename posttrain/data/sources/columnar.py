"""Parquet and Arrow files as streams of rows, a batch at a time.

Arrow stores a list of objects as a struct with the union of their keys, so a key that one object lacks comes back
as null. Inside a row's values such nulls are removed again, except where the key's type says that every row has null
there, which somebody wrote; see `padding.py`. A null column stays.

This module imports pyarrow only when such a file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.padding import whole
from posttrain.data.sources.source import Numbered
from posttrain.errors import SourceError
from posttrain.types import RowRef

BATCH_ROWS = 1024
"""Rows that are Python objects at a time; a batch of Arrow may be the whole file."""


def parquet_rows(path: Path, name: str) -> Iterator[Numbered]:
    """Rows of a Parquet file. Raises SourceError for one that is cut off or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from batches_rows(file.iter_batches(batch_size=BATCH_ROWS), name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(name, "Parquet", error) from error


def arrow_rows(path: Path, name: str) -> Iterator[Numbered]:
    """Rows of an Arrow (IPC, Feather) file or stream, memory-mapped."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            yield from batches_rows(map(_validated, _ipc_batches(file)), name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(name, "Arrow", error) from error


def _ipc_batches(file: Any) -> Iterator[Any]:
    import pyarrow as pa

    # Files have an index of their batches at the end; streams (as `save_to_disk` writes them) are read from the front.
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from pa.ipc.open_stream(file)


def _validated(batch: Any) -> Any:
    """The batch, if its buffers hold what it says; reading a damaged one unchecked can end the process."""
    import pyarrow as pa

    if batch.num_rows < 0:  # a damaged header
        raise pa.ArrowInvalid(f"a batch of {batch.num_rows} rows")
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        # A bad text is found again, with its row, when it is read; all else must be sound for that.
        for column in batch.columns:
            column.view(_as_bytes(column.type)).validate(full=True)
    return batch


def _as_bytes(kind: Any) -> Any:
    """The Arrow type with bytes in place of text: list<struct<a: string>> -> list<struct<a: binary>>."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(i).name, _as_bytes(kind.field(i).type)) for i in range(kind.num_fields)])
    return kind


def batches_rows(batches: Iterator[Any], name: str) -> Iterator[Numbered]:
    """Rows of Arrow record batches or tables, numbered through."""
    row = 0
    for batch in batches:
        cleaners = column_cleaners(batch.schema)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for value in _python_rows(batch.slice(start, BATCH_ROWS), row, name):
                row += 1
                value.update({column: cleaner(value[column]) for column, cleaner in cleaners.items()})
                yield row, value, ""


Cleaner = Callable[[Any], Any]


def column_cleaners(schema: Any) -> dict[str, Cleaner]:
    """For each column whose values Arrow changes, what turns them back into those that were written."""
    import pyarrow as pa

    # Plain columns are left alone: a float is a number, and not a whole number that Arrow made a float.
    nested = [field for field in schema if field.type.num_fields or pa.types.is_decimal(field.type)]
    cleaners = {field.name: cleaner_of(field.type) for field in nested}
    return {name: cleaner for name, cleaner in cleaners.items() if cleaner is not None}


def cleaner_of(kind: Any) -> Cleaner | None:
    """Leaves out the nulls that pad an Arrow type, and gives maps and decimals the form that JSON has for them."""
    import pyarrow as pa

    if pa.types.is_decimal(kind):
        return _from_decimal
    if pa.types.is_floating(kind):
        return whole  # inside a value alone: `column_cleaners` leaves float columns as they are
    if pa.types.is_map(kind):
        return _mapping
    if pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return _Struct(
            {field.name: cleaner_of(field.type) for field in fields},
            frozenset(field.name for field in fields if pa.types.is_null(field.type)),
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = cleaner_of(kind.value_type)
        return None if inner is None else _List(inner)
    return None


@dataclass(frozen=True, slots=True)
class _Struct:
    cleaners: Mapping[str, Cleaner | None]
    kept: frozenset[str]
    """Keys that are null in every row: nothing pads with them, so somebody wrote the null."""

    def __call__(self, value: Any) -> Any:
        if value is None:
            return None
        clean = self.cleaners
        return {
            key: item if (cleaner := clean.get(key)) is None else cleaner(item)
            for key, item in value.items()
            if item is not None or key in self.kept
        }


@dataclass(frozen=True, slots=True)
class _List:
    inner: Cleaner

    def __call__(self, value: Any) -> Any:
        return None if value is None else [self.inner(item) for item in value]


def _from_decimal(value: Any) -> Any:
    if value is None:
        return None
    return int(value) if value == value.to_integral_value() else float(value)


def _mapping(value: Any) -> Any:
    return None if value is None else dict(value)


def _python_rows(batch: Any, before: int, name: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        pass  # which row it is, only decoding them one by one can say
    for index in range(batch.num_rows):
        try:
            batch.slice(index, 1).to_pylist()
        except UnicodeDecodeError as error:
            raise SourceError(
                "a text of this row is not valid UTF-8",
                where=RowRef(name, before + index + 1),
                found=f"the byte 0x{error.object[error.start]:02X} at byte {error.start:,} of the text",
                expected="UTF-8",
                remedy="write the file again from its source; a column of raw bytes must not be declared a string",
            ) from error
    raise AssertionError("a batch that cannot be decoded has a row that cannot be decoded")


def _damaged(name: str, kind: str, error: Exception) -> SourceError:
    return SourceError(
        f"the {kind} file cannot be read",
        where=name,
        found=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
        expected=f"a whole {kind} file",
        remedy="the file was cut off or damaged, as by a broken download: fetch or write it again",
    )
