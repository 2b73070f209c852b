"""What every score of a selection has; `scores.py` and `model_scores.py` have the scores."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

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
    def bound(self) -> float | None:
        """Rows above it go, whatever the step keeps of the others; None for most scores."""
        return None

    @property
    def reads(self) -> tuple[tuple[str, str], ...]:
        """(key, name) of each earlier score that it is made of."""
        return ()

    @property
    def label(self) -> str:
        return self.name or str(getattr(self, "kind"))  # noqa: B009 - every kind has one; the family's base has none
