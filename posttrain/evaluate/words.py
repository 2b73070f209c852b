"""Shares and their differences as sentences have them."""

from __future__ import annotations


def percent(value: float) -> str:
    """percent(0.614) == "61", the sign of per cent left to the sentence."""
    return f"{100 * value:.0f}".replace("-", "\u2212")


def in_points(value: float) -> str:
    """in_points(-0.04) == "\u22124", in_points(0.001) == "0": percentage points with their sign."""
    return f"{100 * value:+.0f}".replace("-", "\u2212") if abs(value) >= 0.005 else "0"
