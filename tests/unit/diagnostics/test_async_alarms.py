"""`async_starved`: rings where sampling beside training samples in vain or gains nothing, and is quiet otherwise."""

from __future__ import annotations

import random

import pytest

from posttrain.diagnostics.alarms import Alarms, make_checks
from posttrain.diagnostics.async_checks import AsyncStarved
from posttrain.runs.records.logs import Alarm

HEALTHY = {
    "groups": 16.0,
    "groups_dropped_stale": 0.0,
    "waiting_share": 0.3,
    "queue_depth": 20.0,
    "engine_utilisation": 0.7,
}


def rung(steps: int, *planted: dict[str, float], at: int = 20, base: dict[str, float] = HEALTHY) -> list[Alarm]:
    alarms, draw = Alarms(make_checks()), random.Random(3)
    found = []
    for step in range(1, steps + 1):
        values = {name: value * (1 + 0.1 * draw.uniform(-1, 1)) for name, value in base.items()}
        for fault in planted if step > at else ():
            values |= fault
        found += [alarm for alarm in alarms.check(step, values) if alarm.name == "async_starved"]
    return found


def test_a_healthy_run_is_quiet_also_one_that_generation_bounds() -> None:
    assert rung(60) == []
    # Sampling takes three quarters of a step in turns: the trainer waits for two thirds of its time, and gains by it.
    assert rung(60, {"waiting_share": 0.67, "queue_depth": 0.0, "engine_utilisation": 0.98}) == []
    assert rung(60, {"groups_dropped_stale": 1.0}) == []  # one prompt in seventeen


def test_a_run_in_turns_has_none_of_it() -> None:
    assert rung(40, base={"groups": 16.0, "reward": 0.5}) == []


@pytest.mark.parametrize(("dropped", "share"), [(16.0, 0.5), (5.0, 5 / 21)])
def test_what_is_sampled_in_vain_rings(dropped: float, share: float) -> None:
    (alarm,) = rung(31, {"groups_dropped_stale": dropped, "groups": 16.0})
    assert alarm.severity == "warning" and 20 < alarm.step <= 31
    assert 0.2 < alarm.evidence["dropped_share"] <= share and "max_staleness" in alarm.remedy


def test_a_trainer_that_only_waits_rings_and_the_remedy_is_that_of_the_bottleneck() -> None:
    waits = {"waiting_share": 0.95, "queue_depth": 0.0}
    (full,) = rung(31, {**waits, "engine_utilisation": 0.95})
    (idle,) = rung(31, {**waits, "engine_utilisation": 0.1})
    assert "more cards or servers" in full.remedy and "in_flight" in idle.remedy
    assert idle.evidence["waiting_share"] > 0.8 and full.last_good_checkpoint is None


def test_with_groups_that_wait_it_is_not_the_engine() -> None:
    assert rung(40, {"waiting_share": 0.95, "queue_depth": 3.0}) == []


def test_a_window_that_is_not_full_says_nothing() -> None:
    assert rung(29, {"groups_dropped_stale": 1000.0}, at=29 - 0) == []
    check = AsyncStarved(window=5)
    assert check.dropped == 0.2 and check.window == 5
