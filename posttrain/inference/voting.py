"""Which answer most of several come to: self-consistency (Wang et al. 2022, arXiv:2203.11171)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from posttrain.inference.answers import Equality
from posttrain.inference.solution import Node


class Election(NamedTuple):
    """Election(chosen=<Node 2>, votes=3, voters=5): three of five answers say what node 2 does."""

    chosen: Node
    """The earliest member of the largest class; of equal classes the one that occurs first."""
    votes: int
    voters: int


def majority(nodes: Sequence[Node], equality: Equality) -> Election:
    """The most common answer; the first node, with no vote, where none of them ends on anything."""
    numbers = equality.classes([node.answer for node in nodes])
    counts = Counter(number for number in numbers if number is not None)
    if not counts:
        return Election(nodes[0], 0, 0)
    # Classes are numbered as they first occur: of equal counts the earlier one.
    winner = max(counts, key=lambda number: (counts[number], -number))
    return Election(nodes[numbers.index(winner)], counts[winner], sum(counts.values()))
