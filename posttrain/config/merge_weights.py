"""A weight for each model of a merge, as commands and Python give them: beside the models, in their order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.merge_methods import MERGE_METHODS
from posttrain.config.merging import MERGES
from posttrain.errors import ConfigError, unknown


def weighted(kind: str, models: Any, weights: Sequence[float] | None) -> list[Any]:
    """The models with a weight each: weighted("ties", ["a", "b"], [1, 0.5]) -> [{"model": "a", "weight": 1}, ...]

    Raises:
        UnknownKeyError: no method of that name.
        ConfigError: the method has no weights, or there are more or fewer than models; `models` is no list.
    """
    if kind not in MERGES:
        raise unknown("method of merging", kind, MERGES)
    if isinstance(models, (str, os.PathLike, Mapping)) or not isinstance(models, Sequence):
        raise ConfigError(
            "`models` is a list of models",
            found=f"{type(models).__name__}: {models!r}"[:80],
            expected="a list of names, folders, or groups of keys",
            remedy='write `["runs/a/model", "runs/b/model"]`',
        )
    if not weights:
        return list(models)
    row = MERGE_METHODS[kind]
    if "weight" not in row.per_model:
        words = [name for name, known in row.options.items() if known.varies]
        raise ConfigError(
            f"`{kind}` takes no weights",
            found=", ".join(f"{weight:g}" for weight in weights),
            expected=f"its own settings: {', '.join(words)}" if words else "no weights",
            remedy=f"write `--set {words[0]}=VALUE` (in Python `{words[0]}=`)" if words else "leave the weights out",
        )
    if len(weights) != len(models):
        raise ConfigError(
            "there has to be a weight for each model",
            found=f"{len(weights)} weights, {len(models)} models",
            example="weights 0.5,0.5 for two models",
            remedy="give one for each, in the order of the models",
        )
    entries = [dict(model) if isinstance(model, Mapping) else {"model": model} for model in models]
    return [{**entry, "weight": weight} for entry, weight in zip(entries, weights, strict=True)]
