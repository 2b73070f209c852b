"""A model on this machine as a teacher: what it says depends on the seed and on nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.teacher import LocalTeacher
from posttrain.errors import ConfigError, EngineError
from posttrain.models.folders.loading import load
from posttrain.synthesis.cost import Meter
from posttrain.synthesis.local import MOST_IN_A_ROW, LocalModel
from posttrain.synthesis.teacher import UNASKED, Ask, Drawing
from posttrain.synthesis.teachers import teacher_of
from posttrain.types import Message
from tests.fixtures import byte_tokenizer, tiny_model

DRAWING = Drawing(temperature=1.0, max_new_tokens=12)


def saved(folder: Path, template: str = "CHATML") -> Path:
    tokenizer = byte_tokenizer(template, eos="<|im_end|>", pad_is_eos=True)
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def question(text: str, seed: int = 0, **fields: object) -> Ask:
    return Ask((Message("user", text),), DRAWING, seed, **fields)  # type: ignore[arg-type]


def test_an_answer_depends_on_its_question_and_seed_alone(model: Path) -> None:
    asks = [question(f"{n} + 1?", seed) for n in range(3) for seed in (0, 1)]
    together = LocalModel(model).ask(asks)
    alone = [LocalModel(model).ask([ask])[0] for ask in reversed(asks)][::-1]
    assert together == alone
    assert together[0].text != together[1].text, "another seed, another answer"
    assert all(reply.error is None and 1 <= reply.completion_tokens <= 12 for reply in together)
    assert {reply.ended for reply in together} <= {True, False}
    assert all(reply.ended == (reply.details["finish"] != "length") for reply in together)


def test_a_loaded_model_and_its_folder_say_the_same_under_their_own_names(model: Path) -> None:
    loaded = LocalModel(load(model))
    assert loaded.ask([question("2?")]) == LocalModel(model).ask([question("2?")])
    assert loaded.name == str(model)
    assert LocalModel(model).identity == LocalModel(str(model)).identity


def test_another_template_is_another_teacher(model: Path, tmp_path: Path) -> None:
    assert LocalModel(saved(tmp_path, "LLAMA3_LIKE")).identity != LocalModel(model).identity


def test_a_question_that_cannot_be_asked_stops_no_other(tmp_path: Path) -> None:
    system = Ask((Message("system", "Be brief."), Message("user", "2?")), DRAWING)
    tools = question("3?", tools=({"type": "function", "function": {"name": "add"}},))
    teacher = LocalModel(saved(tmp_path, "NO_SYSTEM"))
    replies = teacher.ask([question("1?"), system, tools])
    assert replies[0].error is None
    assert all(reply.error and reply.text == "" for reply in replies[1:])
    assert "endpoint" in str(replies[2].error)
    assert (teacher.spent.answers, teacher.spent.failures) == (1, 2)


def test_where_no_question_can_be_asked_one_error_says_so(model: Path) -> None:
    tools = ({"type": "function", "function": {"name": "add"}},)
    with pytest.raises(EngineError, match="cannot be asked"):
        LocalModel(model).ask([question(str(n), tools=tools) for n in range(3 * MOST_IN_A_ROW)])


def test_asking_stops_when_the_tokens_are_spent(model: Path) -> None:
    teacher = LocalModel(model, meter=Meter(most_tokens=1))
    first = teacher.ask([question("1?")])
    assert first[0].error is None
    assert [reply.error for reply in teacher.ask([question("2?"), question("3?")])] == [UNASKED, UNASKED]


def test_no_model_is_loaded_for_nothing(tmp_path: Path) -> None:
    assert LocalModel(tmp_path / "nothing").ask([]) == []


def test_what_a_recipe_says_becomes_a_teacher(model: Path, tmp_path: Path) -> None:
    with teacher_of(LocalTeacher(), policy=model, journal=tmp_path / "asked.jsonl") as policy:
        assert policy.name == str(model) and policy.ask([question("2?")])[0].error is None
    with pytest.raises(ConfigError, match="there is no policy"):
        teacher_of(LocalTeacher(), journal=tmp_path / "asked.jsonl")
    with pytest.raises(ConfigError, match="known in its recipe alone"):
        teacher_of(LocalTeacher(stage="sft"), journal=tmp_path / "asked.jsonl")
    with pytest.raises(ConfigError, match="one model"):
        LocalTeacher(stage="sft", model="x")
