"""Two models on the same items: means, sums, parts of one file, and what cannot be paired."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posttrain.diagnostics.paired import paired_change, scores_by_prompt
from posttrain.intervals import (
    Difference,
    deviation_of_change,
    smallest_change,
    smallest_of_interval,
    spread,
)
from posttrain.runs.records.evaluation import AnswerLine, Figure


def line(prompt: str, score: float | None = None, **parts: tuple[float, ...]) -> AnswerLine:
    return AnswerLine(prompt, "", None, score, 1, "stop_token", by_metric=parts or None)


def test_a_mean_by_the_lines_one_score() -> None:
    before = [line(f"{i}?", float(i < 2)) for i in range(10)]
    after = [line(f"{i}?", float(i < 9)) for i in reversed(range(10))]
    found = paired_change("accuracy", before, after, Figure(0.2), Figure(0.9))
    assert found is not None
    assert found.difference.value == pytest.approx(0.7) and found.difference.n == 10
    assert found.p == 2 / 2**7  # seven prompts changed, all of them for the better
    moved = [1.0] * 7 + [0.0] * 3
    assert found.smallest == pytest.approx(2.8015852 * np.std(moved, ddof=1) / math.sqrt(10))
    assert found.clear


def test_neither_test_alone_makes_a_change() -> None:
    """Four of forty prompts: the bootstrap's interval leaves out 0, and chance does as much once in eight times."""
    before = [line(f"{i}?", 0.0) for i in range(40)]
    after = [line(f"{i}?", float(i < 4)) for i in range(40)]
    found = paired_change("accuracy", before, after, Figure(0.0), Figure(0.1))
    assert found is not None
    assert found.difference.clear and found.p == 2 / 16 and not found.clear


def test_several_figures_of_one_file() -> None:
    """Each line adds to its own figures: texts to a perplexity of sums, prompts to a share."""
    before = [line("a", text_perplexity=(4.0, 2.0)), line("b", text_perplexity=(2.0, 4.0)), line("q", right=(0.0,))]
    after = [line("q", right=(1.0,)), line("b", text_perplexity=(4.0, 4.0)), line("a", text_perplexity=(4.0, 2.0))]
    first, last = Figure(math.exp(1.0)), Figure(math.exp(8 / 6))
    texts = paired_change("text_perplexity", before, after, first, last)
    assert texts is not None
    assert texts.difference.value == pytest.approx(math.exp(8 / 6) - math.exp(1.0)) and texts.difference.n == 2
    share = paired_change("right", before, after, Figure(0.0), Figure(1.0))
    assert share is not None and share.difference.value == 1.0 and share.difference.n == 1


def test_several_answers_to_a_prompt_are_one_observation() -> None:
    before = [line("a", bleu=(1.0,) * 10), line("a", bleu=(2.0,) * 10), line("b", bleu=(3.0,) * 10)]
    figure = Figure(100.0)  # every n-gram is matched
    found = paired_change("bleu", before, before, figure, figure)
    assert found is not None and found.difference.n == 2 and found.difference.value == 0 and found.p == 1.0


@pytest.mark.parametrize(
    ("after", "end"),
    [
        ([line("a", 1.0)], 1.0),  # fewer prompts
        ([line("a", 1.0), line("c", 0.0)], 0.5),  # another prompt
        ([line("a", 1.0), line("b", None)], 1.0),  # an answer without a score
        ([line("a", 1.0), line("b", 0.0)], 0.9),  # a figure that is not the mean of these scores
    ],
)
def test_what_cannot_be_paired(after: list[AnswerLine], end: float) -> None:
    before = [line("a", 0.0), line("b", 1.0)]
    assert paired_change("accuracy", before, after, Figure(0.5), Figure(end)) is None
    sums = [line(one.prompt, text_perplexity=(one.score or 0.0, 1.0)) for one in after]
    start = [line(one.prompt, text_perplexity=(one.score or 0.0, 1.0)) for one in before]
    last = end if end == 0.9 else math.exp(sum(one.score or 0.0 for one in after) / len(after))
    if after[-1].score is not None:
        assert paired_change("text_perplexity", start, sums, Figure(math.exp(0.5)), Figure(last)) is None


def test_the_scores_of_a_line_do_not_stand_in_for_a_figure_that_it_keeps() -> None:
    lines = [line("a", 1.0, f1=(0.5,), exact_match=(0.0,)), line("b", 1.0, f1=(0.7,), exact_match=(1.0,))]
    assert scores_by_prompt(lines, Figure(0.6), "f1") == {"a": 0.5, "b": 0.7}
    assert scores_by_prompt(lines, Figure(0.5), "exact_match") == {"a": 0.0, "b": 1.0}


def test_the_smallest_change() -> None:
    # (1.959964 + 0.841621) * sqrt(2 * 1/4 * 1/2) / sqrt(64)
    assert smallest_change(deviation_of_change(), 64) == pytest.approx(2.801585 * 0.5 / 8, rel=1e-6)
    assert deviation_of_change(0.5, 0.0) == pytest.approx(math.sqrt(0.5))
    assert deviation_of_change(1.0) == 0
    assert smallest_of_interval(Difference(0.3, 0.3 - 1.959964, 0.3 + 1.959964, 9)) == pytest.approx(2.801585, rel=1e-6)
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2)) and spread([1.0]) == 0.0


def test_the_smallest_change_is_found_four_times_in_five() -> None:
    """Its promise, by simulation: two models' scores with the variance of shares at 40 %, correlated by one half."""
    n, draws, base = 100, 4_000, 0.4
    change = smallest_change(deviation_of_change(base), n)
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(draws, n)), rng.normal(size=(2, draws, n))
    scores = math.sqrt(base * (1 - base)) * (math.sqrt(0.5) * common + math.sqrt(0.5) * own)
    moved = scores[1] + change - scores[0]
    z = moved.mean(axis=1) / (moved.std(axis=1, ddof=1) / math.sqrt(n))
    assert float((np.abs(z) > 1.959964).mean()) == pytest.approx(0.8, abs=0.03)
