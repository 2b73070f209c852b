"""T29: the sampling that lies in a model folder never rules a rollout.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.models.folders.loading import load
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from tests.fixtures import byte_tokenizer, tiny_model

OF_THE_FOLDER = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.1, "top_k": 1}
PROMPT = [70, 12, 33]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    tokenizer = byte_tokenizer("CHATML")
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(OF_THE_FOLDER))
    return load(tmp_path).model


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0}], ids=["nothing set", "temperature=1.0"])
def test_the_effective_sampler_is_the_run_s_own(model: Any, asked: dict[str, float]) -> None:
    sampling = SamplingDistribution(**asked, max_new_tokens=6)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (1.0, 1.0, None, 1.0)
    completions = NativeEngine(model).generate([PROMPT], sampling, completions_per_prompt=8)[0]
    assert len({completion.ids for completion in completions}) > 1
    for completion in completions:
        row = torch.tensor([[*PROMPT, *completion.ids]])
        plain = torch.log_softmax(model(row).logits[0, len(PROMPT) - 1 : -1], dim=-1)
        expected = plain.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_nothing_of_the_folder_s_sampling_is_left_in_the_model(model: Any) -> None:
    left = model.generation_config.to_dict()
    assert not {name for name, value in OF_THE_FOLDER.items() if left.get(name) == value}
