"""Rows of one kind for a method that takes another: comparisons as feedback, and feedback behind a line that says so.

rows = read_as("pairs.jsonl", Feedback)              # comparisons are accepted: each becomes two rows of feedback later
Recast(rows, Feedback)                               # each comparison as one good and one bad answer
Recast(rows, Feedback, Condition("Give a good answer.", "Give a bad answer.", "system"))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from posttrain.data.formats import KIND_NAMES
from posttrain.data.read import Examples, read
from posttrain.data.sources.memory import data_items
from posttrain.errors import DataError, RowError
from posttrain.types import Comparison, Example, Feedback, Message


def read_as(data: Any, kind: Any, **options: Any) -> Examples:
    """`posttrain.data.read.read` for rows of `kind`; for feedback, a file of comparisons is accepted too.

    Raises what `read` raises for `kind`.
    """
    data = data_items(data)  # a generator gives its rows once, and they may be looked at twice
    return read(data, kind=_resolve_kind(data, kind, options), **options)


def _resolve_kind(data: Any, kind: Any, options: dict[str, Any]) -> Any:
    """What the first good row is: feedback, or else a comparison."""
    if kind is not Feedback:
        return kind
    probe_options = {**options, "scan": False, "limit": None, "rejected_path": None}
    # Feedback first: a file that has labels is what its owner calls it, though its rows may also read as pairs.
    for candidate in (Feedback, Comparison):
        try:
            return read(data, kind=candidate, **probe_options).kind
        except (DataError, ValueError):
            continue  # not of this kind; the error of the kind that was asked for is the one to show
    return kind


def require_kind(examples: Examples, kind: Any) -> None:
    """Refuses examples that were read as another kind than a method takes, as reading them for it would have.

    Raises:
        RowError: names the first row, and a map under which it would be of that kind, if there is one.
    """
    if examples.kind is kind or (kind is Feedback and examples.kind is Comparison):
        return
    # Reading one row for the kind that is needed raises the error that names the columns, which says more than the one
    # below; that one remains for rows that can be read both ways.
    for _ in Examples(examples.sources, replace(examples.options, kind=kind, format=None, limit=1, rejected_path=None)):
        break
    raise RowError(
        f"the examples are {KIND_NAMES[examples.kind]}, and the method takes {KIND_NAMES[kind]}",
        reason="wrong_shape",
        where=", ".join(source.name for source in examples.sources[:3]),
        found=f"read as the format '{examples.format}'",
        expected=f"{KIND_NAMES[kind]}; the rows can be read so as well",
        remedy="give the path or the rows in place of the examples, or read them with "
        f"`read(..., kind=posttrain.types.{kind.__name__})`",
    )


@dataclass(frozen=True, slots=True)
class Condition:
    """Condition(good="Give a good answer.", bad="Give a bad answer.", place="system")"""

    good: str
    bad: str
    place: Literal["system", "user"]


class Recast:
    """Examples of `kind` from examples of that or another kind; nothing is held in memory.

    Raises RowError while iterating, for a row that cannot be turned into what the method takes.
    """

    def __init__(self, examples: Iterable[Example], kind: Any, condition: Condition | None = None):
        self._examples, self._kind, self._condition = examples, kind, condition

    def __iter__(self) -> Iterator[Example]:
        for example in self._examples:
            for row in self._of_kind(example):
                yield row if self._condition is None else conditioned(row, self._condition)

    def _of_kind(self, example: Example) -> Iterable[Any]:
        if isinstance(example, Comparison) and self._kind is Feedback:
            return as_feedback(example)
        return (example,)


def as_feedback(row: Comparison) -> tuple[Feedback, Feedback]:
    """The best response as a good one and the worst as a bad one; those between are neither, and are dropped."""
    order = row.ranking or (row.winner, *(i for i in range(len(row.responses)) if i != row.winner))
    best, worst = row.responses[order[0]], row.responses[order[-1]]
    return (
        Feedback(row.prompt, best, True, row.row, row.tools),
        Feedback(row.prompt, worst, False, row.row, row.tools),
    )


def conditioned(row: Feedback, condition: Condition) -> Feedback:
    """The same with the line of its label in the prompt.

    Raises:
        RowError: the line belongs into a user turn, and the prompt has none.
    """
    line = condition.good if row.good else condition.bad
    prompt = list(row.prompt)
    if condition.place == "system":
        if not prompt or prompt[0].role != "system":
            return replace(row, prompt=(Message("system", line), *prompt))
        return replace(row, prompt=(_with_line(prompt[0], line), *prompt[1:]))
    user_turns = [index for index, message in enumerate(prompt) if message.role == "user"]
    if not user_turns:
        raise RowError(
            "the line that says how good the answer is belongs into a user turn, and this prompt has none",
            reason="wrong_shape",
            where=row.row,
            expected="a prompt with a user turn",
            remedy="write `place: system`, or correct the row",
        )
    prompt[user_turns[-1]] = _with_line(prompt[user_turns[-1]], line)
    return replace(row, prompt=tuple(prompt))


def _with_line(message: Message, line: str) -> Message:
    return replace(message, content=f"{message.content}\n\n{line}" if message.content else line)


def recast_note(examples: Examples, kind: Any) -> str | None:
    """A sentence for the user where comparisons are read for a method that takes feedback; else None."""
    if kind is Feedback and examples.kind is Comparison:
        return (
            f"{examples.counts.kept:,} comparisons are taken apart into feedback: the best response of each is good, "
            "the worst is bad"
        )
    return None
