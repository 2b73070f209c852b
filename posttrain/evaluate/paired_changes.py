"""What each stage changed against the start, on the same items: paired.json of a run.

    write_paired(run, changes_of_run({"start": start, "dpo": dpo}))
    # "sums, accuracy: 48.0 % to 75.0 %, +27.0 points [+15.0, +39.0] on the same 60 items, p = 0.0005"

Both tests have to agree before a change is called one: the paired bootstrap's interval leaves out 0, and the paired
randomisation test has p of 0.05 or less (`posttrain.diagnostics.paired`). A figure that is itself a change against the
start, as a perplexity's, is paired by its own making. Of a change that is not clear it is said how large one would have
shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.diagnostics.paired import Paired, paired_change
from posttrain.diagnostics.suite_metrics import meaning
from posttrain.evaluate.suites.retention import METRICS as RETENTION
from posttrain.intervals import Score, smallest_of_interval
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.meanings import meanings_in
from posttrain.runs.records.evaluation import (
    Figure,
    Meaning,
    PairedChange,
    PairedChanges,
    SuiteScores,
)

CHANGE = "_change"
COST = ("text_perplexity_change", "instructions", "arithmetic")
"""The figures of a suite of kind retention, in the order of its line."""


def changes_of_run(folders: Sequence[StageFolder]) -> PairedChanges:
    """Every stage against the first folder, figure by figure of what suites are asked for.

    A figure whose two sides were not measured on the same items is left out.
    """
    start, *stages = folders
    first = start.document(SuiteScores)
    changes: list[PairedChange] = []
    cost: dict[str, str] = {}
    for folder in stages if first is not None else ():
        scores = folder.document(SuiteScores)
        own: list[PairedChange] = []
        for suite, figures in scores.suites.items() if scores is not None else ():
            meanings = meanings_in(folder).get(suite, {})
            for metric, end in figures.items():
                how = meanings.get(metric) or meaning(metric)
                before = first.suites.get(suite, {}).get(metric) if first is not None else None
                if how.primary and before is not None:
                    found = _change(suite, metric, how, before, end, start, folder)
                    own += [found] if found is not None else []
            if set(COST) <= figures.keys() and meanings.keys() >= RETENTION.keys():
                cost[folder.name] = _cost(folder.name, [change for change in own if change.suite == suite])
        changes += own
    return PairedChanges(tuple(changes), cost)


def write_paired(run: Path, found: PairedChanges) -> None:
    RunFolder(run).write(found)


def _change(
    suite: str, metric: str, how: Meaning, before: Figure, end: Figure, start: StageFolder, folder: StageFolder
) -> PairedChange | None:
    if metric.endswith(CHANGE):
        return _own_change(suite, metric, how, end, folder)
    found = paired_change(metric, start.answers(suite), folder.answers(suite), before, end)
    if found is None:
        return None
    moved = found.difference
    said = (
        f"{suite}, {how.title}: {_value(before.value, how)} to {_value(end.value, how)}, "
        f"{_moved(moved.value, how)} [{_moved(moved.low, how, unit=False)}, {_moved(moved.high, how, unit=False)}] "
        f"on the same {moved.n} items, p = {found.p:.2g}{_unclear(found, how)}"
    )
    return PairedChange(
        suite,
        metric,
        folder.name,
        moved.value,
        moved.low,
        moved.high,
        moved.n,
        found.p,
        found.smallest,
        before.value,
        end.value,
        said,
    )


def _own_change(suite: str, metric: str, how: Meaning, end: Figure, folder: StageFolder) -> PairedChange | None:
    """Of a figure that is a change against the start: its own interval is the paired one."""
    if end.low is None or end.high is None or end.n is None:
        return None
    said = f"{suite}, {how.title}: {_percent(end.value)} [{_percent(end.low)}, {_percent(end.high)}] on {end.n} items"
    smallest = smallest_of_interval(Score(end.value, end.low, end.high, end.n))
    return PairedChange(
        suite, metric, folder.name, end.value, end.low, end.high, end.n, None, smallest, None, None, said
    )


def _unclear(found: Paired, how: Meaning) -> str:
    if found.clear:
        return ""
    if found.smallest == 0:
        return ": no item changed" if found.difference.value == 0 else ": too few items to tell"
    smallest = _moved(found.smallest, how).removeprefix("+")
    return f": not clear; a change of {smallest} would have shown four times in five"


def _cost(stage: str, changes: Sequence[PairedChange]) -> str:
    """The one line: what did training cost?

    what did `sft` cost? general text: perplexity +2.1 % [+1.5, +2.8] (more); instructions followed -3.3 points
    [-9.0, +2.0] (no clear change); arithmetic +0.0 points [+0.0, +0.0] (no change)
    """
    known = {change.metric: change for change in changes}
    words = []
    for metric in COST:
        change = known.get(metric)
        how = RETENTION[metric]
        if change is None or change.value is None or change.low is None or change.high is None:
            words.append(f"{how.title}: not measured on the same items")
            continue
        if metric.endswith(CHANGE):
            moved = f"{_percent(change.value)} [{_percent(change.low)}, {_percent(change.high)}]"
        else:
            low, high = _moved(change.low, how, unit=False), _moved(change.high, how, unit=False)
            moved = f"{_moved(change.value, how)} [{low}, {high}]"
        words.append(f"{how.title} {moved} ({_verdict(change)})")
    return f"what did {stage} cost? {'; '.join(words)}"


def _verdict(change: PairedChange) -> str:
    assert change.value is not None and change.low is not None and change.high is not None
    if change.value == 0 and change.low == change.high:
        return "no change"
    if change.low <= 0 <= change.high or (change.p is not None and change.p > 0.05):
        return "no clear change"
    worse = (change.value > 0) == (change.metric == "text_perplexity_change")
    return "worse" if worse else "better"


def _value(value: float, how: Meaning) -> str:
    return f"{100 * value:.1f} %" if how.unit == "share" else f"{value:.3g}"


def _moved(value: float, how: Meaning, *, unit: bool = True) -> str:
    if how.unit == "share":
        return f"{100 * value:+.1f}{' points' if unit else ''}"
    return f"{value:+.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"
