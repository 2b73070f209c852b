"""The pairwise table: hand-worked numbers and gradients of every row, its metrics, and its edges.

One pair for all rows:

              policy's tokens    reference's tokens    Σ log π   mean   Σ log π/π_ref   mean
    chosen    -1, -2             -1.5, -2.5            -3        -1.5   +1.0            +0.5
    rejected  -2, -1, -3         -1.5, -1, -2          -6        -2.0   -1.5            -0.5

and everywhere -log sigmoid(z) = ln(1 + e^-z).
"""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.losses import links
from posttrain.losses.links import chosen_shortfall
from posttrain.losses.pairwise import PAIRWISE, PARAMETERS
from posttrain.losses.preference import pairwise_loss
from posttrain.outputs import Mean, TokenLogprobs
from tests.loss_batches import batch_of, gradient, pairs, random_pairs, run

POLICY = [((-1.0, -2.0), (-2.0, -1.0, -3.0))]
REFERENCE = [((-1.5, -2.5), (-1.5, -1.0, -2.0))]
MARGIN = [2.0]

# name: (parameters, expected loss); the arithmetic beside it
HAND_WORKED = {
    # h = 1.0 + 1.5 = 2.5; z = 0.1 * 2.5 = 0.25; ln(1 + e^-0.25)
    "dpo": ({"beta": 0.1}, 0.575939),
    # 0.9 * 0.575939 + 0.1 * ln(1 + e^0.25) = 0.9 * 0.575939 + 0.1 * 0.825939
    "cdpo": ({"beta": 0.1, "label_smoothing": 0.1}, 0.600939),
    # (0.9 * 0.575939 - 0.1 * 0.825939) / (1 - 0.2)
    "robust": ({"beta": 0.1, "label_smoothing": 0.1}, 0.544689),
    # h = 0.5 + 0.5 = 1.0; (1.0 - 1 / 0.2)^2 = (-4)^2
    "ipo": ({"beta": 0.1}, 16.0),
    # (2.5 - 5)^2
    "ipo_sum": ({"beta": 0.1}, 6.25),
    # max(0, 1 - 0.25)
    "hinge": ({"beta": 0.1}, 0.75),
    # z = 5 * (0.5 + 0.5); ln(1 + e^-5)
    "dpo_norm": ({"beta": 5.0}, 0.006715),
    # dpo + 1.0 * 3 / 2 nats per chosen token
    "dpo_nll": ({"beta": 0.1, "nll_weight": 1.0}, 2.075939),
    # z = 0.01 * 2.5 = 0.025; ln(1 + e^-0.025) = 0.680725; + 5e-5 * 3 nats of the chosen sequence
    "rpo": ({"beta": 0.01, "nll_weight": 5e-5}, 0.680875),
    # the chosen response gained (+1.0), so nothing is due: z = 0.3 * 2.5 = 0.75
    "dpop": ({"beta": 0.3, "penalty": 50.0}, 0.386871),
    # one token of the rejected side is tail: h = 1.0 - (-0.5 + 0 + 0.5 * -1) = 2.0; ln(1 + e^-0.2)
    "ld_dpo": ({"beta": 0.1, "tail_weight": 0.5}, 0.598139),
    # 1 - e^-1 = 0.632121; 1 - e^1.5 = -3.481689; z = 0.1 * 4.113810; ln(1 + e^-0.411381)
    "dpo_forward_kl": ({"beta": 0.1}, 0.508463),
    # ln 2 + ln sigmoid(1) = 0.379885; ln 2 + ln sigmoid(-1.5) = -1.008266; z = 0.138815
    "dpo_js": ({"beta": 0.1}, 0.626146),
    # a step without a past keeps beta and all pairs: dpo's number
    "beta_dpo": ({"beta": 0.1, "gain": 0.6, "keep": 0.8, "momentum": 0.9}, 0.575939),
    # 2 (1 - e^-0.5) = 0.786939; 2 (1 - e^0.75) = -2.234000; z = 0.302094
    "dpo_alpha": ({"beta": 0.1, "divergence_alpha": 0.5}, 0.553465),
    # two ranks: ln(e^0.1 + e^-0.15) - 0.1
    "dpo_pl": ({"beta": 0.1}, 0.575939),
    # q = sigmoid(0.25) = 0.562177; q (ln q - ln 0.999) + (1 - q) (ln(1 - q) - ln 0.001)
    # = 0.562177 * (-0.575939 + 0.001001) + 0.437823 * (-0.825939 + 6.907755)
    "exo_pair": ({"beta": 0.1, "label_epsilon": 0.001}, 2.339545),
    # r_w = 0.01, r_l = -0.015: 0.688160 + 0.698160 / 2 + 0.685675 / 2
    "nca_pair": ({"beta": 0.01}, 1.380077),
    # delta = (0.01 - 0.015) / 2 = -0.0025; both are 0.0125 on their side: 2 ln(1 + e^-0.0125)
    "bco_pair": ({"beta": 0.01}, 1.373833),
    # (1 - 500)^2 + (-1.5 + 500)^2
    "sppo_hard": ({"beta": 0.001}, 497503.25),
    # 1 - sigmoid(0.1) + sigmoid(-0.15) = 0.475021 + 0.462570
    "apo_zero": ({"beta": 0.1}, 0.937591),
    # sigmoid(0.1) + 1 - sigmoid(0.25) = 0.524979 + 0.437823
    "apo_down": ({"beta": 0.1}, 0.962803),
    # z = 0.125; m = sigmoid(2.5) = 0.924142; 0.075858 * ln(1 + e^-0.125) + 0.924142 * e^-0.125
    "discopop": ({"beta": 0.05, "tau": 0.05}, 0.863540),
    # the only pair of its step is matched with itself: ln(1 + e^-0.025)
    "aot": ({"beta": 0.01}, 0.680725),
    "aot_unpaired": ({"beta": 0.01}, 0.680725),
    # w(y_w) = e^((-3 + 3) / 2) = 1; w(y_l) = e^((-6 + 7.5) / 3) = 1.648721; min(1, 1.648721) times ln(1 + e^-0.025)
    "wpo": ({"beta": 0.01}, 0.680725),
    # delta = -0.025; 0.8 * 0.575939 + 0.2 * 2 ln(1 + e^-0.125) + 1.5
    "mpo": ({"beta": 0.1, "quality_weight": 0.2, "nll_weight": 1.0}, 2.213791),
    # z = 0.25 - 1.0 * 2.0 = -1.75
    "odpo": ({"beta": 0.1, "margin_scale": 1.0}, 1.910224),
    # 2 * (-1.5 + 2.0) - 1 = 0; ln 2
    "simpo": ({"beta": 2.0, "gamma": 1.0}, 0.693147),
    # 4 (1 - e^(0.25 * 1.5)) = -1.819966; 4 (1 - e^(0.25 * 2)) = -2.594885; z = 2.5 * 0.774919 - 0.1 = 1.837299
    "alphapo": ({"beta": 2.5, "gamma": 0.1, "alpha": 0.25}, 0.147771),
    # simpo's, and 1.5 nats per chosen token
    "cpo_simpo": ({"beta": 2.0, "gamma": 1.0, "nll_weight": 1.0}, 2.193147),
    # z = 0.1 * (-3 + 6) = 0.3; ln(1 + e^-0.3) = 0.554355; + 1.5
    "cpo": ({"beta": 0.1, "nll_weight": 1.0}, 2.054355),
    # p_w = e^-1.5 = 0.223130, odds 0.287216, log -1.247518; p_l = e^-2 = 0.135335, odds 0.156518, log -1.854587;
    # difference 0.607069; ln(1 + e^-0.607069) = 0.434989; 0.1 * 0.434989 + 1.5
    "orpo": ({"preference_weight": 0.1}, 1.543499),
}


