"""The fused blocks: exact gradients, in place only while the tree runs, and less memory."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from posttrain.data.trees import collate
from posttrain.models.tree.fused import LinearOfNorm, RMSNorm, Shared, SwiGLU, SwiGLUDown, fused_blocks
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.parity import between
from posttrain.training.checks.memory import activation_bytes_per_token
from tests.fixtures import random_trees, tiny_model


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]


def test_gradients_are_exact() -> None:
    x, weight = tensors((2, 5, 8), (8,))
    assert torch.autograd.gradcheck(lambda a, b: RMSNorm.apply(a, b, 1e-6)[0], (x, weight))
    gate, up, down = tensors((1, 5, 12), (1, 5, 12), (8, 12))
    assert torch.autograd.gradcheck(SwiGLU.apply, (gate, up))
    assert torch.autograd.gradcheck(SwiGLUDown.apply, (gate, up, down))


def test_rms_norm_by_hand() -> None:
    """x = (3, 4): the mean square is 12.5, so y = w x / sqrt(12.5)."""
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(RMSNorm.apply(x, weight, 0.0)[0], torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_linear_layers_of_a_norm_are_exact_and_make_its_output_once() -> None:
    """Three readers of one norm, as query, key and value: gradients of all, and one recomputation."""
    x, weight, first, second, third, bias = tensors((2, 5, 8), (8,), (6, 8), (4, 8), (4, 8), (4,))
    made: list[Shared] = []

    def three(x: Tensor, weight: Tensor, first: Tensor, second: Tensor, third: Tensor, bias: Tensor) -> Tensor:
        y, inverse = RMSNorm.apply(x, weight, 1e-6)
        shared = Shared()
        made.append(shared)
        parts = (y, x.detach(), inverse, weight.detach(), shared)
        outs = [LinearOfNorm.apply(*parts, w, b) for w, b in ((first, None), (second, bias), (third, None))]
        return torch.cat(outs, dim=-1)

    assert torch.autograd.gradcheck(three, (x, weight, first, second, third, bias))
    three(x, weight, first, second, third, bias).sum().backward()
    assert made[-1].readers == 3 and made[-1]._again is None  # the last reader lets go of it
    again = three(x, weight, first, second, third, bias).sum()
    with pytest.MonkeyPatch.context() as patch:
        outputs: list[int] = []
        patch.setattr(Shared, "output", _counted(Shared.output, outputs))
        again.backward()
    assert len(outputs) == 3 and len(set(outputs)) == 1


def _counted(output: Any, outputs: list[int]) -> Any:
    def call(self: Shared, *parts: Tensor) -> Tensor:
        made = output(self, *parts)
        outputs.append(made.data_ptr())
        return made

    return call


@pytest.mark.parametrize(("arch", "modules"), [("llama", 7), ("qwen3", 11), ("mistral", 7), ("gemma2", 0), ("gpt2", 0)])
def test_only_known_modules_change_and_only_for_a_while(arch: str, modules: int) -> None:
    """Two layers: two norms and one MLP each and the last norm (Qwen3 also has norms on queries and keys); and, where
    there are such norms, linear layers whose weights train: seven in each layer and the head."""
    model = tiny_model(arch)
    linear = 2 * 7 + 1 if modules else 0
    with fused_blocks(model):
        assert sum("forward" in vars(module) for module in model.modules()) == modules + linear
    model.requires_grad_(False)
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


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_fewer_bytes_are_kept(monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    """Qwen3 norms queries and keys too, between the layers that read the block's norm."""
    policy = Policy(tiny_model(arch, vocab=97))
    (tree,) = random_trees(1, vocab=97, prompt_tokens=(60, 60), branch_tokens=(60, 60), branches=1)
    policy(collate([tree]))  # the first call probes the attention's backend
    fused = activation_bytes_per_token(policy, tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "posttrain.models.tree.fused._linear", lambda module, recent, x: functional.linear(x, module.weight)
        )
        assert fused < 0.9 * activation_bytes_per_token(policy, tree)
    monkeypatch.setattr("posttrain.models.tree.fused._fused_forward", lambda module, recent: None)
    assert fused < 0.7 * activation_bytes_per_token(policy, tree)


def test_a_lora_on_a_norms_readers_has_the_models_gradient() -> None:
    """The adapter's first factor reads the norm's output; its base, which is frozen, keeps nothing anyway."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "gate_proj"], init_lora_weights=False)
    policy = Policy(get_peft_model(tiny_model("llama", vocab=97), config))
    assert between(policy, random_trees(3, vocab=97, seed=4), "tree", "padded").gradient < 1e-5


# ---------------------------------------------------------------- 16 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_norm_in_16_bits_is_the_models_own(dtype: torch.dtype, scale: float) -> None:
    """|x| = 800 over 64 dimensions: its square is infinite in fp16, and the norm would be zero."""
    generator = torch.Generator().manual_seed(0)
    own = LlamaRMSNorm(64, eps=1e-6).to(dtype)
    with torch.no_grad():
        own.weight.add_(torch.randn(64, generator=generator) * 0.1)
    x = (torch.randn(3, 5, 64, generator=generator) * scale).to(dtype).requires_grad_()
    slope = torch.randn(3, 5, 64, generator=generator).to(dtype)
    expected = torch.autograd.grad((own(x) * slope).sum(), (x, own.weight))
    y, inverse = RMSNorm.apply(x, own.weight, own.variance_epsilon)
    assert torch.equal(y, own(x)) and inverse.dtype == torch.float32 and y.any()
    found = torch.autograd.grad((y * slope).sum(), (x, own.weight))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, atol=float(b.detach().abs().max()) * torch.finfo(dtype).eps * 2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mlp_in_16_bits_is_the_models_own(dtype: torch.dtype) -> None:
    model = tiny_model("llama", vocab=97).to(dtype)
    mlp = model.model.layers[0].mlp
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    found = []
    for fused in (False, True):
        with fused_blocks(model) if fused else nullcontext():
            y = mlp(x)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), (x, mlp.down_proj.weight))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, atol=float(a.detach().abs().max()) * torch.finfo(dtype).eps * 2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("arch", ["llama", "qwen3", "mistral", "phi3"])
def test_a_policy_in_16_bits_is_as_exact_on_the_tree_as_on_rows(arch: str, dtype: torch.dtype) -> None:
    """Against fp32: the fused blocks may not add noise of their own. Wide states, as trained models have."""
    batch = collate(random_trees(4))
    model = tiny_model(arch)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(300.0)  # a norm of some 300 after the first block
    exact = Policy(model, "padded")(batch).logprobs_N.detach()
    half = Policy(copy.deepcopy(model).to(dtype), "tree")
    apart = {path: (half(batch, path=path).logprobs_N.detach() - exact).square().mean() for path in ("tree", "padded")}
    assert apart["tree"] < 1.5 * apart["padded"]
