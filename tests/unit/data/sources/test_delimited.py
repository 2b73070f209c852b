"""CSV and TSV: what is a table, how its cells are read, and which rows are refused."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain.data.sources.delimited import delimited_rows, table_delimiter
from posttrain.data.sources.source import Broken
from posttrain.errors import EmptyDatasetError, RowError, SourceError
from posttrain.types import Demonstration, Feedback, Task


def rows_of(text: str | bytes, delimiter: str = ",", longest_row: int = 1 << 20) -> list[tuple[int, Any, str]]:
    content = text.encode() if isinstance(text, str) else text
    return list(delimited_rows(io.BytesIO(content), "rows.csv", delimiter, longest_row))


TABLES: dict[str, tuple[str, str, str | None]] = {
    "commas": ("prompt,completion\na,b\n", "rows", ","),
    "tabs": ("prompt\tcompletion\na, b\tc\n", "rows", "\t"),
    "semicolons": ("prompt;completion\na, b;c\n", "rows", ";"),
    "bars": ("prompt|completion\na|b\n", "rows", "|"),
    "a pandas index": (",prompt,completion\n0,a,b\n", "rows", ","),
    "a line break in a cell": ('prompt,completion\n"a\nb, c",d\n', "rows", ","),
    "one column, by the file's name": ("text\nThe fjord is deep.\n", "rows.csv", ","),
    "rows that do not agree, by the file's name": ("a;b\n1;2\n1;2;3\n", "rows.csv", ";"),
    "a tsv of one column": ("text\nOne, two.\n", "rows.tsv.gz", "\t"),
    "JSON under a table's name": ('{"prompt": "a", "completion": "b"}\n', "rows.csv", None),
    "one line": ("a, b\n", "rows.txt", None),
    "prose": ("Yes, it was cold, and dark, and late.\nThen, at last, they came, all.\n", "rows.txt", None),
    "a comment above JSON": ('a,b\n{"a": 1}\n', "rows.jsonl", None),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_told_from_its_first_rows(name: str) -> None:
    text, file, delimiter = TABLES[name]
    assert table_delimiter(text.encode(), file) == delimiter


def test_a_table_is_told_though_what_was_looked_at_ends_inside_a_cell() -> None:
    text = "prompt,completion\na,b\nc,d\n" + 'e,"' + "long\n" * 9000 + '"\n'
    assert table_delimiter(text.encode(), "rows") == ","


def test_quotes_line_breaks_marks_and_empty_cells() -> None:
    text = '\ufeff prompt ,completion,note\r\n"a, ""b""","line\r\ntwo",\r\n\r\n007,true, \r\n'
    assert rows_of(text) == [
        (1, {"prompt": 'a, "b"', "completion": "line\r\ntwo", "note": None}, "line 2"),
        (2, {"prompt": "007", "completion": "true", "note": " "}, "line 5"),
    ]


def test_a_cell_may_be_longer_than_the_standard_library_allows() -> None:
    ((_, row, _),) = rows_of("a,b\n" + "x" * 200_000 + ",y\n")
    assert len(row["a"]) == 200_000


def test_a_row_with_another_number_of_cells_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na,b\nc,d,e\nf,g\nh\n")
    with pytest.raises(RowError) as caught:
        pt.read(path)
    text = str(caught.value)
    assert "row 2 (line 3)" in text and "3 cells" in text and "2 columns" in text and "csv.writer" in text
    examples = pt.read(path, bad_rows="skip", rejected_path=tmp_path / "bad.jsonl")
    assert len(examples) == 2 and examples.counts.skipped == {"cell_count": 2}
    assert '"content": "c,d,e"' in (tmp_path / "bad.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a,b\n"x"y,z\n', "quotes of line 2"),
        ('a,b\n1,2\n"x,y\nz,w\n', "ends inside a quoted cell of the row that begins in line 3"),
        ("a,b,a\n1,2,3\n", "names 'a' more than once"),
        (b"a,b\n1,caf\xe9\n", "not valid UTF-8 at byte 9"),
        (b"a,b\n1,caf\xe9\n", "rows.csv > fixed.csv"),
        (b"a,b\r1,2\r", "line 1 holds a carriage return"),
        ("sep=;\na;b\n1;2\n", "remove the first line"),
        ('a,b\n"' + "x\n" * 200 + '",y\n', "begins in line 2 has more than"),
    ],
)
def test_what_cannot_be_told_apart_stops_the_reading(text: str | bytes, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        rows_of(text, longest_row=100)
    assert words in str(caught.value) and "rows.csv" in str(caught.value) and caught.value.remedy


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\n")
    with pytest.raises((SourceError, EmptyDatasetError), match="holds no rows"):
        pt.read(tmp_path / "rows.csv")


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) for _ in "ab"]),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([",", "\t", ";"]),
)
def test_what_csv_writes_is_read(cells: list[tuple[str, str]], delimiter: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *cells])
    rows = [row for _, row, _ in rows_of(file.getvalue(), delimiter)]
    assert rows == [{"a": a or None, "b": b or None} for a, b in cells]
    assert not any(isinstance(row, Broken) for row in rows)


# ---------------------------------------------------------------- as rows of every kind


def test_alpaca_tasks_feedback_and_scores_from_tables(tmp_path: Path) -> None:
    def read(name: str, text: str) -> Any:
        path = tmp_path / name
        content = text.encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        return list(pt.read(path))

    (alpaca,) = read("a.csv", "instruction,input,output\nAdd.,,4\n")
    assert isinstance(alpaca, Demonstration) and [turn.content for turn in alpaca.messages] == ["Add.", "4"]
    (task,) = read("t.tsv.gz", "question\tanswer\tlevel\n2 + 2?\t4\t2\n")
    assert isinstance(task, Task) and task.answer == "4" and task.metadata == {"level": "2"}
    judged = read("f.csv", "prompt,completion,label\na,b,true\na,c,0\na,d,FALSE\na,e,1\n")
    assert [row.good for row in judged if isinstance(row, Feedback)] == [True, False, False, True]
    (pair,) = read("p.csv", "prompt,chosen,rejected,score_chosen,score_rejected\na,b,c,4.5,2\n")
    assert pair.scores == (4.5, 2.0)
    (chat,) = read("c.csv", 'messages\n"[{""role"": ""user"", ""content"": ""a""}, '
                   '{""role"": ""assistant"", ""content"": ""b""}]"\n')  # fmt: skip
    assert [turn.content for turn in chat.messages] == ["a", "b"]
    with pytest.raises(RowError, match="'label' is 'maybe'"):
        read("bad.csv", "prompt,completion,label\na,b,maybe\n")


def test_a_table_beside_other_files_of_a_folder_is_not_read_and_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "metadata.csv").write_text("file,size\nrows.jsonl,1\n")
    examples = pt.read(tmp_path)
    assert len(examples) == 1
    assert any("'metadata.csv'" in note and "not read" in note for note in examples.counts.notes)
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("prompt,completion\na,b\n")
    assert len(pt.read(tmp_path)) == 1