def test_every_row_is_hand_worked() -> None:
    assert set(HAND_WORKED) == set(PAIRWISE)
    for name, (parameters, _) in HAND_WORKED.items():
        assert parameters == pytest.approx(dict(PAIRWISE[name].defaults)), f"{name}: the numbers use the defaults"


@pytest.mark.parametrize("name", PAIRWISE)
def test_hand_worked(name: str) -> None:
    batch, policy_N = pairs(POLICY, MARGIN)
    _, reference_N = pairs(REFERENCE)
    parameters, expected = HAND_WORKED[name]
    out = run(name, policy_N, reference_N if PAIRWISE[name].needs_reference else None, batch, **parameters)
    assert out.loss.item() == pytest.approx(expected, abs=1e-6)
    assert out.metrics["loss"].value == pytest.approx(expected, abs=1e-6)


def test_dpop_charges_what_the_chosen_response_lost() -> None:
    # chosen Σ log π/π_ref = -0.2, rejected -1.0; z = 0.3 * (0.8 - 2 * 0.2) = 0.12; ln(1 + e^-0.12) = 0.634946
    batch, policy_N = pairs([((-1.2,), (-3.0,))])
    _, reference_N = pairs([((-1.0,), (-2.0,))])
    policy_N.requires_grad_()
    out = run("dpop", policy_N, reference_N, batch, beta=0.3, penalty=2.0)
    assert out.loss.item() == pytest.approx(0.634946, abs=1e-6)
    # d loss / dz = -sigmoid(-0.12) = -0.470036; dz/dw = 0.3 * (1 + 2), dz/dl = -0.3
    assert gradient(out.loss, policy_N).tolist() == pytest.approx([-0.470036 * 0.9, 0.470036 * 0.3], abs=1e-6)


