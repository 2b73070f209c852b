"""T90: what begins late in a row is met late: windows that a family keeps in its mask, chunks, anything with a length.

Qwen2-MoE and PhiMoE do not pass their window to the attention function. Rows below the window prove nothing about it,
and longer ones were wrong by more than a nat.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.families import plain
from benchmarks.tiny_families import tiny_family
from posttrain.data.trees import collate
from posttrain.models.tree import attention
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.paths import reach_of
from posttrain.training.checks import preflight
from posttrain.types import Batch, TokenTree
from tests.fixtures import make_tree, tiny_model

WINDOW = 560


def rows(*lengths: int) -> list[TokenTree]:
    """Pairs with rows of so many tokens."""
    generator = np.random.default_rng(1)

    def ids(count: int) -> list[int]:
        return generator.integers(3, 128, count).tolist()

    return [make_tree(ids(n - 12), ids(12), ids(7), row=i + 1) for i, n in enumerate(lengths)]


def windowed(family: str) -> Any:
    return tiny_family(family, sliding_window=WINDOW)


@pytest.mark.parametrize("family", ["qwen2_moe", "phimoe"])
def test_a_window_in_the_mask_alone(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = windowed(family)
    policy, long = Policy(model), rows(30, 900)
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="posttrain.models"):
        policy(collate(rows(30, 40)))
        assert policy.path_of(collate(rows(50))) == "tree"
        torch.testing.assert_close(policy(collate(long)).logprobs_N, plain(model, long), atol=1e-4, rtol=0)
        on_the_tree = policy(collate(long), path="tree").logprobs_N
    assert policy.path_of(collate(long)) == "padded" and policy.path_of(collate(rows(WINDOW))) == "tree"
    assert float((on_the_tree - plain(model, long)).detach().abs().max()) > 1e-2
    (said,) = {record.getMessage() for record in caplog.records}
    assert f"rows of more than {WINDOW} tokens run padded" in said and "in a mask of their own" in said


def test_the_preflight_says_so_before_step_1() -> None:
    policy = Policy(windowed("qwen2_moe"))
    check = preflight.choose_path(policy, rows(30, 40, 900), "auto")
    assert check.status == "warn" and f"rows of more than {WINDOW} tokens run padded" in check.detail
    assert policy.path == "tree" and policy.path_of(collate(rows(900))) == "padded"


def test_an_effect_that_no_call_tells_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that forgets Mistral's window: rows within it pass, and the first longer row has the proof repeated."""
    mask = attention.TreeLayout.mask
    forgetful = lambda self, index, window, dtype: mask(self, index, None, dtype)  # noqa: E731
    monkeypatch.setattr(attention.TreeLayout, "mask", forgetful)
    model = tiny_model("mistral", vocab=128, sliding_window=96)
    policy = Policy(model)
    with torch.no_grad():
        for length in (40, 70, 96, 150, 97, 30):
            found = policy(collate(rows(length))).logprobs_N
            torch.testing.assert_close(found, plain(model, rows(length)), atol=1e-4, rtol=0)
    assert policy.path_of(collate(rows(96))) == "tree" and policy.path_of(collate(rows(150))) == "padded"


def test_how_far_a_proof_reaches() -> None:
    config = tiny_model("mistral", sliding_window=4096, max_position_embeddings=32_768).config
    assert reach_of(config, 100) == 125 and reach_of(config, 4000) == 4096
    assert reach_of(config, 4097) == 4098 and reach_of(config, 4106) == 4116  # soon after the border, again
    assert reach_of(config, 40_000) == 40_000 + (40_000 - 32_768)  # no number lies beyond
    assert reach_of(config, 10) == 64  # the smallest rows at once


def test_growing_rows_are_proven_a_few_times() -> None:
    policy, proven = Policy(tiny_model("llama", vocab=128, max_position_embeddings=4096)), []
    decide = policy.paths._decide
    policy.paths._decide = lambda *a, **k: proven.append(1) or decide(*a, **k)  # type: ignore[method-assign,func-returns-value]
    with torch.no_grad():
        for length in range(20, 400, 5):
            policy(collate(rows(length)))
    assert 3 <= len(proven) <= 10


def test_a_gradient_that_fails_beside_a_longer_row_fails_for_shorter_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values were compared before without gradients, and hold: that says nothing of the gradient."""
    states = TreeModel._tree_hidden

    def doubled(self: TreeModel, batch: Batch) -> torch.Tensor:
        hidden = states(self, batch)
        return hidden + (hidden - hidden.detach())

    monkeypatch.setattr(TreeModel, "_tree_hidden", doubled)
    policy = Policy(tiny_model("llama", vocab=128))
    with torch.no_grad():
        policy(collate(rows(30, 40)))
    assert policy.path_of(collate(rows(30, 200))) == "padded"
    assert policy.path_of(collate(rows(30, 40))) == "padded"
    with torch.no_grad():
        assert policy.path_of(collate(rows(30, 40))) == "padded"  # as the same rows of the step that trains on them


def test_a_row_that_is_not_finite_proves_nothing_for_the_others() -> None:
    """Each then runs alone: Bloom's other rows would be wrong on the tree."""
    model, (bad, *good) = tiny_family("bloom", tie_word_embeddings=False), rows(30, 40, 50)
    used = {token for tree in good for ids in (tree.prompt_ids, *(b.ids for b in tree.branches)) for token in ids}
    with torch.no_grad():
        expected = plain(model, good)
        model.get_input_embeddings().weight[next(token for token in bad.prompt_ids if token not in used)] = float("nan")
        found = Policy(model)(collate([bad, *good])).logprobs_N
    assert not torch.isfinite(found).all()
    torch.testing.assert_close(found[-len(expected) :], expected, atol=2e-5, rtol=0)
