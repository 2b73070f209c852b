r"""Sets of real numbers as unions of intervals: what x < 3, (-\infty, 3) and \mathbb{R} \setminus \{5\} say.

    Region((Piece(None, False, number(3), False),), "x")      # x < 3

Ends are formulas, and are put in order by their exact signs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from posttrain.rewards.formula import Term, difference
from posttrain.rewards.notation import UnreadableError
from posttrain.rewards.values import equal, sign_of

# Every comparison of ends is exact arithmetic on formulas; a hostile union would multiply them.
MOST_PIECES = 12


@dataclass(frozen=True, slots=True)
class Piece:
    """Piece(number(2), True, None, False): [2, oo). None is the infinity of its side."""

    low: Term | None
    low_in: bool
    high: Term | None
    high_in: bool

    @property
    def is_empty(self) -> bool:
        if self.low is None or self.high is None:
            return False
        order = sign_of(difference(self.high, self.low))
        return order < 0 or (order == 0 and not (self.low_in and self.high_in))


@dataclass(frozen=True, slots=True)
class Region:
    """Pieces from left to right that do not touch, and the unknown that lies in them, "" where none is named."""

    pieces: tuple[Piece, ...]
    name: str = ""


ALL = Piece(None, False, None, False)


def region(pieces: Iterable[Piece], name: str = "") -> Region:
    """The union of some intervals.

    Raises:
        UnreadableError: an end is no real number, or there are too many.
    """
    kept = [piece for piece in pieces if not piece.is_empty]
    if len(kept) > MOST_PIECES:
        raise UnreadableError("too many intervals")
    kept.sort(key=functools.cmp_to_key(_by_low))
    # Merged to a normal form, so that two regions are equal exactly if their pieces are.
    merged: list[Piece] = []
    for piece in kept:
        if merged and _touch(merged[-1], piece):
            merged[-1] = _merged(merged[-1], piece)
        else:
            merged.append(piece)
    return Region(tuple(merged), name)


def union(parts: Sequence[Region]) -> Region:
    """The numbers in any of them. Raises UnreadableError for sets of different unknowns."""
    return region([piece for part in parts for piece in part.pieces], _common_name(parts))


def intersection(left: Region, right: Region) -> Region:
    """The numbers in both. Raises UnreadableError for sets of different unknowns."""
    pieces = []
    for piece in left.pieces:
        for other in right.pieces:
            low, low_in = max((piece, other), key=functools.cmp_to_key(_by_low)).low, True
            # An end that both have belongs to the intersection only if both contain it.
            low_in = all(part.low_in for part in (piece, other) if _same_end(part.low, low))
            high = min((piece, other), key=functools.cmp_to_key(_by_high)).high
            high_in = all(part.high_in for part in (piece, other) if _same_end(part.high, high))
            pieces.append(Piece(low, low_in and low is not None, high, high_in and high is not None))
    return region(pieces, _common_name([left, right]))


def without(points: Sequence[Term], name: str = "") -> Region:
    """All real numbers but some."""
    # By exact sign: a sort by floats may swap two roots that are close.
    ordered = sorted(points, key=functools.cmp_to_key(_by_value))
    lows: list[Term | None] = [None, *ordered]
    highs: list[Term | None] = [*ordered, None]
    return region([Piece(low, False, high, False) for low, high in zip(lows, highs, strict=True)], name)


def _by_value(left: Term, right: Term) -> int:
    return sign_of(difference(left, right))


def same_region(left: Region, right: Region) -> bool:
    """Whether they hold the same numbers; of two that name their unknowns, the same unknown."""
    if left.name and right.name and left.name != right.name:
        return False
    return len(left.pieces) == len(right.pieces) and all(
        one.low_in == other.low_in
        and one.high_in == other.high_in
        and _same_end(one.low, other.low)
        and _same_end(one.high, other.high)
        for one, other in zip(left.pieces, right.pieces, strict=True)
    )


def _common_name(parts: Sequence[Region]) -> str:
    names = {part.name for part in parts if part.name}
    if len(names) > 1:
        raise UnreadableError("conditions on several unknowns")
    return names.pop() if names else ""


def _same_end(left: Term | None, right: Term | None) -> bool:
    if left is None or right is None:
        return left is right
    return equal(left, right)


def _by_low(left: Piece, right: Piece) -> int:
    if left.low is None or right.low is None:
        return (left.low is not None) - (right.low is not None)
    return sign_of(difference(left.low, right.low)) or int(right.low_in) - int(left.low_in)


def _by_high(left: Piece, right: Piece) -> int:
    if left.high is None or right.high is None:
        return (left.high is None) - (right.high is None)
    return sign_of(difference(left.high, right.high)) or int(left.high_in) - int(right.high_in)


def _touch(left: Piece, right: Piece) -> bool:
    """Whether they leave nothing between them; left begins no later."""
    if left.high is None or right.low is None:
        return True
    order = sign_of(difference(left.high, right.low))
    # [0, 1) and [1, 2] leave nothing between them; (0, 1) and (1, 2) leave out 1.
    return order > 0 or (order == 0 and (left.high_in or right.low_in))


def _merged(left: Piece, right: Piece) -> Piece:
    last = max((left, right), key=functools.cmp_to_key(_by_high))
    return Piece(left.low, left.low_in, last.high, last.high_in)
