"""Encoded rows in flat arrays: what a worker (`workers.py`) hands back, and what the store (`dataset.py`) appends.

A block holds the trees of some consecutive rows without any Python object per tree, so that it crosses a process
boundary and reaches the disk as plain bytes. Blocks of the same rows are equal bytes, whoever made them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from posttrain.data.encode import EncodedExample, Encoder
from posttrain.data.refusals import BadRows
from posttrain.data.round_trip import RoundTrip
from posttrain.data.templates.drafts import SpecialTokenError
from posttrain.data.tree_key import require_storable
from posttrain.errors import EncodingError, PromptMismatchError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, StepwiseFeedback

ARRAYS: dict[str, str] = {
    "ids": "<i4",  # every token of every tree: prompt, then branches
    "mask": "|b1",  # for every token, whether it trains
    "segments": "<i8",  # where each prompt and branch begins in `ids`
    "trees": "<i8",  # where each tree begins in `segments`
    "keys": "|u1",  # 16 bytes for each tree
    "margins": "<f8",  # NaN where a tree has none
    "labels": "|i1",  # 1 good, 0 bad, -1 where nobody said so
    "scores": "<f8",  # for each segment, NaN for prompts and where a tree has none
    "steps": "<i8",  # where the labels of each tree's steps begin in `step_labels`
    "step_labels": "<f8",  # for each trained token of the trees that have such labels
    "trained": "<i4",  # trained tokens of each tree
    "stops": "<i4",  # trained stop tokens of each tree
    "sources": "<i4",  # which file each tree's row came from
    "rows": "<i8",  # and its number there
}

_PREVIEW_CHARACTERS = 2000


@dataclass(frozen=True)
class EncodeCounts:
    """What became of the rows: EncodeCounts(read=1000, kept=990, dropped={"too_long": 10}, tokens=..., ...).

    read + split == kept + the sum of dropped, always.
    """

    read: int = 0
    """Rows."""
    kept: int = 0
    """Trees."""
    split: int = 0
    """Trees beyond the first of their row, where the template rewrites history."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """By reason; see `truncate.DROP_REASONS`."""
    truncated: Mapping[str, int] = field(default_factory=dict)
    """Trees kept but cut, by reason; see `truncate.TRUNCATION_REASONS`."""
    findings: Mapping[str, int] = field(default_factory=dict)
    """Rows with something worth knowing; see `encode.FINDINGS`."""
    tokens: int = 0
    trained_tokens: int = 0
    stop_tokens: int = 0
    """Trained tokens that end an answer."""
    characters: int = 0
    """Of all texts, as `round_trip` counts them."""
    lost_characters: int = 0
    """Of those, the ones that the tokenizer cannot write."""

    @property
    def stop_share(self) -> float:
        """Stop tokens among the trained ones; NaN where nothing trains."""
        return self.stop_tokens / self.trained_tokens if self.trained_tokens else float("nan")

    @property
    def supervised_share(self) -> float:
        """Trained tokens among all; NaN where there are none."""
        return self.trained_tokens / self.tokens if self.tokens else float("nan")

    def __add__(self, other: EncodeCounts) -> EncodeCounts:
        return EncodeCounts(
            read=self.read + other.read,
            kept=self.kept + other.kept,
            split=self.split + other.split,
            dropped=dict(Counter(self.dropped) + Counter(other.dropped)),
            truncated=dict(Counter(self.truncated) + Counter(other.truncated)),
            findings=dict(Counter(self.findings) + Counter(other.findings)),
            tokens=self.tokens + other.tokens,
            trained_tokens=self.trained_tokens + other.trained_tokens,
            stop_tokens=self.stop_tokens + other.stop_tokens,
            characters=self.characters + other.characters,
            lost_characters=self.lost_characters + other.lost_characters,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the two shares."""
        return {
            "read": self.read,
            "kept": self.kept,
            "split": self.split,
            "dropped": dict(sorted(self.dropped.items())),
            "truncated": dict(sorted(self.truncated.items())),
            "findings": dict(sorted(self.findings.items())),
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "stop_tokens": self.stop_tokens,
            "characters": self.characters,
            "lost_characters": self.lost_characters,
            "stop_share": self.stop_share if self.trained_tokens else None,
            "supervised_share": self.supervised_share if self.tokens else None,
        }


@dataclass(frozen=True)
class Block:
    """The trees of consecutive rows as arrays, `segments`, `trees` and `steps` as lengths rather than places."""

    arrays: Mapping[str, np.ndarray]
    files: tuple[str, ...]
    """The names that `sources` counts, in the order of their first row here."""
    counts: EncodeCounts
    dropped: tuple[dict[str, str], ...]
    """{"row", "reason", "message", "content"} for every tree that was dropped."""
    findings: tuple[tuple[str, str], ...]
    """(finding, row) pairs; the names are those of `encode.FINDINGS`."""


