"""Rotary angles that depend on the longest row: a row's log-probs must be its own, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain.data.trees import collate
from posttrain.models.tree.attention import TreeLayout
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.parity import LOGPROB_ERROR, beside, between, computed_in
from posttrain.models.tree.rope import static_positions
from posttrain.models.tree.rows import single_rows
from posttrain.training.checks import preflight
from posttrain.types import TokenTree
from tests.fixtures import ARCHITECTURES, make_tree, random_trees, tiny_model

VOCAB = 97
ORIGINAL = 16
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": ORIGINAL,
        **FACTORS,
    },
}
DYNAMIC: dict[str, Any] = {
    "max_position_embeddings": ORIGINAL,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
}
SHORT = make_tree([1, 2, 3], [4, 5, 6], [7, 8])
LONG = make_tree(list(range(20)), list(range(20, 40)), list(range(50, 60)), row=2)
OTHER = make_tree(list(range(10)), list(range(40, 52)), row=3)


def policy_of(kind: str) -> Policy:
    arch, options = ("phi3", LONGROPE) if kind == "longrope" else ("llama", DYNAMIC)
    return Policy(tiny_model(arch, vocab=VOCAB, **options))


def alone(kind: str, tree: TokenTree) -> torch.Tensor:
    """What the model itself gives each of the tree's rows, when it has seen no other."""
    values = []
    for row in single_rows(collate([tree])):
        logits = policy_of(kind).model(input_ids=row.input_ids_T[None], use_cache=False).logits[0]
        log_p = torch.log_softmax(logits[row.predictor_index_N].float(), dim=-1)
        values.append(log_p.gather(1, row.target_ids_N[:, None])[:, 0])
    return torch.cat(values)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize("path", ["tree", "padded", "rows"])
def test_a_rows_log_probs_are_its_own(kind: str, path: Any) -> None:
    """In any company and after any other batch: the short one beside a long one, and after it."""
    policy = policy_of(kind)
    for trees in ([SHORT, LONG, OTHER], [OTHER], [SHORT], [LONG, OTHER], [SHORT]):
        found = policy(collate(trees), path=path).logprobs_N
        expected = torch.cat([alone(kind, tree) for tree in trees])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_without_care_they_would_not_be(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(kind)
    before = policy(collate([SHORT])).logprobs_N.detach()
    monkeypatch.setattr("posttrain.models.tree.model.static_positions", lambda config: None)
    together = policy(collate([SHORT, LONG]), path="padded").logprobs_N[: len(before)]
    assert float((together - before).detach().abs().max()) > 1e-3
    assert not beside(policy, [SHORT], LONG).holds
    monkeypatch.undo()
    assert beside(policy, [SHORT], LONG).holds


def test_which_models_depend_on_length() -> None:
    assert static_positions(policy_of("longrope").model.config) == ORIGINAL
    assert static_positions(policy_of("dynamic").model.config) == ORIGINAL
    assert all(static_positions(tiny_model(arch).config) is None for arch in ARCHITECTURES)
    per_layer = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
    }
    gemma = tiny_model("gemma3", vocab=VOCAB, rope_parameters=per_layer, max_position_embeddings=ORIGINAL)
    assert static_positions(gemma.config) == ORIGINAL
    policy = Policy(gemma)
    before = policy(collate([OTHER])).logprobs_N
    policy(collate([LONG]))
    torch.testing.assert_close(policy(collate([OTHER])).logprobs_N, before, atol=1e-6, rtol=0)


def test_long_rows_are_said_and_short_ones_stay_fast() -> None:
    policy = policy_of("longrope")
    check = preflight.choose_path(policy, [SHORT, OTHER, LONG], "auto")
    assert check.status == "warn" and policy.path == "tree"
    assert "more than 16 tokens (the longest has 40)" in check.detail and check.remedy == (
        "max_length: 16 keeps every row on the fast path"
    )
    assert policy.path_of(collate([SHORT])) == "tree" and policy.path_of(collate([SHORT, LONG])) == "rows"
    assert preflight.choose_path(policy, [SHORT, make_tree([1], [2, 3])], "auto").status == "pass"


def test_a_row_that_depends_on_its_neighbours_is_found_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose config says nothing: the preflight compares a row alone with the row beside the longest one."""
    monkeypatch.setattr("posttrain.models.tree.model.static_positions", lambda config: None)
    monkeypatch.setattr(preflight, "static_positions", lambda config: None)
    policy = policy_of("longrope")
    check = preflight.choose_path(policy, [SHORT, make_tree([9], [8, 7]), LONG], "auto")
    assert policy.path == "rows" and check.status == "warn" and "each runs alone" in check.detail
    assert preflight.check_leak(policy, [SHORT, LONG]).status == "pass"


def test_the_probes_hold_the_longest_row_within_bounds() -> None:
    """A window of 8 begins to matter after 8 tokens: a fault there must be seen, though the first rows are short."""
    short = [make_tree([1, 2], [3], row=i + 1) for i in range(100)]
    long, huge = make_tree([5] * 100, [6] * 200, row=101), make_tree([5] * 400, [6] * 400, row=102)
    assert preflight.long_probe([*short, long, huge], 512) is long
    assert preflight.long_probe([huge], 512) is None
    policy = Policy(tiny_model("gemma3", vocab=VOCAB))
    with pytest.MonkeyPatch.context() as patch:
        mask = TreeLayout.mask
        patch.setattr(TreeLayout, "mask", lambda self, index, window, dtype: mask(self, index, None, dtype))
        assert between(policy, preflight.probes(short), "tree", "padded").holds
        assert preflight.choose_path(policy, [*short, long], "auto").status == "warn" and policy.path == "padded"
    assert preflight.choose_path(policy, [*short, long], "auto").status == "pass"


# ---------------------------------------------------------------- what a model computes in


@pytest.mark.parametrize("arch", ["llama", "qwen3", "phi3", "olmo2"])
def test_fp64_weights_with_fp32_norms_take_the_tree(arch: str) -> None:
    policy = Policy(tiny_model(arch, vocab=VOCAB, dtype=torch.float64))
    trees = random_trees(4, vocab=VOCAB, seed=3)
    assert computed_in(policy, trees) == torch.float32
    assert between(policy, trees, "tree", "padded").logprob > LOGPROB_ERROR[torch.float64]
    check = preflight.choose_path(policy, trees, "auto")
    assert policy.path == "tree" and check.status == "pass" and "computed in float32" in check.detail


def test_a_model_that_is_fp64_throughout_is_held_to_it() -> None:
    """GPT-NeoX has layer norms and casts its angles only; these are the same on every path."""
    trees = random_trees(4, vocab=VOCAB, seed=3)
    for arch in ("gpt2", "gpt_neox"):
        policy = Policy(tiny_model(arch, vocab=VOCAB, dtype=torch.float64))
        assert computed_in(policy, trees) == torch.float64
        assert preflight.choose_path(policy, trees, "auto").status == "pass" and policy.path == "tree"
    assert computed_in(Policy(tiny_model("llama", vocab=VOCAB)), trees) == torch.float32
    assert computed_in(Policy(tiny_model("llama", vocab=VOCAB), autocast=torch.bfloat16), trees) == torch.bfloat16
