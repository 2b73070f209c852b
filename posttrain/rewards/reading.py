r"""From an answer's text to its form.

read(r"5\text{ cm}")          # Quantity(number(5), unit=Unit(...))
read(r"x = 2 \text{ or } 3")  # Several("list", (Quantity(number(2)), Quantity(number(3))))
read(r"x < 3")                # Region((Piece(None, False, number(3), False),), "x")
read("Friday")                # Words("friday")
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from posttrain.rewards.conditions import inequality, is_constant, name_of
from posttrain.rewards.forms import (
    EMPTY,
    Form,
    Labelled,
    Matrix,
    Named,
    Quantity,
    Relation,
    Several,
    Unread,
    Words,
    only_term,
    open_region,
)
from posttrain.rewards.formula import Term, difference, formula, periodic
from posttrain.rewards.notation import Token, UnreadableError, closing, depths, spelled, split_at, tokens
from posttrain.rewards.quantities import is_product, products, quantity, within
from posttrain.rewards.regions import ALL, Piece, Region, intersection, region, union, without
from posttrain.rewards.values import Exact, InexactError, TooLargeError, is_zero

MOST_ITEMS = 40

DEEPEST = 8

_PHRASES: dict[str, Form] = {
    "no solution": EMPTY,
    "no solutions": EMPTY,
    "empty set": EMPTY,
    "the empty set": EMPTY,
    "all real numbers": Region((ALL,)),
    "all reals": Region((ALL,)),
}
LONGEST_TEXT = 20_000
"""Characters that are compared as text."""
_TEXT_COMMANDS = re.compile(r"\\(?:text|textbf|mathrm|mbox|textit|textrm|mathbf)\s*\{([^{}]*)\}")
_BLANKS = re.compile(r" (?!\w)|(?<!\w) ")
"""Blanks that part nothing; that of "3 1/2" does."""
_WORDY = re.compile(r"[^\W\d_]+(?:[ '’\-,.][ ]?[^\W\d_]+)*")
_BEFORE = re.compile(r"[\s*_`.,;:]*")
_BEHIND = re.compile(r"[\s*_`,;:]*")
"""Layout and punctuation at the ends of a text; a full stop at its end is taken later."""


@lru_cache(maxsize=4096)
def read(text: str) -> Form:
    """The form of an answer; Unread where it has none that is known, or one that is too long."""
    try:
        dotted = periodic(text.strip(" $"))
        if dotted is not None:
            return Quantity(dotted)
        given = _trimmed(tokens(text))
        return _form(given, 0) if given else Unread(text)
    except UnreadableError:
        return _wordy(text)
    except (ZeroDivisionError, OverflowError, RecursionError):
        return Unread(text)


def plain(text: str) -> str:
    """A text for comparison as text: without LaTeX's layout, runs of blanks and the full stop at its end.

    Case says nothing in words, and everything in formulas: X is not x, and \\Delta is no \\delta.
    """
    text = _TEXT_COMMANDS.sub(r" \1 ", spelled(text[:LONGEST_TEXT]))
    text = _BLANKS.sub("", " ".join(_stripped(text.replace("$", "")).split())).rstrip(". ")
    return text.casefold() if len(text) > 1 and _WORDY.fullmatch(text) else text


def _stripped(text: str) -> str:
    """Without layout at both ends. The end is looked at backwards: a pattern that ends with $ would begin anew at each
    of ten thousand underscores inside."""
    text = text[_length(_BEFORE, text) :]
    return text[: len(text) - _length(_BEHIND, text[::-1])]


def _length(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return 0 if match is None else match.end()


def _wordy(text: str) -> Form:
    """A text of words alone is a word; all else is unread."""
    plain_text = plain(text) if len(text) <= 1000 else ""
    if plain_text and _WORDY.fullmatch(plain_text):
        return Words(plain_text)
    return Unread(text)


def _trimmed(given: list[Token]) -> list[Token]:
    """Without the full stop at the end, dollars of broken formulas, and braces around all of it."""
    given = [
        token for place, token in enumerate(given)
        if token.text != "$" or (place + 1 < len(given) and given[place + 1].kind == "number")
    ]  # fmt: skip
    while given and given[-1].text in (".", ",", ";", ":"):
        given.pop()
    while given and given[0].text == ":":
        given.pop(0)
    while len(given) > 2 and given[0].text == given[-1].text == "*":
        given = given[1:-1]  # *5* is in italics; a lone * is a sign
    return given


def _form(given: Sequence[Token], depth: int) -> Form:
    if depth > DEEPEST or not given:
        raise UnreadableError("nothing, or too deep")
    given = _unwrapped(list(given))
    for reading in (_phrase, _labelled, _alternatives, _conjunction, _listed, _related, _combined, _enclosed, _ratio):
        form = reading(given, depth)
        if form is not None:
            return form
    return quantity(given)


def _unwrapped(given: list[Token]) -> list[Token]:
    while len(given) > 2 and given[0].text == "{" and closing(given, 0) == len(given) - 1:
        inner = given[1:-1]
        if len(split_at(inner, (",",))) > 1:
            break  # {1, 2} is a set
        given = inner
    return given


def _phrase(given: list[Token], depth: int) -> Form | None:
    if all(token.kind in ("word", "text", "letter") for token in given):
        plain_text = plain(" ".join(token.text for token in given))
        if plain_text in _PHRASES:
            return _PHRASES[plain_text]
        if len(given) == 1 and given[0].kind == "text" and len(given[0].text) == 1:
            return quantity([replace(given[0], kind="letter")])
        if any(len(token.text) > 1 and not is_product(token) for token in given):
            return Words(plain_text)
    if [token.text for token in given] in (["\\emptyset"], ["\\{", "\\}"]):
        return EMPTY
    if [token.text for token in given] in (["\\R"], ["\\mathbb", "{", "R", "}"], ["\\mathbb", "R"]):
        return Region((ALL,))
    return None


def _labelled(given: list[Token], depth: int) -> Form | None:
    """(C) 12, C) 12, C. 12 and C: 12."""
    texts = [token.text for token in given[:3]]
    after: list[Token] = []
    if len(given) > 3 and texts[0] == "(" and texts[2] == ")" and texts[1] in _LABELS:
        label, after = texts[1], given[3:]
        if (after[0].kind == "letter" and not after[0].blank) or after[0].text in ("^", "*", "/", "+", "-", "=", ","):
            return None
    elif len(given) > 2 and texts[0] in _LABELS and texts[1] in (")", ".", ":"):
        label, after = texts[0], given[2:]
    if not after:
        return None
    try:
        return Labelled(label, _form(after, depth + 1))
    except UnreadableError:
        return Labelled(label, Unread(" ".join(token.text for token in after)))


_LABELS = frozenset("ABCDEFGHIJ")


def _alternatives(given: list[Token], depth: int) -> Form | None:
    parts = split_at(given, ("\\lor",))
    if len(parts) == 1:
        return None
    forms = [_form(_trimmed(part), depth + 1) for part in parts]
    return union(_regions(forms)) if all(isinstance(form, Region) for form in forms) else _list(forms)


def _conjunction(given: list[Token], depth: int) -> Form | None:
    parts = split_at(given, ("\\land",))
    if len(parts) == 1:
        return None
    forms = [_form(_trimmed(part), depth + 1) for part in parts]
    if all(isinstance(form, Region) for form in forms):
        found, *others = _regions(forms)
        for other in others:
            found = intersection(found, other)
        return found
    return _list(forms)


def _regions(forms: Sequence[Form]) -> list[Region]:
    return [form for form in forms if isinstance(form, Region)]


def _listed(given: list[Token], depth: int) -> Form | None:
    parts = split_at(given, (",", ";", "\\\\"))
    if len(parts) == 1:
        return None
    return _list([_form(part, depth + 1) for part in parts if part])


def _list(forms: Sequence[Form]) -> Form:
    """Several answers; lists within them are joined, and where all have the same name it says nothing."""
    flat: list[Form] = []
    for form in forms:
        inner = form.form if isinstance(form, Named) else form
        if isinstance(inner, Several) and inner.kind == "list":
            flat += [Named(form.name, item) if isinstance(form, Named) else item for item in inner.items]
        else:
            flat.append(form)
    if len(flat) > MOST_ITEMS:
        raise UnreadableError("too many answers")
    if 0 < sum(isinstance(form, Words) for form in flat) < len(flat):
        raise UnreadableError("a sentence")  # "72 clips in April and May" lists nothing
    names = {form.name for form in flat if isinstance(form, Named)}
    if len(names) == 1:
        flat = [form.form if isinstance(form, Named) else form for form in flat]
    return flat[0] if len(flat) == 1 else Several("list", tuple(flat))


_RELATIONS = {"=": "=", "\\approx": "~", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in"}

_FOREIGN = {
    "\\to", "\\iff", "\\Rightarrow", "\\implies", "\\equiv", "\\notin", "\\sim", "\\cong", "\\Leftrightarrow",
    "\\mapsto", "\\leftarrow", "\\perp", "\\parallel", "\\subset", "\\subseteq", "\\propto", "\\not", "\\ngtr",
}  # fmt: skip


def _related(given: list[Token], depth: int) -> Form | None:
    ops = [
        (place, _RELATIONS[token.text])
        for place, (token, level) in enumerate(zip(given, depths(given), strict=True))
        if level == 0 and token.kind != "text" and token.text in _RELATIONS
    ]
    if any(token.text in _FOREIGN for token in given):
        raise UnreadableError("a relation that is not read")
    if not ops:
        return None
    edges = [-1, *(place for place, _ in ops), len(given)]
    sides = [given[start + 1 : end] for start, end in itertools.pairwise(edges)]
    signs = [op for _, op in ops]
    if set(signs) <= {"=", "~"}:
        return _equation(sides, signs, depth)
    if signs == ["in"]:
        return _element(sides[0], _form(sides[1], depth + 1))
    return inequality(sides, signs)


def _element(name: Sequence[Token], form: Form) -> Form:
    if isinstance(form, Several) and form.kind == "set":
        return form
    as_set = open_region(form)
    if as_set is not None:
        return replace(as_set, name=name_of(name) or "")
    raise UnreadableError("an element of what?")


def _equation(sides: list[list[Token]], signs: list[str], depth: int) -> Form:
    if not sides[0]:  # "= 5", and "about 5"
        return _form(sides[1], depth + 1) if len(sides) == 2 else _equation(sides[1:], signs[1:], depth)
    name = name_of(sides[0])
    if name is not None:
        inner = _form(sides[1], depth + 1) if len(sides) == 2 else _equation(sides[1:], signs[1:], depth)
        return _named(name, sides[0], inner)
    if len(sides) == 2 and "=" in signs and name_of(sides[1]) is not None and not is_constant(sides[1]):
        return Named(str(name_of(sides[1])), _form(sides[0], depth + 1))  # 5 = x
    forms = [_form(side, depth + 1) for side in sides]
    return _chain(forms, signs)


def _named(name: str, side: Sequence[Token], inner: Form) -> Form:
    """(x, y) = (2, 3) says x = 2 and y = 3."""
    if name.startswith("(") and isinstance(inner, Several) and inner.kind == "tuple":
        names = name[1:-1].split(",")
        if len(names) == len(inner.items):
            return Several("list", tuple(Named(one, item) for one, item in zip(names, inner.items, strict=True)))
    return Named(name, inner)


def _chain(forms: list[Form], signs: list[str]) -> Form:
    """3 + 4 = 7 is 7, and x + y = 3 is an equation; what is false is nothing."""
    terms = [form.term if isinstance(form, Quantity) else None for form in forms]
    if any(term is None for term in terms):
        raise UnreadableError("an equation of what are no formulas")
    known = [term for term in terms if term is not None]
    if all(is_zero(difference(left, right)) for left, right in itertools.pairwise(known)):
        return forms[-1]
    if not any(term.names() for term in known):
        first, last = forms[0], forms[-1]
        if len(forms) == 2 and isinstance(first, Quantity) and isinstance(last, Quantity) and _rounds(first, last):
            return Several("shown", (first, last))
        raise UnreadableError("a false equation")
    if len(known) == 2 and signs == ["="]:
        return Relation("=", difference(known[0], known[1]))
    raise UnreadableError("a chain of equations")


def _rounds(value: Quantity, shown: Quantity) -> bool:
    """Whether the second is the first, rounded to the digits that it has."""
    if shown.term.op not in ("num", "neg") or (value.unit and shown.unit and value.unit != shown.unit):
        return False
    try:
        given = Exact().of(shown.term, {})
    except (InexactError, TooLargeError, ZeroDivisionError):
        return False
    places = 0
    while (given * 10**places).denominator != 1:
        places += 1
        if places > 30:
            return False
    half = Fraction(1, 2 * 10**places)
    return within(value.term, given, half)


def _combined(given: list[Token], depth: int) -> Form | None:
    """Unions, intersections and differences of sets."""
    for sign in ("\\cup", "\\cap", "\\setminus"):
        parts = split_at(given, (sign,))
        if len(parts) == 1:
            continue
        forms = [_form(part, depth + 1) for part in parts]
        if sign == "\\setminus" and isinstance(forms[1], Several) and forms[0] == Region((ALL,)) and len(forms) == 2:
            return without([only_term(item) for item in forms[1].items])
        by_form = [open_region(form) for form in forms]
        regions = [region for region in by_form if region is not None]
        if len(regions) < len(forms) or sign == "\\setminus":
            raise UnreadableError("sets that are not read")
        if sign == "\\cup":
            return union(regions)
        result = regions[0]
        for other in regions[1:]:
            result = intersection(result, other)
        return result
    return None


def _enclosed(given: list[Token], depth: int) -> Form | None:
    opening = given[0].text if given[0].kind != "text" else ""
    if opening == "\\begin":
        return _matrix(given, depth)
    if opening not in ("(", "[", "\\{", "\\langle", "{") or closing(given, 0) != len(given) - 1:
        return None
    closed_by, inner = given[-1].text, given[1:-1]
    if opening in ("\\{", "{"):
        return _set(inner, depth) if closed_by in ("\\}", "}") else None
    parts = split_at(_ungrouped(inner), (",", ";"))
    if len(parts) < 2:
        return None
    if len(parts) == 2 and {opening, closed_by} <= {"(", ")", "[", "]"}:
        ends = [_end(part, side) for part, side in zip(parts, (-1, 1), strict=True)]
        if None in ends or opening + closed_by in ("[)", "(]"):
            low, high = ends
            return region([Piece(low, opening == "[" and low is not None, high, closed_by == "]" and high is not None)])
    brackets = {"\\langle": "()"}.get(opening, opening + closed_by)
    return Several("tuple", tuple(_form(part, depth + 1) for part in parts), brackets)


def _end(part: list[Token], side: int) -> Term | None:
    """The end of an interval; None for the infinity on its side."""
    texts = [token.text for token in part if token.text != "+"]
    if texts == (["-", "\\infty"] if side < 0 else ["\\infty"]):
        return None
    return formula(products(part))


def _ungrouped(inner: list[Token]) -> list[Token]:
    """In brackets, (1,200) are two numbers: one of thousands is not written in brackets."""
    if len(inner) != 1 or inner[0].kind != "number" or "," not in inner[0].text or "{" in inner[0].text:
        return inner
    return tokens(inner[0].text.replace(",", " , "))


def _set(inner: list[Token], depth: int) -> Form:
    if not inner:
        return EMPTY
    for sign in ("|", ":"):
        parts = split_at(inner, (sign,))
        if len(parts) == 2 and name_of(split_at(parts[0], ("\\in",))[0]) is not None:  # {x : x > 3}
            form = _form(parts[1], depth + 1)
            if isinstance(form, Region):
                return form
            raise UnreadableError("a set by a condition that is not read")
    parts = split_at(_ungrouped(inner), (",", ";"))
    return Several("set", tuple(_form(part, depth + 1) for part in parts))


def _matrix(given: list[Token], depth: int) -> Form:
    texts = [token.text for token in given]
    if texts[1:2] != ["{"] or texts[3:4] != ["}"] or texts[-4:-2] != ["\\end", "{"]:
        raise UnreadableError("an environment")
    if texts[2] not in ("pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix"):
        raise UnreadableError(f"the environment {texts[2]}")
    rows = [row for row in split_at(given[4:-4], ("\\\\",)) if row]
    cells = tuple(tuple(_form(cell, depth + 1) for cell in split_at(row, ("&",))) for row in rows)
    if not cells or len({len(row) for row in cells}) != 1:
        raise UnreadableError("rows of different length")
    return Matrix(cells)


def _ratio(given: list[Token], depth: int) -> Form | None:
    parts = split_at(given, (":",))
    if len(parts) == 1:
        return None
    return Several("ratio", tuple(quantity(part) for part in parts), "time" if _is_time(parts) else "")


def _is_time(parts: Sequence[Sequence[Token]]) -> bool:
    """2:30 and 1:15 are times of day, not one ratio."""
    return all(len(part) == 1 for part in parts) and all(len(part[0].text) == 2 for part in parts[1:])
