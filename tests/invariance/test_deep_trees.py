"""Trees of any depth: a branch that continues another gives what the ordinary row of its path gives, on every path.

Log-probs, entropies, values and gradients, in fp64, against trees of one branch each, whose prompt is the whole path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.data.tree_key import keep_branches, make_tree, require_storable, tree_key
from posttrain.data.trees import collate, count, pack
from posttrain.errors import ConfigError
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.preference import pairwise_loss
from posttrain.losses.sft import sft_loss
from posttrain.models.reference import CachedReference
from posttrain.models.tree.attention import TreeLayout, tree_attention
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.parity import between, leak
from posttrain.models.tree.paths import probes
from posttrain.models.tree.router import rows_of_tokens
from posttrain.models.tree.rows import trees_of
from posttrain.models.tree.value import value_head
from posttrain.training.objectives import algorithm
from posttrain.training.step import accumulate
from posttrain.types import Batch, Count, MediaRef, RowRef, TokenTree, Wants
from tests.fixtures import tiny_model
from tests.unit.models.tree.test_logprobs import true_float64

VOCAB = 97
SHAPES: dict[str, Sequence[int | None]] = {
    "two below one": [None, 0, 0],
    "three levels, twice": [None, 0, 0, None, 3, 4],
    "a chain": [None, 0, 1, 2],
    "children apart": [None, None, 0, 1, 0, 4],
}
"""The branch that each branch continues."""


def deep_tree(parents: Sequence[int | None], seed: int, *, prompt: int = 7, masked: float = 0.3) -> TokenTree:
    """A tree of that shape with random ids; some tokens do not train, and with `masked` of 1 whole branches do not."""
    rng = np.random.default_rng(seed)
    sides = []
    for index in range(len(parents)):
        length = int(rng.integers(1, 9))
        mask = rng.random(length) >= masked
        mask[0] = mask[0] and (prompt > 0 or parents[index] is not None)
        sides.append((rng.integers(0, VOCAB, length).tolist(), mask.tolist()))
    ids = rng.integers(0, VOCAB, prompt).tolist()
    return make_tree(ids, sides, RowRef("deep.jsonl", seed + 1), parents=parents)


TREES = [
    *(deep_tree(parents, seed) for seed, parents in enumerate(SHAPES.values())),
    deep_tree([None, 0, 1], 11, masked=0.0),
    deep_tree([None, 0, 0, 2], 12, prompt=0),
    make_tree([5, 6], [([7, 8], [False, False]), ([9, 10], [True, True])], RowRef("deep.jsonl", 90), parents=[None, 0]),
]


def as_rows(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """Each branch as a tree of its own, with its path in the prompt."""
    rows = []
    for tree in trees:
        for branch in tree.branches:
            path, parent = [], branch.parent
            while parent is not None:
                path.insert(0, tree.branches[parent].ids)
                parent = tree.branches[parent].parent
            prompt = np.concatenate([tree.prompt_ids, *path]).tolist()
            rows.append(make_tree(prompt, [(branch.ids.tolist(), branch.loss_mask.tolist())], tree.row))
    return rows


def answers(policy: Policy, batch: Batch, path: str) -> tuple[Tensor, ...]:
    """Log-probs, entropies and values, and the gradient of a random functional of them in every parameter."""
    head = value_head(policy).to(policy.dtype)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, head.weight.numel()).to(head.weight).reshape(head.weight.shape))
    policy.zero_grad()
    out = policy(batch, Wants(temperature=0.7, entropy=True, value_head=head), path=path)
    weights = torch.linspace(-1, 2, len(out.logprobs_N), dtype=out.logprobs_N.dtype)
    loss = (out.logprobs_N * weights).sum() + (out.entropy_N * weights.flip(0)).sum() + (out.values_N * weights).sum()
    loss.backward()
    gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    return (out.logprobs_N.detach(), out.entropy_N.detach(), out.values_N.detach(), *gradients)


def gap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(
        float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "mistral", "qwen3_moe"])
@pytest.mark.parametrize("path", ["tree", "padded", "rows"])
def test_a_deep_tree_is_its_rows(arch: str, path: str) -> None:
    policy = Policy(tiny_model(arch, vocab=VOCAB, dtype=torch.float64))
    with true_float64():
        expected = answers(policy, collate(as_rows(TREES)), "rows")
        assert gap(answers(policy, collate(TREES), path), expected) < 1e-10


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("backend", ["kernel", "flex"])
def test_backends_agree_on_deep_trees(backend: str, window: int | None) -> None:
    batch = collate(TREES)
    torch.manual_seed(0)
    found = []
    q, k, v = (torch.randn(1, heads, len(batch.input_ids_T), 16, dtype=torch.float64) for heads in (4, 2, 2))
    for name in (backend, "segments"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # torch says that uncompiled FlexAttention is slow
            layout = TreeLayout(batch, name)
            found.append(tree_attention(torch.nn.Identity(), q, k, v, None, tree=layout, sliding_window=window)[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)


def test_reward_models_score_deep_trees() -> None:
    model = ScoreModel(with_head(tiny_model(vocab=VOCAB, dtype=torch.float64), init="normal"), pooling="mean")
    trees = [deep_tree(parents, seed, masked=0.0) for seed, parents in enumerate(SHAPES.values())]
    with true_float64():
        expected = model(collate(as_rows(trees)), path="rows").scores_BH
        for path in ("tree", "padded", "rows"):
            torch.testing.assert_close(model(collate(trees), path=path).scores_BH, expected, atol=1e-10, rtol=0)


def test_a_proof_on_deep_trees_passes_and_sees_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(tiny_model(vocab=VOCAB, dtype=torch.float64))
    assert policy.prove(TREES) == "tree"
    assert between(policy, TREES, "tree", "padded").holds
    assert leak(policy, TREES).holds  # what continues the changed branch moves, and is not counted as a leak
    plain = TreeLayout.__init__

    def parents_forgotten(self: TreeLayout, *arguments: object) -> None:
        plain(self, *arguments)  # type: ignore[arg-type]
        self.ancestors = [path[:1] for path in self.ancestors]

    monkeypatch.setattr(TreeLayout, "__init__", parents_forgotten)
    assert not between(policy, TREES, "tree", "padded").holds
    monkeypatch.undo()

    def all_before(self: TreeLayout, *arguments: object) -> None:
        plain(self, *arguments)  # type: ignore[arg-type]
        self.ancestors = [tuple(range(i)) for i in range(len(self.nodes))]

    monkeypatch.setattr(TreeLayout, "__init__", all_before)
    assert not leak(policy, TREES).holds


def test_probes_keep_the_paths() -> None:
    sizes, parents = (3, 2, 2, 4, 90), [None, 0, 0, 2, 3]
    tree = make_tree([1] * 300, [([5] * size, [True] * size) for size in sizes], RowRef("a", 1), parents=parents)
    short, _ = probes([tree])
    assert [branch.parent for branch in short[0].branches] == [None, 0, 0]
    _, (*_, kept) = probes([TREES[0], TREES[1], tree])
    assert [len(branch.ids) for branch in kept.branches] == [3, 2, 4, 90]  # the longest row, and one other
    assert [branch.parent for branch in kept.branches] == [None, 0, 1, 2]
    assert max(kept.row_lengths) == max(tree.row_lengths) == 399


def test_a_batch_gives_its_trees_back() -> None:
    for made, tree in zip(trees_of(collate(TREES), range(len(TREES))), TREES, strict=True):
        assert made.prompt_ids.tolist() == tree.prompt_ids.tolist()
        for one, other in zip(made.branches, tree.branches, strict=True):
            assert one.ids.tolist() == other.ids.tolist() and one.parent == other.parent
            assert one.loss_mask.tolist() == other.loss_mask.tolist()


# ---------------------------------------------------------------- what counts, and how often


def test_a_token_trains_once_and_stands_in_many_rows() -> None:
    tree = make_tree([1, 2], [([3], [True]), ([4], [True]), ([5], [True])], RowRef("a", 1), parents=[None, 0, 0])
    batch = collate([tree])
    assert batch.count == count([tree]) == Count(tokens=3, branches=3, trees=1)
    assert tree.num_tokens == 5 and tree.row_lengths == (3, 4, 4)
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 3]
    assert batch.predictor_index_N.tolist() == [1, 2, 2]  # both continue the third token
    assert rows_of_tokens(batch).tolist() == [3, 3, 3, 1, 1]
    assert tree.roles == ("branch 1", "branch 2", "branch 3")


def test_sums_are_over_a_branchs_own_tokens() -> None:
    policy = Policy(tiny_model(vocab=VOCAB, dtype=torch.float64))
    tree = deep_tree([None, 0, 1], 5, masked=0.0)
    with torch.no_grad():
        batch, rows = collate([tree]), collate(as_rows([tree]))
        own_B = sft_loss(policy(batch), batch, batch.count).per_branch["logprob"]
        ids = np.concatenate([branch.ids for branch in tree.branches]).tolist()
        whole = make_tree(tree.prompt_ids.tolist(), [(ids, [True] * len(ids))], tree.row)
        path = policy(collate([whole])).logprobs_N.sum()
    torch.testing.assert_close(own_B, sft_loss(policy(rows), rows, rows.count).per_branch["logprob"], atol=1e-6, rtol=0)
    torch.testing.assert_close(own_B.sum(), path, atol=1e-6, rtol=0)  # a path is the sum over its branches


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_a_step_of_deep_trees_does_not_depend_on_its_split(budget: int) -> None:
    gradients = []
    for tokens in (10_000, budget):
        policy = Policy(tiny_model(vocab=VOCAB, dtype=torch.float64))
        measured = accumulate(policy, None, algorithm("sft"), TREES, tokens, step=0)
        gradients.append([p.grad for p in policy.parameters()])
        assert measured.tokens == sum(tree.num_tokens for tree in TREES)
    assert gap([g for g in gradients[1] if g is not None], [g for g in gradients[0] if g is not None]) < 1e-9
    assert sorted(tree.row.row for micro in pack(TREES, budget) for tree in micro) == sorted(t.row.row for t in TREES)


def test_a_cached_reference_knows_deep_trees_apart(tmp_path) -> None:  # type: ignore[no-untyped-def]
    policy = Policy(tiny_model(vocab=VOCAB))
    flat = make_tree([1, 2], [([3, 4], [True, True]), ([5, 6], [True, True])], RowRef("a", 1))
    deep = make_tree([1, 2], [([3, 4], [True, True]), ([5, 6], [True, True])], RowRef("a", 2), parents=[None, 0])
    assert flat.key != deep.key
    cached = CachedReference.build(policy, [flat, deep, *TREES], tmp_path, tokens_per_microbatch=64)
    batch = collate([deep, flat, *TREES])
    with torch.no_grad():
        torch.testing.assert_close(cached.logprobs(batch), policy(batch).logprobs_N, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- what is refused


def test_comparisons_of_branches_that_continue_each_other_are_refused() -> None:
    row, batch = PAIRWISE["simpo"], collate([deep_tree([None, 0], 1)])
    policy = Policy(tiny_model(vocab=VOCAB))
    with pytest.raises(ConfigError, match="some branches continue others"):
        pairwise_loss(row, row.resolve({}), policy(batch), None, batch, batch.count)


def test_a_branch_continues_one_before_it() -> None:
    tree = deep_tree([None, 0], 1)
    with pytest.raises(ValueError, match="continues branch 1, which is not before it"):
        collate([replace(tree, branches=(tree.branches[0], replace(tree.branches[1], parent=1)))])


def test_dropped_branches_take_nothing_with_them_in_silence() -> None:
    tree = deep_tree([None, None, 1], 4)
    kept = keep_branches(tree, [False, True, True])
    assert kept is not None and [branch.parent for branch in kept.branches] == [None, 0] and kept.key != tree.key
    with pytest.raises(ValueError, match="branch 2 stays and continues branch 1"):
        keep_branches(tree, [True, False, True])


def test_media_are_in_the_key_and_in_no_batch() -> None:
    plain = deep_tree([None], 2)
    images = [replace(plain, media=(MediaRef("image", 1, digest),)) for digest in ("aa", "bb")]
    keys = {tree_key(tree.prompt_ids, tree.branches, media=tree.media) for tree in (plain, *images)}
    assert len(keys) == 3
    with pytest.raises(ValueError, match="a batch of ids would drop them"):
        collate(images[:1])
    for tree in (images[0], deep_tree([None, 0], 2)):
        with pytest.raises(ValueError, match="stored without"):
            require_storable(tree)
