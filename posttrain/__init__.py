"""posttrain: post-training of language models.

    import posttrain as pt

    pairs = pt.read("pairs.jsonl")                               # Examples; a bad row is a named error
    policy = pt.load("smollm2-135m-instruct", adapter=pt.LoRA(rank=16))
    run = pt.train(pt.DPO(beta=0.1, learning_rate=2e-4), policy, pairs, out="runs/mine")
    run.report                                                   # runs/mine/report.html

Names are loaded when they are first used: importing the package imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.config import DPO, SFT, Data, LoRA, Preference, Recipe, load_recipe
    from posttrain.data.dataset import EncodedDataset
    from posttrain.data.encode import Encoder
    from posttrain.data.encoder_settings import EncoderSettings
    from posttrain.data.read import read
    from posttrain.data.store import encode
    from posttrain.models.logprobs import Policy
    from posttrain.report import write_report
    from posttrain.training.pipeline import check_recipe, run_recipe
    from posttrain.training.session import Run, load, train

_HOMES = {
    "DPO": "posttrain.config",
    "Data": "posttrain.config",
    "EncodedDataset": "posttrain.data.dataset",
    "Encoder": "posttrain.data.encode",
    "EncoderSettings": "posttrain.data.encoder_settings",
    "LoRA": "posttrain.config",
    "Policy": "posttrain.models.logprobs",
    "Preference": "posttrain.config",
    "Recipe": "posttrain.config",
    "Run": "posttrain.training.session",
    "SFT": "posttrain.config",
    "check_recipe": "posttrain.training.pipeline",
    "encode": "posttrain.data.store",
    "load": "posttrain.training.session",
    "load_recipe": "posttrain.config",
    "read": "posttrain.data.read",
    "run_recipe": "posttrain.training.pipeline",
    "train": "posttrain.training.session",
    "write_report": "posttrain.report",
}
"""Public name -> module that holds it."""

__all__ = [
    "DPO",
    "SFT",
    "Data",
    "EncodedDataset",
    "Encoder",
    "EncoderSettings",
    "LoRA",
    "Policy",
    "Preference",
    "Recipe",
    "Run",
    "check_recipe",
    "encode",
    "load",
    "load_recipe",
    "read",
    "run_recipe",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'posttrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
