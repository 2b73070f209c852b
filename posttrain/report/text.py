"""Texts of data and models, and times, as the page carries them."""

from __future__ import annotations

import re

from posttrain.report.numbers import count
from posttrain.runs.sample_log import short_row

__all__ = ["FINISHES", "LONGEST_TEXT", "moment", "short_row", "shorten"]

LONGEST_TEXT = 1_500
"""Characters of an answer or a row that the page carries; the files have the rest."""
FINISHES = {"length": "cut at the limit", "aborted": "aborted", "empty": "nothing said"}


def shorten(text: str, longest: int = LONGEST_TEXT) -> str:
    """The beginning of a long text, which says how much is left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({count(len(text) - longest)} more characters)"


def moment(text: str) -> str:
    """An ISO time for reading: "2025-11-21T02:47:11.5+00:00" -> "2025-11-21 02:47 UTC"; other text as it is."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(?::[\d.]+)?(Z|[+-]\d\d:?\d\d)?", text)
    if not match:
        return text
    zone = {"Z": " UTC", "+00:00": " UTC", None: ""}.get(match[3], f" {match[3]}")
    return f"{match[1]} {match[2]}{zone}"
