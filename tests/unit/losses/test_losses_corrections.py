"""Corrections for tokens of another policy: numbers by hand, peers' formulas, what masks let through, and refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from posttrain.data.trees import collate, count
from posttrain.diagnostics.metrics import METRICS, merge, values
from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.losses.corrections import CORRECTIONS, MASKS, PUBLISHED
from posttrain.losses.online import ONLINE, OnlineRow, variant
from posttrain.losses.policy import policy_loss
from posttrain.losses.policy_metrics import OLDEST
from posttrain.outputs import LossOutput, Quantile, TokenLogprobs
from posttrain.types import Batch, Branch, TokenTree
from tests.online_batches import group, of_step, random_groups, run

# w = π_prox / μ of two responses with advantages 1 and -0.5. Their products are 0.6 and 2.7, their geometric means
# 0.7746 and 1.3925. π is still π_prox, so every ratio of the surrogate is 1 and log π is -1 everywhere.
W = ((1.5, 0.4), (3.0, 0.9, 1.0))


def loss_of(row: OnlineRow, logprob_N: Tensor, batch: Batch, parameters: Mapping[str, float]) -> LossOutput:
    return policy_loss(row, row.resolve(parameters), TokenLogprobs(logprob_N), batch, batch.count)


def by_hand(row: OnlineRow, poison: float | None = None, **parameters: float) -> tuple[float, list[float], LossOutput]:
    """(loss, gradient of each token's log-prob, all of it) of the two responses."""
    responses = [
        {
            "advantages": [advantage] * len(ratios),
            "old_logprobs": [-1.0] * len(ratios),
            "sampler_logprobs": [-1.0 - math.log(ratio) for ratio in ratios],
        }
        for advantage, ratios in zip((1.0, -0.5), W, strict=True)
    ]
    leaf = torch.full((5,), -1.0, dtype=torch.float64, requires_grad=True)
    out = loss_of(row, leaf, collate([group(responses, poison=poison)]), parameters)
    return out.loss.item(), torch.autograd.grad(out.loss, leaf)[0].tolist(), out


# What each token's gain of A = 1, 1, -0.5, -0.5, -0.5 is multiplied by; the loss is their sum over all five tokens,
# those included that are taken out.
FACTORS: list[tuple[dict[str, str], dict[str, float], list[float]]] = [
    ({}, {}, [1, 1, 1, 1, 1]),
    ({"correction": "truncated"}, {}, [1.5, 0.4, 2, 0.9, 1]),
    ({"correction": "truncated"}, {"importance_cap": 1.2}, [1.2, 0.4, 1.2, 0.9, 1]),
    ({"correction": "sequence_truncated"}, {}, [0.6, 0.6, 2, 2, 2]),
    ({"correction": "sequence_truncated"}, {"importance_cap": 10.0}, [0.6, 0.6, 2.7, 2.7, 2.7]),
    ({"token_mask": "ratio"}, {}, [1, 0, 0, 1, 1]),
    ({"token_mask": "ratio"}, {"token_high": 3.1}, [1, 0, 1, 1, 1]),
    ({"correction": "truncated", "token_mask": "ratio"}, {}, [1.5, 0, 0, 0.9, 1]),
    ({"sequence_mask": "geometric"}, {}, [0, 0, 0, 0, 0]),
    ({"sequence_mask": "geometric"}, {"geometric_low": 0.77, "geometric_high": 1.39}, [1, 1, 0, 0, 0]),
    ({"sequence_mask": "geometric"}, {"geometric_low": 0.78, "geometric_high": 1.4}, [0, 0, 1, 1, 1]),
    ({"sequence_mask": "product"}, {}, [1, 1, 0, 0, 0]),
    ({"sequence_mask": "product"}, {"product_low": 0.61, "product_high": 2.71}, [0, 0, 1, 1, 1]),
    ({"outliers": "drop"}, {}, [1, 1, 1, 1, 1]),
    ({"outliers": "drop"}, {"outlier_low": 0.5}, [0, 0, 1, 1, 1]),
    ({"outliers": "drop"}, {"outlier_high": 2.9}, [1, 1, 0, 0, 0]),
    # π = e^-1 = 0.3679, so π - μ = π (1 - 1/w) is 0.1226, -0.5518 and 0.2453, -0.0409, 0.
    ({"token_mask": "total_variation"}, {}, [1, 1, 1, 1, 1]),
    ({"token_mask": "total_variation"}, {"variation_high": 0.12}, [0, 1, 1, 1, 1]),
    ({"token_mask": "total_variation"}, {"variation_low": 0.04}, [1, 1, 1, 0, 1]),
    # The geometric band leaves the first response, whose second token is below the token's band.
    (
        {"token_mask": "ratio", "sequence_mask": "geometric", "correction": "truncated"},
        {"geometric_low": 0.77},
        [1.5, 0, 0, 0, 0],
    ),
    ({"correction": "sequence_truncated", "sequence_mask": "product"}, {}, [0.6, 0.6, 0, 0, 0]),
]


@pytest.mark.parametrize(("choices", "parameters", "factors"), FACTORS)
def test_weights_and_masks_by_hand(choices: dict[str, str], parameters: dict[str, float], factors: list[float]) -> None:
    loss, gradient, _ = by_hand(variant(ONLINE["dapo"], **choices), **parameters)
    gains = [factor * advantage for factor, advantage in zip(factors, (1, 1, -0.5, -0.5, -0.5), strict=True)]
    assert loss == pytest.approx(-sum(gains) / 5, abs=1e-12)
    assert gradient == pytest.approx([-gain / 5 for gain in gains], abs=1e-12)


def test_every_rule_has_a_number_by_hand() -> None:
    seen = {(column, name) for choices, _, _ in FACTORS for column, name in choices.items()}
    rules = {(column, name) for column, named in MASKS.items() for name, rule in named.items() if rule.rejects}
    assert rules | {("correction", name) for name in CORRECTIONS if name != "none"} <= seen


# ---------------------------------------------------------------- every combination

COMBINATIONS = [
    dict(zip(("correction", *MASKS), names, strict=True)) for names in itertools.product(CORRECTIONS, *MASKS.values())
]


@pytest.mark.parametrize("choices", COMBINATIONS)
def test_where_engine_and_trainer_agree_nothing_is_corrected(choices: dict[str, str]) -> None:
    trees, logprobs = random_groups(2, 3, seed=4)
    alike = [_each(tree, lambda b: {"sampler_logprobs": b.columns["old_logprobs"]}) for tree in trees]
    row = variant(ONLINE["grpo"], **choices)
    if choices["token_mask"] == "total_variation":  # it looks at the policy now, which has moved
        row = replace(row, defaults={**row.defaults, "variation_low": 1.0, "variation_high": 1.0})
    plain, expected = of_step("grpo", alike, logprobs)
    out, gradient = of_step(row, alike, logprobs)
    assert torch.equal(out.loss, plain.loss) and torch.equal(gradient, expected)


def _each(tree: TokenTree, columns: Callable[[Branch], Mapping[str, np.ndarray]]) -> TokenTree:
    """The tree with other columns on its branches."""
    changed = [replace(branch, columns={**branch.columns, **columns(branch)}) for branch in tree.branches]
    return replace(tree, branches=tuple(changed))


@pytest.mark.parametrize("poison", [math.nan, 1e9, -1e9])
@pytest.mark.parametrize("choices", COMBINATIONS)
def test_what_stands_at_tokens_that_do_not_train_is_nothing(choices: dict[str, str], poison: float) -> None:
    row = variant(ONLINE["dapo"], **choices)
    loss, gradient, out = by_hand(row)
    poisoned, its_gradient, its_out = by_hand(row, poison=poison)
    assert (loss, gradient) == (poisoned, its_gradient)
    shares = {"supervised_share"}  # of all tokens, and there are more of them
    assert {k: v for k, v in values(out.metrics).items() if k not in shares} == {
        k: v for k, v in values(its_out.metrics).items() if k not in shares
    }


@pytest.mark.parametrize("far", [-1e9, 1e9, -math.inf])
@pytest.mark.parametrize("choices", [one for one in COMBINATIONS if one["token_mask"] == "ratio"])
def test_nothing_is_left_of_a_token_that_is_taken_out(choices: dict[str, str], far: float) -> None:
    """However far the engine's log-prob is away: no infinity, no NaN, and not a trace in the gradient."""
    responses = [{"advantages": [1.0, 1.0], "old_logprobs": [-1.0, -1.0], "sampler_logprobs": [far, -1.0]}]
    leaf = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    row = replace(variant(ONLINE["dapo"], ratio="none", surrogate="reinforce", **choices), correction="none")
    gradient = torch.autograd.grad(run(row, leaf, collate([group(responses)])).loss, leaf)[0]
    whole = choices["sequence_mask"] != "none" or choices["outliers"] == "drop"
    assert gradient.tolist() == [0.0, 0.0 if whole else -0.5]


@pytest.mark.parametrize("choices", COMBINATIONS[1:])
def test_a_sampled_token_without_a_logprob_is_no_masked_one(choices: dict[str, str]) -> None:
    """The step is refused for a loss of NaN; a mask that took it out would hide that the rollout is broken."""
    responses = [{"advantages": [1.0, 1.0], "old_logprobs": [-1.0, -1.0], "sampler_logprobs": [math.nan, -1.0]}]
    leaf = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    out = run(variant(ONLINE["dapo"], **choices), leaf, collate([group(responses)]))
    assert math.isnan(out.loss.item())
    assert len(values(out.metrics)) > 10


@pytest.mark.parametrize("correction", ["truncated", "sequence_truncated"])
def test_a_log_ratio_is_cut_at_20_after_it_was_summed(correction: str) -> None:
    """30 nats at one token and -25 at the other: e^20 and e^-20 each, and e^5 together."""
    responses = [{"advantages": [1.0, 1.0], "old_logprobs": [-1.0, -1.0], "sampler_logprobs": [-31.0, 24.0]}]
    leaf = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    row = variant(ONLINE["dapo"], correction=correction)
    loss = loss_of(row, leaf, collate([group(responses)]), {"importance_cap": 1e12}).loss.item()
    own = (math.exp(20) + math.exp(-20)) / 2 if correction == "truncated" else math.exp(5)
    assert loss == pytest.approx(-own)


# ---------------------------------------------------------------- three policies, or two


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_trainers_weights_at_the_steps_start_are_the_policy_now_at_the_first_update(name: str) -> None:
    row = variant(ONLINE["dapo"], **PUBLISHED[name].choices)
    trees, logprobs = random_groups(2, 3, seed=8)
    now = []
    for tree, own in zip(trees, logprobs, strict=True):
        parts = iter(_parts(tree, own))
        now.append(_each(tree, lambda _, parts=parts: {"old_logprobs": next(parts)[1].numpy()}))
    leaf = torch.cat(logprobs).requires_grad_()
    given, taken = run(row, leaf, collate(now)), run(row, leaf, collate(trees), on_policy=True)
    torch.testing.assert_close(given.loss, taken.loss)
    torch.testing.assert_close(*(torch.autograd.grad(out.loss, leaf)[0] for out in (given, taken)))


def _parts(tree: TokenTree, own: Tensor) -> list[tuple[Branch, Tensor]]:
    return list(zip(tree.branches, own.split([len(branch.ids) for branch in tree.branches]), strict=True))


def test_ratios_from_the_engine_are_those_with_its_logprobs_as_the_old_ones() -> None:
    trees, logprobs = random_groups(2, 3, seed=9)
    swapped = [_each(tree, lambda b: {"old_logprobs": b.columns["sampler_logprobs"]}) for tree in trees]
    out, gradient = of_step(variant(ONLINE["grpo"], proximal="sampler"), trees, logprobs)
    expected, its_gradient = of_step("grpo", swapped, logprobs)
    assert torch.equal(out.loss, expected.loss) and torch.equal(gradient, its_gradient)
    leaf = torch.cat(logprobs)
    first = run(variant(ONLINE["grpo"], proximal="sampler"), leaf, collate(trees), on_policy=True)
    assert torch.equal(first.loss, out.loss)  # nothing is 1 at the first update either
    assert values(out.metrics)["sampler_ratio_mean"] == pytest.approx(values(out.metrics)["ratio_mean"])


def test_columns_that_a_row_needs() -> None:
    logprob_N = torch.zeros(1, dtype=torch.float64)
    batch = collate([group([{"advantages": [1.0], "old_logprobs": [-1.0]}])])
    for name, method in PUBLISHED.items():
        row = variant(ONLINE["dapo"], **method.choices)
        assert row.needs_sampler and row.needs_old == (row.proximal == "trainer"), name
        with pytest.raises(ConfigError, match="no sampler_logprobs"):
            run(row, logprob_N, batch)
    assert not ONLINE["dapo"].masks and variant(ONLINE["dapo"], outliers="drop").masks


def test_a_choice_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="twice for the same weight"):
        variant(ONLINE["dapo"], proximal="sampler", correction="truncated")
    with pytest.raises(ConfigError, match="there are none"):
        variant(ONLINE["rloo"], proximal="sampler")
    with pytest.raises(UnknownKeyError, match="geometric"):
        variant(ONLINE["dapo"], sequence_mask="geometrical")
    with pytest.raises(UnknownKeyError):
        variant(ONLINE["dapo"], token_mask="ratio").resolve({"geometric_low": 0.9})
    # A band without 1 would take out what engine and trainer agree on.
    for key, value in (("token_low", 1.1), ("token_high", 0.9), ("variation_low", -0.1)):
        row = variant(ONLINE["dapo"], token_mask="total_variation" if "variation" in key else "ratio")
        with pytest.raises(ConfigError, match=f"{key} is out of range"):
            row.resolve({key: value})


