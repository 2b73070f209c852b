"""A traced pass holds what a real one holds: against torch's profiler, and against longer and deeper traces."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from posttrain.config.adapters import AdapterSettings, LoRA, PrefixTuning
from posttrain.data.trees import collate
from posttrain.errors import ModelError
from posttrain.models.tree.logprobs import Policy
from posttrain.planning.skeleton import build
from posttrain.planning.trace import Ask, Storages, Tracer, follow
from posttrain.training.checks.memory import _fullest
from posttrain.types import Branch, RowRef, TokenTree, Wants

CONFIG = {
    "model_type": "llama",
    "vocab_size": 60_000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def config(**changes: object) -> object:
    return AutoConfig.for_model(**{**CONFIG, **changes})


def tree(prompt: int, *answers: int) -> TokenTree:
    ids = lambda n: np.ones(n, dtype=np.int32)  # noqa: E731
    branches = tuple(Branch(ids(n), np.ones(n, dtype=bool)) for n in answers)
    return TokenTree(ids(prompt), branches, key="x", row=RowRef("m", 1))


def real_policy(adapter: AdapterSettings | None, checkpointing: bool) -> Policy:
    model = build(config(), adapter, "policy", torch.float32).to_empty(device="cpu")  # type: ignore[arg-type]
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.normal_(0, 0.02)
    policy = Policy(model, activation_checkpointing=checkpointing)
    policy.backend = "kernel"
    return policy


def profiled(policy: Policy, batch: object) -> int:
    """Most bytes that torch's allocator has handed out at one moment of a pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        policy(batch, Wants(), path="tree").logprobs_N.sum().backward()  # type: ignore[arg-type]
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    moves = sorted((event.start_ns(), event.nbytes()) for event in events)
    return _fullest([size for _, size in moves])[0]


@pytest.mark.parametrize("adapter", [None, LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
def test_a_trace_is_what_the_allocator_handed_out(adapter: AdapterSettings | None, checkpointing: bool) -> None:
    """Without memory, to a hundredth: of a step's first micro-batch, and of another, when all gradients are there."""
    trees = [tree(200, 150, 150)] * 2
    traced = Tracer(config()).trace(Ask(adapter, "policy", "fp32", checkpointing), trees)  # type: ignore[arg-type]
    policy, batch = real_policy(adapter, checkpointing), collate(trees)
    assert traced.first == pytest.approx(profiled(policy, batch), rel=0.01)
    assert traced.later == pytest.approx(profiled(policy, batch), rel=0.01)
    kept = follow(policy, batch, Ask(adapter, "policy", "fp32", checkpointing)).kept
    assert traced.kept == pytest.approx(kept, rel=0.005)  # but for indices of the batch


@pytest.mark.parametrize("ask", [Ask(None, "policy", "fp32"), Ask(LoRA(), "reward", "autocast", True)], ids=str)
def test_short_and_shallow_traces_are_drawn_on_to_deep_ones(ask: Ask) -> None:
    deep = Tracer(config(num_hidden_layers=8))  # type: ignore[arg-type]
    whole = deep._short(ask, [tree(300, 200)], 8)
    drawn = deep.trace(ask, [tree(300, 200)])
    for name, value in asdict(whole).items():
        assert getattr(drawn, name) == pytest.approx(value, rel=0.02, abs=2e5), name


def test_short_micro_batches_are_drawn_on_to_long_ones() -> None:
    tracer = Tracer(config())  # type: ignore[arg-type]
    ask = Ask(None, "policy", "gathered")
    drawn, whole = tracer.trace_flat(ask, 6000, 3000), tracer.trace_flat(ask, 840, 420)
    exact = tracer.trace(ask, [_flat(6000, 3000)])
    for name in ("kept", "first", "later", "forward"):
        assert getattr(drawn, name) == pytest.approx(getattr(exact, name), rel=0.03), name
    assert whole.kept < drawn.kept


def _flat(tokens: int, trained: int) -> TokenTree:
    mask = np.arange(tokens) >= tokens - trained
    return TokenTree(np.empty(0, np.int32), (Branch(np.ones(tokens, np.int32), mask),), key="x", row=RowRef("m", 1))


def test_what_changes_the_memory_does() -> None:
    tracer, rows = Tracer(config()), [tree(300, 200)]  # type: ignore[arg-type]
    full = tracer.trace(Ask(None, "policy", "fp32"), rows)
    assert tracer.trace(Ask(None, "policy", "fp32"), rows) is full  # once
    again = tracer.trace(Ask(None, "policy", "fp32", checkpointing=True), rows)
    assert again.kept < 0.3 * full.kept and again.operations > full.operations
    narrow = tracer.trace(Ask(None, "policy", "gathered"), rows)
    assert narrow.kept < tracer.trace(Ask(None, "policy", "autocast"), rows).kept  # no copies of the layers' weights
    assert tracer.trace(Ask(None, "policy", "fp32", entropy=True), rows).later >= full.later
    padded = tracer.trace(Ask(PrefixTuning(), "policy", "fp32", route="padded"), rows)
    assert padded.kept > 200 * 60_000 * 4  # the logits of the trained tokens, which the tree never has


def test_mixtures_windows_and_other_families_are_traced() -> None:
    sparse = {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 16,
    }
    small = {**CONFIG, "vocab_size": 300, "num_hidden_layers": 2}
    rows = [tree(30, 20)]
    experts = Tracer(AutoConfig.for_model(**{**small, **sparse}))
    assert experts.trace(Ask(None, "policy", "gathered"), rows).kept > 0
    assert (
        experts.trace(Ask(None, "policy", "fp32"), rows).kept
        > experts.trace(Ask(None, "policy", "gathered"), rows).kept
    )
    windows = AutoConfig.for_model(**{**small, "model_type": "gemma2", "head_dim": 16, "sliding_window": 8})
    assert Tracer(windows).trace(Ask(None, "policy", "fp32"), rows).kept > 0
    assert windows.sliding_window == 8  # the caller's config stays as it was


def test_a_model_that_asks_for_values_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: object, **__: object) -> None:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr("posttrain.planning.trace.follow", odd)
    with pytest.raises(ModelError, match="llama: RuntimeError: data-dependent"):
        Tracer(config()).trace(Ask(None, "policy", "fp32"), [tree(3, 2)])  # type: ignore[arg-type]


def test_storages_are_followed_to_their_last_reference() -> None:
    there = torch.zeros(1000)
    with Storages([there]) as live:
        view = there[:10].view(2, 5)
        assert live.now == 0 and view.shape == (2, 5)
        one = torch.zeros(100)  # 400 bytes
        two = one + 1
        assert live.now == 800
        del one
        assert live.now == 400 and live.peaks["head"] == 800
        live.restart()
        live.enter("ends")
        two.logsumexp(0)  # holds a copy of its input, and makes one number
        assert live.peaks["ends"] == 800
        assert live.moved == 400 + 4 and live.operations == 1
