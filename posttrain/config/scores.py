"""What a row is worth to a selection, as a recipe and a program write it; `posttrain.curation.scores` computes it.

    {kind: length, of: answer, unit: words}
    {kind: column, column: quality}

A score is one number a row, higher for what is to be kept unless a step says `lowest`; a row may have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from posttrain.config.values import Settings


class ScoreSettings(Settings):
    """One way to give every row a number."""

    IS_FAMILY: ClassVar[bool] = True

    name: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")
    """What later steps, tables and rejected rows call it; null: its kind, and for a column the column."""

    @property
    def asks_model(self) -> bool:
        """Whether it depends on the selection's `tokenizer` or start model: its result is another with another one."""
        return False

    @property
    def label(self) -> str:
        return self.name or str(getattr(self, "kind"))  # noqa: B009 - every kind has one; the family's base has none


class LengthScore(ScoreSettings):
    """How long a text is."""

    kind: Literal["length"]
    """`length`: how long the prompt, the answer or both are."""
    of: Literal["answer", "prompt", "both"] = "answer"
    """Which text; of a comparison the best answer, of a task what it is checked by."""
    unit: Literal["words", "characters", "tokens"] = "words"
    """`words` are runs of letters and digits, and single characters of Chinese, Japanese and Korean. `tokens` are those
    of the selection's `tokenizer`."""

    @property
    def asks_model(self) -> bool:
        return self.unit == "tokens"


class FormScore(ScoreSettings):
    """Whether an answer looks whole: the share of the audit's row checks that it passes."""

    kind: Literal["form"]
    """`form`: the share of ten checks of the audit that the answer passes: it ends no sentence in the middle, holds no
    special token, role marker, lone think tag, lone code fence, broken or invisible character, is not the word for
    nothing (nan, null), repeats no prompt, and is no refusal. For a comparison the best answer's; a task has no answer
    to look at, and no score."""


class ColumnScore(ScoreSettings):
    """A number that the rows carry already."""

    kind: Literal["column"]
    """`column`: a number that the rows carry."""
    column: str = Field(min_length=1)
    """Its name; a dot leads into an object: `meta.quality`."""

    @property
    def label(self) -> str:
        return self.name or self.column


SCORE_KINDS: Mapping[str, type[ScoreSettings]] = {
    "length": LengthScore,
    "form": FormScore,
    "column": ColumnScore,
}
"""Every score by its kind; what each does is `posttrain.curation.scores.table.SCORES`."""


def _short(value: Any) -> Any:
    """`score: form`: a kind that needs no more than its name."""
    return {"kind": value} if isinstance(value, str) else value


AnyScore = Annotated[
    # one kind a line, as in SCORE_KINDS
    Annotated[LengthScore | FormScore | ColumnScore, Field(discriminator="kind")],
    BeforeValidator(_short),
]
"""Every kind of score; the name of a kind alone may stand for the group."""
