"""mergekit's own merges of `merge_cases`: `python -m benchmarks.peer_merges`, in an environment that holds mergekit.

Prints one JSON line: {"methods": [...], "merges": [[[...], ...], ...], "numbers": [...]}: for each case the flattened
result of each tensor, and what each setting is for each tensor and layer.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from mergekit.config import ParameterSetting, evaluate_setting
from mergekit.merge_methods import merge_tensors, registered_methods
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.merge_cases import (
    CASES,
    LAYERS,
    SEEDS,
    SETTINGS,
    SHAPES,
    TENSORS,
    Case,
    draws_of,
    models_of,
    tensors_of,
)


def merged(case: Case, shape: tuple[int, ...], seed: int) -> Tensor:
    base, models = tensors_of(case, shape, seed)
    generator = draws_of(shape, seed)

    def bernoulli(probabilities: Tensor) -> Tensor:
        """The same draws as on the other side; mergekit has no seed for a tensor."""
        drawn = torch.rand(probabilities.shape, generator=generator)
        return (drawn < probabilities).to(probabilities.dtype)

    torch.bernoulli = bernoulli  # type: ignore[assignment]
    names = models_of(case)
    parameters: dict[str, Any] = dict(case.shared)
    for name, values in case.per_model.items():
        parameters[name] = dict(zip(names[1:] if case.base else names, values, strict=True))
    inputs = [base, *models] if case.base else models
    return merge_tensors(
        inputs, case.method, parameters=parameters, ids=names, base_index=0 if case.base else None, name="w"
    )


def main() -> None:
    results = [[merged(case, shape, seed).flatten().tolist() for shape in SHAPES for seed in SEEDS] for case in CASES]
    reader = TypeAdapter(ParameterSetting)
    numbers = [
        evaluate_setting(name.format(layer), reader.validate_python(setting), layer / (LAYERS - 1), validate=float)
        for setting in SETTINGS
        for name in TENSORS
        for layer in range(LAYERS)
    ]
    methods = sorted(method.spec.name for method in registered_methods())
    print(json.dumps({"methods": methods, "merges": results, "numbers": numbers}))


if __name__ == "__main__":
    main()
