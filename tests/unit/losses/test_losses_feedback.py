"""The feedback table: hand-worked numbers and gradients of every row, its metrics, and what it refuses.

Two responses for all rows:

            policy's tokens    reference's tokens    Σ log π/π_ref
    good    -1, -2             -1.5, -2.5            +1.0
    bad     -2, -1, -3         -1.5, -1, -2          -1.5
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.diagnostics.metrics import METRICS
from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.losses.feedback import FEEDBACK, FEEDBACK_PARAMETERS, OBJECTIVES, feedback_loss
from posttrain.losses.responses import StepStatistics
from posttrain.outputs import LossOutput, TokenLogprobs
from posttrain.types import Batch
from tests.loss_batches import batch_of, feedback, gradient

POLICY, LABELS = [(-1.0, -2.0), (-2.0, -1.0, -3.0)], [True, False]
REFERENCE = [(-1.5, -2.5), (-1.5, -1.0, -2.0)]
POINT = 0.5
"""The reference point in nats of `kto`'s mismatched completions."""


def loss_of(
    name: str, policy_N: Tensor, reference_N: Tensor | None, batch: Batch, point: float | None = None, **given: float
) -> LossOutput:
    row = FEEDBACK[name]
    statistics: StepStatistics | None = (
        None if point is None else {"point": policy_N.new_full((batch.num_trees,), point)}
    )
    return feedback_loss(row, row.resolve(given), TokenLogprobs(policy_N), reference_N, batch, batch.count, statistics)


# name: (reference point, parameters, loss, d loss / d log π of a good token, of a bad token)
HAND_WORKED = {
    # good: 1 - sigmoid(0.1 * (1 - 0.5)) = 0.487503; bad: 1 - sigmoid(0.1 * (0.5 + 1.5)) = 0.450166; their mean
    # gradients: -0.1 * sigmoid'(0.05) / 2 = -0.1 * 0.249844 / 2, and 0.1 * sigmoid'(0.2) / 2 = 0.1 * 0.247517 / 2
    "kto": (POINT, {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}, 0.468834, -0.0124922, 0.0123758),
    # delta = 0.01 * (1 - 1.5) / 2 = -0.0025: both are 0.0125 on their side; ln(1 + e^-0.0125)
    # gradients: 0.01 * sigmoid(-0.0125) / 2
    "bco": (None, {"beta": 0.01, "desirable_weight": 1.0, "undesirable_weight": 1.0}, 0.686917, -0.0024844, 0.0024844),
    # 1 - sigmoid(0.1) = 0.475021; sigmoid(-0.15) = 0.462570
    "apo_zero_unpaired": (
        None,
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        0.468796,
        -0.0124688,
        0.0124299,
    ),
}


def test_every_row_is_hand_worked() -> None:
    assert set(HAND_WORKED) == set(FEEDBACK)
    for name, (_, parameters, *_) in HAND_WORKED.items():
        assert parameters == dict(FEEDBACK[name].defaults), f"{name}: the numbers use the defaults"


@pytest.mark.parametrize("name", FEEDBACK)
def test_hand_worked(name: str) -> None:
    batch, policy_N = feedback(POLICY, LABELS)
    _, reference_N = feedback(REFERENCE, LABELS)
    point, _, expected, good, bad = HAND_WORKED[name]
    policy_N.requires_grad_()
    out = loss_of(name, policy_N, reference_N, batch, point)
    assert out.loss.item() == pytest.approx(expected, abs=1e-6)
    assert out.metrics["loss"].value == pytest.approx(expected, abs=1e-6)
    assert gradient(out.loss, policy_N).tolist() == pytest.approx([good] * 2 + [bad] * 3, abs=1e-7)


