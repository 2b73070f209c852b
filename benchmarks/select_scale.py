"""How long a selection takes on many rows, and how much memory: every step that needs no model.

    python -m benchmarks.select_scale                    # 200,000 demonstrations of about 150 words
    python -m benchmarks.select_scale --rows 20000

Prints one JSON object: seconds by step, of all, and the largest memory of the process. The goal: 200,000 rows in under
360 s and under 3 GB on two cores. The rows are those of `audit_scale`, with copies and near copies planted among them:
one row in a hundred is a copy, and another one in a hundred has three words exchanged. The rows are made by another
process, so that its memory is not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import audit_scale
from posttrain.config.select import STEP_KINDS
from posttrain.curation.pipeline import select
from posttrain.data.write import write_jsonl
from posttrain.runs.progress import PlainProgress

GOAL_SECONDS, GOAL_BYTES = 360.0, 3e9
EXCHANGED = ("alpha", "beta", "gamma")


def rows(count: int, words: int, seed: int) -> Iterator[dict[str, Any]]:
    """Demonstrations; of each pair of the audit's benchmark both sides, under a prompt of their own."""
    for number, pair in enumerate(audit_scale.rows((count + 1) // 2, words, seed)):
        yield {"prompt": pair["prompt"], "completion": pair["chosen"], "source": f"part {number % 7}"}
        if 2 * number + 1 == count:
            return
        answer = pair["rejected"].split()
        if number % 50 == 25:  # nearly the row before it
            answer = pair["chosen"].split()
            for place, word in enumerate(EXCHANGED):
                answer[(place + 1) * len(answer) // 5] = word
        yield {"prompt": pair["prompt"], "completion": " ".join(answer), "source": f"part {number % 7}"}


def steps(count: int) -> list[dict[str, Any]]:
    """All steps; the one that diversifies where it is there."""
    wanted = max(1, count // 10)
    diversify: list[dict[str, Any]] = [{"kind": "diversify", "method": "k_centre", "budget": wanted}]
    return [
        {"kind": "decontaminate", "against": ["embedded"]},
        {"kind": "score", "score": "form", "keep": {"least": 0.9}},
        {"kind": "score", "score": "length", "keep": {"least": 10}},
        {"kind": "deduplicate"},
        *(diversify if "diversify" in STEP_KINDS else []),
        {"kind": "budget", "rows": wanted},
    ]


def measure(path: Path, count: int, out: Path) -> dict[str, Any]:
    """Seconds by step, all of them, and the largest memory of the process."""
    began = time.monotonic()
    with PlainProgress(sys.stderr) as progress:
        picked = select(str(path), steps=steps(count), out=out, progress=progress)
    seconds = time.monotonic() - began
    by_step = {result.step.label: round(result.seconds, 1) for result in picked.steps}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "rows": picked.rows_read,
        "kept": len(picked.kept),
        "removed": {result.step.label: dict(result.by_reason) for result in picked.steps},
        "seconds": round(seconds, 1),
        "by_step": by_step,
        "reading_and_writing": round(seconds - sum(by_step.values()), 1),
        "peak_gb": round(peak / 1e9, 2),
        "goal": f"{GOAL_SECONDS:.0f} s, {GOAL_BYTES / 1e9:.0f} GB",
        "met": seconds < GOAL_SECONDS and peak < GOAL_BYTES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--words", type=int, default=150)
    parser.add_argument("--make", type=Path, help="write the rows here, and nothing else")
    arguments = parser.parse_args()
    if arguments.make is not None:
        write_jsonl(arguments.make, rows(arguments.rows, arguments.words, seed=0))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        sizes = ["--rows", str(arguments.rows), "--words", str(arguments.words)]
        subprocess.run([sys.executable, "-m", "benchmarks.select_scale", *sizes, "--make", str(path)], check=True)
        print(json.dumps(measure(path, arguments.rows, Path(folder) / "picked"), indent=2))


if __name__ == "__main__":
    main()
