"""Reading on in a log: whole lines alone, once each, whatever the writer does in between."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from posttrain.runs.cursor import TAIL, Cursor
from posttrain.runs.files import JsonlLog, keep_lines
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.logs import MetricsLine


def line(step: int, **values: float) -> bytes:
    content = MetricsLine(step, None, None, "train", values or {"loss": 1.0 / (step + 1)}, {}).to_json()
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def steps(news: object) -> list[int | None]:
    return [record.step for record in news.records]  # type: ignore[attr-defined]


def test_a_writer_that_writes_byte_by_byte_gives_each_line_once_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    content = b"".join(line(step) for step in range(4)) + line(4, **{"é": 2.0}) + b"\n"  # an empty line last
    cursor, seen, written = Cursor(path), [], 0
    with path.open("wb", buffering=0) as file:
        for place in range(len(content)):
            file.write(content[place : place + 1])
            news = cursor.read(MetricsLine)
            assert not news.restarted and news.broken == 0
            if news.records:
                assert content[place : place + 1] == b"\n"  # never before its newline
            seen += steps(news)
            cursor, written = news.cursor, place + 1
            assert cursor.offset == content.rfind(b"\n", 0, written) + 1
    assert seen == [0, 1, 2, 3, 4] and cursor.offset == len(content)
    assert steps(cursor.read(MetricsLine)) == []


def test_the_same_cursor_gives_the_same_lines_and_a_token_carries_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2))
    first = Cursor(path).read(MetricsLine)
    path.write_bytes(path.read_bytes() + line(3))
    again = Cursor.at(path, first.cursor.token())
    assert again == first.cursor
    assert steps(again.read(MetricsLine)) == steps(again.read(MetricsLine)) == [3]


@pytest.mark.parametrize("token", ["", "x", "5", "-1-2-", "3-7-zz", "3-7-0011223344", "1e9-7-", "9-7-00\n", "9" * 40])
def test_what_is_no_token_begins_anew(tmp_path: Path, token: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1))
    assert steps(Cursor.at(path, token).read(MetricsLine)) == [1]


def test_a_torn_line_that_the_next_writer_cuts_off_is_no_restart(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2)[:-9])
    news = Cursor(path).read(MetricsLine)
    assert steps(news) == [1]
    log = JsonlLog(path)  # what a run does that goes on after a kill
    log.append(MetricsLine(2, None, None, "train", {"loss": 0.5}, {}).to_json())
    log.close()
    news = news.cursor.read(MetricsLine)
    assert steps(news) == [2] and not news.restarted


def test_a_resumed_stage_that_cuts_its_logs_is_a_restart(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo")
    for step in (1, 2, 3):
        folder.append(MetricsLine(step, 0.1, 0.1, "train", {"loss": 1.0 / step}, {}))
    news = Cursor(folder.path / "metrics.jsonl").read(MetricsLine)
    assert steps(news) == [1, 2, 3]
    folder.truncate_after(1)
    folder.append(MetricsLine(2, 0.1, 0.1, "train", {"loss": 0.7}, {}))
    news = news.cursor.read(MetricsLine)
    assert news.restarted and steps(news) == [1, 2]
    assert not news.cursor.read(MetricsLine).restarted
    folder.close()


def test_a_file_that_was_cut_in_place_and_grew_again_is_a_restart(tmp_path: Path) -> None:
    """Its inode is the same, and it is longer than what was read: only its content tells."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2))
    news = Cursor(path).read(MetricsLine)
    inode = path.stat().st_ino
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(line(7, loss=0.123456789) + line(8) + line(9))
    assert path.stat().st_ino == inode and path.stat().st_size > news.cursor.offset
    news = news.cursor.read(MetricsLine)
    assert news.restarted and steps(news) == [7, 8, 9]


def test_a_file_of_the_same_length_and_content_under_another_inode_is_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1))
    news = Cursor(path).read(MetricsLine)
    keep_lines(path, lambda content: True)  # writes it anew and renames
    assert news.cursor.read(MetricsLine).restarted


def test_a_deleted_log_is_a_restart_and_what_comes_then_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    news = Cursor(path).read(MetricsLine)
    assert steps(news) == [] and not news.restarted  # it is not there yet
    path.write_bytes(line(1))
    news = news.cursor.read(MetricsLine)
    assert steps(news) == [1] and not news.restarted
    os.unlink(path)
    news = news.cursor.read(MetricsLine)
    assert steps(news) == [] and news.restarted and news.cursor == Cursor(path)
    path.write_bytes(line(5))
    assert steps(news.cursor.read(MetricsLine)) == [5]


def test_broken_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + b'{"step": \n[1]\n\xff\xfe\n' + line(2))
    news = Cursor(path).read(MetricsLine)
    assert steps(news) == [1, 2] and news.broken == 3


@pytest.mark.parametrize("most", [1, 7, 100, 1000])
def test_a_long_log_comes_in_parts_of_whole_lines(tmp_path: Path, most: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line(step) for step in range(50)))
    cursor, seen, reads = Cursor(path), [], 0
    while (news := cursor.read(MetricsLine, most)).records:
        seen += steps(news)
        cursor, reads = news.cursor, reads + 1
        assert len(cursor.tail) == min(TAIL, cursor.offset)
    assert seen == list(range(50)) and reads >= min(50, 50 * len(line(10)) // (most + len(line(10))))
