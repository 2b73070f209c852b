"""What the verbs do with their options, on a tiny model and on stand-ins for the parts that take minutes."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from rich.console import Console
from safetensors import SafetensorError
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.cli.boundary import guarded
from posttrain.cli.chat import chat
from posttrain.cli.proof import LONGEST_PIECE, show_preflight
from posttrain.cli.run import with_out
from posttrain.cli.speaker import Speaker, read_prompts
from posttrain.cli.tables import figure, final_table, shares_of, side_by_side
from posttrain.config.yaml_text import parse_value
from posttrain.errors import ConfigError, SourceError
from posttrain.report.statement import Statement
from posttrain.report.verdict import RunVerdict
from posttrain.runs.disk import refusal_of
from posttrain.runs.files import write_json
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.evaluation import Figure, Meaning, SuiteMeanings, SuiteScores
from posttrain.runs.records.preflight import DecodedPiece, DecodedRow
from posttrain.runs.records.run import StageEntry
from posttrain.types import Message
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model

RECIPE = "schema: 1\nmodel: embedded\nstages:\n  - {method: sft, data: sft.jsonl}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sft.jsonl").write_text("{}\n")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def screen(table: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100).print(table)
    return stream.getvalue()


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("match", 0.97, "97 %"),
        ("perplexity_change", 0.0423, "+4.2 %"),
        ("perplexity", 12.345, "12.3"),
        ("accuracy", None, "-"),
        ("accuracy", float("nan"), "-"),
    ],
)
def test_figures_are_shares_changes_or_numbers(metric: str, value: float | None, text: str) -> None:
    assert figure(None if value is None else Figure(value), metric) == text
    assert figure(None, metric) == "-"


def test_figures_have_their_interval() -> None:
    assert figure(Figure(0.5, 0.404, 0.596), "match") == "50 % [40, 60]"


def test_the_final_table_has_a_column_per_stage(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.evaluations() == {}
    run.write_run(stages=(StageEntry("sft", "sft", "done", 1.0),))
    length = Figure(7.0, 6.0, 8.0, 4)
    run.start.write(SuiteScores({"who": {"match": Figure(0.0), "length": length}}))
    run.stage("sft").write_stage(name="sft")
    after = {"who": {"match": Figure(0.5), "length": length}, "x": {"perplexity": Figure(2.0)}}
    run.stage("sft").write(SuiteScores(after))
    lines = [line.split() for line in screen(final_table(run.evaluations())).splitlines()]
    assert lines == [
        ["before", "after", "sft"],
        ["who", "0", "%", "50", "%"],
        ["x:", "perplexity", "-", "2"],
    ]


def test_figures_that_their_suite_calls_shares_are_shown_as_shares(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_run(stages=())
    run.start.write(SuiteScores({"tasks": {"arc_acc": Figure(0.5), "arc_odd": Figure(0.5)}}))
    said = {"arc_acc": Meaning("arc acc", "share"), "arc_odd": Meaning("arc odd", "points")}
    write_json(tmp_path / "start" / "evaluations" / "metrics.json", SuiteMeanings({"tasks": said}).to_json())
    lines = screen(final_table(run.evaluations(), shares=shares_of(run))).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["%", "0.5"]


def test_answers_stand_side_by_side_as_they_are() -> None:
    shown = screen(side_by_side(["[b]hi[/b]"], [("A", "m"), ("B", "m")], [["one"], ["two"]]))
    assert "[b]hi[/b]" in shown  # text of a model is never markup
    assert shown.index("one") < shown.index("two")
    with pytest.raises(ValueError, match="shorter"):
        side_by_side(["p"], [("A", "m"), ("B", "m")], [["one"], []])


# ---------------------------------------------------------------- run and check


@dataclass
class Called:
    """Stands in for the pipeline, and remembers what it was asked."""

    recipe: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None
    verdict: RunVerdict = field(
        default_factory=lambda: RunVerdict("good", "clean", "The run finished: sft.", [], [], [])
    )


@dataclass
class Proof:
    checks: Sequence[Any]
    rows: Sequence[Any] = ()

    @property
    def failed(self) -> list[Any]:
        return [check for check in self.checks if check.status == "fail"]


@dataclass
class Check:
    status: str
    title: str = "stop token"
    detail: str = "32 of 32"
    remedy: str | None = "do this"


class Interrupted(Exception):
    problem, number = "stopped after step 3 of 9", 2


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Called:
    called = Called()

    def run_recipe(recipe: Any, **options: Any) -> Any:
        called.recipe, called.options = recipe, options
        if called.error is not None:
            raise called.error
        return type("Result", (), {"folder": Path("runs/mine"), "summary": {"start": {"x": 1.0}}, "report": "r.html"})

    def check_recipe(recipe: Any, **options: Any) -> dict[str, Proof]:
        called.recipe = recipe
        return {"sft": Proof([Check("pass"), Check(recipe.name if recipe.name == "fail" else "warn")])}

    fakes = {
        "posttrain.training.pipeline": {"run_recipe": run_recipe, "check_recipe": check_recipe},
        "posttrain.training.loop": {"Interrupted": Interrupted},
    }
    monkeypatch.setattr("posttrain.report.verdict_of", lambda folder: called.verdict)
    for name, content in fakes.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return called


def test_run_passes_overrides_and_says_where_things_are(folder: Path, pipeline: Called) -> None:
    arguments = ["run", str(folder / "mine.yaml"), "sft.epochs=2", "seed=3", "--out", str(folder / "o"), "--fresh"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert (pipeline.recipe.seed, pipeline.recipe.stages[0].epochs) == (3, 2.0)
    assert pipeline.recipe.folder == folder / "o" / "mine"
    assert pipeline.options["fresh"] is True
    assert result.stdout.splitlines() == [
        "verdict clean: The run finished: sft.",
        "run     runs/mine",
        "report  r.html",
    ]


def test_run_says_the_verdict_and_what_is_worst(folder: Path, pipeline: Called) -> None:
    """A leak of 100 % was a line of the table like any other; that it is bad stood in the report alone."""
    worse = [Statement("bad", f"leak {number}: clearly worse.") for number in range(1, 6)]
    found = [*worse, Statement("warn", "few rows"), Statement("good", "identity: clearly better.")]
    pipeline.verdict = RunVerdict("bad", "needs attention", "The run finished: sft.", [], found, [])
    result = CliRunner().invoke(app, ["run", str(folder / "mine.yaml")])
    first, *said, more, _, _ = result.stdout.splitlines()
    assert first == "verdict needs attention: The run finished: sft."
    assert [line.strip() for line in said] == [finding.text for finding in worse[:3]]
    assert more.strip() == "and 2 more, in the report"


@pytest.mark.parametrize("name", ["2024", "it's", "null", "a b"])
def test_any_folder_name_can_be_given(name: str) -> None:
    (override,) = with_out([], Path(name))
    assert parse_value(override.removeprefix("out="), "test") == name


def test_a_stopped_run_says_how_to_go_on(folder: Path, pipeline: Called) -> None:
    pipeline.error = Interrupted()
    result = CliRunner().invoke(app, ["run", str(folder / "mine.yaml")])
    assert result.exit_code == 130
    assert "stopped after step 3 of 9" in result.stderr
    assert "to go on:" in result.stderr


def test_check_ends_with_1_if_a_check_fails(folder: Path, pipeline: Called) -> None:
    result = CliRunner().invoke(app, ["check", str(folder / "mine.yaml")])
    assert result.exit_code == 0
    assert "pass  stop token: 32 of 32" in result.stdout
    assert result.stdout.count("do this") == 1  # no remedy for what passed
    assert CliRunner().invoke(app, ["check", str(folder / "mine.yaml"), "name=fail"]).exit_code == 1


def test_trained_text_is_marked_without_colour() -> None:
    pieces = (DecodedPiece("Q: [x]?\nA:", False), DecodedPiece(" yes" + "y" * LONGEST_PIECE, True))
    stream = io.StringIO()
    proof: Any = Proof([], [DecodedRow("a.jsonl, row 1", "chosen", pieces)])
    show_preflight(Console(file=stream, width=80), "sft", proof)
    shown = stream.getvalue()
    assert "a.jsonl, row 1 (chosen)" in shown
    assert "Q: [x]?\n    A:[[ yesy" in shown
    assert "y ... y" in shown


# ---------------------------------------------------------------- generate and compare, on a tiny model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    # Whatever a folder says about sampling is not asked for.
    (path / "generation_config.json").write_text('{"temperature": 0.01, "top_k": 1, "max_new_tokens": 1}')
    return str(path)


def test_a_file_of_prompts_is_answered(model: str, tmp_path: Path) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    arguments = ["generate", model, "--prompts", str(prompts), "--max-new-tokens", "6", "--samples", "2"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["a", "a", "b", "b"]
    assert all(1 < row["tokens"] <= 6 for row in rows)
    assert rows[0]["completion"] != rows[1]["completion"]  # temperature 0.7, whatever the folder says
    on_stdout = CliRunner().invoke(app, arguments)
    assert [json.loads(line) for line in on_stdout.stdout.splitlines()] == rows  # equal seeds


def test_a_pipe_holds_one_prompt(model: str) -> None:
    result = CliRunner().invoke(app, ["generate", model, "--max-new-tokens", "4"], input="two\nlines\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout
    empty = CliRunner().invoke(app, ["generate", model], input=" \n")
    assert empty.exit_code == 2
    assert "the pipe holds no prompt" in empty.stderr


def test_two_models_are_compared(model: str, tmp_path: Path) -> None:
    prompts, out = tmp_path / "p.txt", tmp_path / "o.jsonl"
    prompts.write_text("first\n\nsecond\nthird\n")
    options = ["--prompts", str(prompts), "--limit", "2", "--max-new-tokens", "4", "--out", str(out)]
    result = CliRunner().invoke(app, ["compare", model, model, *options])
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["first", "second"]
    assert all(row["a"] == row["b"] for row in rows)  # one model, greedy


def test_an_answer_streams_as_it_is_generated(model: str) -> None:
    speaker = Speaker(model, temperature=0.7, max_new_tokens=12, seed=5)
    prompt = (Message("user", "hi"),)
    (answer,) = next(speaker.answers([prompt]))
    assert answer.text.startswith("".join(speaker.stream(prompt, 5)))


def test_answers_are_cut_before_a_stop_string(model: str) -> None:
    """In a batch, from a pipe and as a stream; a backslash and an n are no newline."""
    prompt, options = (Message("user", "hi"),), {"temperature": 0.7, "max_new_tokens": 30, "seed": 5}
    (whole,) = next(Speaker(model, **options).answers([prompt]))
    stop = whole.text[9:11]
    expected = whole.text[: whole.text.index(stop)]
    speaker = Speaker(model, **options, stop=(stop, "\\n"))
    (answer,) = next(speaker.answers([prompt]))
    assert (answer.text, answer.finish) == (expected, "stop_string")
    assert speaker.sampling.stop == (stop, "\\n")
    pieces = list(speaker.stream(prompt, 5))
    assert "".join(pieces) == expected and len(pieces) > 3
    arguments = ["generate", model, "--max-new-tokens", "30", "--seed", "5", "--stop", "nothing", "--stop", stop]
    result = CliRunner().invoke(app, arguments, input="hi")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == expected + "\n"
    empty = CliRunner().invoke(app, ["generate", model, "--stop", ""], input="hi")
    assert empty.exit_code == 2 and "`stop` is out of range" in empty.stderr


def test_a_stream_gives_what_it_held_back_when_no_stop_string_came(model: str) -> None:
    prompt, options = (Message("user", "hi"),), {"temperature": 0.7, "max_new_tokens": 12, "seed": 5}
    (whole,) = next(Speaker(model, **options).answers([prompt]))
    assert not whole.text.endswith("\N{REPLACEMENT CHARACTER}")
    speaker = Speaker(model, **options, stop=(whole.text[-2:] + "and more",))
    assert "".join(speaker.stream(prompt, 5)) == whole.text


def test_prompts_are_read_from_rows_and_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    assert [one.prompt[0].content for one in read_prompts(tmp_path / "p.txt")] == ["one", " two "]
    (tmp_path / "c.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    )
    (question,) = read_prompts(tmp_path / "c.jsonl")
    assert question.prompt == (Message("user", "q"),)
    with pytest.raises(SourceError):
        read_prompts(tmp_path / "none.txt")


def test_sampling_that_makes_no_sense_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="top_p"):
        Speaker(model, top_p=0.0)


# ---------------------------------------------------------------- chat


class Parrot:
    """A speaker that says what it was told, and remembers each conversation."""

    def __init__(self) -> None:
        self.heard: list[list[str]] = []

    def stream(self, conversation: Sequence[Message], seed: int) -> Iterator[str]:
        self.heard.append([message.content or "" for message in conversation])
        yield "I heard "
        if conversation[-1].content == "stop me":
            raise KeyboardInterrupt
        yield conversation[-1].content or ""


def test_a_conversation_remembers_until_it_is_reset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["one", "stop me", "/reset", "two", "/exit", "never read"])
    monkeypatch.setattr(Console, "input", lambda *_: next(lines))
    parrot: Any = Parrot()
    chat(parrot, seed=0)
    assert parrot.heard == [["one"], ["one", "I heard one", "stop me"], ["two"]]
    shown = capsys.readouterr().out
    assert "I heard one\n" in shown
    assert "I heard  (stopped)\n" in shown


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_the_end_of_input_ends_a_conversation(monkeypatch: pytest.MonkeyPatch, end: type[BaseException]) -> None:
    def ends(*_: object) -> str:
        raise end

    monkeypatch.setattr(Console, "input", ends)
    parrot: Any = Parrot()
    chat(parrot, seed=0)
    assert parrot.heard == []


# ---------------------------------------------------------------- what is refused


def test_a_reward_model_is_no_model_to_talk_to(tmp_path: Path, model: str) -> None:
    judge = tmp_path / "judge"
    shutil.copytree(model, judge)
    settings = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps(settings | {"architectures": ["LlamaForSequenceClassification"]}))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hi\n")
    for verb in (
        ["generate", str(judge), "--prompts", str(prompts)],
        ["compare", model, str(judge), "--prompts", str(prompts)],
    ):
        result = CliRunner().invoke(app, verb)
        assert result.exit_code == 2 and "reward model" in result.stderr and "posttrain score" in result.stderr


def test_a_model_that_is_not_there_is_said_before_an_empty_pipe() -> None:
    result = CliRunner().invoke(app, ["generate", "NOPE"], input="")
    assert result.exit_code == 2 and "no model is called 'NOPE'" in result.stderr


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_no_fault_of_posttrain(wrapped: bool) -> None:
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    error: Exception = full
    if wrapped:
        error = RuntimeError("saving failed")
        error.__cause__ = full
    refused = refusal_of(error)
    assert refused is not None and "free some room" in refused.remedy and "No space left" in str(refused.found)
    assert refusal_of(SafetensorError("header too small")) is None
    unrelated = ValueError("a fault")
    unrelated.__context__ = full
    assert refusal_of(unrelated) is None


def test_a_verb_that_meets_a_full_disk_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(typer.Exit) as ended:
        guarded(verb)()
    assert ended.value.exit_code == 2 and "free some room" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_run_folder_that_cannot_be_made_is_refused(verb: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    out = tmp_path / "a_file" / "runs"
    result = CliRunner().invoke(app, [verb, "quickstart", "--out", str(out)])
    assert result.exit_code == 2 and "the run folder cannot be made" in result.stderr and "--out DIR" in result.stderr
    nowhere = CliRunner().invoke(app, [verb, "quickstart", "--out", "/proc/x"])
    assert nowhere.exit_code == 2 and "cannot be made" in nowhere.stderr
