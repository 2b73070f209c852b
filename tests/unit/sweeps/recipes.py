"""A recipe of two stages on a tiny model, quick enough to be run a dozen times."""

from __future__ import annotations

import json
from pathlib import Path

from tests.online import save_start

RECIPE = """
schema: 1
name: tiny
model: {start}
out: {out}
evaluate:
  suites:
    - {{name: letters, kind: match, prompts: {asked}, pattern: '[a-m]', sampling: {{max_new_tokens: 4}}}}
stages:
  - {{method: sft, data: {rows}, learning_rate: 1e-2, steps: 2, rows_per_step: 4, held_out: 0, preflight: off}}
  - method: dpo
    data: {pairs}
    learning_rate: 1e-2
    steps: 4
    rows_per_step: 4
    held_out: 0
    preflight: off
    audit: {{on_error: off}}
"""


def write_recipe(folder: Path) -> Path:
    """mine.yaml in the folder, with its rows, prompts and start model beside it."""
    start = save_start(folder / "base")
    rows = [{"prompt": f"{i}?", "completion": f"{i} it is."} for i in range(8)]
    pairs = [{"prompt": f"{i}?", "chosen": f"{i} it is.", "rejected": "No."} for i in range(8)]
    asked = [{"prompt": f"{i} and {i + 1}?"} for i in range(6)]
    for name, content in (("rows", rows), ("pairs", pairs), ("asked", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    path = folder / "mine.yaml"
    path.write_text(
        RECIPE.format(
            start=start,
            out=folder / "runs",
            **{name: folder / f"{name}.jsonl" for name in ("rows", "pairs", "asked")},
        )
    )
    return path