@pytest.mark.parametrize("name", FEEDBACK)
def test_weights_multiply_each_label(name: str) -> None:
    batch, policy_N = feedback(POLICY, LABELS)
    _, reference_N = feedback(REFERENCE, LABELS)
    plain = loss_of(name, policy_N, reference_N, batch, POINT).loss.item()
    doubled = loss_of(name, policy_N, reference_N, batch, POINT, desirable_weight=2.0).loss.item()
    both = loss_of(name, policy_N, reference_N, batch, POINT, desirable_weight=2.0, undesirable_weight=3.0).loss.item()
    good = 2 * (doubled - plain)
    bad = 2 * plain - good
    assert both == pytest.approx((2 * good + 3 * bad) / 2)


@pytest.mark.parametrize("name", FEEDBACK)
def test_gradcheck(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, policy_N = feedback([(-1.0,) * n for n in (1, 4, 2, 7)], [True, False, False, True])
    policy_N = -2 * torch.rand(14, generator=generator, dtype=torch.float64) - 0.1
    reference_N = policy_N + 0.5 * torch.randn(14, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: loss_of(name, x, reference_N, batch, 0.3, beta=0.5).loss, (policy_N.requires_grad_(),)
    )


@pytest.mark.parametrize("name", FEEDBACK)
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), point=st.floats(0, 5))
def test_good_responses_are_pushed_up_and_bad_ones_down(name: str, seed: int, point: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(5, generator=generator) < 0.5).tolist()
    batch, policy_N = feedback([(-1.0,) * 3] * 5, labels)
    policy_N = (policy_N + torch.randn(15, generator=generator, dtype=torch.float64)).requires_grad_()
    slope_N = gradient(loss_of(name, policy_N, torch.full_like(policy_N, -1.0), batch, point).loss, policy_N)
    good_N = torch.tensor(labels).repeat_interleave(3)
    assert (slope_N[good_N] < 0).all() and (slope_N[~good_N] > 0).all()


def test_swapping_the_labels_mirrors_kto_about_its_point() -> None:
    """With equal weights 1 - sigmoid(x) becomes 1 - sigmoid(-x): losses add up to 1, gradients change sign."""
    batch, policy_N = feedback(POLICY, LABELS)
    other, _ = feedback(POLICY, [not label for label in LABELS])
    _, reference_N = feedback(REFERENCE, LABELS)
    policy_N.requires_grad_()
    one, two = (loss_of("kto", policy_N, reference_N, each, POINT) for each in (batch, other))
    assert one.loss.item() + two.loss.item() == pytest.approx(1.0)
    assert gradient(one.loss, policy_N).tolist() == pytest.approx((-gradient(two.loss, policy_N)).tolist())


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_a_shift_of_all_rewards_and_of_the_point_changes_nothing(name: str) -> None:
    batch, policy_N = feedback([(-4.0,), (-5.0,), (-6.0,)], [True, False, True])
    reference_N = torch.full_like(policy_N, -5.0)
    before = loss_of(name, policy_N, reference_N, batch, 0.5 if name == "kto" else None)
    after = loss_of(name, policy_N + 0.8, reference_N, batch, 1.3 if name == "kto" else None)
    assert after.loss.item() == pytest.approx(before.loss.item(), rel=1e-12)


# ---------------------------------------------------------------- the reference point


def test_batch_kls_are_averaged_over_the_step_and_clamped() -> None:
    coupling = FEEDBACK["kto"].coupling
    assert coupling is not None and coupling.mismatched
    reduce = coupling.reduce
    assert reduce({"log_ratio": torch.tensor([2.0, 8.0, 4.0, 6.0])})["point"].tolist() == [5.0] * 4
    assert reduce({"log_ratio": torch.tensor([-2.0, -8.0, 4.0])})["point"].tolist() == [0.0] * 3


def test_the_mean_reward_may_be_negative_and_carries_no_gradient() -> None:
    batch, policy_N = feedback(POLICY, LABELS)
    _, reference_N = feedback(REFERENCE, LABELS)
    out = loss_of("bco", policy_N.requires_grad_(), reference_N, batch)
    assert out.metrics["reference_point"].value == pytest.approx(0.01 * -0.25)
    told = loss_of("bco", policy_N, reference_N, batch, -0.25)
    assert gradient(out.loss, policy_N).tolist() == pytest.approx(gradient(told.loss, policy_N).tolist())


