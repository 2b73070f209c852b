"""A stage's rows: read, encoded, split, counted; before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from posttrain.config import Data, TrainingStage
from posttrain.data.dataset import EncodedDataset
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.read import Examples, read
from posttrain.data.store import encode
from posttrain.diagnostics.progress import Progress
from posttrain.diagnostics.run_store import StageFolder
from posttrain.models.loading import LoadedModel, load, resolve
from posttrain.models.tokenizers import has_tokenizer, load_tokenizer
from posttrain.training.algorithms import Algorithm
from posttrain.training.order import stream_seed
from posttrain.training.split import row_contents, split_by_content
from posttrain.types import TokenTree


@dataclass(frozen=True, slots=True)
class Inputs:
    """A stage's rows, read and encoded; no weight has been touched yet."""

    rows: Sequence[TokenTree]
    held_out: Sequence[TokenTree]
    encoder: Encoder
    counts: dict[str, Any]
    """What stage.json says under "data"."""
    fingerprints: tuple[str, ...]


def load_inputs(
    stage: TrainingStage,
    objective: Algorithm,
    start: str | Path | LoadedModel,
    folder: StageFolder,
    seed: int,
    progress: Progress,
    examples: Examples | None,
) -> Inputs:
    """Read and encode a stage's rows, and hold some of them out.

    Raises:
        DataError, EncodingError: a row, a file or the template cannot serve; no model has been loaded.
    """
    settings = _encoder_settings(stage, _positions(start))
    if settings.max_length != stage.max_length:
        progress.say(f"{folder.name}: max_length is {settings.max_length:,}, the most positions that the model has")
    encoder = Encoder(_tokenizer(start), settings)
    rows, data = _encoded(stage.data, objective, encoder, folder, "rows", progress, examples)
    for note in rows.notes:
        progress.say(f"{folder.name}: {note}")
    fingerprints = [rows.fingerprint]
    if isinstance(stage.held_out, Data):
        held, _ = _encoded(stage.held_out, objective, encoder, folder, "held-out rows", progress, None)
        fingerprints.append(held.fingerprint)
    else:
        kept, out = split_by_content(row_contents(rows), stage.held_out, stream_seed(seed, "split"))
        rows, held = rows[kept], rows[out]
    return Inputs(rows, held, encoder, {**data, "rows": len(rows), "held_out_rows": len(held)}, tuple(fingerprints))


def _tokenizer(start: str | Path | LoadedModel) -> Any:
    """The start's tokenizer, without its weights where it can be had without them."""
    if isinstance(start, LoadedModel):
        return start.tokenizer
    source = resolve(start)
    return load_tokenizer(source.folder) if has_tokenizer(source.folder) else load(start).tokenizer


def _encoded(
    data: Data | None,
    objective: Algorithm,
    encoder: Encoder,
    folder: StageFolder,
    name: str,
    progress: Progress,
    examples: Examples | None,
) -> tuple[EncodedDataset, dict[str, Any]]:
    if examples is None:
        assert data is not None  # the recipe's validation refuses a stage without data
        examples = read_data(data, objective.kind, folder.path / "dropped.jsonl")
    bad_rows = data.bad_rows if data is not None else "stop"
    total = examples.counts.kept
    with progress.phase(f"{folder.name}: encoding {name}", total=total, unit="rows") as phase:
        rows = encode(
            examples,
            encoder,
            store=folder.path / "encoded",
            progress=phase.advance,
            bad_rows=bad_rows,
        )
    for left_out in rows.dropped():
        folder.append_dropped(left_out)
    counts = rows.counts
    record = {
        "format": examples.format,
        "read": examples.counts.read,
        "kept": counts.kept,
        "split": counts.split,
        "dropped": {**examples.counts.skipped, **counts.dropped},
        "truncated": dict(counts.truncated),
        "findings": dict(counts.findings),
        "tokens": counts.tokens,
        "trained_tokens": counts.trained_tokens,
        "stop_share": counts.stop_share,
    }
    return rows, record


def read_data(data: Data, kind: Any, rejected: Path) -> Examples:
    """The rows of a recipe's `data`; all of them are looked at now, so that a bad one is found before a model loads."""
    return read(
        list(data.path),
        format=data.format,
        columns=data.columns,
        roles=data.roles,
        kind=kind,
        bad_rows=data.bad_rows,
        rejected_path=rejected if data.bad_rows == "skip" else None,
        limit=data.limit,
        split=data.split,
        allow_ties=data.allow_ties,
    )


def _encoder_settings(stage: TrainingStage, positions: int | None) -> EncoderSettings:
    """The stage's options; no row may be longer than the model has positions."""
    settings = stage.encoding.model_dump()  # type: ignore[attr-defined]
    limits = [limit for limit in (stage.max_length, positions) if limit is not None]
    return EncoderSettings(max_length=min(limits, default=None), **settings)


def _positions(start: str | Path | LoadedModel) -> int | None:
    """The longest sequence that the model was made for, from its config; None where it names none."""
    if isinstance(start, LoadedModel):
        config = start.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)
    source = resolve(start)
    path = source.folder / "config.json"
    if not path.is_file():  # an adapter or a GGUF file: only the loaded model knows
        return _positions(load(start))
    config = AutoConfig.from_pretrained(source.folder).get_text_config()
    return getattr(config, "max_position_embeddings", None)
