"""What every step of a selection has; `select.py` and `diversity.py` have the steps."""

from __future__ import annotations

from typing import ClassVar

from posttrain.config.values import Settings


class StepSettings(Settings):
    """One step of a selection."""

    IS_FAMILY: ClassVar[bool] = True

    @property
    def asks_model(self) -> bool:
        """Whether it depends on the selection's `tokenizer` or start model: its result is another with another one."""
        return False

    @property
    def label(self) -> str:
        return str(getattr(self, "kind"))  # noqa: B009 - every kind has one; the family's base has none
