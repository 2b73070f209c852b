"""Objectives whose trees have to know of each other: the step's numbers and gradient for every split, and resuming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.data.mismatch import mismatched
from posttrain.data.trees import collate
from posttrain.errors import ConfigError
from posttrain.losses.reduce import branch_sums
from posttrain.models.reference import CachedReference, LiveReference
from posttrain.models.tree.logprobs import Policy
from posttrain.training.objectives import Algorithm, algorithm, mix
from posttrain.training.order import RowOrder, stream
from posttrain.training.step import (
    MismatchedTrees,
    accumulate,
    branch_values,
    measure,
    mismatched_of_run,
    mismatched_trees,
    require_two_rows,
    slices,
)
from posttrain.types import Batch, TokenTree
from tests.fixtures import random_trees, tiny_model

VOCAB = 97
KTO = algorithm("kto")


def feedback_trees(count: int = 8, seed: int = 2) -> list[TokenTree]:
    return [
        replace(tree, label=i % 3 > 0) for i, tree in enumerate(random_trees(count, vocab=VOCAB, branches=1, seed=seed))
    ]


def moved_policy(scale: float = 0.05) -> tuple[Policy, LiveReference]:
    """A policy that has left its start, and its reference."""
    policy = Policy(tiny_model("llama", vocab=VOCAB))
    reference = LiveReference(policy)
    with torch.no_grad():
        for index, parameter in enumerate(policy.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(scale * noise)
    return policy, reference


def gradient(objective: Algorithm, trees: Sequence[TokenTree], budget: int) -> tuple[dict[str, float], torch.Tensor]:
    policy, reference = moved_policy()
    measured = accumulate(policy, reference, objective, trees, budget, step=3, seed=1)
    values = {name: metric.value for name, metric in measured.metrics.items()}
    return values, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ["kto", "bco", "bco_pair", "aot", "aot_unpaired", "mix"])
def test_every_split_gives_the_same_step(name: str) -> None:
    objective = mix([("aot", 0.5, {"beta": 1.0}), ("bco_pair", 0.5, {})]) if name == "mix" else algorithm(name)
    pairs = random_trees(8, vocab=VOCAB, branches=2, seed=4)
    trees = feedback_trees() if objective.unit == "responses" else pairs
    values, whole = gradient(objective, trees, 10_000)
    for budget in (1, 60, 100):
        again, split = gradient(objective, trees, budget)
        assert again["loss"] == pytest.approx(values["loss"], rel=1e-5)
        assert again.get("reference_point", 0.0) == pytest.approx(values.get("reference_point", 0.0), abs=1e-6)
        assert float((split - whole).norm() / whole.norm()) < 1e-5


def test_the_reference_point_is_the_mean_over_mismatched_completions() -> None:
    policy, reference = moved_policy()
    trees = feedback_trees(6)
    seed = next(s for s in range(50) if _mean_log_ratio(policy, reference, trees, s) > 0.1)
    expected = _mean_log_ratio(policy, reference, trees, seed)
    measured = accumulate(policy, reference, KTO, trees, 40, step=5, seed=seed)
    assert measured.metrics["reference_point"].value == pytest.approx(0.1 * expected, rel=1e-5)


def _mean_log_ratio(policy: Policy, reference: LiveReference, trees: list[TokenTree], seed: int) -> float:
    batch = collate(mismatched(trees, stream(seed, "mismatch", 0, 5)))
    with torch.no_grad():
        ratios = branch_sums(policy(batch).logprobs_N - reference.logprobs(batch), batch)
    return float(ratios.mean())


def test_nothing_of_the_mismatched_pass_reaches_the_gradient() -> None:
    """A point that is given as a constant gives the same gradient as the step that measured it."""
    policy, reference = moved_policy()
    trees = feedback_trees(6)
    measured = accumulate(policy, reference, KTO, trees, 10_000, step=5, seed=0)
    point = measured.metrics["reference_point"].value / 0.1
    batch = collate(trees)
    own = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    policy.zero_grad()
    statistics = {"point": torch.full((6,), point)}
    KTO.loss(policy(batch), reference.logprobs(batch), batch, batch.count, statistics=statistics).loss.backward()
    for one, other in zip(own, (p.grad for p in policy.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other)


def test_other_steps_and_seeds_meet_other_completions() -> None:
    trees = feedback_trees(8)
    drawn = {
        tuple(tree.key for tree in mismatched_trees(trees, seed, (kind, number)))
        for seed in (0, 1)
        for kind in (0, 1)
        for number in (0, 1)
    }
    assert len(drawn) == 8
    assert [t.key for t in mismatched_trees(trees, 0, (0, 1))] == [t.key for t in mismatched_trees(trees, 0, (0, 1))]


def test_measuring_twice_gives_the_same_and_draws_nothing_from_training() -> None:
    policy, reference = moved_policy()
    trees = feedback_trees(8)
    one, two = (measure(policy, reference, KTO, trees, 50, first=0, seed=3) for _ in range(2))
    assert one.metrics["loss"].value == two.metrics["loss"].value


def test_one_row_is_refused_in_a_step_and_shown_in_a_sample() -> None:
    policy, reference = moved_policy()
    trees = feedback_trees(1)
    with pytest.raises(ConfigError, match="one row"):
        accumulate(policy, reference, KTO, trees, 100, step=0)
    assert len(branch_values(policy, reference, KTO, trees[0])["logprob"]) == 1


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("rows", "per_step", "remedy"), [(9, 4, "rows_per_step: 5"), (5, 1, "rows_per_step: 3"), (1, 8, "give more rows")]
)
def test_a_plan_with_a_step_of_one_row_is_refused(rows: int, per_step: int, remedy: str) -> None:
    order = RowOrder.plan(rows, per_step, epochs=1, steps=None, seed=0)
    with pytest.raises(ConfigError) as caught:
        require_two_rows(KTO, order, 0)
    assert remedy in str(caught.value)
    require_two_rows(algorithm("bco"), order, 1)  # has no such need


def test_plans_that_will_do() -> None:
    require_two_rows(KTO, RowOrder.plan(10, 4, epochs=3, steps=None, seed=0), 4)
    require_two_rows(KTO, RowOrder.plan(9, 4, epochs=None, steps=2, seed=0), 0)  # never reaches the last step
    with pytest.raises(ConfigError, match="held-out"):
        require_two_rows(KTO, RowOrder.plan(10, 4, epochs=1, steps=None, seed=0), 1)


def test_a_last_slice_of_one_row_joins_the_one_before() -> None:
    assert slices(9, 4, KTO) == [(0, 4), (4, 9)]
    assert slices(9, 4, algorithm("dpo")) == [(0, 4), (4, 8), (8, 9)]
    assert slices(8, 4, KTO) == [(0, 4), (4, 8)] and slices(0, 4, KTO) == []


class _Recorder:
    """A policy's reference that remembers which trees it was asked for."""

    def __init__(self, inner: LiveReference):
        self.inner, self.keys = inner, set[str]()

    def logprobs(self, batch: Batch) -> torch.Tensor:
        self.keys |= set(batch.keys)
        return self.inner.logprobs(batch)


