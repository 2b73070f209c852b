"""How the models of a merge lie to each other, seen from their base: norms, angles, and signs that disagree.

    comparer = Comparer(models, base, names)
    comparer.add("model.layers.3.mlp.up_proj.weight", tensors, base_tensor, merged)    # or some rows of it, then others
    comparer.record("ties")                                                            # MergeComparison(...)

Everything is a sum over entries, so a merge adds each tensor, or block of rows, as it comes by: nothing is read twice.
With δ_i = θ_i - θ_0, the norm of δ_i (the task vector of Ilharco et al. 2023, arXiv:2212.04089), cosines between them,
and the share of entries whose signs disagree among the models that changed them (the interference that Yadav et al.
2023, arXiv:2306.01708, section 3, resolve).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.models.merging.methods.parameters import numbered
from posttrain.runs.records.merging import MergeComparison, TaskVector, VectorPart

CHUNK = 1 << 20
"""Entries that are widened to float64 at a time: 8 MB for each model."""
NO_BASE = "nothing says which model they all come from, so there are no differences to compare"


@dataclass(slots=True)
class _Sums:
    """Of one part of the model; the last row and column of `dots` are the merge's."""

    dots: Tensor
    """[M+1, M+1] float64: sums of δ_i δ_j."""
    changed: Tensor
    """[M+1] int64: entries that are not the base's."""
    entries: int = 0
    shared: int = 0
    """Entries that at least two models changed."""
    conflicts: int = 0
    """Of these, the ones with both signs."""
    base: float = 0.0
    """Sum of the base's squares."""

    @classmethod
    def of(cls, models: int) -> _Sums:
        return cls(torch.zeros(models + 1, models + 1, dtype=torch.float64), torch.zeros(models + 1, dtype=torch.int64))

    def add(self, other: _Sums) -> None:
        self.dots += other.dots
        self.changed += other.changed
        self.entries += other.entries
        self.shared += other.shared
        self.conflicts += other.conflicts
        self.base += other.base

    @property
    def conflict(self) -> float | None:
        return self.conflicts / self.shared if self.shared else None

    def norm(self, index: int) -> float:
        return math.sqrt(max(0.0, float(self.dots[index, index])))

    def cosine(self, one: int, other: int) -> float | None:
        sizes = self.norm(one) * self.norm(other)
        if sizes == 0:
            return None
        return 1.0 if one == other else max(-1.0, min(1.0, float(self.dots[one, other]) / sizes))


@dataclass(slots=True)
class Comparer:
    """Adds up what is to be compared while a merge goes by."""

    models: Sequence[str]
    base: str | None
    _whole: _Sums = field(init=False)
    _layers: dict[str, _Sums] = field(init=False, default_factory=dict)
    _kinds: dict[str, _Sums] = field(init=False, default_factory=dict)
    _left_out: dict[str, None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._whole = _Sums.of(len(self.models))

    def add(self, name: str, tensors: Sequence[Tensor], base: Tensor | None, merged: Tensor) -> None:
        """A tensor of every model and of the merge, or the same rows of each; without a base it is passed over."""
        if base is None:
            return
        sums = _sums(tensors, base, merged)
        layer, kind = place_of(name)
        for part in (
            self._whole,
            self._layers.setdefault(layer, _Sums.of(len(self.models))),
            self._kinds.setdefault(kind, _Sums.of(len(self.models))),
        ):
            part.add(sums)

    def leave_out(self, name: str) -> None:
        """A tensor whose entries have no common places in the models; its name stands in the record."""
        self._left_out[name] = None

    def record(self, kind: str) -> MergeComparison:
        """What was added up."""
        count, whole = len(self.models), self._whole
        if self.base is None:
            return MergeComparison(kind, None, (), None, (), (), None, (), (), note=NO_BASE)
        vectors = [self._vector(index, name) for index, name in enumerate([*self.models, kind])]
        return MergeComparison(
            kind=kind,
            base=self.base,
            vectors=tuple(vectors[:count]),
            merged=vectors[count],
            cosines=tuple(tuple(whole.cosine(i, j) for j in range(count)) for i in range(count)),
            merged_cosines=tuple(whole.cosine(count, i) for i in range(count)),
            conflict=whole.conflict,
            layers=tuple(_part(label, sums, count) for label, sums in sorted(self._layers.items(), key=_in_depth)),
            kinds=tuple(_part(label, sums, count) for label, sums in self._kinds.items()),
            not_compared=tuple(self._left_out),
        )

    def _vector(self, index: int, name: str) -> TaskVector:
        whole = self._whole
        norm, ground = whole.norm(index), math.sqrt(whole.base)
        changed = int(whole.changed[index]) / whole.entries if whole.entries else None
        return TaskVector(name, norm, norm / ground if ground else None, changed)


def place_of(name: str) -> tuple[str, str]:
    """Layer and kind of module: ("layer 3", "mlp.up_proj") of "model.layers.3.mlp.up_proj.weight", ("embed_tokens",
    "embed_tokens") of what lies outside of the layers."""
    stack, layer = numbered(name)
    parts = [part for part in name.split(".") if part not in ("weight", "bias")] or [name]
    if layer is None:
        return parts[-1], parts[-1]
    kind = ".".join(parts[len(stack.split(".")) + 1 :]) or stack
    return f"layer {layer}", kind


def _in_depth(item: tuple[str, Any]) -> tuple[int, int]:
    """Embeddings, layers by number, and what comes behind them."""
    label = item[0]
    if label.startswith("layer "):
        return 1, int(label.removeprefix("layer "))
    return (0, 0) if any(word in label for word in ("embed", "wte", "wpe")) else (2, 0)


def _part(label: str, sums: _Sums, models: int) -> VectorPart:
    return VectorPart(label, sums.entries, tuple(sums.norm(index) for index in range(models)), sums.conflict)


def _sums(tensors: Sequence[Tensor], base: Tensor, merged: Tensor) -> _Sums:
    sums = _Sums.of(len(tensors))
    flat = [tensor.reshape(-1) for tensor in (*tensors, merged)]
    ground = base.reshape(-1)
    for first in range(0, ground.numel(), CHUNK):
        # In float64: a sum of a hundred million squares in float32 keeps four digits, a cosine near 0 none.
        theta = ground[first : first + CHUNK].double()
        delta_MC = torch.stack([one[first : first + CHUNK].double() for one in flat]) - theta
        sums.dots += delta_MC @ delta_MC.T
        sums.changed += (delta_MC != 0).sum(dim=1)
        up, down = (delta_MC[:-1] > 0).sum(dim=0), (delta_MC[:-1] < 0).sum(dim=0)
        sums.shared += int((up + down >= 2).sum())
        sums.conflicts += int(((up > 0) & (down > 0)).sum())
        sums.base += float(theta @ theta)
        sums.entries += theta.numel()
    return sums


def conflict_sentence(compared: MergeComparison) -> str:
    """What the signs say, in words; "" of one model alone."""
    if len(compared.vectors) < 2:
        return ""
    if compared.conflict is None:
        return "no entry was changed by two models"
    worst = max((part for part in compared.layers if part.conflict is not None), key=lambda part: part.conflict or 0.0)
    return (
        f"of the entries that several models changed, {compared.conflict:.0%} were moved in opposite directions "
        f"(chance alone gives half); most in {worst.part}, {worst.conflict:.0%}"
    ).replace("%", " %")
