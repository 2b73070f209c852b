"""The run folder: what is written survives a crash at any byte, and is read back as it was."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import posttrain as pt
from posttrain.errors import ResumeError, SourceError
from posttrain.runs import files
from posttrain.runs.files import JsonlLog, plain, read_json, read_jsonl, write_json, write_text
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.training.run_record import begin_run, left_over


def metrics_of(folder: StageFolder, *steps: int) -> None:
    for step in steps:
        folder.append_metrics(step=step, epoch=step / 10, seconds=0.5 * step, values={"loss": 1.0 / step})


# ---------------------------------------------------------------- JSON


def test_what_json_cannot_hold_becomes_null_or_is_refused() -> None:
    value = {"a": math.nan, "b": [math.inf, 1.5], "c": Path("x"), "d": (1, True), 3: {"z", "y"}}
    assert plain(value) == {"a": None, "b": [None, 1.5], "c": "x", "d": [1, True], "3": ["y", "z"]}
    with pytest.raises(TypeError, match=r"metrics\.values\.loss is a bytes"):
        plain({"values": {"loss": b""}}, "metrics")


def test_floats_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0]
    write_json(tmp_path / "x.json", values)
    assert [value.hex() for value in read_json(tmp_path / "x.json")] == [value.hex() for value in values]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "x.txt"
    write_text(path, "old")
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["x.txt"]  # and no temporary file


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(SourceError, match=r"run\.json: the file is not JSON"):
        read_json(tmp_path / "run.json")


# ---------------------------------------------------------------- logs


def test_a_log_cut_at_any_byte_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonlLog(path)
    for step in range(3):
        log.append({"step": step, "text": "é\nü"})
    log.close()
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == 10]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends)
        # A line that lacks only its newline is whole to a reader.
        assert [record["step"] for record in read_jsonl(path)] in ([*range(kept)], [*range(kept + 1)])
        log = JsonlLog(path)
        log.append({"step": 9})
        log.close()
        assert [record["step"] for record in read_jsonl(path)] == [*range(kept), 9]


def test_a_line_broken_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(SourceError, match="line 2 is not JSON"):
        read_jsonl(path)


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "x.jsonl") == []


def test_lines_reach_the_file_at_once(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "x.jsonl")
    log.append({"step": 1})
    assert read_jsonl(tmp_path / "x.jsonl") == [{"step": 1}]  # before close: kill -9 loses nothing
    log.close()


@pytest.mark.parametrize(("durable", "synced"), [("process", 0), ("machine", 2)])
def test_which_lines_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: str, synced: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(files.os, "fsync", calls.append)
    log = JsonlLog(tmp_path / "x.jsonl", durable)  # type: ignore[arg-type]
    log.append({})
    log.append({})
    assert len(calls) == synced
    log.close()


# ---------------------------------------------------------------- stages


def test_a_stage_is_written_and_read(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo")
    assert not folder.exists
    folder.write_stage(name="dpo", status="running")
    assert folder.write_stage(status="done", steps=3) == {"name": "dpo", "status": "done", "steps": 3}
    folder.append_metrics(step=1, epoch=0.5, seconds=2.0, values={"loss": math.nan}, counts={"loss": 8})
    folder.append_metrics(step=1, epoch=0.5, seconds=2.0, values={"loss": 0.5}, split="held_out")
    folder.append_sample({"step": 1, "row": "a, row 1"})
    folder.append_alarm({"step": 1, "name": "x"})
    folder.append_pair({"when": "start", "row": "a, row 1"})
    folder.append_dropped({"row": "a, row 2", "reason": "tie"})
    folder.write_evaluation({"identity": {"match": {"value": 0.5}}})
    folder.close()

    again = StageFolder(tmp_path / "dpo")
    assert again.stage() == {"name": "dpo", "status": "done", "steps": 3}
    first = {"step": 1, "epoch": 0.5, "seconds": 2.0, "split": "train", "values": {"loss": None}, "counts": {"loss": 8}}
    assert again.metrics("train") == [first]
    assert [record["values"] for record in again.metrics()] == [{"loss": None}, {"loss": 0.5}]
    assert again.samples() == [{"step": 1, "row": "a, row 1"}]
    assert again.alarms() == [{"step": 1, "name": "x"}]
    assert again.pairs() == [{"when": "start", "row": "a, row 1"}]
    assert again.dropped() == [{"row": "a, row 2", "reason": "tie"}]
    assert again.evaluation() == {"identity": {"match": {"value": 0.5}}}
    assert again.preflight() is None
    assert again.answers("identity") == []


def test_a_resumed_stage_forgets_the_steps_that_it_takes_again(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo")
    metrics_of(folder, 1, 2, 3)
    for step in (1, 3):
        folder.append_alarm({"step": step})
        folder.append_sample({"step": step})
    folder.append_pair({"when": "start"})
    folder.append_pair({"when": "end"})
    folder.truncate_after(2)
    metrics_of(folder, 3)
    assert [record["step"] for record in folder.metrics()] == [1, 2, 3]
    assert [record["step"] for record in folder.alarms()] == [1]
    assert [record["step"] for record in folder.samples()] == [1]
    assert folder.pairs() == [{"when": "start"}]
    folder.close()


def test_truncating_changes_no_kept_line(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo")
    folder.append_metrics(step=1, epoch=1 / 3, seconds=0.1, values={"loss": 1e-300, "x": math.nan})
    before = (tmp_path / "dpo" / "metrics.jsonl").read_bytes()
    metrics_of(folder, 2)
    folder.truncate_after(1)
    assert (tmp_path / "dpo" / "metrics.jsonl").read_bytes() == before


def test_a_stage_that_begins_anew_has_empty_logs(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo")
    metrics_of(folder, 1)
    folder.write_stage(name="dpo")
    folder.forget_logs()
    assert folder.metrics() == []
    assert folder.exists


# ---------------------------------------------------------------- runs


def test_a_run_is_written_and_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "mine")
    assert not run.exists
    run.write_run(status="running", stages=[{"name": "sft"}, {"name": "dpo"}])
    run.write_recipe("schema: 1\n")
    run.stage("dpo").write_stage(name="dpo")
    assert [folder.name for folder in run.stages()] == ["dpo"]  # sft has not begun
    run.stage("sft").write_stage(name="sft")
    assert [folder.name for folder in run.stages()] == ["sft", "dpo"]
    assert run.write_run(status="done")["schema"] == 1
    run.write_summary({"start": {"loss": math.nan}, "sft": {"loss": 0.5}})
    assert run.summary() == {"start": {"loss": None}, "sft": {"loss": 0.5}}
    assert run.recipe() == "schema: 1\n"
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["status"] == "done"


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"schema": 2})
    with pytest.raises(SourceError, match="a layout that this version does not know"):
        RunFolder(tmp_path).run()


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    code = f"""
from posttrain.runs.folder import RunFolder
from posttrain.errors import ResumeError
try:
    with RunFolder({str(tmp_path)!r}).locked():
        print("free")
except ResumeError as error:
    print(error.problem)
"""
    other = [sys.executable, "-c", code]
    with RunFolder(tmp_path).locked():
        held = subprocess.run(other, capture_output=True, text=True, check=True).stdout
    assert held.strip() == "another process is writing to this run folder"
    assert subprocess.run(other, capture_output=True, text=True, check=True).stdout.strip() == "free"


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path).locked():
        raise ZeroDivisionError
    with RunFolder(tmp_path).locked(), pytest.raises(ResumeError), RunFolder(tmp_path).locked():
        pass


def test_stages_of_another_recipe_are_told_when_they_leave_the_list(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    first, other = pt.DPO(name="dpo"), pt.SFT(name="sft")
    begin_run(run, "d", [first])
    assert left_over(run, [other]) == []  # it never began
    run.stage("dpo").write_stage(status="done")
    assert left_over(run, [other]) == ["dpo"] and left_over(run, [first, other]) == []
    begin_run(run, "d", [other])
    assert left_over(run, [other]) == []