def test_the_mismatched_trees_of_a_run_are_all_that_it_will_ask_for() -> None:
    policy, live = moved_policy()
    rows, held_out = feedback_trees(10), feedback_trees(5, seed=7)
    order = RowOrder.plan(len(rows), 4, epochs=2, steps=None, seed=3)
    known = mismatched_of_run(KTO, order, rows, held_out, seed=3)
    assert [len(part) for part in known] == [20, 5]
    asked = _Recorder(live)
    for step in range(order.steps):
        accumulate(policy, asked, KTO, [rows[i] for i in order.at(step)], 60, step=step, seed=3)
    for first, end in slices(len(held_out), 4, KTO):
        measure(policy, asked, KTO, held_out[first:end], 60, first=first, seed=3)
    expected = {tree.key for part in known for tree in part} | {tree.key for tree in [*rows, *held_out]}
    assert asked.keys == expected
    assert mismatched_of_run(algorithm("bco"), order, rows, held_out, seed=3) == []
    for outside in (20, -1):  # a negative index would be another step's tree, and not the last one
        with pytest.raises(IndexError):
            known[0][outside]


def test_a_cached_reference_gives_the_live_ones_step(tmp_path: Path) -> None:
    policy, live = moved_policy(0.0)
    rows = feedback_trees(8)
    order = RowOrder.plan(8, 4, epochs=1, steps=None, seed=0)
    made: list[MismatchedTrees] = mismatched_of_run(KTO, order, rows, [], seed=0)
    cached = CachedReference.build(policy, [*rows, *made[0]], tmp_path, tokens_per_microbatch=60)
    with torch.no_grad():
        for index, parameter in enumerate(policy.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    trees = [rows[i] for i in order.at(1)]
    losses = [accumulate(policy, r, KTO, trees, 60, step=1, seed=0).metrics["loss"].value for r in (cached, live)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_labels_and_scores_reach_the_batch() -> None:
    trees = feedback_trees(3)
    assert collate(trees).label_P.tolist() == [False, True, True]
    unlabelled = [replace(tree, label=None) for tree in trees]
    assert collate([trees[0], *unlabelled]).label_P is None
    scored = [replace(tree, scores=(float(i),)) for i, tree in enumerate(trees)]
    assert collate(scored).scores_B.tolist() == [0.0, 1.0, 2.0]
    mixed = collate([scored[0], trees[1]]).scores_B
    assert mixed[0] == 0.0 and bool(np.isnan(mixed[1].item())) and collate(trees).scores_B is None
    assert [tree.roles for tree in trees[:2]] == [("bad",), ("good",)]
