"""What a format of rows is: its keys, the function that reads a row of it, and one right example.

The formats themselves are the rows of `table.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.data.formats.columns import Row
from posttrain.data.media import refuse_media
from posttrain.data.refusals import quoted, refuse, shown
from posttrain.data.repairs import NONE
from posttrain.data.roles import DEFAULT_RULES, Rules
from posttrain.errors import RowError
from posttrain.types import Comparison, Demonstration, Example, Feedback, RowRef, StepwiseFeedback, Task

ExampleKind = type[Demonstration] | type[Comparison] | type[Feedback] | type[StepwiseFeedback] | type[Task]

KIND_NAMES: dict[ExampleKind, str] = {
    Demonstration: "demonstrations",
    Comparison: "comparisons",
    Feedback: "feedback",
    StepwiseFeedback: "stepwise feedback",
    Task: "tasks",
}


def either(keys: Collection[str]) -> str:
    """either(["prompt|question", "answer"]) -> "'prompt' or 'question', 'answer'"."""
    return ", ".join(" or ".join(f"'{name}'" for name in key.split("|")) for key in keys)


def _always(row: Row) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """How rows of one layout are told from others and read.

    Format("task", Task, keys=("prompt|question", "answer"), optional=("system", "tools"), build=judged.task,
           example={"question": "17 + 25?", "answer": "42"}, summary="a prompt and the answer that a verifier checks")
    """

    name: str
    kind: ExampleKind
    keys: tuple[str, ...]
    """Columns that a row must have; "a|b" is one of the two."""
    optional: tuple[str, ...]
    build: Callable[[Row, RowRef, Rules], Example]
    example: Mapping[str, Any]
    summary: str
    fits: Callable[[Row], bool] = _always
    """Tells formats with the same keys apart by the form of a value."""
    published: bool = False
    """The layout of one tool or data set, read as it is: no map of `columns` leads to it, since what its own columns
    are called is how it is known, and no other row is said to be near it."""

    def missing(self, keys: Collection[str]) -> tuple[str, ...]:
        """The required keys that are not among those found: ("prompt|question",)."""
        return tuple([key for key in self.keys if not any(name in keys for name in key.split("|"))])

    def parse(self, row: Row, ref: RowRef, rules: Rules = DEFAULT_RULES) -> Example:
        """The row as an example. Raises RowError, with everything in it that is needed to mend the row."""
        try:
            # Before the format sees the row: a text that describes an image reads as any other text.
            refuse_media(row)
            if self.published:
                self._require_form(row)
            example = self.build(row, ref, rules)
            return example if rules.repairs is NONE else rules.repairs.folded(example, rules.noted)
        except RowError as error:
            # Filled in here, once for all formats: what reads a value knows neither the row's place nor the format's
            # other keys.
            error.where = ref
            error.found = f"{error.found} (the row's keys: {quoted(row)})"
            error.expected = f"{error.expected} (format '{self.name}', keys: {self.required})"
            error.example = error.example or self.example_line
            raise

    def _require_form(self, row: Row) -> None:
        """Refuses a row that was named by `format` and does not have its form, which its function takes for granted."""
        missing = self.missing([key for key, value in row.items() if value is not None])
        if not missing and self.fits(row):
            return
        raise refuse(
            "wrong_shape",
            f"the row has no {either(missing)}" if missing else f"the row does not have the form of '{self.name}'",
            found=shown(dict(row)),
            expected=self.summary,
            remedy="write the row like the example, or leave `format` out to have it told from the row",
        )

    @property
    def required(self) -> str:
        """Its required keys as an error shows them: "'prompt' or 'question', 'answer'"."""
        return either(self.keys)

    @property
    def signature(self) -> str:
        """All of its keys: "'prompt' or 'question', 'answer'; optional: 'system', 'tools'"."""
        return f"{self.required}; optional: {quoted(self.optional)}"

    @property
    def example_line(self) -> str:
        return json.dumps(self.example, ensure_ascii=False)
