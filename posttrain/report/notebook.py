"""A stage as a notebook shows it: its few lines and its curves, drawn as the report draws them.

The picture stands in a frame of its own (`srcdoc`): the report's style sheet would else restyle the notebook around it,
and the notebook's would restyle the picture. It holds no script and asks for nothing from a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from posttrain.report.page import UNSEEN, fragment
from posttrain.report.panels import curve_charts, group_alarms
from posttrain.runs.read import read_run

MOST_CHARTS = 6
MARGIN_PIXELS, ROW_PIXELS, CHART_PIXELS, CHARTS_A_ROW = 32, 26, 268, 2
"""As the style sheet has them: a frame cannot grow with what is in it, and one that is too low cuts the last curves."""


def stage_html(run_dir: Path, stage: str, facts: Sequence[tuple[str, str]]) -> str:
    """HTML for an output cell.

    Args:
        facts: label and text of each line above the curves.

    Raises:
        SourceError: `run_dir` is no run folder.
    """
    found = next((one for one in read_run(run_dir).stages if one.name == stage), None)
    charts = [] if found is None else curve_charts(found, group_alarms(found))[0][:MOST_CHARTS]
    page = fragment("notebook.html.jinja", facts=facts, charts=charts).translate(UNSEEN)
    rows = -(-len(charts) // CHARTS_A_ROW)
    height = MARGIN_PIXELS + ROW_PIXELS * len(facts) + CHART_PIXELS * rows
    title = escape(f"{run_dir.name}: {stage}", quote=True)
    return (
        f'<iframe srcdoc="{escape(page, quote=True)}" sandbox="" title="{title}" '
        f'style="width: 100%; height: {height}px; border: 0"></iframe>'
    )
