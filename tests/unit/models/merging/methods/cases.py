"""Parts for tests of the methods of merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.models.merging.methods.table import METHODS, Parts, generator_of

NUMBERS = Sequence[float] | Sequence[Sequence[float]]


def parts_of(
    method: str,
    models: Sequence[NUMBERS | Tensor],
    base: NUMBERS | Tensor | None = None,
    *,
    per_model: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
    **options: Any,
) -> Parts:
    """The method's defaults with what is given over them; float64, so that numbers worked by hand are exact.

    Args:
        per_model: for each parameter, the values of all models: {"weight": [1, 3]}.
    """
    row = METHODS[method]
    given = per_model or {}
    own = [
        {name: float(given[name][i] if name in given else known) for name, known in row.model_parameters.items()}
        for i in range(len(models))
    ]
    if "lambda_" in options:
        options["lambda"] = options.pop("lambda_")
    assert options.keys() <= row.options.keys(), f"{method} has no {options.keys() - row.options.keys()}"
    merged = {name: 0.5 if known is None else known for name, known in row.options.items()} | options
    tensors = tuple(_tensor(model) for model in models)
    if base is None and row.base == "needed":
        base = torch.zeros_like(tensors[0])
    generator = generator_of(seed, "w") if row.random else None
    return Parts("w", None if base is None else _tensor(base), tensors, tuple(own), merged, generator)


def merged(method: str, models: Sequence[NUMBERS | Tensor], *arguments: Any, **options: Any) -> Tensor:
    return METHODS[method](parts_of(method, models, *arguments, **options))


def _tensor(numbers: NUMBERS | Tensor) -> Tensor:
    return numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=torch.float64)


def models_for(method: str, count: int = 3) -> int:
    """How many models a test of every method gives it."""
    least, most = METHODS[method].models
    return max(least, min(count, most or count))
