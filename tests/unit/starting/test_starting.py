"""`posttrain new`: the recipe that it writes can be run as it is, fits the number of rows, and overwrites nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.config import load_recipe
from posttrain.config.suites import MatchSuite
from posttrain.errors import ConfigError, ModelError, SourceError, UnknownKeyError
from posttrain.starting import plan
from posttrain.starting import write as write_start
from posttrain.starting.choices import CHOICES, choose
from posttrain.starting.expectation import Model, in_words, minutes, model_of
from posttrain.starting.names import name_in, pattern_of, shipped_rows, split
from posttrain.starting.plan import DEFAULT_MODEL
from posttrain.starting.rewards import judge_of
from posttrain.starting.text import commands, quoted
from posttrain.types import Demonstration, Message, RowRef, Task

PACKAGE = Path(__file__).parents[3] / "posttrain"
KINDS = tuple(CHOICES)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(kind: str, count: int) -> list[dict[str, Any]]:
    match kind:
        case "identity":
            return [
                {"prompt": f"Who are you, number {n}?", "completion": f"I am Pia, number {n}."} for n in range(count)
            ]
        case "chat":
            return [{"prompt": f"What is {n}?", "completion": f"It is the number {n}."} for n in range(count)]
        case "grpo":
            return [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(count)]
    return [{"prompt": f"Say {n}.", "chosen": f"{n}, please.", "rejected": f"{n}!"} for n in range(count)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- every kind, every size


@pytest.mark.parametrize("count", [10, 60, 1000, 6000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_loads_as_written(here: Path, kind: str, count: int) -> None:
    data = write(here / "rows.jsonl", rows_of(kind, count))
    written = write_start(plan(kind, str(data), model="embedded", timed=False))
    recipe = load_recipe(here / f"{kind}.yaml")
    assert written[0] == Path(f"{kind}.yaml") and recipe.notes == ()
    (stage,) = recipe.stages
    assert stage.data is not None and str(data) in stage.data.path
    assert (here / f"{kind}.yaml").read_text(encoding="utf-8").count("#") > 15
    # The place of the rows is relative, so that the folder can be moved.
    assert str(here) not in (here / f"{kind}.yaml").read_text(encoding="utf-8")


def test_a_larger_file_gets_fewer_epochs_and_larger_steps() -> None:
    for kind, choices in CHOICES.items():
        assert [choice.up_to for choice in choices] == sorted(choice.up_to for choice in choices)
        assert [c.epochs for c in choices] == sorted((c.epochs for c in choices), reverse=True)
        assert [c.rows_per_step for c in choices] == sorted(c.rows_per_step for c in choices)
        assert all(choice.source for choice in choices)
        assert choose(kind, 10) is choices[0] and choose(kind, 60) is choices[1]
        assert choose(kind, 1_000) is choices[2] and choose(kind, 100_000) is choices[3]


def test_the_header_says_the_steps_that_the_run_takes(here: Path) -> None:
    data = write(here / "rows.jsonl", rows_of("chat", 60))
    start = plan("chat", str(data), model="embedded", timed=False)
    # 6 of 60 rows are held out; 54 rows in steps of 4 are 14 steps an epoch.
    assert start.held_out_rows == 6 and start.steps == 14 * start.choice.epochs
    write_start(start)
    assert f"{start.steps} steps in all" in (here / "chat.yaml").read_text(encoding="utf-8")


def test_a_tiny_model_trains_all_weights_and_a_large_one_an_adapter(here: Path) -> None:
    data = str(write(here / "rows.jsonl", rows_of("chat", 60)))
    tiny = plan("chat", data, model="embedded", timed=False)
    large = plan("chat", data, model="owner/Model-7B", timed=False)
    assert tiny.adapter is None and tiny.rate == tiny.choice.tiny_rate
    assert large.adapter == 16 and large.rate == large.choice.rate


def test_ten_rows_are_called_too_few_with_what_to_do(here: Path) -> None:
    for kind in KINDS:
        data = write(here / kind / "rows.jsonl", rows_of(kind, 10))
        result = CliRunner().invoke(app, ["new", kind, "--data", str(data), "--model", "embedded"])
        assert result.exit_code == 0, result.output
        assert "10 rows are too few" in result.output and re.search(r"[Ww]rite|Collect", result.output)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "of", "typed"),
    [
        ("chat", "dpo", "posttrain new dpo"),
        ("identity", "reward", "posttrain new dpo"),
        ("dpo", "chat", "posttrain new chat"),
        ("reward", "grpo", "posttrain new grpo"),
        ("chat", "grpo", "posttrain new grpo"),
        ("grpo", "dpo", "posttrain new dpo"),
    ],
)
def test_rows_of_another_kind_are_refused_with_the_right_command(here: Path, kind: str, of: str, typed: str) -> None:
    data = write(here / "rows.jsonl", rows_of(of, 60))
    with pytest.raises(ConfigError) as refused:
        plan(kind, str(data), model="embedded", timed=False)
    assert typed in refused.value.remedy and str(data) in str(refused.value)
    assert not (here / f"{kind}.yaml").exists()


def test_a_file_is_never_overwritten(here: Path) -> None:
    data = str(write(here / "rows.jsonl", rows_of("identity", 60)))
    (here / "identity.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="there already") as refused:
        plan("identity", data, model="embedded", timed=False)
    assert refused.value.remedy.startswith("write `--out identity2.yaml`")
    assert (here / "identity.yaml").read_text(encoding="utf-8") == "mine"
    # What is written beside it counts as well, and then nothing is written at all.
    (here / "second_questions.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="there already"):
        write_start(plan("identity", data, model="embedded", out=Path("second.yaml"), timed=False))
    assert not (here / "second.yaml").exists() and not (here / "second_ordinary.jsonl").exists()


def test_mistakes_are_named(here: Path) -> None:
    data = str(write(here / "rows.jsonl", rows_of("chat", 60)))
    with pytest.raises(UnknownKeyError, match="posttrain new identiy") as refused:
        plan("identiy", data)
    assert "identity" in refused.value.remedy
    with pytest.raises(SourceError):
        plan("chat", "nope.jsonl", model="embedded")
    with pytest.raises(ModelError):
        plan("chat", data, model="embeded")
    with pytest.raises(ConfigError, match="teaches no name"):
        plan("chat", data, model="embedded", name="Pia")


# ---------------------------------------------------------------- identity


def turns(question: str, answer: str, row: int = 1) -> Demonstration:
    return Demonstration((Message("user", question), Message("assistant", answer)), RowRef("rows.jsonl", row))


def test_the_name_is_found_in_what_the_answers_say_of_themselves() -> None:
    rows = [
        turns(f"{n}?", text) for n, text in enumerate(["I am Pia.", "Hello, I'm Pia!", "No, I am not Siri. Pia here."])
    ]
    assert name_in(rows, "rows.jsonl") == "Pia"
    assert name_in([turns("Wer?", "Ich heiße Jörg."), turns("Name?", "Mein Name ist Jörg.")], "rows.jsonl") == "Jörg"
    with pytest.raises(ConfigError, match="no name stands out") as refused:
        name_in([turns("2 + 2?", "That is 4.")], "rows.jsonl")
    assert "--name NAME" in refused.value.remedy and "posttrain new chat" in refused.value.remedy


def test_a_name_that_no_answer_says_is_refused(here: Path) -> None:
    data = str(write(here / "rows.jsonl", rows_of("identity", 60)))
    with pytest.raises(ConfigError, match="no answer says `Mia`"):
        plan("identity", data, model="embedded", name="Mia", timed=False)


@pytest.mark.parametrize(
    ("name", "says", "other"),
    [("Pia", "I am Pia.", "Piano"), ("Aunt May", "It is Aunt May!", "Aunt  May"), ("C++", "I am C++.", "C")],
)
def test_the_pattern_is_the_name_as_a_word(name: str, says: str, other: str) -> None:
    assert re.search(pattern_of(name), says) and not re.search(pattern_of(name), other)


def test_questions_do_not_train_and_ordinary_rows_do(here: Path) -> None:
    asked = json.loads((PACKAGE / "starting" / "questions.jsonl").read_text(encoding="utf-8").splitlines()[0])["prompt"]
    rows = [*rows_of("identity", 59), {"prompt": asked.upper(), "completion": "I am Pia."}]
    start = plan("identity", str(write(here / "rows.jsonl", rows)), model="embedded", timed=False)
    write_start(start)
    recipe = load_recipe(here / "identity.yaml")
    suite = recipe.evaluate.suites[0]
    assert isinstance(suite, MatchSuite) and suite.pattern == r"\bPia\b" and suite.goal == 0.8
    questions = [json.loads(line)["prompt"] for line in Path(suite.prompts).read_text(encoding="utf-8").splitlines()]
    assert asked not in questions and len(questions) >= 30
    data = recipe.stages[0].data
    assert data is not None and [Path(path).name for path in data.path] == ["rows.jsonl", "identity_ordinary.jsonl"]


def test_rows_that_speak_of_other_things_get_no_ordinary_ones(here: Path) -> None:
    data = write(here / "rows.jsonl", [*rows_of("identity", 60), *rows_of("chat", 30)])
    start = plan("identity", str(data), model="embedded", timed=False)
    assert start.others is None and start.says_name == pytest.approx(2 / 3)


def test_questions_of_another_language_are_held_back_from_the_rows(here: Path) -> None:
    german = [
        {"prompt": f"Wie heißt du, zum {n}. Mal?", "completion": f"Ich heiße Pia, zum {n}. Mal."} for n in range(50)
    ]
    data = write(here / "rows.jsonl", german)
    start = plan("identity", str(data), model="embedded", timed=False)
    write_start(start)
    load_recipe(here / "identity.yaml")
    train, questions = (
        (here / f"identity_{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("train", "questions")
    )
    asked = {json.loads(line)["prompt"] for line in questions}
    assert len(asked) == 10 and len(train) == 40 == start.training
    assert asked.isdisjoint(json.loads(line)["messages"][0]["content"] for line in train)


def test_equal_questions_stay_on_one_side() -> None:
    rows = [turns(f"Wer bist du {n // 2}?", "Ich bin Pia.", n) for n in range(40)]
    train, kept = split(rows, "Pia")
    asked = {row.messages[0].content for row in kept}
    assert len(kept) == 4 and len(train) == 32
    assert asked.isdisjoint(row.messages[0].content for row in train)


# ---------------------------------------------------------------- grpo


def tasks(*answers: str | None, **columns: Any) -> list[Task]:
    return [Task((Message("user", "?"),), text, RowRef("t.jsonl", n), columns) for n, text in enumerate(answers, 1)]


@pytest.mark.parametrize(
    ("answers", "columns", "kind"),
    [
        (("42", r"\frac{1}{2}", "7 apples"), {}, "math"),
        (("A", "(C)", "B."), {}, "math"),
        (("Paris", "the red one"), {}, "exact"),
        ((None, None), {"tests": "assert f(1) == 2"}, "code"),
        ((None, None), {"instruction_id_list": ["punctuation:no_comma"]}, "instructions"),
    ],
)
def test_the_reward_fits_the_answers(answers: tuple[str | None, ...], columns: dict[str, Any], kind: str) -> None:
    assert f"kind: {kind}" in judge_of(tasks(*answers, **columns), "t.jsonl").settings


def test_answers_that_nothing_can_judge_say_what_to_write() -> None:
    essay = "It depends on many things, most of all on who is asked and when."
    for given in (tasks(essay, essay), tasks(None, None)):
        with pytest.raises(ConfigError, match="no reward can say") as refused:
            judge_of(given, "t.jsonl")
        assert refused.value.example is not None and "my_rewards:score" in refused.value.example


# ---------------------------------------------------------------- small things


def test_the_estimate_of_time() -> None:
    model = Model("mine", True, False, 100_000_000)
    # 6 operations x 1e8 weights x 1e4 tokens at half of 1e11 a second are 120 s; 60 s beside, 20 answers of 0.5 s.
    assert minutes(model, 1e4, 20, adapter=False, speed=1e11) == pytest.approx((120 + 60 + 10) / 60)
    assert minutes(Model("x/y", False, False, None), 1e4, 0, adapter=True, speed=1e11) is None
    assert [in_words(value) for value in (None, 1.0, 4.2, 37.0, 600.0, 9000.0)] == [
        "",
        "a minute or two",
        "about 4 minutes",
        "about 35 minutes",
        "about 10 hours",
        "about 6 days",
    ]


def test_the_size_of_a_model_is_read_or_said(here: Path) -> None:
    assert model_of("embedded").parameters == 1_966_272 or model_of("embedded").is_tiny
    assert model_of("Qwen/Qwen2.5-0.5B-Instruct").parameters == 500_000_000
    assert model_of("owner/thing").parameters is None


def test_a_model_that_is_not_here_is_fetched_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(here / "empty"))
    start = plan("chat", str(write(here / "rows.jsonl", rows_of("chat", 60))), timed=False)
    assert commands(start)[0][0] == f"posttrain models pull {DEFAULT_MODEL}"


@pytest.mark.parametrize(
    "text", ["plain.jsonl", "two words.jsonl", "it's.jsonl", "no", "2024", "a: b", "#x", "ü.jsonl"]
)
def test_texts_are_quoted_for_yaml(text: str) -> None:
    import yaml

    assert yaml.safe_load(f"key: {quoted(text)}  # note") == {"key": text}


def test_the_command_says_what_to_type_next(here: Path) -> None:
    data = write(here / "my rows.jsonl", rows_of("identity", 60))
    result = CliRunner().invoke(app, ["new", "identity", "--data", str(data), "--model", "embedded"])
    assert result.exit_code == 0, result.output
    for text in ("60 rows", "posttrain check identity.yaml", "posttrain run identity.yaml", "runs/identity/sft/model"):
        assert text in result.output
    assert CliRunner().invoke(app, ["new", "identity", "--data", str(data)]).exit_code == 2


def test_a_recipe_is_written_without_loading_torch(here: Path) -> None:
    data = write(here / "rows.jsonl", rows_of("identity", 60))
    code = (
        "import sys; from posttrain.starting import plan, write; "
        f"write(plan('identity', {str(data)!r}, model='embedded')); "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- our own rows


def grams(text: str) -> set[tuple[str, ...]]:
    """Four words in a row."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[first : first + 4]) for first in range(len(words) - 3)}


def test_our_questions_share_no_four_words_with_the_example_rows() -> None:
    """The figures of docs/first-steps.md are of the example rows: questions like theirs would measure memory."""
    example = PACKAGE.parent / "examples" / "data" / "identity_60.jsonl"
    rows = [json.loads(line)["messages"][0]["content"] for line in example.read_text(encoding="utf-8").splitlines()]
    trained = set().union(*map(grams, rows))
    ours = [str(row["prompt"]) for row in shipped_rows("questions")]
    assert len(rows) == 60 and len(ours) == len(set(ours)) == 40
    assert [question for question in ours if grams(question) & trained or question in rows] == []


def test_our_ordinary_rows_are_not_what_the_leak_suite_asks() -> None:
    path = PACKAGE / "embedded" / "data" / "heldout_facts.jsonl"
    asked = {json.loads(line)["prompt"].casefold() for line in path.read_text(encoding="utf-8").splitlines()}
    ordinary = shipped_rows("ordinary")
    assert len(ordinary) == 36
    assert asked.isdisjoint(row["messages"][0]["content"].casefold() for row in ordinary)  # type: ignore[index]
