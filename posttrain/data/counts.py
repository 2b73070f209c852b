"""What became of the rows that were read: `Examples.counts`, from which reports and warnings are worded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class RowCounts:
    """RowCounts(read=1000, kept=997, skipped={"tie": 3}, unused_columns={"id"}, unread_keys={"turn.timestamp": 12})."""

    read: int = 0
    kept: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    unused_columns: set[str] = field(default_factory=set)
    """Columns that the format does not read; worth a look, for a misspelt optional column ends here."""
    unread_keys: Counter[str] = field(default_factory=Counter)
    """Keys in turns, tool calls, tools and parts that nothing reads, and how many of each, in rows that are kept."""
    repairs: Counter[str] = field(default_factory=Counter)
    """Repairs of conversations that were needed, as `repairs` asks for them, in rows that are kept."""
    notes: list[str] = field(default_factory=list)
    """What a user should know of it, a sentence each: which files were read, which column no prompt shows."""

    def note(self, text: str) -> None:
        if text not in self.notes:  # most notes are about the file, and every row would repeat them
            self.notes.append(text)

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
        keys = ", ".join(f"{key} ({count:,})" for key, count in sorted(self.unread_keys.items()))
        return (
            f"{self.read:,} row{'' if self.read == 1 else 's'} read, {self.kept:,} kept"
            + (f", skipped: {reasons}" if reasons else "")
            + (f"; keys inside rows that nothing reads: {keys}" if keys else "")
            + "".join(f"; {note}" for note in self.notes)
        )
