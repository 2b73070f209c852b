"""The fused blocks: exact gradients, in place only while the tree runs, and less memory."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from posttrain.models.fused import RMSNorm, SwiGLU, SwiGLUDown, fused_blocks
from posttrain.models.logprobs import Policy
from posttrain.training.memory import activation_bytes_per_token
from tests.fixtures import random_trees, tiny_model


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]


def test_gradients_are_exact() -> None:
    x, weight = tensors((2, 5, 8), (8,))
    assert torch.autograd.gradcheck(lambda a, b: RMSNorm.apply(a, b, 1e-6), (x, weight))
    gate, up, down = tensors((1, 5, 12), (1, 5, 12), (8, 12))
    assert torch.autograd.gradcheck(SwiGLU.apply, (gate, up))
    assert torch.autograd.gradcheck(SwiGLUDown.apply, (gate, up, down))


def test_rms_norm_by_hand() -> None:
    """x = (3, 4): the mean square is 12.5, so y = w x / sqrt(12.5)."""
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(RMSNorm.apply(x, weight, 0.0), torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


@pytest.mark.parametrize(("arch", "modules"), [("llama", 7), ("qwen3", 11), ("mistral", 7), ("gemma2", 0), ("gpt2", 0)])
def test_only_known_modules_change_and_only_for_a_while(arch: str, modules: int) -> None:
    """Two layers: two norms and one MLP each and the last norm (Qwen3 also has norms on queries and keys)."""
    model = tiny_model(arch)
    with fused_blocks(model):
        assert sum("forward" in vars(module) for module in model.modules()) == modules
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_adapter_in_the_mlp_is_used() -> None:
    config = LoraConfig(r=2, target_modules=["down_proj", "gate_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_model("llama"), config)
    ids = torch.arange(6)[None]
    plain = model(input_ids=ids).logits
    with fused_blocks(model):
        fused = model(input_ids=ids).logits
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def test_fewer_bytes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(tiny_model("llama", vocab=97))
    (tree,) = random_trees(1, vocab=97, prompt_tokens=(60, 60), branch_tokens=(60, 60), branches=1)
    fused = activation_bytes_per_token(policy, tree)
    monkeypatch.setattr("posttrain.models.fused._fused_forward", lambda module: None)
    assert fused < 0.8 * activation_bytes_per_token(policy, tree)
