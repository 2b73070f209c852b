"""What a stage on several sources shows: a table of them, and a picture of each measurement that they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posttrain.report.charts import LineStyle
from posttrain.report.numbers import count, number, short_count
from posttrain.report.panels import POSITIVE, SIGNED, Panel
from posttrain.runs.read import Stage

COLOURS = ("accent", "second", "chosen", "rejected", "good", "warn")
TITLES: dict[str, tuple[str, str, LineStyle]] = {
    "loss": ("Loss by source", "nats", POSITIVE),
    "reward_accuracy": ("Reward accuracy by source", "share of pairs", LineStyle(unit="share", bounds=(0.0, 1.0))),
    "reward_margin": ("Reward margin by source", "chosen minus rejected", SIGNED),
    "step_accuracy": ("Step accuracy by source", "share of steps", LineStyle(unit="share", bounds=(0.0, 1.0))),
    "rows": ("Rows of a step by source", "rows", LineStyle(zero=True, exact=True)),
    "supervised_tokens": ("Trained tokens by source", "tokens", LineStyle(zero=True)),
}
"""(title, subtitle, style) of a measurement by source; in the order in which one looks at them."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A line of the table: SourceRow("maths", "936", "52 812", "66.7 %", "2.15", "49", "1.41", "0.93")."""

    name: str
    rows: str
    tokens: str
    share: str
    epochs: str
    held_out_rows: str
    before: str
    """The loss on its held-out rows before training, and after."""
    after: str


def source_names(stage: Stage) -> list[str]:
    """Of the rows that train, and of those that are held out."""
    data = stage.about.data
    groups = [] if data is None else [data.sources or (), (data.held_out.sources or ()) if data.held_out else ()]
    return list(dict.fromkeys(source.name for group in groups for source in group))


def source_rows(stage: Stage) -> list[SourceRow]:
    """The table; none of a stage on a single source."""
    return list(_rows(stage))


def source_panels(stage: Stage, names: Sequence[str]) -> list[Panel]:
    """Pictures with a line for each source; a mixture of many sources has several of each.

    Args:
        names: the measurements that the stage has.
    """
    sources, found = source_names(stage), []
    for metric, (title, subtitle, style) in TITLES.items():
        known = [source for source in sources if f"{metric}/{source}" in names]
        for first in range(0, len(known), len(COLOURS)):
            some = known[first : first + len(COLOURS)]
            colours = COLOURS[: len(some)]
            series = tuple((f"{metric}/{name}", name, colour) for name, colour in zip(some, colours, strict=True))
            found.append(Panel(title, subtitle, series, style))
    return found


def _rows(stage: Stage) -> Iterator[SourceRow]:
    data = stage.about.data
    sources = (data.sources or ()) if data is not None else ()
    total = sum(source.taken or 0 for source in sources)
    for source in sources:
        curve = stage.curves.get("held_out", {}).get(f"loss/{source.name}")
        measured = [value for value in curve.values if value is not None] if curve is not None else []
        yield SourceRow(
            source.name,
            count(source.rows),
            short_count(source.tokens),
            number(source.taken / total if source.taken is not None and total else None, "share"),
            number(source.epochs),
            count(source.held_out_rows),
            number(measured[0] if measured else None),
            number(measured[-1] if measured else None),
        )
