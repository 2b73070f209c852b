"""Files, globs, folders, hub ids to numbered rows; and what is said of files that cannot be read."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from posttrain.data import read
from posttrain.data.sources.files import FileSource, SavedDataset, combined_fingerprint, open_sources
from posttrain.data.sources.hub import HubSource
from posttrain.data.sources.json_rows import Broken, array_rows, line_rows
from posttrain.errors import ConfigError, SourceError
from posttrain.types import Comparison

ROWS = [{"prompt": f"Question {number}: ä, 你好, 🙂", "completion": str(number)} for number in range(1, 8)]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    max_leaves=12,
)


def array_values(data: bytes, chunk_bytes: int = 64) -> list[Any]:
    return [value for _, value, _ in array_rows(io.BytesIO(data), "rows.json", chunk_bytes)]


def rows_of(path: Path) -> list[Any]:
    return [value for _, value, _ in FileSource(path).rows()]


# ---------------------------------------------------------------- the array reader against json.load


@settings(max_examples=90, deadline=None)
@given(
    values=st.lists(json_values, max_size=6),
    chunk_bytes=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
)
@example(values=[1.5e-7, -0.0, 12, "\\", "\u2028"], chunk_bytes=1, indent=None, ascii_only=True, bom=True)
@example(values=[float("inf"), float("-inf"), True, None], chunk_bytes=1, indent=0, ascii_only=False, bom=False)
def test_array_reader_reads_what_json_load_reads(
    values: list[Any], chunk_bytes: int, indent: int | None, ascii_only: bool, bom: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    assert array_values((codecs.BOM_UTF8 if bom else b"") + data, chunk_bytes) == json.loads(data)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(json_values, min_size=1, max_size=4),
    chunk_bytes=st.integers(1, 30),
    at=st.floats(0, 1),
    put=st.sampled_from(["", ",", "]", "[", '"', "x", "1", ".", " ", "{", "}", ":", "\\", "\n", "-"]),
    remove=st.integers(0, 2),
)
def test_array_reader_refuses_what_json_load_refuses(
    values: list[Any], chunk_bytes: int, at: float, put: str, remove: int
) -> None:
    text = json.dumps(values, ensure_ascii=False)
    place = 1 + int(at * (len(text) - 1))
    text = text[:place] + put + text[place + remove :]
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(SourceError):
            array_values(text.encode(), chunk_bytes)
    else:
        assert array_values(text.encode(), chunk_bytes) == expected


@settings(max_examples=60, deadline=None)
@given(chunk_bytes=st.integers(1, 100), at=st.floats(0, 1))
def test_a_cut_array_gives_its_whole_rows_and_names_the_next(chunk_bytes: int, at: float) -> None:
    data = json.dumps(ROWS, ensure_ascii=False).encode()
    cut = 1 + int(at * (len(data) - 2))
    seen: list[Any] = []
    with pytest.raises(SourceError) as caught:
        for _, value, _ in array_rows(io.BytesIO(data[:cut]), "rows.json", chunk_bytes):
            seen.append(value)
    assert seen == ROWS[: len(seen)]
    whole = data[:cut].count(b'"}')
    assert len(seen) == whole
    named = int(str(caught.value.where).rsplit(" ", 1)[1])
    assert named in (whole, whole + 1)


def test_the_array_reader_holds_a_window_not_the_file() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    stream = Counting(json.dumps([{"n": number} for number in range(10_000)]).encode())
    reader = array_rows(stream, "rows.json", chunk_bytes=256)
    assert [next(reader)[1]["n"] for _ in range(3)] == [0, 1, 2]
    assert stream.taken <= 512


def test_one_element_much_larger_than_a_chunk_is_read_in_few_passes() -> None:
    class Reads(io.BytesIO):
        calls = 0

        def read(self, size: int | None = -1) -> bytes:
            self.calls += 1
            return super().read(size)

    stream = Reads(json.dumps([{"text": "x" * 1_000_000}]).encode())
    assert len(next(array_rows(stream, "rows.json", chunk_bytes=1000))[1]["text"]) == 1_000_000
    assert stream.calls < 20


# ---------------------------------------------------------------- lines


def test_bom_crlf_blank_lines_and_a_missing_last_newline() -> None:
    text = codecs.BOM_UTF8 + b'{"a": 1}\r\n\r\n   \n{"a": 2}\n\n{"a": 3}'
    assert list(line_rows(io.BytesIO(text), "rows.jsonl")) == [
        (1, {"a": 1}, ""),
        (2, {"a": 2}, "line 4"),
        (3, {"a": 3}, "line 6"),
    ]


@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
def test_a_bad_byte_is_named_with_its_offset_in_the_file(bom: bytes, tmp_path: Path) -> None:
    lines = bom + b'{"a": "ok \xc3\xa9"}\n\n{"a": "caf\xe9"}\n{"a": 3}\n'
    offset = lines.index(b"\xe9")
    _, bad, good = line_rows(io.BytesIO(lines), "rows.jsonl")
    assert isinstance(bad[1], Broken) and bad[1].reason == "bad_encoding" and good[1] == {"a": 3}
    assert f"byte {offset} of the file" in str(bad[1].error) and "row 2" in str(bad[1].error)
    assert "0xE9" in str(bad[1].error) and r"caf\xe9" in bad[1].content

    array = bom + b'[{"a": "ok \xc3\xa9"},\n{"a": "caf\xe9"}]'
    for chunk_bytes in (1, 7, 1000):
        with pytest.raises(SourceError, match=f"byte {array.index(bytes([0xE9, 34]))} of the file") as caught:
            array_values(array, chunk_bytes)
        assert "row 2" in str(caught.value)


def test_a_utf8_character_cut_at_the_end_of_an_array_is_a_bad_encoding() -> None:
    with pytest.raises(SourceError, match="not valid UTF-8 at byte 7"):
        array_values(b'[{"a": \xe4\xbd')


# ---------------------------------------------------------------- containers


def write_all(folder: Path) -> dict[str, Path]:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    array = json.dumps(ROWS, indent=1).encode()
    table = pa.Table.from_pylist(ROWS)
    names = ("jsonl", "json", "jsonl.gz", "json.gz", "parquet", "arrow", "stream.arrow")
    paths = {name: folder / f"rows.{name}" for name in names}
    paths["jsonl"].write_bytes(lines)
    paths["json"].write_bytes(array)
    paths["jsonl.gz"].write_bytes(gzip.compress(lines))
    paths["json.gz"].write_bytes(gzip.compress(array))
    pq.write_table(table, paths["parquet"], row_group_size=3)
    with pa.OSFile(str(paths["arrow"]), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    with pa.OSFile(str(paths["stream.arrow"]), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return paths


def test_every_container_gives_the_same_rows_twice(tmp_path: Path) -> None:
    for name, path in write_all(tmp_path).items():
        source = FileSource(path)
        for _ in range(2):
            numbered = list(source.rows())
            assert [value for _, value, _ in numbered] == ROWS, name
            assert [number for number, _, _ in numbered] == list(range(1, 8)), name


def test_content_counts_not_the_suffix(tmp_path: Path) -> None:
    paths = write_all(tmp_path)
    for name, path in paths.items():
        renamed = tmp_path / f"other-{name}.data"
        renamed.write_bytes(path.read_bytes())
        assert rows_of(renamed) == ROWS


def test_nulls_that_arrow_made_up_are_left_out_inside_values_only(tmp_path: Path) -> None:
    calls = [{"args": {"city": "Oslo"}, "note": None}, {"args": {"unit": "C"}, "note": "x"}]
    path = tmp_path / "calls.parquet"
    pq.write_table(pa.Table.from_pylist(calls), path)
    assert rows_of(path) == calls


def test_bad_utf8_in_arrow_names_the_row(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", b"fine"], pa.binary())
    broken = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    path = tmp_path / "bad.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema([("a", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([broken], names=["a"]))
    with pytest.raises(SourceError, match="row 2: a text of this row is not valid UTF-8"):
        rows_of(path)


def test_a_saved_datasets_folder(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": whole, "test": whole.select([2, 0])}).save_to_disk(tmp_path / "two")

    (source,) = open_sources(tmp_path / "one")
    assert [(number, value) for number, value, _ in source.rows()] == list(enumerate(ROWS, 1))
    assert [value for _, value, _ in open_sources(tmp_path / "two")[0].rows()] == ROWS
    assert [value for _, value, _ in open_sources(tmp_path / "two", "test")[0].rows()] == [ROWS[2], ROWS[0]]
    with pytest.raises(SourceError, match="no split 'dev'") as caught:
        open_sources(tmp_path / "two", "dev")
    assert "'test', 'train'" in str(caught.value)

    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(SourceError, match="which is not there"):
        SavedDataset(tmp_path / "one").files()


# ---------------------------------------------------------------- names: files, globs, folders, hub ids


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"prompt": name}) + "\n")


def names_of(sources: tuple[Any, ...], folder: Path) -> list[str]:
    return [str(Path(source.name).relative_to(folder)) for source in sources]


def test_lists_globs_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.json", "notes.txt", "deep/c.jsonl", "dataset_infos.json", ".hidden.jsonl")
    assert names_of(open_sources(tmp_path), tmp_path) == ["a.json", "b.jsonl"]
    assert names_of(open_sources(str(tmp_path / "**" / "*.jsonl")), tmp_path) == ["b.jsonl", "deep/c.jsonl"]
    both = open_sources([tmp_path / "deep", str(tmp_path / "a.json")])
    assert names_of(both, tmp_path) == ["deep/c.jsonl", "a.json"]


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl")
    with pytest.raises(SourceError, match="more than once"):
        open_sources([tmp_path / "a.jsonl", str(tmp_path / "*.jsonl")])


def test_a_folder_with_splits_gives_the_one_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl", "valid.jsonl")
    assert len(open_sources(tmp_path)) == 2
    assert names_of(open_sources(tmp_path, "validation"), tmp_path) == ["valid.jsonl"]
    touch(tmp_path, "more.jsonl")
    with pytest.raises(SourceError, match="named after a split, others are not"):
        open_sources(tmp_path)


def test_a_missing_file_names_the_nearest_and_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "pairs.jsonl")
    with pytest.raises(SourceError, match=r"did you mean `.*pairs\.jsonl`"):
        open_sources(tmp_path / "pair.jsonl")
    with pytest.raises(SourceError, match=r"data files there: `pairs\.jsonl`"):
        open_sources(tmp_path / "quite-another-name.json")
    with pytest.raises(SourceError, match="does not exist either"):
        open_sources(tmp_path / "nowhere" / "x.jsonl")
    with pytest.raises(SourceError, match="no file matches"):
        open_sources(str(tmp_path / "*.parquet"))
    with pytest.raises(SourceError, match=r"(?s)several folders.*name one of them.*name a pattern"):
        touch(tmp_path, "up/down/x.jsonl", "up/other/x.jsonl")
        open_sources(tmp_path / "up")
    with pytest.raises(ConfigError, match="no data is named"):
        open_sources([])


def test_what_the_system_refuses_to_open_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the file cannot be read\n  found:    Is a directory"):
        rows_of(tmp_path)
    with pytest.raises(SourceError, match="the file cannot be read"):
        FileSource(tmp_path).fingerprint()


def test_hub_ids_and_their_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_sources("owner/name:main@v1.0", "test") == (HubSource("owner/name", "main", "v1.0", "test"),)
    assert open_sources("hub:squad") == (HubSource("squad", None, None, "train"),)
    touch(tmp_path, "owner/other.jsonl")
    with pytest.raises(SourceError, match="no such file"):  # the folder exists: a slip in a path, not a hub id
        open_sources("owner/name")


def test_hub_rows_stream_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return iter([{"prompt": "a", "meta": {"x": None, "y": 1}}, {"prompt": None}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(HubSource("owner/name", "main", None, "train").rows())
    assert rows == [(1, {"prompt": "a", "meta": {"y": 1}}, ""), (2, {"prompt": None}, "")]
    assert asked == [(("owner/name", "main"), {"split": "train", "revision": None, "streaming": True})]


def test_a_hub_that_fails_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:

    def broken() -> Any:
        yield {"prompt": "a"}
        raise ConnectionResetError("reset by peer")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: broken())
    with pytest.raises(SourceError, match="broke after row 1"):
        list(HubSource("owner/name", None, None, "train").rows())
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(SourceError, match="check the network"):
        list(HubSource("owner/name", None, None, "train").rows())


def test_the_fingerprint_is_of_the_content_and_its_order(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl")
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    a, b, copy = (FileSource(tmp_path / f"{name}.jsonl") for name in ("a", "b", "copy"))
    assert a.fingerprint() == copy.fingerprint() != b.fingerprint()
    assert combined_fingerprint([a, b]) == combined_fingerprint([copy, b]) != combined_fingerprint([b, a])


# ---------------------------------------------------------------- files that are not what they seem

GOOD = b'{"prompt": "a", "completion": "b"}'
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is empty"),
    "cut array": (b"[" + GOOD + b",\n" + GOOD[:20], r"row 2: the file ends in the middle"),
    "array without end": (b"[" + GOOD, r"row 1: the file ends here, and the array is not closed"),
    "trailing comma": (b"[" + GOOD + b",]", r"row 2: .*a comma before the closing"),
    "missing comma": (b"[" + GOOD + GOOD + b"]", r"row 1: .*expected ',' or '\]'"),
    "two arrays": (b"[" + GOOD + b"]\n[" + GOOD + b"]", "something follows"),
    "broken value": (b"[" + GOOD + b', {"a": tru}]' + b" " * 100, r"row 2: .*expecting value \(byte 43 of"),
    "cut gzip": (gzip.compress(GOOD * 100)[:-12], "compressed file is cut off"),
    "damaged gzip": (b"\x1f\x8b\x08\x00" + b"\xff" * 40, "cut off or damaged"),
    "cut parquet": (b"PAR1" + b"\x00" * 50, "Parquet file cannot be read"),
    "cut arrow": (b"ARROW1\x00\x00" + b"\x00" * 50, "Arrow file cannot be read"),
    "utf-16": (GOOD.decode().encode("utf-16"), "UTF-16"),
    "utf-16 without mark": (GOOD.decode().encode("utf-16-le"), "UTF-16"),
    "nul bytes": (b"\0" * 64, "NUL bytes"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html>\n<html>", "web page"),
    "zip": (b"PK\x03\x04....", "unzip"),
    "wrapped": (json.dumps({"data": [{"prompt": "a"}]}, indent=1).encode(), r"jq -c '\.data\[\]'"),
    "pretty objects": (json.dumps({"prompt": "a"}, indent=1).encode() * 2, "spans several lines"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    content, words = DAMAGED[name]
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        rows_of(path)
    text = str(caught.value)
    assert "data.json" in text and "remedy:" in text and "expected:" in text


BAD_LINES: dict[str, tuple[str, str, str]] = {
    "cut": ('{"prompt": "a", "comp', "truncated", "delete its last line"),
    "python": ("{'prompt': 'a'}", "bad_json", "json.dumps"),
    "comma": ('{"prompt": "a",}', "bad_json", "remove the comma"),
    "two objects": ('{"a": 1} {"a": 2}', "bad_json", "two objects share the line"),
    "nul": ("\0\0\0", "bad_json", "NUL bytes"),
    "comment": ("# a heading", "bad_json", "comments"),
    "deep": ('{"a":' + "[" * 100_000, "bad_json", "remove the line"),
    "key twice": (
        '{"prompt": "a", "completion": "b", "completion": "c"}',
        "duplicate_key",
        "the key 'completion' twice",
    ),
    "key twice, inside": ('{"messages": [{"role": "user", "role": "assistant"}]}', "duplicate_key", "'role'"),
    "huge number": ('{"a": 1' + "0" * 5000 + "}", "bad_json", "JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_stands_in_for_its_row_and_the_reading_goes_on(name: str) -> None:
    line, reason, words = BAD_LINES[name]
    good = GOOD.decode()
    lines = f"{good}\n{line}" if reason == "truncated" else f"{good}\n{line}\n{good}\n"
    rows = list(line_rows(io.BytesIO(lines.encode()), "rows.jsonl"))
    assert len(rows) == (2 if reason == "truncated" else 3)
    broken = rows[1][1]
    assert isinstance(broken, Broken) and broken.reason == reason and broken.content == line
    assert words in str(broken.error) and "rows.jsonl, row 2" in str(broken.error)


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_an_element_with_a_key_twice_stands_in_for_its_row(chunk: int) -> None:
    good, bad = GOOD.decode(), '{"prompt": "a", "prompt": "b", "completion": "c"}'
    rows = list(array_rows(io.BytesIO(f"[{good}, {bad}, {good}]".encode()), "rows.json", chunk))
    assert [row for row, _, _ in rows] == [1, 2, 3] and rows[0][1] == rows[2][1] == json.loads(good)
    broken = rows[1][1]
    assert isinstance(broken, Broken) and broken.reason == "duplicate_key" and broken.content == bad
    assert "rows.json, row 2" in str(broken.error)


def test_rows_with_a_key_twice_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD.decode() + "\n" + '{"prompt": "a", "completion": "b", "completion": "c"}\n')
    examples = read(path, bad_rows="skip")
    assert len(examples) == 1 and examples.counts.skipped == {"duplicate_key": 1}


def test_data_that_comes_with_posttrain_has_a_name_everywhere() -> None:
    pairs = read("package://preferences.jsonl", limit=3)
    assert pairs.kind is Comparison and len(pairs) == 3
    with pytest.raises(SourceError, match="no such file comes with posttrain") as error:
        read("package://preference.jsonl")
    assert error.value.remedy == "did you mean `package://preferences.jsonl`?"
    with pytest.raises(SourceError):  # not a way out of the folder
        read("package://../arithmetic.py")


def test_a_pipe_is_read_once_and_gives_its_rows_each_time() -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"prompt": "a", "completion": "b"}\n')
    os.close(writing)
    try:
        examples = read(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
    assert len(list(examples)) == len(list(examples)) == 1
