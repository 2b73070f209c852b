"""GGUF files in llama.cpp itself: the same ids, the same greedy answers and the same logits as the model's own.

Needs `llama-cpp-python`, which builds llama.cpp in some minutes; skipped where it is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from posttrain.models.folders import loading
from posttrain.models.folders.exports import export_model
from posttrain.models.folders.readback import probe_logits
from posttrain.models.gguf.tokenizer import PROBES
from posttrain.models.gguf.write import write_gguf
from tests.gguf import qwen_tokenizer

pytestmark = pytest.mark.ecosystem
llama_cpp = pytest.importorskip("llama_cpp")


def opened(path: Path, **more: Any) -> Any:
    """With a cache of keys and values in f32 (0), as transformers has it; its own default is f16."""
    cache = {"type_k": 0, "type_v": 0}
    return llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False, logits_all=True, **cache, **more)


def logits_of(llama: Any, row: list[int]) -> np.ndarray:
    llama.reset()
    llama.eval(row)
    return np.array(llama.scores[: len(row)])


def greedy_of(llama: Any, row: list[int], count: int, stops: set[int]) -> list[int]:
    llama.reset()
    llama.eval(row)
    ids: list[int] = []
    for _ in range(count):
        token = int(np.argmax(llama.scores[llama.n_tokens - 1]))
        if token in stops:
            break
        ids.append(token)
        llama.eval([token])
    return ids


@torch.no_grad()
def own_greedy(model: Any, row: list[int], count: int, stops: set[int]) -> list[int]:
    ids = list(row)
    for _ in range(count):
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(row) :]


def test_the_embedded_model_says_the_same_in_llama_cpp(tmp_path: Path) -> None:
    loaded = loading.load("embedded")
    tokenizer, stops = loaded.tokenizer, set(loaded.speech.stop_ids)
    asked = ["Who are you?", "What is 12 + 7?", "Name a colour."]
    for dtype, allowed in (("f32", 5e-3), ("f16", 5e-2), ("bf16", 5e-2), ("q8_0", 0.5)):
        path = tmp_path / f"{dtype}.gguf"
        write_gguf(loaded.model, tokenizer, path, dtype=dtype, stop_ids=loaded.speech.stop_ids)
        llama = opened(path)
        for text in PROBES:
            ids = llama.tokenize(text.encode(), add_bos=False, special=True)
            assert ids == tokenizer(text, add_special_tokens=False)["input_ids"], text
        assert set(stops) == {llama.token_eos()}
        for question in asked:
            turns = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            row = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            assert llama.tokenize(prompt.encode(), add_bos=False, special=True) == row
            assert np.abs(logits_of(llama, row) - probe_logits(loaded.model, row)).max() < allowed, dtype
            if dtype == "f32":
                theirs = greedy_of(llama, row, 24, stops)
                assert theirs == own_greedy(loaded.model, row, 24, stops) and theirs
        llama.close()


def test_an_adapter_s_file_says_what_the_adapter_says(tmp_path: Path) -> None:
    """`posttrain export ADAPTER OUT --to gguf` folds it in: llama.cpp then has the logits of base and adapter apart."""
    start = loading.load("embedded")
    torch.manual_seed(0)
    config = LoraConfig(r=12, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(start.model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.peft_config["default"].base_model_name_or_path = str(start.source.folder)
    adapted.save_pretrained(tmp_path / "adapter")
    start.tokenizer.save_pretrained(tmp_path / "adapter")
    export_model(tmp_path / "adapter", tmp_path / "out", to="gguf", dtype="f32")
    llama, stops = opened(tmp_path / "out" / "model-f32.gguf"), set(start.speech.stop_ids)
    for question in ("Who are you?", "What is 12 + 7?"):
        turns = [{"role": "user", "content": question}]
        prompt = start.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        row = start.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        apart = probe_logits(adapted, row)
        with adapted.disable_adapter():
            assert np.abs(probe_logits(adapted, row) - apart).max() > 1.0  # a file of the base alone would be seen
        assert np.abs(logits_of(llama, row) - apart).max() < 5e-3
        assert greedy_of(llama, row, 24, stops) == own_greedy(adapted, row, 24, stops)
    llama.close()


@pytest.mark.parametrize(("kind", "config"), [
    (LlamaForCausalLM, LlamaConfig),
    (Qwen2ForCausalLM, Qwen2Config),
    (Qwen3ForCausalLM, Qwen3Config),
])  # fmt: skip
@pytest.mark.parametrize("tied", [True, False])
def test_every_architecture_computes_the_same_in_llama_cpp(tmp_path: Path, kind: Any, config: Any, tied: bool) -> None:
    """Random weights, with grouped heads of a size of their own, and biases that are not 0."""
    tokenizer = qwen_tokenizer()
    torch.manual_seed(1)
    heads = {LlamaForCausalLM: {"head_dim": 32}, Qwen3ForCausalLM: {"head_dim": 128}}.get(kind, {})
    model = kind(
        config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=tied,
            **heads,
        )
    ).eval()
    for name, parameter in model.named_parameters():  # norms of 1 and biases of 0 would hide a tensor that is lost
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    path = tmp_path / "model.gguf"
    write_gguf(model, tokenizer, path, dtype="f32", stop_ids=(tokenizer.eos_token_id,))
    llama = opened(path)
    row = torch.randint(0, len(tokenizer) - 4, (40,)).tolist()
    ours = probe_logits(model, row)
    assert np.abs(logits_of(llama, row) - ours).max() < 2e-3 * max(1.0, float(np.abs(ours).max()))
    assert greedy_of(llama, row, 16, set()) == own_greedy(model, row, 16, set())
    for text in PROBES:
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"], text
    llama.close()
