"""The stage `prompts` in a recipe: a model on this machine writes user turns, and what the stage leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config import parse_recipe
from posttrain.config.prompts import Personas
from posttrain.data.read import read
from posttrain.errors import ConfigError, DataError, EmptyDatasetError, SourceError, TemplateError
from posttrain.runs.files import read_jsonl
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import Progress
from posttrain.synthesis.journal import ASKED
from posttrain.synthesis.local import LocalModel
from posttrain.synthesis.teacher import Ask, Drawing, OnReply, Reply
from posttrain.training.pipeline import check_recipe, run_recipe
from posttrain.training.stages.prompts import personas_of
from posttrain.types import Demonstration, Message, Task
from tests.fixtures import byte_tokenizer, tiny_model

LOOSE = {"least_words": 1, "most_words": None, "keywords": [], "most_alike": None}
MAGPIE = {"kind": "magpie", "count": 3, "sampling": {"max_new_tokens": 400}, "filters": LOOSE}


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def saved(folder: Path, template: str = "CHATML") -> Path:
    tokenizer = byte_tokenizer(template, eos="<|im_end|>", pad_is_eos=True)
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def recipe(folder: Path, model: Path, stage: dict[str, Any], *after: dict[str, Any]) -> Any:
    stages = [{"method": "prompts", **stage}, *after]
    whole = {"schema": 1, "name": "mine", "model": str(model), "out": str(folder / "runs"), "stages": stages}
    return parse_recipe(json.dumps(whole), folder=folder)


def test_the_users_turn_is_drawn_after_its_beginning_and_ends_at_its_mark(model: Path) -> None:
    teacher = LocalModel(model)
    user, assistant = teacher.ask(
        [Ask((), Drawing(1.0, 1.0, 8), 3, speaker="user"), Ask((Message("user", "2?"),), Drawing(1.0, 1.0, 8), 3)]
    )
    encoder = pt.Encoder(byte_tokenizer("CHATML", eos="<|im_end|>", pad_is_eos=True))
    assert user.prompt_tokens == len(encoder.tokens.ids("<|im_start|>user\n")) and user.error is None
    assert assistant.prompt_tokens > user.prompt_tokens
    again = LocalModel(model).ask([Ask((), Drawing(1.0, 1.0, 8), 3, speaker="user")])
    assert again == [user], "the seed decides"


def test_a_mark_of_text_ends_the_turn(tmp_path: Path) -> None:
    plain = """\
{% for m in messages %}{% if m['role'] == 'user' %}Q{{ m['content'] }}e{% else %}{{ m['content'] }}\
{{ eos_token }}{% endif %}{% endfor %}"""
    teacher = LocalModel(saved(tmp_path, plain))
    replies = teacher.ask([Ask((), Drawing(1.0, 1.0, 300), seed, speaker="user") for seed in range(4)])
    assert any(reply.details["finish"] == "stop_string" for reply in replies)
    assert not any("e" in reply.text for reply in replies)


def test_a_template_without_a_users_turn_ends_the_stage(tmp_path: Path) -> None:
    bare = """\
{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"""
    path = recipe(tmp_path, saved(tmp_path / "model", bare), {"make": MAGPIE})
    with pytest.raises(TemplateError, match="writes nothing before a user's text"):
        run_recipe(path, progress=False)


def says(patch: pytest.MonkeyPatch, script: Callable[[Ask], Reply]) -> None:
    """Let the model on this machine follow a script: what it would write itself takes seconds, and is noise."""

    def ask(self: LocalModel, asks: Sequence[Ask], on_reply: OnReply | None = None) -> list[Reply]:
        replies = [script(one) for one in asks]
        for index, reply in enumerate(replies):
            self.spent.count(reply)
            if on_reply is not None:
                on_reply(index, reply)
        return replies

    patch.setattr(LocalModel, "ask", ask)


def numbered(ask: Ask) -> Reply:
    if ask.speaker == "user" and ask.seed % 3 == 0:
        return Reply("It goes on and", ended=False, completion_tokens=4)
    word = f"w{ask.seed}"
    return Reply(f"{word}a {word}b {word}c?", prompt_tokens=3, completion_tokens=5)


def test_what_the_stage_leaves_behind(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, numbered)
    result = run_recipe(recipe(tmp_path, model, {"make": {**MAGPIE, "count": 12}}), progress=False)
    stage = RunFolder(result.folder).stage("prompts")
    rows, record = list(read(stage.path / "data.jsonl")), stage.stage()
    assert record.data is not None
    counts = record.data
    assert len(rows) == 12 == counts.kept == counts.prompts and all(isinstance(row, Task) for row in rows)
    assert counts.diversity is not None and counts.diversity[-1].kept == 12 and len(counts.diversity) == 10
    assert counts.answers == len(read_jsonl(stage.path / ASKED)) > 12
    dropped = read_jsonl(stage.path / "dropped.jsonl")
    assert counts.dropped == {"cut": len(dropped)} and len(dropped) == counts.answers - 12
    assert counts.more["teacher_tokens"] == 12 * 5 + 4 * len(dropped)
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in ("Distinct words", "Distance to the nearest", "Repeated", "Vendi score"))


def test_an_evaluation_set_in_the_rows_stops_the_stage(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = "Name the seven rivers that flow into the northern lake, from the longest to the shortest of them."
    (tmp_path / "suite.jsonl").write_text(json.dumps({"question": known, "answer": "none"}) + "\n")
    stage = {
        "make": {"kind": "personas", "personas": ["a sailor"], "tasks": ["question"]},
        "against": ["suite.jsonl"],
    }
    says(monkeypatch, lambda ask: Reply(known))
    with pytest.raises(DataError, match=r"suite\.jsonl"):
        run_recipe(recipe(tmp_path, model, {**stage, "gate": "stop"}), progress=False)
    result = run_recipe(recipe(tmp_path, model, {**stage, "gate": "warn"}), progress=False)
    record = RunFolder(result.folder).stage("prompts").stage()
    assert record.data is not None and any("error of the audit: contamination" in note for note in record.data.notes)


def test_where_nothing_is_kept_the_error_says_why(model: Path, tmp_path: Path) -> None:
    make = {**MAGPIE, "most_asks": 3, "sampling": {"max_new_tokens": 1}}
    with pytest.raises(EmptyDatasetError, match="no prompt was kept"):
        run_recipe(recipe(tmp_path, model, {"make": make}), progress=False)
    [folder] = [found.parent for found in tmp_path.glob("runs/**/dropped.jsonl")]
    assert len(read_jsonl(folder / "dropped.jsonl")) == 3 and not (folder / "data.jsonl").exists()


def test_a_check_writes_stand_ins_of_the_same_form(model: Path, tmp_path: Path) -> None:
    after = {"method": "sft", "data": {"stage": "prompts"}, "held_out": 0, "steps": 1}
    shown = Lines()
    check_recipe(recipe(tmp_path, model, {"make": MAGPIE, "answers": {}}, after), progress=shown)
    assert any("6 questions and more will be asked of the teacher (`magpie`)" in line for line in shown.lines)


@pytest.mark.parametrize("kind", ["self_instruct", "evol_instruct", "personas"])
def test_kinds_that_grow_prompts_need_rows(model: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="has no data"):
        recipe(tmp_path, model, {"make": {"kind": kind}})


def test_a_file_of_personas(tmp_path: Path) -> None:
    path = tmp_path / "people.txt"
    path.write_text("# people\n\na beekeeper\na porter\na beekeeper\n", encoding="utf-8")
    assert [one.text for one in personas_of(Personas(personas_file=str(path)))] == ["a beekeeper", "a porter"]
    path.write_text("# nobody\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds none"):
        personas_of(Personas(personas_file=str(path)))
    path.write_bytes(b"\xef\xbb\xbfa beekeeper\n")  # a mark that Windows editors put first is no part of her
    assert [one.text for one in personas_of(Personas(personas_file=str(path)))] == ["a beekeeper"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="personas is not UTF-8 text"):
        personas_of(Personas(personas_file=str(path)))


def test_answered_prompts_are_demonstrations(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, numbered)
    result = run_recipe(recipe(tmp_path, model, {"make": MAGPIE, "answers": {}}), progress=False)
    rows = list(read(RunFolder(result.folder).stage("prompts").path / "data.jsonl"))
    assert len(rows) == 3 and all(isinstance(row, Demonstration) for row in rows)
    assert all(row.messages[-1].role == "assistant" for row in rows if isinstance(row, Demonstration))
