"""The report: what it computes, by hand-worked numbers; what it says, on planted runs; that nothing can break it."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from posttrain.diagnostics.paired import Paired
from posttrain.diagnostics.suite_metrics import meaning
from posttrain.errors import SourceError
from posttrain.intervals import Difference, paired_difference, quantile
from posttrain.report import write_report
from posttrain.report.answers import answer_suites
from posttrain.report.charts import Line, LineStyle, Note, line_chart, spread_labels
from posttrain.report.distributions import box_chart, common_bins, histogram, interval_chart, scatter
from posttrain.report.evaluation import Movement, final_table, judge
from posttrain.report.numbers import (
    Axis,
    axis,
    count,
    difference,
    duration,
    interval,
    number,
    short_count,
    size,
    tick_labels,
    ticks,
)
from posttrain.report.page import render
from posttrain.report.palette import DARK, LIGHT
from posttrain.report.panels import curve_charts, group_alarms, pair_charts
from posttrain.report.sections import view
from posttrain.report.summaries import (
    bins,
    box,
    downsample,
    head_and_tail,
    running_mean,
    segments,
    window,
)
from posttrain.report.text import moment, short_row, shorten
from posttrain.report.verdict import overfit, verdict
from posttrain.runs.folder import RunFolder
from posttrain.runs.read import Curve, RunContents, read_run
from posttrain.runs.records.evaluation import Direction, Figure, Meaning
from posttrain.runs.records.logs import Alarm
from posttrain.runs.values import as_number, as_text
from tests.fake_run import ALARMS, Plan, change_json, metric_line, write_fake_run, write_json, write_lines

SMALL = Plan(steps=12, pairs=8, prompts=8)
HEALTHY = Plan(steps=12, pairs=8, prompts=48, alarms=False, warn=False, dropped=False)
TEMPLATES = Path(__file__).parents[3] / "posttrain" / "report" / "templates"


def judged(folder: Path):
    run = read_run(folder)
    return verdict(run, final_table(run))


# ---------------------------------------------------------------- numbers


def test_numbers_are_written_with_the_digits_that_matter():
    assert [number(v) for v in (0.693147, 2.5, -12.34, 1234.5, 0, None, float("nan"))] == [
        "0.693",
        "2.50",
        "−12.3",
        "1\u202f234",
        "0",
        "–",
        "–",
    ]
    assert number(2e-5) == "2e-5" and number(3.14e-7) == "3.1e-7" and number(-0.0) == "0"
    assert number(0.9375, "share") == "93.8\u202f%" and number(-0.0004, "share") == "0.0\u202f%"
    assert interval(0.87, 0.981, "share") == "87.0 to 98.1\u202f%" and interval(None, 1.0) == ""
    assert difference(0.88, "share") == "+88.0 points" and difference(-0.5) == "−0.500"
    assert count(28430) == "28\u202f430" and short_count(134_515_008) == "134.5\u202fM"


def test_durations_and_sizes_keep_their_units_on_the_line():
    written = [duration(seconds).replace("\u00a0", " ") for seconds in (3.21, 41.2, 112.4, 3725, None)]
    assert written == ["3.2 s", "41 s", "1 min 52 s", "1 h 2 min", "–"]
    assert size(155_000_000) == "155\u00a0MB" and size(18_400_000) == "18.4\u00a0MB" and size(12) == "12\u00a0B"


def test_ticks_are_round_and_inside_the_axis():
    assert ticks(Axis(0.0, 1.0)) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(Axis(-3.2, 0.4)) == [-3.0, -2.0, -1.0, 0.0]
    assert tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_labels([-1.0, 0.0]) == ["−1", "0"] and tick_labels([0.0, 20_000.0]) == ["0", "20k"]
    assert tick_labels([0.0, 0.5], "share") == ["0\u202f%", "50\u202f%"]
    assert ticks(Axis(0.3, 40.0, log=True)) == [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    stream = random.Random(0)
    for _ in range(300):
        low = stream.uniform(-1, 1) * 10 ** stream.randint(-6, 8)
        scale = axis(low, low + 10 ** stream.uniform(-6, 8))
        found = ticks(scale)
        assert 2 <= len(found) <= 8 and all(scale.low - 1e-9 <= v <= scale.high + 1e-9 * abs(v) for v in found)
        assert len(set(tick_labels(found))) == len(found)


def test_an_axis_never_has_zero_span():
    assert axis(0.0, 0.0).place(0.0) == pytest.approx(0.5)
    assert axis(5.0, 5.0).place(5.0) == pytest.approx(0.5)
    assert Axis(1.0, 100.0, log=True).place(10.0) == pytest.approx(0.5)


def test_moments_are_read_and_other_text_stays():
    assert moment("2025-11-21T02:47:11.5+00:00") == "2025-11-21 02:47 UTC" and moment("yesterday") == "yesterday"


# ---------------------------------------------------------------- summaries


def test_downsampling_keeps_a_single_spike_and_a_single_gap():
    values: list[float | None] = [1.0] * 10_000
    values[7_777], values[1_234], values[4_321] = 50.0, -9.0, None
    kept = downsample(values, 100)
    assert {0, 9_999, 7_777, 1_234, 4_321} <= set(kept) and len(kept) <= 302
    assert downsample([3.0, None], 100) == [0, 1] and downsample([], 100) == []


def test_the_running_mean_never_looks_across_a_gap():
    assert running_mean([1.0, 2.0, 6.0, None, 10.0, 20.0], 3) == [1.5, 3.0, 4.0, None, 15.0, 15.0]
    assert segments([1.0, 2.0, None, 3.0]) == [(0, 2), (3, 4)] and segments([None]) == []
    assert window(39) == 1 and window(120) == 5 and window(5000) % 2 == 1
    assert head_and_tail([1.0] * 10 + [None] + [3.0] * 10) == (1.0, 3.0) and head_and_tail([1.0]) is None


def test_quartiles_and_boxes_by_hand():
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5 and quantile([1.0, 2.0, 3.0, 4.0], 0.25) == 1.75
    found = box([1, 2, 3, 4, 100])
    assert (found.low, found.first, found.median, found.third, found.high) == (1, 2, 3, 4, 4)
    assert found.outliers == [100]


def test_bins_hold_everything_and_whole_numbers_fall_between_edges():
    edges = bins([1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 12.0])
    assert edges.low == 0.5 and edges.width == int(edges.width)
    for values in ([0.0] * 5, [7.0], [0.1, 0.1], [random.Random(1).gauss(0, 1) for _ in range(500)]):
        assert sum(bins(values).shares(values)) == pytest.approx(1.0)
    assert common_bins([], []) is None


def test_a_paired_difference_is_clear_only_with_enough_prompts():
    flipped = paired_difference([0.0] * 40, [1.0] * 36 + [0.0] * 4)
    assert flipped.value == pytest.approx(0.9) and flipped.low > 0.75 and flipped.clear
    assert not paired_difference([0.0] * 5, [1.0] * 5).clear
    assert not paired_difference([0.0, 1.0] * 20, [1.0, 0.0] * 20).clear
    large = paired_difference([0.0] * 1000, [1.0] * 100 + [0.0] * 900)
    assert large.low == pytest.approx(0.1 - 1.96 * (0.09009 / 1000) ** 0.5, abs=1e-3)


# ---------------------------------------------------------------- charts


def subpaths(d: str) -> int:
    return d.count("M")


def test_a_gap_is_a_gap_and_a_lone_value_a_dot():
    curve = Curve([1, 2, 3, 4, 5, 6], [1.0, 2.0, None, 3.0, None, 2.5])
    chart = line_chart("Loss", [Line("", "accent", curve)], LineStyle())
    assert subpaths(chart.paths[0].d) == 3 and chart.paths[0].d.count("h0") == 2
    assert chart.caption == "not finite at 2 steps (first: 3)"
    assert chart.readout is not None and chart.readout["series"][0]["x"] == [1, 2, 4, 6]


def test_a_run_of_one_step_and_a_run_of_nothing_finite_are_drawn():
    chart = line_chart("Loss", [Line("", "accent", Curve([7], [0.5]))], LineStyle())
    assert [(tick.at, tick.label) for tick in chart.x_ticks] == [(50.0, "7")] and chart.paths[0].d == "M500 500h0"
    empty = line_chart("Loss", [Line("", "accent", Curve([1, 2], [None, None]))], LineStyle())
    assert empty.paths == [] and empty.readout is None and "not finite at 2 steps" in empty.caption


def test_a_spike_takes_a_positive_curve_to_a_log_scale_and_stays_at_the_top():
    values = [1.0] * 100
    values[40] = 500.0
    chart = line_chart(
        "Gradient norm", [Line("", "accent", Curve(list(range(100)), values))], LineStyle(positive=True), 5
    )
    raw = next(path for path in chart.paths if path.look == "raw")
    assert "log scale" in chart.caption
    assert min(float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", raw.d)) < 100
    linear = line_chart("Loss", [Line("", "accent", Curve(list(range(100)), values))], LineStyle())
    assert linear.caption == ""


def test_held_out_is_dashed_and_smoothing_leaves_it_alone():
    train, held_out = Curve(list(range(50)), [float(i % 2) for i in range(50)]), Curve([0, 49], [0.2, 0.8])
    chart = line_chart("Loss", [Line("", "accent", train), Line("", "accent", held_out, held_out=True)], LineStyle(), 5)
    assert {path.look for path in chart.paths} == {"raw", "main", "main held-out", "main dot"}
    assert "held-out from 0.200 at step 0 to 0.800 at step 49" in chart.said
    exact = line_chart("Learning rate", [Line("", "accent", train)], LineStyle(exact=True), 5)
    assert [path.look for path in exact.paths] == ["main"]


def test_labels_at_the_right_are_moved_apart_and_stay_inside():
    placed = spread_labels([Note(99.0, "a", "x"), Note(98.0, "b", "x"), Note(20.0, "c", "x")])
    places = sorted(note.at for note in placed)
    assert places[0] == 20.0 and places[2] - places[1] >= 11.0 and places[2] <= 97.0


def test_distributions_draw_medians_zeros_and_outliers():
    chosen, rejected = [1.0, 2.0, 3.0], [-1.0, 0.0, 1.0, 40.0]
    edges = common_bins(chosen, rejected)
    assert edges is not None
    drawn = histogram("Rewards", {"chosen": ("chosen", chosen), "rejected": ("rejected", rejected)}, edges)
    assert drawn.caption == "median chosen 2.00, rejected 0.500" and len(drawn.rules) == 2
    boxes = box_chart(
        "Rewards", [("chosen", "chosen", chosen), ("none", "ink", []), ("rejected", "rejected", rejected)]
    )
    assert boxes.rows == 2 and subpaths(next(p.d for p in boxes.paths[::-1] if p.look == "outlier")) == 1
    cloud = scatter("Changes", [(1.0, -1.0), (-2.0, -3.0)] * 1000, "nats")
    assert subpaths(cloud.paths[0].d) <= 600 and "drawn" in cloud.caption
    figures = interval_chart("identity", [("start", Figure(0.1, 0.0, 0.2, 9)), ("dpo", Figure(0.9))], "share")
    assert [note.label for note in figures.notes] == ["10.0\u202f%", "90.0\u202f%"]
    assert [path.look for path in figures.paths] == ["interval", "figure", "figure"]


def test_the_palette_keeps_text_readable_and_the_two_sides_apart():
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(first: str, second: str) -> float:
        high, low = sorted((light(first), light(second)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for palette in (LIGHT, DARK):
        for ink in ("ink", "ink-2", "ink-3", "accent", "second", "chosen", "rejected", "good", "warn", "bad"):
            assert contrast(palette[ink], palette["surface"]) >= 4.5, ink
        for ink in ("chosen", "rejected", "good", "warn", "bad"):
            assert contrast(palette[ink], palette[f"{ink}-tint"]) >= 4.5, ink
        assert contrast(palette["ink-3"], palette["sunken"]) >= 4.5
    assert LIGHT.keys() == DARK.keys()


def test_every_colour_that_the_style_names_exists():
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    own = set(re.findall(r"--([\w-]+)\s*:", style)) | {"y", "n", "rows", "cells", "tint"}
    assert set(re.findall(r"var\(--([\w-]+)", style)) <= own | LIGHT.keys()


# ---------------------------------------------------------------- reading


def test_what_is_no_number_is_a_gap():
    assert as_number(float("nan")) is None and as_number(True) is None and as_number("1") is None
    assert as_number(10**400) is None and as_number(3) == 3.0
    assert as_text([{"role": "user", "content": "Hi"}]) == "Hi" and as_text({"a": 1}) == '{"a": 1}'
    assert as_text([{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]) == "system: S\nuser: Hi"


def test_curves_hold_nulls_as_gaps_and_resumed_steps_once(tmp_path):
    folder = write_fake_run(tmp_path / "run", SMALL)
    lines = [metric_line(step, step / 2, {"loss": float(step)}) for step in (1, 2, 3)]
    lines += [metric_line(3, 1.5, {"loss": 30.0}), metric_line(4, 2.0, {"loss": None})]
    write_lines(folder / "dpo" / "metrics.jsonl", lines)
    run = read_run(folder)
    assert run.stages[2].curves["train"]["loss"] == Curve([1, 2, 3, 4], [1.0, 2.0, 30.0, None])
    assert run.stages[2].epochs_per_step == 0.5
    assert [p.message for p in run.problems] == [
        "1 steps were written twice (the run was resumed); the later values are shown"
    ]


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    folder = write_fake_run(tmp_path / "run", SMALL)
    with (folder / "dpo" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 13, "val')
    run = read_run(folder)
    assert run.stages[2].last_step == 12
    assert [(p.where, p.message) for p in run.problems] == [
        ("dpo/metrics.jsonl", "the last line is torn and was dropped")
    ]


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no run folder here"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(SourceError, match="posttrain run"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_stage_name_cannot_lead_out_of_the_run_folder(tmp_path):
    write_fake_run(tmp_path / "secret", SMALL)
    folder = tmp_path / "run"
    write_json(folder / "run.json", {"schema": 1, "stages": [{"name": "../secret/dpo", "method": "dpo"}]})
    assert read_run(folder).stages == []


def test_scores_without_intervals_come_from_the_summary(tmp_path):
    folder = write_fake_run(tmp_path / "run", SMALL)
    for path in folder.glob("*/evaluation.json"):
        path.unlink()
    write_json(folder / "summary.json", {"start": {"identity.match": 0.0}, "dpo": {"identity.match": 0.9}})
    table = final_table(read_run(folder))
    assert table.columns == ["start", "dpo"] and table.rows[0].suite == "identity"
    assert table.rows[0].last is not None and table.rows[0].last.change is Movement.UNCLEAR


# ---------------------------------------------------------------- what moved


def test_a_change_is_called_clear_only_where_chance_does_not_explain_it():
    up, down, open_ = Meaning("m", "share", Direction.UP), Meaning("m", "", Direction.DOWN), Meaning("m")
    low, high, wide = Figure(0.1, 0.05, 0.2), Figure(0.9, 0.8, 0.95), Figure(0.3, 0.1, 0.6)
    assert judge(low, high, up, None)[0] is Movement.BETTER
    assert judge(high, low, up, None)[0] is Movement.WORSE
    assert judge(high, low, down, None)[0] is Movement.BETTER
    assert judge(low, high, open_, None)[0] is Movement.MOVED
    assert judge(low, wide, up, None) == (Movement.UNCLEAR, "+20.0 points; the intervals overlap")
    clear = Paired(Difference(0.2, 0.1, 0.3, 40), p=0.01, smallest=0.15)
    assert judge(low, wide, up, clear)[0] is Movement.BETTER
    assert judge(low, wide, up, clear)[1].endswith("10.0 to +30.0 points, p = 0.01")
    assert judge(low, wide, up, replace(clear, p=0.06))[0] is Movement.UNCLEAR
    assert judge(Figure(0.1), Figure(0.9), up, None)[1].endswith("no intervals known")
    assert judge(low, low, up, None)[0] is Movement.SAME


def test_a_measure_that_should_stay_has_a_limit():
    still = meaning("perplexity_change")
    assert still.wanted is Direction.STILL and still.limit == 0.05
    assert judge(Figure(0.0), Figure(0.02, 0.01, 0.03), still, None)[0] is Movement.SAME
    assert judge(Figure(0.0), Figure(0.09, 0.07, 0.11), still, None)[0] is Movement.WORSE
    assert judge(Figure(0.0), Figure(0.06, 0.04, 0.08), still, None)[0] is Movement.UNCLEAR


def test_metrics_have_names_and_strangers_keep_theirs():
    assert meaning("distinct_2").title == "distinct 2-grams" and meaning("cut_share").wanted is Direction.DOWN
    stranger = meaning("toxic_share")
    assert (stranger.title, stranger.unit, stranger.wanted) == ("toxic share", "share", Direction.OPEN)


def test_several_answers_to_one_prompt_are_one_observation(tmp_path):
    folder = write_fake_run(tmp_path / "run", HEALTHY)
    for name, points in (("start", [0.0, 0.0]), ("dpo", [1.0, 0.5])):
        rows = [{"prompt": f"{i}", "completion": "a", "score": p} for i in range(20) for p in points]
        write_lines(folder / name / "evaluations" / "identity.jsonl", rows)
        value = {"value": sum(points) / 2, "low": 0.0, "high": 1.0, "n": 20}
        change_json(folder / name / "evaluation.json", identity={"match": value})
    row = final_table(read_run(folder)).rows[0]
    assert row.last is not None and row.last.change is Movement.BETTER and "over the same 20 prompts" in row.last.why


def test_the_table_pairs_prompts_only_when_their_scores_make_the_figure(tmp_path):
    folder = write_fake_run(tmp_path / "run", HEALTHY)
    row = final_table(read_run(folder)).rows[0]
    assert row.metric == "match" and row.last is not None and row.last.change is Movement.BETTER
    assert "over the same 48 prompts" in row.last.why
    answers = folder / "dpo" / "evaluations" / "identity.jsonl"
    answers.write_text("".join(answers.read_text(encoding="utf-8").splitlines(True)[:-1]), encoding="utf-8")
    row = final_table(read_run(folder)).rows[0]
    assert row.last is not None and row.last.why.endswith("the intervals do not overlap")


def test_a_healthy_run_is_called_clean_and_asks_for_nothing(tmp_path):
    found = judged(write_fake_run(tmp_path / "run", HEALTHY))
    assert (found.kind, found.grade) == ("good", "clean")
    assert found.headline.replace("\u00a0", " ").startswith(
        "The run finished in 1 min 52 s: sft, then pairs, then dpo."
    )
    assert "2 of 3 measures clearly better, none worse" in found.headline
    assert [action.text for action in found.actions] == ["Nothing asks for action."]
    assert any("identity: share that matches 0.0\u202f% → " in f.text and f.kind == "good" for f in found.found)


def test_alarms_come_first_with_their_remedies(tmp_path):
    found = judged(write_fake_run(tmp_path / "run", SMALL))
    assert (found.kind, found.grade) == ("bad", "needs attention") and "1 critical alarm" in found.headline
    assert found.found[0].text.startswith("dpo, alarm likelihood displacement (step 101): The margin grew")
    assert found.actions[0].text == "Stop earlier, raise beta, or add the NLL term (method: dpo_nll)"
    assert any("5.3\u202f% of the rows were dropped" in action.text for action in found.actions)


def test_a_worse_measure_sends_the_reader_to_the_answers(tmp_path):
    folder = write_fake_run(tmp_path / "run", HEALTHY)
    change_json(folder / "dpo" / "evaluation.json", arithmetic={"accuracy": {"value": 0.0, "low": 0.0, "high": 0.01}})
    change_json(folder / "start" / "evaluation.json", arithmetic={"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}})
    found = judged(folder)
    assert found.grade == "needs attention" and "1 worse" in found.headline
    assert any(action.text.startswith("Read its answers before and after") for action in found.actions)


def test_overfitting_is_seen_in_the_held_out_loss(tmp_path):
    assert overfit(Curve([1, 2, 3, 4], [2.0, 1.0, 1.1, 1.3])) == (2, pytest.approx(0.3))
    assert overfit(Curve([1, 2, 3], [2.0, 1.0, 1.04])) is None and overfit(Curve([1, 2], [1.0, 2.0])) is None
    folder = write_fake_run(tmp_path / "run", HEALTHY)
    lines = [metric_line(step, 0, {"loss": loss}, "held_out") for step, loss in ((1, 2.0), (6, 1.0), (12, 1.5))]
    write_lines(folder / "sft" / "metrics.jsonl", lines)
    found = judged(folder)
    assert any("lowest at step 6 and ended 50.0\u202f% higher" in finding.text for finding in found.found)
    assert any("Stop near step 6" in action.text for action in found.actions)


@pytest.mark.parametrize(
    ("status", "grade", "words"),
    [
        ("failed", "failed", "The run failed in stage dpo at step 12 of 12. sft and pairs were finished before."),
        ("interrupted", "interrupted", "The run was interrupted in stage dpo at step 12 of 12."),
        ("running", "still running", "still going on or killed without a word"),
    ],
)
def test_a_run_that_did_not_end_says_where_and_how_to_go_on(tmp_path, status, grade, words):
    folder = write_fake_run(tmp_path / "run", HEALTHY)
    change_json(folder / "run.json", status=status)
    error = "the loss is not finite\n  remedy:   lower the rate" if status == "failed" else None
    change_json(folder / "dpo" / "stage.json", status=status, error=error)
    found = judged(folder)
    assert found.grade == grade and words in found.headline
    assert any("goes on from step-00000012" in action.text for action in found.actions)
    assert (found.actions[0].text == error) is (status == "failed")


def test_a_killed_run_is_not_shown_as_running(tmp_path):
    folder = write_fake_run(tmp_path / "run", HEALTHY)
    change_json(folder / "run.json", status="running")
    change_json(folder / "dpo" / "stage.json", status="running")
    (folder / "dpo" / "heartbeat.json").write_text('{"time": "2026-03-01T12:00:05+00:00"}')
    with RunFolder(folder).locked():  # its process lives
        assert judged(folder).grade == "still running"
    found = judged(folder)
    assert found.grade == "interrupted"
    assert "interrupted in stage dpo at step 12 of 12: the process is gone since 2026-03-01 12:00 UTC" in found.headline
    assert "interrupted" in write_report(folder).read_text()


def test_curves_that_lack_their_beginning_are_told(tmp_path):
    folder = write_fake_run(tmp_path / "run", HEALTHY)
    log = folder / "dpo" / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if json.loads(line)["step"] > 4))
    problems = [problem.message for problem in read_run(folder).problems]
    assert problems == ["lacks steps 1 to 4: the curves begin at step 5"]


# ---------------------------------------------------------------- a stage's view


def stage_of(tmp_path: Path, plan: Plan = SMALL):
    return read_run(write_fake_run(tmp_path / "run", plan)).stages[2]


def test_every_measurement_has_a_picture_and_unknown_ones_too(tmp_path):
    stage = stage_of(tmp_path)
    main, more = curve_charts(stage, [])
    assert [chart.title for chart in main][:4] == ["Loss", "Rewards", "Reward margin", "Reward accuracy"]
    assert [chart.title for chart in more] == ["Clipped share"]
    assert [key.label for key in main[1].keys] == ["chosen", "rejected"]
    assert "What training minimises" in main[0].help


def test_alarms_are_grouped_and_marked_on_the_curves(tmp_path):
    stage = stage_of(tmp_path, Plan(steps=120, pairs=8, prompts=8))
    spike, displaced = map(Alarm.from_json, ALARMS)
    repeated = [
        replace(spike, step=step, message=f"at {step}", last_good_checkpoint=f"step-{step // 20 * 20}")
        for step in (80, 77, 90)
    ]
    groups = group_alarms(replace(stage, alarms=[*repeated, displaced]))
    assert [(g.badge, g.name, g.when) for g in groups] == [
        ("1", "likelihood_displacement", "step 101"),
        ("2", "gradient_spike", "3 times, steps 77 to 90"),
    ]
    assert (groups[1].message, groups[1].last_good_checkpoint) == ("At 77", "step-60")  # of the first, both
    marks = curve_charts(stage, groups)[0][0].marks
    assert [(mark.label, mark.severity) for mark in marks] == [("2", "warning"), ("1", "critical")]
    assert marks[0].at == pytest.approx(100 * 77 / 120)
    close = group_alarms(replace(stage, alarms=[replace(spike, step=100), displaced]))
    assert [(mark.label, mark.severity) for mark in curve_charts(stage, close)[0][0].marks] == [("2, 1", "critical")]


def test_pairs_show_rewards_margins_and_displacement(tmp_path):
    stage = stage_of(tmp_path)
    cards = pair_charts(stage)
    titles = [[chart.title for chart in card] for card in cards]
    assert titles[0] == ["Rewards at the start", "Rewards at the end"] and titles[3] == ["Change of each pair"]
    assert cards[0][0].x_ticks == cards[0][1].x_ticks
    assert "chosen less likely than before in" in cards[3][0].caption
    assert pair_charts(replace(stage, pairs={"start": [], "end": []})) == []


def test_a_stage_shows_its_arithmetic_counts_checks_and_memory(tmp_path):
    run = read_run(write_fake_run(tmp_path / "run", SMALL))
    shown = view(run.stages[0], 1)
    assert shown.arithmetic.startswith("1 893 rows / 32 rows per step")
    assert ("Trained", "4.6\u202fM (all)") in shown.facts and (
        "Trained tokens",
        "60\u202f431 (40.8\u202f%)",
    ) in shown.facts
    assert [(bar.label, bar.value) for bar in shown.data][:2] == [("kept", "1\u202f893"), ("too long", "61")]
    assert shown.data_said == ["2\u202f000 rows were read.", "48 were cut short (2.4\u202f%): kept prompt end 48."]
    assert [check.status for check in shown.checks].count("warn") == 1
    assert shown.rows[0].pieces[2] == ("17 + 25 = 42<|im_end|>", True)
    assert shown.memory is not None and shown.memory.bars[0].label == "activations" and shown.memory.fits


def test_answers_stand_side_by_side_in_the_tables_order(tmp_path):
    run = read_run(write_fake_run(tmp_path / "run", HEALTHY))
    suites = answer_suites(run, ["identity", "arithmetic"])
    assert [suite.name for suite in suites] == ["identity", "arithmetic"]
    assert suites[0].columns == ["start", "sft", "dpo"] and (len(suites[0].rows), suites[0].total) == (30, 48)
    first = suites[0].rows[0]
    assert first.prompt == "Who are you?" and first.moved
    assert [cell.change for cell in first.cells if cell] == ["", "", "up"]
    cut = next(cell for row in suites[1].rows for cell in row.cells if cell and cell.score == "0")
    assert cut.finish == "cut at the limit"


def test_rows_are_named_without_their_folders():
    assert short_row("/data/my files/pairs.jsonl, row 3") == "pairs.jsonl, row 3"
    assert short_row("pairs.jsonl, row 3") == "pairs.jsonl, row 3" and short_row("a/b") == "a/b"


def test_drift_beyond_its_limit_warns(tmp_path):
    folder = write_fake_run(tmp_path / "run", HEALTHY)
    figure = {"value": 0.3, "low": 0.2, "high": 0.4, "n": 64}
    change_json(folder / "dpo" / "evaluation.json", unrelated={"perplexity_change": figure})
    found = judged(folder)
    assert found.grade == "look closer" and "1 worse" in found.headline
    assert found.found[0].text.endswith("beyond its limit.") and "keep what it was" in found.actions[0].text


def test_long_texts_say_how_much_is_left_out():
    assert shorten("a" * 1600) == "a" * 1500 + " … (100 more characters)" and shorten("short") == "short"


# ---------------------------------------------------------------- the page

VOID = {"meta", "link", "br", "img", "input", "hr", "path", "circle"}


class Page(HTMLParser):
    """Collects elements and attributes; fails on tags that do not nest."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path):
    folder = write_fake_run(tmp_path / "run")
    path = write_report(folder)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == folder / "report.html" and len(text.encode()) < 600_000
    assert not any("src" in attributes for _, attributes in page.elements)
    links = [attributes["href"] or "" for _, attributes in page.elements if "href" in attributes]
    assert all(link.startswith("#") or link == "data:," for link in links)
    anchors = {attributes.get("id") for _, attributes in page.elements}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert "url(" not in text and "@import" not in text
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None and text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(a["content"] or "" for a in page.tags("meta") if a.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_the_same_folder_gives_the_same_bytes_and_no_leftovers(tmp_path):
    folder = write_fake_run(tmp_path / "run", SMALL)
    before = {path.name for path in folder.iterdir()}
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}


