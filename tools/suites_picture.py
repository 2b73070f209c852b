"""Figures of a run's suites as a picture: a panel a figure, a dot with its 95 % interval for every model.

    python -m tools.suites_picture runs/rejection_sampling_rounds arithmetic.accuracy > docs/rounds.svg

Reads what a run has written (`evaluation.json` of the start and of each stage), so that a page's picture and a page's
table come from one run. `--leave-out NAME` leaves a model out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from posttrain.runs.folder import RunFolder
from posttrain.runs.records.evaluation import Figure
from tools.architecture import STYLE

WIDTH, MARGIN, LABEL, ROW, TOP, PANEL_GAP = 1000, 24, 150, 28, 86, 40
COLOURS = """
  .dot { fill: #0969da; } .whisker { stroke: #0969da; stroke-width: 2; } .grid { stroke: #d0d7de; }
  @media (prefers-color-scheme: dark) {
    .dot { fill: #58a6ff; } .whisker { stroke: #58a6ff; } .grid { stroke: #3d444d; }
  }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of every model: Panel("arithmetic.accuracy", {"sft": Figure(0.48, 0.41, 0.55, 200)})."""

    figure: str
    of_model: dict[str, Figure]

    @property
    def highest(self) -> float:
        """The end of the axis: the next tenth above every interval."""
        return min(1.0, math.ceil(10 * max(figure.high or 0.0 for figure in self.of_model.values())) / 10)


def panels(run: RunFolder, figures: Sequence[str], leave_out: Sequence[str] = ()) -> list[Panel]:
    """The shares of the start and of every stage that was asked them, in the run's order.

    Raises:
        KeyError: no model of the run has a figure of that name; those that there are stand in the error.
    """
    asked = {model: scores.suites for model, scores in run.evaluations().items() if model not in leave_out}
    found: list[Panel] = []
    for figure in figures:
        suite, _, name = figure.partition(".")
        of_model = {model: suites[suite][name] for model, suites in asked.items() if name in suites.get(suite, {})}
        if not of_model:
            known = {
                f"{suite}.{name}" for suites in asked.values() for suite, names in suites.items() for name in names
            }
            raise KeyError(f"no model of {run.path} has the figure {figure}: there are {', '.join(sorted(known))}")
        found.append(Panel(figure, of_model))
    return found


def suites_svg(title: str, said: str, found: Sequence[Panel]) -> str:
    """The picture as SVG."""
    models = list(dict.fromkeys(model for panel in found for model in panel.of_model))
    height = TOP + len(models) * ROW + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}{COLOURS}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(MARGIN, 30, title, "title"),
        _text(MARGIN, 50, said, "soft"),
        *(_text(MARGIN + LABEL - 12, TOP + place * ROW + 19, model, "name end") for place, model in enumerate(models)),
    ]
    width = (WIDTH - 2 * MARGIN - LABEL - PANEL_GAP * (len(found) - 1)) / len(found)
    for place, panel in enumerate(found):
        parts += _panel(panel, models, MARGIN + LABEL + place * (width + PANEL_GAP), width)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, models: Sequence[str], left: float, width: float) -> Iterator[str]:
    bottom = TOP + len(models) * ROW
    # Room for a percentage behind the last whisker, which would stand in the next panel otherwise.
    room = width - 44

    def at(value: float) -> float:
        return left + room * value / panel.highest

    yield _text(left, TOP - 10, panel.figure.replace("_", " ").replace(".", ": "), "name")
    for tick in (0.0, panel.highest / 2, panel.highest):
        yield f'<line class="grid" x1="{at(tick):.1f}" y1="{TOP}" x2="{at(tick):.1f}" y2="{bottom}"/>'
        yield _text(at(tick), bottom + 18, f"{tick:.0%}", "soft middle")
    for place, model in enumerate(models):
        figure = panel.of_model.get(model)
        if figure is None or figure.value is None or figure.low is None or figure.high is None:
            continue  # a suite that nobody could be asked has no figure
        y = TOP + place * ROW + ROW / 2
        yield f'<line class="whisker" x1="{at(figure.low):.1f}" y1="{y}" x2="{at(figure.high):.1f}" y2="{y}"/>'
        yield f'<circle class="dot" cx="{at(figure.value):.1f}" cy="{y}" r="5"/>'
        yield _text(at(figure.high) + 8, y + 4, f"{figure.value:.0%}", "soft")


def _text(left: float, top: float, text: str, name: str) -> str:
    return f'<text class="{name}" x="{left:.1f}" y="{top:.1f}">{escape(text)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("figures", nargs="+", metavar="SUITE.FIGURE")
    parser.add_argument("--title", default="")
    parser.add_argument("--leave-out", action="append", default=[], metavar="MODEL")
    options = parser.parse_args()
    run = RunFolder(options.run)
    found = panels(run, options.figures, options.leave_out)
    record = run.run()
    said = "dots are figures on held-out questions, lines their 95 % intervals; models in the order of the recipe"
    print(suites_svg(options.title or str(record.name), said, found), end="")


if __name__ == "__main__":
    main()