# d loss / d log π of any chosen token, and of any rejected token, at the pair above
HAND_WORKED_GRADIENTS = {
    # -0.1 * sigmoid(-0.25) = -0.1 * 0.437823
    "dpo": (-0.0437823, 0.0437823),
    # -0.1 * (0.9 * 0.437823 - 0.1 * 0.562177)
    "cdpo": (-0.0337823, 0.0337823),
    # -0.1 * (0.9 * 0.437823 + 0.1 * 0.562177) / 0.8
    "robust": (-0.0562823, 0.0562823),
    # 2 * (1 - 5) / 2 tokens = -4; -2 * (1 - 5) / 3 tokens
    "ipo": (-4.0, 8 / 3),
    "ipo_sum": (-5.0, 5.0),
    "hinge": (-0.1, 0.1),
    # -5 * sigmoid(-5) = -5 * 0.00669285, over 2 and over 3 tokens
    "dpo_norm": (-0.0167321, 0.0111548),
    # dpo's, and -1/2 per chosen token
    "dpo_nll": (-0.5437823, 0.0437823),
    # -0.01 * sigmoid(-0.025) = -0.00493750, and -5e-5
    "rpo": (-0.00498750, 0.00493750),
    # -0.3 * sigmoid(-0.75) = -0.3 * 0.320821
    "dpop": (-0.0962464, 0.0962464),
    # -0.1 * sigmoid(1.75) = -0.1 * 0.851953
    "odpo": (-0.0851953, 0.0851953),
    # -0.1 * sigmoid(-0.411381) = -0.0398581, times e^-1 and e^1.5
    "dpo_forward_kl": (-0.0146630, 0.1786316),
    # -0.1 * sigmoid(-0.138815) = -0.0465352, times sigmoid(-1) and sigmoid(1.5)
    "dpo_js": (-0.0125152, 0.0380460),
    # -0.1 * sigmoid(-0.302094) = -0.0425045, times e^-0.5 and e^0.75
    "dpo_alpha": (-0.0257803, 0.0899822),
    "dpo_pl": (-0.0437823, 0.0437823),
    "beta_dpo": (-0.0437823, 0.0437823),
    # 0.1 * q (1 - q) (ln(q / 0.999) - ln((1 - q) / 0.001)) = 0.1 * 0.246134 * (-0.574938 - 6.081816)
    "exo_pair": (-0.1638454, 0.1638454),
    # 0.01 * (-sigmoid(-0.01) + sigmoid(0.01) / 2), and 0.01 * sigmoid(-0.015) / 2
    "nca_pair": (-0.0024625, 0.0024813),
    # -0.01 * sigmoid(-0.0125); the shift carries no gradient
    "bco_pair": (-0.0049688, 0.0049688),
    "sppo_hard": (-998.0, 997.0),
    # -0.1 * sigmoid'(0.1), 0.1 * sigmoid'(-0.15)
    "apo_zero": (-0.0249376, 0.0248599),
    # 0.1 * (sigmoid'(0.1) - sigmoid'(0.25)): chosen sinks too, once its lead is enough
    "apo_down": (0.0003242, 0.0246134),
    # m' = m (1 - m) / 0.05 = 1.402074; 0.05 * (m' (e^-0.125 - 0.632598) - 0.075858 * sigmoid(-0.125) - m e^-0.125)
    "discopop": (-0.0250369, 0.0250369),
    # -0.01 * sigmoid(-0.025)
    "aot": (-0.0049375, 0.0049375),
    "aot_unpaired": (-0.0049375, 0.0049375),
    # the weight is 1 and carries no gradient
    "wpo": (-0.0049375, 0.0049375),
    # -0.1 * (0.8 * 0.437823 + 0.2 * sigmoid(-0.125)), and -1/2
    "mpo": (-0.5444017, 0.0444017),
    # -2.5 * sigmoid(-1.837299) = -0.3434266, times e^0.375 / 2 and e^0.5 / 3
    "alphapo": (-0.2498422, 0.1887389),
    "cpo_simpo": (-1.0, 1 / 3),
    # -2 * 0.5 over 2 and over 3 tokens
    "simpo": (-0.5, 1 / 3),
    # -0.1 * sigmoid(-0.3) = -0.0425557, and -1/2
    "cpo": (-0.5425557, 0.0425557),
    # 0.1 * sigmoid(-0.607069) = 0.0352728; d log-odds / d mean = 1 / (1 - p): 1.287216 and 1.156518;
    # -0.0352728 * 1.287216 / 2 - 1/2, and 0.0352728 * 1.156518 / 3
    "orpo": (-0.5227019, 0.0135979),
}


