"""The rollout benchmark's arithmetic on a tiny model: both sides do the same work. Nothing is timed here."""

from __future__ import annotations

import torch

from benchmarks.rollout import SHORTEST, EndsAt, Result, Scripted, measure, mixed_lengths, ours, theirs
from tests.fixtures import tiny_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
LENGTHS = [[3, 9, 1], [4, 4, 12]]


def test_both_sides_sample_the_wanted_lengths() -> None:
    engine = Scripted(tiny_model())
    assert ours(engine, PROMPTS, LENGTHS, 1) == 33
    assert theirs(engine.model, PROMPTS, LENGTHS, 1) == 33
    assert engine.stats.decoded == 33
    assert engine.stats.steps == 12


def test_the_eos_comes_at_its_place_and_never_before() -> None:
    processor = EndsAt([2, 4], prompt=3, eos=0)
    first = processor(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 5))
    assert first.argmax(dim=-1).tolist() != [0, 0]
    assert torch.isinf(first[:, 0]).all()
    second = processor(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 5))
    assert second[0].tolist() == [0.0, *[float("-inf")] * 4]
    assert torch.isinf(second[1, 0])


def test_lengths_are_mixed_and_repeat() -> None:
    lengths = mixed_lengths(8, 8)
    flat = sorted(length for group in lengths for length in group)
    assert lengths == mixed_lengths(8, 8) != mixed_lengths(8, 8, seed=1)
    assert SHORTEST <= flat[0] < flat[32] // 2
    assert flat[-1] > 2 * flat[32]


def test_medians_are_compared() -> None:
    result = Result("mixed", 1000, ours=(1.0, 2.0, 9.0), theirs=(3.0, 4.0, 5.0))
    assert result.faster == 2.0
    assert str(result) == "| mixed | 1,000 | 250 | 500 | 2.00 | 1.3 |"


def test_rounds_run_in_turns() -> None:
    results = measure(Scripted(tiny_model()), PROMPTS, {"mixed": LENGTHS}, rounds=2)
    assert [(one.lengths, one.tokens, len(one.ours), len(one.theirs)) for one in results] == [("mixed", 33, 2, 2)]
