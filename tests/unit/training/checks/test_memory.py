"""Rows in memory: read like any file's, trained on, and refused by name where they are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import posttrain as pt
from posttrain.data.recast import read_as
from posttrain.data.sources.memory import json_value
from posttrain.errors import ConfigError, PosttrainError, RowError
from posttrain.types import Comparison, Feedback, RowRef, Task

ROWS = [{"prompt": f"{n} + 1?", "completion": str(n + 1), "id": n} for n in range(3)]
PAIRS = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(3)]


def forms(rows: list[dict[str, Any]]) -> dict[str, Any]:
    table = pa.Table.from_pylist(rows)
    return {
        "list": rows,
        "tuple": tuple(rows),
        "generator": (row for row in rows),
        "DataFrame": pd.DataFrame(rows),
        "Dataset": datasets.Dataset.from_list(rows),
        "IterableDataset": datasets.Dataset.from_list(rows).to_iterable_dataset(),
        "Table": table,
        "RecordBatch": table.to_batches()[0],
    }


@pytest.mark.parametrize("form", forms(ROWS))
def test_every_form_is_read_twice_like_a_file(form: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    examples = pt.read(forms(ROWS)[form])
    assert [example.messages for example in examples] == [example.messages for example in pt.read(path)]  # type: ignore[union-attr]
    assert list(examples) == list(examples) and len(examples) == 3
    assert next(iter(examples)).row == RowRef(f"rows in memory ({form})", 1)
    assert examples.counts.unused_columns == {"id"}
    assert examples.fingerprint == pt.read(ROWS).fingerprint != pt.read(ROWS[:2]).fingerprint


def test_views_of_a_data_set_are_what_they_show() -> None:
    whole = datasets.Dataset.from_list(ROWS)
    assert [example.messages[1].content for example in pt.read(whole.select([2, 0]))] == ["3", "1"]  # type: ignore[union-attr]
    assert len(pt.read(whole.with_format("numpy"))) == 3
    frame = pd.DataFrame(ROWS, index=[7, 8, 9])
    assert len(pt.read(frame[frame.id > 0])) == 2


def test_several_of_them_and_files_in_one_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n")
    examples = pt.read([path, pd.DataFrame(ROWS), pd.DataFrame(ROWS[:1])])
    assert len(examples) == 5
    assert pt.read(file for file in [path]).counts.kept == 1


def test_options_and_errors_are_those_of_files() -> None:
    with pytest.raises(RowError, match=r"rows in memory \(list\), row 2: ") as caught:
        pt.read([ROWS[0], {"prompt": "a", "completion": ""}])
    assert caught.value.reason == "empty_response"
    with pytest.raises(RowError, match="row 2: the row is a string"):
        pt.read([ROWS[0], "b"])
    assert pt.read([{"q": "a", "a": "b"}], columns={"prompt": "q", "completion": "a"}).format == "prompt_completion"
    assert read_as((row for row in PAIRS), Feedback).kind is Comparison


NO_ROWS: list[tuple[Any, str]] = [
    (None, "found:    None"),
    (5, "a number: 5"),
    (b"rows.jsonl", "bytes"),
    (len, "builtin"),
    ({"prompt": "a", "completion": "b"}, r"\[data\]"),
    ({"prompt": ["a"], "completion": ["b"]}, r"zip\(data, row\)"),
    ([[{"role": "user", "content": "a"}]], '{"messages":'),
    ([1, 2], "item 1 of the data"),
    ([None], "item 1 of the data"),
    ([Task((), "4", RowRef("x", 1))], "only a stage that samples"),
    ([], "no data is named"),
    (pd.Series(["a"]), "neither a path nor rows"),
    (np.zeros(3), "neither a path nor rows"),
]


@pytest.mark.parametrize("number", range(len(NO_ROWS)))
@pytest.mark.parametrize("verb", ["read", "train"])
def test_what_is_no_data_is_refused_by_name(number: int, verb: str, tmp_path: Path) -> None:
    data, words = NO_ROWS[number]
    with pytest.raises(ConfigError, match=words):
        if verb == "read":
            pt.read(data)
        else:
            pt.train(pt.SFT(learning_rate=1e-3), "no-model", data, out=tmp_path / "run")


def test_remedies_for_columns_and_single_rows_work() -> None:
    columns = {"prompt": ["a", "b"], "completion": ["c", "d"]}
    with pytest.raises(ConfigError) as caught:
        pt.read(columns)
    advised = caught.value.remedy.split("`")[1]
    assert len(pt.read(eval(advised, {"data": columns, "dict": dict, "zip": zip}))) == 2
    with pytest.raises(ConfigError) as caught:
        pt.read(ROWS[0])
    assert len(pt.read(eval(caught.value.remedy.split("`")[1], {"data": ROWS[0]}))) == 1
    with (Path(__file__)).open() as file, pytest.raises(PosttrainError):
        pt.read(file)


def test_a_frame_with_a_column_twice_is_refused() -> None:
    frame = pd.DataFrame([["a", "b", "c"]], columns=["prompt", "completion", "prompt"])
    with pytest.raises(ConfigError, match="several columns named 'prompt'"):
        pt.read(frame)
    kept = frame.loc[:, ~frame.columns.duplicated()]
    assert len(pt.read(kept)) == 1


def test_numbers_and_arrays_become_those_of_json() -> None:
    value = {"a": np.array([{"b": np.int64(3)}], dtype=object), "c": np.float32(0.5), "d": pd.NaT, "e": (pd.NA, "x")}
    assert json_value(value) == {"a": [{"b": 3}], "c": 0.5, "d": None, "e": [None, "x"]}
    assert type(json_value(np.bool_(True))) is bool and json_value(np.str_("x")) == "x"
