"""What the figures of suites are called, and where each should go: read by the report, extended by kinds of suite.

A suite's figures are named in evaluation.json and described nowhere there, so that what a name means is one fact for
all runs, old ones too. A kind that measures something of its own brings its `Meaning` with it; the runner writes it to
`evaluations/metrics.json`, since the report reads folders and no kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Wanted(StrEnum):
    """Where a measurement should go."""

    UP = "higher is better"
    DOWN = "lower is better"
    STILL = "should stay"
    OPEN = ""


@dataclass(frozen=True, slots=True)
class Meaning:
    """How a metric is called and read."""

    title: str
    unit: str = ""
    wanted: Wanted = Wanted.OPEN
    limit: float | None = None
    """For STILL: how far from zero it may go without anybody minding."""
    primary: bool = False
    """What a suite is asked for; the others describe the answers. A metric that nobody knows counts as asked for."""


MEANINGS = (
    (r"match", Meaning("share that matches", "share", Wanted.UP, primary=True)),
    (r"unwanted_match", Meaning("share that matches", "share", Wanted.DOWN, primary=True)),
    (r"accuracy", Meaning("accuracy", "share", Wanted.UP, primary=True)),
    (r"pass_at_(\d+)", Meaning(r"pass@\1", "share", Wanted.UP, primary=True)),
    (r"win_rate", Meaning("win rate", "share", Wanted.UP, primary=True)),
    (r"reward", Meaning("mean reward", "", Wanted.UP)),
    (r"perplexity_change", Meaning("perplexity change", "share", Wanted.STILL, 0.05, primary=True)),
    (r"perplexity", Meaning("perplexity")),
    (r"cut_share", Meaning("cut at the limit", "share", Wanted.DOWN)),
    (r"empty_share", Meaning("empty answers", "share", Wanted.DOWN)),
    (r"distinct_(\d)", Meaning(r"distinct \1-grams", "share")),
    (r"length", Meaning("answer length, tokens")),
)
"""First pattern that fits the whole metric name; what none fits is shown under its own name, without a judgement."""


def meaning(metric: str) -> Meaning:
    for pattern, found in MEANINGS:
        match = re.fullmatch(pattern, metric)
        if match:
            return replace(found, title=match.expand(found.title))
    unit = "share" if metric.endswith(("_share", "_rate", "_fraction", "_accuracy")) else ""
    return Meaning(metric.replace("_", " "), unit, primary=True)


def read_meaning(record: Mapping[str, Any]) -> Meaning | None:
    """A `Meaning` as metrics.json has it; None for what is no such record, so that a torn folder still opens."""
    known = {name: record[name] for name in Meaning.__dataclass_fields__ if name in record}
    try:
        return Meaning(**{**known, "wanted": Wanted(known.get("wanted", ""))})
    except (TypeError, ValueError):
        return None
