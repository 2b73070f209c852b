"""Which rank takes what: balanced, and a function of the costs alone, so that nobody has to say it to anybody.

shares([5, 1, 4, 2], 2) -> [[0, 1], [2, 3]]
"""

from __future__ import annotations

from collections.abc import Sequence


def shares(costs: Sequence[float], size: int) -> list[list[int]]:
    """The items of each rank, in their own order: the costliest first to the rank that has least to do (Graham 1969:
    at most 4/3 of the best balance there is). Ties go to the lower rank and the earlier item.

    Raises:
        ValueError: no rank.
    """
    if size < 1:
        raise ValueError(f"items are shared by at least one rank, got {size}")
    taken: list[list[int]] = [[] for _ in range(size)]
    loads = [0.0] * size
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        # Beside the load the number of items: things that cost nothing would otherwise all go to one rank.
        rank = min(range(size), key=lambda r: (loads[r], len(taken[r])))
        taken[rank].append(index)
        loads[rank] += costs[index]
    return [sorted(own) for own in taken]
