"""The online table: every row's numbers by hand, its variants, what it needs, and what it says of a batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from posttrain.advantages import ADVANTAGES
from posttrain.data.trees import collate
from posttrain.diagnostics.metrics import METRICS, values
from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.losses.corrections import CORRECTIONS, PUBLISHED
from posttrain.losses.online import (
    ALIASES,
    CHOICES,
    ONLINE,
    PARAMETERS,
    component_defaults,
    online_row,
    owners,
    variant,
)
from posttrain.losses.policy_metrics import explain_zero_loss
from posttrain.losses.surrogates import RATIOS, REDUCTIONS, SURROGATES
from posttrain.types import Batch
from tests.online_batches import group, of_step, random_groups, run

# Two responses of 2 and 3 tokens with advantages 1 and -0.5. log π - log π_old is 0.1, -0.3 and 0.5, 0, -0.1, so the
# ratios are 1.105171, 0.740818 and 1.648721, 1, 0.904837. log π_old is -1 everywhere, log π_ref -1.2.
MOVED = [0.1, -0.3, 0.5, 0.0, -0.1]
LOGPROBS = [-0.9, -1.3, -0.5, -1.0, -1.1]


def batch_of(advantages: tuple[float, float] = (1.0, -0.5), *, sampler: float = -1.0) -> tuple[Tensor, Batch]:
    responses = [
        {
            "advantages": [advantage] * length,
            "old_logprobs": [-1.0] * length,
            "reference_logprobs": [-1.2] * length,
            "sampler_logprobs": [sampler] * length,
        }
        for advantage, length in zip(advantages, (2, 3), strict=True)
    ]
    return torch.tensor(LOGPROBS, dtype=torch.float64), collate([group(responses)])


# The clipped gains of grpo's first response are 1.105171, 0.740818, of its second -0.824361, -0.5, -0.452419.
BY_HAND = {
    "ppo": -0.069209 / 5,
    "grpo": (-0.922995 + 0.592260) / 2,
    "dr_grpo": -0.069209 / 3000 / 2,
    "dapo": -0.069209 / 5,
    "gspo": (-math.exp(-0.1) + 0.5 * math.exp(0.4 / 3)) / 2,
    "gspo_token": (-math.exp(-0.1) + 0.5 * math.exp(0.4 / 3)) / 2,
    "rloo": (0.9 + 1.3 - 0.25 - 0.5 - 0.55) / 2,
    "reinforce_pp": -0.069209 / 5,
    "reinforce_pp_baseline": -0.069209 / 5,
    "cispo": (0.994654 + 0.963063 - 0.412180 - 0.5 - 0.497660) / 5,
    # 4 sigmoid(0.105171) = 2.105074, 4 sigmoid(-0.259182) = 1.742259; with tau 1.05: 4/1.05 sigmoid(1.05 (rho - 1)) is
    # 2.529512, 1.904762, 1.809678
    "sapo": (-(2.105074 + 1.742259) / 2 + 0.5 * (2.529512 + 1.904762 + 1.809678) / 3) / 2,
    "maxrl": (0.9 + 1.3 - 0.25 - 0.5 - 0.55) / 2,
    "distil_reverse_kl": (0.994654 + 0.963063 - 0.412180 - 0.5 - 0.497660) / 5,
}


def test_every_row_has_its_numbers() -> None:
    assert BY_HAND.keys() == ONLINE.keys()


@pytest.mark.parametrize("name", ONLINE)
def test_policy_term_by_hand(name: str) -> None:
    logprob_N, batch = batch_of()
    metrics = values(run(name, logprob_N, batch).metrics)
    assert metrics["policy_loss"] == pytest.approx(BY_HAND[name], abs=2e-6)


def test_grpo_has_a_kl_of_its_own_weight() -> None:
    """r = log π - log π_ref = 0.3, -0.1, 0.7, 0.2, 0.1; k3 = e^-r - 1 + r."""
    logprob_N, batch = batch_of()
    k3 = [math.exp(-r) - 1 + r for r in (0.3, -0.1, 0.7, 0.2, 0.1)]
    kl = (sum(k3[:2]) / 2 + sum(k3[2:]) / 3) / 2
    out = run("grpo", logprob_N, batch)
    assert values(out.metrics)["kl_loss"] == pytest.approx(kl)
    assert out.loss.item() == pytest.approx(BY_HAND["grpo"] + 0.04 * kl, abs=2e-6)


def test_dual_clip_bounds_a_bad_token_that_became_likely() -> None:
    """A = -0.5 at ratio e^1.5 = 4.48: PPO's loss is 2.24 and grows; dual clip stops at 3 * 0.5 without a gradient."""
    row = variant(ONLINE["dapo"], surrogate="dual_clip")
    responses = [{"advantages": [-0.5, 0.5], "old_logprobs": [-2.0, -2.0]}]
    leaf = torch.tensor([-0.5, -0.5], dtype=torch.float64, requires_grad=True)
    out = run(row, leaf, collate([group(responses)]))
    assert out.loss.item() == pytest.approx((1.5 - 1.28 * 0.5) / 2)
    assert torch.autograd.grad(out.loss, leaf)[0].tolist() == [0.0, 0.0]
    assert values(out.metrics)["clip_share_high"] == 1.0
    clipped = run("dapo", leaf, collate([group(responses)]))
    assert torch.autograd.grad(clipped.loss, leaf)[0][0].item() == pytest.approx(0.5 * math.exp(1.5) / 2)


