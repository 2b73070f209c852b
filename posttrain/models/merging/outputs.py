"""What a merge writes beside its weights, and how its folder is read back.

No model is in memory that the fresh process could be compared with. So it is asked for the checksums of the weights
that it loaded: they are the bytes that were computed, or the folder gets no name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrain.errors import ExportError
from posttrain.models.folders import readback
from posttrain.models.folders.export import PendingSave
from posttrain.models.folders.export_files import (
    PROBE_TEXT,
    SERVED_FIELDS,
    Expected,
    ExportSettings,
    probe_request,
    prompt_request,
    spread_ids,
    stop_ids_of,
    write_beside_weights,
    write_speech_record,
)
from posttrain.models.folders.tokenizers import save_tokenizer
from posttrain.models.merging.inputs import OpenModel
from posttrain.models.reward.folders import REWARD_FILE
from posttrain.sampling import SamplingDistribution


def write_beside(
    models: Sequence[OpenModel],
    ground: OpenModel,
    folder: Path,
    tokenizer: Any,
    rows: int,
    dtype: torch.dtype,
    info: Mapping[str, Any],
) -> ExportSettings:
    """Config, tokenizer, and how the merge is spoken to; gives the settings that say so.

    Args:
        ground: whose ids the merged tokens have, and who is spoken to.
        rows: of the embeddings.
    """
    config = json.loads((models[0].folder / "config.json").read_text(encoding="utf-8"))
    _write_config(config, models, rows, dtype, folder)
    for path in ground.folder.glob("*.py"):  # a folder's own classes, which config.json names
        shutil.copyfile(path, folder / path.name)
    speech = ground.speech
    # The template is written out: without the model's folder nothing else would say which one it was.
    if speech.source is None and speech.template != "raw":
        speech = replace(speech, source=tokenizer.chat_template)
    proposed = {key: value for key, value in speech.sampling.items() if key in SERVED_FIELDS}
    export = ExportSettings(
        speech=speech, stop_ids=speech.stop_ids, sampling=SamplingDistribution(**proposed), dtype=dtype, info=info
    )
    if not models[0].is_reward:
        write_beside_weights(folder, tokenizer, export)
        return export
    save_tokenizer(tokenizer, folder)
    write_speech_record(folder, tokenizer, stop_ids_of(export, tokenizer), export)
    if models[0].reward is not None:
        # Scale and shift are fitted to one model's scores on its held-out rows; the merge has scores of its own.
        rule = {**models[0].reward["rule"], "scale": None, "shift": 0.0}
        record = {**models[0].reward, "rule": rule, "statistics": {}}
        (folder / REWARD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return export


def _write_config(
    config: dict[str, Any], models: Sequence[OpenModel], rows: int, dtype: torch.dtype, folder: Path
) -> None:
    """The first model's, with the merge's own vocabulary and dtype."""
    name = str(dtype).removeprefix("torch.")
    for part in (config, config.get("text_config") or {}):
        part.pop("torch_dtype", None)  # the older name of the next key
        if part is config or "dtype" in part:
            part["dtype"] = name
        if part is config or "vocab_size" in part:
            part["vocab_size"] = rows
    positions = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in models]
    if "max_position_embeddings" in config and None not in positions:
        config["max_position_embeddings"] = min(int(number) for number in positions if number is not None)
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def expected_of(
    first: OpenModel,
    tokenizer: Any,
    rows: int,
    export: ExportSettings,
    dtype: torch.dtype,
    checksums: Mapping[str, int],
) -> Expected:
    """What the fresh process is asked."""
    probe_ids = readback.tokenizer_ids(tokenizer, PROBE_TEXT)
    row = [*probe_ids, *spread_ids(rows)]
    if first.is_reward:
        request: dict[str, Any] = {
            **prompt_request(export),
            "score_rows": [probe_ids, row],
            "outputs": len(first.config.id2label or {}) or 1,
            "text": PROBE_TEXT,
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
    else:
        request = probe_request(export, tokenizer, row, dtype)
    request["checksums"] = dict(checksums)
    return Expected(np.zeros(0), [], [], probe_ids, 0.0, 0.0, request)


class PendingMerge(PendingSave):
    """A merge on its way to its name; made by `begin_reading_back`."""

    compared = 0
    """Weights that the fresh process found under their own names, byte for byte."""

    def _compare(self, answer: dict[str, Any], logits: np.ndarray) -> float:
        advice = "merge again; if this stays, the disk or the memory fails"
        if answer["differing"]:
            raise self._refusal(
                "it has other weights than were computed",
                f"{len(answer['differing']):,} of {answer['compared']:,} tensors, {answer['differing'][0]} first",
                advice,
            )
        if not np.isfinite(logits).all():
            raise self._refusal(
                "what it computes is not finite, though every weight of it is",
                f"{int((~np.isfinite(logits)).sum()):,} of {logits.size:,} numbers are NaN or infinite",
                "write `dtype: float32`, or smaller weights",
            )
        if answer["probe_ids"] != self._expected.probe_ids:
            raise self._refusal(
                "its tokenizer or chat template encodes a message differently",
                f"{answer['probe_ids'][:12]} instead of {self._expected.probe_ids[:12]}",
                advice,
            )
        self.compared = int(answer["compared"])
        return 0.0

    def _refusal(self, problem: str, found: str, advice: str = "merge again") -> ExportError:
        return ExportError(
            f"the merged model was read back, and {problem}",
            where=self.folder,
            found=found,
            remedy=f"nothing was saved under this name; {advice}",
        )
