"""combine and disagreement by hand; and that a name which nobody computed is refused before a row is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import posttrain as pt
from posttrain.config.scores import CombineScore, DisagreementScore
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.curation.scores.combined import combine_score, disagreement_score, scaled_scores
from posttrain.data.read import read
from posttrain.errors import ConfigError

NAN = float("nan")


def pool_with(**scores: list[float]) -> Pool:
    count = len(next(iter(scores.values())))
    rows = Rows(read([{"prompt": f"Q{n}", "completion": "A"} for n in range(count)], scan=False))
    return Pool(rows, np.arange(count), {name: np.array(values) for name, values in scores.items()})


def combined(pool: Pool, **settings: Any) -> list[float]:
    return combine_score(CombineScore(kind="combine", of=("a", "b"), **settings), pool, Tools()).score_R.tolist()


def test_scales_by_hand() -> None:
    assert scaled_scores(np.array([5.0, 1.0, 5.0]), "ranks").tolist() == [0.75, 0, 0.75]
    assert scaled_scores(np.array([1.0, 3.0]), "z").tolist() == [-1, 1]
    assert scaled_scores(np.array([2.0, 2.0]), "z").tolist() == [0, 0]
    assert scaled_scores(np.array([7.0]), "ranks").tolist() == [0.5]


def test_combinations_by_hand() -> None:
    pool = pool_with(a=[1.0, 2.0, 3.0], b=[300.0, 100.0, 200.0])  # ranks 0, 1/2, 1 and 1, 0, 1/2
    assert combined(pool) == [0.5, 0.25, 0.75]
    assert combined(pool, how="product") == [0, 0, 0.5]
    assert combined(pool, how="min") == [0, 0, 0.5]
    assert combined(pool, how="max") == [1, 0.5, 1]
    assert combined(pool, how="product", scale="raw") == [300, 200, 600]
    apart = disagreement_score(DisagreementScore(kind="disagreement", of=("a", "b")), pool, Tools()).score_R
    assert apart.tolist() == [0.5, 0.25, 0.25], "the standard deviation of two numbers is half of their distance"


def test_a_row_that_lacks_one_score_has_none_and_moves_no_other() -> None:
    pool = pool_with(a=[1.0, 2.0, 3.0, NAN, 9.0], b=[300.0, 100.0, 200.0, 1e9, NAN])
    found = combine_score(CombineScore(kind="combine", of=("a", "b")), pool, Tools())
    assert found.score_R[:3].tolist() == [0.5, 0.25, 0.75]
    assert np.isnan(found.score_R[3:]).all() and found.missing == dict.fromkeys((3, 4), "it lacks one of `a`, `b`")


def test_a_monotone_change_of_one_score_changes_no_combination_of_ranks() -> None:
    numbers = np.random.default_rng(0).normal(size=(2, 40))
    plain = combined(pool_with(a=numbers[0].tolist(), b=numbers[1].tolist()))
    assert combined(pool_with(a=np.exp(5 * numbers[0]).tolist(), b=numbers[1].tolist())) == plain


def test_what_cannot_be_combined_is_refused() -> None:
    step = {"kind": "score", "score": {"kind": "combine", "of": ["length", "from"]}}
    with pytest.raises(ConfigError, match="no score named `from`"):
        pt.select([], steps=[{"kind": "score", "score": "length"}, step], progress=False)
    with pytest.raises(ConfigError, match="two low scores a high one"):
        CombineScore(kind="combine", of=("a", "b"), how="product", scale="z")