def test_the_weight_of_a_pair_ends_at_one_and_not_that_of_a_side() -> None:
    # collisions of -0.5 and -4: w(y_w) = e^(-1.5 + 0.5) = 0.367879, w(y_l) = e^(-2 + 4) = 7.389056: together 2.718282,
    # so 1. Of -0.5 and -2.5: 0.367879 * e^0.5 = e^-0.5 = 0.606531. Bounded side by side, both would be 0.367879.
    batch, policy_N = pairs(POLICY * 2)
    _, reference_N = pairs(REFERENCE * 2)
    collision_N = torch.tensor([-0.5] * 2 + [-4.0] * 3 + [-0.5] * 2 + [-2.5] * 3, dtype=policy_N.dtype)
    policy_N.requires_grad_()
    out = pairwise_loss(
        PAIRWISE["wpo"],
        PAIRWISE["wpo"].resolve({}),
        TokenLogprobs(policy_N, log_collision_N=collision_N),
        reference_N,
        batch,
        batch.count,
    )
    logistic = math.log(1 + math.exp(-0.025))
    assert out.loss.item() == pytest.approx((1 + math.exp(-0.5)) / 2 * logistic, abs=1e-9)
    assert out.metrics["pair_weight"].value == pytest.approx((1 + math.exp(-0.5)) / 2)
    slope = -0.01 / (1 + math.exp(0.025)) / 2
    expected = [slope] * 2 + [-slope] * 3 + [slope * math.exp(-0.5)] * 2 + [-slope * math.exp(-0.5)] * 3
    assert gradient(out.loss, policy_N).tolist() == pytest.approx(expected, abs=1e-9)


