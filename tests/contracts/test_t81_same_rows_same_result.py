"""T81: the same rows give the same ids, whatever they are stored as (ms-swift#10125, prime-rl PR#2942).

A data set that went through Arrow once has every key of every tool, filled with null; so has the JSONL that it writes.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

import posttrain as pt
from posttrain.data.encode import Encoder
from posttrain.types import Task
from tests.encoding import encoder_of, path_ids, shown


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


ROWS: list[dict[str, Any]] = [
    {
        "messages": [user("Oslo?"), call("weather", city="Oslo"), {"role": "tool", "content": "rain"}, answer],
        "tools": [tool("weather", city={"type": "string"})],
    }
    if number % 2
    else {
        "messages": [user("2 + 3?"), call("add", a=2, b=3), {"role": "tool", "content": "5"}, answer],
        "tools": [tool("add", a={"type": "integer"}, b={"type": "integer"})],
    }
    for number in range(4)
    for answer in [{"role": "assistant", "content": f"Done {number}."}]
]
PADDED = ("parquet", "arrow", "saved", "jsonl", "gzip", "list", "frame", "pickled", "table", "dataset", "stream")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoder_of("TOOLS")


def ids(encoder: Encoder, data: Any) -> list[list[int]]:
    return [path_ids(tree) for example in pt.read(data) for tree in encoder.demonstration(example)]  # type: ignore[arg-type]


def padded(form: str, rows: list[dict[str, Any]], folder: Path) -> Any:
    """The rows after Arrow has had them, in one of the forms in which they reach somebody."""
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(rows)
    path = folder / f"rows.{form}"
    if form == "parquet":
        whole.to_parquet(path)
    elif form == "arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, whole.data.table.schema) as writer:
            writer.write_table(whole.data.table)
    elif form == "saved":
        whole.save_to_disk(path)
    elif form == "jsonl":
        whole.to_json(path)
    elif form == "gzip":
        whole.to_json(path, compression="gzip")
    elif form == "pickled":
        whole.to_parquet(folder / "x.parquet")
        pd.read_parquet(folder / "x.parquet").to_pickle(path)
        return pd.read_pickle(path)  # nested values are numpy arrays
    else:
        return {
            "list": whole.to_list,
            "frame": whole.to_pandas,
            "table": lambda: whole.data.table,
            "dataset": lambda: whole.select(range(len(whole))),
            "stream": whole.to_iterable_dataset,
        }[form]()
    return path


@pytest.mark.parametrize("form", PADDED)
def test_padded_rows_are_the_rows(form: str, encoder: Encoder, tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    wanted = ids(encoder, plain)
    assert ids(encoder, ROWS) == wanted and ids(encoder, (row for row in ROWS)) == wanted
    assert ids(encoder, padded(form, ROWS, tmp_path)) == wanted


def test_padding_is_left_out_of_a_part_of_the_rows(encoder: Encoder, tmp_path: Path) -> None:
    """Of the rows of one tool, the keys of the other are null everywhere."""
    whole = datasets.Dataset.from_list(ROWS)
    whole.select([1, 3]).to_json(tmp_path / "part.jsonl")
    assert ids(encoder, tmp_path / "part.jsonl") == ids(encoder, [ROWS[1], ROWS[3]])
    assert ids(encoder, whole.select([1])) == ids(encoder, [ROWS[1]])


GENUINE: list[dict[str, Any]] = [
    {
        "messages": [user("Oslo?"), call("weather", city="Oslo", unit=None), {"role": "tool", "content": "rain"}, DONE],
        "tools": [tool("weather", unit={"type": "string", "default": None, "enum": ["C", None]})],
    }
    for DONE in [{"role": "assistant", "content": "Rain."}]
] * 2


@pytest.mark.parametrize("form", ["plain", "list", "parquet", "saved", "dataset"])
def test_a_null_that_somebody_wrote_stays(form: str, encoder: Encoder, tmp_path: Path) -> None:
    """Every row has it, so no other row's key can have padded it: Arrow's type of it is null."""
    data: Any = GENUINE
    if form == "plain":
        data = tmp_path / "plain.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in GENUINE))
    elif form != "list":
        data = padded(form, GENUINE, tmp_path)
    (tree, *_) = [tree for example in pt.read(data) for tree in encoder.demonstration(example)]  # type: ignore[arg-type]
    text = shown(encoder, tree)
    assert '"unit": null' in text and '"default": null' in text and '["C", null]' in text


def test_nulls_of_a_file_that_was_written_as_it_is_stay(tmp_path: Path) -> None:
    """One call says null where another says "C"; that turns without calls have no `tool_calls` shows who wrote it."""
    rows = [
        {
            "messages": [
                user("Oslo?"),
                call("weather", city="Oslo", unit=unit),
                {"role": "tool", "content": "rain"},
                done,
            ]
        }
        for unit in (None, "C")
        for done in [{"role": "assistant", "content": "Rain."}]
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for data in (rows, tmp_path / "rows.jsonl"):
        said = [example.messages[1].tool_calls[0]["function"]["arguments"]["unit"] for example in pt.read(data)]  # type: ignore[union-attr]
        assert said == [None, "C"]


def test_a_null_in_a_completion_alone_stays() -> None:
    row = {"prompt": "Oslo?", "completion": [call("weather", city="Oslo", unit=None)]}
    (example,) = pt.read([row])
    assert example.messages[-1].tool_calls[0]["function"]["arguments"] == {"city": "Oslo", "unit": None}  # type: ignore[union-attr]


def test_missing_values_and_floats_of_tables_are_those_of_json(tmp_path: Path) -> None:
    rows = [
        {"prompt": "6 * 7?", "answer": 42, "system": None, "level": 2, "choices": [41, 42]},
        {"prompt": "1 / 2?", "answer": 0.5, "system": "Be brief.", "level": None, "choices": [1, 0.5]},
    ]
    frame = pd.DataFrame(rows)  # answer and level are floats there, and `system` may hold NaN
    frame.loc[0, "system"] = float("nan")
    frame.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(frame.to_dict("records")))  # NaN, as Python writes it
    wanted = list(pt.read(rows))
    for data in (frame, tmp_path / "rows.parquet", tmp_path / "rows.json", datasets.Dataset.from_pandas(frame)):
        found = list(pt.read(data))
        for one, other in zip(found, wanted, strict=True):
            assert isinstance(one, Task) and isinstance(other, Task)
            assert (one.prompt, one.answer, one.metadata) == (other.prompt, other.answer, other.metadata)
            assert repr(one.metadata) == repr(other.metadata)
    assert [task.answer for task in wanted if isinstance(task, Task)] == ["42", "0.5"]
