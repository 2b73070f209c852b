"""A finished result is never written over: it is moved aside, with what differs; what cannot be moved is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import SFT, load_recipe
from posttrain.errors import ConfigError, ResumeError, SourceError
from posttrain.models.folders.loading import load
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import Progress
from posttrain.training import pipeline
from posttrain.training.pipeline import run_recipe
from posttrain.training.session import train
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model

SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "rows_per_step": 2, "steps": 2, "held_out": 0.4}
RECIPE = """
schema: 1
name: small
model: START
stages:
  - {name: first, method: sft, data: rows.jsonl, learning_rate: 1e-3, rows_per_step: 2, steps: 2, held_out: 0.4}
  - {name: second, method: sft, data: rows.jsonl, learning_rate: 1e-3, rows_per_step: 2, steps: 2, held_out: 0.4}
"""


class Heard(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Export:
    """An export that is done at once; the real one starts a process."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path):
        self.model, self.tokenizer, self.folder = model, tokenizer, folder

    def wait(self) -> str:
        self.model.save_pretrained(self.folder)
        self.tokenizer.save_pretrained(self.folder)
        return "saved"

    def discard(self) -> None:
        pass


@pytest.fixture(autouse=True)
def quick_export(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "posttrain.training.stages.policy.begin_save",
        lambda model, tokenizer, folder, *a, **k: Export(model, tokenizer, folder),
    )
    yield


@pytest.fixture
def start(tmp_path: Path) -> Path:
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 8)


