"""The report's section of an online stage, on folders made from formulas: figures, pictures, samples, torn files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.report import write_report
from posttrain.report.bands import band_chart, layer_chart, level_chart, score_chart, trend_chart
from posttrain.report.charts import Chart
from posttrain.report.online import OnlineView, online_view, windows
from posttrain.report.online_panels import curve_groups
from posttrain.report.online_verdict import learned, online_findings
from posttrain.report.panels import pair_charts
from posttrain.runs.read import Stage, read_run
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.sampled import Examined, StepSpread
from tests.fake_online import OnlinePlan, write_lines, write_online_run
from tests.fake_run import write_fake_run


def stage_of(tmp_path: Path, **changes: object) -> Stage:
    run = read_run(write_online_run(tmp_path / "run", replace(OnlinePlan(), **changes)))
    (stage,) = run.stages
    return stage


def section(stage: Stage) -> OnlineView:
    found = online_view(stage, [])
    assert found is not None
    return found


def charts(stage: Stage) -> dict[str, Chart]:
    view = section(stage)
    everything = [chart for card in view.cards for chart in card] + [c for group in view.groups for c in group.charts]
    return {chart.title: chart for chart in everything}


# ---------------------------------------------------------------- what it came to


def test_the_verdict_names_start_best_and_end(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, best=8)
    found = learned(stage)
    assert found is not None
    assert (found.first_step, found.best_step, found.last_step, found.kept_step, found.ends_step) == (0, 8, 12, 8, 8)
    lines = examined(stage)
    assert found.first.value == lines[0] and found.best.value == lines[8] and found.last.value == lines[12]
    assert found.change is not None and found.change.value == pytest.approx(lines[8] - lines[0])
    assert found.change.n == 20 and found.unit == "share"
    said = [finding.text for finding in online_findings(stage)]
    assert re.search(
        r"held-out score .* at step 0 → .* at step 8 \(the best\) → .* at step 12: clearly better", said[0]
    )
    assert said[1] == "grpo: ended with the weights of step 8, its best examination."


def examined(stage: Stage) -> dict[int, float]:
    """Mean scores by step, counted anew from the file."""
    scores: dict[int, list[float]] = {}
    for line in (stage.folder / "examinations.jsonl").read_text().splitlines():
        record = json.loads(line)
        scores.setdefault(record["step"], []).append(record["score"])
    return {step: sum(some) / len(some) for step, some in scores.items()}


def test_a_score_that_fell_is_bad_and_a_flat_one_is_unclear(tmp_path: Path) -> None:
    fell = list(online_findings(stage_of(tmp_path / "fell", start=0.9, end=0.1, keep=False)))
    assert fell[0].kind == "bad" and "clearly worse" in fell[0].text
    assert fell[1].kind == "warn" and "not with those of its best" in fell[1].text
    flat = list(online_findings(stage_of(tmp_path / "flat", start=0.5, end=0.5)))
    assert flat[0].kind == "plain" and "no clear change" in flat[0].text


def test_a_reward_that_rises_while_the_score_falls_is_called_gaming(tmp_path: Path) -> None:
    folder = write_online_run(tmp_path / "run", OnlinePlan(start=0.9, end=0.1, keep=False))
    path = folder / "grpo" / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        if "reward" in line["values"]:
            line["values"]["reward"] = line["step"] / 12
    write_lines(path, lines)
    found = [finding for finding in online_findings(read_run(folder).stages[0]) if finding.kind == "bad"]
    assert any("while the held-out score fell" in finding.text for finding in found)
    assert "needs attention" in write_report(folder).read_text()


def test_without_held_out_tasks_the_reward_alone_is_not_trusted(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    (stage.folder / "examinations.jsonl").unlink()
    path = stage.folder / "metrics.jsonl"
    write_lines(path, [line for line in map(json.loads, path.read_text().splitlines()) if line["split"] == "train"])
    again = read_run(stage.folder.parent).stages[0]
    assert learned(again) is None
    said = [finding.text for finding in online_findings(again)]
    assert "cannot tell learning from gaming" in said[0]
    assert section(again).tiles == [] and "Held-out score" not in charts(again)


def test_without_the_answers_the_curve_gives_the_score_and_its_error_the_interval(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    (stage.folder / "examinations.jsonl").unlink()
    path = stage.folder / "metrics.jsonl"
    lines = list(map(json.loads, path.read_text().splitlines()))
    for line in lines:
        if line["split"] == "held_out":
            line["values"]["score_error"] = 0.1
    write_lines(path, lines)
    found = learned(read_run(stage.folder.parent).stages[0])
    assert found is not None and found.change is None
    assert found.first.high == pytest.approx(found.first.value + 0.196, abs=1e-5)


def test_the_interval_is_wilsons_for_right_and_wrong() -> None:
    """8 of 10: 0.4902 to 0.9433 (Wilson 1927; any table)."""
    examined = Examined(0, {(str(n), ""): [float(n < 8)] for n in range(10)})
    found = examined.score
    assert (found.value, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=5e-4) and found.high == pytest.approx(0.9433, abs=5e-4)
    every = Examined(0, {(str(n), ""): [1.0] for n in range(10)}).score
    assert every.high == pytest.approx(1.0) and every.low == pytest.approx(0.7225, abs=5e-4)  # never "surely 1"


def test_answers_to_one_task_are_one_observation() -> None:
    found = Examined(0, {("a", ""): [1.0, 0.0, 0.0, 0.0], ("b", ""): [1.0]}).score
    assert found.value == 0.625 and found.n == 2


def test_scores_beyond_one_are_no_per_cents(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    path = stage.folder / "examinations.jsonl"
    write_lines(path, [json.loads(text) | {"score": 1.3} for text in path.read_text().splitlines()])
    again = read_run(stage.folder.parent).stages[0]
    found = learned(again)
    assert found is not None and found.unit == "" and section(again).tiles[0].value == "1.30"


# ---------------------------------------------------------------- pictures


def test_the_pictures_that_an_online_run_needs(tmp_path: Path) -> None:
    titles = set(charts(stage_of(tmp_path, parts=True, ppo=True)))
    assert titles >= {
        "Held-out score",
        "Rewards",
        "Lengths",
        "Reward by length",
        "Prompts by mean reward",
        "Reward and held-out score",
        "Parts of the reward",
        "Groups without a signal",
        "Duplicates",
        "Entropy",
        "Length",
        "Cut and empty",
        "KL to the start, sampled",
        "KL to the start, sequence",
        "Clipped tokens",
        "Effective sample",
        "Explained variance",
        "Value loss",
        "Seconds of a step",
    }


def test_every_measurement_is_drawn_somewhere_once(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, parts=True, ppo=True)
    groups, more = curve_groups(stage, [])
    titles = [chart.title for group in groups for chart in group.charts] + [chart.title for chart in more]
    assert len(titles) == len(set(titles))
    assert "Unjudged" in [chart.title for chart in more]  # 0 throughout: not among the first
    assert not any("Time," in title for title in titles)  # drawn as layers


def test_kinds_of_kl_are_named(tmp_path: Path) -> None:
    found = charts(stage_of(tmp_path))
    assert [key.label for key in found["KL to the start, sampled"].keys] == ["k1", "k3"]
    assert found["KL to the start, sequence"].unit == "k1, nats per response"


def test_rounding_does_not_zoom_into_a_share(tmp_path: Path) -> None:
    chart = charts(stage_of(tmp_path))["Effective sample"]
    assert [tick.label for tick in chart.y_ticks][-1] == "100\u202f%" and len(chart.y_ticks) >= 4


def test_rewards_of_few_values_are_layers_and_of_many_bands(tmp_path: Path) -> None:
    assert {path.look for path in charts(stage_of(tmp_path / "few"))["Rewards"].paths} == {"level"}
    assert {path.look for path in charts(stage_of(tmp_path / "many", parts=True))["Rewards"].paths} == {"band", "main"}


def test_pass_rates_are_counted_by_prompt(tmp_path: Path) -> None:
    chart = charts(stage_of(tmp_path, start=0.0, end=1.0))["Prompts by pass rate"]
    assert "early" in chart.caption and re.search(r"late .* all", chart.caption)
    labels = [tick.label for tick in chart.x_ticks]
    assert "0.00" in labels and "1.00" in labels


def test_early_and_late_are_the_first_and_the_last_quarter() -> None:
    spreads = [StepSpread(step) for step in range(1, 9)]
    early, late = windows(spreads)
    assert ([one.step for one in early], [one.step for one in late]) == ([1, 2], [7, 8])
    assert windows(spreads[:1]) == (spreads[:1], [])


def test_bands_hold_the_quantiles() -> None:
    chart = band_chart("Lengths", [1, 2], [[float(n) for n in range(101)], [50.0]])
    assert chart.readout is not None
    by_name = {series["label"]: series["y"] for series in chart.readout["series"]}
    assert by_name == {
        "5 % below": [5.0, 50.0],
        "25 % below": [25.0, 50.0],
        "median": [50.0, 50.0],
        "75 % below": [75.0, 50.0],
        "95 % below": [95.0, 50.0],
    }


def test_layers_stand_on_each_other() -> None:
    chart = layer_chart("Seconds", [1, 2], [("generation", "chosen", [2.0, 1.0]), ("updates", "accent", [1.0, 3.0])])
    assert chart.readout is not None
    upper, lower = chart.readout["series"]
    assert (upper["label"], upper["y"], upper["at"]) == ("updates", [1.0, 3.0], [3.0, 4.0])
    assert (lower["y"], lower["at"]) == ([2.0, 1.0], [2.0, 1.0])
    assert "generation 42.9\u202f%" in chart.said


def test_levels_fill_the_plot() -> None:
    chart = level_chart("Rewards", [1, 2], [[0.0, 0.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    assert [key.label for key in chart.keys] == ["1.00", "0.500", "0"]
    assert chart.readout is not None
    assert [series["at"] for series in chart.readout["series"]] == [[1.0, 1.0], [0.5, 1.0], [0.25, 1.0]]


@pytest.mark.parametrize("steps", [0, 1])
def test_pictures_of_nothing_and_of_one_step(steps: int) -> None:
    few = list(range(1, steps + 1))
    for chart in (
        band_chart("a", few, [[1.0]] * steps),
        band_chart("a", few, [[]] * steps),
        level_chart("a", few, [[1.0]] * steps),
        layer_chart("a", few, [("x", "accent", [1.0] * steps)]),
        score_chart("a", [(step, Figure(0.5)) for step in few], None),
        trend_chart("a", [("x", "accent", [(1.0, 0.5, 0.4, 0.6)] * steps)], "tokens"),
    ):
        assert chart.said and "nan" not in "".join(path.d for path in chart.paths)


# ---------------------------------------------------------------- samples


def test_held_out_tasks_stand_side_by_side(tmp_path: Path) -> None:
    (table,) = [one for one in section(stage_of(tmp_path, best=8)).tables if one.title == "Held-out tasks over time"]
    assert table.columns == ["step 0", "step 8, the best", "step 12"]
    assert all(len(row.cells) == 3 and all(len(cell) == 1 for cell in row.cells) for row in table.rows)
    first = table.rows[0]
    assert first.head.startswith("What is ") and first.note.startswith("tasks.jsonl, row")
    assert first.cells[0][0].good == "down" and first.cells[-1][0].good == "up"  # gained ones lead
    assert len(table.rows) <= 14


def test_prompts_that_came_twice_are_shown_early_and_late(tmp_path: Path) -> None:
    tables = {one.title: one for one in section(stage_of(tmp_path / "few", tasks=6)).tables}
    rows = tables["The same prompt early and late"].rows
    assert 1 <= len(rows) <= 4
    for row in rows:
        early, late = (next(iter(cell)).figures for cell in (row.cells[0], row.cells[-1]))
        assert dict(early)["step"] != dict(late)["step"]
    once = [one.title for one in section(stage_of(tmp_path / "once", tasks=1000)).tables]
    assert "The same prompt early and late" not in once and "Best, worst and random" in once


def test_best_is_better_than_worst(tmp_path: Path) -> None:
    (table,) = [one for one in section(stage_of(tmp_path, parts=True)).tables if one.title == "Best, worst and random"]
    assert [row.head for row in table.rows] == ["Best", "Worst", "Random"]
    assert [column.split(" ·")[0] for column in table.columns] == ["step 1", "step 7", "step 12"]
    for best, worst in zip(table.rows[0].cells, table.rows[1].cells, strict=True):
        assert float(best[0].reward) > float(worst[0].reward)
        assert [name for name, _ in best[0].parts] == ["math", "length"] and best[0].prompt


# ---------------------------------------------------------------- the page, whole and torn


def test_the_page_has_the_section_and_its_parts(tmp_path: Path) -> None:
    page = write_report(write_online_run(tmp_path / "run", OnlinePlan(best=8))).read_text()
    for said in (
        "What it learned",
        "What it sampled",
        "192 completions in 12 steps",
        "Held-out tasks over time",
        "· kept",
    ):
        assert said in page, said
    assert page.index("What it learned") < page.index("What ran")
    assert "Trained tokens" not in page


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_online_run(tmp_path / "run", OnlinePlan(tasks=6))
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_markup_and_control_characters_of_a_model_stay_text(tmp_path: Path) -> None:
    folder = write_online_run(tmp_path / "run", OnlinePlan(steps=1))
    path = folder / "grpo" / "rollouts.jsonl"
    nasty = {"completion": "<script>alert(1)</script>\x1b[2J\u202e", "prompt": "<b>p</b>", "answer": "{{ 1 }}"}
    write_lines(path, [json.loads(text) | nasty for text in path.read_text().splitlines()])
    page = write_report(folder).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "<b>p</b>" not in page
    assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize("name", ["rollouts.jsonl", "examinations.jsonl"])
def test_a_torn_last_line_is_on_the_page(tmp_path: Path, name: str) -> None:
    folder = write_online_run(tmp_path / "run", OnlinePlan(status="running"))
    with (folder / "grpo" / name).open("ab") as file:
        file.write(b'{"step": 13, "completion": "\xff')
    page = write_report(folder).read_text()
    assert f"grpo/{name}" in page and "the last line is torn" in page
    assert "Not ended yet; its best examination so far" in page


def test_files_that_are_missing_empty_or_nonsense(tmp_path: Path) -> None:
    for name in ("rollouts.jsonl", "examinations.jsonl", "metrics.jsonl"):
        for content in (
            None,
            "",
            "nonsense\n[1]\n",
            '{"step": 1}\n',
            '{"step": 1, "reward": "x", "parts": 3, "ids": 4}\n',
        ):
            folder = write_online_run(tmp_path / f"{name}-{hash(content)}", OnlinePlan(steps=3))
            path = folder / "grpo" / name
            path.unlink() if content is None else path.write_text(content)
            assert "grpo" in write_report(folder).read_text()


def test_a_long_run_is_read_in_part_and_says_so(tmp_path: Path) -> None:
    folder = write_online_run(tmp_path / "run", OnlinePlan(steps=200, prompts=1, completions=2, every=100))
    stage = read_run(folder).stages[0]
    assert stage.sampled is not None and len(stage.sampled.spreads) == 60
    assert [one.step for one in stage.sampled.spreads][::59] == [1, 200]
    assert "400 completions in 200 steps; the pictures read 60 of them" in section(stage).sampled


def test_the_best_examination_is_read_however_many_there_are(tmp_path: Path) -> None:
    folder = write_online_run(tmp_path / "run", OnlinePlan(steps=100, every=1, held_out=2, prompts=1, best=37))
    stage = read_run(folder).stages[0]
    assert stage.sampled is not None and 37 in [one.step for one in stage.sampled.examined]
    assert "step 37, the best" in stage.sampled.held_out_columns


def test_a_stage_of_rows_has_no_such_section(tmp_path: Path) -> None:
    run = read_run(write_fake_run(tmp_path / "run"))
    assert [online_view(stage, []) for stage in run.stages] == [None] * 3
    page = write_report(run.folder).read_text()
    assert "What it learned" not in page and "What it sampled" not in page


# ---------------------------------------------------------------- feedback


def test_judged_responses_have_their_distributions(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "kto").mkdir(parents=True)
    (folder / "kto" / "stage.json").write_text(json.dumps({"method": "kto", "status": "done"}))
    rows = [
        {"when": when, "row": f"r, row {n}", "rewards": reward, "logprob": -4.0, "tokens": 8, "good": float(n % 2)}
        for when in ("start", "end")
        for n in range(8)
        for reward in [0.0 if when == "start" else 2.0 if n % 2 else -3.0]
    ]
    write_lines(folder / "kto" / "pairs.jsonl", rows)
    stage = read_run(folder).stages[0]
    assert stage.judged
    found = {chart.title: chart for card in pair_charts(stage) for chart in card}
    assert found["Rewards at the end"].caption == "median good 2.00, bad −3.00"
    assert [tick.label for tick in found["Rewards"].y_ticks] == ["good, start", "good, end", "bad, start", "bad, end"]
    assert "Log-probs" in found and "Lengths" in found
    assert not any(title.startswith(("Margins", "Change of each pair")) for title in found)  # there are no pairs
    assert "Held-out responses, before and after" in write_report(folder).read_text()
