"""T27: sampled at T = 0.6 and not updated, trainer and sampler give every token the same probability.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.data.trees import collate
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.turns import completion_tree
from posttrain.sampling import SamplingDistribution
from posttrain.types import RowRef, Wants
from tests.fixtures import ARCHITECTURES, tiny_model

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
SAMPLING = SamplingDistribution(temperature=0.6, max_new_tokens=12, stop_ids=frozenset({3, 5, 7}), seed=1)


def ratios(model: torch.nn.Module, path: str, temperature: float) -> torch.Tensor:
    """exp(trainer - sampler) of every token, first tokens included."""
    groups = NativeEngine(model).generate(PROMPTS, SAMPLING, completions_per_prompt=4)
    trees = [completion_tree(p, g, RowRef("rollout", i)) for i, (p, g) in enumerate(zip(PROMPTS, groups, strict=True))]
    trainer_N = Policy(model)(collate(trees), Wants(temperature=temperature), path=path).logprobs_N.detach()
    sampler_N = torch.tensor([x for group in groups for completion in group for x in completion.logprobs])
    return (trainer_N - sampler_N).exp()


@pytest.mark.parametrize("path", ["tree", "padded"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_trainer_and_sampler_agree_on_every_token(arch: str, path: str) -> None:
    found = ratios(tiny_model(arch), path, temperature=0.6)
    assert len(found) > 40
    assert (found - 1).abs().max() < 1e-5


def test_with_an_adapter_too() -> None:
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3, init_lora_weights=False)
    model = get_peft_model(tiny_model(), config).train()
    assert (ratios(model, "tree", temperature=0.6) - 1).abs().max() < 1e-5


def test_a_trainer_that_forgets_the_temperature_is_caught() -> None:
    assert (ratios(tiny_model(), "tree", temperature=1.0) - 1).abs().max() > 0.1