def test_tokens_of_a_tail_weigh_less() -> None:
    # -0.1 * sigmoid(-0.2) = -0.0450166; the third token of the rejected side, beyond the chosen side's two, half of it
    batch, policy_N = pairs(POLICY)
    _, reference_N = pairs(REFERENCE)
    policy_N.requires_grad_()
    grads = gradient(run("ld_dpo", policy_N, reference_N, batch).loss, policy_N).tolist()
    assert grads == pytest.approx([-0.0450166] * 2 + [0.0450166] * 2 + [0.0225083], abs=1e-6)


@pytest.mark.parametrize("name", HAND_WORKED_GRADIENTS)
def test_hand_worked_gradients(name: str) -> None:
    batch, policy_N = pairs(POLICY, MARGIN)
    _, reference_N = pairs(REFERENCE)
    policy_N.requires_grad_()
    chosen, rejected = HAND_WORKED_GRADIENTS[name]
    grads = gradient(run(name, policy_N, reference_N, batch).loss, policy_N).tolist()
    assert grads == pytest.approx([chosen] * 2 + [rejected] * 3, abs=1e-6)


@pytest.mark.parametrize("name", PAIRWISE)
def test_gradcheck(name: str) -> None:
    batch, policy_N, reference_N = random_pairs(4, seed=3)
    row = PAIRWISE[name]
    # Where the step's mean reward is a constant by definition, it has to be one for the finite differences too.
    constant = {"shift": torch.full((4,), 0.07, dtype=torch.float64)}
    statistics = constant if row.coupling is links.STEP_MEAN else None
    beta = {"beta": 0.5} if "beta" in row.defaults else {}

    def loss(values_N: torch.Tensor) -> torch.Tensor:
        # So is a pair's weight: here it is e^-0.4 a side, whatever the log-probs are.
        policy = TokenLogprobs(values_N, log_collision_N=values_N.detach() + 0.4)
        return pairwise_loss(row, row.resolve(beta), policy, reference_N, batch, batch.count, statistics).loss

    assert torch.autograd.gradcheck(loss, (policy_N.requires_grad_(),))


# ---------------------------------------------------------------- metrics


def test_metrics_of_a_pair() -> None:
    batch, policy_N = pairs(POLICY)
    _, reference_N = pairs(REFERENCE)
    values = {name: metric.value for name, metric in run("dpo", policy_N, reference_N, batch).metrics.items()}
    expected = {
        "loss": 0.575939,
        "rewards_chosen": 0.1 * 1.0,
        "rewards_rejected": 0.1 * -1.5,
        "reward_margin": 0.25,
        "reward_accuracy": 1.0,
        "logprob_per_token_chosen": -1.5,
        "logprob_per_token_rejected": -2.0,
        "length_chosen": 2.0,
        "length_rejected": 3.0,
        "logprob_chosen_change": 1.0,
        "logprob_rejected_change": -1.5,
        # r per token: 0.5, 0.5, -0.5, 0, -1
        "kl_k1_on_data": -0.5 / 5,
        "kl_k2_on_data": (0.125 * 3 + 0.5) / 5,
        "kl_k3_on_data": (2 * (math.exp(-0.5) - 0.5) + (math.exp(0.5) - 1.5) + (math.e - 2)) / 5,
        "supervised_tokens": 5.0,
        "supervised_share": 5 / 8,
    }
    assert set(values) == set(expected)
    assert values == pytest.approx(expected, abs=1e-6)


def test_log_probs_per_token_are_means_over_tokens_not_over_responses() -> None:
    # chosen: -1 over 1 token and -9 over 3 tokens: -10 / 4, where a mean of means would be (-1 - 3) / 2
    batch, policy_N = pairs([((-1.0,), (-2.0,)), ((-3.0, -3.0, -3.0), (-1.0, -1.0))])
    metrics = run("simpo", policy_N, None, batch).metrics
    assert metrics["logprob_per_token_chosen"].value == pytest.approx(-2.5)
    assert metrics["logprob_per_token_rejected"].value == pytest.approx(-4 / 3)


