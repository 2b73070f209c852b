"""Reward models judged by numbers worked by hand, planted faults, and silence on a healthy model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from posttrain.errors import DataError, EmptyDatasetError
from posttrain.evaluate.agreement import agreement, kendall, pearson, ranks, spearman
from posttrain.evaluate.calibration import (
    accuracy,
    confidence,
    confidence_gap,
    error_by_chance,
    expected_calibration_error,
    reliability,
)
from posttrain.evaluate.cross_scoring import cross_scores, cross_scores_of_run, score_answers
from posttrain.evaluate.probes import REFUSAL, probe_answers, probe_figures
from posttrain.evaluate.reward import (
    PairScores,
    by_category,
    by_length,
    evaluate_reward,
    figures,
    gain,
    length_figures,
    write_reward_evaluation,
)
from posttrain.runs.files import read_json, read_jsonl
from tests.fake_reward import calibrated_margins, healthy_probes, pair_scores

PAIRS = PairScores.of(
    chosen=[1.0, 2.0, 0.0, 3.0],
    rejected=[0.0, 2.0, 1.0, 0.0],
    tokens_chosen=[10, 20, 30, 40],
    tokens_rejected=[20, 20, 10, 35],
    rows=["a", "b", "c", "d"],
)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# ---------------------------------------------------------------- figures


def test_figures_by_hand() -> None:
    found = figures(PAIRS)
    assert found["accuracy"].value == (1 + 0.5 + 0 + 1) / 4  # the tie counts half
    assert found["ties"].value == 0.25
    assert found["mean"].value == 9 / 8
    assert found["std"].value == pytest.approx(math.sqrt(19 / 8 - (9 / 8) ** 2))
    assert (found["mean_chosen"].value, found["mean_rejected"].value) == (1.5, 0.75)
    assert found["margin"].value == (1 + 0 - 1 + 3) / 4
    sigmoid = [1 / (1 + math.exp(-size)) for size in (1, 0, 1, 3)]
    assert found["confidence"].value == pytest.approx(sum(sigmoid) / 4)
    assert all(score.low <= score.value <= score.high and score.n == 4 for score in found.values())


def test_the_interval_of_the_spread_covers_it() -> None:
    """Both answers of a pair are drawn together, so pairs whose sides move alike widen the interval."""
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        level = rng.normal(0, 1.5, 60)
        scores = PairScores.of(level + rng.normal(0, 0.5, 60), level, [5] * 60, [5] * 60, range(60))
        spread = figures(scores)["std"]
        hits += spread.low <= math.sqrt((1.5**2 + 0.5**2 + 1.5**2) / 2) <= spread.high
    assert hits / 60 >= 0.85  # 95 % wanted, and a bootstrap of a spread is a little narrow


def test_gain_is_paired() -> None:
    before = PairScores.of(
        [0, 0, 1, 0], [1, 1, 0, 1], [1] * 4, [1] * 4, ["a", "b", "c", "d"]
    )  # wrong, wrong, right, wrong
    change = gain(PAIRS, before)
    assert change.value == (1 + 0.5 - 1 + 1) / 4
    with pytest.raises(DataError, match="other rows"):
        gain(PAIRS, PairScores.of([0.0], [1.0], [1], [1], ["a"]))


def test_no_pairs_and_no_numbers_are_refused_by_name() -> None:
    with pytest.raises(EmptyDatasetError):
        PairScores.of([], [], [], [], [])
    with pytest.raises(DataError) as caught:
        PairScores.of([1.0, math.nan], [0.0, 0.0], [1, 1], [1, 1], ["pairs.jsonl, row 1", "pairs.jsonl, row 7"])
    assert "pairs.jsonl, row 7" in str(caught.value)


# ---------------------------------------------------------------- calibration


def test_the_calibration_error_by_hand() -> None:
    """Two bins of [0.5, 1]: 60 % sure and right in 1 of 2; 90 % sure and right in 3 of 4."""
    margins = np.array([logit(0.6), -logit(0.6), logit(0.9), logit(0.9), logit(0.9), -logit(0.9)])
    first, second = reliability(margins, bins=2)
    assert (first.n, first.confidence, first.accuracy.value) == (2, pytest.approx(0.6), 0.5)
    assert (second.n, second.confidence, second.accuracy.value) == (4, pytest.approx(0.9), 0.75)
    assert (first.low, first.high, second.high) == (0.5, 0.75, 1.0)
    assert expected_calibration_error(margins, bins=2) == pytest.approx(2 / 6 * 0.1 + 4 / 6 * 0.15)
    assert confidence_gap(margins).value == pytest.approx((2 * 0.1 + 4 * 0.15) / 6)
    assert accuracy(margins).value == pytest.approx(4 / 6)


def test_swapping_the_sides_keeps_the_confidence_and_flips_the_accuracy() -> None:
    margins = calibrated_margins(300)
    assert confidence(margins) == pytest.approx(confidence(-margins))
    assert accuracy(margins).value == pytest.approx(1 - accuracy(-margins).value)


def test_huge_margins_do_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert confidence(np.array([1e6, -1e6, 0.0])).tolist() == [1.0, 1.0, 0.5]
        assert reliability(np.array([1e6]), 10)[0].high == 1.0


def test_a_calibrated_model_has_the_error_of_chance_and_an_overconfident_one_more() -> None:
    outside = 0
    for seed in range(60):
        margins = calibrated_margins(200, seed)
        mean, high = error_by_chance(margins, seed=seed)
        assert 0 < mean < high
        outside += expected_calibration_error(margins) > high
        assert expected_calibration_error(4 * margins) > high, "four times as sure"
    assert outside / 60 <= 0.15  # 5 % wanted


# ---------------------------------------------------------------- agreement


def test_ranks_share_their_mean_at_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, -2.0])).tolist() == [3.5, 2.0, 3.5, 1.0]


def test_agreement_by_hand() -> None:
    first = np.array([[3.0, 1.0], [2.0, 4.0], [0.0, 0.5]])
    second = np.array([[30.0, 10.0], [50.0, 40.0], [0.0, 5.0]])
    found = agreement(first, second)
    assert found.same_order.value == pytest.approx(2 / 3)  # the second pair is turned round
    # ranks 5 3 4 6 1 2 against 4 3 6 5 1 2: differences 1 0 -2 1 0 0, so rho = 1 - 6 * 6 / (6 * 35)
    assert found.spearman.value == pytest.approx(1 - 36 / 210)
    # 15 pairs of values; discordant are those of {5, 4, 6} against {4, 6, 5}: (5,4) and (4,6)
    assert found.kendall.value == pytest.approx((13 - 2) / 15)


def test_kendall_corrects_for_ties() -> None:
    """x = 1 1 2, y = 1 2 2: one concordant pair, each side has two untied pairs, so tau-b = 1 / 2."""
    assert kendall(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 2.0])) == pytest.approx(0.5)


def test_a_constant_agrees_with_nothing() -> None:
    constant, other = np.zeros((4, 2)), np.arange(8.0).reshape(4, 2)
    assert spearman(constant, other).value == 0.0
    assert kendall(constant.ravel(), other.ravel()) == 0.0
    assert pearson(constant, other).tolist() == [0.0] * 4


def test_any_rising_rescaling_agrees_fully() -> None:
    rewards = pair_scores(calibrated_margins(40)).rewards_P2
    found = agreement(rewards, np.exp(rewards) + 3)
    assert found.same_order.value == 1.0
    assert found.spearman.value == pytest.approx(1.0)
    assert found.kendall.value == pytest.approx(1.0)


# ---------------------------------------------------------------- length and category


def test_lengths_are_cut_at_zero_and_at_the_median_difference() -> None:
    """Differences -10, 0, 20, 5: their sizes' median is 10."""
    rows = {line.label: line.accuracy for line in by_length(PAIRS)}
    assert list(rows) == ["up to 10 shorter", "as long", "up to 10 longer", "over 10 longer"]
    assert [row.value for row in rows.values()] == [1.0, 0.5, 1.0, 0.0]
    assert sum(row.n for row in rows.values()) == 4


