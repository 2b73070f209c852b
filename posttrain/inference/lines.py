"""Solutions as lines of a file: everything that a strategy tried, within bounds.

left_out = write_trees(path, solutions, rights)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.questions import question
from posttrain.data.write import json_line, write_jsonl
from posttrain.inference.solution import Node, Solution
from posttrain.runs.records.budget import SolutionLine, SolutionNode

LONGEST_TEXT = 4_000
"""Characters of one node; of a longer one the beginning and the end are kept."""
MOST_BYTES = 32 * 2**20
"""Of one file of trees: a search of some hundred nodes a prompt over a thousand prompts would fill a disk."""


def solution_line(solution: Solution, right: bool | None = None) -> SolutionLine:
    """A solution with its whole tree, as a file has it.

    Args:
        right: whether its answer is, where somebody knows.
    """
    asked = question(solution.task)
    spent = solution.spent
    return SolutionLine(
        solution.strategy,
        asked.text,
        solution.answer,
        asked.answer,
        right,
        solution.chosen,
        str(solution.stopped),
        spent.sampled,
        spent.scored,
        round(spent.seconds, 3),
        _finite(solution.facts),
        tuple(_node(node) for node in solution.nodes),
    )


def write_trees(path: Path, solutions: Sequence[Solution], rights: Sequence[bool | None]) -> int:
    """A line for each solution, until the file would grow beyond MOST_BYTES; returns how many are left out."""
    written = 0

    def lines() -> Iterator[Mapping[str, Any]]:
        nonlocal written
        room = MOST_BYTES
        for solution, right in zip(solutions, rights, strict=True):
            content = solution_line(solution, right).to_json()
            room -= len(json_line(content).encode("utf-8", "surrogatepass")) + 1
            # The first is always written: a file without a line would say that nothing was tried.
            if room < 0 and written:
                return
            written += 1
            yield content

    write_jsonl(path, lines())
    return len(solutions) - written


def _node(node: Node) -> SolutionNode:
    return SolutionNode(
        node.number,
        node.kind,
        node.parents,
        _shortened(node.text),
        len(node.ids),
        str(node.finish),
        _finite(node.scores),
        _finite(node.facts),
        node.note,
    )


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: null is a scorer that abstained."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]} ... {len(text) - 2 * half:,} characters left out ... {text[-half:]}"


def in_order(runs: Iterable[Sequence[Solution]]) -> list[Solution]:
    """Solutions of several strategies, prompt by prompt, so that a bounded file has whole prompts of all of them."""
    return [solution for prompt in zip(*runs, strict=True) for solution in prompt]
