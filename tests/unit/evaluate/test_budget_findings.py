"""What curves of a budget say: values between points, falls, choices at a price, and difficulty, on made-up pools."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.evaluate.budget.curves import (
    Curve,
    CurveKind,
    CurvePoint,
    PoolTable,
    ScorerTable,
    pool_curves,
    values_at,
)
from posttrain.evaluate.budget.difficulty import FEWEST, bins_of, by_difficulty, chosen_by_bin
from posttrain.evaluate.budget.findings import choices, fall, findings

NS = (1, 2, 4, 8, 16)


def pool(prompts=60, samples=16, *, scorers=None, seed=0, classes=None) -> PoolTable:
    """Answers that are right with a chance of their prompt; wrong ones disagree with each other."""
    rng = np.random.default_rng(seed)
    chances = rng.uniform(0.1, 0.9, prompts)
    right = (rng.random((prompts, samples)) < chances[:, None]).astype(float)
    said = classes or [[0 if right[p, i] else i + 1 for i in range(samples)] for p in range(prompts)]
    tables = {}
    for name, score in (scorers or {}).items():
        values = score(right, rng)
        tables[name] = ScorerTable(values, 1 / (1 + np.exp(-values)), scored=10.0)
    return PoolTable(right, said, tables, tokens=100.0, seconds=0.1)


def perfect(right, rng):
    return right


def blind(right, rng):
    return rng.normal(size=right.shape)


def gamed(right, rng):
    """Prefers right answers, but one wrong answer of each pool to all others: with many answers it is always drawn."""
    values = right + rng.normal(size=right.shape) * 0.1
    wrong = np.where(right == 0, rng.random(right.shape), -1).argmax(axis=1)
    values[np.arange(len(right)), wrong] = np.where((right == 0).any(axis=1), 9.0, values[np.arange(len(right)), wrong])
    return values


def point(label, values, tokens, n=None):
    return CurvePoint(label, n, np.asarray(values, dtype=float), tokens, 0.0, 0.0)


def named(curves, name):
    return next(curve for curve in curves if curve.name == name)


def test_a_perfect_scorer_reaches_the_oracle_and_a_blind_one_stays_at_one_answer() -> None:
    table = pool(scorers={"perfect": perfect, "blind": blind})
    curves = pool_curves(table, NS)
    oracle = np.stack([p.values_P for p in named(curves, "oracle").points])
    assert np.allclose(np.stack([p.values_P for p in named(curves, "best of n by perfect").points]), oracle)
    flat = [p.value for p in named(curves, "best of n by blind").points]
    assert max(flat) - min(flat) < 0.12 and flat[0] == pytest.approx(table.right_PN.mean())
    assert [p.tokens for p in named(curves, "majority").points] == [100, 200, 400, 800, 1600]
    assert [p.scored for p in named(curves, "best of n by blind").points] == [10, 20, 40, 80, 160]
    assert all(p.scored == 0 for p in named(curves, "majority").points)
    assert [p.seconds for p in named(curves, "majority").points] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])


def test_tokens_that_a_scorer_samples_are_part_of_the_price() -> None:
    table = pool(prompts=4, scorers={"marks": blind})
    marks = table.scorers["marks"]
    table.scorers["marks"] = ScorerTable(marks.scores_PN, marks.weights_PN, sampled=25.0)  # type: ignore[index]
    assert [p.tokens for p in named(pool_curves(table, (2,)), "best of n by marks").points] == [250.0]


def test_values_between_two_points_are_linear_in_the_log_of_the_price() -> None:
    curve = Curve("majority", CurveKind.MAJORITY, [point("", [0, 1], 100, 1), point("", [1, 1], 400, 4)])
    values, n = values_at(curve, 200)
    assert values == pytest.approx([0.5, 1]) and n == pytest.approx(2)
    assert values_at(curve, 10)[1] == 1 and values_at(curve, 9_999)[1] == 4
    assert values_at(curve, 400)[0].tolist() == [1, 1]


def test_a_scorer_that_is_gamed_is_said_to_be_over_optimised() -> None:
    table = pool(prompts=120, scorers={"gamed": gamed, "blind": blind})
    curves = pool_curves(table, NS)
    found = fall(named(curves, "best of n by gamed"))
    assert found is not None and found[0] in (2, 4) and found[1].high < 0
    assert fall(named(curves, "best of n by blind")) is None
    said = [one.said for one in findings(table, curves, choices(table, curves), None)]
    (warned,) = [text for text in said if "over-optimised" in text]
    assert "`best of n by gamed` falls as n grows" in warned and "the scorer `gamed`" in warned


def test_the_peak_of_noise_is_no_fall() -> None:
    rng = np.random.default_rng(3)
    falls = 0
    for _ in range(40):
        points = [point(f"n = {n}", rng.random(30) < 0.5, n, n) for n in NS]
        falls += fall(Curve("noise", CurveKind.BEST, points, "x")) is not None
    assert falls <= 4  # of 40 at 2.5 % to that side; measured from its own peak it would be some 20


def test_the_best_at_a_price_and_whether_chance_explains_it() -> None:
    table = pool(scorers={"perfect": perfect, "blind": blind})
    curves = pool_curves(table, NS)
    chosen = choices(table, curves)
    assert [one.n for one in chosen] == [2, 4, 8, 16]
    # Weighted by perfect scores is as good where wrong answers disagree.
    assert {one.best for one in chosen} <= {"best of n by perfect", "weighted by perfect", "majority"}
    cheap = Curve("cheap", CurveKind.STRATEGY, [point("cheap", np.ones(60), 150.0)])
    chosen = choices(table, [*curves, cheap])
    assert {one.best for one in chosen} == {"cheap"} and chosen[0].clear
    dear = Curve("dear", CurveKind.STRATEGY, [point("dear", np.ones(60), 1_000.0)])
    assert [one.best == "dear" for one in choices(table, [*curves, dear])] == [False, False, False, True]


def test_a_strategy_is_compared_with_the_pool_at_as_many_tokens() -> None:
    table = pool()
    curves = pool_curves(table, NS)
    early = Curve("early", CurveKind.STRATEGY, [point("early", named(curves, "majority").at_n(16).values_P, 400.0)])
    (said,) = [one for one in findings(table, [*curves, early], [], None) if "`early`" in one.said]
    assert "about n = 4.0" in said.said and said.kind == "good" and "better than chance explains" in said.said
    dear = Curve("dear", CurveKind.STRATEGY, [point("dear", np.zeros(60), 9_999.0)])
    (said,) = [one for one in findings(table, [*curves, dear], [], None) if "`dear`" in one.said]
    assert "though the strategy costs more" in said.said and said.kind == "warn"
    cheap = Curve("cheap", CurveKind.STRATEGY, [point("cheap", np.zeros(60), 10.0)])
    (said,) = [one for one in findings(table, [*curves, cheap], [], None) if "`cheap`" in one.said]
    assert "the smallest, though the strategy costs less" in said.said


def test_where_nothing_beats_one_answer_the_sentence_says_so() -> None:
    right = np.tile([1.0, 0.0, 0.0, 0.0], (12, 1))
    table = PoolTable(right, [[0, 1, 1, 1]] * 12, {}, 100.0, 0.1)  # the wrong answers agree
    curves = pool_curves(table, (1, 4))
    first = findings(table, curves, choices(table, curves), None)[0]
    assert "nothing is better than one answer alone, which is right in 25 %" in first.said


# ---------------------------------------------------------------- by difficulty


def test_bins_are_fifths_and_equal_rates_stay_together() -> None:
    assert bins_of(np.arange(10) / 10).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(set(bins_of(np.array([0.0] * 8 + [1.0] * 2)).tolist())) == 2


def test_the_choice_by_difficulty_is_found_where_there_is_one() -> None:
    rates = np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 20)
    hard = rates < 0.4
    found = chosen_by_bin(8, {"for hard": hard.astype(float), "for easy": (~hard).astype(float)}, rates)
    assert found.gain is not None and found.gain.value == pytest.approx(0.4) and found.gain.low > 0
    assert [set(one.choices) for one in found.bins] == [{"for hard"}] * 2 + [{"for easy"}] * 3
    assert [one.prompts for one in found.bins] == [20] * 5 and found.fixed == ("for easy",) * 2


def test_what_chance_alone_makes_is_not_called_a_gain() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for seed in range(30):
        candidates = {str(index): (rng.random(50) < 0.5).astype(float) for index in range(5)}
        found = chosen_by_bin(8, candidates, rng.random(50), seed)
        assert found.gain is not None
        gains.append(found.gain.value)
    # Chosen and measured on the same prompts it would be some 10 points.
    assert abs(np.mean(gains)) < 0.03


def test_too_few_prompts_or_a_single_way_are_not_chosen_among() -> None:
    assert by_difficulty(pool(prompts=FEWEST - 1, scorers={"blind": blind}), NS, []) is None
    assert by_difficulty(pool(), NS, []) is None  # majority alone
    found = by_difficulty(pool(scorers={"blind": blind}), NS, [])
    assert found is not None and found.n == 8  # half of the samples; the other half says what is hard


def test_difficulty_is_read_off_other_answers_than_those_that_are_chosen_among() -> None:
    right = np.zeros((FEWEST, 8))
    right[:, :2] = 1  # the first half: 2 of 4 right for every prompt
    right[: FEWEST // 2, 4:] = 1  # the second: all or none
    classes = [[0 if value else 1 + at for at, value in enumerate(row)] for row in right]
    strategy = Curve("run", CurveKind.STRATEGY, [point("run", right[:, 0], 100)])
    found = by_difficulty(PoolTable(right, classes, {}, tokens=100.0, seconds=0.1), (1, 2, 4), [strategy])
    assert found is not None and [(one.low, one.high) for one in found.bins] == [(0.0, 0.0), (1.0, 1.0)]


def test_marks_that_cost_more_than_the_price_are_not_the_best_at_it() -> None:
    # no two answers agree, so that a majority is one answer
    table = pool(prompts=40, scorers={"marks": perfect}, classes=[list(range(16))] * 40)
    marks = table.scorers["marks"]
    table.scorers["marks"] = ScorerTable(marks.scores_PN, marks.weights_PN, sampled=150.0)  # type: ignore[index]
    found = choices(table, pool_curves(table, (2, 8)))
    # two answers with their marks are 500 tokens: more than two answers' 200, less than eight answers' 800
    assert [choice.best.endswith("by marks") for choice in found] == [False, True]
    assert found[0].second is None