def test_clip_shares_count_only_where_the_clip_acts() -> None:
    responses = [
        {"advantages": [1, 1, -1, -1], "old_logprobs": [-1.0] * 4}  # moved up, down, up, down
    ]
    logprob_N = torch.tensor([-0.5, -1.5, -0.5, -1.5], dtype=torch.float64)
    metrics = values(run("dapo", logprob_N, collate([group(responses)])).metrics)
    assert metrics["clip_share_high"] == metrics["clip_share_low"] == 0.25


def test_cispo_keeps_the_gradient_of_a_clipped_token() -> None:
    responses = [{"advantages": [1.0], "old_logprobs": [-3.0]}]
    leaf = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)  # ratio e^2 = 7.39, cut to 5
    out = run("cispo", leaf, collate([group(responses)]))
    assert torch.autograd.grad(out.loss, leaf)[0].item() == pytest.approx(-5.0)
    clipped = run("dapo", leaf, collate([group(responses)]))
    assert torch.autograd.grad(clipped.loss, leaf)[0].item() == 0.0


def test_the_soft_gate_is_the_policy_gradient_at_ratio_1() -> None:
    for name in ("sapo", "grpo"):
        responses = [{"advantages": [1.0, -2.0], "old_logprobs": [-1.0, -1.0], "reference_logprobs": [-1.0, -1.0]}]
        leaf = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
        parameters = {} if name == "sapo" else {"kl_beta": 0.0}
        out = run(name, leaf, collate([group(responses)]), **parameters)
        assert torch.autograd.grad(out.loss, leaf)[0].tolist() == pytest.approx([-0.5, 1.0])


def test_gspo_and_its_token_form_are_one_where_the_advantage_is_the_responses() -> None:
    trees, logprobs = random_groups(2, 3, seed=5)
    (own, own_gradient), (token, token_gradient) = (of_step(name, trees, logprobs) for name in ("gspo", "gspo_token"))
    assert own.loss.item() == pytest.approx(token.loss.item())
    torch.testing.assert_close(own_gradient, token_gradient)


def test_gspo_token_weighs_each_tokens_own_advantage() -> None:
    """Advantages 1 and -1, ratio of the response 1: GSPO sees their mean, 0, GSPO-token both."""
    responses = [{"advantages": [1.0, -1.0], "old_logprobs": [-1.0, -1.0]}]
    batch = collate([group(responses)])
    for name, expected in (("gspo", [0.0, 0.0]), ("gspo_token", [-0.5, 0.5])):
        leaf = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad(run(name, leaf, batch).loss, leaf)[0]
        assert gradient.tolist() == pytest.approx(expected), name


# ---------------------------------------------------------------- gradients


def away_from_kinks() -> tuple[Tensor, Batch]:
    """Ratios that no finite difference carries over a clip."""
    trees, logprobs = random_groups(2, 2, seed=11, longest=4)
    return torch.cat(logprobs), collate(trees)


