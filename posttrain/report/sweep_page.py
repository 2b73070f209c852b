"""The page of a sweep: its table, each figure's intervals by setting, the best, and what failed; sweep.html."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from posttrain.report.charts import Chart
from posttrain.report.distributions import interval_chart
from posttrain.report.page import UNSEEN
from posttrain.report.palette import custom_properties
from posttrain.runs.files import write_bytes
from posttrain.runs.records.evaluation import Figure

PAGE = "sweep.html"
MOST_ROWS = 40
"""Settings in a picture: more are read from the table."""


@dataclass(frozen=True, slots=True)
class SettingRow:
    """SettingRow(["0.05", "3", "62.0 % [55.1, 68.9]"], [("dpo.beta-0.05_seed-0", "done")], best=True)"""

    cells: list[str]
    runs: list[tuple[str, str]]
    """Run folders of the setting, each with how it stands."""
    best: bool = False


@dataclass(frozen=True, slots=True)
class FigureOfSettings:
    """One figure by setting: FigureOfSettings("sums (accuracy)", "share", [("dpo.beta=0.05", Figure(0.62))])."""

    title: str
    unit: str
    values: list[tuple[str, Figure]]


@dataclass(frozen=True, slots=True)
class SweepPage:
    """Everything that the template needs."""

    title: str
    heads: list[str]
    rows: list[SettingRow]
    figures: list[FigureOfSettings]
    best: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def write_sweep_page(folder: Path, page: SweepPage) -> Path:
    """Write sweep.html into the sweep's folder; the same page gives the same bytes."""
    path = folder / PAGE
    write_bytes(path, render(page).encode("utf-8", errors="replace"))
    return path


def render(page: SweepPage) -> str:
    """The whole page as text."""
    templates = Path(__file__).parent / "templates"
    environment = Environment(
        loader=PackageLoader("posttrain.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (templates / "report.js").read_text(encoding="utf-8")
    text = environment.get_template("sweep.html.jinja").render(
        page=page,
        charts=charts_of(page.figures),
        style=Markup(custom_properties() + (templates / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return text.translate(UNSEEN)


def charts_of(figures: Sequence[FigureOfSettings]) -> list[Chart]:
    """A row a setting, in the table's order."""
    return [interval_chart(one.title, one.values[:MOST_ROWS], one.unit) for one in figures if one.values]
