"""`pt.merge(...)`: merging from Python, by names, folders or groups of keys.

report = pt.merge(["runs/maths/model", "runs/code/model"], "merged", method="ties", base="smollm2-135m")
print(report)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from posttrain.arguments import wrong_argument
from posttrain.config.merge_weights import weighted
from posttrain.config.merging import MergeSettings, merge_settings
from posttrain.models.folders.own_code import ModelCode, folder_code
from posttrain.models.merging.run import MergeReport, merge_models
from posttrain.runs.showing import Shown, showing

DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""As commands and Python have them -> as the settings do."""


def merge(
    models: Sequence[str | Path | Mapping[str, Any]] | MergeSettings,
    out: str | Path,
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    base: str | Path | None = None,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    seed: int = 0,
    model_code: ModelCode | None = None,
    progress: Shown = None,
    **options: Any,
) -> MergeReport:
    """Merge models into a folder that was read back in a fresh process.

    Args:
        models: names, folders, or groups of keys such as `{"model": "runs/a/model", "density": 0.3}`; settings that
            were made elsewhere stand for everything but `out`.
        out: the merged model's folder; what is merged is never replaced.
        method: a row of `MERGE_METHODS` (docs/merging.md): linear, slerp, task_arithmetic, ties, dare_ties, ...
        weights: one for each model, in their order.
        base: the model that all were trained from; None: the one that their folders name, where the method needs one.
        dtype: of the saved weights; `auto`: as the first model's are stored.
        seed: of methods that draw.
        options: keys of the method: `density=0.3`, `lambda_=0.5`, `rescale="l1"`, `tokens="union"`, ...

    Raises:
        ConfigError: an option that the method has not, or models that do not fit each other.
        ModelError: a model cannot be read, is quantised or holds a NaN.
        ExportError: the folder holds something else, or what was saved does not read back.
    """
    if not isinstance(out, str | os.PathLike):
        raise wrong_argument("out", out, expected="the path of a folder", remedy='write `out="merged"`, say')
    settings = models if isinstance(models, MergeSettings) else None
    if settings is None:
        if dtype not in DTYPES:
            raise wrong_argument("dtype", dtype, expected=", ".join(DTYPES), remedy='write `dtype="bf16"`')
        entries = weighted(method, models, weights)
        settings = merge_settings(
            method, entries, dtype=DTYPES[dtype], **({} if base is None else {"base": os.fspath(base)}), **options
        )
    with showing(progress, in_logs=True) as shown, folder_code(model_code):
        return merge_models(settings, out, seed=seed, progress=shown, say=shown.say)
