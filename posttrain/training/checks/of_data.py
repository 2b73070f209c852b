"""What reading and encoding found, as lines of the preflight: files, columns and keys that nothing reads, rows that are
not what the template renders, held-out rows that train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.data.blocks import EncodeCounts
from posttrain.data.dataset import EncodedDataset
from posttrain.data.encode import FINDINGS
from posttrain.data.read import Examples
from posttrain.data.sources.splits import MIXED_SPLITS
from posttrain.data.templates.template import DOCUMENTED_SPLITS
from posttrain.data.unread import unread_columns, unread_keys
from posttrain.training.checks.preflight import Check, Status
from posttrain.types import TokenTree

NAMED_ROWS = 5
"""Rows that an error or a finding names; the rest is counted."""


def unread_columns_check(split: str, examples: Examples) -> tuple[Check, ...]:
    """The columns that nothing reads: a `system` that is misspelt is lost there, and so is a label under SFT."""
    if not examples.counts.unused_columns:
        return ()
    columns = unread_columns(examples.counts.unused_columns, examples.format, examples.options.columns)
    title = "columns" if split == "train" else "columns of the held-out rows"
    evidence = {"format": examples.format, "unused": list(columns.columns)}
    detail = f"read as '{examples.format}'; {columns}"
    if not columns.doubts:
        return (Check("columns", title, "pass", detail, evidence),)
    return (Check("columns", title, "warn", detail, evidence, "; ".join(columns.doubts)),)


def files_check(split: str, examples: Examples) -> tuple[Check, ...]:
    """Which files of a folder or pattern were read; files of different splits that are read together are a warning."""
    notes = examples.options.notes
    if not notes:
        return ()
    title = "files" if split == "train" else "files of the held-out rows"
    mixed = any(note.startswith(MIXED_SPLITS) for note in notes)
    remedy = "leave out the files that something is measured on, or name the split" if mixed else None
    return (Check("files", title, "warn" if mixed else "pass", "; ".join(notes), {"notes": list(notes)}, remedy),)


def new_tokens_check(rows: Sequence[TokenTree], new_tokens: Mapping[int, str]) -> tuple[Check, ...]:
    """In which of the new tokens no row teaches anything: a misspelt one would keep the row that it began with."""
    if not new_tokens:
        return ()
    missing = np.array(sorted(new_tokens))
    for tree in rows:
        if not len(missing):
            break
        for ids in (tree.prompt_ids, *(branch.ids for branch in tree.branches)):
            missing = missing[~np.isin(missing, ids)]
    unused = [new_tokens[int(index)] for index in missing]
    evidence = {"tokens": list(new_tokens.values()), "unused": unused}
    if not unused:
        return (Check("tokens", "new tokens", "pass", f"each of the {len(new_tokens)} stands in a row", evidence),)
    named = ", ".join(unused[:NAMED_ROWS]) + (" ..." if len(unused) > NAMED_ROWS else "")
    detail = f"{len(unused)} of {len(new_tokens)} new tokens stand in no row: {named}"
    remedy = "write them as the rows have them, or leave them out of `tokens`: nothing teaches what they mean"
    return (Check("tokens", "new tokens", "warn", detail, evidence, remedy),)


def unread_keys_check(split: str, examples: Examples) -> tuple[Check, ...]:
    """The keys inside turns, calls, tools and parts that nothing reads."""
    counts = examples.counts.unread_keys
    if not counts:
        return ()
    said = unread_keys(counts)
    title = "keys inside rows" if split == "train" else "keys inside the held-out rows"
    # Most unread keys are ids and dates; a near miss of a key that is read is a mistake.
    doubts = [sentence for sentence in said if "did you mean" in sentence or "a yes in a turn" in sentence]
    status: Status = "warn" if doubts else "pass"
    evidence = {"unread": dict(sorted(counts.items()))}
    return (Check("keys", title, status, "; ".join(said), evidence, "; ".join(doubts) or None),)


def encoding_check(split: str, rows: EncodedDataset) -> Check:
    """What the proof of every row found: how many are rendered word for word, and what is worth knowing of the others.

    A row that fails the proof is no row here: it ends the encoding with an error that names it, or stands among the
    dropped rows.
    """
    counts = rows.counts
    title = "rows as rendered" if split == "train" else "held-out rows as rendered"
    split_rows = sum(number for name, number in counts.findings.items() if name in DOCUMENTED_SPLITS)
    # A refused row is in no other count here: it never became a tree.
    refused = counts.dropped.get("template", 0) + counts.dropped.get("prompt_mismatch", 0)
    detail = f"prompt and trained text of {counts.read - refused:,} rows proven against the template's rendering"
    if split_rows:
        detail += f", {split_rows:,} of them as a documented split"
    if refused:
        first = next((line for line in rows.dropped() if line["reason"] in ("template", "prompt_mismatch")), None)
        detail += f"; {refused:,} refused" + (f", first {first['row']}: {first['message']}" if first else "")
    named = [f"{FINDINGS[name]}: {number:,} rows, first {rows.found[name][0]}" for name, number in _notable(counts)]
    if counts.lost_characters:
        named.append(f"{counts.lost_characters:,} of {counts.characters:,} characters lost")
    evidence: dict[str, Any] = {
        "rows": counts.read,
        "refused": refused,
        "findings": dict(counts.findings),
        "examples": {name: rows_of[:NAMED_ROWS] for name, rows_of in rows.found.items()},
        "characters": counts.characters,
        "lost_characters": counts.lost_characters,
    }
    status: Status = "warn" if refused or any(name in _DOUBTFUL for name, _ in _notable(counts)) else "pass"
    remedy = "look at these rows; docs/encoding.md says what each of these findings means" if status == "warn" else None
    return Check(
        "encoding" if split == "train" else "held_out_encoding",
        title,
        status,
        "; ".join([detail, *named]),
        evidence,
        remedy,
    )


_DOUBTFUL = frozenset({"lost_text", "hidden_calls", "hidden_tools", "foreign_thoughts"})
"""Findings that are more often a mistake than meant."""


def _notable(counts: EncodeCounts) -> list[tuple[str, int]]:
    return sorted((name, number) for name, number in counts.findings.items() if name in FINDINGS)


def held_out_check(rows: Sequence[TokenTree], dropped: Mapping[str, int], shared: Sequence[int]) -> Check:
    """Whether rows of a held-out file are trained on as well: shared are the indices of those that are."""
    total, lost = len(rows), sum(dropped.values())
    detail = f"{total:,} rows" + (f", {lost:,} dropped" if lost else "")
    evidence: dict[str, Any] = {"rows": total, "dropped": dropped, "in_training_rows": len(shared)}
    if not shared:
        return Check("held_out", "held-out rows", "pass", f"{detail}, none of them among the training rows", evidence)
    named = [str(rows[index].row) for index in shared[:NAMED_ROWS]]
    return Check(
        "held_out",
        "held-out rows",
        "warn",
        f"{detail}; {len(shared):,} of them are among the training rows, word for word: {named[0]}"
        + (", ..." if len(shared) > 1 else ""),
        {**evidence, "examples": named},
        "remove them from one of the two files; what is measured on them says nothing about new rows",
    )
