"""tree = padded: values and gradients, on every architecture that we name; the projection against its oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.data.trees import collate, count, pack
from posttrain.models.tree import projection
from posttrain.models.tree.attention import TreeLayout, tree_attention
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.projection import Head, target_logprobs
from posttrain.models.tree.rows import padded_rows
from posttrain.types import Batch, TokenTree, Wants
from tests.fixtures import ARCHITECTURES, make_tree, random_trees, tiny_model

VOCAB = 97


@contextmanager
def true_float64() -> Iterator[None]:
    """Models of `transformers` compute norms and softmax in fp32 even with fp64 weights, which hides parity below 1e-7.

    Within this context a narrowing from fp64 to fp32 does nothing.
    """
    to, as_float, softmax = torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax

    def wide_to(self: torch.Tensor, *args, **kwargs):  # type: ignore[no-untyped-def]
        narrowing = torch.float32 in args or kwargs.get("dtype") == torch.float32
        return self if self.dtype == torch.float64 and narrowing else to(self, *args, **kwargs)

    def wide_softmax(x: torch.Tensor, dim: int | None = None, dtype: torch.dtype | None = None, **_):  # type: ignore[no-untyped-def]
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype)

    patch = pytest.MonkeyPatch()
    patch.setattr(torch.Tensor, "to", wide_to)
    patch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else as_float(self))
    patch.setattr(torch.nn.functional, "softmax", wide_softmax)
    try:
        yield
    finally:
        patch.undo()


def values_and_gradients(policy: Policy, batch: Batch, path: str, entropy: bool) -> tuple[torch.Tensor, ...]:
    """Log-probs and entropies, then the gradient of a random functional of them in every trainable parameter."""
    policy.zero_grad()
    out = policy(batch, Wants(entropy=entropy, temperature=0.7), path=path)
    weights = torch.linspace(-1, 2, len(out.logprobs_N), dtype=out.logprobs_N.dtype)
    loss = (out.logprobs_N * weights).sum()
    if out.entropy_N is not None:
        loss = loss + (out.entropy_N * weights.flip(0)).sum()
    loss.backward()
    gradients = [p.grad for p in policy.parameters() if p.requires_grad and p.grad is not None]
    extra = [] if out.entropy_N is None else [out.entropy_N.detach()]
    return (out.logprobs_N.detach(), *extra, *gradients)


def largest_gap(policy: Policy, trees: list[TokenTree], entropy: bool = False) -> float:
    """max over tensors of |tree - padded|, relative to the size of the tensor where it is above 1."""
    batch = collate(trees)
    tree = values_and_gradients(policy, batch, "tree", entropy)
    tree = tuple(t.clone() for t in tree)
    padded = values_and_gradients(policy, batch, "padded", entropy)
    return max(float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in zip(tree, padded, strict=True))


TREES = [
    *random_trees(6, vocab=VOCAB, seed=1, branches=(1, 3), mask_probability=0.7),
    make_tree([], ([5, 6, 7, 8], [False, True, True, True])),
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tree_equals_padded_in_fp64(arch: str) -> None:
    policy = Policy(tiny_model(arch, vocab=VOCAB, dtype=torch.float64))
    with true_float64():
        assert largest_gap(policy, TREES, entropy=True) < 1e-9


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tree_equals_padded_in_fp32(arch: str) -> None:
    policy = Policy(tiny_model(arch, vocab=VOCAB))
    assert largest_gap(policy, TREES) < 1e-5


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2"])
def test_tree_equals_padded_with_lora_and_checkpointing(arch: str) -> None:
    targets = ["c_attn"] if arch == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(
        r=4, target_modules=targets, lora_dropout=0.1, init_lora_weights=False, fan_in_fan_out=arch == "gpt2"
    )
    model = get_peft_model(tiny_model(arch, vocab=VOCAB, dtype=torch.float64), config).double()
    policy = Policy(model, activation_checkpointing=True)
    with true_float64():
        assert largest_gap(policy, TREES) < 1e-9


def test_checkpointing_changes_no_gradient() -> None:
    plain = Policy(tiny_model("gemma3", vocab=VOCAB))
    saving = Policy(tiny_model("gemma3", vocab=VOCAB), activation_checkpointing=True)
    batch = collate(TREES)
    for a, b in zip(
        values_and_gradients(plain, batch, "tree", False),
        values_and_gradients(saving, batch, "tree", False),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "mistral"])
def test_flex_equals_segments(arch: str) -> None:
    """The CUDA backend's mask and score functions, run without compilation on CPU."""
    batch = collate(TREES)
    total = len(batch.input_ids_T)
    torch.manual_seed(3)
    qkv = [torch.randn(1, heads, total, 16, dtype=torch.float64) for heads in (4, 2, 2)]
    window = None if arch == "llama" else 8
    softcap = 2.0 if arch == "gemma2" else None
    settings = {"scaling": 0.3, "sliding_window": window, "softcap": softcap}
    exact, _ = tree_attention(torch.nn.Identity(), *qkv, None, tree=TreeLayout(batch), **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # torch says that uncompiled FlexAttention is slow
        flex, _ = tree_attention(torch.nn.Identity(), *qkv, None, tree=TreeLayout(batch, "flex"), **settings)
    torch.testing.assert_close(flex, exact, atol=1e-12, rtol=0)


def test_a_branch_moves_no_other() -> None:
    """Changing one branch changes no log-prob of another, bit for bit where nothing is shared, in every tree."""
    policy = Policy(tiny_model("llama", vocab=VOCAB))
    before = [make_tree([1, 2, 3], [4, 5, 6], [7, 8]), make_tree([9], [10, 11])]
    after = [make_tree([1, 2, 3], [4, 55, 66], [7, 8]), make_tree([9], [10, 11])]
    a, b = policy(collate(before)).logprobs_N, policy(collate(after)).logprobs_N
    assert not torch.equal(a[:3], b[:3])
    torch.testing.assert_close(a[3:], b[3:], atol=1e-6, rtol=0)


def test_the_prompt_does_not_see_its_branches() -> None:
    policy = Policy(tiny_model("gemma3", vocab=VOCAB))
    tree = make_tree([1, 2, 3, 4, 5], [6, 7], [8])
    alone = policy(collate([make_tree([1, 2, 3, 4, 5], [6])])).logprobs_N
    torch.testing.assert_close(policy(collate([tree])).logprobs_N[:1], alone, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- the projection


def oracle(hidden: torch.Tensor, head: Head, targets: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    logits = head.linear(hidden).double() * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize(("bias", "scale", "softcap"), [(False, 1.0, None), (True, 0.5, 3.0)])
def test_projection_equals_log_softmax(
    monkeypatch: pytest.MonkeyPatch, frozen: bool, entropy: bool, bias: bool, scale: float, softcap: float | None
) -> None:
    """T26: V = 300, random logits, several chunks; values and every gradient."""
    monkeypatch.setattr(projection, "BUFFER_ELEMENTS", 16 * 300)
    torch.manual_seed(1)
    linear = torch.nn.Linear(24, 300, bias=bias).double().requires_grad_(not frozen)
    hidden = torch.randn(41, 24, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 300, (41,))
    head = Head(linear, scale, softcap)
    weights = torch.randn(2, 41, dtype=torch.float64)

    def gradients(logprobs: torch.Tensor, entropies: torch.Tensor | None) -> list[torch.Tensor]:
        loss = (logprobs * weights[0]).sum()
        if entropies is not None:
            loss = loss + (entropies * weights[1]).sum()
        wanted = [hidden, *(p for p in linear.parameters() if p.requires_grad)]
        return list(torch.autograd.grad(loss, wanted))

    ours = target_logprobs(hidden, head, targets, temperature=0.6, entropy=entropy)
    slow = oracle(hidden, head, targets, 0.6)
    assert (ours[0] <= 0).all()
    torch.testing.assert_close(ours[0], slow[0], atol=1e-12, rtol=0)
    for a, b in zip(gradients(*ours), gradients(slow[0], slow[1] if entropy else None), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_projection_through_an_adapter_on_the_head() -> None:
    model = tiny_model("llama", vocab=VOCAB, dtype=torch.float64)
    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    policy = Policy(get_peft_model(model, config).double())
    with true_float64():
        assert largest_gap(policy, TREES) < 1e-9


# ---------------------------------------------------------------- trees


def test_the_batch_of_the_docstring() -> None:
    batch = collate([make_tree([1, 70, 71], [52, 2], [53, 54, 2])])
    assert batch.input_ids_T.tolist() == [1, 70, 71, 52, 2, 53, 54, 2]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert [(n.start, n.end, n.parent) for n in batch.nodes] == [(0, 3, -1), (3, 5, 0), (5, 8, 0)]
    assert batch.target_index_N.tolist() == [3, 4, 5, 6, 7]
    assert batch.predictor_index_N.tolist() == [2, 3, 2, 5, 6]
    assert batch.branch_N.tolist() == [0, 0, 1, 1, 1]
    assert batch.count == count([make_tree([1, 70, 71], [52, 2], [53, 54, 2])])


def test_pack_keeps_every_tree_once_and_the_budget() -> None:
    trees = random_trees(40, seed=5, prompt_tokens=(1, 60), branch_tokens=(1, 40))
    bins = pack(trees, 128)
    assert sorted(tree.key for group in bins for tree in group) == sorted(tree.key for tree in trees)
    assert all(sum(t.num_tokens for t in group) <= 128 or len(group) == 1 for group in bins)
    total = sum(tree.num_tokens for tree in trees)
    assert len(bins) <= 1.23 * total / 128 + 1  # first-fit decreasing: 11/9 of the optimum


def test_what_cannot_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to predict it"):
        collate([make_tree([], [4, 5])])
    with pytest.raises(ValueError, match="without branches"):
        collate([make_tree([1, 2])])
    with pytest.raises(ValueError, match="at least 1"):
        pack([], 0)


@pytest.mark.parametrize("path", ["tree", "padded"])
def test_collisions_are_what_a_sampled_token_has_on_average(path: Literal["tree", "padded"]) -> None:
    """log sum_v p(v)^2, from the full distribution; without gradient, and nowhere unless it is asked for."""
    policy = Policy(tiny_model("llama", vocab=97))
    batch = collate(random_trees(4, vocab=97, branches=2))
    out = policy(batch, Wants(collision=True), path=path)
    rows = padded_rows(batch)
    logits = policy.causal_lm(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    log_p = logits[rows.row_N, rows.predictor_N].double().log_softmax(-1)
    expected_N = (2 * log_p).logsumexp(-1)
    torch.testing.assert_close(out.log_collision_N.double(), expected_N, rtol=1e-5, atol=1e-5)
    assert not out.log_collision_N.requires_grad and out.logprobs_N.requires_grad
    assert policy(batch, path=path).log_collision_N is None