ALL_VARIANTS = {
    **{name: ONLINE[name] for name in ONLINE},
    "dual_clip": variant(ONLINE["grpo"], surrogate="dual_clip"),
    **{f"kl_{kl}": variant(ONLINE["grpo"], kl=kl) for kl in ("k1", "k2", "k3_corrected")},
    "corrected": variant(ONLINE["dapo"], correction="truncated"),
    **{name: variant(ONLINE["dapo"], **method.choices) for name, method in PUBLISHED.items()},
}


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_gradcheck(name: str) -> None:
    row = ALL_VARIANTS[name]
    logprob_N, batch = away_from_kinks()
    entropy_N = torch.linspace(0.5, 2.0, len(logprob_N), dtype=torch.float64)

    def loss(logprob_N: Tensor, entropy_N: Tensor) -> Tensor:
        return run(row, logprob_N, batch, entropy_N=entropy_N, entropy_weight=0.1).loss

    inputs = (logprob_N.requires_grad_(), entropy_N.requires_grad_())
    detached = row.surrogate in ("clipped_weight", "reinforce") and row.ratio != "none"
    if detached or row.ratio == "sequence_token":
        # The weight carries no gradient by definition, so a finite difference sees another function.
        assert all(found.isfinite().all() for found in torch.autograd.grad(loss(*inputs), inputs))
    else:
        assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize(("row", "mean"), [("dapo", 6.5 / 5), ("grpo", (0.75 + 5 / 3) / 2)])
