"""Rows to measure with: English from the docstrings of Python's standard library, no download needed.

Lengths are log-normal with the medians of UltraFeedback (prompt 110 words, response 90), so that padding and prompt
sharing matter as much as they do in practice.

    python -m benchmarks.text rows.jsonl 64
"""

from __future__ import annotations

import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PROMPT_WORDS = 110
RESPONSE_WORDS = 90
SPREAD = 0.6
"""Sigma of the logarithm of the lengths."""
FEWEST_WORDS, MOST_WORDS = 8, 700


CORPUS_WORDS = 40_000


@cache
def words() -> tuple[str, ...]:
    """The docstrings of the library's public modules, in the order of their names, up to `CORPUS_WORDS`."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py")):
        found += [word for text in _docstrings(path) for word in text.split()]
        if len(found) >= CORPUS_WORDS:
            break
    return tuple(found)


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` rows with `prompt`, `chosen` and `rejected`; the same on every run of the same Python version."""
    rng = random.Random(seed)
    return [
        {
            "prompt": _passage(rng, PROMPT_WORDS),
            "chosen": _passage(rng, RESPONSE_WORDS),
            "rejected": _passage(rng, RESPONSE_WORDS),
        }
        for _ in range(count)
    ]


def write(path: Path, count: int, seed: int = 0) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed)), encoding="utf-8")


def _passage(rng: random.Random, median: int) -> str:
    length = min(MOST_WORDS, max(FEWEST_WORDS, int(rng.lognormvariate(0, SPREAD) * median)))
    start = rng.randrange(len(words()) - length)
    return " ".join(words()[start : start + length])


def _docstrings(path: Path) -> Iterator[str]:
    """Parsed, not imported: modules of the library print, open windows, or exist on one system only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