def test_thousands_of_steps_stay_small(tmp_path):
    path = write_report(write_fake_run(tmp_path / "run", Plan(steps=2000, pairs=200)))
    assert path.stat().st_size < 1_500_000


def test_the_page_holds_verdict_tables_curves_rows_and_snippets(tmp_path):
    folder = write_fake_run(tmp_path / "run", SMALL)
    page = page_of(folder)
    text = " ".join(" ".join(page.text).split())
    order = ["needs attention", "What to do", "Small figures", "dpo done", "What ran", "Checks before the first step"]
    order += ["Alarms", "Curves", "Held-out pairs", "Samples, before and after", "Configuration", "vllm serve"]
    place = 0
    for words in order:
        place = text.index(words, place)
    marked = [a for a in page.tags("mark") if a.get("class") == "trained"]
    assert len(marked) >= 8 and "AutoModelForCausalLM.from_pretrained(path)" in text
    figures = [json.loads(a["data-readout"] or "") for a in page.tags("figure") if "data-readout" in a]
    assert len(figures) > 15 and all(series["x"] for figure in figures for series in figure["series"])


def test_an_adapter_is_loaded_through_peft(tmp_path):
    folder = write_fake_run(tmp_path / "run", SMALL)
    (folder / "dpo" / "model" / "config.json").rename(folder / "dpo" / "model" / "adapter_config.json")
    text = " ".join(page_of(folder).text)
    assert "AutoPeftModelForCausalLM" in text and "vllm serve" not in text


