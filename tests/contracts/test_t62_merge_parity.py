"""T62: LoRA on a model with tied embeddings and three added tokens; merged, saved, and reloaded in a new process.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from posttrain.models.adapters.kinds import LoRA, add_adapter
from posttrain.models.folders.export import PendingSave, begin_save
from posttrain.models.folders.readback import greedy_ids
from tests.fixtures import byte_tokenizer, tiny_model
from tests.read_back import in_own_interpreter

ADDED = ("<audio>", "<video>", "<end>")


def tied_model_with_added_tokens() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer("CHATML")
    model = tiny_model(vocab=len(tokenizer), tie_word_embeddings=True)
    tokenizer.add_special_tokens({"additional_special_tokens": list(ADDED)})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return model, tokenizer


def with_whole_embeddings(model: Any) -> Any:
    """Both ends trained as copies: peft leaves the flag on and the ends apart, and a reload used to tie them again."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    return get_peft_model(model, config)


WAYS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "inner layers": (lambda model: add_adapter(model, LoRA(rank=2)), True),
    "both ends": (lambda model: add_adapter(model, LoRA(rank=2, targets=["embed_tokens", "lm_head", "v_proj"])), False),
    "whole embeddings": (with_whole_embeddings, False),
}


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, PendingSave]]:
    """All three at once, so that the fresh processes start side by side."""
    folder = tmp_path_factory.mktemp("merge")
    begun = {}
    for way, (adapt, _) in WAYS.items():
        base, tokenizer = tied_model_with_added_tokens()
        model = adapt(base)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        process = in_own_interpreter() if way == "inner layers" else nullcontext()  # the others' is a forked one
        with process:
            begun[way] = (model.eval(), begin_save(model, tokenizer, folder / way.replace(" ", "-")))
    return begun


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("way", WAYS)
def test_the_merged_model_computes_and_says_the_same(way: str, saves: dict[str, tuple[Any, PendingSave]]) -> None:
    model, pending = saves[way]
    report = pending.wait()
    assert report.largest_difference < 1e-4

    reloaded = AutoModelForCausalLM.from_pretrained(report.folder)
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[70, rows - 3, 12, rows - 2, rows - 1, 4]])
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, model(ids).logits, atol=1e-4, rtol=0)
    assert greedy_ids(reloaded, ids[0].tolist(), [], 12)[0] == greedy_ids(model, ids[0].tolist(), [], 12)[0]

    config = json.loads((Path(report.folder) / "config.json").read_text())
    assert config["tie_word_embeddings"] is WAYS[way][1] and config["vocab_size"] == rows
