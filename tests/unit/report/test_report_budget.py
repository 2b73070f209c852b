"""The report's section on budgets: what it draws of planted curves, what it says of them; torn files break nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from posttrain.cli.tables import figure
from posttrain.report.budget import budget_view
from posttrain.report.evaluation import meaning
from posttrain.report.page import render
from posttrain.runs.files import write_json
from posttrain.runs.read import read_run
from posttrain.runs.records.budget import (
    BudgetChoice,
    BudgetCurve,
    BudgetCurves,
    BudgetFinding,
    BudgetPoint,
    DifficultyBin,
    DifficultyChoice,
)
from posttrain.runs.records.evaluation import Figure
from tests.fake_run import Plan, write_fake_run

PLAN = Plan(steps=12, pairs=8, prompts=8, alarms=False, warn=False, dropped=False)


def figure_of(value: float) -> Figure:
    return Figure(value, value - 0.1, value + 0.1, 40)


def curve(name: str, kind: str, values: list[float], scorer: str | None = None) -> BudgetCurve:
    points = tuple(
        BudgetPoint(f"n = {n}", n, figure_of(value), 100.0 * n, 0.0, 0.1 * n)
        for n, value in zip((1, 2, 4), values, strict=True)
    )
    return BudgetCurve(name, kind, scorer, points)


def record(said: str = "At the price of 4 answers `majority` is best here.") -> BudgetCurves:
    early = BudgetPoint("early", None, figure_of(0.55), 250.0, 40.0, 0.2, {"agreed": 30, "done": 10})
    return BudgetCurves(
        "spent",
        4,
        40,
        100.0,
        1000,
        curves=(
            curve("oracle", "oracle", [0.3, 0.5, 0.8]),
            curve("majority", "majority", [0.3, 0.4, 0.6]),
            curve("best of n by judge", "best", [0.3, 0.4, 0.2], "judge"),
            curve("weighted by judge", "weighted", [0.3, 0.4, 0.5], "judge"),
            BudgetCurve("early", "strategy", None, (early,)),
        ),
        choices=(
            BudgetChoice(2, 200.0, "majority", "early", Figure(0.01, -0.05, 0.07, 40), False),
            BudgetChoice(4, 400.0, "majority", None, None, None),
        ),
        difficulty=DifficultyChoice(
            2, ("majority",), Figure(0.0, -0.1, 0.1, 40), (DifficultyBin(0.1, 0.3, 8, ("majority", "early"), 0.2, 0.1),)
        ),
        findings=(BudgetFinding("good", said), BudgetFinding("warn", "it falls <b>here</b>")),
        trees_left_out=0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = write_fake_run(tmp_path / "run", PLAN)
    for policy in ("start", "dpo"):
        write_json(run / policy / "evaluations" / "spent.budget.json", record(f"{policy} said so").to_json())
    return run


def test_the_last_policy_stands_first_and_the_others_are_folded(folder: Path) -> None:
    (section,) = budget_view(read_run(folder))
    assert (section.name, section.prompts, section.samples, section.last.policy) == ("spent", "40", "4", "dpo")
    assert [one.policy for one in section.earlier] == ["start"]
    page = render(read_run(folder))
    assert page.index("dpo said so") < page.index('id="budget"') < page.rindex("dpo said so")  # verdict, then section
    assert "it falls &lt;b&gt;here" in page and 'href="#budget"' in page


def test_the_picture_has_all_strategies_on_a_log_axis(folder: Path) -> None:
    tokens, seconds = budget_view(read_run(folder))[0].last.charts
    assert [key.label for key in tokens.keys] == [
        "oracle", "majority", "best of n by judge", "weighted by judge", "early",
    ]  # fmt: skip
    colours = {key.label: key.colour for key in tokens.keys}
    assert colours["best of n by judge"] == colours["weighted by judge"] != colours["majority"]
    (line,) = [path.d for path in tokens.paths if path.look == "main" and path.colour == colours["majority"]]
    across = [float(x) for x in re.findall(r"[ML]([\d.]+)", line)]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)  # doublings are equally wide
    assert "60.0" in tokens.said and "log scale" in tokens.x_title and "seconds" in seconds.unit
    bars = [path for path in tokens.paths if path.look == "raw"]
    assert sum(path.d.count("M") for path in bars) == 13  # an interval at every point


def test_the_tables_say_who_is_best_and_whether_chance_explains_it(folder: Path) -> None:
    last = budget_view(read_run(folder))[0].last
    assert [(row.n, row.best, row.second, row.clear) for row in last.prices] == [
        ("2", "majority", "early", False),
        ("4", "majority", "–", False),
    ]
    assert last.prices[0].ahead == "+1.0 points" and last.prices[0].interval == "−5.0 to +7.0 points"
    assert [row.stopped for row in last.rows][-1] == "30 agreed, 10 done"
    assert [row.method for row in last.rows[:4]] == ["oracle", "", "", "majority"]
    assert last.difficulty[0].choices == "majority / early"


@pytest.mark.parametrize(
    "content",
    [
        "{torn",
        "[]",
        "{}",
        json.dumps({"curves": [{"points": [{"accuracy": {"value": 0.5}, "tokens": 0}]}]}),
        json.dumps({"curves": [{"name": "x", "points": [{"accuracy": 0.5, "tokens": "many"}]}], "choices": [{}]}),
        json.dumps(
            {"curves": [{"name": "x", "points": [{"accuracy": {"value": 0.5}, "tokens": 9}]}], "difficulty": {}}
        ),
    ],
)
def test_torn_files_break_nothing(folder: Path, content: str) -> None:
    (folder / "dpo" / "evaluations" / "spent.budget.json").write_text(content)
    assert "</html>" in render(read_run(folder))


def test_figures_are_called_by_their_names_and_shown_in_per_cent() -> None:
    names = {
        "oracle_at_16": "a right one among 16 answers",
        "majority_at_16": "majority of 16",
        "best_of_16_judge": "best of 16 by judge",
        "weighted_of_16_my.judge": "weighted best of 16 by my.judge",
        "solved_by_early-8": "solved by early-8",
    }
    assert {name: meaning(name).title for name in names} == names
    assert all(meaning(name).unit == "share" for name in names)
    assert not meaning("oracle_at_16").primary and meaning("majority_at_16").primary
    assert {figure(Figure(0.5), name) for name in names} == {"50 %"}


def test_a_search_shows_what_it_found_and_is_missed_nothing_that_it_does_not_write(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", PLAN)
    about = json.loads((run / "run.json").read_text())
    about["stages"].append({"name": "found", "method": "search", "status": "done", "seconds": 1.0})
    write_json(run / "run.json", about)
    data = {"read": 2, "kept": 1, "dropped": {"cut": 1}, "answers": 8, "prompts": 2}
    write_json(run / "found" / "stage.json", {"name": "found", "method": "search", "status": "done", "data": data})
    line = {
        "strategy": "best",
        "prompt": "2 + 2?",
        "answer": "<4>",
        "stopped": "done",
        "sampled": 12,
        "nodes": [{}, {}],
    }
    (run / "found" / "trees.jsonl").write_text(json.dumps(line) + "\n")
    (run / "found" / "data.jsonl").write_text('{"messages": []}\n')
    contents = read_run(run)
    page = render(contents)
    assert "Answers that it found" in page and "&lt;4&gt;" in page and "best: 2 pieces, 12 tokens, done" in page
    assert "<code>found/data.jsonl</code></span>" not in page and page.count("of the rejected ones") == 1  # of `pairs`
    assert not [problem for problem in contents.problems if "found" in str(problem.where)]


def test_every_colour_of_a_curve_is_one_that_the_page_knows():
    from pathlib import Path

    import posttrain.report.budget as module

    css = (Path(module.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    for colour in module.COLOURS:
        assert f".c-{colour} {{" in css, "a curve without a colour is not seen"