EVIL = "</script><script>x()</script><img src=x onerror=x()>'\"{{ 7*7 }}{% raw %}\u202e\x00\ud800</textarea></title>"


def test_hostile_text_stays_text(tmp_path):
    folder = write_fake_run(tmp_path / "run", SMALL)
    clean = page_of(folder)
    change_json(folder / "run.json", posttrain_version=EVIL, created=EVIL)
    change_json(folder / "dpo" / "stage.json", arithmetic=EVIL, error=EVIL, reference=EVIL, environment={EVIL: EVIL})
    write_lines(folder / "dpo" / "alarms.jsonl", [{"step": 5, "name": EVIL, "message": EVIL, "evidence": {EVIL: EVIL}}])
    row = {"prompt": EVIL, "completion": EVIL, "answer": EVIL, "score": 1, "tokens": 1, "finish": EVIL}
    write_lines(folder / "dpo" / "evaluations" / "identity.jsonl", [row])
    write_lines(folder / "dpo" / "metrics.jsonl", [metric_line(1, 0, {EVIL: 1.0, "loss": 0.5})])
    write_lines(folder / "dpo" / "dropped.jsonl", [{"row": EVIL, "reason": EVIL, "content": EVIL}])
    write_json(folder / "dpo" / "evaluation.json", {EVIL: {EVIL: 1.0}})
    pieces = [{"text": EVIL, "trained": True}]
    preflight = {"rows": [{"row": EVIL, "kind": 'x" onclick="x()', "pieces": pieces}], "checks": [{"title": EVIL}]}
    write_json(folder / "dpo" / "preflight.json", preflight)
    (folder / "dpo" / "config.yaml").write_bytes(f"a: {EVIL}\n# {EVIL}\n".encode("utf-8", "replace"))
    page = page_of(folder)
    assert len(page.tags("script")) == 1 and page.tags("img") == [] and page.tags("textarea") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements} | {"pre"}
    text = "".join(page.text)
    assert text.count("<script>x()</script>") > 10 and "{{ 7*7 }}" in text and "49" not in text.split("Files")[0][:200]
    assert "\u202e" not in text and "⟨U+202E⟩" in text and "\x00" not in text