def test_terms_are_reported_apart_where_there_are_two() -> None:
    batch, policy_N = pairs(POLICY)
    _, reference_N = pairs(REFERENCE)
    metrics = run("dpo_nll", policy_N, reference_N, batch, nll_weight=0.2).metrics
    assert metrics["preference_loss"].value == pytest.approx(0.575939, abs=1e-6)
    assert metrics["nll_loss"].value == pytest.approx(1.5)
    assert metrics["loss"].value == pytest.approx(0.575939 + 0.2 * 1.5, abs=1e-6)


def test_without_a_reference_nothing_is_said_about_the_start() -> None:
    batch, policy_N = pairs(POLICY)
    metrics = run("simpo", policy_N, None, batch).metrics
    assert not [name for name in metrics if "change" in name or name.startswith("kl_")]
    assert metrics["rewards_chosen"].value == pytest.approx(2.0 * -1.5)


def test_a_tie_counts_half() -> None:
    batch, policy_N = pairs([((-1.0,), (-1.0,)), ((-1.0,), (-2.0,)), ((-2.0,), (-1.0,)), ((-1.0,), (-3.0,))])
    metrics = run("dpo", policy_N, torch.full_like(policy_N, -1.0), batch).metrics
    assert metrics["reward_accuracy"].value == pytest.approx((0.5 + 1 + 0 + 1) / 4)


def test_accuracy_looks_at_the_rewards_and_not_at_the_target_margin() -> None:
    batch, policy_N = pairs([((-1.0,), (-1.1,))])  # ahead by 0.2, short of gamma = 1
    assert run("simpo", policy_N, None, batch).metrics["reward_accuracy"].value == 1.0


def test_per_tree_values() -> None:
    batch, policy_N = pairs([*POLICY, ((-1.0,), (-0.5, -0.5))])
    _, reference_N = pairs([*REFERENCE, ((-2.0,), (-0.5, -0.5))])
    policy_N.requires_grad_()
    per_tree = run("dpo", policy_N, reference_N, batch).per_tree
    assert {name: values.tolist() for name, values in per_tree.items()} == {
        "rewards_chosen": pytest.approx([0.1, 0.1]),
        "rewards_rejected": pytest.approx([-0.15, 0.0]),
        "logprob_chosen": [-3.0, -1.0],
        "logprob_rejected": [-6.0, -1.0],
        "tokens_chosen": [2.0, 1.0],
        "tokens_rejected": [3.0, 2.0],
    }
    assert not any(values.requires_grad for values in per_tree.values())


def test_metrics_hold_no_graph() -> None:
    batch, policy_N, reference_N = random_pairs(3)
    for metric in run("orpo", policy_N.requires_grad_(), reference_N, batch).metrics.values():
        parts = (metric.sum, metric.count) if isinstance(metric, Mean) else (metric.sum,)
        assert not any(isinstance(part, torch.Tensor) and part.requires_grad for part in parts)


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("lengths", [(0, 3), (3, 0), (0, 0)], ids=["chosen", "rejected", "both"])
def test_an_empty_side_leaves_loss_and_gradients_finite(name: str, lengths: tuple[int, int]) -> None:
    batch = batch_of([lengths, (2, 2)], [0.5, 0.5])
    policy_N = (-torch.rand(batch.count.tokens) - 0.1).requires_grad_()
    reference_N = -torch.rand(batch.count.tokens) - 0.1
    out = run(name, policy_N, reference_N, batch)
    assert out.loss.isfinite()
    assert gradient(out.loss, policy_N).isfinite().all()
    assert all(math.isfinite(metric.value) for metric in out.metrics.values())


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("level", [0.0, -1e-12, -1e-7, -1e-3, -30.0, -1e4])
def test_extreme_log_probs_stay_finite_in_fp32(name: str, level: float) -> None:
    batch = batch_of([(3, 3)], [0.5])
    policy_N = torch.tensor([level] * 3 + [-1.0] * 3, requires_grad=True)
    for values_N in (policy_N, policy_N.flip(0)):
        out = run(name, values_N, torch.full((6,), -1.0), batch)
        assert out.loss.isfinite()
        assert gradient(out.loss, policy_N).isfinite().all()
        assert all(math.isfinite(metric.value) for metric in out.metrics.values())


