r"""When two answers are the same one: what votes are counted by.

    final_answer("So it is \\boxed{1/2}.")                # "1/2"
    classes(["\\boxed{1/2}", "The answer is 0.5.", "I do not know."], equality)    # [0, 0, None]

`maths` reads what an answer ends on and compares it as the maths verifier does, without a row's answer to guide it: a
box, what follows `####` or "the answer is", else the last number. Equality of formulas need not be transitive (0.333333
stands for 1/3 and for 333333/1000000), so each answer joins the first class whose first member it equals.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from posttrain.config.functions import address_of
from posttrain.config.strategies.base import AnswerEquality
from posttrain.errors import FOREIGN, ConfigError, place_of
from posttrain.rewards.answers import boxed, is_cut, stated
from posttrain.rewards.equality import verdict
from posttrain.rewards.imported import imported
from posttrain.rewards.text import answer_of

Final = Callable[[str], str | None]
"""(an answer's text) -> what it ends on, or None where that is nothing."""


def final_answer(text: str) -> str | None:
    """What a text ends on as mathematics; None where it ends on nothing."""
    text = answer_of(text)
    inside = boxed(text)
    if inside is not None:
        return inside or None
    # A box that was cut holds the beginning of an answer, which would vote for another one.
    return None if is_cut(text) else stated(text, want="number") or None


class Equality:
    """AnswerEquality as something that groups: Equality(AnswerEquality(kind="exact")).classes(texts)."""

    def __init__(self, settings: AnswerEquality, folder: Path | None = None):
        self.settings = settings
        self._final = _final_of(settings, folder)
        self._same: dict[tuple[str, str], bool] = {}

    def final(self, text: str) -> str | None:
        """What stands for the answer in a vote; None: it answers nothing, and has no vote."""
        return self._final(text)

    def classes(self, texts: Sequence[str]) -> list[int | None]:
        """For each text the number of its class, in the order in which classes first occur; None without an answer."""
        firsts: list[str] = []
        known: dict[Hashable, int] = {}
        numbers: list[int | None] = []
        for text in texts:
            final = self.final(text)
            if final is None:
                numbers.append(None)
                continue
            if final not in known:
                known[final] = self._class_of(final, firsts)
            numbers.append(known[final])
        return numbers

    def same(self, one: str, other: str) -> bool:
        """Whether two finals are one answer."""
        if self.settings.kind != "maths" or one == other:
            return one == other
        pair = (one, other)
        if pair not in self._same:
            self._same[pair] = verdict(one, other)[0]
        return self._same[pair]

    def _class_of(self, final: str, firsts: list[str]) -> int:
        for number, first in enumerate(firsts):
            if self.same(first, final):
                return number
        firsts.append(final)
        return len(firsts) - 1


def _final_of(settings: AnswerEquality, folder: Path | None) -> Final:
    if settings.kind == "maths":
        return final_answer
    if settings.kind == "exact":
        return lambda text: answer_of(text).strip() or None
    assert settings.function is not None
    given = settings.function
    home = Path(settings.modules) if settings.modules is not None else folder
    function = imported(given, home, what="answer function") if isinstance(given, str) else given
    name = address_of(given)

    def final(text: str) -> str | None:
        try:
            value = function(text)
        except FOREIGN as error:  # the boundary: other people's code
            raise ConfigError(
                f"the answer function `{name}` raised {type(error).__name__}",
                found=f"{error}{place_of(error, caller=__file__)}",
                remedy="mend the function; return None for an answer that says nothing",
            ) from error
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"the answer function `{name}` gave neither a text nor None",
                found=f"a {type(value).__name__}",
                expected="a text: answers with the same text are one",
                remedy="return `str(value)`",
            )
        return value or None

    return final
