"""What the figures of suites are called, and where each should go: read by the report, extended by kinds of suite.

A suite's figures are named in evaluation.json and described nowhere there, so that what a name means is one fact for
all runs, old ones too. A kind that measures something of its own brings its `Meaning` with it; the runner writes it to
`evaluations/metrics.json`, since the report reads folders and no kinds.
"""

from __future__ import annotations

import re
from dataclasses import replace

from posttrain.runs.records.evaluation import Direction, Meaning

MEANINGS = (
    (r"match", Meaning("share that matches", "share", Direction.UP, primary=True)),
    (r"unwanted_match", Meaning("share that matches", "share", Direction.DOWN, primary=True)),
    (r"accuracy", Meaning("accuracy", "share", Direction.UP, primary=True)),
    (r"pass_at_(\d+)", Meaning(r"pass@\1", "share", Direction.UP, primary=True)),
    (r"oracle_at_(\d+)", Meaning(r"a right one among \1 answers", "share", Direction.UP)),
    (r"majority_at_(\d+)", Meaning(r"majority of \1", "share", Direction.UP, primary=True)),
    (r"best_of_(\d+)_(.+)", Meaning(r"best of \1 by \2", "share", Direction.UP, primary=True)),
    (r"weighted_of_(\d+)_(.+)", Meaning(r"weighted best of \1 by \2", "share", Direction.UP, primary=True)),
    (r"solved_by_(.+)", Meaning(r"solved by \1", "share", Direction.UP, primary=True)),
    (r"win_rate", Meaning("win rate", "share", Direction.UP, primary=True)),
    (r"lc_win_rate", Meaning("win rate at equal length", "share", Direction.UP)),
    (r"order_agreement", Meaning("the judge says the same in both orders", "share", Direction.UP)),
    (r"reward", Meaning("mean reward", "", Direction.UP)),
    (r"perplexity_change", Meaning("perplexity change", "share", Direction.STILL, 0.05, primary=True)),
    (r"perplexity", Meaning("perplexity")),
    (r"cut_share", Meaning("cut at the limit", "share", Direction.DOWN)),
    (r"empty_share", Meaning("empty answers", "share", Direction.DOWN)),
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