def test_kto_refuses_to_guess_its_point() -> None:
    batch, policy_N = feedback(POLICY, LABELS)
    with pytest.raises(ConfigError, match="measures other trees"):
        loss_of("kto", policy_N, policy_N, batch)


# ---------------------------------------------------------------- metrics and refusals


def test_metrics() -> None:
    batch, policy_N = feedback([*POLICY, (-1.0,)], [*LABELS, True])
    _, reference_N = feedback([*REFERENCE, (-0.5,)], [*LABELS, True])
    out = loss_of("kto", policy_N, reference_N, batch, POINT)
    values = {name: metric.value for name, metric in out.metrics.items()}
    assert set(values) <= set(METRICS)
    assert values["rewards_chosen"] == pytest.approx(0.1 * (1.0 - 0.5) / 2)
    assert values["rewards_rejected"] == pytest.approx(-0.15)
    assert values["reference_point"] == pytest.approx(0.05)
    assert values["reward_accuracy"] == pytest.approx(2 / 3)  # 1 > 0.5, -1.5 < 0.5, but -0.5 < 0.5 for a good one
    assert values["good_share"] == pytest.approx(2 / 3)
    assert values["logprob_per_token_chosen"] == pytest.approx(-4 / 3)
    assert values["logprob_rejected_change"] == pytest.approx(-1.5)
    assert (values["length_chosen"], values["length_rejected"]) == (1.5, 3.0)
    assert out.per_tree["rewards"].tolist() == pytest.approx([0.1, -0.15, -0.05])


def test_a_label_that_is_absent_is_not_measured() -> None:
    batch, policy_N = feedback(POLICY, [True, True])
    out = loss_of("kto", policy_N, policy_N, batch, 0.0)
    assert "rewards_rejected" not in out.metrics and "rewards_chosen" in out.metrics
    assert all(math.isfinite(metric.value) for metric in out.metrics.values())


def test_rows_without_labels_are_refused() -> None:
    batch = batch_of([(2,), (1,)])
    with pytest.raises(ConfigError, match="which responses are good"):
        loss_of("kto", torch.zeros(3), torch.zeros(3), batch, 0.0)


@pytest.mark.parametrize("name", FEEDBACK)
def test_a_missing_reference_and_wrong_parameters_are_refused(name: str) -> None:
    batch, policy_N = feedback(POLICY, LABELS)
    with pytest.raises(ConfigError, match="reference"):
        loss_of(name, policy_N, None, batch, 0.0)
    with pytest.raises(ConfigError, match="desirable_weight is out of range"):
        loss_of(name, policy_N, policy_N, batch, 0.0, desirable_weight=0.0)
    with pytest.raises(UnknownKeyError, match="gamma") as caught:
        loss_of(name, policy_N, policy_N, batch, 0.0, gamma=1.0)
    assert "simpo" in str(caught.value)


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("level", [0.0, -30.0, -1e4])
def test_extreme_log_probs_stay_finite(name: str, level: float) -> None:
    batch, _ = feedback([(0.0,) * 3] * 2, LABELS)
    policy_N = torch.tensor([level] * 3 + [-1.0] * 3, requires_grad=True)
    for values_N in (policy_N, policy_N.flip(0)):
        out = loss_of(name, values_N, torch.full((6,), -1.0), batch, 0.0)
        assert out.loss.isfinite() and gradient(out.loss, policy_N).isfinite().all()


def test_the_tables_do_not_overlap_and_every_parameter_is_described() -> None:
    assert len(OBJECTIVES) == len(FEEDBACK) + len(set(OBJECTIVES) - set(FEEDBACK))
    assert {key for row in FEEDBACK.values() for key in row.defaults} == set(FEEDBACK_PARAMETERS)
    for row in FEEDBACK.values():
        assert all(FEEDBACK_PARAMETERS[key].admits(value) for key, value in row.defaults.items())
