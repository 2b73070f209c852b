"""Widened or only sharpened: planted policies whose verdict is known, and the tests behind the verdict by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from posttrain.errors import DataError
from posttrain.evaluate.pass_at_k import PassCounts, write_counts
from posttrain.evaluate.pass_at_k_change import ReachVerdict, change, changes_of_run, sign_flip, write_changes


def counts(correct: list[int], samples: int = 16, suite: str = "sums") -> PassCounts:
    names = tuple(f"row {i}" for i in range(len(correct)))
    return PassCounts(suite, samples, names, names, tuple(correct))


HALF = [0] * 20 + [2] * 20
"""A policy that solves half of its prompts now and then: pass@1 6 %, pass@16 50 %."""


def test_widened_where_prompts_come_within_reach() -> None:
    found = change(counts(HALF), counts([3] * 20 + [2] * 20))
    assert found.verdict is ReachVerdict.WIDENED
    first, last = found.points[0], found.points[-1]
    assert first.difference.value == pytest.approx(3 / 16 / 2) and last.difference.value == pytest.approx(0.5)
    assert last.difference.low > 0.3 and last.rose
    said = found.sentence("sft", "grpo")
    assert said.startswith("grpo widened what sft can do: pass@1 rose, 6 to 16 % (+9 points [+")
    assert "pass@16 rose, 50 to 100 % (+50 points [" in said and said.endswith("; 40 prompts.")


def test_sharpened_where_only_the_first_answer_gets_better() -> None:
    found = change(counts(HALF), counts([0] * 20 + [14] * 20))
    assert found.verdict is ReachVerdict.SHARPENED
    assert "grpo only sharpened what sft could do already" in found.sentence("sft", "grpo")
    assert "pass@16 stayed within noise, 50 to 50 % (0 points [0, 0])" in found.sentence("sft", "grpo")
    assert not found.points[-1].rose and not found.points[-1].fell


def test_sharpened_and_narrowed_is_said() -> None:
    found = change(counts(HALF), counts([0] * 20 + [0] * 8 + [16] * 12))
    assert found.verdict is ReachVerdict.SHARPENED and found.points[-1].fell
    said = found.sentence("sft", "grpo")
    assert "pass@16 fell, 50 to 30 % (−20 points [" in said
    assert said.endswith("It narrowed: prompts that were within reach no longer are.")


def test_a_gain_that_is_too_small_to_show_is_not_called_none() -> None:
    found = change(counts(HALF), counts([2] * 3 + [0] * 17 + [14] * 20))
    assert found.verdict is ReachVerdict.SHARPENED
    assert "A gain of up to" in found.sentence("sft", "grpo")


@pytest.mark.parametrize("after", [HALF, [0] * 20 + [1] * 20, [2] * 2 + [0] * 18 + [2] * 20])
def test_neither(after: list[int]) -> None:
    assert change(counts(HALF), counts(after)).verdict is ReachVerdict.NEITHER


@pytest.mark.parametrize("unsolved", [0, 5])
def test_a_base_at_the_ceiling_leaves_nothing_to_tell(unsolved: int) -> None:
    base = [0] * unsolved + [8] * (40 - unsolved)
    found = change(counts(base), counts([16] * 40))
    assert found.verdict is ReachVerdict.CANNOT_TELL and found.points[0].rose
    said = found.sentence("sft", "grpo")
    assert "cannot be told from these prompts" in said and "ask harder prompts" in said
    narrowed = change(counts([0] * unsolved + [8] * (40 - unsolved)), counts([0] * 12 + [16] * 28))
    assert narrowed.verdict is (ReachVerdict.SHARPENED)  # that it lost prompts can be told under any ceiling


def test_one_more_unsolved_prompt_is_enough_to_tell() -> None:
    base = [0] * 6 + [8] * 34
    assert change(counts(base), counts([16] * 40)).verdict is ReachVerdict.WIDENED
    assert change(counts(base), counts([0] * 6 + [16] * 34)).verdict is ReachVerdict.SHARPENED


def test_one_answer_each_says_nothing_of_reach() -> None:
    better = change(counts([0] * 40, 1), counts([1] * 20 + [0] * 20, 1))
    assert better.verdict is ReachVerdict.CANNOT_TELL
    assert change(counts([0] * 40, 1), counts([0] * 40, 1)).verdict is ReachVerdict.NEITHER


def test_four_of_four_is_chance_although_the_bootstrap_says_otherwise() -> None:
    """The bootstrap's interval leaves out 0, for a resample without any of the four is rare (0.9^40 = 1.5 %)."""
    found = change(counts(HALF), counts([2] * 4 + [0] * 16 + [2] * 20))
    assert found.points[-1].difference.low > 0
    assert not found.points[-1].clear and found.points[-1].p == 2 / 16
    assert found.verdict is ReachVerdict.CANNOT_TELL
    said = found.sentence("sft", "grpo")
    assert "pass@16 may have risen, 50 to 60 % (+10 points [" in said
    assert said.endswith("chance makes as large a difference 12 times in 100; ask more prompts.")


def test_the_test_by_signs() -> None:
    assert sign_flip(np.array([1.0, 1.0, 1.0, 1.0, 0.0])) == 2 / 16
    assert sign_flip(np.ones(6)) == 2 / 64
    assert sign_flip(np.zeros(9)) == 1.0
    assert sign_flip(np.array([3.0, -1.0])) == 1.0  # |2| or more: 3-1, 3+1 and their negatives, all four
    assert sign_flip(np.array([1.0, 1.0, 1.0, -1.0])) == 10 / 16  # |2| or more, by hand: 2 with 4, 8 with 2
    assert sign_flip(np.ones(30)) < 0.001
    assert sign_flip(np.array([1.0, -1.0] * 15)) == 1.0


def test_chance_alone_is_rarely_a_verdict() -> None:
    """Two samples of the same policy: widened or sharpened in at most the errors that 95 % allows."""
    rng = np.random.default_rng(3)
    verdicts = []
    for _ in range(60):
        chances = rng.beta(0.3, 1.0, size=40)
        base, again = (counts(rng.binomial(8, chances).tolist(), 8) for _ in range(2))
        verdicts.append(change(base, again).verdict)
    assert verdicts.count(ReachVerdict.WIDENED) / 60 <= 0.07
    assert verdicts.count(ReachVerdict.SHARPENED) / 60 <= 0.07


def test_other_prompts_or_other_numbers_are_not_compared() -> None:
    with pytest.raises(DataError, match="did not answer the same prompts equally often"):
        change(counts([1, 2]), counts([1, 2], samples=8))
    with pytest.raises(DataError, match="cannot be compared"):
        change(counts([1, 2]), counts([1, 2, 3]))


def test_a_run_compares_each_stage_with_the_one_before(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("start", "sft", "reward", "grpo")}
    for name, correct in (("start", [0] * 40), ("sft", HALF), ("grpo", [0] * 20 + [14] * 20)):
        write_counts(folders[name], counts(correct))
    records = changes_of_run(folders, ["sums", "unasked"])
    found = [(record.base, record.trained, record.verdict) for record in records]
    assert found == [("start", "sft", "widened"), ("sft", "grpo", "sharpened"), ("start", "grpo", "widened")]
    write_changes(tmp_path, records)
    assert json.loads((tmp_path / "pass_at_k.json").read_text())["changes"][1]["points"][-1]["k"] == 16
    write_counts(folders["grpo"], counts([1, 2]))  # asked before the suite's file was changed
    assert [record.trained for record in changes_of_run(folders, ["sums"])] == ["sft"]
