"""A merge on the page: how its models lie to each other, the line between them, its search, and what it kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.report.charts import Chart, Key, Note, Rule, Shape, Tick, dots, joined, spread_labels, y_axis_ticks
from posttrain.report.numbers import MISSING, axis, count, interval, number
from posttrain.runs.layout import model_label
from posttrain.runs.read import RunContents, Stage
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.merging import Barrier, MergeComparison, SearchRecord, TaskVector, VectorPart

COLOURS = ("accent", "second", "chosen", "rejected", "warn")
CHANCE = 0.5
"""Of two models that know nothing of each other, so many of the shared entries have opposite signs."""
MOST_CANDIDATES = 40
"""Candidates of a search in the table; search.json has all."""
KINDS = {"kept": "good", "lost": "bad", "kept a part": "warn"}


@dataclass(frozen=True, slots=True)
class VectorRow:
    """VectorRow("maths", "12.4", "8.1 %", "100 %", ["1.00", "0.12"])"""

    model: str
    norm: str
    relative: str
    changed: str
    cosines: list[str]


@dataclass(frozen=True, slots=True)
class PartRow:
    """One kind of module: PartRow("mlp.up_proj", "1,769,472", ["2.1", "1.7"], "31 %")"""

    part: str
    entries: str
    norms: list[str]
    conflict: str


@dataclass(frozen=True, slots=True)
class SearchView:
    """A search: what it says, and its candidates, the best first: (what, values, score, chosen)."""

    said: str
    columns: list[str]
    rows: list[tuple[str, list[str], str, bool]]
    more: int


@dataclass(frozen=True, slots=True)
class MergeView:
    """The part of a stage's section."""

    note: str
    over: str
    models: list[str]
    vectors: list[VectorRow]
    conflict: str
    kinds: list[PartRow]
    charts: list[Chart]
    barriers: list[Chart]
    barriers_said: list[str]
    search: SearchView | None


def merge_view(stage: Stage) -> MergeView | None:
    """None of a stage that merged nothing, or that has not come so far."""
    compared, search = stage.merge, stage.weight_search
    if compared is None and search is None:
        return None
    compared = compared or MergeComparison.from_json({})
    names = [model_label(vector.model) for vector in compared.vectors]
    rows = [_vector(one, cosines) for one, cosines in zip(compared.vectors, compared.cosines, strict=False)]
    if compared.merged is not None:
        rows.append(_vector(compared.merged, compared.merged_cosines, "the merge"))
    drawn = [_conflicts(compared.layers)] if any(part.conflict is not None for part in compared.layers) else []
    return MergeView(
        note=compared.note,
        over=model_label(compared.base or ""),
        models=names,
        vectors=rows,
        conflict="" if compared.conflict is None else number(compared.conflict, "share"),
        kinds=[_kind(part) for part in compared.kinds],
        charts=([_norms(compared.layers, names)] if compared.layers else []) + drawn,
        barriers=[_barrier(one) for one in compared.barriers if one.points],
        barriers_said=[_height(one) for one in compared.barriers],
        search=None if search is None else _search(search, names),
    )


def _vector(vector: TaskVector, cosines: Sequence[float | None], name: str = "") -> VectorRow:
    return VectorRow(
        model=name or model_label(vector.model),
        norm=number(vector.norm),
        relative=number(vector.relative_norm, "share"),
        changed=number(vector.changed, "share"),
        cosines=[_two_digits(cosine) for cosine in cosines],
    )


def _two_digits(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}".replace("-", "\u2212")


def _kind(part: VectorPart) -> PartRow:
    return PartRow(
        part.part, count(part.entries), [number(norm) for norm in part.norms], number(part.conflict, "share")
    )


# ---------------------------------------------------------------- pictures


def _norms(layers: Sequence[VectorPart], names: Sequence[str]) -> Chart:
    lines = [
        (name, [part.norms[index] if index < len(part.norms) else None for part in layers])
        for index, name in enumerate(names)
    ]
    return _by_layer("How far each model moved", "norm of the change", layers, lines)


def _conflicts(layers: Sequence[VectorPart]) -> Chart:
    return _by_layer(
        "Opposite directions",
        "share of the entries that several models changed",
        layers,
        [("", [part.conflict for part in layers])],
        unit="share",
        most=1.0,
        chance=CHANCE,
    )


