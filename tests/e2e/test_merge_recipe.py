"""A recipe that trains two specialists from one base and merges them: checkpoints, suites, and what runs again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.errors import ConfigError
from posttrain.models.merging.tensors import entries_of, read_tensor
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.merging import MergeComparison, SearchRecord
from posttrain.training.pipeline import check_recipe, run_recipe
from tests.e2e.test_pipeline import Heard

RECIPE = """
schema: 1
name: small
model: embedded
evaluate:
  suites:
    - {name: own, kind: perplexity, prompts: package://heldout_facts.jsonl, limit: 4, sampling: {max_new_tokens: 8}}
stages:
  - {name: one, method: sft, data: {path: package://demonstrations.jsonl, limit: 40}, learning_rate: 2e-3, steps: 2,
     rows_per_step: 4}
  - {name: two, method: sft, starts_from: start, data: {path: package://demonstrations.jsonl, limit: 30},
     learning_rate: 2e-3, steps: 4, rows_per_step: 4, checkpoint: {every_steps: 2, keep: 2}}
  - {name: both, method: merge, merge: {kind: task_arithmetic, weight: 0.5,
     models: [{stage: one}, {stage: two, checkpoints: 2}]},
     barrier: {data: package://demonstrations.jsonl, points: 3, limit: 4}}
  - {name: after, method: sft, data: {path: package://demonstrations.jsonl, limit: 40}, learning_rate: 2e-3, steps: 1,
     rows_per_step: 4}
"""


def load(folder: Path, *overrides: str) -> Any:
    path = folder / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return load_recipe(path, [f"out='{folder / 'runs'}'", *overrides])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    run_recipe(load(folder), progress=Heard())
    return folder


def test_the_merge_is_of_the_siblings_over_the_recipes_start(done: Path) -> None:
    run = RunFolder(done / "runs/small")
    record = run.stage("both").stage()
    assert record.status == "done" and record.output == "model" and record.data is None
    start = load_file(next(Path(run.stage("one").stage().start_model.path).glob("*.safetensors")))  # type: ignore[union-attr,arg-type]
    one = load_file(run.stage("one").model / "model.safetensors")
    averaged = [load_file(path / "weights.safetensors") for path in sorted(run.stage("two").checkpoints.glob("step-*"))]
    assert len(averaged) == 2
    merged = {name: read_tensor(entry) for name, entry in entries_of(run.stage("both").model).items()}
    for name, tensor in merged.items():
        two = (averaged[0][name].double() + averaged[1][name].double()) / 2
        expected = start[name] + 0.5 * (one[name] - start[name]) + 0.5 * (two.float() - start[name])
        assert (tensor - expected).abs().max() < 1e-6, name


def test_it_is_asked_the_suites_and_the_next_stage_starts_from_it(done: Path) -> None:
    run = RunFolder(done / "runs/small")
    summary = json.loads((run.path / "summary.json").read_text())
    assert set(summary) >= {"start", "one", "two", "both", "after"}
    assert run.stage("after").stage().start_model.path.endswith("both/model")  # type: ignore[union-attr]
    page = (run.path / "report.html").read_text()
    assert "both" in page


def test_the_stage_says_how_its_models_lie_to_each_other(done: Path) -> None:
    found = RunFolder(done / "runs/small").stage("both").document(MergeComparison)
    assert found is not None and found.base == "embedded" and len(found.vectors) == 2 and len(found.barriers) == 1
    assert [part.part for part in found.layers] == ["embed_tokens", *(f"layer {index}" for index in range(4)), "norm"]
    assert all(point.loss is not None and point.loss > 0 for point in found.barriers[0].points)
    assert "How the models lie to each other" in (done / "runs/small/report.html").read_text()


SEARCHED = RECIPE.split("  - {name: both")[0].replace(
    "kind: perplexity, prompts: package://heldout_facts.jsonl, limit: 4",
    "kind: match, pattern: e, prompts: package://heldout_manners.jsonl, limit: 8",
)
SEARCHED += """
  - {name: both, method: merge, merge: {kind: linear, models: [{stage: one}, {stage: two}]},
     search: {suite: own, budget: 3}}
"""


def test_weights_are_chosen_by_a_suite_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SEARCHED, encoding="utf-8")
    recipe = load_recipe(path, [f"out='{tmp_path / 'runs'}'"])
    run_recipe(recipe, progress=Heard())
    run = RunFolder(tmp_path / "runs/small")
    record = run.stage("both").document(SearchRecord)
    assert record is not None and record.choosing == record.reporting == 4 and record.chosen is not None
    assert [one.what for one in record.candidates] == ["as written", "one alone", "two alone"]
    one, two = (load_file(run.stage(name).model / "model.safetensors") for name in ("one", "two"))
    weights = [float(value) for value in record.chosen.values if value is not None]
    for name, entry in entries_of(run.stage("both").model).items():
        expected = (weights[0] * one[name] + weights[1] * two[name]) / sum(weights)
        assert (read_tensor(entry) - expected).abs().max() < 1e-6, name
    assert {skill.suite for skill in run.merged_skills()} == {"own"}
    # Another question to the suite is another search.
    again = Heard()
    run_recipe(load_recipe(path, [f"out='{tmp_path / 'runs'}'", "evaluate.suites.own.limit=6"]), progress=again)
    assert any(line.startswith("both: ") and "it runs again" in line for line in again.lines), again.lines


def test_it_runs_again_only_when_a_model_has_changed(done: Path) -> None:
    heard = Heard()
    run_recipe(load(done), progress=heard)
    assert "both: done before, and nothing that it depends on has changed" in heard.lines
    again = Heard()
    run_recipe(load(done, "one.steps=3"), progress=again)
    assert any(line.startswith("both: ") and "it runs again" in line for line in again.lines), again.lines


def test_a_check_refuses_what_files_can_tell(tmp_path: Path) -> None:
    heard = Heard()
    check_recipe(load(tmp_path), progress=heard)
    said = next(line for line in heard.lines if line.startswith("both: "))
    assert "2 models are merged by task_arithmetic over embedded" in said and "Models that stages make" in said
    assert not (tmp_path / "runs").exists()
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match="shares its embeddings"):
        check_recipe(load(tmp_path, f"both.merge.base={_other_model(other)}"), progress=Heard())


def _other_model(folder: Path) -> Path:
    from tests.fixtures import byte_tokenizer, tiny_model

    tokenizer = byte_tokenizer("CHATML", pad=None)
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
