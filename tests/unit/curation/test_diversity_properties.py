"""What holds of every rule of diversity on any rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.config.diversity import DEITA, DPP, DiversitySettings, FacilityLocation, KCentre, SemDeDup
from posttrain.curation.diversity.choose import choose
from posttrain.curation.diversity.vectors import unit_length

RULES: tuple[DiversitySettings, ...] = (
    SemDeDup(kind="semdedup", threshold=0.8),
    SemDeDup(kind="semdedup", threshold=0.8, keep="score"),
    KCentre(kind="k_centre"),
    KCentre(kind="k_centre", quality=1),
    # Two rows that cover nothing but each other are a tie, which a little quality decides.
    FacilityLocation(kind="facility_location", quality=1e-3),
    FacilityLocation(kind="facility_location", quality=1e-3, exact_rows=0, neighbours=5, probes=2),
    DPP(kind="dpp"),
    DEITA(kind="deita", threshold=0.8),
)
ORDERINGS = tuple(rule for rule in RULES if isinstance(rule, KCentre | FacilityLocation | DPP))
CASES = {"max_examples": 25, "deadline": None, "derandomize": True}


def drawn(count: int, seed: int, dimensions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return unit_length(generator.standard_normal((count, dimensions))), generator.permutation(count).astype(float)


def name(rule: DiversitySettings) -> str:
    return repr(rule)[:60]


@pytest.mark.parametrize("rule", RULES, ids=name)
@given(count=st.integers(1, 40), budget=st.integers(1, 45), seed=st.integers(0, 99))
@settings(**CASES)
def test_every_row_is_kept_or_removed_once_within_the_budget(rule, count, budget, seed):
    features, scores = drawn(count, seed)
    features[seed % count] = 0  # a row with nothing to compare
    chosen = choose(features, rule, scores=scores, budget=budget, seed=seed)
    assert sorted([*chosen.kept.tolist(), *chosen.removed.tolist()]) == list(range(count))
    assert len(chosen.kept) <= budget and len(chosen.kept) >= 1
    for removal in chosen.removals():
        assert removal.nearest in chosen.kept
        cosines = features[chosen.kept] @ features[removal.row]
        assert removal.cosine == pytest.approx(float(cosines.max()), abs=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=name)
@given(count=st.integers(2, 40), seed=st.integers(0, 99))
@settings(**CASES)
def test_rows_in_another_order_give_the_same_set(rule, count, seed):
    features, scores = drawn(count, seed)
    order = np.random.default_rng(seed + 1).permutation(count)
    budget = max(1, count // 3)
    chosen = choose(features, rule, scores=scores, budget=budget, seed=3)
    other = choose(np.ascontiguousarray(features[order]), rule, scores=scores[order], budget=budget, seed=3)
    assert set(order[other.kept].tolist()) == set(chosen.kept.tolist())


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_scaled_vectors_make_the_same_choice_once_they_are_of_length_one(rule):
    features, scores = drawn(30, 4)
    scaled = unit_length(features * 1e3)
    assert choose(scaled, rule, scores=scores, budget=9).kept.tolist() == (
        choose(features, rule, scores=scores, budget=9).kept.tolist()
    )


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_the_same_seed_makes_the_same_choice(rule):
    features, scores = drawn(50, 8)
    first, second = (choose(features, rule, scores=scores, budget=9, seed=5) for _ in range(2))
    assert first.kept.tolist() == second.kept.tolist() and first.reasons == second.reasons


@pytest.mark.parametrize("rule", ORDERINGS, ids=name)
def test_a_budget_for_all_keeps_all_duplicates_too(rule):
    features, scores = drawn(20, 1)
    features[7] = features[3]
    for budget in (20, 25):
        assert sorted(choose(features, rule, scores=scores, budget=budget).kept.tolist()) == list(range(20))


@pytest.mark.parametrize("rule", [rule for rule in RULES if isinstance(rule, SemDeDup | DEITA | DPP)], ids=name)
@given(count=st.integers(4, 30), seed=st.integers(0, 99))
@settings(**CASES)
def test_of_two_equal_rows_at_most_one_is_kept(rule, count, seed):
    features, scores = drawn(count, seed)
    features[count - 1] = features[0]
    chosen = choose(features, rule, scores=scores, budget=count - 1, seed=seed)
    assert not {0, count - 1} <= set(chosen.kept.tolist())


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_one_row_and_none(rule):
    assert choose(np.array([[1.0, 0.0]], np.float32), rule, scores=np.ones(1), budget=1).kept.tolist() == [0]
    assert not len(choose(np.empty((0, 2), np.float32), rule, scores=np.ones(0), budget=1).kept)
