"""Saving a reward model: an `AutoModelForSequenceClassification` folder, with the same scores in a fresh process.

The fresh process pools rows as `transformers` does, in one padded batch, and knows nothing of masks: a pad token that
ends a response, or a head that was not saved, shows here. The stage of kind `reward` calls it at its end; the folder
is what `reward.folders` loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.folders import readback
from posttrain.models.folders.export import PendingSave
from posttrain.models.folders.export_files import (
    PROBE_TEXT,
    Expected,
    ExportSettings,
    eval_mode,
    on_cpu,
    prompt_request,
    stop_ids_of,
    write_speech_record,
)
from posttrain.models.folders.export_files import write_adapter as write_adapter_files
from posttrain.models.folders.export_shared import (
    OTHER_DEVICE,
    SharedFiles,
    SharedSave,
    begin_shared_save,
    to_save,
    write_adapter_in_parts,
)
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.source import ModelSource
from posttrain.models.folders.tokenizers import save_tokenizer
from posttrain.models.reward.folders import write_reward_file
from posttrain.models.sharding.copies import twin
from posttrain.models.sharding.export import same, write_weights
from posttrain.models.sharding.mesh import Sharding
from posttrain.models.tree.heads import ScoreModel
from posttrain.parallel.world import world
from posttrain.runs.disk import writing
from posttrain.types import RowRef

TOLERANCE = 1e-5
"""Allowed difference of a score in fp32, plus the same share of the largest score."""


def begin_save_reward(
    loaded: LoadedModel,
    folder: str | Path,
    settings: ExportSettings,
    *,
    rule: RewardRule,
    encoding: EncoderSettings,
    statistics: Mapping[str, float] | None = None,
) -> SharedSave | PendingSave:
    """`begin_shared_save` for a reward model; `wait()` on the result gives the folder its name.

    Raises:
        ExportError: as `begin_save`.
    """
    told = _Told(rule, encoding, statistics or {})
    return begin_shared_save(
        loaded.model,
        loaded.tokenizer,
        folder,
        settings,
        base=loaded.base,
        sharding=loaded.sharding,
        write=partial(_write, rule=rule, encoding=encoding, statistics=told.statistics),
        write_shared=partial(_write_in_parts, told),
    )


def _write(
    model: Any,
    tokenizer: Any,
    folder: Path,
    settings: ExportSettings,
    adapter_base: ModelSource | None,
    *,
    rule: RewardRule,
    encoding: EncoderSettings,
    statistics: Mapping[str, float],
) -> Expected:
    """The files of a reward model; see `export_files.Writer`. What is compared is the scores of rows."""
    with quiet(), eval_mode(model):
        source = on_cpu(model)
        rows = probe_rows(source, tokenizer)
        scores = scores_in_memory(source, rows)
        rounding, saved = 0.0, source
        if isinstance(source, PeftModel) and not settings.merge:
            write_adapter_files(source, folder, adapter_base, settings.dtype)
        else:
            target = settings.dtype or source.dtype
            if isinstance(source, PeftModel) or target != source.dtype:
                saved = merged_copy(source, target)
            # In a narrow dtype the file is compared with the rounded weights, as `export_files.write_model` does.
            if target not in (torch.float32, torch.float64):
                rounded = scores_in_memory(saved, rows)
                rounding, scores = float(np.abs(rounded - scores).max()), rounded
            saved.save_pretrained(folder, max_shard_size=settings.max_shard_size)

    _write_beside(folder, tokenizer, settings, _Told(rule, encoding, statistics))
    return _expected(tokenizer, settings, rule, rows, scores, rounding, saved.dtype)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a reward model's folder says beside its weights."""

    rule: RewardRule
    encoding: EncoderSettings
    statistics: Mapping[str, float]


