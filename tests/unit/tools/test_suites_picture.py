"""A run's figures as a picture: what is drawn is what the run has written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.runs.folder import RunFolder
from posttrain.runs.records.evaluation import Figure, SuiteScores
from tools.suites_picture import panels, suites_svg


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    scores = {
        "start": SuiteScores({"sums": {"accuracy": Figure(0.0, 0.0, 0.1, 40), "length": Figure(9.0, 8.0, 10.0, 40)}}),
        "sft": SuiteScores({"sums": {"accuracy": Figure(0.5, 0.4, 0.6, 40)}}),
        "odd": SuiteScores({"sums": {"accuracy": Figure(None, None, None, None)}}),
    }
    monkeypatch.setattr(RunFolder, "evaluations", lambda self: scores)
    return RunFolder(tmp_path)


def test_a_dot_and_a_whisker_where_the_run_says(run: RunFolder) -> None:
    found = panels(run, ["sums.accuracy"], ["start"])
    assert [panel.highest for panel in found] == [0.6]
    svg = suites_svg("sums", "said", found)
    # The panel begins at 174 and its axis is 758 wide, the highest value at its end.
    at = 174 + 758 * 0.5 / 0.6
    assert re.findall(r'class="dot" cx="([\d.]+)"', svg) == [f"{at:.1f}"]
    low, high = (174 + 758 * value / 0.6 for value in (0.4, 0.6))
    assert f'class="whisker" x1="{low:.1f}"' in svg and f'x2="{high:.1f}"' in svg
    assert ">50%<" in svg


def test_a_figure_that_no_model_has_names_those_that_there_are(run: RunFolder) -> None:
    with pytest.raises(KeyError, match=r"sums\.pass_at_1: there are sums\.accuracy, sums\.length"):
        panels(run, ["sums.pass_at_1"])
