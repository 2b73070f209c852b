"""What a merge did, how its models lie to each other, and what was kept of what they could.

merge.json (of a stage)   MergeComparison   task vectors, their angles and conflicts; the barrier between the models
search.json (of a stage)  SearchRecord      every candidate of a search for weights, and what was chosen
merges.json (of the run)  MergedSkills      suites of the parents and of the merge over the same prompts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.runs.records.base import Exact, Record, WholeFile, other_keys
from posttrain.runs.records.evaluation import Figure


@dataclass(frozen=True, slots=True)
class TaskVector(Record):
    """A model's difference to the base: TaskVector("maths", norm=12.4, relative_norm=0.08, changed=0.91)"""

    model: str
    norm: Exact | None
    """Euclidean, over all entries."""
    relative_norm: Exact | None
    """In norms of the base's weights."""
    changed: float | None
    """Share of the entries that are not the base's."""


@dataclass(frozen=True, slots=True)
class VectorPart(Record):
    """A layer, or one kind of module in all layers: VectorPart("layer 3", 1_769_472, (2.1, 1.7), conflict=0.31)"""

    part: str
    entries: int | None
    norms: tuple[Exact | None, ...]
    """Of each model's difference there, in the order of `vectors`."""
    conflict: float | None
    """Share, of the entries that at least two models changed, in which not all changed them in one direction; None
    where no two changed the same entry."""


@dataclass(frozen=True, slots=True)
class BarrierPoint(Record):
    """BarrierPoint(0.5, loss=1.31, straight=1.02)"""

    at: float | None
    """Share of the second model."""
    loss: Exact | None
    """Nats per trained token."""
    straight: Exact | None
    """Between the losses of the two ends."""


@dataclass(frozen=True, slots=True)
class Barrier(Record):
    """The loss along the straight line between two models (Frankle et al. 2020, arXiv:1912.05671).

    Barrier("maths", "code", height=0.29, at=0.5, rows=64, tokens=1_204, points=(BarrierPoint(0.0, 1.1, 1.1), ...))
    """

    first: str
    second: str
    height: Exact | None
    """Largest `loss` - `straight` on the line, in nats per token; at least 0, which the ends have."""
    at: float | None
    rows: int | None
    tokens: int | None
    points: tuple[BarrierPoint, ...]


@dataclass(frozen=True, slots=True)
class MergeComparison(WholeFile):
    """merge.json: how the merged models lie to each other, seen from their base.

    MergeComparison("ties", base="embedded", vectors=(TaskVector("maths", ...), TaskVector("code", ...)),
                    merged=TaskVector("merge", ...), cosines=((1.0, 0.12), (0.12, 1.0)), merged_cosines=(0.7, 0.6),
                    conflict=0.47, layers=(VectorPart("layer 0", ...), ...), kinds=(...), not_compared=(), note="")
    """

    FILE = "merge.json"

    kind: str
    base: str | None
    """None where nobody knows what the models come from: then there are no differences to compare."""
    vectors: tuple[TaskVector, ...]
    merged: TaskVector | None
    cosines: tuple[tuple[Exact | None, ...], ...]
    """Between the models' differences, a row each; None where one of them is 0."""
    merged_cosines: tuple[Exact | None, ...]
    """Between the merge's difference and each model's."""
    conflict: float | None
    """As of `VectorPart`, over all entries."""
    layers: tuple[VectorPart, ...]
    kinds: tuple[VectorPart, ...]
    not_compared: tuple[str, ...] = ()
    """Tensors whose rows were put together by tokens: they have no common places."""
    note: str = ""
    barriers: tuple[Barrier, ...] = ()


# ---------------------------------------------------------------- a search


@dataclass(frozen=True, slots=True)
class Candidate(Record):
    """One merge that was measured: Candidate("maths and code", values=(1.0, 0.5), score=0.61)"""

    what: str
    """Why it was tried, in words."""
    values: tuple[Exact | None, ...]
    """What was searched: of each model, or of the merge as a whole."""
    score: float | None
    """On the prompts on which weights are chosen."""


@dataclass(frozen=True, slots=True)
class SearchRecord(WholeFile):
    """search.json: SearchRecord(identity="9f2c...", over="weights", method="greedy", suites=("sums",), budget=20,
    choosing=100, reporting=100, candidates=(Candidate(...), ...), chosen=Candidate(...), ...)"""

    FILE = "search.json"

    identity: str
    """Hash of the models, the settings and the prompts: candidates of another search count for nothing."""
    over: str
    method: str
    suites: tuple[str, ...]
    budget: int | None
    choosing: int | None
    """Prompts on which candidates are compared."""
    reporting: int | None
    """Prompts that no choice has seen."""
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None = None
    reported: Figure | None = None
    """The chosen merge on the reporting prompts."""
    as_written: Figure | None = None
    """The merge with the values of the recipe, there."""
    gain: Figure | None = None
    """Chosen minus as written, over the same reporting prompts."""
    optimism: Exact | None = None
    """The chosen merge's score on the choosing prompts minus that on the reporting ones: what choosing alone lends."""
    said: str = ""


# ---------------------------------------------------------------- what was kept


@dataclass(frozen=True, slots=True)
class KeptSkill(Record):
    """One suite of a merge, beside its parents.

    KeptSkill("both", "sums", "accuracy", base="start", before=Figure(0.01, ...), parents={"maths": Figure(0.62, ...)},
              merged=Figure(0.40, ...), parent="maths", kept=Figure(0.64, ...), difference=Figure(-0.22, ...),
              said="both kept 64 % [55, 73] of what maths had gained on sums ...")
    """

    merge: str
    suite: str
    metric: str
    base: str
    """The model that the parents come from: start, or a stage."""
    before: Figure | None
    """Of that model."""
    parents: Mapping[str, Figure]
    merged: Figure | None
    parent: str | None
    """The one that gained most over the base; None where no gain of a parent is clear."""
    kept: Figure | None
    """(merge - base) / (parent - base), over the same prompts."""
    difference: Figure | None
    """Merge minus that parent, over the same prompts; where none gained, merge minus base."""
    said: str


@dataclass(frozen=True, slots=True)
class MergedSkills(WholeFile):
    """merges.json: MergedSkills((KeptSkill("both", "sums", ...), ...))"""

    FILE = "merges.json"

    skills: tuple[KeptSkill, ...]
    more: Mapping[str, Any] = other_keys()
