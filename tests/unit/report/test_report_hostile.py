"""What a page makes of figures that are not finite, of names that are markup, and of screens of a telephone's width."""

from __future__ import annotations

import re
from pathlib import Path

from posttrain.report.distributions import interval_chart
from posttrain.report.page import render
from posttrain.report.ratings import ratings_view
from posttrain.report.sweep_page import FigureOfSettings, SettingRow, SweepPage
from posttrain.report.sweep_page import render as render_sweep
from posttrain.runs.files import write_json
from posttrain.runs.read import read_run
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.ratings import BothOrders, RatedPolicy, Ratings, RunRatings, StyleWeight
from tests.fake_run import Plan, write_fake_run

NAN = float("nan")
TEMPLATES = Path("posttrain/report/templates")
MARKUP = "<script>alert(1)</script>"


def rated(*policies: RatedPolicy) -> Ratings:
    style = (StyleWeight("length", Figure(0.73, 0.48, 1.03, 60)),)
    orders = BothOrders(180, Figure(0.64, 0.58, 0.71, 60), Figure(0.028, -0.01, 0.06, 60))
    return Ratings(1, "start", 1000.0, 60, 360, policies, (), style, orders, (f"{MARKUP} never lost",))


def test_ratings_show_intervals_and_no_markup_and_nothing_where_nothing_is_finite(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", Plan(steps=4, pairs=4, prompts=4, alarms=False, warn=False, dropped=False))
    start = RatedPolicy("start", Figure(1000.0, 1000.0, 1000.0, 60), None, None, None, 10.0, 60, 60)
    lost = RatedPolicy(MARKUP, Figure(NAN, NAN, NAN, 60), None, Figure(NAN), None, None, None, None)
    better = RatedPolicy(
        "dpo",
        Figure(1200.0, 1140.0, 1260.0, 60),
        Figure(9.0, -159.0, 90.0, 60),
        Figure(0.8, 0.7, 0.9, 60),
        None,
        1.0,
        9,
        9,
    )
    write_json(run / "ratings.json", RunRatings({MARKUP: rated(better, start, lost)}).to_json())
    (view,) = ratings_view(read_run(run))
    first, anchor, last = view.rows
    assert [cell.interval for cell in first.cells] == ["1140 to 1260", "−159 to 90", "70.0 to 90.0\u202f%", ""]
    assert (anchor.cells[0].value, anchor.cells[0].interval) == ("1000", "")
    assert {cell.value for cell in last.cells} == {""} and last.games == "–"
    said = " ".join(view.said)
    assert "length 0.730 (0.480 to 1.03)" in said and "58.0 to 71.0" in said and "−1.0 to 6.0" in said
    page = render(read_run(run))
    assert MARKUP not in page and "&lt;script&gt;alert(1)" in page
    cell = rated(better, start, lost)._repr_html_()
    assert MARKUP not in cell and "monospace" in cell and "1200 [1140, 1260]" in cell
    # The narrow page has no heads: each figure says what it is of.
    cells = re.findall(r"<td[^>]*>", page.partition('id="ratings"')[2].partition("</section>")[0])
    assert len(cells) == 15 and all("data-column=" in cell for cell in cells)


def test_figures_of_every_table_are_named_where_its_heads_are_hidden() -> None:
    for name in ("budget", "ratings", "sweep.html"):
        text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        tables = re.findall(r'<table class="results.*?</table>', text, flags=re.DOTALL)
        assert tables
        for cell in (cell for table in tables for cell in re.findall(r"<td[^>]*>", table)):
            assert "data-column" in cell or cell == "<td>", f"{name}: {cell}"


def test_a_chart_names_what_is_not_finite_and_places_the_rest() -> None:
    chart = interval_chart(
        "loss", [("a", Figure(NAN, NAN, NAN, 3)), ("b", Figure(1.2, 1.0, 1.4, 3)), ("c", Figure(float("inf")))], ""
    )
    assert [tick.label for tick in chart.y_ticks] == ["a", "b", "c"]
    assert [note.label for note in chart.notes] == ["–", "1.20", "–"]
    assert [shape.look for shape in chart.paths] == ["interval", "figure"] and not chart.rules
    lost = interval_chart("loss", [("a", Figure(NAN))], "", limit=0.05)
    assert not lost.paths and not lost.x_ticks


def test_long_names_of_settings_have_the_whole_width_and_lines_are_explained() -> None:
    def page(label: str) -> str:
        values = [(f"{label}{number}", Figure(0.5, 0.4, 0.6, 3)) for number in range(2)]
        rows = [SettingRow(["0.1", "3", ""], [("run", "done")], best=True), SettingRow(["0.2", "3", MARKUP], [])]
        return render_sweep(
            SweepPage(MARKUP, ["dpo.beta", "seeds", ""], rows, [FigureOfSettings("sums", "share", values)])
        )

    short, long = page("beta="), page("dpo.beta=0.05, optimizer=")
    assert "grid-template-columns:1fr" in long and "grid-template-columns:1fr" not in short
    assert MARKUP not in long and "Dotted, and its setting grey: the first" in long