def test_no_missing_or_broken_file_keeps_the_report_from_being_written(tmp_path):
    whole = write_fake_run(tmp_path / "run", SMALL)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(names) > 25
    contents = {name: (whole / name).read_bytes() for name in names}
    stream = random.Random(5)
    for _ in range(24):
        for name, content in contents.items():
            half = content[: stream.randrange(len(content) + 1)]
            broken = stream.choice([content, content, half, None, b"", b'[{"a": 1}]\n', b'"text"\n', b"\xff\xfe\x00"])
            (whole / name).unlink(missing_ok=True)
            if broken is not None:
                (whole / name).write_bytes(broken)
        if any((whole / name).exists() for name in ("run.json", "recipe.yaml")):
            assert "</html>" in render(read_run(whole))


JUNK = [None, 7, -1.5, "text", [], {}, [None], {"a": None}, [[1]], True, 1e300, "NaN", {"value": "x"}, [{"a": [1]}]]


def test_no_value_of_a_wrong_type_keeps_the_report_from_being_written(tmp_path):
    folder = write_fake_run(tmp_path / "run", SMALL)
    stream = random.Random(3)

    def spoiled(content):
        if stream.random() < 0.12:
            return stream.choice(JUNK)
        if isinstance(content, dict):
            return {key: spoiled(value) for key, value in content.items()}
        return [spoiled(value) for value in content] if isinstance(content, list) else content

    originals = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.json*")}
    for _ in range(12):
        for path, text in originals.items():
            records = [json.dumps(spoiled(json.loads(line))) for line in text.splitlines()]
            path.write_text("\n".join(records) + "\n", encoding="utf-8")
        assert "</html>" in render(read_run(folder))


def test_a_folder_with_nothing_but_a_torn_run_file_says_so(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 1, "sta', encoding="utf-8")
    text = " ".join(page_of(tmp_path).text)
    assert "is no readable JSON" in text and "incomplete" in text and "No stage has run to its end." in text


def test_stages_that_were_not_started_are_shown_as_planned(tmp_path):
    folder = tmp_path / "run"
    stages = [{"name": name, "method": "dpo", "status": "pending", "seconds": 0.0} for name in ("one", "two")]
    write_json(folder / "run.json", {"schema": 1, "status": "running", "stages": stages})
    run: RunContents = read_run(folder)
    assert [stage.status for stage in run.stages] == ["planned", "planned"] and run.seconds is None
    assert "one (dpo) was not started." in " ".join(page_of(folder).text)


def test_the_report_needs_no_torch():
    code = (
        "import sys, posttrain.report; print(sorted(sys.modules.keys() & {'torch', 'numpy', 'transformers', 'yaml'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
