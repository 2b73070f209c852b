"""The reward model's section, the matrix of policies by reward models: what they say, and that nothing breaks them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from posttrain.report import write_report
from posttrain.report.cross import cross_view
from posttrain.report.distributions import cloud, interval_chart, reliability_chart
from posttrain.report.evaluation import Movement, final_table, meaning
from posttrain.report.page import render
from posttrain.report.panels import group_alarms
from posttrain.report.reward import reward_view
from posttrain.report.verdict import verdict
from posttrain.runs.read import read_run
from posttrain.runs.records.evaluation import Figure
from tests.fake_reward import add_reward_stage
from tests.fake_run import Plan, write_fake_run, write_json

PLAN = Plan(steps=12, pairs=8, prompts=8, alarms=False, warn=False, dropped=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_fake_run(tmp_path_factory.mktemp("reward") / "run", PLAN)
    add_reward_stage(run)
    return run


def reward_stage(folder: Path):
    return next(stage for stage in read_run(folder).stages if stage.name == "reward")


def test_the_section_shows_figures_pictures_probes_and_agreement(folder: Path) -> None:
    stage = reward_stage(folder)
    found = reward_view(stage)
    assert found is not None and found.has_untrained and found.pairs == "96"
    assert [row.title for row in found.figures] == [
        "accuracy",
        "margin",
        "mean reward",
        "standard deviation",
        "confidence",
    ]
    accuracy = found.figures[0]
    assert accuracy.trained[0] == f"{100 * stage.reward['trained']['accuracy']['value']:.1f}\u202f%"
    titles = [chart.title for card in found.cards for chart in card]
    assert titles == [
        "Rewards, trained head",
        "Rewards, untrained head",
        "Rewards, side by side",
        "Differences, trained head",
        "Differences, untrained head",
        "Reliability",
        "Accuracy by length",
        "Reward and length",
        "Accuracy by category",
    ]
    assert [(probe.title, probe.kind) for probe in found.probes] == [
        ("Empty", "good"),
        ("Repeated", "bad"),
        ("Off topic", "good"),
        ("Refusal", "plain"),
    ]
    assert [row.other for row in found.agreement] == ["untrained head"]
    assert "ECE" in next(chart for card in found.cards for chart in card if chart.title == "Reliability").caption


def test_what_was_found_after_the_last_step_is_an_alarm_without_a_place_on_the_curves(folder: Path) -> None:
    stage = reward_stage(folder)
    (group,) = group_alarms(stage)
    assert (group.name, group.when, group.steps) == ("reward_probe_repeated", "after the last step", [])
    run = read_run(folder)
    said = verdict(run, final_table(run))
    assert said.grade == "look closer"
    assert any("said three times" in finding.text for finding in said.found)
    assert any("repeated" in action.text for action in said.actions)


def test_the_matrix_compares_down_its_columns(folder: Path) -> None:
    found = cross_view(read_run(folder))
    assert found is not None
    assert (found.first, found.reward_models, found.prompts) == ("start", ["reward", "public"], "24")
    start, _, dpo = found.rows
    assert start.cells[0] is not None and start.cells[0].win_rate == "" and start.cells[0].tint == -100
    assert dpo.cells[0] is not None and dpo.cells[0].win_rate.endswith("%") and dpo.cells[0].tint == 100
    assert [chart.title for chart in found.charts] == ["Judged by reward", "Judged by public"]
    assert found.agreement[0].startswith("reward and public put ")


def test_the_page_holds_both_and_a_run_without_them_neither(folder: Path, tmp_path: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    for text in ("Policies by reward models", "Probes", "untrained head", "by chance alone", "Reward and length"):
        assert text in page
    assert page == write_report(folder).read_text(encoding="utf-8")
    plain = write_report(write_fake_run(tmp_path / "plain", PLAN)).read_text(encoding="utf-8")
    assert "Policies by reward models" not in plain and "untrained head" not in plain
    assert reward_view(read_run(tmp_path / "plain").stages[0]) is None


def test_no_broken_file_or_wrong_value_keeps_the_report_from_being_written(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", PLAN)
    add_reward_stage(run, pairs=12)
    stream = random.Random(4)
    junk = [None, 7, -1.5, "text", [], {}, [None], {"a": None}, True, 1e300, {"value": "x"}, [{"a": [1]}]]

    def spoiled(content):
        if stream.random() < 0.1:
            return stream.choice(junk)
        if isinstance(content, dict):
            return {key: spoiled(value) for key, value in content.items()}
        return [spoiled(value) for value in content] if isinstance(content, list) else content

    paths = [
        run / "reward" / "reward_evaluation.json",
        run / "reward" / "reward_scores.jsonl",
        run / "cross_scores.json",
    ]
    originals = {path: path.read_text(encoding="utf-8") for path in paths}
    for _ in range(40):
        for path, text in originals.items():
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            broken = "\n".join(json.dumps(spoiled(json.loads(line))) for line in lines)
            path.write_text(stream.choice([broken, broken, text[: stream.randrange(len(text))]]), encoding="utf-8")
        assert "</html>" in render(read_run(run))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", PLAN)
    add_reward_stage(run, pairs=12)
    bad = "<script>x()</script>"
    record = json.loads((run / "cross_scores.json").read_text(encoding="utf-8"))
    record["cells"][bad] = record["cells"].pop("public")
    write_json(run / "cross_scores.json", record | {"reward_models": ["reward", bad]})
    page = render(read_run(run))
    assert bad not in page and "&lt;script&gt;x()" in page


# ---------------------------------------------------------------- pictures


def test_the_reliability_curve_lies_on_the_diagonal_where_confidence_is_true() -> None:
    points = [(0.6, Figure(0.6, 0.5, 0.7, 40)), (0.9, Figure(0.9, 0.8, 1.0, 40))]
    chart = reliability_chart("Reliability", points)
    looks = {path.look: path.d for path in chart.paths}
    assert set(looks) == {"diagonal", "span", "main", "main dot"}
    assert looks["span"].count("M") == 2
    assert "60.0" in chart.said and "90.0" in chart.said
    assert reliability_chart("Reliability", []).paths == []


def test_parts_of_a_whole_are_compared_with_chance_and_not_with_the_first() -> None:
    rows = [("shorter", Figure(0.9, 0.8, 1.0, 10)), ("longer", Figure(0.4, 0.3, 0.5, 10))]
    parts, stages = interval_chart("Accuracy", rows, "share", chance=0.5), interval_chart("Accuracy", rows, "share")
    (half,), (first,) = parts.rules, stages.rules
    assert half.at == pytest.approx(50.0, abs=2) and first.at > 80
    assert {path.colour for path in parts.paths} == {"accent"}
    assert {path.colour for path in stages.paths} == {"accent", "ink-3"}


def test_a_cloud_of_many_is_thinned_and_says_so() -> None:
    many = [(float(i), float(i % 7)) for i in range(2000)]
    chart = cloud("Rewards", {"chosen": ("chosen", many), "rejected": ("rejected", [])}, "tokens")
    assert sum(path.d.count("M") for path in chart.paths) <= 600
    assert "every 4th dot" in chart.caption and chart.keys == []
    assert cloud("Nothing", {}, "tokens").paths == []


# ---------------------------------------------------------------- suites


def test_a_pattern_that_is_not_wanted_is_better_when_rare(tmp_path: Path) -> None:
    assert meaning("unwanted_match").title == meaning("match").title
    run = write_fake_run(tmp_path / "run", Plan(steps=12, pairs=8, prompts=48, alarms=False))
    for stage in ("start", "sft", "dpo"):
        path = run / stage / "evaluation.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        suite = next(name for name in record if "match" in record[name])
        record[suite]["unwanted_match"] = record[suite].pop("match")
        write_json(path, record)
    row = next(row for row in final_table(read_run(run)).rows if row.metric == "unwanted_match")
    assert row.last is not None and row.last.change is Movement.WORSE
