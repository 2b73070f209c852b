r"""Whether two answers are the same. Symmetric: same(a, b) is same(b, a), since no rule knows which is the row's.

- Numbers are compared exactly. A decimal of six and more places also stands for the number without end that it is the
  rounding of: 0.333333 for 1/3, and not 0.333.
- A unit may be left out, and another one written if it measures the same: 5 km, 5000 m and 5, but not 5 cm.
- p % is p/100, and, beyond 1, also p: 50 %, 0.5 and 50. An angle of 90 degrees is 90, and \pi/2.
- Of several answers the order says nothing; of tuples it does. One of several is none.
- x = 5 is 5, x + y = 3 is only an equation of the same solutions; x < 3 is (-\infty, 3).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from posttrain.rewards.forms import Form, Labelled, Matrix, Named, Quantity, Relation, Several, Unread, open_region
from posttrain.rewards.formula import Term, difference, number
from posttrain.rewards.notation import UnreadableError, spelled
from posttrain.rewards.quantities import within
from posttrain.rewards.reading import plain, read
from posttrain.rewards.regions import Region, same_region
from posttrain.rewards.values import equal, proportional, rational, sign_of

Basis = Literal["text", "read", "beyond"]
"""How a verdict came about: equal as texts, read and compared, or beyond what is read and compared here."""
PLACES = 6


def verdict(one: str, other: str) -> tuple[bool, Basis]:
    """Whether two answers are the same; "beyond" is False, and may be asked of a computer algebra system."""
    # Before anything is parsed: most right answers are written as the row's, and text that is read by no rule may still
    # be equal.
    if one == other or (plain(one) == plain(other) and plain(one)):
        return True, "text"
    left, right = read(one), read(other)
    try:
        same = _same(left, right)
    # No verdict rather than "different": a hostile or a hard formula is for the computer algebra system to say.
    except (UnreadableError, ZeroDivisionError, OverflowError, RecursionError):
        return False, "beyond"
    if not same and (isinstance(left, Unread) or isinstance(right, Unread)):
        return False, "beyond"
    return same, "read"


def _same(left: Form, right: Form) -> bool:
    # Both ways, which makes the whole relation symmetric though each rule names one side.
    return left == right or _one_way(left, right) or _one_way(right, left)


def _one_way(left: Form, right: Form) -> bool:
    """The rules, each written for one order of the two."""
    match left, right:
        case Labelled(), _:
            return _label(left, right)
        case (Unread(), _) | (_, Unread()):
            return isinstance(left, Unread) and isinstance(right, Unread) and plain(left.text) == plain(right.text)
        case Quantity(), Quantity():
            return _same_quantity(left, right)
        case Several(kind="shown"), _:
            return any(_same(item, right) for item in left.items)
        case Several(), Several():
            return _same_several(left, right)
        case Named(), Named():
            return (left.name == right.name and _same(left.form, right.form)) or _same_relation(left, right)
        case Named(), Relation():
            return _same_relation(left, right)
        # x = 5 answers "5"; an inequality or an equation in x is not what x is.
        case Named(), _:
            return not isinstance(right, Region | Relation) and _same(left.form, right)
        case Relation(), Relation():
            return _same_relation(left, right)
        case Region(), Region():
            return same_region(left, right)
        case Region(), Several():
            other = open_region(right)
            return other is not None and right.kind != "list" and same_region(left, other)
        case Matrix(), Matrix():
            return _same_matrix(left, right)
    return False


def _label(left: Labelled, right: Form) -> bool:
    if isinstance(right, Labelled):
        return left.label == right.label and _same(left.form, right.form)
    # The row may say C where the answer says "(C) 12", or 12.
    alone = Quantity(Term("sym", name=left.label))
    return _same(alone, right) if isinstance(right, Quantity) and right.term.op == "sym" else _same(left.form, right)


# ---------------------------------------------------------------- numbers


def _same_quantity(left: Quantity, right: Quantity) -> bool:
    is_bare = right.otherwise is None and right.unit is None
    if left.otherwise is not None and is_bare and equal(left.otherwise, right.term):
        return True
    one, other = left.unit, right.unit
    if one is None and other is None:
        return _same_number(left, right)
    if one is None or other is None:
        bare, measured = (left, right) if one is None else (right, left)
        return _without_unit(bare, measured)
    if {one.measures, other.measures} == {(("angle", 1),), (("radian", 1),)}:
        degrees, radians = (left, right) if one.is_degree else (right, left)
        return equal(Term("degree", (degrees.term,)), radians.term)
    # 5 m and 5 kg: a number alone would be forgiven its unit, a wrong unit is a wrong answer.
    if one.measures != other.measures:
        return False
    if one.factor == other.factor:
        return _same_number(left, right)
    return equal(_times(left.term, one.factor), _times(right.term, other.factor))


def _without_unit(bare: Quantity, measured: Quantity) -> bool:
    unit = measured.unit
    assert unit is not None
    if unit.is_percent:
        if equal(bare.term, _times(measured.term, Fraction(1, 100))):
            return True
        # 50 % may be written 50; 0.5 % written 0.5 would be read as a half
        return _same_number(bare, measured) and sign_of(difference(Term("abs", (measured.term,)), number(1))) > 0
    if unit.is_degree and equal(bare.term, Term("degree", (measured.term,))):
        return True
    return _same_number(bare, measured)


def _times(term: Term, factor: Fraction) -> Term:
    return term if factor == 1 else Term("mul", (term, number(factor)))


def _same_number(left: Quantity, right: Quantity) -> bool:
    return equal(left.term, right.term) or _is_rounded(left, right) or _is_rounded(right, left)


def _is_rounded(value: Quantity, shown: Quantity) -> bool:
    """Whether the one is a decimal of six and more places, and the other the number without end that it stands for."""
    if shown.places < PLACES or value.places or value.term.names() or shown.term.names():
        return False
    exact, decimal = rational(value.term), rational(shown.term)
    # A number that ends is not rounded: 0.333333 for 0.3333333 is another number.
    if decimal is None or (exact is not None and _ends(exact)):
        return False
    return within(value.term, decimal, Fraction(1, 2 * 10**shown.places))


def _ends(value: Fraction) -> bool:
    """Whether a fraction has finitely many decimals."""
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1


# ---------------------------------------------------------------- several


def _same_several(left: Several, right: Several) -> bool:
    kinds = {left.kind, right.kind}
    if kinds == {"ratio"}:
        return _same_ratio(left, right)
    if len(left.items) != len(right.items):
        return False
    # Solutions, sets and lists have no order; a point does.
    if "tuple" not in kinds:
        return "ratio" not in kinds and _same_in_any_order(left, right)
    if "set" in kinds or "ratio" in kinds:
        return False
    if left.kind == right.kind and left.brackets != right.brackets and len(left.items) == 2:
        return False  # [2, 5] and (2, 5) may be intervals
    if (
        {left.kind, right.kind} == {"list", "tuple"}
        and "[]" in (left.brackets, right.brackets)
        and len(left.items) == 2
    ):
        return False
    return all(_same(one, other) for one, other in zip(_by_name(left), _by_name(right), strict=True))


def _by_name(several: Several) -> tuple[Form, ...]:
    """x = 2, y = 3 against (2, 3): in the order of the names."""
    names = [item.name for item in several.items if isinstance(item, Named)]
    if several.kind != "list" or len(names) != len(several.items):
        return several.items
    ordered = sorted((item for item in several.items if isinstance(item, Named)), key=lambda item: item.name)
    return tuple(item.form for item in ordered)


def _same_in_any_order(left: Several, right: Several) -> bool:
    named = [sum(isinstance(item, Named) for item in several.items) for several in (left, right)]
    if min(named) == 0 and max(named) > 0:
        return False  # x = 2, y = 3 is not "2, 3", of which nobody knows which is x
    # Each item is used up once: 1, 1 is not 1, 2.
    unmatched = list(right.items)
    for item in left.items:
        place = next((place for place, other in enumerate(unmatched) if _same(item, other)), None)
        if place is None:
            return False
        del unmatched[place]
    return True


def _same_ratio(left: Several, right: Several) -> bool:
    if left.brackets != right.brackets or len(left.items) != len(right.items):
        return False
    one, other = ([item.term for item in several.items if isinstance(item, Quantity)] for several in (left, right))
    if left.brackets == "time":
        return all(equal(a, b) for a, b in zip(one, other, strict=True))
    # Crosswise, so that no side is divided by a part that may be 0.
    crossed = zip(one[1:], other[1:], strict=True)
    return all(equal(Term("mul", (one[0], b)), Term("mul", (other[0], a))) for a, b in crossed)


def _same_matrix(left: Matrix, right: Matrix) -> bool:
    if [len(row) for row in left.rows] != [len(row) for row in right.rows]:
        return False
    pairs = zip(left.rows, right.rows, strict=True)
    return all(_same(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- equations


def _same_relation(left: Named | Relation, right: Named | Relation) -> bool:
    one, other = _as_relation(left), _as_relation(right)
    if one is None or other is None or one.op != other.op:
        return False
    sign = proportional(one.term, other.term)
    # An inequality times -1 points the other way; an equation does not mind.
    return sign != 0 and (one.op in ("=", "!=") or sign > 0)


def _as_relation(form: Named | Relation) -> Relation | None:
    """x = 5 as x - 5 = 0; only of a name that is an unknown."""
    if isinstance(form, Relation):
        return form
    if (
        not isinstance(form.form, Quantity)
        or form.form.unit is not None
        or not re.fullmatch(r"\\?[A-Za-z]+(_\w+)?", form.name)
    ):
        return None
    return Relation("=", difference(Term("sym", name=form.name), form.form.term))


# ---------------------------------------------------------------- what a computer algebra system may be asked

_INDEX = re.compile(r"[_^]\s*\{[^{}]{0,80}\}|[_^]\s*\\?\w")
_OPERATOR = re.compile(r"\\(?:i{1,3}nt|oint|sum|prod|lim)(?![a-zA-Z])")
_RELATING = "to|ne|neq|le|leq|ge|geq|approx|lor|land|rightarrow|text|in|pm|mp"
_NO_FORMULA = re.compile(rf"[=<>,;:$]|\\(?:{_RELATING})(?![a-zA-Z])")


def may_ask(one: str, other: str) -> bool:
    """Whether both are single formulas, and one holds a sum, a product, an integral or a limit.

    Of texts with relations, arrows, lists or words math-verify reads a part, and compares that: 6 \\to 7 is 7 to it.
    """
    return any(_OPERATOR.search(text) for text in (one, other)) and _is_formula(one) and _is_formula(other)


def _is_formula(text: str) -> bool:
    bare = _INDEX.sub(" ", spelled(text[:500]))
    words = re.search(r"[A-Za-z]{4,}", re.sub(r"\\[A-Za-z]+", " ", bare))
    # Words of four letters: a sentence, of which math-verify would compare some formula in it.
    return len(text) <= 500 and words is None and _NO_FORMULA.search(bare) is None
