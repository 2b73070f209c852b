"""Columns: numbers that tokens carry from a branch to the trained tokens of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posttrain.data.tree_key import keep_branches, make_tree
from posttrain.data.trees import collate, pack, to_device
from posttrain.types import Batch, Branch, RowRef, TokenTree
from tests.fixtures import make_tree as tree_of

MASKS = ([True, False, True], [False, True])


def carrying(columns: list[dict[str, list[float]]] | None, row: int = 1) -> TokenTree:
    branches = [(list(range(len(mask))), mask) for mask in MASKS]
    return make_tree([1, 70], branches, RowRef("test", row), columns=columns)


def gathered(batch: Batch) -> dict[str, list[float]]:
    return {name: values_N.tolist() for name, values_N in batch.columns_N.items()}


def test_a_column_arrives_at_the_trained_tokens_in_their_order() -> None:
    first = carrying([{"old": [1, 2, 3], "adv": [0.5] * 3}, {"adv": [-0.5] * 2, "old": [4, 5]}])
    second = carrying([{"old": [6, 7, 8], "adv": [1] * 3}, {"old": [9, 10], "adv": [2] * 2}], row=2)
    assert gathered(collate([first, second])) == {
        "old": [1.0, 3.0, 5.0, 6.0, 8.0, 10.0],
        "adv": [0.5, 0.5, -0.5, 1.0, 1.0, 2.0],
    }
    assert gathered(collate([second])) == {"old": [6.0, 8.0, 10.0], "adv": [1.0, 1.0, 2.0]}
    micro = [collate(trees) for trees in pack([first, second], 7)]
    assert [gathered(batch)["old"] for batch in micro] == [[1.0, 3.0, 5.0], [6.0, 8.0, 10.0]]
    moved = to_device(collate([first]), torch.device("meta"))
    assert {name: (values.device.type, len(values)) for name, values in moved.columns_N.items()} == {
        "old": ("meta", 3),
        "adv": ("meta", 3),
    }


def test_annotations_move_with_their_batch() -> None:
    """One left behind would be compared with scores on another device, in the middle of the first step."""
    meta = torch.device("meta")
    pairs = to_device(collate([tree_of([1], [2], [3], margin=0.5, scores=(1.0, 0.0))]), meta)
    assert pairs.margin_P is not None and pairs.margin_P.device == meta
    assert pairs.scores_B is not None and pairs.scores_B.device == meta
    judged = to_device(collate([tree_of([1], [2], label=True)]), meta)
    assert judged.label_P is not None and judged.label_P.device == meta and judged.margin_P is None


@pytest.mark.parametrize("poison", [float("nan"), 1e9])
def test_what_stands_at_other_tokens_never_enters(poison: float) -> None:
    tree = carrying([{"old": [1, poison, 3]}, {"old": [poison, 5]}])
    assert gathered(collate([tree])) == {"old": [1.0, 3.0, 5.0]}


def test_columns_are_fp32_or_wider() -> None:
    def dtype_of(values: np.ndarray) -> torch.dtype:
        branch = Branch(np.arange(2, dtype=np.int32), np.ones(2, np.bool_), {"old": values})
        tree = TokenTree(np.arange(2, dtype=np.int32), (branch,), "key", RowRef("test", 1))
        return collate([tree]).columns_N["old"].dtype

    assert dtype_of(np.zeros(2, np.float64)) == torch.float64
    assert dtype_of(np.zeros(2, np.float16)) == torch.float32
    assert dtype_of(np.zeros(2, np.int64)) == torch.float32


def test_the_key_does_not_know_them() -> None:
    assert carrying(None).key == carrying([{"old": [1, 2, 3]}, {"old": [4, 5]}]).key
    assert collate([carrying(None)]).columns_N == {}


@pytest.mark.parametrize(
    "trees",
    [
        [carrying([{"old": [1, 2, 3]}, {}])],
        [carrying([{}, {"old": [4, 5]}])],
        [carrying(None, row=3), carrying([{"old": [1, 2, 3]}, {"old": [4, 5]}])],
        [carrying([{"old": [1, 2, 3]}, {"old": [4, 5]}]), carrying([{"adv": [1, 2, 3]}, {"adv": [4, 5]}])],
    ],
)
def test_on_all_branches_or_on_none(trees: list[TokenTree]) -> None:
    with pytest.raises(ValueError, match="on all branches of a batch or on none"):
        collate(trees)


def test_one_number_for_each_token() -> None:
    with pytest.raises(ValueError, match=r"test, row 1: column old has shape \(2,\) for 3 tokens"):
        collate([carrying([{"old": [1, 2]}, {"old": [4, 5]}])])


def test_branches_that_are_left_out_take_their_columns_with_them() -> None:
    tree = carrying([{"old": [1, 2, 3]}, {"old": [4, 5]}])
    kept = keep_branches(tree, [False, True])
    assert kept is not None
    assert gathered(collate([kept])) == {"old": [5.0]}
    assert kept.key == make_tree([1, 70], [([0, 1], MASKS[1])], tree.row).key != tree.key
    assert keep_branches(tree, [True, True]) is tree
    assert keep_branches(tree, [False, False]) is None
