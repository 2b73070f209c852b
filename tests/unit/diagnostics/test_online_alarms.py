"""The alarms of online stages: each rings for its planted fault, gross and slight; healthy runs are silent."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest

from posttrain.config.online import GRPO
from posttrain.diagnostics.alarms import Alarms, make_checks
from posttrain.diagnostics.checks import CHECKS, ONLINE_CHECKS
from posttrain.errors import ConfigError
from tests.online_series import BASE, PLANTED_AT, Fault, Run, drawn, gamed, healthy, planted, slowly, watch

RECORDED = json.loads((Path(__file__).parents[2] / "data" / "online_series.json").read_text())

ABSTAINED = {"reward": math.nan, "reward_deviation": math.nan, "zero_signal_share": 1.0, "abstained_share": 1.0}

FAULTS: list[tuple[str, str, Fault, str, int]] = [
    # alarm, how gross, what is planted at step 40, severity, steps after which it must have rung
    ("entropy_collapse", "gross", lambda step, v: {"entropy_sampled": 1e-4}, "warning", 12),
    (
        "entropy_collapse",
        "slight",
        lambda step, v: {"entropy_sampled": v["entropy_sampled"] * math.exp(-slowly(step, 3.0))},
        "warning",
        60,
    ),
    ("entropy_blowup", "gross", lambda step, v: {"entropy_sampled": 5.0}, "warning", 5),
    (
        "entropy_blowup",
        "slight",
        lambda step, v: {"entropy_sampled": v["entropy_sampled"] + slowly(step, 0.9)},
        "warning",
        60,
    ),
    ("kl_bounds", "gross", lambda step, v: {"kl_sequence_reference": 900.0, "kl_k1_reference": 7.0}, "warning", 5),
    ("kl_bounds", "slight", lambda step, v: {"kl_k1_reference": slowly(step, 0.6)}, "warning", 45),
    ("kl_bounds", "k3 alone", lambda step, v: {"kl_k3_reference": 3.0}, "warning", 6),
    ("negative_kl", "gross", lambda step, v: {"kl_k1_reference": -0.4}, "warning", 12),
    ("negative_kl", "slight", lambda step, v: {"kl_k1_reference": v["kl_k1_reference"] - 0.07}, "warning", 20),
    ("no_rewards", "gross", lambda step, v: ABSTAINED, "critical", 3),
    ("no_rewards", "now and then", lambda step, v: {} if step % 2 else ABSTAINED, "warning", 2),
    (
        "no_reward_signal",
        "gross",
        lambda step, v: {"reward": 0.0, "reward_deviation": 0.0, "zero_signal_share": 1.0},
        "critical",
        12,
    ),
    ("no_reward_signal", "slight", lambda step, v: {"zero_signal_share": 0.88}, "warning", 12),
    ("duplicates", "gross", lambda step, v: {"duplicate_share": 0.875}, "warning", 12),
    ("duplicates", "slight", lambda step, v: {"duplicate_share": 0.875 * 0.93}, "warning", 12),
    ("truncated", "gross", lambda step, v: {"truncated_share": 0.95}, "warning", 10),
    (
        "truncated",
        "slight",
        lambda step, v: {"truncated_share": v["truncated_share"] + slowly(step, 0.3)},
        "warning",
        55,
    ),
    ("malformed", "gross", lambda step, v: {"malformed_share": 0.9}, "warning", 10),
    (
        "malformed",
        "slight",
        lambda step, v: {"malformed_share": v["malformed_share"] + slowly(step, 0.15)},
        "warning",
        55,
    ),
    ("refusals", "gross", lambda step, v: {"refusal_share": 0.8}, "warning", 10),
    ("refusals", "slight", lambda step, v: {"refusal_share": v["refusal_share"] + slowly(step, 0.15)}, "warning", 55),
    ("clip_share", "gross", lambda step, v: {"clip_share_high": 0.7}, "warning", 10),
    ("clip_share", "slight", lambda step, v: {"clip_share_low": 0.18, "clip_share_high": 0.15}, "warning", 12),
    (
        "sampler_mismatch",
        "gross",
        lambda step, v: {"sampler_kl": 0.5, "sampler_ratio_mean": 1.4, "sampler_effective_size": 0.2},
        "critical",
        3,
    ),
    ("sampler_mismatch", "slight", lambda step, v: {"sampler_kl": 0.015}, "warning", 3),
    ("sampler_mismatch", "ratio alone", lambda step, v: {"sampler_ratio_mean": 0.85}, "warning", 4),
    (
        "sampler_mismatch",
        "of the newest weights, where sampling runs ahead",
        lambda step, v: {"staleness": 0.5, "sampler_kl_stale_0": 0.2, "sampler_effective_size_stale_0": 0.95},
        "critical",
        3,
    ),
    (
        "stale_ratios",
        "gross",
        lambda step, v: {"staleness": 6.0, "sampler_kl": 0.4, "sampler_effective_size": 0.1, "masked_share": 0.95},
        "critical",
        5,
    ),
    (
        "stale_ratios",
        "slight",
        lambda step, v: {"staleness": 2.0, "sampler_kl": 0.2, "sampler_effective_size": 0.45},
        "warning",
        5,
    ),
    ("stale_ratios", "masks alone", lambda step, v: {"masked_share": 0.6}, "warning", 5),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "kind", "fault", "severity", "within"), FAULTS, ids=[f"{name}, {kind}" for name, kind, *_ in FAULTS]
)
def test_a_planted_fault_rings_alone_and_once(
    name: str, kind: str, fault: Fault, severity: str, within: int, seed: int
) -> None:
    first, *more = watch(planted(fault, seed))
    assert (first.name, first.step >= PLANTED_AT) == (name, True)
    assert first.step <= PLANTED_AT + within
    assert first.message and first.remedy and first.evidence
    assert first.last_good_checkpoint in ("step-20", "step-40", "step-60")
    last = [first, *more][-1]
    assert {alarm.name for alarm in more} <= {name} and last.severity == severity
    json.dumps(last.to_json(), allow_nan=False)


HELD_OUT_FAULTS = ("reward_hacking", "length_hacking")


def test_every_alarm_has_a_gross_and_a_slight_fault() -> None:
    kinds = Counter(name for name, *_ in FAULTS)
    assert set(kinds) | set(HELD_OUT_FAULTS) == set(ONLINE_CHECKS)
    assert all(count >= 2 for count in kinds.values())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("last", [-0.3, 0.0], ids=["falls", "stays"])
def test_a_reward_that_the_held_out_score_does_not_follow(last: float, seed: int) -> None:
    raised = watch(gamed(seed, score=lambda step: 0.4 + slowly(step, last, 100)))
    assert {alarm.name for alarm in raised} == {"reward_hacking"}
    assert f"at step {raised[0].evidence['best_step']}" in raised[0].remedy and "keep: best" in raised[0].remedy


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("growth", [2.5, 1.45], ids=["gross", "slight"])
def test_a_reward_that_is_won_by_length(growth: float, seed: int) -> None:
    points = gamed(seed, score=lambda step: 0.4, length=lambda step: 1 + slowly(step, growth - 1, 60))
    names = {alarm.name for alarm in watch(points)}
    assert "length_hacking" in names and names <= {"length_hacking", "reward_hacking", "length_drift"}


@pytest.mark.parametrize("seed", range(5))
def test_answers_that_grow_and_get_better_are_no_hack(seed: int) -> None:
    points = gamed(
        seed, score=lambda step: 0.4 + slowly(step, 0.4, 100), length=lambda step: 1 + slowly(step, 1.5, 100)
    )
    assert watch(points) == []


# ---------------------------------------------------------------- silence


def test_random_healthy_runs_are_silent() -> None:
    """Of 1,000 such runs 2 rang, seeds 435 and 804; here are the first 40."""
    rang = {seed: found for seed in range(40) if (found := [a.name for a in watch(healthy(drawn(seed), seed))])}
    assert rang == {}


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded_healthy_runs_are_silent(name: str) -> None:
    """What the alarms saw of real runs that learned: the embedded model on sums, 40 steps each."""
    points = RECORDED[name]
    alarms, raised = Alarms(), []
    for point in points:
        raised += alarms.check(point["step"], point["values"], split=point["split"])
    assert raised == []
    assert alarms.not_watched() == {}
    score = [point["values"]["score"] for point in points if point["split"] == "held_out"]
    assert max(score) > score[0] + 0.05


def test_off_policy_updates_are_no_negative_kl() -> None:
    """After updates within a step, k1 to the reference is below 0 in a healthy run too; `kl_k1_old` makes up for it."""
    run = replace(BASE, off_policy=True, kl=0.0)
    values = [values for values, _ in healthy(run, 0)]
    assert sum(one["kl_k1_reference"] for one in values) / len(values) < -0.005
    assert watch(healthy(run, 0)) == []


def test_completions_that_are_a_little_old_are_no_alarm() -> None:
    """Two steps old, drifted, masked a little: as an asynchronous run is that learns."""

    def ahead(step: int, values: dict[str, float]) -> dict[str, float]:
        drifted = {"sampler_kl": 0.03, "sampler_kl_k1": 0.03, "sampler_effective_size": 0.85}
        fresh = {"sampler_kl_stale_0": 1e-3, "sampler_effective_size_stale_0": 0.99}
        # Tokens of an older policy: to it, k1 of the policy now against its reference is not a KL.
        reference = values["kl_k1_reference"] - 0.03
        return {"staleness": 1.9, "masked_share": 0.2, "kl_k1_reference": reference, **drifted, **fresh}

    # Also where the policy stays at its start: without the drift, its KL to it would be below 0.
    for seed, run in itertools.product(range(3), (BASE, replace(BASE, kl=0.0))):
        assert watch(planted(ahead, seed, run)) == []


def test_a_selection_of_groups_is_not_judged_by_its_kl() -> None:
    def selected(step: int, values: dict[str, float]) -> dict[str, float]:
        return {"kl_k1_reference": -0.4, "groups_trained": 9.0}

    assert watch(planted(selected, 0)) == []


def test_groups_of_one_have_no_duplicates() -> None:
    assert watch(planted(lambda step, v: {"duplicate_share": 0.0}, 0, Run(groups=64, size=1))) == []


# ---------------------------------------------------------------- what cannot be seen


def test_an_alarm_without_its_metrics_says_so() -> None:
    alarms = Alarms(make_checks({"refusals": "off"}))
    values, _ = next(iter(healthy(BASE, 0)))
    missing = {"kl_k1_reference", "kl_k3_reference", "kl_sequence_reference", "kl_k1_old"}
    alarms.check(1, {name: value for name, value in values.items() if name not in missing})
    blind = alarms.not_watched()
    assert set(blind) == {"kl_bounds", "negative_kl", "reward_hacking", "length_hacking", "refusals"}
    assert "kl_k1_reference" in blind["negative_kl"] and "kl_beta" in blind["negative_kl"]
    assert "held_out" in blind["reward_hacking"] and blind["refusals"] == "switched off in the recipe"


def test_a_stage_that_does_not_sample_is_not_told_of_them() -> None:
    alarms = Alarms()
    alarms.check(1, {"loss": 1.0, "grad_norm": 1.0})
    assert alarms.not_watched() == {}


def test_what_an_alarm_needs_it_watches() -> None:
    for check in ONLINE_CHECKS.values():
        assert set(check.needs) <= set(check.metrics) and check.absent


# ---------------------------------------------------------------- thresholds


def test_every_threshold_is_reachable_from_a_recipe() -> None:
    for name, check in CHECKS.items():
        for field in fields(check):  # type: ignore[arg-type]
            value = 7 if isinstance(field.default, int) else 0.125
            stage = GRPO(alarms={"thresholds": {name: {field.name: value}}})
            (changed,) = (one for one in make_checks(stage.alarms.changes) if one.name == name)
            assert vars_of(changed)[field.name] == value


def vars_of(check: object) -> dict[str, object]:
    return {field.name: object.__getattribute__(check, field.name) for field in fields(check)}  # type: ignore[arg-type]


def test_a_threshold_changes_what_rings() -> None:
    alarms, raised = Alarms(make_checks({"clip_share": {"share": 0.04}})), []
    for step, (values, _) in enumerate(healthy(replace(BASE, clipped=0.1), 0)):
        raised += [alarm.name for alarm in alarms.check(step, values)]
    assert raised == ["clip_share"]
    with pytest.raises(ConfigError):
        make_checks({"clip_share": {"share": -1.0}})
