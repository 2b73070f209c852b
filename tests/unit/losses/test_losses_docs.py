"""docs/objectives.md and docs/alarms.md say what the code does."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from posttrain.diagnostics.checks import CHECKS, ONLINE_CHECKS
from posttrain.diagnostics.metrics import METRICS
from posttrain.diagnostics.online_metrics import ONLINE_METRICS
from posttrain.diagnostics.rollout_metrics import ROLLOUT_METRICS
from posttrain.losses.feedback import FEEDBACK
from posttrain.losses.pairwise import PAIRWISE

DOCS = Path(__file__).parents[3] / "docs"
OBJECTIVES = (DOCS / "objectives.md").read_text(encoding="utf-8")
ONLINE_PAGE = (DOCS / "online.md").read_text(encoding="utf-8")
RL_PAGE = (DOCS / "rl.md").read_text(encoding="utf-8")
ALARMS = (DOCS / "alarms.md").read_text(encoding="utf-8")
ONLINE_ALARMS = (DOCS / "diagnosing-rl.md").read_text(encoding="utf-8")
CRITICAL = ("loss_divergence", "dead_learning", "nothing_supervised", "reward_collapse")
CELL = r"\s*\|\s*"


def _rows(text: str) -> dict[str, list[str]]:
    """Lines of tables whose first cell is `code`: name -> cells."""
    table = {}
    for line in text.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and re.fullmatch(r"`\w+`", cells[0]):
            table.setdefault(cells[0].strip("`"), cells)
    return table


def test_every_objective_has_its_line_and_no_other() -> None:
    assert set(PAIRWISE) <= set(_rows(OBJECTIVES))
    documented = [line for line in OBJECTIVES.splitlines() if line.startswith("| `") and line.count(" | ") >= 5]
    assert len(documented) == len(PAIRWISE)


@pytest.mark.parametrize("name", PAIRWISE)
def test_an_objective_is_documented_as_it_is(name: str) -> None:
    row, cells = PAIRWISE[name], _rows(OBJECTIVES)[name]
    parameters, source = cells[5], cells[6]
    assert parameters == ", ".join(f"{key} {value}" for key, value in row.defaults.items())
    link = re.search(r"arXiv:[\d.]+|cdpo\.pdf", row.source)
    assert link is not None
    assert link.group() in source or name == "ipo_sum"
    assert ("π_ref" in cells[1]) == row.needs_reference
    assert ("1/|y|" in cells[1]) == ("1/|y|" in row.score.formula)
    assert bool(cells[3]) == (row.margin is not None)
    assert bool(cells[4]) == (row.extra is not None)


@pytest.mark.parametrize("name", FEEDBACK)
def test_a_feedback_objective_is_documented_as_it_is(name: str) -> None:
    row, cells = FEEDBACK[name], _rows(OBJECTIVES)[name]
    parameters, source = cells[3], cells[4]
    assert parameters == ", ".join(f"{key} {value}" for key, value in row.defaults.items())
    link = re.search(r"arXiv:[\d.]+", row.source)
    assert link is not None and link.group() in source
    assert (cells[2] == "0") == (row.coupling is None)


@pytest.mark.parametrize("name", PAIRWISE)
def test_an_objective_says_what_it_needs_and_when_to_take_it(name: str) -> None:
    row, cells = PAIRWISE[name], _rows(OBJECTIVES)[name]
    needs, when = cells[7], cells[8]
    assert ("π_ref" in needs) == row.needs_reference
    assert ("the step" in needs) == (row.coupling is not None)
    assert when


def test_every_metric_of_the_losses_is_documented() -> None:
    of_the_loop = {"grad_norm", "learning_rate", "tokens_per_second", "length_generated"}
    for name in set(METRICS) - of_the_loop:
        page = ONLINE_PAGE if name in ONLINE_METRICS else RL_PAGE if name in ROLLOUT_METRICS else OBJECTIVES
        assert f"`{name}`" in page, name


def test_every_alarm_has_a_section_and_every_threshold_its_default() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", ALARMS, flags=re.MULTILINE | re.DOTALL))
    assert set(sections) == {*CHECKS, "non_finite"} - {*ONLINE_CHECKS}
    for name in CHECKS.keys() - ONLINE_CHECKS.keys():
        check = CHECKS[name]
        assert is_dataclass(check)
        written = {key: cells[1] for key, cells in _rows(sections[name]).items()}
        assert written == {field.name: str(field.default) for field in fields(check)}, name
        assert ("Critical" in sections[name]) == (name in CRITICAL)


def test_every_online_alarm_has_its_line_and_every_threshold_its_default() -> None:
    lines = {name: cells for name, cells in _rows(ONLINE_ALARMS).items() if len(cells) == 4}
    assert set(lines) == set(ONLINE_CHECKS)
    for name, check in ONLINE_CHECKS.items():
        assert is_dataclass(check)
        written = dict(re.findall(r"`(\w+)` ([\d.]+)", lines[name][2]))
        assert written == {field.name: str(field.default) for field in fields(check)}, name
