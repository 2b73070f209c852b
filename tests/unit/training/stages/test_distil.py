"""The stage `distil` in recipes: its rows and records, what happens when it is killed, and when its settings change."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import parse_recipe
from posttrain.config.distil import Distil
from posttrain.errors import ConfigError, EngineError
from posttrain.runs.files import read_jsonl
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.logs import AnsweredLine, YieldLine
from posttrain.training.identity import identity_of_recipe
from posttrain.training.pipeline import check_recipe, run_recipe
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.speech import answer_settings
from posttrain.training.stages.teaching import earlier_journals
from tests.fixtures import byte_tokenizer, tiny_model
from tests.teacher_server import TeacherServer, asked


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True)
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer() as server:
        yield server


def recipe(folder: Path, model: Path, teacher: Any, prompts: int = 6, **settings: Any):
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{n} + 1?"}) + "\n" for n in range(prompts)))
    stage = {"name": "answers", "method": "distil", "data": "prompts.jsonl", "teacher": teacher, **settings}
    whole = {"schema": 1, "name": "mine", "model": str(model), "out": str(folder / "runs"), "stages": [stage]}
    return parse_recipe(json.dumps(whole), folder=folder)


def big(server: TeacherServer, **settings: Any) -> dict[str, Any]:
    return {"url": server.url, "model": "big", "retries": 0, **settings}


def test_a_run_writes_rows_records_and_figures(server: TeacherServer, model: Path, tmp_path: Path) -> None:
    shown = Lines()
    teacher = big(server, price={"prompt": 1.0, "completion": 2.0})
    result = run_recipe(recipe(tmp_path, model, teacher), progress=shown)
    folder = RunFolder(result.folder).stage("answers")
    record = folder.stage()
    assert record.status == "done" and record.data is not None
    assert (record.data.kept, record.data.answers, record.data.prompts, record.data.tokens) == (6, 6, 6, 30)
    assert record.data.more["teacher_cost"] == pytest.approx(6 * 20e-6)
    assert record.data.more["teacher_prompt_tokens"] == 60 and record.data.more["prompts_without_row"] == 0
    assert len(folder.lines(YieldLine)) == 6 and len(folder.lines(AnsweredLine)) == 6
    assert len(read_jsonl(folder.path / "data.jsonl")) == 6
    assert "answers: 6 rows of 6 answers to 6 prompts" in shown.lines
    assert any(line.startswith("answers: big: 6 answers") and "cost 0.00012" in line for line in shown.lines)


def test_what_is_done_is_not_asked_again_and_other_filters_ask_nobody(
    server: TeacherServer, model: Path, tmp_path: Path
) -> None:
    run_recipe(recipe(tmp_path, model, big(server)), progress=False)
    # What only changes how fast it is asked is no other stage.
    run_recipe(recipe(tmp_path, model, big(server, concurrency=2, retries=1)), progress=False)
    assert len(server.seen) == 6 and not (tmp_path / "runs" / "mine" / "answers.1").exists()
    shown = Lines()
    run_recipe(recipe(tmp_path, model, big(server), filters={"most_words": 100}), progress=shown)
    assert len(server.seen) == 6 and (tmp_path / "runs" / "mine" / "answers.1" / "asked.jsonl").exists()
    assert len(read_jsonl(tmp_path / "runs" / "mine" / "answers" / "data.jsonl")) == 6
    run_recipe(recipe(tmp_path, model, big(server), prompts=8), progress=False)
    assert sorted(server.questions[6:]) == ["6 + 1?", "7 + 1?"]  # two at a time: in either order
    assert len(earlier_journals(StageFolder(tmp_path / "runs" / "mine" / "answers"))) == 2


def test_a_server_that_dies_loses_nothing(server: TeacherServer, model: Path, tmp_path: Path) -> None:
    def dies(body: dict[str, Any]) -> Any:
        return "fine" if len(server.seen) <= 3 else (401, {"error": "no such key"})

    server.answer = dies
    with pytest.raises(ConfigError, match="the teacher's endpoint refuses"):
        run_recipe(recipe(tmp_path, model, big(server, concurrency=1)), progress=False)
    assert len(read_jsonl(tmp_path / "runs" / "mine" / "answers" / "asked.jsonl")) == 3
    server.answer = lambda body: "fine"
    run_recipe(recipe(tmp_path, model, big(server, concurrency=1)), progress=False)
    assert Counter(server.questions) == {f"{n} + 1?": 2 if n == 3 else 1 for n in range(6)}


def test_a_server_that_is_not_there_is_said_with_its_address(model: Path, tmp_path: Path) -> None:
    with TeacherServer() as gone:
        url = gone.url
    teacher = {"url": url, "model": "big", "retries": 0}
    with pytest.raises(EngineError, match="the teacher `big` does not answer") as caught:
        run_recipe(recipe(tmp_path, model, teacher), progress=False)
    assert url in str(caught.value)


def test_the_policy_itself_and_a_folder_answer_alike(model: Path, tmp_path: Path) -> None:
    options = {"sampling": {"temperature": 1.0, "max_new_tokens": 8}, "filters": {"ended": False}}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    run_recipe(recipe(tmp_path / "a", model, "policy", **options), progress=False)
    run_recipe(recipe(tmp_path / "b", model, str(model), **options), progress=False)
    first, second = (read_jsonl(tmp_path / name / "runs" / "mine" / "answers" / "data.jsonl") for name in "ab")
    assert [row["messages"] for row in first] == [row["messages"] for row in second] and first


def test_a_special_token_of_the_policy_makes_no_row(server: TeacherServer, model: Path, tmp_path: Path) -> None:
    server.answer = lambda body: "fine <|im_end|>" if asked(body) == "0 + 1?" else "fine"
    run_recipe(recipe(tmp_path, model, big(server)), progress=False)
    (line,) = read_jsonl(tmp_path / "runs" / "mine" / "answers" / "dropped.jsonl")
    assert line["reason"] == "special_tokens"


def test_a_teachers_stage_is_a_policy_before_it(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no earlier stage named `sft` writes a policy") as caught:
        recipe(tmp_path, model, {"stage": "sft"})
    assert "teacher.stage" in str(caught.value)


def test_a_teacher_of_other_weights_is_another_input(model: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    (teacher / "pytorch_model.bin").write_bytes(b"weights")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    settings = Distil(data=str(tmp_path / "p.jsonl"), teacher=str(teacher))
    answers = answer_settings(None, str(model), "2026-01-01")
    ctx = StageContext(settings, str(model), StageFolder(tmp_path / "f"), 0, Progress(), answers=answers)
    before = identity_of_recipe(ctx, answers)
    assert "teacher.model" in before.contents
    (teacher / "pytorch_model.bin").write_bytes(b"others")
    assert identity_of_recipe(ctx, answers).quick != before.quick


def test_what_comes_after_is_checked_on_stand_ins(server: TeacherServer, model: Path, tmp_path: Path) -> None:
    mine = recipe(tmp_path, model, big(server))
    sft = {"method": "sft", "data": {"stage": "answers"}, "steps": 1, "held_out": 0, "max_length": 128}
    text = json.loads(json.dumps(mine.model_dump(mode="json", by_alias=True)))
    both = parse_recipe(json.dumps({**text, "stages": [*text["stages"], sft]}), folder=tmp_path)
    shown = Lines()
    proven = check_recipe(both, progress=shown)
    assert any("6 prompts are read; 1 answers to each will be asked" in line for line in shown.lines)
    assert not proven["sft"].failed and server.seen == []


PROGRAM = """
import sys
from posttrain.config import load_recipe
from posttrain.training.pipeline import run_recipe

run_recipe(load_recipe(sys.argv[1]), progress=False)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_and_repeated_asks_nothing_twice(
    server: TeacherServer, model: Path, tmp_path: Path
) -> None:
    def slow(body: dict[str, Any]) -> str:
        time.sleep(0.03)
        return f"answer to {asked(body)}"

    server.answer = slow
    mine = recipe(tmp_path, model, big(server, concurrency=1), prompts=40)
    path = tmp_path / "recipe.yaml"
    path.write_text(mine.to_yaml())
    first = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)])
    while len(server.seen) < 10 and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    run_recipe(mine, progress=False)
    counts = Counter(server.questions)
    # The question that was under way when the kill came had no answer yet.
    assert len(counts) == 40 and sum(counts.values()) <= 41
    rows = read_jsonl(tmp_path / "runs" / "mine" / "answers" / "data.jsonl")
    assert [row["messages"][1]["content"] for row in rows] == [f"answer to {n} + 1?" for n in range(40)]
