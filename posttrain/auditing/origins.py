"""What the column `origin` says: who made how many rows, from which draws, and whether that is the model that learns.

A check of `checks.py`: most of it is worth knowing and no fault. Two things are one: rows that come from one draw
twice, which count double, and answers of the very model that is to learn them that nobody has judged.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import numpy as np

from posttrain.auditing.finding import AuditFinding, percent, rows_text
from posttrain.auditing.origin_counts import Origins
from posttrain.auditing.subject import Subject

MOST_NAMED = 3
"""Makers that a message names; the evidence has all of them."""


def origins(subject: Subject) -> list[AuditFinding]:
    """Who made how many rows; draws that stand twice; the policy's own words that nobody has judged."""
    found = subject.origins
    if found is None or not found.rows:
        return []
    total = found.rows + found.without
    return [_makers(found, total), *_repeated(found), *_own(found, total)]


def _makers(found: Origins, total: int) -> AuditFinding:
    named = [f"{count:,} by {_name(*key)}" for key, count in found.made.most_common(MOST_NAMED)]
    if len(found.made) > MOST_NAMED:
        named.append(f"and {len(found.made) - MOST_NAMED} more")
    message = f"{rows_text(found.rows)} of {total:,} say which model made them: {', '.join(named)}"
    if found.without:
        message += f"; {rows_text(found.without)} say nothing"
    models: Counter[str] = Counter()
    for (_, model), count in found.made.items():
        models[model] += count
    evidence: dict[str, Any] = {
        "makers": {_name(*key): count for key, count in found.made.most_common()},
        "without_origin": found.without,
        "largest_share_of_one_model": models.most_common(1)[0][1] / total,
    }
    if found.rounds:
        rounds = sorted(found.rounds.items())
        evidence["rows_by_round"] = {f"{maker}, round {number}": rows for (maker, number), rows in rounds}
    if found.scores:
        evidence["scores"] = scores = {name: _quartiles(values) for name, values in sorted(found.scores.items())}
        # The page draws plain numbers of the evidence, and these are not.
        for name, of in list(scores.items())[:MOST_NAMED]:
            message += f"; scored by {name}: median {of['median']:.3g}, {of['min']:.3g} to {of['max']:.3g}"
    remedy = (
        "nothing has to be done; rows of one model teach its manner and its mistakes, so compare with rows of another, "
        "or of people, on a held-out suite"
    )
    return AuditFinding("origins", "note", message, found.rows / total, (), evidence, remedy)


def _repeated(found: Origins) -> list[AuditFinding]:
    if not found.repeated:
        return []
    return [
        AuditFinding(
            "origins",
            "warning",
            f"{rows_text(len(found.repeated))} of a draw that stands in an earlier row: one model, source and seed",
            len(found.repeated) / (found.rows + found.without),
            tuple(found.repeated),
            {"repeated": len(found.repeated)},
            "files of one run were joined twice, or two runs had one seed: leave one of them out, or draw again with "
            "another `seed`",
        )
    ]


def _own(found: Origins, total: int) -> list[AuditFinding]:
    if not found.own and not found.own_scored:
        return []
    evidence = {"own": len(found.own) + found.own_scored, "own_without_score": len(found.own)}
    if not found.own:
        message = f"the model that is to be trained wrote {rows_text(found.own_scored)} itself; all of them were scored"
        remedy = "nothing has to be done: this is rejection sampling, and each round of it narrows what the model says"
        return [AuditFinding("origins", "note", message, found.own_scored / total, (), evidence, remedy)]
    share = len(found.own) / total
    message = (
        f"the model that is to be trained wrote {rows_text(len(found.own))} itself ({percent(share)}), and nothing "
        "judged them: it would learn its own mistakes with more confidence"
    )
    remedy = "let a scorer choose among several answers (`method: best_of`), or let a stronger model write them"
    return [AuditFinding("origins", "warning", message, share, tuple(found.own), evidence, remedy)]


def _name(maker: str, model: str) -> str:
    return f"{model} ({maker})" if model else maker


def _quartiles(values: array[float]) -> dict[str, float]:
    low, middle, high = np.quantile(np.array(values), [0.25, 0.5, 0.75]).tolist()
    return {"n": len(values), "min": min(values), "q1": low, "median": middle, "q3": high, "max": max(values)}