def test_log_odds_are_exact_near_certainty() -> None:
    # x = mean log p = -1e-5: odds = e^x / (1 - e^x) = 1 / (e^1e-5 - 1), log-odds = 11.512920.
    # By log(1 - e^x), fp32 gives 11.5116.
    batch = batch_of([(1, 1)])
    out = run("orpo", torch.tensor([-1e-5, -1.0]), None, batch)
    assert out.per_tree["rewards_chosen"].item() == pytest.approx(-math.log(math.expm1(1e-5)), rel=1e-6)


def test_the_reference_gets_no_gradient() -> None:
    batch, policy_N, reference_N = random_pairs(3)
    policy_N.requires_grad_()
    reference_N.requires_grad_()
    run("dpo", policy_N, reference_N, batch).loss.backward()
    assert policy_N.grad is not None
    assert reference_N.grad is None


def test_a_reference_of_another_precision_is_taken() -> None:
    batch, policy_N, reference_N = random_pairs(3)
    out = run("dpo", policy_N.float(), reference_N, batch)
    assert out.loss.dtype == torch.float32


# ---------------------------------------------------------------- what is refused


def test_which_rows_need_a_reference() -> None:
    free = {"simpo", "alphapo", "cpo", "cpo_simpo", "orpo"}
    assert {name for name, row in PAIRWISE.items() if not row.needs_reference} == free
    for name, row in PAIRWISE.items():
        assert row.needs_reference or row.margin is not chosen_shortfall, name


@pytest.mark.parametrize("name", [name for name, row in PAIRWISE.items() if row.needs_reference])
def test_a_missing_reference_is_refused(name: str) -> None:
    batch, policy_N, _ = random_pairs(2)
    with pytest.raises(ConfigError, match="reference"):
        run(name, policy_N, None, batch)


def test_missing_annotated_margins_are_refused() -> None:
    batch, policy_N = pairs(POLICY)
    with pytest.raises(ConfigError, match="margin"):
        run("odpo", policy_N, policy_N, batch)


BAD_VALUES = [
    ("dpo", "beta", 0.0),
    ("dpo", "beta", -0.1),
    ("dpo", "beta", math.nan),
    ("dpo", "beta", math.inf),
    ("dpo", "beta", True),
    ("dpo", "beta", "0.1"),
    ("cdpo", "label_smoothing", 0.5),
    ("cdpo", "label_smoothing", -0.01),
    ("robust", "label_smoothing", 0.5),
    ("simpo", "gamma", -1.0),
    ("odpo", "margin_scale", -1.0),
    ("dpop", "penalty", -1.0),
    ("dpo_nll", "nll_weight", -0.5),
    ("orpo", "preference_weight", 0.0),
    ("exo_pair", "label_epsilon", 0.0),
    ("ld_dpo", "tail_weight", 1.01),
    ("dpo_alpha", "divergence_alpha", 1.0),
    ("discopop", "tau", 1.0),
    ("mpo", "quality_weight", -0.1),
]


@pytest.mark.parametrize(("name", "key", "value"), BAD_VALUES)
def test_a_parameter_out_of_range_is_named(name: str, key: str, value: float) -> None:
    batch, policy_N, reference_N = random_pairs(2)
    with pytest.raises(ConfigError) as caught:
        run(name, policy_N, reference_N, batch, **{key: value})
    text = str(caught.value)
    assert key in text
    assert repr(value) in text
    assert "remedy:" in text


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("cdpo", "label_smoothing", 0.0), ("simpo", "gamma", 0), ("dpo_nll", "nll_weight", 0.0), ("dpo", "beta", 1)],
)
def test_the_ends_of_the_ranges_that_belong_to_them(name: str, key: str, value: float) -> None:
    batch, policy_N, reference_N = random_pairs(2)
    assert run(name, policy_N, reference_N, batch, **{key: value}).loss.isfinite()


