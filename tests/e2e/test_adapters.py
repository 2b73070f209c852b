"""An adapter exported alone, from stage to stage: a prompt is trained, gone on with, and asked by the suites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.models.folders.loading import load
from posttrain.runs.progress import Progress
from posttrain.training.pipeline import check_recipe, run_recipe

RECIPE = """
schema: 1
name: prompted
model: embedded
evaluate:
  suites:
    - name: identity
      kind: match
      prompts: package://heldout_identity.jsonl
      pattern: Pia
      limit: 2
      sampling: {max_new_tokens: 4}
stages:
  - name: sft
    method: sft
    data: {path: package://demonstrations.jsonl, limit: 60}
    steps: 2
    rows_per_step: 4
    adapter: {kind: prompt, tokens: 4}
  - name: dpo
    method: dpo
    data: {path: package://preferences.jsonl, limit: 30}
    steps: 2
    rows_per_step: 4
    adapter: {kind: continue}
"""


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def prompt_of(folder: Path) -> torch.Tensor:
    return load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "prompted.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_prompt_goes_from_stage_to_stage(recipe_path: Path, tmp_path: Path) -> None:
    heard = Heard()
    result = run_recipe(load_recipe(recipe_path, [f"out='{tmp_path}'"]), progress=heard)
    said = "\n".join(heard.lines)
    assert "sft: an adapter of kind prompt cannot be folded into the weights" in said
    assert "dpo: ok   tree = padded: rows run padded: 4 virtual tokens stand before each" in said
    first, second = result.folder / "sft" / "model", result.folder / "dpo" / "model"
    assert not torch.equal(prompt_of(first), prompt_of(second))
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"]
    record = json.loads((result.folder / "dpo" / "stage.json").read_text())
    assert (record["logprobs"], record["reference"]) == ("padded", "live")
    assert record["parameters"]["trainable"] == prompt_of(first).numel()
    preflight = json.loads((result.folder / "dpo" / "preflight.json").read_text())
    identity = next(check for check in preflight["checks"] if check["name"] == "identity")
    assert identity["status"] == "pass" and abs(identity["evidence"]["loss"] - 0.693147) < 1e-5
    assert set(result.summary) == {"start", "sft", "dpo"}
    assert load(second).source.layout == "adapter"


def test_a_check_needs_no_stage_to_have_run(recipe_path: Path, tmp_path: Path) -> None:
    proven = check_recipe(load_recipe(recipe_path, [f"out='{tmp_path}'"]), progress=Heard())
    assert set(proven) == {"sft", "dpo"} and not any(checks.failed for checks in proven.values())
