"""A cleaned copy of a data set, and a log of what was done to which row: `audit(...).fix(out)`, `audit --fix`.

Rows are dropped or kept as the file has them, with all their columns; three faults are mended in the row instead, since
that loses nothing: a response that repeats its prompt, HTML entities, inputs that are the word "nan". What is dropped:

- rows that cannot be read, pairs that say the same twice, empty sides;
- later copies of a row, exact and near; rows that held-out data or an evaluation set has, too;
- rows with special tokens, role markers, broken characters, torn tags, or an end in the middle;
- contradictions: the minority's verdict, and both where it is level; rows in a circle;
- where the longer side wins too often, pairs of the majority's kind, drawn at random (seeded) within fifths of the
  difference in length, until both directions are level in each.

A fault that more than half of the rows have is named and not dropped: what remained would be another data set. Mending
keeps the rows, so it is done in all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.auditing.agreement import level_or_outvoted
from posttrain.auditing.mend import MENDED, mend
from posttrain.auditing.report import Findings
from posttrain.auditing.subject import Subject
from posttrain.data.read import Examples
from posttrain.data.write import JsonlWriter
from posttrain.errors import ConfigError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, StepwiseFeedback, Task

DROPPING_CHECKS: Mapping[str, str] = {
    "trivial_pairs": "the two sides say the same",
    "empty_sides": "a response has no text",
    "special_tokens": "a response holds the name of a special token",
    "role_markers": "a response holds a role marker",
    "unbalanced_marks": "a tag or a code fence has no partner",
    "truncation": "a response ends in the middle of a sentence",
    "encoding": "a response holds broken characters",
    "duplicates": "an earlier row says exactly this",
    "near_duplicates": "an earlier row says nearly this",
    "split_overlap": "held-out rows hold this, too",
    "contamination": "an evaluation set holds this",
    "stored_turns": "a text is a list of turns",
    "null_words": "there is no prompt or no answer but the word for nothing",
    "repeated_prompt": "a response repeats its prompt and says nothing else",
    "cycles": "the responses beat one another in a circle",
}
"""Check -> the reason in the log; rows of other checks are kept."""
KEPT_KINDS = {"near_identical", "nothing but punctuation", "transcript"}
"""Kinds of findings of those checks whose rows are kept: a single word may be what the pair is about."""
MOST_DROPPED = 0.5
"""A check that would drop more than this share of the rows drops none."""
LENGTH_BINS = 5


@dataclass(frozen=True, slots=True)
class Fixed:
    """Fixed(Path("clean.jsonl"), Path("clean.log.jsonl"), kept=911, dropped={"duplicates": 89}, too_many=())"""

    path: Path
    log: Path
    kept: int
    dropped: dict[str, int]
    """Check -> rows."""
    too_many: tuple[str, ...]
    """Checks whose rows were kept, since they are more than half of all."""
    mended: Mapping[str, int] = field(default_factory=dict)
    """Check -> rows that were changed and kept."""

    def __str__(self) -> str:
        dropped = ", ".join(f"{count:,} by {check}" for check, count in self.dropped.items()) or "none"
        text = f"{self.path}: {self.kept:,} rows kept; dropped: {dropped}; each is in {self.log}"
        if self.mended:
            text += "; mended: " + ", ".join(f"{count:,} by {check}" for check, count in self.mended.items())
        if self.too_many:
            text += f"; too many rows to drop for {', '.join(self.too_many)}: mend these at their source"
        return text


def fix(report: Findings, out: Path) -> Fixed:
    """Write the cleaned copy to `out`, and what was done, row by row, to `<out>.log.jsonl`.

    Raises:
        ConfigError: `out` is one of the files that were audited.
    """
    subject = report.subject
    corpus = subject.corpus
    if any(Path(source).resolve() == out.resolve() for source in corpus.sources):
        raise ConfigError("the cleaned copy would overwrite its source", found=str(out), remedy="choose another name")
    reasons, too_many = _reasons(report)
    _balance_lengths(report, reasons)
    refs = corpus.refs(range(len(corpus)))
    # By the row's place in its file, since the file is read once more, and its refused rows are in no corpus.
    by_ref = {ref: reasons.get(number) for number, ref in enumerate(refs)}
    mending = _mending(report)
    numbers = {ref: number for number, ref in enumerate(refs)}
    log = out.with_name(out.stem + ".log.jsonl")
    dropped: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    kept = 0
    with JsonlWriter(out) as clean_writer, JsonlWriter(log) as log_writer:
        for ref, row in _source_rows(report.examples):
            check, reason = by_ref.get(ref, ("refused_rows", "the row cannot be used")) or ("", "")
            # A row that another check drops is not mended: the log would name two things that were done to it.
            wanted: Collection[str] = mending.get(ref, ()) if check in ("", *MENDED) else ()
            mended_row, mended_checks = _mended(row, wanted, corpus.last_turn(numbers[ref]) if wanted else "")
            check = "" if check in mended_checks else check
            if check:
                dropped[check] += 1
                log_writer.write({"row": str(ref), "action": "dropped", "check": check, "reason": reason})
                continue
            kept += 1
            clean_writer.write(mended_row)
            for name in mended_checks:
                mended[name] += 1
                log_writer.write({"row": str(ref), "action": "mended", "check": name, "reason": MENDED[name]})

        for check in too_many:
            log_writer.write(
                {"row": None, "action": "left", "check": check, "reason": "more than half of the rows have it"}
            )
    return Fixed(out, log, kept, dict(dropped.most_common()), tuple(too_many), dict(mended.most_common()))


def _mended(row: Mapping[str, Any], checks: Collection[str], turn: str) -> tuple[Mapping[str, Any], list[str]]:
    """(the mended row, the checks whose fault was in it).

    One check at a time: a row is kept only if the fault that would drop it is mended, and not some other one.
    """
    mended_checks: list[str] = []
    for name in MENDED:
        changed = mend(row, {name}, turn=turn) if name in checks else row
        if changed != row:
            row, mended_checks = changed, [*mended_checks, name]
    return row, mended_checks


def _reasons(report: Findings) -> tuple[dict[int, tuple[str, str]], list[str]]:
    """(row -> check and reason for dropping it, checks that would drop too many)."""
    corpus = report.corpus
    number = {ref: row for row, ref in enumerate(corpus.refs(range(len(corpus))))}
    reasons: dict[int, tuple[str, str]] = {}
    too_many: list[str] = []
    for finding in report.findings:
        kinds = {str(finding.evidence.get("kind", "")), str(finding.evidence.get("what", ""))}
        if finding.check not in DROPPING_CHECKS or kinds & KEPT_KINDS:
            continue
        # Copies are dropped however many: one of each is kept. So are rows that mending did not help.
        unlimited = ("duplicates", "near_duplicates", *MENDED)
        if len(finding.rows) > MOST_DROPPED * len(corpus) and finding.check not in unlimited:
            too_many.append(finding.check)
            continue
        for ref in finding.rows:
            # `setdefault`: findings come worst first, and the log names the worst fault of a row.
            reasons.setdefault(number[ref], (finding.check, DROPPING_CHECKS[finding.check]))
    if any(finding.check == "contradictions" for finding in report.findings):
        for row, reason in level_or_outvoted(report.subject).items():
            reasons.setdefault(row, ("contradictions", reason))
    return reasons, too_many


def _mending(report: Findings) -> dict[RowRef, set[str]]:
    """Row -> the checks whose fault is mended in it."""
    checks_of_row: dict[RowRef, set[str]] = {}
    for finding in report.findings:
        if finding.check in MENDED:
            for ref in finding.rows:
                checks_of_row.setdefault(ref, set()).add(finding.check)
    return checks_of_row


def _balance_lengths(report: Findings, reasons: dict[int, tuple[str, str]]) -> None:
    """Add rows to drop until, in each fifth of the difference in length, the longer side wins as often as it loses."""
    if not any(finding.check == "length_bias" and finding.severity == "warning" for finding in report.findings):
        return
    subject = report.subject
    if subject.corpus.kind is not Comparison:
        return
    for row in unbalanced(subject, np.array(sorted(reasons), dtype=np.int64)):
        reasons[row] = ("length_bias", "drawn at random among the pairs of this kind, to balance the lengths")


def unbalanced(subject: Subject, dropped_before: np.ndarray) -> list[int]:
    """Rows to drop for balanced lengths, given that the rows `gone` are dropped already; the same for the same seed."""
    sides = subject.corpus.sides
    remaining = np.flatnonzero(~np.isin(sides.row_P, dropped_before))
    words = subject.corpus.responses.word_counts.astype(float)
    difference = np.log1p(words[sides.chosen_P[remaining]]) - np.log1p(words[sides.rejected_P[remaining]])
    # Within bins of the difference in length: balancing over all pairs at once could leave long answers the winners
    # among pairs that differ much, and short ones among pairs that differ little.
    size = np.abs(difference)
    edges = np.quantile(size[size > 0], np.linspace(0, 1, LENGTH_BINS + 1)[1:-1]) if (size > 0).any() else np.empty(0)
    fifth = np.searchsorted(edges, size)
    # One generator for all bins, drawn in their order: the same seed drops the same rows on every machine.
    generator = np.random.default_rng(subject.seed)
    dropped: list[int] = []
    for number in range(LENGTH_BINS):
        longer = remaining[(fifth == number) & (difference > 0)]
        shorter = remaining[(fifth == number) & (difference < 0)]
        more, fewer = (longer, shorter) if len(longer) > len(shorter) else (shorter, longer)
        drawn = generator.choice(more, len(more) - len(fewer), replace=False)
        dropped += sides.row_P[drawn].tolist()
    return sorted(dropped)


# ---------------------------------------------------------------- rows as they are written


def _source_rows(examples: Iterable[Example]) -> Iterator[tuple[RowRef, Mapping[str, Any]]]:
    """Every row with its place: as the file has it, or, for examples from Python, in the plain format of their kind."""
    if isinstance(examples, Examples):
        for source in examples.sources:
            for number, row, _ in source.rows():
                yield RowRef(source.name, number), row if isinstance(row, dict) else {}
        return
    for example in examples:
        yield example.row, as_row(example)


def as_row(example: Example) -> dict[str, Any]:
    """An example as a row that `read` takes: the formats preference, ranked, feedback, chat, text and task."""
    tools: dict[str, Any] = {"tools": list(example.tools)} if example.tools else {}
    if isinstance(example, Demonstration) and example.is_text:
        return {"text": example.messages[0].content or ""}
    if isinstance(example, Demonstration):
        return {"messages": turns_of_row(example.messages)} | tools
    prompt: dict[str, Any] = {"prompt": turns_of_row(example.prompt)}
    if isinstance(example, Task):
        answer = {} if example.answer is None else {"answer": example.answer}
        return prompt | answer | dict(example.metadata) | tools
    if isinstance(example, StepwiseFeedback):
        return prompt | {"completions": list(example.steps), "labels": list(example.labels)} | tools
    if isinstance(example, Feedback):
        return prompt | {"completion": turns_of_row(example.response), "label": example.good} | tools
    row = prompt | _comparison(example)
    if example.margin is not None:
        row["margin"] = example.margin
    if example.votes is not None:
        row["votes"] = list(example.votes)
    return row | tools


def _comparison(example: Comparison) -> dict[str, Any]:
    if example.ranking is not None:
        row = {
            "responses": [turns_of_row(response) for response in example.responses],
            "ranking": list(example.ranking),
        }
        return row | ({"scores": list(example.scores)} if example.scores is not None else {})
    chosen, rejected = example.winner, 1 - example.winner
    row = {"chosen": turns_of_row(example.responses[chosen]), "rejected": turns_of_row(example.responses[rejected])}
    if example.scores is not None:
        return row | {"score_chosen": example.scores[chosen], "score_rejected": example.scores[rejected]}
    return row


def turns_of_row(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages as a row has them, with all that they hold; `read` gives them back."""
    turns = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        optional = {
            "tool_calls": list(message.tool_calls) or None,
            "name": message.name,
            "tool_call_id": message.tool_call_id,
            "reasoning_content": message.reasoning,
            "train": message.train,
        }
        turns.append(turn | {key: value for key, value in optional.items() if value is not None})
    return turns