def _write_in_parts(
    told: _Told,
    model: Any,
    tokenizer: Any,
    folder: Path,
    settings: ExportSettings,
    adapter_base: ModelSource | None,
    sharding: Sharding,
) -> SharedFiles:
    """The same of a reward model that ranks share; see `export_shared.SharedWriter`."""
    here, rounding, checksums = world(), 0.0, {}
    with quiet(), eval_mode(model):
        rows = probe_rows(model, tokenizer)
        scores = scores_in_memory(twin(model, same), rows, sharding)
        source = saved = twin(model, same)
        if isinstance(model, PeftModel) and not settings.merge:
            write_adapter_in_parts(model, folder, adapter_base, settings, here)
        else:
            saved = to_save(model, settings, sharding, source)
            if saved is not source and saved.dtype not in (torch.float32, torch.float64):
                rounded = scores_in_memory(twin(saved, same), rows, sharding)
                rounding, scores = float(np.abs(rounded - scores).max()), rounded
            checksums = write_weights(saved, folder, settings.max_shard_size, here)
    with here.together("writing the model's folder"), writing(folder):
        if here.is_main:
            _write_beside(folder, tokenizer, settings, told)
    expected = _expected(tokenizer, settings, told.rule, rows, scores, rounding, saved.dtype)
    tolerance = (
        expected.tolerance
        if source.device.type == "cpu"
        else max(expected.tolerance, OTHER_DEVICE * (1 + float(np.abs(scores).max())))
    )
    expected = replace(expected, tolerance=tolerance, request={**expected.request, "checksums": checksums})
    return SharedFiles(expected.request, lambda said: expected)  # a reward model says nothing


def _write_beside(folder: Path, tokenizer: Any, settings: ExportSettings, told: _Told) -> None:
    save_tokenizer(tokenizer, folder)
    write_speech_record(folder, tokenizer, stop_ids_of(settings, tokenizer), settings)
    write_reward_file(folder, told.rule, told.encoding, told.statistics)


def _expected(
    tokenizer: Any,
    settings: ExportSettings,
    rule: RewardRule,
    rows: list[list[int]],
    scores: np.ndarray,
    rounding: float,
    dtype: torch.dtype,
) -> Expected:
    # bf16 keeps 8 bits of a number, and attention over padded rows adds in another order than over one row.
    narrow = dtype not in (torch.float32, torch.float64)
    tolerance = (1e-2 if narrow else TOLERANCE) * (1 + float(np.abs(scores).max()))
    request = {
        **prompt_request(settings),
        "score_rows": rows,
        "outputs": len(rule.heads),
        "text": PROBE_TEXT,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    probe_ids = readback.tokenizer_ids(tokenizer, PROBE_TEXT)
    return Expected(scores, [], [], probe_ids, tolerance, rounding, request)


def probe_rows(model: Any, tokenizer: Any) -> list[list[int]]:
    """Rows of different lengths, none of which ends with the pad token; the last goes through the whole vocabulary."""
    probe = readback.tokenizer_ids(tokenizer, PROBE_TEXT)
    size = model.get_input_embeddings().weight.shape[0]
    spread = np.linspace(0, size - 1, num=min(24, size), dtype=int).tolist()
    rows = [probe, probe[: max(2, len(probe) // 2)], [*probe, *spread]]
    if tokenizer.eos_token_id is not None:
        rows.append([*probe, tokenizer.eos_token_id])  # as a response ends: eos as pad token shows here
    return [row if row[-1] != tokenizer.pad_token_id else [*row, (row[-1] + 1) % size] for row in rows]


def scores_in_memory(model: Any, rows: list[list[int]], sharding: Sharding | None = None) -> np.ndarray:
    """Scores of rows at their last token, by our masks: [rows, outputs]. `sharding`: of a parked model, in place."""
    masks = [[False] * (len(row) - 1) + [True] for row in rows]
    trees = [make_tree([], [(row, mask)], RowRef("probe", 1)) for row, mask in zip(rows, masks, strict=True)]
    scorer = ScoreModel(model, "padded", sharding=sharding)
    with torch.no_grad():
        return np.concatenate([scorer(collate([tree])).scores_BH.float().cpu().numpy() for tree in trees])
