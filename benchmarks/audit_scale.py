"""How long the data audit takes on many pairs, and how much memory: every check that needs no model.

    python -m benchmarks.audit_scale                    # 100,000 pairs of about 150 words a side
    python -m benchmarks.audit_scale --pairs 10000 --cheap

Prints one JSON object. The goal: 100,000 pairs in under 300 s and under 4 GB on two cores. The rows are made of
sentences over a vocabulary of 20,000 words with word frequencies like those of a language, with faults planted in a
few of them, so that the checks have something to find.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.auditing import audit
from posttrain.data.read import read
from posttrain.data.write import write_jsonl

GOAL_SECONDS, GOAL_BYTES = 300.0, 4e9


def rows(pairs: int, words_per_side: int, seed: int) -> Iterator[dict[str, Any]]:
    """Pairs whose winner is drawn by lot; one in a hundred is a copy, one in fifty opens with a phrase."""
    generator = np.random.default_rng(seed)
    syllables = ["ba", "re", "ti", "no", "lu", "sa", "me", "ko", "di", "ra", "ve", "po", "ni", "ta", "ge", "mo"]
    words = np.array(["".join(generator.choice(syllables, generator.integers(1, 5))) for _ in range(20_000)])
    frequency = 1 / np.arange(5, 5 + len(words))
    cumulative = np.cumsum(frequency / frequency.sum())

    def text(length: int) -> str:
        chosen = words[np.searchsorted(cumulative, generator.random(length))].tolist()
        for end in range(12, length, 15):
            chosen[end] += "."
        return " ".join(chosen) + "."

    last: dict[str, Any] = {}
    for number in range(pairs):
        if number % 100 == 99:
            yield last
            continue
        lengths = np.exp(generator.normal(np.log(words_per_side), 0.5, 2)).astype(int).clip(5, 1500)
        chosen, rejected = (text(int(length)) for length in lengths)
        if number % 50 == 7:
            rejected = f"Sure, I can help with that! {rejected}"
        last = {"prompt": text(25), "chosen": chosen, "rejected": rejected}
        yield last


def measure(pairs: int, words_per_side: int, *, cheap: bool, seed: int = 0) -> dict[str, Any]:
    """Seconds by check, all of them, and the largest memory of the process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write_jsonl(path, rows(pairs, words_per_side, seed))
        size = path.stat().st_size
        started = time.monotonic()
        report = audit(read(path, bad_rows="skip", scan=False), against=["embedded"], cheap=cheap)
        seconds = time.monotonic() - started
        if not cheap:
            report.write(Path(folder) / "audit")
        written = time.monotonic() - started
    checks = sorted(report.ran.items(), key=lambda entry: -entry[1])
    return {
        "pairs": pairs,
        "file_bytes": size,
        "seconds": round(seconds, 1),
        "seconds_with_page": round(written, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "checks": {name: round(spent, 2) for name, spent in checks if spent >= 0.05},
        "findings": [f"{finding.severity} {finding.check}: {finding.message}" for finding in report],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=150, help="median words of a side")
    parser.add_argument("--cheap", action="store_true", help="only the checks that a recipe runs before training")
    options = parser.parse_args()
    result = measure(options.pairs, options.words, cheap=options.cheap)
    holds = result["seconds"] <= GOAL_SECONDS and result["peak_bytes"] <= GOAL_BYTES
    print(json.dumps({**result, "goal_holds": holds}, indent=2))


if __name__ == "__main__":
    main()