def test_published_methods_say_where_from_and_have_no_other_parameters() -> None:
    for method in PUBLISHED.values():
        row = variant(ONLINE["grpo"], **method.choices)
        assert method.source and row.resolve(method.parameters).keys() == row.defaults.keys()
    for column in (CORRECTIONS, *MASKS.values()):
        assert all(rule.source for name, rule in column.items() if name not in ("none", "keep"))


# ---------------------------------------------------------------- what a weight is for

VOCABULARY, SEED = 3, 11


def test_the_products_weight_gives_the_policys_own_gradient_and_the_tokens_does_not() -> None:
    """All answers of two tokens, each as likely as the engine makes it. Without its cap the weight of the sequence
    turns the engine's expectation into the policy's; that of a token leaves out what came before and after it."""
    generator = torch.Generator().manual_seed(SEED)
    ours = torch.randn(1 + VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    engine = (ours + 0.8 * torch.randn(ours.shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
    reward = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
    answers = list(itertools.product(range(VOCABULARY), repeat=2))

    def gradient(sampler: Tensor, **choices: str) -> Tensor:
        weights = ours.clone().requires_grad_()
        policy = weights.log_softmax(-1)
        own = torch.cat([torch.stack([policy[0, a], policy[1 + a, b]]) for a, b in answers])
        old = own.detach().split(2)
        responses = []
        for (a, b), logprobs in zip(answers, old, strict=True):
            behaviour = [sampler[0, a].item(), sampler[1 + a, b].item()]
            # The loss is a mean over the answers: each is scaled to count as often as it is sampled.
            share = reward[a, b].item() * math.exp(sum(behaviour)) * len(answers)
            columns = {"advantages": [share] * 2, "old_logprobs": logprobs.tolist(), "sampler_logprobs": behaviour}
            responses.append(columns)
        row = variant(ONLINE["maxrl"], **choices)
        cap = {"importance_cap": 1e6} if "correction" in choices else {}
        out = loss_of(row, own, collate([group(responses)]), cap)
        return torch.autograd.grad(out.loss, weights)[0]

    right = gradient(ours.log_softmax(-1))
    torch.testing.assert_close(gradient(engine, correction="sequence_truncated"), right)
    assert (gradient(engine) - right).norm() > 0.05 * right.norm()
    assert (gradient(engine, correction="truncated") - right).norm() > 0.01 * right.norm()


# ---------------------------------------------------------------- as the peers have it, on padded rows


def padded(trees: list[TokenTree], logprobs: list[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The peers' layout: [B, L] columns, with rubbish in the padding, and the mask [B, L]."""
    rows = [(b, part) for tree, own in zip(trees, logprobs, strict=True) for b, part in _parts(tree, own)]
    longest = max(len(part) for _, part in rows)
    names = ("advantages", "old_logprobs", "sampler_logprobs")
    filled = {name: torch.full((len(rows), longest), 1e4, dtype=torch.float64) for name in (*names, "policy")}
    mask = torch.zeros(len(rows), longest, dtype=torch.float64)
    for place, (branch, part) in enumerate(rows):
        mask[place, : len(part)] = 1
        filled["policy"][place, : len(part)] = part
        for name in names:
            filled[name][place, : len(part)] = torch.from_numpy(branch.columns[name])
    return filled, mask


def clipped_term(ratio: Tensor, advantage: Tensor) -> Tensor:
    return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)


def trl(x: dict[str, Tensor], mask: Tensor, mode: str, cap: float) -> Tensor:
    """TRL's correction in its four modes: the masked log-ratio, of a token or summed; cut at the cap, or 0 beyond."""
    apart = torch.where(mask > 0, x["old_logprobs"] - x["sampler_logprobs"], 0.0)
    weight = (apart.sum(-1, keepdim=True) if mode.startswith("sequence") else apart).exp()
    weight = weight.clamp(max=cap) if mode.endswith("truncate") else weight.masked_fill(weight > cap, 0.0)
    per_token = clipped_term((x["policy"] - x["old_logprobs"]).exp(), x["advantages"]) * weight
    return torch.where(mask > 0, per_token, 0.0).sum() / mask.sum()


@pytest.mark.parametrize(
    ("mode", "choices", "parameters"),
    [
        ("token_truncate", {"correction": "truncated"}, {}),
        ("sequence_truncate", {"correction": "sequence_truncated"}, {}),
        ("token_mask", {"correction": "truncated", "token_mask": "ratio"}, {"token_low": 0.0, "token_high": 1.1}),
        (
            "sequence_mask",
            {"correction": "sequence_truncated", "sequence_mask": "product"},
            {"product_low": 0.0, "product_high": 1.1},
        ),
    ],
)
def test_trl(mode: str, choices: dict[str, str], parameters: dict[str, float]) -> None:
    trees, logprobs = random_groups(3, 4, seed=2)
    row = variant(ONLINE["dapo"], **choices)
    out = loss_of(row, torch.cat(logprobs), collate(trees), {**parameters, "importance_cap": 1.1})
    assert out.loss.item() == pytest.approx(trl(*padded(trees, logprobs), mode, 1.1).item(), abs=1e-12)


def test_verls_geometric_rejection_with_a_veto_and_a_sequence_weight() -> None:
    """geo_rs_seq_tis of verl, with the denominator of all tokens (deviation 2)."""
    trees, logprobs = random_groups(3, 4, seed=6)
    x, mask = padded(trees, logprobs)
    apart = torch.where(mask > 0, (x["old_logprobs"] - x["sampler_logprobs"]).clamp(-20, 20), 0.0)
    mean = (apart.sum(-1) / mask.sum(-1)).exp()
    veto = torch.where(mask > 0, apart, 0.0).exp().min(-1).values < 0.85
    kept = (mean <= 1.04) & (mean >= 1 / 1.04) & ~veto
    weight = apart.sum(-1).exp().clamp(max=2.0) * kept
    terms = torch.where(mask > 0, clipped_term((x["policy"] - x["old_logprobs"]).exp(), x["advantages"]), 0.0)
    expected = (terms * weight[:, None]).sum() / mask.sum()
    assert 0 < kept.sum() < len(kept) and veto.any()
    row = variant(ONLINE["dapo"], **PUBLISHED["geo_rs_seq_tis"].choices)
    band = {"geometric_low": 1 / 1.04, "geometric_high": 1.04, "outlier_low": 0.85}
    assert run(row, torch.cat(logprobs), collate(trees), **band).loss.item() == pytest.approx(
        expected.item(), abs=1e-12
    )


def test_areals_decoupled_objective() -> None:
    """Behaviour, proximal, current: the ratio to the proximal policy is clipped, that of the proximal to the behaviour
    policy weighs, and a token whose weight is beyond the cap is filtered out."""
    trees, logprobs = random_groups(3, 4, seed=3)
    x, mask = padded(trees, logprobs)
    behaviour = (x["old_logprobs"] - x["sampler_logprobs"]).exp()
    per_token = clipped_term((x["policy"] - x["old_logprobs"]).exp(), x["advantages"]) * behaviour
    expected = torch.where((mask > 0) & (behaviour <= 1.1), per_token, 0.0).sum() / mask.sum()
    row = variant(ONLINE["dapo"], **PUBLISHED["decoupled"].choices)
    parameters = {"importance_cap": 1.1, "token_low": 0.0, "token_high": 1.1}
    out = loss_of(row, torch.cat(logprobs), collate(trees), parameters)
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_dppo_of_verl_and_of_prime_rl() -> None:
    """Values and gradients: verl's detached ratio times log π is prime-rl's ratio in the gradient, not in the value."""
    trees, logprobs = random_groups(3, 4, seed=5)
    row = variant(ONLINE["dapo"], **PUBLISHED["dppo"].choices)
    parameters = {**PUBLISHED["dppo"].parameters, "variation_low": 0.1, "variation_high": 0.05}
    leaf = torch.cat(logprobs).requires_grad_()
    out = loss_of(row, leaf, collate(trees), parameters)
    x, mask = padded(trees, [part.detach() for part in logprobs])
    policy = x["policy"].requires_grad_()
    apart = policy.detach().exp() - x["sampler_logprobs"].exp()
    valid = torch.where(x["advantages"] > 0, apart <= 0.05, apart >= -0.1) & (mask > 0)
    assert 0 < (~valid & (mask > 0)).sum() < mask.sum()
    ratio = (policy - x["sampler_logprobs"]).exp()
    verl = torch.where(valid, -x["advantages"] * ratio.detach().clamp(max=20) * policy, 0.0).sum() / mask.sum()
    prime = torch.where(valid, -x["advantages"] * ratio, 0.0).sum() / mask.sum()
    assert out.loss.item() == pytest.approx(verl.item(), abs=1e-12)
    ours = torch.autograd.grad(out.loss, leaf)[0]
    for theirs in (verl, prime):
        torch.testing.assert_close(ours, torch.autograd.grad(theirs, policy)[0][mask > 0])


# ---------------------------------------------------------------- what is measured


def test_metrics_by_hand() -> None:
    choices = {"token_mask": "ratio", "sequence_mask": "product", "outliers": "drop"}
    _, _, out = by_hand(variant(ONLINE["dapo"], **choices), product_high=2.9, product_low=0.61)
    measured = values(out.metrics)
    assert measured["masked_by_token_mask"] == pytest.approx(2 / 5)
    assert measured["masked_by_sequence_mask"] == pytest.approx(2 / 5)
    assert measured["masked_by_outliers"] == 0
    assert measured["masked_share"] == pytest.approx(3 / 5)  # the first response, and one token of the second
    assert measured["masked_responses"] == 0.5
    logs = [math.log(ratio) for response in W for ratio in response]
    assert measured["sampler_kl_k1"] == pytest.approx(-sum(logs) / 5)
    assert measured["sampler_kl"] == pytest.approx(sum(math.exp(x) - 1 - x for x in logs) / 5)
    assert measured["sampler_effective_responses"] == pytest.approx(3.3**2 / (2 * (0.6**2 + 2.7**2)))
    # |log w| in order: 0, 0.105, 0.405, 0.916, 1.099; the 99th percentile of five is the fourth.
    assert measured["sampler_gap_p50"] == pytest.approx(math.log(1.5), rel=0.011)
    assert measured["sampler_gap_p99"] == pytest.approx(-math.log(0.4), rel=0.011)
    assert out.metrics.keys() <= METRICS.keys()


def test_tokens_of_each_staleness_are_measured_apart() -> None:
    """Half of the tokens fresh and alike, half as old as `OLDEST` or older and twice as likely."""
    responses = [
        {
            "advantages": [1.0, 1.0],
            "old_logprobs": [-1.0, -1.0],
            "sampler_logprobs": [-1.0 - gap, -1.0 - gap],
            "staleness": [float(steps)] * 2,
        }
        for steps, gap in ((0, 0.0), (OLDEST + 3, math.log(2)), (OLDEST, 0.0))
    ]
    metrics = run("dapo", torch.full((6,), -1.0, dtype=torch.float64), collate([group(responses)])).metrics
    measured = values(metrics)
    assert measured["sampler_kl_stale_0"] == 0 and measured["sampler_effective_size_stale_0"] == 1
    assert measured[f"sampler_kl_stale_{OLDEST}"] == pytest.approx((1 - math.log(2)) / 2)
    assert measured[f"sampler_effective_size_stale_{OLDEST}"] == pytest.approx(6**2 / (4 * 10))
    assert "sampler_kl_stale_1" not in measured and metrics.keys() <= METRICS.keys()
    assert f"sampler_kl_stale_{OLDEST}" in METRICS and f"sampler_kl_stale_{OLDEST + 1}" not in METRICS


def test_a_micro_batch_without_a_staleness_adds_nothing() -> None:
    """Parts that have old tokens and parts that have none make the same figures as all of it at once."""
    trees, logprobs = random_groups(3, 2, seed=12)
    aged = [
        _each(tree, lambda b, steps=float(place): {"staleness": np.full(len(b.ids), steps)})
        for place, tree in enumerate(trees)
    ]
    row = variant(ONLINE["dapo"], **PUBLISHED["geo_rs"].choices)
    whole = values(of_step(row, aged, logprobs)[0].metrics)
    parts = [run(row, own, collate([tree]), count(aged)).metrics for tree, own in zip(aged, logprobs, strict=True)]
    together = values(merge(parts))
    whole.pop("policy_slope")  # only where a gradient is recorded
    assert {"sampler_kl_stale_1", "sampler_gap_p99", "masked_share"} <= whole.keys()
    assert together == pytest.approx(whole)


def test_a_quantile_is_right_to_a_percent_and_merges_exactly() -> None:
    drawn = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8
    for share in (0.0, 0.1, 0.5, 0.99, 1.0):
        whole = Quantile.of(drawn, share)
        exact = drawn.sort().values[math.floor(share * (len(drawn) - 1))].item()
        assert whole.value == pytest.approx(exact, rel=0.0101, abs=1e-8)
        parts = [Quantile.of(part, share) for part in drawn.split([3, 0, 19_997])]
        merged = parts[0].merge(parts[1]).merge(parts[2])
        assert torch.equal(merged.counts_K, whole.counts_K) and merged.value == whole.value
    assert math.isnan(Quantile.of(drawn[:0], 0.5).value) and Quantile.of(torch.zeros(3), 0.5).value == 0.0
    assert Quantile.of(torch.tensor([math.nan, math.inf, 0.1]), 0.5).value > 900
