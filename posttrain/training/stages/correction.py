"""The stage `correction`: the model's own answers become the rejected side, the rows' answers the chosen one."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import Correction, Data
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.read import Examples, read
from posttrain.data.unread import unread_keys
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import load
from posttrain.rollout.native import NativeEngine
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.logs import DroppedRow
from posttrain.runs.records.stage import DataCounts
from posttrain.sampling import SamplingDistribution
from posttrain.training.order import stream_seed
from posttrain.training.stages.correction_pairs import correction_pairs


def make_corrections(
    stage: Correction,
    model: str | Path,
    folder: StageFolder,
    *,
    seed: int,
    progress: Progress,
    encoding: EncoderSettings | None = None,
    device: str = "auto",
) -> DataCounts:
    """Write data.jsonl into the stage's folder; returns what stage.json says under "data".

    Args:
        encoding: how prompts become ids; as the model's folder says if not given.
        device: where the model answers; see `device_of`.

    Raises:
        DataError: a row says no wanted answer, or no pair came out.
    """
    rows, keep = rows_to_correct(stage, folder)
    for note in (*rows.counts.notes, *unread_keys(rows.counts.unread_keys)):
        progress.say(f"{folder.name}: {note}")
    loaded = load(model, device=device_of(device), say=progress.say)
    sampling = SamplingDistribution(**stage.sampling.model_dump(), seed=stream_seed(seed, "sampling"))
    kept = keep.counts.kept if keep is not None else 0
    total = (rows.counts.kept + kept) * stage.samples_per_prompt + kept
    with progress.phase(f"{folder.name}: own answers", total=total, unit="answers") as phase:
        counts = correction_pairs(
            rows,
            Encoder(loaded.tokenizer, encoding or loaded.speech.settings()),
            NativeEngine(loaded.model),
            sampling,
            keep=keep or (),
            samples_per_prompt=stage.samples_per_prompt,
            out=folder.path / "data.jsonl",
            dropped=folder.path / DroppedRow.FILE,
            on_finish=lambda _, __, completion: phase.advance(1, tokens=len(completion.ids)),
        )
    progress.say(f"{folder.name}: {counts}")
    return DataCounts(
        read=rows.counts.read + (keep.counts.read if keep is not None else 0),
        kept=counts.pairs,
        dropped=counts.skipped,
        truncated=counts.truncated,
        findings={},
        tokens=None,
        trained_tokens=None,
        stop_share=None,
        rows=None,
        held_out_rows=None,
        answers=counts.answers,
        prompts=counts.prompts,
        pairs=counts.pairs,
        skipped=counts.skipped,
        prompts_without_pair=counts.prompts_without_pair,
    )


def rows_to_correct(stage: Correction, folder: StageFolder) -> tuple[Examples, Examples | None]:
    """The stage's rows and its `keep`; all are looked at now, so that a bad one is found before a model loads."""
    assert stage.data is not None  # the recipe's validation refuses a stage without data
    rows = _read(stage.data, folder.path / "rejected_rows.jsonl")
    return rows, None if stage.keep is None else _read(stage.keep, folder.path / "rejected_keep.jsonl")


def _read(data: Data, rejected: Path) -> Examples:
    return read(
        list(data.path),
        format=data.format,
        columns=data.columns,
        roles=data.roles,
        bad_rows=data.bad_rows,
        rejected_path=rejected if data.bad_rows == "skip" else None,
        limit=data.limit,
        split=data.split,
        dialogues_in_text=data.dialogues_in_text,
    )
