"""A base model without a chat template, under `template: raw` and `chatml`: asked, corrected and trained alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import load_recipe
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError, TemplateError
from posttrain.runs.files import read_jsonl
from posttrain.runs.progress import Progress
from posttrain.training import pipeline
from posttrain.training.pipeline import check_recipe, run_recipe
from posttrain.training.stages import correction
from tests.fixtures import byte_tokenizer, tiny_model

RECIPE = """
schema: 1
name: base
model: ./start
evaluate:
  suites:
    - {name: names, kind: match, prompts: rows.jsonl, pattern: Pia, limit: 2, sampling: {max_new_tokens: 4}}
    - {name: own, kind: perplexity, prompts: rows.jsonl, limit: 2, sampling: {max_new_tokens: 4}}
stages:
  - {name: before, method: correction, data: rows.jsonl, sampling: {temperature: 1.0, max_new_tokens: 6}}
  - name: sft
    method: sft
    data: rows.jsonl
    encoding: {template: TEMPLATE}
    learning_rate: 1e-2
    steps: 2
    rows_per_step: 2
  - {name: after, method: correction, data: rows.jsonl, sampling: {temperature: 1.0, max_new_tokens: 6}}
"""


def base_recipe(folder: Path, template: str) -> Path:
    tokenizer = byte_tokenizer(None)
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    rows = [{"prompt": f"Who are you, {i}?", "completion": f"I am Pia {i}."} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "base.yaml"
    path.write_text(RECIPE.replace("TEMPLATE", template))
    return path


@pytest.mark.parametrize("template", ["raw", "chatml"])
def test_a_base_model_is_asked_as_it_is_trained(tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Noted(Encoder):
        def __init__(self, tokenizer: Any, settings: EncoderSettings | None = None):
            super().__init__(tokenizer, settings)
            asked.append(self.settings.template)

    monkeypatch.setattr("posttrain.evaluate.asking.Encoder", Noted)
    monkeypatch.setattr(correction, "Encoder", Noted)
    recipe = load_recipe(base_recipe(tmp_path, template), [f"out='{tmp_path / 'runs'}'"])
    run_recipe(recipe, progress=Progress())
    assert asked == [template] * 4  # the start, the stage before any training, the trained model, the stage after it
    folder = tmp_path / "runs" / "base"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["start"]["own.perplexity_change"] == 0.0 and "own.perplexity" in summary["sft"]
    (kept, *_) = read_jsonl(folder / "start" / "baseline" / "own.jsonl")[1:]
    prompt = byte_tokenizer(None).decode(kept["prompt_ids"])
    assert prompt.startswith("Who are you" if template == "raw" else "<|im_start|>user\n")
    for stage in ("before", "after"):
        assert read_jsonl(folder / stage / "data.jsonl")


def test_without_a_template_the_error_names_one(tmp_path: Path) -> None:
    recipe = load_recipe(base_recipe(tmp_path, "chat"), [f"out='{tmp_path / 'runs'}'"])
    with pytest.raises(TemplateError) as error:
        run_recipe(recipe)
    assert "template: raw" in error.value.remedy
    record = json.loads((tmp_path / "runs" / "base" / "run.json").read_text())
    assert record["status"] == "failed"


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    recipe = load_recipe(base_recipe(tmp_path, "raw"), [f"out='{tmp_path / 'deep' / 'runs'}'"])
    assert list(check_recipe(recipe)) == ["sft"]
    assert not (tmp_path / "deep").exists()
    (tmp_path / "deep" / "runs").mkdir(parents=True)
    check_recipe(recipe)
    assert list((tmp_path / "deep").rglob("*")) == [tmp_path / "deep" / "runs"]


@pytest.mark.parametrize("ask", [run_recipe, check_recipe])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(
    tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(pipeline, "prepare", None)
    recipe = load_recipe(base_recipe(tmp_path, "raw"), [f"out='{tmp_path / 'runs'}'", "sft.compute.device=cuda"])
    with pytest.raises(ConfigError) as error:
        ask(recipe)
    assert error.value.where == "sft.compute.device" and "device: auto" in error.value.remedy
    assert not (tmp_path / "runs").exists()
