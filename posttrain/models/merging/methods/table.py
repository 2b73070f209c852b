"""Every method of merging by its name: the arithmetic, beside the row that says what it takes.

    merged = METHODS["ties"](Parts(name, base, tensors, per_model, options, generator))

A new method is a row of `posttrain.config.merge_methods.MERGE_METHODS`, which recipes read without torch, a function in
a file here, and its row below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from posttrain.config.merge_methods import MERGE_METHODS, MergeRow
from posttrain.models.merging.methods import agreement, averages, spherical, swaps, task_vectors
from posttrain.models.merging.methods.parts import Parts as Parts
from posttrain.models.merging.methods.parts import generator_of as generator_of


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """MergeMethod("ties", ties, MERGE_METHODS["ties"])"""

    name: str
    merge: Callable[[Parts], Tensor]
    """Parts of one dtype, float32 or float64, to a tensor of the same."""
    row: MergeRow

    def __call__(self, parts: Parts, dtype: torch.dtype | None = None) -> Tensor:
        """The merged tensor, in `dtype`, or that of the models' tensors; computed in float32 at least.

        In bfloat16 a difference to the base would be lost to the rounding of what it is taken of.
        """
        # Without a base the weights themselves would pass for differences to it.
        assert parts.base is not None or self.base != "needed", f"{self.name} merges differences to a base"
        assert parts.base is None or self.base != "none", f"{self.name} takes no base"
        wide = torch.float64 if parts.tensors[0].dtype == torch.float64 else torch.float32
        base = None if parts.base is None else parts.base.to(wide)
        tensors = tuple(tensor.to(wide) for tensor in parts.tensors)
        merged = self.merge(replace(parts, base=base, tensors=tensors))
        return merged.to(dtype or parts.tensors[0].dtype)

    @property
    def base(self) -> Literal["needed", "optional", "none"]:
        return self.row.base

    @property
    def models(self) -> tuple[int, int | None]:
        """How many models beside the base: at least, at most."""
        return self.row.models

    @property
    def model_parameters(self) -> Mapping[str, float | None]:
        """The defaults of what each model has."""
        return {name: known.default for name, known in self.row.per_model.items()}  # type: ignore[misc]

    @property
    def options(self) -> Mapping[str, float | str | bool | None]:
        """The defaults of what the merge has; None: it has to be written."""
        return {name: known.default for name, known in self.row.options.items()}

    @property
    def random(self) -> bool:
        """Whether it needs the tensor's generator."""
        return self.row.random

    @property
    def source(self) -> str:
        return self.row.source


_MERGES: Mapping[str, Callable[[Parts], Tensor]] = {
    "linear": averages.linear,
    "slerp": spherical.slerp,
    "nuslerp": spherical.nuslerp,
    "multislerp": spherical.multislerp,
    "karcher": spherical.karcher,
    "task_arithmetic": task_vectors.task_arithmetic,
    "ties": task_vectors.ties,
    "dare_linear": task_vectors.dare_linear,
    "dare_ties": task_vectors.dare_ties,
    "della": task_vectors.della,
    "della_linear": task_vectors.della_linear,
    "breadcrumbs": task_vectors.breadcrumbs,
    "breadcrumbs_ties": task_vectors.breadcrumbs_ties,
    "sce": agreement.sce,
    "model_stock": agreement.model_stock,
    "ram": agreement.ram,
    "ramplus_tl": agreement.ramplus_tl,
    "nearswap": swaps.nearswap,
    "arcee_fusion": swaps.arcee_fusion,
    "passthrough": averages.passthrough,
}

METHODS: Mapping[str, MergeMethod] = {
    name: MergeMethod(name, merge, MERGE_METHODS[name]) for name, merge in _MERGES.items()
}
"""Every method; the names are those of `MERGE_METHODS`."""
