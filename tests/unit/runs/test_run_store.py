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
from posttrain.runs.records.evaluation import Figure, SuiteScores
from posttrain.runs.records.logs import Alarm, DroppedRow, HeldOutRow, MetricsLine, WatchedResponse, WatchedRow
from posttrain.runs.records.preflight import PreflightRecord
from posttrain.runs.records.run import SCHEMA, StageEntry, Summary
from posttrain.runs.records.stage import StageRecord
from posttrain.training.run_record import begin_run, left_over


def metrics_of(folder: StageFolder, *steps: int) -> None:
    for step in steps:
        folder.append(MetricsLine(step, step / 10, 0.5 * step, "train", {"loss": 1.0 / step}, {}))


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
    with pytest.raises(SourceError, match=r"x\.txt: the file cannot be written") as refused:
        write_text(path, "new")
    assert "disk full" in str(refused.value) and str(path.parent) in str(refused.value)
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
    assert folder.write_stage(status="done", steps=3) == StageRecord(name="dpo", status="done", steps=3)
    folder.append(MetricsLine(1, 0.5, 2.0, "train", {"loss": math.nan}, {"loss": 8}))
    folder.append(MetricsLine(1, 0.5, 2.0, "held_out", {"loss": 0.5}, {}))
    lines = (
        WatchedRow(1, "a, row 1", "Hi", (WatchedResponse("chosen", "Hello.", {"logprob": -1.5}),)),
        Alarm("x", "critical", 1, "m", {"loss": 2.0}, "r"),
        HeldOutRow("start", "a, row 1", {"rewards_chosen": 0.5}),
        DroppedRow("a, row 2", "tie", "equal", {"prompt": "Hi"}),
    )
    for line in lines:
        folder.append(line)
    evaluation = SuiteScores({"identity": {"match": Figure(0.5, 0.25, 0.75, 12)}})
    folder.write(evaluation)
    folder.close()

    again = StageFolder(tmp_path / "dpo")
    assert again.stage() == StageRecord(schema=SCHEMA, name="dpo", status="done", steps=3)
    first = MetricsLine(1, 0.5, 2.0, "train", {"loss": None}, {"loss": 8})
    assert again.metrics("train") == [first]
    assert [line.values for line in again.metrics()] == [{"loss": None}, {"loss": 0.5}]
    for line in lines:
        assert again.lines(type(line)) == [line]
    assert again.document(SuiteScores) == evaluation
    assert again.document(PreflightRecord) is None
    assert again.answers("identity") == []


def test_a_stage_takes_no_key_that_its_record_lacks(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="learning_rat"):
        StageFolder(tmp_path).write_stage(learning_rat=1.0)


def test_a_resumed_stage_forgets_the_steps_that_it_takes_again(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo")
    metrics_of(folder, 1, 2, 3)
    for step in (1, 3):
        folder.append(Alarm("x", "warning", step, "m", {}, "r"))
        folder.append(WatchedRow(step, "a, row 1", "Hi", ()))
    folder.append(HeldOutRow("start", "a, row 1"))
    folder.append(HeldOutRow("end", "a, row 1"))
    folder.truncate_after(2)
    metrics_of(folder, 3)
    assert [line.step for line in folder.metrics()] == [1, 2, 3]
    assert [line.step for line in folder.lines(Alarm)] == [1]
    assert [line.step for line in folder.lines(WatchedRow)] == [1]
    assert folder.lines(HeldOutRow) == [HeldOutRow("start", "a, row 1")]
    folder.close()


def test_truncating_changes_no_kept_line(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo")
    folder.append(MetricsLine(1, 1 / 3, 0.1, "train", {"loss": 1e-300, "large": 1e200, "x": math.nan}, {}))
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
    run.write_run(status="running", stages=tuple(StageEntry(name, name, "pending", 0.0) for name in ("sft", "dpo")))
    run.write_recipe("schema: 1\n")
    run.stage("dpo").write_stage(name="dpo")
    assert [folder.name for folder in run.stages()] == ["dpo"]  # sft has not begun
    run.stage("sft").write_stage(name="sft")
    assert [folder.name for folder in run.stages()] == ["sft", "dpo"]
    assert run.write_run(status="done").schema == SCHEMA == 2
    run.write(Summary({"start": {"loss": math.nan}, "sft": {"loss": 0.5}}))
    assert run.summary() == {"start": {"loss": None}, "sft": {"loss": 0.5}}
    assert run.recipe() == "schema: 1\n"
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["status"] == "done"


def test_a_newer_folder_is_read_for_what_is_known_and_never_written(tmp_path: Path) -> None:
    newer = {"schema": 9, "posttrain_version": "9.1", "status": "done", "stages": [{"name": "sft", "grade": "A"}]}
    write_json(tmp_path / "run.json", newer | {"planet": "Mars"})
    run = RunFolder(tmp_path).run()
    assert (run.schema, run.status, run.newer) == (9, "done", True)
    assert run.more == {"planet": "Mars"} and run.stages[0].more == {"grade": "A"}
    with pytest.raises(SourceError, match="newer version") as caught:
        RunFolder(tmp_path).write_run(status="running")
    assert "schema: 9, posttrain 9.1" in str(caught.value)
    assert read_json(tmp_path / "run.json")["status"] == "done"


def test_a_run_record_that_is_no_object_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", [1])
    with pytest.raises(SourceError, match="no record of a run") as caught:
        RunFolder(tmp_path).run()
    assert "a list" in str(caught.value)


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