def test_an_unknown_parameter_names_the_rows_that_have_it() -> None:
    batch, policy_N, reference_N = random_pairs(2)
    with pytest.raises(UnknownKeyError, match="gamma") as caught:
        run("dpo", policy_N, reference_N, batch, gamma=1.0)
    assert "simpo" in str(caught.value)
    with pytest.raises(UnknownKeyError) as caught:
        run("cdpo", policy_N, reference_N, batch, label_smothing=0.1)
    assert "did you mean `label_smoothing`?" in str(caught.value)


def test_every_parameter_is_described_and_used() -> None:
    used = {key for row in PAIRWISE.values() for key in row.defaults}
    assert used == set(PARAMETERS)
    for name, row in PAIRWISE.items():
        for key, value in row.defaults.items():
            assert PARAMETERS[key].admits(value), (name, key)
        assert row.source, name


# ---------------------------------------------------------------- limits in which one row becomes another


def test_rows_that_meet_in_a_limit() -> None:
    batch, policy_N, reference_N = random_pairs(5, seed=1)

    def loss(name: str, **parameters: float) -> float:
        return run(name, policy_N, reference_N, batch, **parameters).loss.item()

    dpo = loss("dpo", beta=0.3)
    assert loss("cdpo", beta=0.3, label_smoothing=0.0) == pytest.approx(dpo)
    assert loss("robust", beta=0.3, label_smoothing=0.0) == pytest.approx(dpo)
    assert loss("dpo_nll", beta=0.3, nll_weight=0.0) == pytest.approx(dpo)
    assert loss("rpo", beta=0.3, nll_weight=0.0) == pytest.approx(dpo)
    assert loss("dpop", beta=0.3, penalty=0.0) == pytest.approx(dpo)
    assert loss("odpo", beta=0.3, margin_scale=0.0) == pytest.approx(dpo)
    assert loss("ld_dpo", beta=0.3, tail_weight=1.0) == pytest.approx(dpo)
    assert loss("dpo_alpha", beta=0.3, divergence_alpha=1e-9) == pytest.approx(dpo, rel=1e-6)
    assert loss("mpo", beta=0.3, quality_weight=0.0, nll_weight=0.0) == pytest.approx(dpo)
    assert loss("dpo_pl", beta=0.3) == pytest.approx(dpo)
    forward = loss("dpo_forward_kl", beta=0.3)
    assert loss("dpo_alpha", beta=0.3, divergence_alpha=1 - 1e-9) == pytest.approx(forward, rel=1e-6)
    simpo = loss("simpo", beta=2.5, gamma=0.1)
    assert loss("alphapo", beta=2.5, gamma=0.1, alpha=0.0) == pytest.approx(simpo)
    assert loss("alphapo", beta=2.5, gamma=0.1, alpha=1e-7) == pytest.approx(simpo, rel=1e-5)
    assert loss("cpo_simpo", beta=2.5, gamma=0.1, nll_weight=0.0) == pytest.approx(simpo)


def test_label_noise_is_debiased() -> None:
    """rDPO on labels of which a share is flipped has, on average, the DPO loss on clean labels."""
    _, policy_N = pairs(POLICY)
    batch, _ = pairs(POLICY)
    _, reference_N = pairs(REFERENCE)
    flipped_batch, flipped_policy_N = pairs([(POLICY[0][1], POLICY[0][0])])
    _, flipped_reference_N = pairs([(REFERENCE[0][1], REFERENCE[0][0])])
    as_labelled = run("robust", policy_N, reference_N, batch, label_smoothing=0.2).loss
    as_flipped = run("robust", flipped_policy_N, flipped_reference_N, flipped_batch, label_smoothing=0.2).loss
    clean = run("dpo", policy_N, reference_N, batch).loss
    assert (0.8 * as_labelled + 0.2 * as_flipped).item() == pytest.approx(clean.item())
