"""What a file can do to the reader: rows without end, links in circles, names that are no files."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import stat
import tracemalloc
from pathlib import Path

import pytest

from posttrain.data import read
from posttrain.data.sources.files import FileSource, open_sources, resolve_sources
from posttrain.data.sources.json_rows import Broken, array_rows, line_rows
from posttrain.data.sources.patterns import is_open_pipe, matching, require_regular
from posttrain.errors import RowError, SourceError

ROW = b'{"prompt": "2 + 2?", "completion": "4"}\n'
LONG = b'{"prompt": "' + b"a" * 5000 + b'", "completion": "4"}\n'


# ---------------------------------------------------------------- long rows


def test_a_long_line_is_one_bad_row_and_the_rows_after_it_are_read() -> None:
    rows = list(line_rows(io.BytesIO(ROW + LONG + ROW + LONG.rstrip()), "rows.jsonl", 1000))
    assert [isinstance(value, Broken) for _, value, _ in rows] == [False, True, False, True]
    broken = rows[1][1]
    assert broken.reason == "too_long" and "longest_row_mb" in str(broken.error) and "row 2" in str(broken.error)
    assert len(broken.content) <= 1024


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_a_line_of_just_the_longest_length_is_read(ending: bytes) -> None:
    line = ROW.rstrip()
    ((_, value, _),) = line_rows(io.BytesIO(line + ending), "rows.jsonl", len(line))
    assert value == json.loads(line)
    ((_, value, _),) = line_rows(io.BytesIO(line + ending), "rows.jsonl", len(line) - 1)
    assert isinstance(value, Broken)


def test_a_long_element_of_an_array_is_named() -> None:
    array = b"[" + ROW + b"," + LONG + b"]"
    with pytest.raises(RowError, match=r"(?s)row 2.*longest_row_mb"):
        list(array_rows(io.BytesIO(array), "rows.json", 64, 1000))
    with pytest.raises(RowError, match="row 2"):  # all of it in the first chunk
        list(array_rows(io.BytesIO(array), "rows.json", 1 << 20, 1000))


def test_an_element_without_end_is_refused_before_it_is_read() -> None:
    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert self.tell() < 100_000, "it is read on and on"
            return super().read(size)

    endless = Endless(b'[{"prompt": "' + b"a" * 1_000_000)
    with pytest.raises(RowError, match=r"(?s)row 1.*longest_row_mb"):
        list(array_rows(endless, "rows.json", 64, 1000))


def test_a_gzip_bomb_is_refused_before_it_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"prompt": "')
        for _ in range(24):
            file.write(b"a" * (1 << 20))
    tracemalloc.start()
    ((_, value, _),) = FileSource(path, longest_row=1 << 20).rows()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(value, Broken) and value.reason == "too_long"
    assert peak < 12 << 20


def test_the_setting_reaches_the_reader_and_such_rows_can_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROW + LONG.replace(b"a" * 5000, b"a" * (1 << 20)))
    with pytest.raises(RowError, match=r"has 1\.0 MB of text"):
        read(path, longest_row_mb=1)
    assert read(path, longest_row_mb=1, bad_rows="skip").counts.skipped == {"too_long": 1}
    assert len(read(path)) == 2


def test_memory_that_runs_out_while_reading_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROW)

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("posttrain.data.sources.files.text_rows", exhausted)
    with pytest.raises(SourceError, match=r"rows\.jsonl"):
        list(FileSource(tmp_path / "rows.jsonl").rows())


# ---------------------------------------------------------------- what is no file


def test_pipes_sockets_and_devices_are_refused_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(SourceError, match=r"(?s)named pipe.*cat .*rows.jsonl"):
        open_sources(tmp_path / "rows.jsonl")
    with pytest.raises(SourceError, match="a device"):
        open_sources("/dev/zero")
    monkeypatch.chdir(tmp_path)  # a socket's path has 108 characters at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("door.jsonl")
        with pytest.raises(SourceError, match="a socket"):
            open_sources("door.jsonl")


def test_what_a_shell_gives_for_a_command_is_read_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound, fits in ((1 << 20, True), (10, False)):
        monkeypatch.setattr("posttrain.data.sources.files.LONGEST_PIPE", bound)
        reading, writing = os.pipe()
        os.write(writing, ROW)
        os.close(writing)
        try:
            if fits:
                assert len(read(f"/dev/fd/{reading}")) == 1
            else:
                with pytest.raises(SourceError, match="the pipe gives more than"):
                    open_sources(f"/dev/fd/{reading}")
        finally:
            os.close(reading)


def test_a_row_of_a_pipe_is_bounded_too() -> None:
    reading, writing = os.pipe()
    os.write(writing, ROW + LONG)
    os.close(writing)
    try:
        (source,) = resolve_sources(f"/dev/fd/{reading}", longest_row=1000).sources
    finally:
        os.close(reading)
    assert [isinstance(value, Broken) for _, value, _ in source.rows()] == [False, True]


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "/dev/stdin"])
def test_standard_input_is_a_pipe_or_the_file_that_the_shell_put_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    kept, (reading, writing), file = os.dup(0), os.pipe(), os.open(tmp_path / "rows.jsonl", os.O_RDONLY)
    try:
        os.dup2(reading, 0)
        assert is_open_pipe(Path(name.format(reading)))
        os.dup2(file, 0)
        assert not is_open_pipe(Path(name.format(file)))
        assert len(read(Path(name.format(file)))) == 1
    finally:
        os.dup2(kept, 0)
        for opened in (kept, reading, writing, file):
            os.close(opened)
    assert not is_open_pipe(tmp_path / "rows.jsonl")


def test_a_disk_is_no_file_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result((stat.S_IFBLK, *[0] * 9)))
    with pytest.raises(SourceError, match="the path is a disk, not a file"):
        require_regular(Path("/dev/sda"))


# ---------------------------------------------------------------- links


def test_a_link_in_a_circle_gives_each_file_once(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(ROW)
    (folder / "inner" / "b.jsonl").write_bytes(ROW)
    (folder / "loop").symlink_to(folder)
    (folder / "inner" / "up").symlink_to(folder)
    for top in (folder, folder / "loop"):
        found = matching(f"{top}/**/*.jsonl")
        assert found == [top / "a.jsonl", top / "inner" / "b.jsonl"]
    assert len(read(f"{folder}/**/*.jsonl")) == 2


def test_a_linked_folder_is_entered_once_and_real_names_win(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    data = tmp_path / "data"
    for folder in (elsewhere, data / "v3", data / ".hidden"):
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_bytes(ROW)
    (data / ".rows.jsonl").write_bytes(ROW)
    (data / "latest").symlink_to(data / "v3")
    (data / "more").symlink_to(elsewhere)
    (data / "again").symlink_to(elsewhere)
    assert matching(f"{data}/**/*.jsonl") == [data / "again" / "rows.jsonl", data / "v3" / "rows.jsonl"]
    assert matching(f"{data}/**") == sorted(
        [data, data / "v3", data / "v3" / "rows.jsonl", data / "again", data / "again" / "rows.jsonl"]
    )


def test_a_link_into_the_middle_of_a_tree_that_is_entered_later(tmp_path: Path) -> None:
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    (elsewhere / "sub" / "deep").mkdir(parents=True)
    data.mkdir()
    (elsewhere / "sub" / "deep" / "rows.jsonl").write_bytes(ROW)
    (data / "a").symlink_to(elsewhere / "sub")
    (data / "b").symlink_to(elsewhere)
    assert matching(f"{data}/**/*.jsonl") == [data / "a" / "deep" / "rows.jsonl"]
    assert matching(f"{elsewhere}/**/**/*.jsonl") == [elsewhere / "sub" / "deep" / "rows.jsonl"]


def test_a_relative_pattern_gives_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "rows.jsonl").write_bytes(ROW)
    assert matching("**/*.jsonl") == matching("./*/r*.jsonl") == [Path("a[1]/rows.jsonl")]
    assert matching("nothing/*") == matching("a[1]x/*.jsonl") == []


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_one_file_under_two_names_is_refused_with_both(tmp_path: Path, kind: str) -> None:
    first, second = tmp_path / "rows-a.jsonl", tmp_path / "rows-b.jsonl"
    first.write_bytes(ROW)
    if kind == "symbolic":
        second.symlink_to(first)
    else:
        second.hardlink_to(first)
    for named in ([first, second], f"{tmp_path}/*.jsonl", tmp_path):
        with pytest.raises(SourceError, match=r"rows-a.jsonl' and '.*rows-b.jsonl' are one file"):
            open_sources(named)
    assert len(read(second)) == 1  # a link alone is as good as a file


# ---------------------------------------------------------------- links that lead nowhere


def test_a_broken_link_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("train-1.jsonl", "test-1.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "train-2.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for data in (tmp_path, tmp_path / "*.jsonl", tmp_path / "**" / "*.jsonl", tmp_path / "train-2.jsonl"):
        with pytest.raises(SourceError, match=r"a link that leads nowhere|the link leads to no file") as caught:
            open_sources(str(data))
        assert str(caught.value.where) == str(tmp_path / "train-2.jsonl") and "gone.jsonl" in str(caught.value)
    # The rows of another split are not asked for.
    assert len(open_sources(str(tmp_path), "test")) == 1
    (tmp_path / "gone.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    assert len(open_sources(str(tmp_path / "train-*.jsonl"))) == 2


def test_an_empty_path_is_not_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="the name of the data is empty"):
        open_sources("")