def write_rows(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": f"{i}."}) + "\n" for i in range(count)))
    return path


def run(start: Path, *overrides: str, fresh: bool = False) -> list[str]:
    folder = start.parent
    (folder / "small.yaml").write_text(RECIPE.replace("START", str(start)))
    heard = Heard()
    recipe = load_recipe(folder / "small.yaml", [f"out='{folder / 'runs'}'", *overrides])
    run_recipe(recipe, fresh=fresh, progress=heard)
    return heard.lines


def folder_of(start: Path) -> Path:
    return start.parent / "runs" / "small"


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def earlier_names(start: Path) -> list[str]:
    return [folder.name for folder in RunFolder(folder_of(start)).earlier()]


# ---------------------------------------------------------------- recipes


def test_a_changed_stage_and_those_after_it_keep_their_earlier_results(start: Path, rows: Path) -> None:
    run(start)
    folder = folder_of(start)
    before = {name: weights(folder / name) for name in ("first", "second")}
    said = "\n".join(run(start, "first.learning_rate=2e-3"))
    assert {name: weights(folder / f"{name}.1") for name in before} == before
    assert all(weights(folder / name) != before[name] for name in before)
    assert (
        f"first: `learning_rate` 0.001 -> 0.002: it runs again, and the earlier result is kept in {folder}/first.1"
        in said
    )
    assert "second: the start model has other weights: it runs again" in said
    replaced = RunFolder(folder).stage("first.1").stage().replaced
    assert replaced is not None and replaced.because == ("`learning_rate` 0.001 -> 0.002",)
    run(start, "second.learning_rate=2e-3", "first.learning_rate=2e-3")
    assert earlier_names(start) == ["first.1", "second.1", "second.2"]
    assert weights(folder / "second.1") == before["second"]


def test_seeds_and_data_are_named_too(start: Path, rows: Path) -> None:
    run(start)
    assert any(line.startswith("first: `seed` 0 -> 3: it runs again") for line in run(start, "seed=3"))
    assert any(line.startswith("first: `split_seed` 0 -> 5: it") for line in run(start, "seed=3", "split_seed=5"))
    write_rows(rows, 9)
    assert any("first: `data` has other content: it" in line for line in run(start, "seed=3", "split_seed=5"))
    assert earlier_names(start)[:3] == ["first.1", "first.2", "first.3"]


def test_the_time_of_a_stage_is_not_that_of_the_result_before_it(start: Path, rows: Path) -> None:
    run(start)
    stage = RunFolder(folder_of(start)).stage("first")
    stage.write_stage(seconds=1e6)
    run(start, "seed=1")
    seconds = stage.stage().seconds
    assert seconds is not None and seconds < 1e5


def test_a_result_whose_next_attempt_failed_is_kept_too(start: Path, rows: Path) -> None:
    run(start)
    before = weights(folder_of(start) / "first")
    RunFolder(folder_of(start)).stage("first").write_stage(status="failed")  # before it could begin: its model is there
    run(start, "first.learning_rate=2e-3")
    assert weights(folder_of(start) / "first.1") == before


def test_an_attempt_that_never_began_says_nothing_of_the_result_that_is_there(
    start: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the stage would be trained again by the next call, though nothing that it rests on has changed."""
    run(start)
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "identity_of_recipe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(start)
    assert RunFolder(folder_of(start)).stage("first").stage().status == "done"
    assert sum("done before" in line for line in run(start)) == 2


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_a_finished_stage_without_its_model_is_made_again_from_its_start(start: Path, rows: Path) -> None:
    run(start)
    before = weights(folder_of(start) / "second")
    shutil.rmtree(folder_of(start) / "second" / "model")
    lines = run(start)
    # From the checkpoint of its last step it would take no step, and say so.
    assert not any("goes on after step" in line for line in lines)
    assert weights(folder_of(start) / "second") == before and earlier_names(start) == []


def test_stages_of_another_recipe_in_the_folder_are_said(start: Path, rows: Path) -> None:
    run(start)
    (start.parent / "small.yaml").write_text(RECIPE.replace("START", str(start)).rpartition("  - {name: second")[0])
    heard = Heard()
    recipe = load_recipe(start.parent / "small.yaml", [f"out='{start.parent / 'runs'}'"])
    run_recipe(recipe, progress=heard)
    assert any("holds second of another recipe" in line for line in heard.lines)
    assert (folder_of(start) / "second" / "model").is_dir()


def test_a_moved_file_is_no_change(start: Path, rows: Path) -> None:
    run(start)
    (start.parent / "moved.jsonl").write_bytes(rows.read_bytes())
    lines = run(start, f"first.data={start.parent / 'moved.jsonl'}")
    assert sum("done before" in line for line in lines) == 2 and earlier_names(start) == []


def test_an_interrupted_stage_is_refused_with_the_values(
    start: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Export, "wait", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(start)
    with pytest.raises(ResumeError, match=r"`learning_rate` 0\.001 -> 0\.002; `data` has other content"):
        write_rows(rows, 9)
        run(start, "first.learning_rate=2e-3")
    assert earlier_names(start) == []


def test_a_result_that_cannot_be_moved_is_not_written_over(
    start: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(start)
    before = weights(folder_of(start) / "first")

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("posttrain.runs.folder.os.rename", refused)
    with pytest.raises(ConfigError, match="cannot be moved aside") as caught:
        run(start, "seed=1")
    assert "Permission denied" in str(caught.value) and weights(folder_of(start) / "first") == before


def test_numbers_go_on_whatever_lies_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for _ in range(11):
        folder.stage("dpo").path.mkdir()
        folder.stage("dpo").write_stage(name="dpo", status="done")
        folder.set_aside(folder.stage("dpo"), ["`seed` 0 -> 1"], "2026-03-01T12:00:00+00:00")
    assert [kept.name for kept in folder.earlier()] == [f"dpo.{number}" for number in range(1, 12)]
    (tmp_path / "dpo.20").mkdir()  # a result that was torn, or a user's own notes
    folder.stage("dpo").path.mkdir()
    kept = folder.set_aside(folder.stage("dpo"), ["`seed` 0 -> 1"], "2026-03-01T12:00:00+00:00")
    assert kept.name == "dpo.21" and list((tmp_path / "dpo.20").iterdir()) == []


# ---------------------------------------------------------------- --fresh


def test_fresh_leaves_earlier_results_and_says_so(start: Path, rows: Path) -> None:
    run(start)
    run(start, "seed=1")
    lines = run(start, "seed=2", fresh=True)
    assert "earlier results stay, --fresh removes the current ones alone: first.1, second.1" in lines
    assert earlier_names(start) == ["first.1", "second.1"]
    # Where run.json cannot be read, the stages are found by their folders: these are none.
    (folder_of(start) / "run.json").write_text("torn")
    run(start, "seed=2", fresh=True)
    assert earlier_names(start) == ["first.1", "second.1"]


def test_fresh_refuses_a_linked_stage_and_removes_nothing(start: Path, rows: Path, tmp_path: Path) -> None:
    run(start)
    folder = folder_of(start)
    (folder / "second").rename(tmp_path / "elsewhere")
    (folder / "second").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"a link to {tmp_path}/elsewhere") as caught:
        run(start, fresh=True)
    assert f"rm {folder}/second" in str(caught.value)
    assert (folder / "first" / "model").is_dir() and (tmp_path / "elsewhere" / "model").is_dir()
    with pytest.raises(ConfigError, match="a link to"):
        train(SFT(name="second", **SETTINGS), start, rows, out=folder, fresh=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove everything")
def test_fresh_that_cannot_remove_is_an_error(start: Path, rows: Path) -> None:
    run(start)
    locked = folder_of(start) / "first" / "checkpoints"
    locked.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="cannot be removed") as caught:
            run(start, fresh=True)
    finally:
        locked.chmod(0o700)
    assert "first" in str(caught.value.where) and "Permission denied" in str(caught.value)


def test_a_removal_that_fails_is_named(start: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(start)

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "model"))

    monkeypatch.setattr("posttrain.runs.folder.shutil.rmtree", refused)
    with pytest.raises(ConfigError, match="first: the results that are there cannot be removed") as caught:
        run(start, fresh=True)
    assert "model: Permission denied" in str(caught.value) and "rm -r" in str(caught.value)


# ---------------------------------------------------------------- a start inside of what makes room


def test_results_from_which_a_stage_begins_are_neither_moved_nor_removed(
    start: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    train(SFT(**SETTINGS), start, rows, out=out)
    before, model = weights(out / "sft"), out / "sft" / "model"
    inside = write_rows(out / "sft" / "rows.jsonl", 8)
    for given, data in ((model, rows), (str(model), rows), (start, inside)):
        for fresh in (False, True):
            with pytest.raises(ConfigError, match="begins from results that make room for its own") as caught:
                train(SFT(**{**SETTINGS, "steps": 3}), given, data, out=out, fresh=fresh)
            assert "sft" in str(caught.value.found) and "out=" in str(caught.value)
            assert weights(out / "sft") == before and not RunFolder(out).earlier()
    # Another stage of the folder begins from it, and what is loaded already needs no folder.
    train(SFT(name="next", **SETTINGS), model, rows, out=out)
    train(SFT(**SETTINGS), load(model), rows, out=out)
    assert weights(out / "sft.1") == before


def test_fresh_keeps_a_model_from_which_the_recipe_begins(start: Path, rows: Path) -> None:
    run(start)
    begun = folder_of(start) / "second" / "model"
    before = begun.stat()
    for overrides in ((f"model={begun}",), (f"first.data={write_rows(begun.parent / 'rows.jsonl', 8)}",)):
        with pytest.raises(ConfigError, match="begins from results"):
            run(start, *overrides, fresh=True)
        assert begun.stat() == before and weights(folder_of(start) / "first")


# ---------------------------------------------------------------- rows that change under the run


def test_rows_that_change_after_they_were_hashed_train_nothing(
    start: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the hash and the file that is read are two: its record would name rows that never trained."""
    real = pipeline.run_stage

    def replaced_meanwhile(ctx: Any, **more: Any) -> Any:
        write_rows(rows, 9)
        return real(ctx, **more)

    monkeypatch.setattr(pipeline, "run_stage", replaced_meanwhile)
    with pytest.raises(SourceError, match="the file changed while the run began") as caught:
        run(start)
    assert caught.value.where == str(rows) and "run it again" in caught.value.remedy
    assert not (folder_of(start) / "first" / "metrics.jsonl").exists()


# ---------------------------------------------------------------- from Python, and seeds


def test_the_same_rule_from_python(start: Path, rows: Path, tmp_path: Path) -> None:
    out, heard = tmp_path / "mine", Heard()
    train(SFT(**SETTINGS), start, rows, out=out)
    before = weights(out / "sft")
    train(SFT(**{**SETTINGS, "learning_rate": 2e-3}), start, rows, out=out, seed=4, progress=heard)
    assert weights(out / "sft.1") == before != weights(out / "sft")
    assert any(line.startswith("sft: `learning_rate` 0.001 -> 0.002; `seed` 0 -> 4: it") for line in heard.lines)
    train(SFT(**{**SETTINGS, "learning_rate": 2e-3}), start, rows, out=out, seed=4)  # nothing changed
    assert [folder.name for folder in RunFolder(out).earlier()] == ["sft.1"]
    write_rows(rows, 9)
    train(SFT(**{**SETTINGS, "learning_rate": 2e-3}), start, rows, out=out, seed=4)
    assert [folder.name for folder in RunFolder(out).earlier()] == ["sft.1", "sft.2"]


def test_seeds_are_in_the_records(start: Path, rows: Path, tmp_path: Path) -> None:
    run = train(SFT(**SETTINGS), start, rows, out=tmp_path / "mine", seed=7, split_seed=2)
    record = RunFolder(run.folder).stage("sft").stage()
    assert (record.seed, record.split_seed) == (7, 2)
    config = (run.folder / "sft" / "config.yaml").read_text()
    assert "\nseed: 7\n" in config and "\nsplit_seed: 2\n" in config


def test_seeds_are_measured_on_the_same_rows(start: Path, rows: Path, tmp_path: Path) -> None:
    def split(name: str, **seeds: int) -> str:
        train(SFT(**SETTINGS), start, rows, out=tmp_path / name, **seeds)
        held_out = RunFolder(tmp_path / name).stage("sft").metrics("held_out")
        return json.dumps([line.values for line in held_out if line.step == 0])

    # At step 0 the model is the start, so that equal losses mean equal rows.
    assert split("a", seed=0) == split("b", seed=1)
    assert split("a", seed=0) != split("c", seed=0, split_seed=1)


def test_a_model_that_is_trained_on_has_the_weights_of_the_stage_before(
    start: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    policy = load(start)
    train(SFT(name="one", **SETTINGS), policy, rows, out=out)
    train(SFT(name="two", **SETTINGS), policy, rows, out=out)
    one, two = (RunFolder(out).stage(name).stage() for name in ("one", "two"))
    assert two.start_model is not None and one.end_weights == two.start_model.fingerprint
