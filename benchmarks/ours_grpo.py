"""Our GRPO step on the peer's prompts: the stage as a user runs it, all weights trained, fp32, a reference.

python -m benchmarks.ours_grpo --model FOLDER --data prompts.jsonl
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import posttrain as pt
from benchmarks.grpo_settings import KL_BETA, arguments, near_sixty
from benchmarks.record import Record, peak_rss, read_rows
from benchmarks.settings import ADAM_BETAS, LEARNING_RATE, SEED
from posttrain.config.settings import OptimizerSettings
from posttrain.types import Message, RowRef, Task


def main() -> None:
    given = arguments().parse_args()
    prompts = [row["prompt"] for row in read_rows(given.data)][: given.prompts]
    tasks = [
        Task((Message("user", prompt),), None, RowRef(given.data.name, row)) for row, prompt in enumerate(prompts, 1)
    ]
    loaded = pt.load(given.model)
    before, peaks = peak_rss(), []

    def reward(prompt: object, completion: str, task: Task) -> float:
        peaks.append(peak_rss())  # the export after the last step does not count; the peer writes nothing
        return near_sixty(completion)

    stage = pt.GRPO(
        prompts_per_step=given.prompts,
        completions_per_prompt=given.completions,
        steps=given.steps + 1,  # the memory of the last one is not seen
        kl_beta=KL_BETA,
        learning_rate=LEARNING_RATE,
        optimizer=OptimizerSettings(betas=ADAM_BETAS),
        held_out=0,
        sampling={"temperature": 1.0, "max_new_tokens": given.new_tokens},
    )
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        pt.train(stage, loaded, tasks, rewards=[reward], out=out, seed=SEED)
        lines = (out / "grpo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train"][: given.steps]
    print("\n".join(map(json.dumps, rows)), file=sys.stderr)
    ends = [0.0, *(row["seconds"] for row in rows)]
    values = [row["values"] for row in rows]
    tokens = tuple(round(one["length_sampled"] * one["completions"]) for one in values)
    losses = tuple(one["loss"] for one in values)
    Record("posttrain", tuple(b - a for a, b in pairwise(ends)), losses, before, max(peaks), tokens).emit()


if __name__ == "__main__":
    main()
