"""Columns that nothing reads: a misspelt `system` is lost there without a word, and so is a label under SFT.

unread({"systm", "id"}, "prompt_completion", {})    # columns ("id", "systm"), and a doubt about the second
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from posttrain.data.formats import FORMATS, Format
from posttrain.errors import nearest
from posttrain.types import Demonstration

LABELS = ("label", "kto_tag")
"""Says of a response that it is good or bad: a row with one is feedback."""
SYNONYMS = {"system_prompt": "system", "system_message": "system", "sys": "system", "functions": "tools"}
"""What others call a column of ours."""
CLOSE = 0.75
"""Likeness from which on a column is taken for a misspelt one; `id` and `input` are not."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Unread(columns=("id", "systm"), doubts=("`systm`: did you mean `system`?",))"""

    columns: tuple[str, ...]
    doubts: tuple[str, ...]
    """What somebody should look at, a sentence each; an `id` that is not read needs no word."""

    def __str__(self) -> str:
        return f"columns that nothing reads: {', '.join(self.columns)}" if self.columns else "every column is read"


def unread(columns: Collection[str], format_name: str, mapped: Mapping[str, str]) -> Unread:
    """What to say of the columns that a format does not read.

    Args:
        mapped: our column -> the file's, as `columns` has it in a recipe.
    """
    entry = FORMATS[format_name]
    doubts = [doubt for name in sorted(columns) if (doubt := _doubt(name, entry, mapped)) is not None]
    return Unread(tuple(sorted(columns)), tuple(doubts))


def misspelt(names: Collection[str], known: Collection[str]) -> dict[str, str]:
    """{name: what it may have been meant to be} of those that are nearly a known one; `prompt_id` is no `prompt`."""
    found = {}
    for name in sorted(names):
        lowered = name.lower()
        near = SYNONYMS.get(lowered) or nearest(lowered, known, cutoff=CLOSE)
        part_of_it = near in lowered.split("_") and lowered not in SYNONYMS
        if near is not None and near in known and name not in known and not part_of_it:
            found[name] = near
    return found


def _doubt(name: str, entry: Format, mapped: Mapping[str, str]) -> str | None:
    if entry.kind is Demonstration and name in LABELS:
        return (
            f"`{name}` is not read: bad responses are imitated like good ones; for rows that are judged use "
            "`method: kto`, or remove the bad ones"
        )
    if name == "input" and "instruction" in mapped.values():
        ours = next(ours for ours, theirs in mapped.items() if theirs == "instruction")
        return (
            f"`input` is not read, and `{ours}` is only the instruction: leave `columns` out (Alpaca's rows are "
            "known), or join the two"
        )
    near = misspelt([name], entry.optional).get(name)
    return f"`{name}` is not read: did you mean `{near}`?" if near is not None else None
