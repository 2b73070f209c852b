"""FlexAttention's block mask from the node table, its probe, and what it does not know; no card is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from posttrain.data.trees import collate
from posttrain.models.tree import attention
from posttrain.models.tree.attention import TreeLayout, attention_windows, probe_backend, tree_attention
from tests.fixtures import make_tree, random_trees, tiny_model

VOCAB = 97


def long_trees() -> list[Any]:
    """Nodes shorter than a block, longer than several, and ends in the middle of blocks."""
    big = random_trees(3, vocab=VOCAB, seed=4, branches=2, prompt_tokens=(300, 500), branch_tokens=(90, 400))
    return [*random_trees(4, vocab=VOCAB, seed=5), *big]


@pytest.mark.parametrize("window", [None, 8, 300])
def test_the_block_mask_is_that_of_torch(window: int | None) -> None:
    """Which blocks are read is exact; a block may be called partial where torch, pair by pair, finds it whole."""
    layout = TreeLayout(collate(long_trees()))
    made = layout.block_mask(window)
    total = sum(layout.sizes)
    exact = create_block_mask(made.mask_mod, None, None, total, total, device="cpu")
    assert made.shape == exact.shape and made.BLOCK_SIZE == exact.BLOCK_SIZE
    assert torch.equal(made.to_dense(), exact.to_dense())
    whole, exactly = (
        _dense(made.full_kv_num_blocks, made.full_kv_indices),
        _dense(exact.full_kv_num_blocks, exact.full_kv_indices),
    )
    assert not (whole & ~exactly).any()
    if window != 8:
        assert whole.any()


def _dense(count: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    dense = torch.zeros(numbers.shape[-2:], dtype=torch.bool)
    for row, n in enumerate(count[0, 0].tolist()):
        dense[row, numbers[0, 0, row, :n].long()] = True
    return dense


def test_the_block_mask_needs_no_square_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("all pairs of tokens were evaluated")

    monkeypatch.setattr("torch.nn.attention.flex_attention.create_block_mask", refuse)
    tree = make_tree([5] * 20_000, [6] * 10_000, [7] * 2_000)
    assert TreeLayout(collate([tree])).block_mask(None).shape == (1, 1, 32_000, 32_000)


def test_dropout_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention has none: a call that asks for it takes the other backend."""
    batch = collate([make_tree([1, 2, 3], [4, 5], [6])])
    layout = TreeLayout(batch, "flex")
    qkv = [torch.ones(1, 2, 6, 4) for _ in range(3)]

    def no_flex(*args: Any) -> None:
        raise AssertionError("flex was called with dropout")

    monkeypatch.setattr(attention, "_flex", no_flex)
    out, _ = tree_attention(torch.nn.Identity(), *qkv, None, tree=layout, dropout=0.5)
    assert not torch.equal(out, torch.ones_like(out))
    with pytest.raises(AssertionError, match="flex was called"):
        tree_attention(torch.nn.Identity(), *qkv, None, tree=layout)


def test_a_probe_that_runs_out_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr("posttrain.data.trees.to_device", lambda batch, device: batch)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: self)

    def failing(error: Exception) -> Any:
        def call(*args: Any) -> None:
            raise error

        return call

    monkeypatch.setattr(attention, "_flex", failing(RuntimeError("Triton is not there")))
    assert probe_backend(device, torch.float32) == "segments"
    monkeypatch.setattr(attention, "_flex", failing(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        probe_backend(device, torch.float32)


def test_the_windows_of_a_model() -> None:
    windows = {arch: attention_windows(tiny_model(arch).config) for arch in ("llama", "mistral", "gemma2", "qwen3")}
    assert windows == {"llama": {None}, "mistral": {8}, "gemma2": {8, None}, "qwen3": {None}}


@pytest.mark.parametrize("window", [None, 8])
def test_mask_bytes_are_those_of_the_masks(window: int | None) -> None:
    layout = TreeLayout(collate(random_trees(5, vocab=VOCAB, seed=2)))
    masks = [layout.mask(index, window, torch.float32) for index in range(len(layout.sizes))]
    assert layout.mask_bytes(window, torch.float32) == sum(mask.nbytes for mask in masks if mask is not None) > 0


# ---------------------------------------------------------------- torch's kernel on CPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [None, 8])
def test_the_kernel_equals_segments(dtype: torch.dtype, window: int | None) -> None:
    """Values, and the gradients of query, key and value, with fewer key heads than query heads."""
    batch = collate(random_trees(6, vocab=VOCAB, seed=1, branches=(1, 3)))
    total = len(batch.input_ids_T)
    # As the models give them: heads before tokens, without being laid out that way.
    inputs = [torch.randn(1, total, heads, 16, dtype=dtype).transpose(1, 2) for heads in (4, 2, 2)]
    weights = torch.randn(1, total, 4, 16, dtype=dtype)
    found = []
    for backend in ("segments", "kernel"):
        qkv = [tensor.clone().requires_grad_() for tensor in inputs]
        layout = TreeLayout(batch, backend)
        out, _ = tree_attention(torch.nn.Identity(), *qkv, None, tree=layout, scaling=0.3, sliding_window=window)
        found.append([out, *torch.autograd.grad((out * weights).sum(), qkv)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12 if dtype == torch.float64 else 1e-5, rtol=0)
    assert found[0][0].shape == found[1][0].shape and found[1][0].is_contiguous()


def test_the_kernel_keeps_no_prompt_twice() -> None:
    """Four branches of 10 tokens under a prompt of 200: kept are query, key, value and output of 240 tokens."""
    batch = collate([make_tree([1] * 200, *([[2] * 10] * 4))])
    kept: dict[str, int] = {}
    for backend in ("segments", "kernel"):
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        qkv = [torch.randn(1, 2, 240, 16).requires_grad_() for _ in range(3)]
        layout = TreeLayout(batch, backend)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tree_attention(torch.nn.Identity(), *qkv, None, tree=layout)
        kept[backend] = sum(storages.values())
    flat = 240 * 2 * 16 * 4
    assert 4 * flat <= kept["kernel"] < 4.2 * flat
    assert kept["segments"] > 1.8 * kept["kernel"]


def test_the_kernel_is_probed_and_another_torch_runs_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert probe_backend(cpu, torch.float32) == "kernel"
    monkeypatch.setattr("posttrain.models.tree.attention_cpu.BACKWARD", "_a_name_that_torch_does_not_have")
    assert probe_backend(cpu, torch.float32) == "segments"
    monkeypatch.undo()
    monkeypatch.setattr("posttrain.models.tree.attention_cpu.BACKWARD", "_scaled_dot_product_flash_attention_for_cpu")
    assert probe_backend(cpu, torch.float32) == "segments"


def test_what_the_kernel_cannot_take_runs_through_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*args: Any) -> None:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(attention.KernelAttention, "apply", no_kernel)
    layout = TreeLayout(collate([make_tree([1, 2, 3], [4, 5], [6])]), "kernel")
    qkv = [torch.randn(1, 2, 6, 4) for _ in range(3)]
    identity = torch.nn.Identity()
    tree_attention(identity, *qkv, None, tree=layout, softcap=3.0)
    tree_attention(identity, *qkv, None, tree=layout, dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        tree_attention(identity, *qkv, None, tree=layout)
    with pytest.raises(AssertionError, match="the kernel was called"):
        tree_attention(identity, *qkv, None, tree=layout)
