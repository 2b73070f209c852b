"""The stage `correction`: the model's own answers become the rejected side, the rows' answers the chosen one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.config import Correction
from posttrain.data.correction import correction_pairs
from posttrain.data.encode import Encoder
from posttrain.data.read import read
from posttrain.diagnostics.progress import Progress
from posttrain.diagnostics.run_store import StageFolder
from posttrain.models.loading import load
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.sampling import SamplingDistribution
from posttrain.training.order import stream_seed


def make_corrections(
    stage: Correction, model: str | Path, folder: StageFolder, *, seed: int, progress: Progress
) -> dict[str, Any]:
    """Write data.jsonl into the stage's folder; returns what stage.json says under "data".

    Raises:
        DataError: a row says no wanted answer, or no pair came out.
    """
    assert stage.data is not None  # the recipe's validation refuses a stage without data
    data = stage.data
    rows = read(
        list(data.path),
        format=data.format,
        columns=data.columns,
        roles=data.roles,
        bad_rows=data.bad_rows,
        rejected_path=folder.path / "rejected_rows.jsonl" if data.bad_rows == "skip" else None,
        limit=data.limit,
        split=data.split,
    )
    loaded = load(model, say=progress.say)
    sampling = SamplingDistribution(**stage.sampling.model_dump(), seed=stream_seed(seed, "sampling"))
    total = rows.counts.kept * stage.samples_per_prompt
    with progress.phase(f"{folder.name}: own answers", total=total, unit="answers") as phase:
        counts = correction_pairs(
            rows,
            Encoder(loaded.tokenizer),
            NativeEngine(loaded.model),
            sampling,
            samples_per_prompt=stage.samples_per_prompt,
            out=folder.path / "data.jsonl",
            dropped=folder.path / "dropped.jsonl",
            on_finish=lambda _, __, completion: phase.advance(1, tokens=len(completion.ids)),
        )
    progress.say(f"{folder.name}: {counts}")
    return {**counts.as_dict(), "read": rows.counts.read, "kept": counts.pairs, "dropped": counts.skipped}