def test_length_figures_by_hand() -> None:
    found = length_figures(PAIRS)
    assert found.longer_chosen.value == (0 + 0.5 + 1 + 1) / 4
    # margins 1 0 -1 3 against differences -10 0 20 5: shorter, neither, shorter, longer
    assert found.longer_preferred.value == (0 + 0.5 + 0 + 1) / 4
    # ranks 3 2 1 4 against 1 2 4 3
    assert found.margin_correlation.value == pytest.approx(1 - 6 * (4 + 0 + 9 + 1) / 60)


def test_a_category_needs_five_pairs() -> None:
    scores = PairScores.of(
        [1.0] * 9, [0.0] * 5 + [2.0] * 4, [1] * 9, [1] * 9, range(9), ["big"] * 5 + ["small"] * 3 + [None]
    )
    (line,) = by_category(scores)
    assert (line.label, line.accuracy.value, line.accuracy.n) == ("big", 1.0, 5)


# ---------------------------------------------------------------- probes


def test_probes_of_texts_and_of_ids() -> None:
    texts = probe_answers(["Hi", "2 + 2?"], ["Hello.", "4"], empty="", refusal=REFUSAL, between=" ")
    assert texts == {
        "empty": ["", ""],
        "repeated": ["Hello. Hello. Hello.", "4 4 4"],
        "refusal": [REFUSAL, REFUSAL],
        "off_topic": ["4", "Hello."],
    }
    ids = probe_answers([(1,), (1,), (2,)], [(5,), (6,), (7, 8)], empty=(), refusal=(9,), between=())
    assert ids["repeated"] == [(5, 5, 5), (6, 6, 6), (7, 8, 7, 8, 7, 8)]
    assert ids["off_topic"] == [(7, 8), (7, 8), (5,)], "the next answer to the same prompt is not off topic"
    assert "off_topic" not in probe_answers(["Hi"], ["Hello."], empty="", refusal=REFUSAL, between=" ")


