"""Merges on which ours are compared with mergekit's: the same random tensors and the same draws on both sides.

Both environments import this file, so it needs torch and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SHAPES = ((24, 16), (50,), (7, 90))
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Case:
    """Case("ties", 3, per_model={"weight": (1.0, 0.5, 2.0), "density": (0.3, 0.5, 0.7)})"""

    method: str
    models: int
    """Beside the base."""
    base: bool = True
    shared: Mapping[str, Any] = field(default_factory=dict)
    """mergekit's parameters of the merge."""
    per_model: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    spread: float = 0.2
    """How far the models lie from one another; 0.3 is what they have in common."""
    expected: str = ""
    """Why the two differ; empty: they agree."""

    @property
    def label(self) -> str:
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.shared.items())])


WEIGHTS = {"weight": (1.0, 0.5, 2.0)}
PAIR = {"weight": (3.0, 1.0)}
THINNED = {**WEIGHTS, "density": (0.3, 0.5, 0.7)}
AVOIDED = {"weight": (1.0, -0.5, 1.0)}

CASES: tuple[Case, ...] = (
    Case("linear", 3, base=False, per_model=WEIGHTS),
    Case("linear", 3, base=False, shared={"normalize": False}, per_model=WEIGHTS),
    Case("slerp", 1, shared={"t": 0.3}),
    Case("nuslerp", 2, base=False, per_model=PAIR),
    Case("nuslerp", 2, per_model=PAIR),
    Case("nuslerp", 2, base=False, shared={"nuslerp_flatten": False}, per_model=PAIR),
    Case("nuslerp", 2, base=False, shared={"nuslerp_flatten": False, "nuslerp_row_wise": True}, per_model=PAIR),
    Case("multislerp", 3, base=False, per_model=WEIGHTS),
    Case("multislerp", 3, per_model=WEIGHTS),
    Case("karcher", 3, base=False),
    Case("task_arithmetic", 3, shared={"lambda": 0.7}, per_model=AVOIDED),
    Case("task_arithmetic", 3, shared={"normalize": True}, per_model=WEIGHTS),
    Case(
        "task_arithmetic",
        3,
        shared={"normalize": True},
        per_model=AVOIDED,
        expected="a negative weight; divided by the sum of sizes",
    ),
    Case("ties", 3, per_model=THINNED),
    Case("ties", 3, shared={"normalize": False, "rescale": True, "lambda": 0.5}, per_model=THINNED),
    Case("ties", 3, per_model={**THINNED, **AVOIDED}, expected="a negative weight; divided by the sum of sizes"),
    Case("ties", 3, per_model={**WEIGHTS, "density": (0.29, 0.58, 0.57)}, expected="0.58 of 50 entries are 29, not 28"),
    Case("dare_linear", 3, per_model=THINNED),
    Case("dare_linear", 3, shared={"rescale": False}, per_model=THINNED),
    Case("dare_ties", 3, per_model=THINNED),
    Case("dare_ties", 3, shared={"normalize": True}, per_model=THINNED),
    Case("della", 3, shared={"epsilon": 0.2}, per_model=THINNED),
    Case("della_linear", 3, shared={"epsilon": 0.2}, per_model=THINNED),
    Case("breadcrumbs", 3, shared={"gamma": 0.1}, per_model=THINNED),
    Case("breadcrumbs", 3, shared={"gamma": 0.8}, per_model=THINNED),
    Case("breadcrumbs_ties", 3, shared={"gamma": 0.1}, per_model=THINNED),
    Case("sce", 3),
    Case("sce", 3, shared={"select_topk": 0.4}),
    Case("sce", 3, spread=1e-5, expected="weights by squares at any size"),
    Case("model_stock", 2),
    Case("model_stock", 3, shared={"filter_wise": True}),
    Case("model_stock", 3, spread=30.0, expected="t is 0 where cosines are negative"),
    Case("ram", 3),
    Case("ram", 3, shared={"epsilon": 0.3}),
    Case("ramplus_tl", 3, shared={"epsilon": 0.3}),
    Case("nearswap", 1, shared={"t": 0.1}),
    Case("arcee_fusion", 1),
    Case("passthrough", 1, base=False, per_model={"scale": (1.5,)}),
)
"""Every method of mergekit 0.1.5. DARE and DELLA are compared on the same draws, which replace `torch.bernoulli`."""


LAYERS = 7
TENSORS = (
    "model.layers.{}.mlp.up_proj.weight",
    "model.layers.{}.self_attn.q_proj.weight",
    "model.layers.{}.norm.weight",
)
SETTINGS: tuple[Any, ...] = (
    0.3,
    [0.0, 1.0],
    [1.0, 0.7, 0.1],
    [2.0],
    [{"filter": "self_attn", "value": [0.0, 0.5, 0.3, 0.7, 1.0]}, {"filter": "mlp", "value": 0.2}, {"value": 0.5}],
    [{"filter": "mlp", "value": [1.0, 0.0]}, {"filter": "*", "value": [0.0, 0.25]}],
)
"""Numbers that differ between layers and tensors, in mergekit's notation."""


def tensors_of(case: Case, shape: tuple[int, ...], seed: int) -> tuple[Tensor, list[Tensor]]:
    """The base, and the models: what all of them learnt, and what each did by itself."""
    generator = torch.Generator().manual_seed(seed)
    base, common = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    share = 0.3 if case.spread > 1e-3 else case.spread
    own = [torch.randn(shape, generator=generator) for _ in range(case.models)]
    return base, [base + share * common + case.spread * one for one in own]


def draws_of(shape: tuple[int, ...], seed: int) -> torch.Generator:
    """The stream of uniform numbers that both sides compare their probabilities with."""
    digest = hashlib.sha256(f"{shape}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def models_of(case: Case) -> list[str]:
    """The names of a case's inputs, the base first where there is one."""
    return [*(["base"] if case.base else []), *(f"model{index}" for index in range(case.models))]
