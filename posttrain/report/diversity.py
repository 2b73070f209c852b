"""How diverse the prompts are that a stage had a model write: one point after each tenth of them."""

from __future__ import annotations

from dataclasses import replace

from posttrain.report.charts import Chart, Line, LineStyle, line_chart
from posttrain.runs.read import Curve, Stage
from posttrain.runs.records.stage import DiversityPoint

SHARE = LineStyle(unit="share", bounds=(0.0, 1.0), exact=True)

PICTURES = (
    ("Distinct words", "of those kept", (("distinct_1", "words", "accent"), ("distinct_2", "pairs", "second")), SHARE),
    ("Distance to the nearest", "1 - cosine, TF-IDF", (("nearest_distance", "", "accent"),), SHARE),
    ("Repeated", "share of what was written", (("repeated", "", "accent"),), SHARE),
    ("Vendi score", "of those kept", (("vendi", "", "accent"),), LineStyle(exact=True)),
)
"""(title, unit, ((a field of DiversityPoint, label, colour), ...), style)"""


def diversity_charts(stage: Stage) -> list[Chart]:
    """A picture of each measure over the prompts that were written; none of a stage that wrote none."""
    points = (stage.about.data.diversity if stage.about.data is not None else None) or ()
    return [
        # What the pointer reads out are steps of training, and these are none.
        replace(chart, unit=unit, x_title="written", readout=None, said=f"{title}, {unit}, over the prompts written.")
        for title, unit, series, style in PICTURES
        if any(_values(points, name).count(None) < len(points) for name, _, _ in series)
        for chart in [line_chart(title, [_line(points, *one) for one in series], style)]
    ]


def _line(points: tuple[DiversityPoint, ...], name: str, label: str, colour: str) -> Line:
    return Line(label, colour, Curve([float(point.made) for point in points], _values(points, name)))


def _values(points: tuple[DiversityPoint, ...], name: str) -> list[float | None]:
    figures: dict[str, list[float | None]] = {
        "distinct_1": [point.distinct_1 for point in points],
        "distinct_2": [point.distinct_2 for point in points],
        "nearest_distance": [point.nearest_distance for point in points],
        "repeated": [point.repeated for point in points],
        "vendi": [point.vendi for point in points],
    }
    return figures[name]