def test_the_entropy_bonus_by_hand(row: str, mean: float) -> None:
    """Entropies 0.5, 1 of the first response and 1, 2, 2 of the second: a mean over tokens, or over the two means."""
    logprob_N, batch = batch_of()
    entropy_N = torch.tensor([0.5, 1.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    plain = run(row, logprob_N, batch, entropy_N=entropy_N).loss.item()
    with_bonus = run(row, logprob_N, batch, entropy_N=entropy_N, entropy_weight=0.1).loss.item()
    assert with_bonus == pytest.approx(plain - 0.1 * mean, abs=1e-12)


def test_the_weighted_policy_gradient_is_that_of_ratio_times_advantage() -> None:
    trees, logprobs = random_groups(2, 2, seed=3)
    row = variant(ONLINE["dapo"], surrogate="reinforce")
    _, gradient = of_step(row, trees, logprobs)
    batch = collate(trees)
    leaf = torch.cat(logprobs).requires_grad_()
    ratio_N = (leaf - batch.columns_N["old_logprobs"]).exp()
    oracle = -(ratio_N * batch.columns_N["advantages"]).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(oracle, leaf)[0])


# ---------------------------------------------------------------- choices, parameters, what is needed


@pytest.mark.parametrize("name", ONLINE)
def test_a_row_is_made_of_known_parts_and_says_where_from(name: str) -> None:
    row = ONLINE[name]
    assert row.advantage in ADVANTAGES
    assert row.ratio in RATIOS and row.surrogate in SURROGATES and row.reduction in REDUCTIONS
    assert row.correction in CORRECTIONS
    assert row.defaults.keys() == component_defaults(row).keys()
    assert all(PARAMETERS[key].admits(value) for key, value in row.defaults.items())
    assert (row.kl == "none") == (row.kl_place == "none")
    assert "arXiv:" in row.source
    assert variant(row) == row
    assert row.needs_old == ("old_logprobs" in _columns_that_must_be_there(name))


def _columns_that_must_be_there(name: str) -> set[str]:
    trees, logprobs = random_groups(1, 2, seed=1)
    batch = collate(trees)
    needed = set()
    for column in batch.columns_N:
        without = {key: value for key, value in batch.columns_N.items() if key != column}
        try:
            run(name, torch.cat(logprobs), replace(batch, columns_N=without))
        except ConfigError:
            needed.add(column)
    return needed


def test_missing_columns_are_named() -> None:
    logprob_N = torch.zeros(2, dtype=torch.float64)
    batch = collate([group([{"advantages": [1.0, 1.0]}])])
    with pytest.raises(ConfigError, match="no old_logprobs and no reference_logprobs"):
        run("grpo", logprob_N, batch)
    with pytest.raises(ConfigError, match="no sampler_logprobs"):
        run(variant(ONLINE["dapo"], correction="truncated"), logprob_N, batch, on_policy=True)
    with pytest.raises(ConfigError, match="on_policy=True"):
        run("dapo", logprob_N, batch)
    with pytest.raises(ConfigError, match="entropy=True"):
        run("dapo", logprob_N, batch, on_policy=True, entropy_weight=0.01)


def test_on_policy_is_a_ratio_of_1_with_its_gradient() -> None:
    leaf = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    batch = collate([group([{"advantages": [1.0, 2.0], "old_logprobs": [-5.0, -5.0]}])])
    out = run("dapo", leaf, batch, on_policy=True)
    assert out.loss.item() == pytest.approx(-1.5)
    assert torch.autograd.grad(out.loss, leaf)[0].tolist() == pytest.approx([-0.5, -1.0])
    assert values(out.metrics)["ratio_max"] == 1.0


def test_a_variant_brings_its_parameters_and_leaves_others() -> None:
    row = variant(ONLINE["grpo"], kl="none", reduction="constant_length", correction="truncated")
    assert row.kl_place == "none"
    assert row.defaults == {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "constant_length": 3000.0,
        "importance_cap": 2.0,
        "entropy_weight": 0.0,
    }
    assert variant(ONLINE["dapo"], kl="k2").kl_place == "loss"
    assert variant(ONLINE["ppo"], kl="k3").kl_place == "reward"
    with pytest.raises(UnknownKeyError, match="token_mean"):
        variant(ONLINE["grpo"], reduction="token_maen")
    with pytest.raises(UnknownKeyError, match="surrogate"):
        variant(ONLINE["grpo"], surogate="clip")
    with pytest.raises(ConfigError, match="a kind and a place"):
        variant(ONLINE["dapo"], kl_place="loss")
    with pytest.raises(ConfigError, match="only an estimate's value counts"):
        variant(ONLINE["ppo"], kl="reverse")
    assert CHOICES["kl"][0] == "none"


def test_parameters_are_checked_and_belong_to_rows() -> None:
    with pytest.raises(UnknownKeyError, match="ppo"):
        ONLINE["grpo"].resolve({"lam": 0.9})
    with pytest.raises(ConfigError, match="clip_low is out of range"):
        ONLINE["grpo"].resolve({"clip_low": 1.5})
    assert owners()["lam"] == ["ppo"]
    rows = [*ALL_VARIANTS.values(), variant(ONLINE["grpo"], kl="exact")]
    assert set(PARAMETERS) == {key for row in rows for key in row.defaults}


def test_names() -> None:
    assert online_row("reinforce++") == ("reinforce_pp", ONLINE["reinforce_pp"])
    assert set(ALIASES.values()) <= set(ONLINE)
    with pytest.raises(UnknownKeyError, match="did you mean `grpo`"):
        online_row("gprpo")


# ---------------------------------------------------------------- sampler and trainer


def test_truncated_correction_by_hand() -> None:
    """π_old / π_sampler = e^0.5 = 1.65 and e^1 = 2.72, which is cut at 2; a weight has no gradient."""
    responses = [{"advantages": [1.0, 1.0], "old_logprobs": [-1.0, -1.0], "sampler_logprobs": [-1.5, -2.0]}]
    row = variant(ONLINE["dapo"], correction="truncated")
    leaf = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    out = run(row, leaf, collate([group(responses)]))
    assert out.loss.item() == pytest.approx(-(math.exp(0.5) + 2.0) / 2)
    assert torch.autograd.grad(out.loss, leaf)[0].tolist() == pytest.approx([-math.exp(0.5) / 2, -1.0])
    metrics = values(out.metrics)
    first, second = math.exp(0.5), math.exp(1.0)
    assert metrics["sampler_ratio_mean"] == pytest.approx((first + second) / 2)
    assert metrics["sampler_ratio_max"] == pytest.approx(second)
    assert metrics["sampler_gap_max"] == pytest.approx(1.0)
    assert metrics["sampler_clipped_share"] == 0.5
    assert metrics["sampler_effective_size"] == pytest.approx((first + second) ** 2 / (2 * (first**2 + second**2)))
    assert values(run(row, leaf, collate([group(responses)]), importance_cap=1.0).metrics)["sampler_clipped_share"] == 1


# ---------------------------------------------------------------- metrics


def test_metrics_by_hand() -> None:
    logprob_N, batch = batch_of()
    metrics = values(run("grpo", logprob_N, batch, entropy_N=torch.full_like(logprob_N, 1.5)).metrics)
    ratios = [math.exp(moved) for moved in MOVED]
    assert metrics["ratio_mean"] == pytest.approx(sum(ratios) / 5)
    assert metrics["ratio_max"] == pytest.approx(math.exp(0.5))
    assert metrics["clip_share_low"] == 0.0 and metrics["clip_share_high"] == 0.0
    assert metrics["kl_k1_old"] == pytest.approx(-sum(MOVED) / 5)
    assert metrics["kl_k3_old"] == pytest.approx(sum(math.exp(m) - 1 - m for m in MOVED) / 5)
    r = [0.3, -0.1, 0.7, 0.2, 0.1]
    assert metrics["kl_k1_reference"] == pytest.approx(sum(r) / 5)
    assert metrics["kl_k2_reference"] == pytest.approx(sum(x * x / 2 for x in r) / 5)
    assert metrics["kl_k3_reference"] == pytest.approx(sum(math.exp(-x) - 1 + x for x in r) / 5)
    assert metrics["advantage_mean"] == pytest.approx(0.1)
    assert metrics["advantage_std"] == pytest.approx(math.sqrt((2 * 0.81 + 3 * 0.36) / 5))
    assert metrics["advantage_magnitude"] == pytest.approx(0.7)
    assert metrics["length_generated"] == 2.5 and metrics["entropy"] == 1.5


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_every_metric_is_described(name: str) -> None:
    trees, logprobs = random_groups(2, 2)
    out, _ = of_step(ALL_VARIANTS[name], trees, logprobs)
    assert out.metrics.keys() <= METRICS.keys()
    assert {len(values_B) for values_B in out.per_branch.values()} == {4}


def test_a_ratio_beyond_every_clip_stays_finite() -> None:
    responses = [{"advantages": [-1.0], "old_logprobs": [-200.0], "reference_logprobs": [-0.1]}]
    leaf = torch.tensor([-0.1], requires_grad=True)
    for name in ("grpo", "dapo", "gspo", "cispo", "sapo"):
        out = run(name, leaf, collate([group(responses)]))
        assert out.loss.isfinite() and torch.autograd.grad(out.loss, leaf)[0].isfinite().all(), name
        assert all(math.isfinite(value) for key, value in values(out.metrics).items()), name


def test_a_loss_of_about_0_is_explained() -> None:
    text = explain_zero_loss({"policy_loss": 1e-9, "advantage_magnitude": 0.7, "grad_norm": 0.3})
    assert text is not None and "0.7" in text and "norm is 0.3" in text and "of a group add up" in text
    without = explain_zero_loss({"policy_loss": 1e-9, "advantage_magnitude": 0.7}, grouped=False)
    assert without is not None and "group" not in without and "all tokens of the step" in without
    assert explain_zero_loss({"policy_loss": -0.2, "advantage_magnitude": 0.7}) is None
    assert explain_zero_loss({"policy_loss": 0.0, "advantage_magnitude": 0.0}) is None
    assert explain_zero_loss({}) is None


def test_a_response_without_tokens_is_a_response() -> None:
    """Sequence mean: 1/2 of the one that has tokens; token mean: as if it were not there."""
    full = {"advantages": [1.0, 1.0], "old_logprobs": [-1.0, -1.0], "reference_logprobs": [-1.0, -1.0]}
    empty: dict[str, list[float]] = {name: [] for name in full}
    logprob_N = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    both = collate([group([full, empty])])
    assert run("grpo", logprob_N, both).loss.item() == pytest.approx(-0.5)
    assert run("dapo", logprob_N, both).loss.item() == pytest.approx(-1.0)
    assert values(run("grpo", logprob_N, both).metrics)["length_generated"] == 1.0