def _by_layer(
    title: str,
    said: str,
    layers: Sequence[VectorPart],
    lines: Sequence[tuple[str, Sequence[float | None]]],
    *,
    unit: str = "",
    most: float | None = None,
    chance: float | None = None,
) -> Chart:
    known = [value for _, values in lines for value in values if value is not None]
    across = axis(0.0, float(max(1, len(layers) - 1)))
    up = axis(0.0, most if most is not None else max(known, default=1.0) or 1.0)
    paths: list[Shape] = []
    notes: list[Note] = []
    for (_, values), colour in zip(lines, COLOURS, strict=False):
        points = [(across.place(float(at)), up.place(value)) for at, value in enumerate(values) if value is not None]
        paths += [Shape(joined(points), colour, "main"), Shape(dots(points), colour, "main dot")]
        if points:
            notes.append(
                Note(100 - 100 * points[-1][1], number([v for v in values if v is not None][-1], unit), colour)
            )
    # A label for each of a hundred layers would be a black bar.
    step = max(1, len(layers) // 8)
    labels = [(at, part.part.removeprefix("layer ")) for at, part in enumerate(layers)]
    return Chart(
        title=title,
        unit=said,
        said=f"{title}, {said}, by layer.",
        paths=paths,
        x_ticks=[Tick(100 * across.place(float(at)), _abbreviated(label)) for at, label in labels[::step]],
        y_ticks=y_axis_ticks(up, unit),
        x_title="layer",
        rules=[] if chance is None else [Rule(100 - 100 * up.place(chance), False, "chance")],
        notes=spread_labels(notes),
        keys=[Key(name, colour) for (name, _), colour in zip(lines, COLOURS, strict=False) if name],
    )


def _abbreviated(label: str) -> str:
    """embed_tokens would run into the layer beside it."""
    return {"embed_tokens": "in", "lm_head": "out"}.get(label, label)


def _barrier(barrier: Barrier) -> Chart:
    points = [point for point in barrier.points if point.at is not None and point.loss is not None]
    losses = [point.loss for point in points if point.loss is not None]
    straight = [point.straight for point in points if point.straight is not None]
    across, up = axis(0.0, 1.0), axis(min([*losses, *straight]), max([*losses, *straight]), room=0.08)
    line = [(across.place(p.at), up.place(p.loss)) for p in points if p.at is not None and p.loss is not None]
    ends = [(across.place(p.at), up.place(p.straight)) for p in points if p.at is not None and p.straight is not None]
    first, second = model_label(barrier.first), model_label(barrier.second)
    return Chart(
        title=f"{first} → {second}",
        unit="nats per token",
        help="the loss of models on the straight line between the two, on the same rows",
        said=f"Loss from {first} to {second}: " + ", ".join(number(loss) for loss in losses),
        caption=f"{count(barrier.rows)} rows, {count(barrier.tokens)} tokens",
        paths=[
            Shape(joined(ends), "ink-3", "main"),
            Shape(joined(line), "accent", "main"),
            Shape(dots(line), "accent", "main dot"),
        ],
        x_ticks=[Tick(100 * across.place(at), f"{100 * at:.0f} %") for at in (0.0, 0.25, 0.5, 0.75, 1.0)],
        y_ticks=y_axis_ticks(up, ""),
        x_title=f"share of {second}",
        keys=[Key("on the line", "accent"), Key("between the ends", "ink-3")],
    )


def _height(barrier: Barrier) -> str:
    ends = f"{model_label(barrier.first)} → {model_label(barrier.second)}"
    height = barrier.height or 0.0
    return f"{ends}: {number(height)} nats per token at {number(barrier.at, 'share')}" if height else f"{ends}: none"


# ---------------------------------------------------------------- a search


def _search(record: SearchRecord, names: Sequence[str]) -> SearchView:
    chosen = record.chosen.values if record.chosen is not None else None
    order = sorted(record.candidates, key=lambda one: -(one.score if one.score is not None else -1.0))
    rows = [
        (one.what, [number(value) for value in one.values], number(one.score, "share"), one.values == chosen)
        for one in order[:MOST_CANDIDATES]
    ]
    width = max((len(one.values) for one in record.candidates), default=0)
    columns = list(names) if len(names) == width else [record.over] * width
    return SearchView(record.said, columns, rows, max(0, len(order) - MOST_CANDIDATES))


# ---------------------------------------------------------------- what was kept


@dataclass(frozen=True, slots=True)
class KeptRow:
    """One merge on one suite, as the table has it; cells are (figure, interval)."""

    merge: str
    suite: str
    before: tuple[str, str]
    parents: list[tuple[str, str, str]]
    """(name, figure, interval)"""
    merged: tuple[str, str]
    kept: tuple[str, str]
    kind: str
    said: str


def kept_view(run: RunContents) -> list[KeptRow]:
    """Rows of the section on what merges kept; empty where nothing was merged or asked."""
    return [
        KeptRow(
            merge=skill.merge,
            suite=skill.suite,
            before=_figure(skill.before),
            parents=[(name, *_figure(figure)) for name, figure in skill.parents.items()],
            merged=_figure(skill.merged),
            kept=_figure(skill.kept),
            kind=_kind_of(skill.said, skill.merge),
            said=skill.said,
        )
        for skill in run.merged_skills
    ]


def _figure(figure: Figure | None) -> tuple[str, str]:
    if figure is None:
        return MISSING, ""
    return number(figure.value, "share"), interval(figure.low, figure.high, "share")


def _kind_of(said: str, merge: str) -> str:
    rest = said.removeprefix(f"{merge} ")
    return next(
        (kind for words, kind in sorted(KINDS.items(), key=lambda item: -len(item[0])) if rest.startswith(words)),
        "plain",
    )
