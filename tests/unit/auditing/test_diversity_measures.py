"""How diverse texts are: numbers by hand, and where they must not move."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posttrain.auditing.diversity import Diversity, distinct, diversity_curve, diversity_of, nearest_distance, vendi_score


def test_distinct_counts_ngrams_within_each_text():
    # Words a b a | a b: 2 of 5 differ; pairs ab ba | ab: 2 of 3. The pair from one text into the next counts nowhere.
    assert distinct(["a b a", "A b!"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a", "A b!"], 2) == pytest.approx(2 / 3)
    assert math.isnan(distinct(["", "?"], 1)) and math.isnan(distinct(["one"], 2))


def test_vendi_score_is_the_number_of_different_texts():
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score(np.ones((5, 5))) == pytest.approx(1)
    # Two groups, of three and of one: the entropy of (3/4, 1/4).
    blocks = np.zeros((4, 4))
    blocks[:3, :3], blocks[3, 3] = 1, 1
    assert vendi_score(blocks) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_nearest_distance_by_hand():
    cosine = np.array([[1, 0.9, 0], [0.9, 1, 0.2], [0, 0.2, 1]])
    assert nearest_distance(cosine) == pytest.approx((0.1 + 0.1 + 0.8) / 3)
    assert nearest_distance(np.array([[1, -0.5], [-0.5, 1]])) == pytest.approx(1.5)
    assert math.isnan(nearest_distance(np.eye(1)))


def test_a_set_of_copies_and_a_set_of_unlike_texts():
    copies = diversity_of(["the same words"] * 6)
    assert (copies.nearest_distance, copies.vendi) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-3))
    unlike = diversity_of(["red house", "green tree", "blue car", ""])
    assert (unlike.nearest_distance, unlike.vendi) == (pytest.approx(1), pytest.approx(4))
    given = diversity_of(["x", "y"], np.array([[1, 0], [0.6, 0.8]], np.float32))
    assert given.nearest_distance == pytest.approx(0.4)


def test_a_sample_is_drawn_by_seed_and_its_size_is_said():
    texts = [f"text {index % 30} of {index}" for index in range(90)]
    first, second = diversity_of(texts, sample=20), diversity_of(texts, sample=20)
    assert first == second and (first.texts, first.sampled) == (90, 20) and first.vendi <= 20
    assert diversity_of([]) == Diversity(0, *[pytest.approx(math.nan, nan_ok=True)] * 4, 0)


def test_the_curve_ends_with_the_whole_set():
    texts = [f"word{index % 4} again" for index in range(10)]
    curve = diversity_curve(texts, points=5)
    assert [point.texts for point in curve] == [2, 4, 6, 8, 10] and curve[-1] == diversity_of(texts)
    assert curve[-1].vendi == pytest.approx(curve[1].vendi, abs=0.2)  # from four texts on nothing new comes
    assert [point.texts for point in diversity_curve(["a", "b"], points=10)] == [1, 2] and not diversity_curve([])
