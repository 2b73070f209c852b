"""Every row of every table as one step of 1, 2 and 4 processes, in 1 and several micro-batches: the same numbers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from posttrain.losses.feedback import FEEDBACK
from posttrain.losses.online import ONLINE
from posttrain.losses.pairwise import PAIRWISE
from tests.rank_steps import NAMES, RankedStep, StepFigures, steps
from tests.ranks import ranks

WHOLE, SPLIT = 100_000, 48
"""Tokens of a micro-batch: all of a rank's share at once, and at least three of them at 4 ranks."""
FEW = ("dpo", "kto", "aot", "sft+moe", "grpo", "ppo+shared", "gkd", "reward bradley_terry")


@cache
def alone(dtype: str) -> dict[str, StepFigures]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return steps(RankedStep(dtype, WHOLE))
    finally:
        torch.set_num_threads(threads)


@cache
def shared(size: int, asked: RankedStep, names: tuple[str, ...] = NAMES) -> list[dict[str, StepFigures]]:
    return ranks(size).run(steps, asked, names)


def test_every_table_is_here() -> None:
    assert {*PAIRWISE, *FEEDBACK, *ONLINE} <= set(NAMES)


@pytest.mark.parametrize(
    "size, tokens",
    [
        pytest.param(size, tokens, marks=() if size == 2 and tokens == SPLIT else pytest.mark.long)
        for size in (1, 2, 4)
        for tokens in (WHOLE, SPLIT)
    ],
)
def test_a_step_is_the_same_for_every_number_of_processes(size: int, tokens: int) -> None:
    """All rows in one call of the processes: a test for each would be split over workers, which compute all of them."""
    found, wrong = shared(size, RankedStep("float64", tokens)), {}
    for name in NAMES:
        try:
            alike(name, found, alone("float64")[name])
        except AssertionError as failed:
            wrong[name] = str(failed)[:400]
    assert not wrong


def alike(name: str, found: list[dict[str, StepFigures]], one: StepFigures) -> None:
    for of_rank in found:
        same(of_rank[name], one, relative=1e-10, gradient=1e-10)
    first = found[0][name]
    for of_rank in found[1:]:  # what is decided from them is decided alike: to the last bit
        assert repr(of_rank[name].values) == repr(first.values)
        for own, other in zip(of_rank[name].gradient.values(), first.gradient.values(), strict=True):
            assert (own is None and other is None) or np.array_equal(own, other)


def test_in_fp32_to_its_rounding() -> None:
    one, found = alone("float32"), shared(4, RankedStep("float32", SPLIT), FEW)
    for name in FEW:
        for of_rank in found:
            same(of_rank[name], one[name], relative=1e-4, gradient=1e-5)


def same(found: StepFigures, one: StepFigures, *, relative: float, gradient: float) -> None:
    assert found.values == pytest.approx(one.values, rel=relative, abs=relative, nan_ok=True)
    assert found.counts == pytest.approx(one.counts)
    assert found.held_out == pytest.approx(one.held_out, rel=relative, abs=relative, nan_ok=True)
    assert set(found.per_tree) == set(one.per_tree)
    for figure, by_row in one.per_tree.items():
        assert found.per_tree[figure] == pytest.approx(by_row, rel=relative, abs=relative)
    assert set(found.gradient) == set(one.gradient)
    assert apart(found, one) < gradient


def apart(found: StepFigures, one: StepFigures) -> float:
    """The norm of the difference of the gradients, over that of the one process's."""
    squares = size = 0.0
    for key, wanted in one.gradient.items():
        own = found.gradient[key]
        assert (own is None) == (wanted is None), key
        if own is not None and wanted is not None:
            squares += float(np.square(own.astype(np.float64) - wanted).sum())
            size += float(np.square(wanted.astype(np.float64)).sum())
    assert size > 0
    return float((squares / size) ** 0.5)
