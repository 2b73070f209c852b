"""Whole runs on the embedded model: what lies in the run folder, running again, kill -9, and changed inputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.errors import DataError, ResumeError
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import Progress
from posttrain.training.pipeline import check_recipe, run_recipe

RECIPE = """
schema: 1
name: small
model: embedded
evaluate:
  suites:
    - {name: identity, kind: match, prompts: package://heldout_identity.jsonl, pattern: Pia, limit: 6}
    - {name: own, kind: perplexity, prompts: package://heldout_facts.jsonl, limit: 4, sampling: {max_new_tokens: 8}}
stages:
  - name: sft
    method: sft
    data: {path: package://demonstrations.jsonl, limit: 200}
    learning_rate: 2e-3
    steps: 8
    rows_per_step: 8
    checkpoint: {every_steps: 2}
  - name: dpo
    method: dpo
    data: {path: package://preferences.jsonl, limit: 100}
    learning_rate: 5e-4
    steps: 6
    rows_per_step: 8
    adapter: {rank: 4}
    checkpoint: {every_steps: 2}
"""


class Heard(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def run(folder: Path, *overrides: str, text: str = RECIPE) -> Heard:
    heard = Heard()
    recipe = load_recipe(write_recipe(folder, text), [f"out='{folder / 'runs'}'", *overrides])
    run_recipe(recipe, progress=heard)
    return heard


def metrics_without_times(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("seconds")
        record["values"].pop("tokens_per_second", None)
    return records


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_the_run_folder_holds_what_the_docs_promise(finished: Path) -> None:
    folder = finished / "runs" / "small"
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == ["start", "sft", "dpo"]
    assert summary["start"]["own.perplexity_change"] == 0.0
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    assert (folder / "report.html").stat().st_size > 10_000
    for stage in ("sft", "dpo"):
        for name in (
            "config.yaml",
            "stage.json",
            "preflight.json",
            "metrics.jsonl",
            "samples.jsonl",
            "evaluation.json",
        ):
            assert (folder / stage / name).exists(), name
        record = json.loads((folder / stage / "stage.json").read_text())
        assert record["status"] == "done" and record["output"] == "model" and record["logprobs"] == "tree"
        preflight = json.loads((folder / stage / "preflight.json").read_text())
        assert {check["status"] for check in preflight["checks"]} == {"pass"}
    pairs = [json.loads(line) for line in (folder / "dpo" / "pairs.jsonl").read_text().splitlines()]
    assert {pair["when"] for pair in pairs} == {"start", "end"}
    assert all(pair["rewards_chosen"] == 0.0 for pair in pairs if pair["when"] == "start")


def test_the_saved_model_is_an_ordinary_folder(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "runs" / "small" / "dpo" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello."}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        assert torch.isfinite(model(**ids).logits).all()


def test_running_again_does_nothing_again(finished: Path) -> None:
    folder = finished / "runs" / "small"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    heard = run(finished)
    assert sum("done before" in line for line in heard.lines) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_option_runs_its_stage_and_those_after_it(tmp_path: Path) -> None:
    run(tmp_path)
    sft = tmp_path / "runs" / "small" / "sft" / "metrics.jsonl"
    before = sft.stat().st_mtime_ns
    heard = run(tmp_path, "dpo.beta=0.3")
    assert sft.stat().st_mtime_ns == before
    assert any("sft: done before" in line for line in heard.lines)
    assert not any("dpo: done before" in line for line in heard.lines)
    assert len(metrics_without_times(sft.parent.parent / "dpo")) == 6 + 2


@pytest.mark.slow
def test_kill_9_and_resume_equals_the_uninterrupted_run(finished: Path, tmp_path: Path) -> None:
    """Killed in the middle of each stage, at a moment nobody chose; bit for bit the same in the end."""
    recipe = write_recipe(tmp_path)
    command = [sys.executable, "-m", "posttrain", "run", str(recipe), "--out", str(tmp_path / "runs")]
    folder = tmp_path / "runs" / "small"
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for stage, step in (("sft", 5), ("dpo", 3)):
        process = subprocess.Popen(command, env=threads, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for_step(folder / stage / "metrics.jsonl", step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        record = json.loads((folder / stage / "stage.json").read_text())
        assert record["status"] == "running"
    subprocess.run(command, env=threads, check=True, stdout=subprocess.DEVNULL)
    whole = finished / "runs" / "small"
    for stage in ("sft", "dpo"):
        assert metrics_without_times(folder / stage) == metrics_without_times(whole / stage)
        weights, same = (load_file(run / stage / "model" / "model.safetensors") for run in (folder, whole))
        assert all(torch.equal(weights[name], same[name]) for name in same)
    assert json.loads((folder / "summary.json").read_text()) == json.loads((whole / "summary.json").read_text())


def _wait_for_step(path: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(6000):
        assert process.poll() is None, "the run ended before it could be killed"
        if path.exists() and f'"step": {step},' in path.read_text().replace('"step":', '"step": ').replace("  ", " "):
            return
        time.sleep(0.01)
    raise AssertionError("the run never came that far")


def test_changed_data_is_refused_on_resume(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": f"It is {i}."}) + "\n" for i in range(40)))
    text = RECIPE.replace("{path: package://demonstrations.jsonl, limit: 200}", str(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "posttrain.training.stages.policy.begin_save", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, text=text)
    assert json.loads((tmp_path / "runs" / "small" / "sft" / "stage.json").read_text())["status"] == "interrupted"
    rows.write_text(rows.read_text() + json.dumps({"prompt": "Say 99.", "completion": "It is 99."}) + "\n")
    with pytest.raises(ResumeError, match="`data` has other content"):
        run(tmp_path, text=text)
    with pytest.raises(ResumeError, match="learning_rate"):
        run(tmp_path, "sft.learning_rate=1e-4", text=text)


def test_check_proves_and_trains_nothing(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), [f"out='{tmp_path / 'runs'}'"])
    results = check_recipe(recipe)
    assert list(results) == ["sft", "dpo"]
    assert not any(result.failed for result in results.values())
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


def test_rows_that_are_wrong_stop_the_run_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    good = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}] * 3
    bad = {"messages": [{"role": "human", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*good, bad]))
    text = RECIPE.replace("{path: package://demonstrations.jsonl, limit: 200}", str(rows))

    def no_model(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded before the data was read")

    monkeypatch.setattr("posttrain.training.stages.policy.load", no_model)
    with pytest.raises(DataError) as error:
        run(tmp_path, "evaluate.suites=[]", text=text)
    assert "row 4" in str(error.value) and "human" in str(error.value)
    run_record = RunFolder(tmp_path / "runs" / "small").run()
    assert run_record.status == "failed"


def test_siblings_start_from_the_same_weights(tmp_path: Path) -> None:
    text = RECIPE.split("  - name: dpo")[0].replace("steps: 8\n", "steps: 2\n")
    first = text.split("stages:\n")[1]
    again = first.replace("name: sft", "name: sibling\n    starts_from: start")
    after = first.replace("name: sft", "name: child\n    starts_from: sft")
    run(tmp_path, text=text + again + after)
    stages = {name: RunFolder(tmp_path / "runs/small").stage(name).stage() for name in ("sft", "sibling", "child")}
    starts = {name: record.start_model.fingerprint for name, record in stages.items()}
    assert starts["sft"] == starts["sibling"] != starts["child"]
    assert stages["child"].start_model.path.endswith("sft/model")
    # The same rows, seed and start: the siblings are one run twice, so that nothing of the first came into the second.
    one, two = (load_file(tmp_path / f"runs/small/{name}/model/model.safetensors") for name in ("sft", "sibling"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    # Named or not, a start that has not changed is no reason to run again.
    heard = run(tmp_path, text=text + again + after.replace("starts_from: sft", "starts_from: sibling"))
    assert heard.lines.count("child: done before, and nothing that it depends on has changed") == 1
