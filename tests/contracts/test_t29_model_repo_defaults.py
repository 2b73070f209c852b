"""T29: defaults that a model carries in memory, as one loaded by plain `transformers` does, never change a rollout.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from tests.fixtures import byte_tokenizer, tiny_model

PROMPT = [60, 61, 62]


def folder_with_defaults(path: Path) -> Path:
    tokenizer = byte_tokenizer("CHATML")
    model = tiny_model(vocab=len(tokenizer))
    model.generation_config = GenerationConfig(repetition_penalty=1.1, temperature=0.1, top_k=1, do_sample=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    assert '"top_k": 1' in (path / "generation_config.json").read_text()
    return path


@pytest.mark.parametrize("said", [{}, {"temperature": 1.0}], ids=["nothing set", "temperature set"])
def test_the_models_defaults_are_not_used(tmp_path: Path, said: dict[str, float]) -> None:
    folder = folder_with_defaults(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.top_k == 1
    sampling = SamplingDistribution(**said, max_new_tokens=6, seed=2)
    effective = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty)
    assert effective == (1.0, 1.0, None, 0.0, 1.0)
    group = NativeEngine(model).generate([PROMPT], sampling, completions_per_prompt=8)[0]
    assert len({completion.ids for completion in group}) > 1
    # The recorded log-probs are those of softmax(logits) and of nothing else.
    for completion in group:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*PROMPT, *completion.ids]])).logits[0, len(PROMPT) - 1 : -1]
        plain = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert torch.allclose(plain, torch.tensor(completion.logprobs), atol=1e-5)


def test_eight_samples_would_be_identical_with_their_top_k() -> None:
    sampling = SamplingDistribution(top_k=1, max_new_tokens=6)
    group = NativeEngine(tiny_model()).generate([PROMPT], sampling, completions_per_prompt=8)[0]
    assert len({completion.ids for completion in group}) == 1
