"""Which measurements share a picture, in the order in which one looks at a run.

A measurement that no panel names gets a picture of its own, so a new method's metrics show up without a change here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from posttrain.diagnostics.metrics import METRICS
from posttrain.report.charts import Chart, Line, LineStyle, Mark, line_chart
from posttrain.report.distributions import box_chart, common_bins, histogram, scatter
from posttrain.report.numbers import count, number
from posttrain.report.summaries import window
from posttrain.runs.read import Stage
from posttrain.runs.records.logs import Alarm
from posttrain.runs.values import as_number, as_text

SPLITS = ("train", "held_out")
CLOSE_MARKS = 5.0
"""Alarm marks nearer than this many per cent of the plot share one badge."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: Panel("Rewards", "of both sides", (("rewards_chosen", "chosen", "chosen"), ...), SIGNED)."""

    title: str
    subtitle: str
    series: tuple[tuple[str, str, str], ...]
    """(metric, label, palette colour); the label is "" where the panel has a single measurement."""
    style: LineStyle = field(default_factory=LineStyle)


def _sides(metric: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((metric.format(side), side, side) for side in ("chosen", "rejected"))


def _one(metric: str) -> tuple[tuple[str, str, str], ...]:
    return ((metric, "", "accent"),)


POSITIVE = LineStyle(positive=True)
SIGNED = LineStyle(zero=True)
SHARE = LineStyle(unit="share")
IMPLICIT = "implicit"
"""The rewards of a preference stage, which a reward model gives outright."""

PANELS = (
    Panel("Loss", "nats", _one("loss"), POSITIVE),
    Panel(
        "Terms of the loss",
        "nats, unweighted",
        (("preference_loss", "preference", "accent"), ("nll_loss", "anchor", "second")),
        POSITIVE,
    ),
    Panel("Rewards", IMPLICIT, _sides("rewards_{}"), SIGNED),
    Panel(
        "Mean and spread",
        "of all rewards",
        (("reward_mean", "mean", "accent"), ("reward_std", "std", "second")),
        SIGNED,
    ),
    Panel("Reward margin", "chosen minus rejected", _one("reward_margin"), SIGNED),
    Panel(
        "Reward accuracy",
        "share of pairs",
        _one("reward_accuracy"),
        LineStyle(unit="share", bounds=(0.0, 1.0), chance=0.5),
    ),
    Panel(
        "Step accuracy",
        "shares of steps and responses",
        (("step_accuracy", "steps", "accent"), ("first_error_accuracy", "first errors", "second")),
        LineStyle(unit="share", bounds=(0.0, 1.0)),
    ),
    Panel(
        "Confidence",
        "sigmoid(|margin|)",
        _one("reward_confidence"),
        LineStyle(unit="share", bounds=(0.5, 1.0)),
    ),
    Panel(
        "Change of log-prob",
        "nats",
        _sides("logprob_{}_change"),
        SIGNED,
    ),
    Panel("Log-prob", "nats per token", _sides("logprob_per_token_{}")),
    Panel(
        "KL estimates on the data",
        "nats per token",
        (
            ("kl_k1_on_data", "k1", "accent"),
            ("kl_k2_on_data", "k2", "second"),
        ),
        SIGNED,
    ),
    # On its own: where the policy lost a token, k3 is thousands of times the other two.
    Panel("KL estimate k3 on the data", "nats per token", _one("kl_k3_on_data"), POSITIVE),
    Panel("Answer length", "trained tokens", _sides("length_{}")),
    Panel("Demonstration length", "trained tokens", _one("length")),
    Panel("Generated length", "tokens per answer", _one("length_generated")),
    Panel("Gradient norm", "before clipping", _one("grad_norm"), POSITIVE),
    Panel("Learning rate", "", _one("learning_rate"), LineStyle(exact=True)),
    Panel("Speed", "tokens per second", _one("tokens_per_second"), SIGNED),
    Panel("Trained share", "of all tokens", _one("supervised_share"), SHARE),
    Panel("Entropy", "nats per token", _one("entropy")),
)


@dataclass(frozen=True, slots=True)
class AlarmGroup:
    """All firings of one alarm in a stage, under the badge that marks them on the curves."""

    badge: str
    name: str
    severity: str
    steps: list[float]
    message: str
    evidence: list[tuple[str, str]]
    remedy: str
    last_good_checkpoint: str
    moment: str = "before the first step"
    """When it fired, if at no step."""

    @property
    def when(self) -> str:
        if not self.steps:
            return self.moment
        if len(self.steps) == 1:
            return f"step {count(self.steps[0])}"
        return f"{len(self.steps)} times, steps {count(self.steps[0])} to {count(self.steps[-1])}"


def group_alarms(stage: Stage) -> list[AlarmGroup]:
    """Critical ones first, then by their first step; all but the steps is what the first firing said."""
    # What a reward model's evaluation found stands at no step, and so at no place on the curves.
    after = [replace(alarm, step=None) for alarm in stage.reward_findings]
    by_name: dict[tuple[str, str, str], list[Alarm]] = {}
    for moment, alarms in (("before the first step", stage.alarms), ("after the last step", after)):
        for alarm in alarms:
            # By severity too: an alarm that became critical is news, and its first step is when it did.
            by_name.setdefault((alarm.severity, alarm.name or "alarm", moment), []).append(alarm)
    groups = []
    for (severity, name, moment), alarms in by_name.items():
        # By step, not by line: a resumed run writes the steps that it takes again behind the later ones.
        first = min(alarms, key=lambda alarm: -1 if alarm.step is None else alarm.step)
        groups.append(
            AlarmGroup(
                badge="",
                name=name,
                severity=severity,
                steps=sorted(float(alarm.step) for alarm in alarms if alarm.step is not None),
                message=sentence(first.message),
                evidence=evidence_items(first.evidence),
                remedy=sentence(first.remedy),
                last_good_checkpoint=first.last_good_checkpoint or "",
                moment=moment,
            )
        )
    # An empty list comes before any step: what fired before training leads among its like.
    groups.sort(key=lambda group: (group.severity != "critical", group.steps[:1]))
    return [replace(group, badge=str(index)) for index, group in enumerate(groups, start=1)]


def sentence(text: str) -> str:
    """With a capital at its beginning, unless it begins with a name in code: "lower the rate" -> "Lower the rate"."""
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text


def evidence_items(evidence: object) -> list[tuple[str, str]]:
    """{"margin": 2.13, "rows": [3, 4]} -> [("margin", "2.13"), ("rows", "[3, 4]")]."""
    if not isinstance(evidence, dict):
        return [("", as_text(evidence))] if evidence else []
    found = []
    for key, value in evidence.items():
        figure = as_number(value)
        written = as_text(value) if figure is None else count(figure) if isinstance(value, int) else number(figure)
        found.append((str(key).replace("_", " "), written))
    return found


# ---------------------------------------------------------------- curves


def curve_charts(
    stage: Stage, alarms: Sequence[AlarmGroup], by_source: Sequence[Panel] = ()
) -> tuple[list[Chart], list[Chart]]:
    """The pictures of the named panels, and those of all other measurements.

    Args:
        by_source: of a mixture; they follow the loss.
    """
    named = {metric for panel in (*PANELS, *by_source) for metric, _, _ in panel.series}
    names = present(stage)
    main = [panel for panel in PANELS if any(metric in names for metric, _, _ in panel.series)]
    main[1:1] = by_source
    other = [own_panel(name) for name in names if name not in named]
    # A KL is looked for among the first pictures, whichever objective brought it.
    main += [panel for panel in other if panel.title.startswith("KL")]
    rest = [panel for panel in other if not panel.title.startswith("KL")]
    return [draw(panel, stage, alarms) for panel in main], [draw(panel, stage, alarms) for panel in rest]


def present(stage: Stage) -> list[str]:
    """The measurements that the stage has, in the order of their first appearance."""
    return list(dict.fromkeys(name for split in SPLITS for name in stage.curves.get(split, {})))


def smoothing(stage: Stage) -> int:
    """How many steps the drawn lines of training are the mean of; one number for all pictures of a stage."""
    # By the longest curve: a metric that is measured seldom must not be smoothed over another stretch than its
    # neighbours.
    return window(max((len(curve.steps) for curve in stage.curves.get("train", {}).values()), default=0))


def own_panel(metric: str) -> Panel:
    """The picture of a measurement that no panel names."""
    known = METRICS.get(metric)
    words = known.title if known else metric.replace("/", ": ").replace("_", " ")
    unit = known.unit if known else "share" if metric.endswith(("_share", "_rate", "_fraction")) else ""
    return Panel(
        title="KL" + words[2:] if words.lower().startswith("kl") else words[:1].upper() + words[1:],
        subtitle="" if unit == "share" else unit.replace("/", " per "),
        series=_one(metric),
        style=SHARE if unit == "share" else LineStyle(),
    )


def draw(panel: Panel, stage: Stage, alarms: Sequence[AlarmGroup]) -> Chart:
    lines = []
    for metric, label, colour in panel.series:
        for split in SPLITS:
            curve = stage.curves.get(split, {}).get(metric)
            if curve is not None:
                lines.append(Line(_called(stage, label), colour, curve, held_out=split == "held_out"))
    chart = line_chart(panel.title, lines, panel.style, smoothing(stage), stage.epochs_per_step)
    explained = [METRICS[metric].description for metric, _, _ in panel.series if metric in METRICS]
    subtitle = "" if panel.subtitle == IMPLICIT and stage.method == "reward" else panel.subtitle
    return replace(chart, unit=subtitle, marks=_marks(chart, alarms), help="\n".join(explained))


def _called(stage: Stage, label: str) -> str:
    """What a side is called: of single responses, good and bad."""
    return {"chosen": "good", "rejected": "bad"}.get(label, label) if stage.judged else label


def _marks(chart: Chart, alarms: Sequence[AlarmGroup]) -> list[Mark]:
    """A badge where each alarm first fired; badges that would cover each other are joined."""
    if chart.readout is None:
        return []
    low, high = chart.readout["x"]
    found: list[Mark] = []
    fired = [(100 * (group.steps[0] - low) / (high - low), group) for group in alarms if group.steps]
    for at, group in sorted(fired, key=lambda pair: pair[0]):
        title = f"alarm {group.badge}, {group.when}: {group.name}"
        # An alarm of a step that no curve has (the one that was not finite) stands at the edge, not outside of the
        # plot.
        at = min(100.0, max(0.0, at))
        if found and at - found[-1].at < CLOSE_MARKS:
            last = found[-1]
            severity = "critical" if "critical" in (last.severity, group.severity) else "warning"
            found[-1] = Mark(last.at, f"{last.label}, {group.badge}", severity, f"{last.title}; {title}")
        else:
            found.append(Mark(at, group.badge, group.severity, title))
    return found


# ---------------------------------------------------------------- pairs at start and end


def pair_charts(stage: Stage) -> list[list[Chart]]:
    """Cards of pictures of the held-out pairs before and after: rewards, margins, log-probs, lengths, displacement."""
    cards = [_reward_histograms(stage), _margin_histograms(stage), _boxes(stage), _displacement(stage), _lengths(stage)]
    return [card for card in cards if card]


def _values(stage: Stage, when: str, figure: str, side: str) -> list[float]:
    return [value for row in stage.pairs[when] if (value := row.side(figure, side)) is not None]


def _reward_histograms(stage: Stage) -> list[Chart]:
    values = {
        (when, side): _values(stage, when, "rewards", side)
        for when in ("start", "end")
        for side in ("chosen", "rejected")
    }
    # Start and end on the same bins, or the shift between the two pictures would be lost in their axes.
    edges = common_bins(*values.values())
    if edges is None:
        return []
    return [
        histogram(
            f"Rewards at the {when}",
            {_called(stage, side): (side, values[when, side]) for side in ("chosen", "rejected")},
            edges,
            "reward",
        )
        for when in ("start", "end")
        if values[when, "chosen"] or values[when, "rejected"]
    ]


def _margin_histograms(stage: Stage) -> list[Chart]:
    margins = {when: _differences(stage, when, "rewards") for when in ("start", "end")}
    edges = common_bins(*margins.values())
    if edges is None:
        return []
    charts = []
    for when, values in margins.items():
        if values:
            chart = histogram(f"Margins at the {when}", {"margin": ("accent", values)}, edges, "chosen minus rejected")
            above = number(sum(value > 0 for value in values) / len(values), "share")
            charts.append(replace(chart, caption=f"{chart.caption}; above zero: {above}"))
    return charts


def _differences(stage: Stage, when: str, figure: str) -> list[float]:
    return [
        chosen - rejected
        for row in stage.pairs[when]
        if (chosen := row.side(figure, "chosen")) is not None and (rejected := row.side(figure, "rejected")) is not None
    ]


def _boxes(stage: Stage) -> list[Chart]:
    groups, rewards = [], []
    for side in ("chosen", "rejected"):
        for when in ("start", "end"):
            label = f"{_called(stage, side)}, {when}"
            rewards.append((label, side, _values(stage, when, "rewards", side)))
            per_token = [
                logprob / tokens
                for row in stage.pairs[when]
                if (logprob := row.side("logprob", side)) is not None and (tokens := row.side("tokens", side))
            ]
            groups.append((label, side, per_token))
    charts = [box_chart("Rewards", rewards, "reward"), box_chart("Log-probs", groups, "nats per token")]
    return [chart for chart in charts if chart.paths]


def _displacement(stage: Stage) -> list[Chart]:
    """Both sides' change, pair by pair: below zero on x, the chosen answer itself has become less likely."""
    # By the row's name and not by place: a torn file lacks rows at one end.
    before = {row.row: row for row in stage.pairs["start"]}
    points = []
    for row in stage.pairs["end"]:
        start = before.get(row.row)
        if start is None:
            continue
        changes = [
            last - first
            for side in ("chosen", "rejected")
            if (last := row.side("logprob", side)) is not None and (first := start.side("logprob", side)) is not None
        ]
        if len(changes) == 2:
            points.append((changes[0], changes[1]))
    if not points:
        return []
    chart = scatter("Change of each pair", points, "chosen across, rejected up; nats")
    fallen = number(sum(x < 0 for x, _ in points) / len(points), "share")
    return [replace(chart, caption=f"{chart.caption}; chosen less likely than before in {fallen}")]


def _lengths(stage: Stage) -> list[Chart]:
    """The pairs are the same before and after, so their lengths are shown once."""
    when = "end" if stage.pairs["end"] else "start"
    values = {side: _values(stage, when, "tokens", side) for side in ("chosen", "rejected")}
    edges = common_bins(*values.values())
    if edges is None:
        return []
    groups = {_called(stage, side): (side, values[side]) for side in ("chosen", "rejected")}
    return [
        histogram("Lengths", groups, edges, "tokens"),
        box_chart(
            "Lengths, side by side",
            [(_called(stage, side), side, values[side]) for side in ("chosen", "rejected")],
            "tokens",
        ),
    ]