def test_probe_figures_by_hand() -> None:
    found = probe_figures(np.array([1.0, 2.0, 3.0, 9.0]), {"empty": np.array([0.0, 2.0, 4.0])}, scale=2.0)["empty"]
    assert found.below_chosen.value == (1 + 0.5 + 0) / 3, "put to the first three prompts only"
    assert found.mean.value == 2.0
    assert found.gap.value == 0.0
    assert found.judged is True


# ---------------------------------------------------------------- findings


def names(record: dict) -> list[str]:
    return [finding.name for finding in record.findings]


@pytest.mark.parametrize("pairs", [40, 96, 400])
@pytest.mark.parametrize("seed", range(6))
def test_a_healthy_model_has_no_finding(pairs: int, seed: int) -> None:
    scores = pair_scores(calibrated_margins(pairs, seed), seed)
    record = evaluate_reward(scores, untrained=pair_scores(np.zeros(pairs)), probes=healthy_probes(scores))
    assert names(record) == []


def healthy(seed: int = 0) -> PairScores:
    return pair_scores(calibrated_margins(200, seed), seed)


def constant() -> PairScores:
    rng = np.random.default_rng(0)
    return PairScores.of(2 + 1e-5 * rng.random(50), 2 + 1e-5 * rng.random(50), [5] * 50, [9] * 50, range(50))


def same_for_both_sides() -> PairScores:
    """It scores prompts and not answers: the rewards vary, and most pairs are ties."""
    level = np.random.default_rng(0).normal(0, 1, 60)
    return PairScores.of(level, level + (np.arange(60) % 4 == 0), [5] * 60, [9] * 60, range(60))


def guessing() -> PairScores:
    return pair_scores(np.random.default_rng(0).normal(0, 1.0, 200))


def swapped() -> PairScores:
    return pair_scores(-np.abs(np.random.default_rng(0).normal(1, 0.5, 200)))


def too_sure() -> PairScores:
    return pair_scores(6 * calibrated_margins(200, spread=1.0))


