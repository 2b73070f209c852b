"""Metrics: exact merging, and a description for every name that a loss writes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from posttrain.diagnostics.metrics import METRICS, counts, merge, perplexity, values
from posttrain.diagnostics.online_metrics import ONLINE_METRICS
from posttrain.diagnostics.rollout_metrics import ROLLOUT_METRICS
from posttrain.losses.feedback import FEEDBACK, feedback_loss
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.process import step_loss
from posttrain.losses.reward import OBJECTIVES as REWARD_OBJECTIVES
from posttrain.losses.reward import reward_loss
from posttrain.losses.reward_rule import RewardRule
from posttrain.losses.sft import sft_loss
from posttrain.models.tree.router import router_metrics
from posttrain.outputs import Maximum, Mean, Metric, Routing, Scores, TokenLogprobs, Total
from tests.loss_batches import batch_of, feedback, random_pairs, run


def test_merging_adds_sums_and_counts() -> None:
    parts: list[dict[str, Metric]] = [
        {"loss": Mean(1.0, 2), "tokens": Total(5), "largest": Maximum(1.0)},
        {"loss": Mean(8.0, 1), "tokens": Total(7), "largest": Maximum(-3.0)},
    ]
    assert values(merge(parts)) == {"loss": 3.0, "tokens": 12.0, "largest": 1.0}  # (1 + 8) / 3, no mean of means
    assert counts(merge(parts)) == {"loss": 3.0}


def test_merging_is_associative_and_takes_tensors() -> None:
    parts: list[dict[str, Metric]] = [{"x": Mean(torch.tensor(float(i)), torch.tensor(float(i + 1)))} for i in range(4)]
    left = merge([merge(parts[:3]), parts[3]])
    right = merge([parts[0], merge(parts[1:])])
    assert values(left) == values(right) == {"x": pytest.approx(6 / 10)}


def test_what_was_not_measured_does_not_count() -> None:
    merged = merge([{"a": Mean(1.0, 1)}, {"b": Mean(0.0, 0)}, {"a": Mean(3.0, 1)}])
    assert merged["a"].value == 2.0
    assert math.isnan(merged["b"].value)
    assert merge([]) == {}


def test_merging_leaves_its_inputs_alone() -> None:
    first: dict[str, Metric] = {"a": Total(1)}
    merge([first, {"a": Total(2)}])
    assert first == {"a": Total(1)}


def test_one_name_of_two_kinds_is_refused() -> None:
    with pytest.raises(TypeError, match="'a' is both a Mean and a Total"):
        merge([{"a": Mean(1.0, 1)}, {"a": Total(1)}])


def test_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_every_metric_of_every_objective_is_described() -> None:
    batch, policy_N, reference_N = random_pairs(2)
    written = set()
    for name in PAIRWISE:
        written |= set(run(name, policy_N, reference_N, batch).metrics)
    judged, judged_N = feedback([(-1.0,), (-2.0, -1.0)], [True, False])
    statistics = {"point": torch.zeros(2)}
    kto = feedback_loss(
        FEEDBACK["kto"],
        FEEDBACK["kto"].resolve({}),
        TokenLogprobs(judged_N),
        judged_N,
        judged,
        judged.count,
        statistics,
    )
    written |= set(kto.metrics)
    demonstrations = batch_of([(2,)])
    policy = TokenLogprobs(torch.zeros(2), entropy_N=torch.zeros(2))
    written |= set(sft_loss(policy, demonstrations, demonstrations.count).metrics)
    graded = replace(batch, scores_B=torch.zeros(batch.num_branches))
    rewards = Scores(torch.zeros(batch.num_branches, 1))
    for name, parameters in (("bradley_terry", {"centre": 0.1}), ("regression", {})):
        written |= set(
            reward_loss(
                name, REWARD_OBJECTIVES[name].resolve(parameters), RewardRule(), rewards, graded, graded.count
            ).metrics
        )
    solution = replace(demonstrations, step_labels_N=torch.ones(2))
    steps = Scores(torch.zeros(1, 1), torch.zeros(2, 1), solution.branch_N)
    written |= set(step_loss(RewardRule("steps"), steps, solution, solution.count).metrics)
    written |= set(router_metrics(Routing(torch.ones(2, 4), torch.ones(4), 8.0)))
    assert written <= set(METRICS)
    of_the_loop = {"grad_norm", "learning_rate", "tokens_per_second", "length_generated"}
    elsewhere = {*ONLINE_METRICS, *ROLLOUT_METRICS}
    assert set(METRICS) - elsewhere == written | of_the_loop, "a description that nothing writes is stale"


def test_descriptions_are_complete() -> None:
    for name, info in METRICS.items():
        assert info.title, name
        assert info.description.endswith("."), name
        assert info.better in ("up", "down", "none"), name


def test_the_largest_of_a_nan_is_a_nan_wherever_it_stands() -> None:
    parts = [Maximum(1.0), Maximum(float("nan")), Maximum(3.0)]
    for order in permutations(parts):
        assert math.isnan(merge([{"gap": one} for one in order])["gap"].value)
    assert Maximum(-3.0).merge(Maximum(1.0)).value == 1.0 == Maximum(1.0).merge(Maximum(-3.0)).value
