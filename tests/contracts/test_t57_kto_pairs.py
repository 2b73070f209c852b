"""T57: a mismatched completion is never the row's own, one row has none, and the KL is the step's mean (trl#1911).

Batch KLs [2, 8, 4, 6] are 5 (align-anything PR#216), however the step is cut into micro-batches.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.mismatch import derangement, mismatched
from posttrain.errors import ConfigError
from posttrain.losses.feedback import FEEDBACK
from posttrain.types import TokenTree
from tests.fixtures import make_tree


def rows(count: int, *, prompts: int | None = None, answers: int | None = None) -> list[TokenTree]:
    """Rows with so many different prompts and answers."""
    return [
        make_tree([1, 10 + i % (prompts or count)], [30 + i % (answers or count), 2], label=i % 2 == 0, row=i + 1)
        for i in range(count)
    ]


@pytest.mark.parametrize("count", range(2, 10))
@pytest.mark.parametrize("seed", range(20))
def test_t57_never_its_own(count: int, seed: int) -> None:
    trees = rows(count)
    others = derangement(trees, np.random.default_rng(seed))
    assert sorted(others) == list(range(count))
    assert all(other != own for own, other in enumerate(others))
    for tree, pair in zip(trees, mismatched(trees, np.random.default_rng(seed)), strict=True):
        assert pair.prompt_ids.tolist() == tree.prompt_ids.tolist()
        assert pair.branches[0].ids.tolist() != tree.branches[0].ids.tolist()


def test_t57_one_row_is_an_error() -> None:
    with pytest.raises(ConfigError, match="one row has no mismatched completion"):
        derangement(rows(1), np.random.default_rng(0))


def test_t57_the_kl_is_the_mean() -> None:
    coupling = FEEDBACK["kto"].coupling
    assert coupling is not None
    assert coupling.reduce({"log_ratio": torch.tensor([2.0, 8.0, 4.0, 6.0])})["point"].tolist() == [5.0] * 4


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=24),
    st.integers(0, 2**32 - 1),
)
def test_t57_also_with_equal_prompts_and_completions(contents: list[tuple[int, int]], seed: int) -> None:
    """A permutation without a fixed point; equal words only where no permutation avoids them."""
    trees = [make_tree([1, 10 + p], [30 + a, 2], label=True, row=i + 1) for i, (p, a) in enumerate(contents)]
    others = derangement(trees, np.random.default_rng(seed))
    assert sorted(others) == list(range(len(trees)))
    assert all(other != own for own, other in enumerate(others))
    answers = [a for _, a in contents]
    same = sum(answers[own] == answers[other] for own, other in enumerate(others))
    # A word of m rows in n has only n - m rows to go to: m - (n - m) of them must meet it again.
    largest = max(answers.count(a) for a in answers)
    assert same == max(0, 2 * largest - len(answers))


def test_t57_both_answers_to_one_prompt_are_not_swapped() -> None:
    """Pairs taken apart: the other answer to the same prompt is an answer, not a mismatch."""
    trees = [
        replace(tree, prompt_ids=np.asarray([1, 10 + i // 2], np.int32)) for i, tree in enumerate(rows(12, answers=12))
    ]
    for seed in range(20):
        others = derangement(trees, np.random.default_rng(seed))
        assert all(own // 2 != other // 2 for own, other in enumerate(others))


def test_t57_where_all_rows_have_one_prompt_the_words_still_differ() -> None:
    trees = rows(6, prompts=1)
    others = derangement(trees, np.random.default_rng(0))
    assert all(other != own for own, other in enumerate(others))


def test_t57_drawn_anew_for_every_seed_and_the_same_for_one() -> None:
    trees = rows(16)
    drawn = [tuple(derangement(trees, np.random.default_rng(seed))) for seed in range(30)]
    assert drawn == [tuple(derangement(trees, np.random.default_rng(seed))) for seed in range(30)]
    assert len(set(drawn)) == 30
    partners = {other for others in drawn for other in others[:1]}
    assert len(partners) > 8, "row 0 meets many others"


def test_t57_a_completion_is_cut_to_the_longest_row_of_the_step() -> None:
    trees = [make_tree([1] * 9, [5, 2], label=True, row=1), make_tree([1, 7], [6, 6, 6, 6, 6, 2], label=False, row=2)]
    cut, whole = mismatched(trees, np.random.default_rng(0))
    assert (cut.num_tokens, whole.num_tokens) == (11, 4)
    assert cut.branches[0].ids.tolist() == [6, 6]
    assert whole.branches[0].ids.tolist() == [5, 2]
    assert all(one.key != other.key for one, other in pairwise([*trees, cut, whole]))
