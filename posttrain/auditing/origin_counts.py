"""Who made the rows: what their column `origin` says, counted while they are read.

origins = Origins(policy="smollm2-135m-instruct")
origins.add(ref, row)                      # for every row
origins.made                               # Counter({("distil", "qwen2.5-72b"): 940}), origins.without == 60
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from posttrain.data.origin import Origin, origin_of
from posttrain.types import RowRef


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