def paid_for_length() -> PairScores:
    """Right in most pairs, and its margins are mostly the difference in tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 200), rng.integers(5, 60, 200)
    return pair_scores((lengths[0] - lengths[1]) / 12 + rng.normal(0.9, 0.7, 200), lengths=lengths)


def paid_for_brevity() -> PairScores:
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 60, 200), rng.integers(5, 60, 200)
    return pair_scores((lengths[1] - lengths[0]) / 12 + rng.normal(0.9, 0.7, 200), lengths=lengths)


@pytest.mark.parametrize(
    ("plant", "name", "severity"),
    [
        (constant, "reward_collapse", "critical"),
        (same_for_both_sides, "reward_collapse", "critical"),
        (swapped, "reward_at_chance", "critical"),
        (too_sure, "reward_overconfident", "warning"),
        (paid_for_length, "reward_length", "warning"),
        (paid_for_brevity, "reward_length", "warning"),
    ],
)
def test_a_planted_fault_is_found(plant, name: str, severity: str) -> None:
    record = evaluate_reward(plant(), step=7)
    found = {finding.name: finding for finding in record.findings}
    assert name in found and (found[name].severity, found[name].step) == (severity, 7)
    assert set(found) <= {name, "reward_overconfident"}, "a swapped model is sure as well"
    assert found[name].message and found[name].remedy
    json.dumps(record.to_json(), allow_nan=False)


def test_guessing_is_called_chance_and_not_collapse() -> None:
    assert "reward_at_chance" in names(evaluate_reward(guessing()))
    few = pair_scores([1.0, 1.0, -1.0])
    assert names(evaluate_reward(few)) == ["reward_at_chance"], "three pairs cannot show that it is better"


@pytest.mark.parametrize("probe", ["empty", "repeated", "off_topic"])
def test_a_probe_that_wins_is_found_by_name(probe: str) -> None:
    scores = healthy()
    probes = healthy_probes(scores) | {probe: scores.chosen_P + np.where(np.arange(200) % 3, -1.0, 1.0)}
    (finding,) = evaluate_reward(scores, probes=probes).findings
    assert finding.name == f"reward_probe_{probe}"
    assert finding.evidence["below_chosen"] == pytest.approx(133 / 200)


def test_a_refusal_that_wins_is_shown_and_not_judged() -> None:
    scores = healthy()
    record = evaluate_reward(scores, probes=healthy_probes(scores) | {"refusal": scores.chosen_P + 1})
    assert names(record) == []
    assert record.probes["refusal"].below_chosen.value == 0.0


def test_a_model_fitted_to_scores_is_not_asked_for_its_calibration() -> None:
    record = evaluate_reward(too_sure(), probabilities=False)
    assert record.calibration is None
    assert names(record) == []


# ---------------------------------------------------------------- files


def test_what_is_written(tmp_path: Path) -> None:
    untrained = PairScores.of([0.1] * 4, [0.2] * 4, [1] * 4, [1] * 4, PAIRS.rows)
    record = evaluate_reward(PAIRS, untrained=untrained, others={"public": PAIRS})
    write_reward_evaluation(tmp_path, record, PAIRS, untrained=untrained)
    assert read_json(tmp_path / "reward_evaluation.json") == json.loads(json.dumps(record.to_json()))
    assert list(record.agreement) == ["untrained", "public"]
    assert record.agreement["public"].same_order.value == 1.0
    first = read_jsonl(tmp_path / "reward_scores.jsonl")[0]
    assert first == {
        "row": "a",
        "category": None,
        "chosen": 1.0,
        "rejected": 0.0,
        "tokens_chosen": 10,
        "tokens_rejected": 20,
        "untrained_chosen": 0.1,
        "untrained_rejected": 0.2,
    }


# ---------------------------------------------------------------- several policies by several reward models


class Lengths:
    """A reward model that counts letters; `sign` -1 likes brevity."""

    def __init__(self, sign: float):
        self.sign = sign

    def score(self, prompts, answers) -> list[float]:
        return [self.sign * len(answer) for answer in answers]


ANSWERS = {"start": ["aa", "bbbb", "c"], "dpo": ["aaaa", "bbbb", "cc"]}


def test_cross_scores_by_hand() -> None:
    judges = {"long": Lengths(1.0), "short": Lengths(-1.0)}
    record = cross_scores(ANSWERS, score_answers(["1?", "2?", "3?"], ANSWERS, judges))
    assert (record.prompts, record.policies, record.reward_models) == (3, ("start", "dpo"), ("long", "short"))
    assert record.cells["long"]["dpo"].mean.value == pytest.approx(10 / 3)
    assert record.cells["long"]["dpo"].win_rate.value == pytest.approx((1 + 0.5 + 1) / 3)
    assert record.cells["short"]["dpo"].win_rate.value == pytest.approx((0 + 0.5 + 0) / 3)
    assert record.cells["long"]["start"].win_rate is None
    assert record.cells["long"]["dpo"].standardised == -record.cells["short"]["dpo"].standardised > 0
    (pair,) = record.agreement
    assert pair.between == ("long", "short")
    assert pair.same_order.value == pytest.approx(1 / 3)  # only the tie
    assert pair.spearman.value == pytest.approx(-1.0)


def test_cross_scores_of_a_run_take_what_is_judged(tmp_path: Path) -> None:
    from posttrain.data.write import write_jsonl

    for name, texts in ANSWERS.items():
        lines = [{"prompt": "p", "completion": text, "reward": float(len(text))} for text in texts]
        write_jsonl(tmp_path / name / "evaluations" / "judged.jsonl", lines)
    write_jsonl(tmp_path / "sft" / "evaluations" / "judged.jsonl", [{"prompt": "p", "completion": "x", "reward": None}])
    folders = {name: tmp_path / name for name in ("start", "sft", "reward", "dpo")}
    record = cross_scores_of_run(folders, {"judged": "mine"})
    assert record is not None
    assert (record.policies, record.reward_models) == (("start", "dpo"), ("mine",))
    assert record.cells["mine"]["dpo"].rewards == (4.0, 4.0, 2.0)
    assert cross_scores_of_run({"start": tmp_path / "start"}, {"judged": "mine"}) is None
    assert cross_scores_of_run(folders, {}) is None
