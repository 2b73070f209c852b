"""Alarms: each fires on its planted fault, none on healthy noise; once per episode; the same after a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from random import Random

import pytest

from posttrain.diagnostics.alarms import Alarm, Alarms, make_checks, non_finite
from posttrain.diagnostics.checks import CHECKS, ONLINE_CHECKS, GradientSpike, LikelihoodDisplacement
from posttrain.diagnostics.history import RECENT, START
from posttrain.errors import CheckpointError, ConfigError, UnknownKeyError
from tests import metric_series as series
from tests.metric_series import HEALTHY, Values

Series = Callable[[Random], Iterator[Values]]


def raised(source: Series, seed: int = 0, alarms: Alarms | None = None, every: int = 25) -> list[Alarm]:
    """All alarms of a run that saves a checkpoint every `every` steps."""
    alarms = alarms or Alarms()
    found = []
    for step, values in enumerate(source(Random(seed))):
        checkpoint = f"step-{step - step % every}" if step >= every else None
        found += alarms.check(step, values, last_good_checkpoint=checkpoint)
    return found


# ---------------------------------------------------------------- silence


@pytest.mark.parametrize("source", HEALTHY, ids=lambda source: source.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_silent_on_healthy_noise(source: Series, seed: int) -> None:
    assert raised(source, seed) == []


# ---------------------------------------------------------------- planted faults

PLANTED: list[tuple[Series, str, str, int, int]] = [
    # series, alarm, severity, first and last step at which it may be raised
    (series.displaced_dpo, "likelihood_displacement", "warning", 7, 60),
    (series.displaced_simpo, "likelihood_displacement", "warning", 45, 100),
    (series.one_gradient_spike, "gradient_spike", "warning", 120, 120),
    (series.diverging_sft, "loss_divergence", "critical", 70, 110),
    (series.frozen_dpo, "dead_learning", "critical", 19, 19),
    (series.sft_without_gradient, "dead_learning", "critical", 0, 0),
    (series.sft_without_learning_rate, "dead_learning", "critical", 19, 19),
    (series.one_step_without_answers, "nothing_supervised", "critical", 30, 30),
    (series.rows_sorted_by_length, "length_drift", "warning", 29, 60),
    (series.generations_grow, "length_drift", "warning", 29, 110),
    (series.collapsing_reward_model, "reward_collapse", "critical", 55, 62),
    (series.reward_model_with_a_dead_head, "reward_collapse", "critical", 29, 29),
]


@pytest.mark.parametrize(
    ("source", "name", "severity", "first", "last"), PLANTED, ids=[source.__name__ for source, *_ in PLANTED]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_fault_is_found_alone_and_once(
    source: Series, name: str, severity: str, first: int, last: int, seed: int
) -> None:
    (alarm,) = raised(source, seed)
    assert (alarm.name, alarm.severity) == (name, severity)
    assert first <= alarm.step <= last
    assert alarm.message
    assert alarm.remedy
    json.dumps(alarm.to_json(), allow_nan=False)


WITH_HELD_OUT = {"overfitting", "reward_overconfidence"}
ONLINE = {*ONLINE_CHECKS, "async_starved"}
"""Their planted faults are in tests/unit/diagnostics/test_online_alarms.py and test_async_alarms.py."""


def test_every_check_has_a_planted_fault() -> None:
    assert {name for _, name, *_ in PLANTED} | WITH_HELD_OUT | ONLINE == set(CHECKS)


def test_displacement_shows_its_evidence() -> None:
    (alarm,) = raised(series.displaced_dpo)
    assert alarm.evidence["logprob_chosen_change"] < -1
    assert alarm.evidence["fall_per_token"] > 0.02
    assert alarm.evidence["reward_margin"] > 0
    assert "dpo_nll" in alarm.remedy


def test_displacement_without_a_reference_names_a_checkpoint_from_before_it() -> None:
    """The fall is seen over 20 steps, so that the evidence is of these 20 and what is good lies before them."""
    rows = []

    def falls_from_step_60(random: Random) -> Iterator[Values]:
        for step, values in enumerate(series.healthy_simpo(random)):
            values["logprob_per_token_chosen"] -= 0.05 * max(0, step - 60)
            rows.append(values)
            yield values

    (alarm,) = raised(falls_from_step_60, every=5)[:1]
    assert alarm.name == "likelihood_displacement" and 60 < alarm.step < 80
    assert int(alarm.last_good_checkpoint.removeprefix("step-")) <= 60
    last = [values["reward_margin"] for values in rows[alarm.step - 19 : alarm.step + 1]]
    assert alarm.evidence["reward_margin"] == pytest.approx(sum(last) / 20)


def test_displacement_needs_the_sides_to_part() -> None:
    """Both fall alike: the run forgets, but the pairs are not the reason."""

    def both_fall(random: Random) -> Iterator[Values]:
        for values in series.displaced_dpo(random):
            yield values | {"reward_margin": random.gauss(0, 0.05), "reward_accuracy": 0.5 + random.gauss(0, 0.05)}

    assert raised(both_fall) == []


def test_displacement_looks_at_accuracy_where_there_is_no_margin() -> None:
    def without_margin(random: Random) -> Iterator[Values]:
        for values in series.displaced_dpo(random):
            del values["reward_margin"]
            yield values

    assert [alarm.name for alarm in raised(without_margin)] == ["likelihood_displacement"]


def test_displacement_ignores_a_nat_spread_over_a_long_response() -> None:
    def long_responses(random: Random) -> Iterator[Values]:
        for values in series.displaced_dpo(random):  # 8 nats in all
            yield values | {"length_chosen": 2000.0 + random.gauss(0, 50)}

    assert raised(long_responses) == []


def test_displacement_is_raised_again_when_it_becomes_critical() -> None:
    """Ten tokens: a warning from 1 nat on, critical from 10 nats on, and nothing in between or after."""

    def falling(random: Random) -> Iterator[Values]:
        for step in range(60):
            change = -0.3 * step
            yield {"logprob_chosen_change": change, "length_chosen": 10.0, "reward_margin": 0.1 * step}

    found = [(alarm.step, alarm.severity) for alarm in raised(falling)]
    # the mean of the last 8 steps lies 3.5 steps back: -0.3 (s - 3.5) < -1 - noise from s = 8 on, <= -10 at s = 37
    assert found == [(8, "warning"), (37, "critical")]


# ---------------------------------------------------------------- overfitting


def _with_evaluations(held_out: list[Values]) -> list[Alarm]:
    alarms, found = Alarms(), []
    for step, values in enumerate(series.healthy_sft(Random(0), steps=20 * len(held_out))):
        found += alarms.check(step, values, last_good_checkpoint=f"step-{step - step % 20}")
        if step % 20 == 19:
            found += alarms.check(step, held_out[step // 20], split="held_out")
    return found


def test_overfitting_names_the_best_step_and_the_checkpoint_before_it() -> None:
    (alarm,) = _with_evaluations([{"loss": loss} for loss in (2.0, 1.5, 1.4, 1.6, 1.7, 1.8, 1.9)])
    assert (alarm.name, alarm.step) == ("overfitting", 119)
    assert alarm.evidence["best_held_out"] == 1.4
    assert alarm.evidence["best_step"] == 59
    assert alarm.last_good_checkpoint == "step-40"


def test_overfitting_sees_a_falling_held_out_accuracy() -> None:
    accuracies = (0.6, 0.8, 0.85, 0.7, 0.66, 0.6)
    (alarm,) = _with_evaluations([{"loss": 0.6, "reward_accuracy": accuracy} for accuracy in accuracies])
    assert alarm.evidence["metric"] == "reward_accuracy"


def test_one_worse_evaluation_is_not_overfitting() -> None:
    assert _with_evaluations([{"loss": loss} for loss in (2.0, 1.5, 1.4, 1.7, 1.45, 1.7, 1.42)]) == []


# ---------------------------------------------------------------- reward models


def _held_out(points: list[tuple[float, float]]) -> list[Alarm]:
    """Held-out (confidence, accuracy) every ten steps."""
    alarms, found = Alarms(), []
    for index, (sure, right) in enumerate(points):
        values = {"reward_confidence": sure, "reward_accuracy": right}
        found += alarms.check(10 * index, values, split="held_out")
    return found


def test_overconfidence_needs_two_evaluations_that_promise_too_much() -> None:
    (alarm,) = _held_out([(0.5, 0.5), (0.8, 0.7), (0.9, 0.72), (0.93, 0.7)])
    assert (alarm.name, alarm.severity, alarm.step) == ("reward_overconfidence", "warning", 30)
    assert alarm.evidence == pytest.approx({"confidence": 0.93, "accuracy": 0.7, "gap": 0.23})
    assert "label_smoothing" in alarm.remedy


@pytest.mark.parametrize(
    "points",
    [
        [(0.5, 0.5), (0.9, 0.6), (0.72, 0.7), (0.9, 0.7), (0.75, 0.7)],  # once, and again once
        [(0.6, 0.9)] * 4,  # less sure than it may be
        [(0.9, 0.8)] * 4,  # within chance of 40 pairs
        [(0.9, math.nan)] * 4,  # nothing was measured
    ],
)
def test_confidence_that_chance_explains_is_no_alarm(points: list[tuple[float, float]]) -> None:
    assert _held_out(points) == []


# ---------------------------------------------------------------- episodes


def _norms(alarms: Alarms, norms: list[float], start: int = 0) -> list[int]:
    """Steps at which an alarm was raised."""
    return [start + i for i, norm in enumerate(norms) if alarms.check(start + i, {"grad_norm": norm})]


def test_an_episode_is_raised_once_and_again_after_quiet() -> None:
    alarms = Alarms([GradientSpike()], rearm_after=5)
    quiet, spike = [1.0] * 12, [50.0]
    assert _norms(alarms, quiet + spike + [1.0] * 3 + spike) == [12]
    assert _norms(alarms, [1.0] * 6 + spike, start=100) == [106]


def test_evaluations_are_no_steps() -> None:
    alarms = Alarms([GradientSpike()], rearm_after=5)
    assert _norms(alarms, [1.0] * 12 + [50.0] + [1.0] * 3) == [12]
    for _ in range(10):
        alarms.check(15, {"loss": 1.0}, split="held_out")
    assert _norms(alarms, [50.0], start=16) == [], "three quiet steps do not end the episode"


def test_a_spike_needs_history_and_must_top_the_start() -> None:
    assert _norms(Alarms([GradientSpike()]), [1.0] * 9 + [100.0]) == []
    fading = [3.0] * 10 + [0.01] * 30
    assert _norms(Alarms([GradientSpike()]), [*fading, 2.0]) == []
    assert _norms(Alarms([GradientSpike()]), [*fading, 20.0]) == [40]


def test_a_gradient_that_was_zero_before_does_not_divide_by_zero() -> None:
    assert _norms(Alarms([GradientSpike()]), [*[0.0] * 12, 1.0]) == [12]


# ---------------------------------------------------------------- checkpoints


def test_the_checkpoint_named_is_older_than_the_trouble() -> None:
    (alarm,) = raised(series.diverging_sft, every=10)
    assert alarm.last_good_checkpoint is not None
    saved = int(alarm.last_good_checkpoint.removeprefix("step-"))
    assert saved < alarm.step - 7, "a checkpoint from within the bad window is not good"


def test_if_all_checkpoints_are_later_the_oldest_is_named() -> None:
    alarms = Alarms([GradientSpike()])
    _norms(alarms, [1.0] * 12)
    (alarm,) = alarms.check(12, {"grad_norm": 50.0}, last_good_checkpoint="step-12")
    assert alarm.last_good_checkpoint == "step-12"


def test_without_a_checkpoint_none_is_named() -> None:
    (alarm,) = raised(series.displaced_dpo, every=10_000)
    assert alarm.last_good_checkpoint is None


def test_the_alarm_of_a_non_finite_step() -> None:
    names = ["layers.0.weight", "layers.1.weight", "layers.2.weight", "head.weight", "norm.weight"]
    alarm = non_finite(7, names, ["pairs.jsonl, row 3"], last_good_checkpoint="step-5")
    assert (alarm.name, alarm.severity, alarm.step) == ("non_finite", "critical", 7)
    assert "layers.0.weight" in alarm.message
    assert "2 more" in alarm.message
    assert alarm.evidence == {"tensors": names, "rows": ["pairs.jsonl, row 3"]}
    assert alarm.last_good_checkpoint == "step-5"


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("source", [series.displaced_dpo, series.one_gradient_spike, series.diverging_sft])
@pytest.mark.parametrize("stop", [3, 25, 100, 121, 150])
def test_a_resumed_run_raises_what_the_uninterrupted_one_does(source: Series, stop: int) -> None:
    whole, resumed = Alarms(), Alarms()
    expected, got = [], []
    for step, values in enumerate(source(Random(1))):
        expected += whole.check(step, values, last_good_checkpoint=f"step-{step // 25}")
        if step == stop:
            state = json.loads(json.dumps(resumed.state_dict(), allow_nan=False))
            resumed = Alarms()
            resumed.load_state_dict(state)
        got += resumed.check(step, values, last_good_checkpoint=f"step-{step // 25}")
    assert got == expected
    assert resumed.state_dict() == whole.state_dict()


def test_the_state_stays_small() -> None:
    alarms = Alarms()
    for step in range(3000):
        alarms.check(step, {"loss": 1.0, "grad_norm": 1.0, "unwatched": 1.0}, last_good_checkpoint=f"step-{step}")
    state = alarms.state_dict()
    assert len(state["history"]["recent"]["loss"]) == RECENT
    assert len(state["history"]["start"]["loss"]) == START
    assert "unwatched" not in state["history"]["recent"]
    assert len(json.dumps(state)) < 10_000


def test_a_state_of_another_layout_is_refused() -> None:
    with pytest.raises(CheckpointError, match="another layout"):
        Alarms().load_state_dict({"schema": 99})


# ---------------------------------------------------------------- thresholds


def test_thresholds_can_be_changed_and_checks_switched_off() -> None:
    checks = make_checks({"likelihood_displacement": {"fall_per_token": 0.5, "window": 4}, "length_drift": "off"})
    names = [check.name for check in checks]
    assert names == [name for name in CHECKS if name != "length_drift"]
    changed = next(check for check in checks if isinstance(check, LikelihoodDisplacement))
    assert (changed.fall_per_token, changed.window) == (0.5, 4)
    assert raised(series.displaced_dpo, alarms=Alarms(checks)) == []
    assert make_checks() == tuple(CHECKS.values())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"likelihood_displacment": "off"}, "likelihood_displacement"),
        ({"gradient_spike": {"facter": 3.0}}, "did you mean `factor`?"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(changes: dict, found: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        make_checks(changes)
    assert found in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), True, "much"])
def test_a_threshold_must_be_a_positive_number(value: float) -> None:
    with pytest.raises(ConfigError, match="factor is out of range"):
        make_checks({"gradient_spike": {"factor": value}})


@pytest.mark.parametrize("value", [2.5, RECENT + 1])
def test_a_window_is_a_whole_number_within_the_history(value: float) -> None:
    with pytest.raises(ConfigError, match="window is out of range"):
        make_checks({"loss_divergence": {"window": value}})


def test_thresholds_are_documented_fields() -> None:
    for check in CHECKS.values():
        assert is_dataclass(check)
        assert check.__doc__, check.name
        assert all(isinstance(field.default, int | float) for field in fields(check)), check.name
        assert replace(check) == check


# ---------------------------------------------------------------- a gradient of exactly 0

DEAD = {"grad_norm": 0.0, "policy_slope": 0.0, "advantage_magnitude": 0.7, "loss": 0.0}


@pytest.mark.parametrize(
    ("values", "rings"),
    [
        (DEAD, True),
        ({**DEAD, "grad_norm": 0.0116}, True),  # an entropy bonus has a gradient, the policy term has none
        ({**DEAD, "advantage_magnitude": 0.0}, False),  # all groups tied: nothing to learn from
        ({**DEAD, "masked_share": 1.0}, False),  # the masks left nothing: `stale_ratios`, if it lasts
        ({**DEAD, "masked_share": 0.2}, True),
        ({**DEAD, "grad_norm": 0.3, "policy_slope": 0.1}, False),
        ({"grad_norm": 0.0, "loss": 0.69, "reward_accuracy": 0.5}, True),
        ({"grad_norm": 0.0, "loss": 0.0, "reward_accuracy": 1.0}, False),  # a hinge that is done
        ({"grad_norm": 0.0, "loss": 0.0}, False),  # every answer known by heart
        ({"grad_norm": 1e-30, "loss": 0.69}, False),
    ],
)
@pytest.mark.parametrize("before", [0, 30])
def test_a_gradient_of_exactly_0_rings_at_once_and_ends_the_run(
    values: dict[str, float], rings: bool, before: int
) -> None:
    alarms = Alarms()
    for step in range(before):
        well = {"grad_norm": 0.3, "policy_slope": 0.1, "reward_accuracy": 0.9, "masked_share": 0.0}
        assert not alarms.check(step, {**values, **well})
    found = alarms.check(before, values)
    assert [(alarm.name, alarm.stops) for alarm in found] == ([("dead_learning", True)] if rings else [])
    if rings:
        assert "exactly 0" in found[0].message and "dead_learning" in found[0].remedy
        assert not alarms.check(before + 1, values)  # once
        resumed = Alarms()
        resumed.load_state_dict(json.loads(json.dumps(alarms.state_dict())))
        assert not resumed.check(before + 1, {"score": 0.5}, split="held_out")  # measured before any step is taken
        assert not resumed.check(before + 2, {"groups": 3.0})  # a step without an update
        assert [alarm.name for alarm in resumed.check(before + 3, values)] == ["dead_learning"]
