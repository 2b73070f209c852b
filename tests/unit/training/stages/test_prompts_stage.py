"""The stage `prompts` in a recipe: a model on this machine writes user turns, and what the stage leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config.prompts import Personas
from posttrain.data.read import read
from posttrain.errors import ConfigError, DataError, EmptyDatasetError, TemplateError
from posttrain.runs.files import read_jsonl
from posttrain.runs.records.stage import StageRecord
from posttrain.synthesis.journal import ASKED
from posttrain.synthesis.local import LocalModel
from posttrain.synthesis.teacher import Ask, Drawing
from posttrain.training.stages.prompts import personas_of
from posttrain.types import Demonstration, Message, Task
from tests.fixtures import byte_tokenizer, tiny_model

LOOSE = {"least_words": 1, "most_words": None, "keywords": [], "most_alike": None}
MAGPIE = {"kind": "magpie", "count": 3, "sampling": {"max_new_tokens": 400}, "filters": LOOSE}


def saved(folder: Path, template: str = "CHATML") -> Path:
    tokenizer = byte_tokenizer(template, eos="<|im_end|>", pad_is_eos=True)
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def recipe(folder: Path, model: Path, stage: dict[str, Any]) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"schema": 1, "model": str(model), "stages": [{"method": "prompts", **stage}]}))
    return path


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
    bare = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    path = recipe(tmp_path, saved(tmp_path / "model", bare), {"make": MAGPIE})
    with pytest.raises(TemplateError, match="writes nothing before a user's text"):
        pt.run(path, out=tmp_path / "runs", progress=False)


def test_what_the_stage_leaves_behind(model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, model, {"make": MAGPIE, "gate": "off"})
    pt.run(path, out=tmp_path / "runs", progress=False)
    [folder] = [found.parent for found in tmp_path.glob("runs/**/data.jsonl")]
    rows = list(read(folder / "data.jsonl"))
    record = StageRecord.read(folder)
    assert record is not None and record.data is not None
    counts = record.data
    assert len(rows) == counts.kept == counts.prompts and all(isinstance(row, Task) for row in rows)
    assert counts.diversity is not None and counts.diversity[-1].kept == len(rows)
    assert counts.answers == len(read_jsonl(folder / ASKED))
    assert sum(counts.dropped.values()) == len(read_jsonl(folder / "dropped.jsonl")) == counts.answers - len(rows)
    assert counts.more["teacher_tokens"] > 0


def test_an_evaluation_set_in_the_rows_stops_the_stage(model: Path, tmp_path: Path) -> None:
    known = "Name the seven rivers that flow into the northern lake, from the longest to the shortest of them."
    (tmp_path / "suite.jsonl").write_text(json.dumps({"question": known, "answer": "none"}) + "\n")
    (tmp_path / "seeds.jsonl").write_text(json.dumps({"prompt": "Name a lake."}) + "\n")
    stage = {
        "data": "seeds.jsonl",
        "make": {"kind": "personas", "tasks": ["question"], "filters": LOOSE},
        "against": ["suite.jsonl"],
        "gate": "stop",
    }
    from posttrain.synthesis.teacher import Reply

    def says(self: LocalModel, asks: Any, on_reply: Any = None) -> list[Reply]:
        replies = [Reply(known, completion_tokens=9) for _ in asks]
        for index, reply in enumerate(replies if on_reply is not None else []):
            on_reply(index, reply)
        return replies

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match=r"suite\.jsonl"):
        patch.setattr(LocalModel, "ask", says)
        pt.run(recipe(tmp_path, model, stage), out=tmp_path / "runs", progress=False)


def test_where_nothing_is_kept_the_error_says_why(model: Path, tmp_path: Path) -> None:
    make = {**MAGPIE, "most_asks": 3, "sampling": {"max_new_tokens": 1}}
    with pytest.raises(EmptyDatasetError, match="no prompt was kept"):
        pt.run(recipe(tmp_path, model, {"make": make}), out=tmp_path / "runs", progress=False)
    [folder] = [found.parent for found in tmp_path.glob("runs/**/dropped.jsonl")]
    assert len(read_jsonl(folder / "dropped.jsonl")) == 3 and not (folder / "data.jsonl").exists()


def test_a_check_writes_stand_ins_of_the_same_form(model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, model, {"make": MAGPIE, "answers": {}})
    text = json.loads(path.read_text())
    text["stages"].append({"method": "sft", "data": {"stage": "prompts"}, "held_out": 0, "steps": 1})
    path.write_text(json.dumps(text))
    said: list[str] = []
    pt.check(path, progress=said.append)
    assert any("3 questions" in line or "6 questions" in line for line in said)


@pytest.mark.parametrize("kind", ["self_instruct", "evol_instruct", "personas"])
def test_kinds_that_grow_prompts_need_rows(model: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="has no data"):
        pt.check(recipe(tmp_path, model, {"make": {"kind": kind}}), progress=False)


def test_a_file_of_personas(tmp_path: Path) -> None:
    path = tmp_path / "people.txt"
    path.write_text("# people\n\na beekeeper\na porter\na beekeeper\n", encoding="utf-8")
    assert [one.text for one in personas_of(Personas(personas_file=str(path)))] == ["a beekeeper", "a porter"]
    path.write_text("# nobody\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds none"):
        personas_of(Personas(personas_file=str(path)))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        personas_of(Personas(personas_file=str(path)))


def test_answered_prompts_are_demonstrations(model: Path, tmp_path: Path) -> None:
    stage = {"make": MAGPIE, "answers": {"max_new_tokens": 400, "temperature": 1.0}, "gate": "off"}
    pt.run(recipe(tmp_path, model, stage), out=tmp_path / "runs", progress=False)
    [path] = tmp_path.glob("runs/**/data.jsonl")
    rows = list(read(path))
    assert rows and all(isinstance(row, Demonstration) and row.messages[-1].role == "assistant" for row in rows)