def encode_block(encoder: Encoder, examples: Sequence[Example], bad_rows: BadRows) -> Block:
    """Encode consecutive rows.

    Raises:
        EncodingError: a row cannot be encoded faithfully and `bad_rows` is "stop".
    """
    building = _BlockBuilder()
    for example in examples:
        try:
            encoded = encoder.example(example)
        except EncodingError as error:
            if bad_rows == "stop":
                raise
            building.refuse(example, error)
            continue
        building.add(example, encoded)
    return building.block()


class _BlockBuilder:
    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in ARRAYS}
        self._files: dict[str, int] = {}
        self._dropped: list[dict[str, str]] = []
        self._findings: list[tuple[str, str]] = []
        self._truncated: Counter[str] = Counter()
        self._read = self._split = self._stops = 0
        self._round_trip = RoundTrip()

    def refuse(self, example: Example, error: EncodingError) -> None:
        reason = "template"
        if isinstance(error, PromptMismatchError):
            reason = "prompt_mismatch"
        elif isinstance(error, SpecialTokenError):
            reason = "special_tokens"
        self._read += 1
        self._drop(example, reason, error.problem)

    def add(self, example: Example, encoded: EncodedExample) -> None:
        self._read += 1
        self._split += max(0, len(encoded.trees) + len(encoded.dropped) - 1)
        self._truncated.update(encoded.truncated)
        self._round_trip += encoded.round_trip
        self._findings += [(finding, str(example.row)) for finding in encoded.findings]
        for dropped in encoded.dropped:
            self._drop(example, dropped.reason, dropped.message)
        columns = self._columns
        for tree, stops in zip(encoded.trees, encoded.stop_tokens, strict=True):
            require_storable(tree)
            self._ids += [tree.prompt_ids, *(branch.ids for branch in tree.branches)]
            self._masks += [np.zeros(len(tree.prompt_ids), bool), *(branch.loss_mask for branch in tree.branches)]
            columns["segments"] += [len(tree.prompt_ids), *(len(branch.ids) for branch in tree.branches)]
            columns["trees"].append(1 + len(tree.branches))
            columns["keys"].append(bytes.fromhex(tree.key))
            columns["margins"].append(np.nan if tree.margin is None else tree.margin)
            columns["labels"].append(-1 if tree.label is None else int(tree.label))
            columns["scores"] += [np.nan, *(tree.scores or [np.nan] * len(tree.branches))]
            columns["steps"].append(len(tree.step_labels or ()))
            columns["step_labels"] += tree.step_labels or ()
            columns["trained"].append(tree.num_trained)
            columns["stops"].append(stops)
            columns["sources"].append(self._files.setdefault(tree.row.source, len(self._files)))
            columns["rows"].append(tree.row.row)
            self._stops += stops

    def _drop(self, example: Example, reason: str, message: str) -> None:
        self._dropped.append(
            {"row": str(example.row), "reason": reason, "message": message, "content": _row_preview(example)}
        )

    def block(self) -> Block:
        columns = self._columns
        arrays = {name: np.asarray(columns[name], dtype) for name, dtype in ARRAYS.items() if name != "keys"}
        arrays["keys"] = np.frombuffer(b"".join(columns["keys"]), ARRAYS["keys"])
        arrays["ids"] = np.concatenate(self._ids or [np.empty(0)]).astype(ARRAYS["ids"])
        arrays["mask"] = np.concatenate(self._masks or [np.empty(0)]).astype(ARRAYS["mask"])
        counts = EncodeCounts(
            read=self._read,
            kept=len(columns["trees"]),
            split=self._split,
            dropped=dict(Counter(dropped["reason"] for dropped in self._dropped)),
            truncated=dict(self._truncated),
            findings=dict(Counter(finding for finding, _ in self._findings)),
            tokens=len(arrays["ids"]),
            trained_tokens=int(arrays["trained"].sum()),
            stop_tokens=self._stops,
            characters=self._round_trip.characters,
            lost_characters=self._round_trip.lost,
        )
        return Block(arrays, tuple(self._files), counts, tuple(self._dropped), tuple(self._findings))


def _row_preview(example: Example) -> str:
    """The row's words, for the person who looks at what was dropped."""
    turns: list[Message] = list(example.messages if isinstance(example, Demonstration) else example.prompt)
    if isinstance(example, Feedback):
        turns += example.response
    elif isinstance(example, StepwiseFeedback):
        turns += [Message("assistant", step) for step in example.steps]
    elif isinstance(example, Comparison):
        turns += [turn for response in example.responses for turn in response]
    return "\n".join(f"{turn.role}: {turn.content or ''}" for turn in turns)[:_PREVIEW_CHARACTERS]
