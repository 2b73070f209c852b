"""Verdicts on runs that ended well and failed whoever started them: planted cases, and a healthy run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from posttrain.intervals import prompts_to_tell, prompts_within, wilson
from posttrain.report.evaluation import final_table
from posttrain.report.purpose import circle_of, falling_at_end
from posttrain.report.verdict import RunVerdict, verdict
from posttrain.runs.read import Curve, read_run
from posttrain.runs.records.evaluation import AnswerLine
from tests.fake_run import Plan, change_json, metric_line, write_fake_run, write_json, write_lines

HEALTHY = Plan(steps=60, pairs=32, prompts=48, alarms=False, warn=False, dropped=False)
CIRCLE = "It was the team of the team of the team of the team of the team of the te"


def judged(folder: Path) -> RunVerdict:
    run = read_run(folder)
    return verdict(run, final_table(run))


def said(found: RunVerdict) -> list[str]:
    """Everything that asks for a look, narrow blanks as plain ones."""
    return [
        f"{one.text} {one.detail}".replace("\u202f", " ")
        for one in (*found.found, *found.actions)
        if one.kind in ("warn", "bad")
    ]


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    return write_fake_run(tmp_path / "run", HEALTHY)


def test_a_healthy_run_falls_short_of_nothing(healthy: Path) -> None:
    found = judged(healthy)
    assert (found.grade, said(found)) == ("clean", [])


# ---------------------------------------------------------------- goals


def with_goal(folder: Path, goal: float, wanted: str = "higher is better") -> Path:
    meaning = {"title": "share that matches", "unit": "share", "wanted": wanted, "primary": True, "goal": goal}
    write_json(folder / "dpo" / "evaluations" / "metrics.json", {"identity": {"match": meaning}})
    return folder


def test_a_goal_that_is_clearly_missed_needs_attention(healthy: Path) -> None:
    share = {"value": 0.4, "low": 0.27, "high": 0.54, "n": 48}
    change_json(healthy / "dpo" / "evaluation.json", identity={"match": share})
    found = judged(with_goal(healthy, 0.8))
    assert found.grade == "needs attention" and "the goal is missed" in found.headline
    assert "identity: the goal of at least 80.0 % is missed with 40.0 %. 95 % interval 27.0 to 54.0 %" in said(found)
    assert any(text.startswith("Read the answers that fail") for text in said(found))


def test_a_goal_within_the_interval_is_a_matter_of_chance(healthy: Path) -> None:
    share = {"value": 0.75, "low": 0.61, "high": 0.85, "n": 48}
    change_json(healthy / "dpo" / "evaluation.json", identity={"match": share})
    found = judged(with_goal(healthy, 0.8))
    assert found.grade == "look closer" and any("chance may have decided" in text for text in said(found))


def test_a_goal_that_is_reached_is_good_news(healthy: Path) -> None:
    found = judged(with_goal(healthy, 0.8))
    assert found.grade == "clean" and any(
        "the goal of at least 80.0\u202f% is reached" in one.text for one in found.found
    )


def test_a_goal_of_something_unwanted_is_a_ceiling(healthy: Path) -> None:
    found = judged(with_goal(healthy, 0.1, "lower is better"))
    assert any("the goal of at most 10.0 % is missed" in text for text in said(found))


# ---------------------------------------------------------------- prompts


def test_five_prompts_are_too_few_to_tell_anything(healthy: Path) -> None:
    low, high = wilson(2, 5)
    share = {"value": 0.4, "low": low, "high": high, "n": 5}
    change_json(healthy / "dpo" / "evaluation.json", identity={"match": share})
    found = judged(healthy)
    assert found.grade != "clean"
    assert any("identity: 5 prompts are too few: 40.0 % may be 11.8 to 76.9 % of all." in text for text in said(found))
    assert any("Ask 93 prompts for an interval of 10 points to each side." in text for text in said(found))


def test_a_change_that_chance_may_explain_says_how_many_prompts_would_show_it(healthy: Path) -> None:
    for place, right in (("start", 20), ("dpo", 25)):
        low, high = wilson(right, 48)
        share = {"value": right / 48, "low": low, "high": high, "n": 48}
        change_json(healthy / place / "evaluation.json", identity={"match": share})
        (healthy / place / "evaluations" / "identity.jsonl").unlink()
    found = judged(healthy)
    assert any("48 prompts are too few to tell +10.4 points from chance." in text for text in said(found))
    assert any("Ask about 170 prompts" in text for text in said(found))


def test_the_numbers_of_prompts_are_those_of_the_intervals() -> None:
    needed = prompts_within(0.5, 0.1)
    assert needed == 93
    for prompts, wide in ((needed, False), (needed - 1, True)):
        low, high = wilson(prompts / 2, prompts)
        assert ((high - low) / 2 > 0.1) is wide
    # An interval four times as wide as the change takes sixteen times the prompts.
    assert prompts_to_tell(0.05, 0.2, 30) == 480 and prompts_to_tell(-0.1, 0.05, 4) == 6
    assert prompts_to_tell(0.0, 0.2, 30) is None


# ---------------------------------------------------------------- held-out rows


def few_held_out(folder: Path, rows: int, kept: int) -> Path:
    about = json.loads((folder / "sft" / "stage.json").read_text(encoding="utf-8"))
    change_json(folder / "sft" / "stage.json", data=about["data"] | {"held_out_rows": rows, "kept": kept})
    return folder


def test_few_held_out_rows_ask_for_more_where_no_suite_measures(healthy: Path) -> None:
    for place in ("start", "sft", "dpo"):
        (healthy / place / "evaluation.json").unlink()
    found = judged(few_held_out(healthy, 2, 56))
    assert any("sft: 2 held-out rows: the held-out figures are those of single rows." in text for text in said(found))
    # 20 of 56 rows are more than a quarter of them: a suite is the better place to measure.
    assert any("Write a suite of 20 prompts or more" in text for text in said(found))
    assert any("`held_out: 0.1`" in text for text in said(judged(few_held_out(healthy, 2, 200))))


def test_few_held_out_rows_are_only_mentioned_beside_a_suite(healthy: Path) -> None:
    found = judged(few_held_out(healthy, 2, 56))
    assert found.grade == "clean" and any("2 held-out rows" in one.text for one in found.found)


# ---------------------------------------------------------------- the loss


def losses(folder: Path, values: list[float], held_out: Sequence[float] = ()) -> Path:
    lines = [metric_line(step, 0.1 * step, {"loss": value}) for step, value in enumerate(values, 1)]
    lines += [metric_line(10 * step, step, {"loss": value}, "held_out") for step, value in enumerate(held_out)]
    write_lines(folder / "sft" / "metrics.jsonl", lines)
    return folder


def curve(values: Sequence[float | None]) -> Curve:
    return Curve([float(step) for step in range(len(values))], list(values))


def test_a_loss_that_still_falls_asks_for_more_steps(healthy: Path) -> None:
    falling = [3.5 - 1.5 * step / 20 + 0.02 * (-1) ** step for step in range(21)]
    found = judged(losses(healthy, falling))
    assert found.grade == "look closer"
    assert any("sft: the training loss was still falling at the end" in text for text in said(found))
    assert any("Train longer: double `epochs`, or raise `learning_rate`." in text for text in said(found))
    # Held-out rows that lose by it say the opposite.
    found = judged(losses(healthy, falling, [3.4, 2.6, 2.7]))
    assert not any("still falling" in text for text in said(found))


def test_noise_and_a_settled_loss_are_no_fall() -> None:
    stream = random.Random(3)
    steps = [float(step) for step in range(90)]
    settled = [1.0 + 2 * math.exp(-6 * step / 90) + stream.gauss(0, 0.1) for step in steps]
    assert falling_at_end(curve(settled)) is None
    # A single spike at the beginning of the last third would turn a fitted line downwards.
    spiked = [1.0 + 2 * math.exp(-step / 10) for step in steps]
    spiked[61] = 30.0
    assert falling_at_end(curve(spiked)) is None
    alarmed = 0
    for seed in range(200):
        stream = random.Random(seed)
        noise = [2.0] * 3 + [1.0 + stream.gauss(0, 0.3) for _ in range(27)]
        alarmed += falling_at_end(curve(noise)) is not None
    assert alarmed <= 4


def test_a_fall_is_measured_as_a_share_of_the_whole() -> None:
    line = [2.0 - step / 89 for step in range(90)]
    # The last 30 of 90 steps of a straight line, over the means of its first and last tenth.
    assert falling_at_end(curve(line)) == pytest.approx(29 / 81, abs=1e-6)
    assert falling_at_end(curve([3.0, 2.0, 1.0])) is None


# ---------------------------------------------------------------- answers in circles


def answer(text: str, finish: str = "length") -> AnswerLine:
    return AnswerLine("Who are you?", text, None, 0.0, 40, finish)


def test_a_circle_is_a_piece_that_stands_three_times_at_the_end() -> None:
    assert circle_of(answer(CIRCLE)) == "he team of the te"[-len("the team of ") :]
    assert circle_of(answer(CIRCLE, "stop_token")) is None
    assert circle_of(answer("One, two, three, four, five, six, seven, eight, nine, ten, and then")) is None
    assert circle_of(answer("Hm. " + "ha " * 5)) is None
    assert circle_of(answer("| a | b |\n" + "-" * 60)) is None


def test_answers_in_circles_are_counted_with_an_example(healthy: Path) -> None:
    path = healthy / "dpo" / "evaluations" / "identity.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_lines(
        path, [row | {"completion": CIRCLE, "finish": "length"} if n < 6 else row for n, row in enumerate(rows)]
    )
    found = judged(healthy)
    assert any("identity: 6 of 48 answers (12.5 %) repeat themselves up to the limit." in text for text in said(found))
    assert any(f"“…{CIRCLE[-59:]}”, asked “Who are you?”" in text for text in said(found))
    write_lines(
        path, [row | {"completion": CIRCLE, "finish": "length"} if n < 4 else row for n, row in enumerate(rows)]
    )
    assert judged(healthy).grade == "clean"
