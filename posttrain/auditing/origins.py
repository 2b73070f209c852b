"""Who made the rows: what their column `origin` says, counted while they are read.

    origins = Origins(policy="smollm2-135m-instruct")
    origins.add(ref, row)                      # for every row
    origins.made                               # Counter({("distil", "qwen2.5-72b"): 940}), origins.without == 60

A check of `checks.py`: most of it is worth knowing and no fault. Two things are one: rows that come from one draw
twice, which count double, and answers of the very model that is to learn them that nobody has judged.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain.auditing.finding import AuditFinding, percent, rows_text
from posttrain.auditing.subject import Subject
from posttrain.data.origin import Origin, origin_of
from posttrain.types import RowRef

MOST_NAMED = 3
"""Makers that a message names; the evidence has all of them."""


class Origins:
    """The origins of a data set in counts: memory grows with different makers, and by a few bytes a row.

    Args:
        policy: name of the model that is to be trained, as the origins would have it.
    """

    def __init__(self, policy: str | None = None):
        self.policy = policy
        self.made: Counter[tuple[str, str]] = Counter()
        """(maker, model) -> rows."""
        self.without = 0
        """Rows that say nothing: written by people, or by who keeps no record."""
        self.rounds: Counter[tuple[str, int]] = Counter()
        """(maker, round) -> rows, of makers that work in rounds."""
        self.scores: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self.repeated: list[RowRef] = []
        """Rows of a draw that an earlier row comes from: one seed, one source, one answer."""
        self.own: list[RowRef] = []
        """Rows that the policy wrote itself, and that nobody has scored."""
        self.own_scored = 0
        self._draws: set[bytes] = set()

    def add(self, ref: RowRef, row: Mapping[str, Any]) -> None:
        """A row as its file has it."""
        origin = origin_of(row)
        if origin is None:
            self.without += 1
            return
        self.made[(origin.maker, origin.model)] += 1
        if isinstance(number := origin.details.get("round"), int):
            self.rounds[(origin.maker, number)] += 1
        for name, score in origin.scores.items():
            if isinstance(score, int | float) and math.isfinite(score):
                self.scores[name].append(score)
        if self.policy is not None and origin.model == self.policy:
            if origin.scores:
                self.own_scored += 1
            else:
                self.own.append(ref)
        self._note_draw(ref, origin)

    def _note_draw(self, ref: RowRef, origin: Origin) -> None:
        # Without a seed two rows of one source may be two draws: an endpoint took none.
        if origin.seed is None:
            return
        content = json.dumps(origin.to_json(), sort_keys=True, default=str).encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(content, digest_size=8).digest()
        if key in self._draws:
            self.repeated.append(ref)
        self._draws.add(key)

    @property
    def rows(self) -> int:
        """That say who made them."""
        return self.made.total()


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
        evidence["scores"] = {name: _quartiles(values) for name, values in sorted(found.scores.items())}
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
