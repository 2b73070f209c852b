"""T69: a step is counted in the user's rows or pairs, and one printed line does the arithmetic.

Micro-batches are filled by themselves, so no product of batch sizes has to come out: what other tools ask for in
`gradient_accumulation_steps` is explained in rows.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from posttrain.config import DPO, SFT, Correction
from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.training.order import RowOrder


def line(rows: int, noun: str, **options: float) -> str:
    stage = SFT(**options)  # type: ignore[arg-type]
    order = RowOrder.plan(rows, stage.rows_per_step, epochs=stage.epochs, steps=stage.steps, seed=0)
    return order.arithmetic(noun)


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (1000, {"epochs": 3}, "1,000 pairs, 32 a step: 32 steps an epoch (the last of 8), 3 epochs, 96 steps in all"),
        (64, {"rows_per_step": 8}, "64 pairs, 8 a step: 8 steps an epoch, 1 epochs, 8 steps in all"),
        (64, {"rows_per_step": 8, "steps": 12}, "64 pairs, 8 a step: 8 steps an epoch, 1.5 epochs, 12 steps in all"),
    ],
)
def test_the_line_is_in_pairs_and_adds_up(rows: int, options: dict[str, float], expected: str) -> None:
    assert line(rows, "pairs", **options) == expected


def test_every_row_is_trained_on_once_an_epoch() -> None:
    order = RowOrder.plan(1000, 32, epochs=1, steps=None, seed=0)
    taken = [row for step in range(order.steps) for row in order.at(step)]
    assert sorted(taken) == list(range(1000))
    assert len(order.at(order.steps - 1)) == 8


def test_a_fraction_of_an_epoch_that_takes_no_step_is_refused_in_rows() -> None:
    with pytest.raises(ConfigError) as caught:
        RowOrder.plan(10, 32, epochs=0.1, steps=None, seed=0)
    assert "10 rows at rows_per_step: 32" in str(caught.value)


@pytest.mark.parametrize("key", ["gradient_accumulation_steps", "per_device_train_batch_size", "batch_size"])
def test_batch_sizes_of_other_tools_are_explained_in_rows(key: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        DPO(**{key: 8})
    assert "`rows_per_step`" in caught.value.remedy
    assert "rows of a whole step" in caught.value.remedy


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_rows_per_step_is_a_positive_whole_number(wrong: float) -> None:
    with pytest.raises(ConfigError, match="rows_per_step"):
        DPO(rows_per_step=wrong)


def test_answers_that_could_not_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples_per_prompt"):
        Correction(samples_per_prompt=0)
    with pytest.raises(ConfigError, match="the same answer"):
        Correction(samples_per_prompt=8, sampling={"temperature": 0})  # type: ignore[arg-type]
