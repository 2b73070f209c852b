"""What a saved stage says of itself: the template that it was trained with, and the device that it was computed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.cli.speaker import Speaker
from posttrain.evaluate.suites import perplexity
from posttrain.evaluate.suites.perplexity import FixedAnswer, FixedAnswerScorer
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.manifest import write_manifest
from posttrain.models.folders.spoken import speech_of
from posttrain.models.tree.parity import computed_in
from posttrain.models.tree.policy import Policy
from posttrain.training.provenance import environment
from tests.fixtures import byte_tokenizer, random_trees, tiny_model


def saved(folder: Path, **training: str) -> Path:
    tokenizer = byte_tokenizer("CHATML")
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder, {"training": training})
    return folder


def test_a_model_of_bare_text_is_asked_with_bare_text(tmp_path: Path) -> None:
    sampling = {"temperature": 0.0, "max_new_tokens": 2, "device": "cpu"}
    raw, chat = saved(tmp_path / "raw", template="raw"), saved(tmp_path / "chat")
    # Folders of before the record of speech say `raw` in their manifest.
    assert [speech_of(resolve(folder)).template for folder in (raw, chat)] == ["raw", "chat"]
    assert Speaker(str(raw), **sampling).encoder.settings.template == "raw"
    assert Speaker(str(chat), **sampling).encoder.settings.template == "chat"
    assert Speaker(str(raw), template="chat", **sampling).encoder.settings.template == "chat"


def test_the_environment_names_the_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
    assert environment().device == "a card"
    assert environment(torch.device("cuda")).device == "a card"
    assert environment(torch.device("cpu")).device == "cpu"


@pytest.mark.parametrize("frozen", [False, True])
def test_perplexity_in_fp64_stays_on_the_tree(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms compute in fp32 also where the weights are fp64, so that two paths agree to fp32 rounding."""
    model = tiny_model("llama").double().requires_grad_(not frozen)
    assert computed_in(Policy(model), random_trees(1)) is torch.float32
    assert not frozen or not any(p.requires_grad for p in model.parameters())
    used: list[Policy] = []
    monkeypatch.setattr(perplexity, "Policy", lambda model: used.append(Policy(model)) or used[-1])
    answers = [FixedAnswer((1, 5, 9, 40), (8, 7, 22, 11), "stop_token"), FixedAnswer((1, 5), (8, 30), "stop_token")]
    FixedAnswerScorer(model).nats(answers)
    assert [policy.path for policy in used] == ["tree"]
