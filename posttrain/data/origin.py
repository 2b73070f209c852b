"""Where a row that a model made comes from: a record that stands in the row's own column `origin`.

    row = with_origin(as_row(example), Origin("distil", model="qwen2.5-72b", source="prompts.jsonl, row 3", ...))
    origin_of(row)                               # the Origin again; None of a row that nobody made

Training reads past it and the audit reads it: which model wrote what another learns, and how much of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

ORIGIN = "origin"
"""The column. No format reads it, and none calls it unread."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin("best_of", model="runs/mine/sft/model", source="tasks.jsonl, row 3", sampling={"temperature": 0.7},
    seed=17, scores={"math": 1.0}, details={"attempt": 2, "of": 8})"""

    maker: str
    """What made it: the stage's method, and a kind if it has several: `distil`, `pairs/critique`, `prompts/magpie`."""
    model: str = ""
    """Who wrote it, by name: a catalogue name, a folder, or the model's name at an endpoint."""
    source: str = ""
    """The row that it was made from: `prompts.jsonl, row 3`; empty where it was made from none."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How it was drawn, every field that was set."""
    seed: int | None = None
    """Of its draw; None where the endpoint takes none."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What judged it, by name."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What only its maker knows: the instruction that evolved it, the principle that it was revised by."""

    def to_json(self) -> dict[str, Any]:
        """Without what is empty: every row carries it."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {key: value for key, value in values.items() if value not in (None, "", {})}


def with_origin(row: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """The row as it is written, its origin last."""
    return {**row, ORIGIN: origin.to_json()}


def origin_of(row: Mapping[str, Any]) -> Origin | None:
    """What a row says of itself; None where it says nothing, or has another tool's column of that name."""
    found = row.get(ORIGIN)
    if not isinstance(found, Mapping) or not isinstance(found.get("maker"), str):
        return None
    known = {entry.name for entry in fields(Origin)}
    return Origin(**{key: value for key, value in found.items() if key in known})
