r"""What an answer can be: a number with its unit, several values, a set of numbers, an equation, a matrix, a word.

`posttrain.rewards.reading` makes them of texts, `posttrain.rewards.equality` says when two of them are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.rewards.formula import Term
from posttrain.rewards.notation import UnreadableError
from posttrain.rewards.regions import Piece, Region, region
from posttrain.rewards.units import Unit


@dataclass(frozen=True, slots=True)
class Quantity:
    """Quantity(number(5), Unit((("length", 1),), Fraction(1, 100))): 5 cm."""

    term: Term
    unit: Unit | None = None
    places: int = 0
    """Digits behind the point of a literal decimal that has at least as many significant ones; 0 for all else."""
    otherwise: Term | None = None
    """A second reading: 5 m as 5 times an unknown m, 1010_2 as the digits 1010 whose base goes without saying."""


@dataclass(frozen=True, slots=True)
class Words:
    """A text: Words("friday")."""

    text: str


@dataclass(frozen=True, slots=True)
class Several:
    """Several("tuple", (2, 3), "()").

    kind: list (unordered, as solutions are), tuple, set, ratio, shown (a value and its rounding: \\sqrt2 = 1.41).
    """

    kind: str
    items: tuple[Form, ...]
    brackets: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """x = 5: Named("x", Quantity(...))."""

    name: str
    form: Form


@dataclass(frozen=True, slots=True)
class Relation:
    """left - right OP 0, for OP in "=", "<", "<=", "!=": Relation("=", x + y - 3)."""

    op: str
    term: Term


@dataclass(frozen=True, slots=True)
class Matrix:
    """Matrix(((Quantity(number(1)), Quantity(number(2))),)): one row of two."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A choice and what it says: (C) 12."""

    label: str
    form: Form


@dataclass(frozen=True, slots=True)
class Unread:
    """What is no form that is read here."""

    text: str


Form = Quantity | Words | Several | Named | Relation | Matrix | Labelled | Region | Unread

EMPTY = Several("set", ())


def only_term(form: Form) -> Term:
    """The formula of a number without a unit; raises UnreadableError for any other form."""
    if not isinstance(form, Quantity) or form.unit is not None:
        raise UnreadableError("no number")
    return form.term


def open_region(form: Form) -> Region | None:
    """A form as a set of real numbers: (2, 3) as an interval, {2, 3} as two points; None if it is none."""
    if isinstance(form, Region):
        return form
    if not isinstance(form, Several):
        return None
    try:
        terms = [only_term(item) for item in form.items]
        if form.kind == "set":
            return region([Piece(term, True, term, True) for term in terms])
        if form.kind == "tuple" and len(terms) == 2 and form.brackets in ("()", "[]"):
            # Half-open pairs are read as regions already; of these two only the bracket says which.
            closed = form.brackets == "[]"
            return region([Piece(terms[0], closed, terms[1], closed)])
    except UnreadableError:
        return None
    return None
