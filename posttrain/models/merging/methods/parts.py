"""What a method of merging is given: one tensor of every model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Parts:
    """One tensor of every model, as a merge sees it:

    Parts("lm_head.weight", base, (a, b), ({"weight": 1.0}, {"weight": 0.5}), {"lambda": 1.0}, generator)
    """

    name: str
    """The tensor's name: "model.layers.3.mlp.up_proj.weight"."""
    base: Tensor | None
    """None where the method takes none."""
    tensors: tuple[Tensor, ...]
    """Of the models, in their order; all have the base's shape and dtype, float32 or float64."""
    per_model: tuple[Mapping[str, float], ...]
    """Weight, density, ... of this tensor in each model, resolved: no list and no filter is left."""
    options: Mapping[str, float | str | bool]
    """Of the method as a whole: lambda, normalize, rescale, t, ..."""
    generator: torch.Generator | None = field(default=None, compare=False)
    """The tensor's own random stream (`generator_of`), for methods that draw."""

    @property
    def deltas(self) -> list[Tensor]:
        """The models' differences to the base; the weights themselves where there is none."""
        base = self.base
        return list(self.tensors) if base is None else [tensor - base for tensor in self.tensors]

    @property
    def weights(self) -> list[float]:
        return self.column("weight")

    def column(self, name: str) -> list[float]:
        """One parameter of all models: parts.column("density") == [0.2, 0.5]"""
        return [float(model[name]) for model in self.per_model]

    def number(self, name: str) -> float:
        return float(self.options[name])

    def over_base(self, delta: Tensor) -> Tensor:
        """The base with a difference added; the difference itself where there is no base."""
        return delta if self.base is None else self.base + delta


def generator_of(seed: int, name: str) -> torch.Generator:
    """The random stream of one tensor. A method draws from it for one model after the other.

    Seeded by the tensor's name, so that neither the order in which tensors are read nor a resumed merge changes a draw.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
