"""The sampling distribution against hand-worked numbers, and random streams that do not know their neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.sampling import RandomStream, SamplingDistribution, exponentials

LOGITS = torch.tensor([[0.0, math.log(2), math.log(4), 0.0]])
"""Probabilities 1/8, 2/8, 4/8, 1/8."""


def probabilities(**fields: object) -> list[float]:
    sampling = SamplingDistribution(**fields)  # type: ignore[arg-type]
    return sampling.log_probs(LOGITS).exp()[0].tolist()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1 / 8, 2 / 8, 4 / 8, 1 / 8]),
        ({"temperature": 0.5}, [1 / 22, 4 / 22, 16 / 22, 1 / 22]),
        ({"temperature": 0.0}, [1 / 8, 2 / 8, 4 / 8, 1 / 8]),
        ({"top_k": 2}, [0, 1 / 3, 2 / 3, 0]),
        ({"top_k": 3}, [1 / 8, 2 / 8, 4 / 8, 1 / 8]),  # the third and the fourth are equally likely
        ({"top_k": 99}, [1 / 8, 2 / 8, 4 / 8, 1 / 8]),
        ({"top_p": 0.7}, [0, 1 / 3, 2 / 3, 0]),  # 4/8 is not enough, 4/8 + 2/8 is
        ({"top_p": 1e-9}, [0, 0, 1, 0]),
        ({"min_p": 0.3}, [0, 1 / 3, 2 / 3, 0]),  # at least 0.3 x 4/8
        ({"top_k": 2, "top_p": 0.6}, [0, 0, 1, 0]),  # of what top-k left, 2/3 is enough
        ({"temperature": 0.5, "top_p": 0.7}, [0, 0, 1, 0]),  # 16/22 is enough: temperature comes first
    ],
)
def test_the_distribution_has_the_hand_worked_probabilities(fields: dict, expected: list[float]) -> None:
    assert probabilities(**fields) == pytest.approx(expected, abs=1e-6)


def test_penalties_have_the_hand_worked_logits() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    sampling = SamplingDistribution(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    found = sampling.log_probs(logits, prompts=[[0]], answers=[[1, 1, 3]])
    # Seen anywhere: 2 / 2, -2 x 2, 0.5 / 2. In the answer: 1 twice (-0.25 - 2 x 0.5), 3 once (-0.25 - 0.5).
    expected = torch.log_softmax(torch.tensor([[1.0, -5.25, 1.0, -0.5]]), dim=-1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(logits, torch.tensor([[2.0, -2.0, 1.0, 0.5]]))


def test_penalties_without_the_tokens_so_far_are_refused() -> None:
    with pytest.raises(ValueError, match="prompts and answers"):
        SamplingDistribution(repetition_penalty=1.1).log_probs(LOGITS)


def test_only_temperature_alone_is_what_a_trainer_computes() -> None:
    assert SamplingDistribution(temperature=0.6).is_plain
    changed = ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"temperature": 0.0})
    assert not any(SamplingDistribution(**fields).is_plain for fields in changed)  # type: ignore[arg-type]


def test_draws_have_the_distributions_frequencies_and_its_log_probs() -> None:
    draws = 3_000
    sampling = SamplingDistribution(temperature=0.8, top_k=3)
    logits = torch.tensor([[0.3, -1.0, 2.0, 1.1, -3.0, 0.0]])
    wanted = sampling.log_probs(logits)[0]
    streams = [RandomStream(0, [1], completion) for completion in range(draws)]
    ids, logprobs = sampling.draw(logits.expand(draws, -1), streams)
    counts = torch.bincount(ids, minlength=6).double()
    expected = wanted.exp().double() * draws
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi_squared = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert chi_squared < 13.8  # 2 degrees of freedom, p = 0.001
    assert torch.allclose(logprobs, wanted[ids], atol=1e-6)


def test_unlikely_tokens_are_not_drawn_more_often_than_they_are_likely() -> None:
    """A generator that gives 0 once in five million numbers would let one of 50,000 hopeless tokens win."""
    stream, row = RandomStream(0, [1]), torch.empty(500_000)
    below, smallest = 0, 1.0
    for _ in range(24):
        stream.fill(row)
        below += int((row < 1e-4).sum())
        smallest = min(smallest, float(row.min()))
    assert 1_000 < below < 1_400  # 12 million x 1e-4
    assert smallest > 1e-10  # about 1e-7 is expected; a number that was 0 shows as the floor, 1e-30


def test_greedy_takes_the_likeliest_and_needs_no_randomness() -> None:
    ids, logprobs = SamplingDistribution(temperature=0).draw(LOGITS, [RandomStream(0, [1])])
    assert ids.tolist() == [2]
    assert logprobs.tolist() == pytest.approx([math.log(0.5)])


def test_a_row_draws_the_same_with_any_neighbours() -> None:
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    together, _ = SamplingDistribution().draw(logits, [RandomStream(7, [5], k) for k in range(3)])
    alone, _ = SamplingDistribution().draw(logits[2:], [RandomStream(7, [5], 2)])
    assert together[2] == alone[0]


@pytest.mark.parametrize("other", [(1, [5, 6], 0, 0), (0, [5], 0, 0), (0, [5, 6], 1, 0), (0, [5, 6], 0, 1)])
def test_seed_prompt_completion_and_occurrence_all_tell_streams_apart(other: tuple) -> None:
    like = torch.empty(1, 50)
    first = exponentials([RandomStream(0, [5, 6], 0, 0)], like)
    assert torch.equal(first, exponentials([RandomStream(0, [5, 6])], like))
    assert not torch.equal(first, exponentials([RandomStream(*other)], like))


def test_drawing_leaves_the_global_generators_alone() -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    SamplingDistribution().draw(LOGITS, [RandomStream(0, [1])])
    assert torch.equal(torch_before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -1.0),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        SamplingDistribution(**{field: value})  # type: ignore[arg-type]
