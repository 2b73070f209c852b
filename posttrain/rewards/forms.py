r"""What an answer is: a number with its unit, several values, a set of numbers, an equation, a matrix, a word.

    read(r"5\text{ cm}")          # Quantity(number(5), unit=Unit(...))
    read(r"x = 2 \text{ or } 3")  # Several("list", (Named("x", ...), Quantity(3)))
    read(r"x < 3")                # Region((Piece(None, False, number(3), False),), "x")
    read("Friday")                # Words("friday")

`posttrain.rewards.equality` says when two of them are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from posttrain.rewards.formula import FUNCTIONS, Term, difference, formula, number, periodic
from posttrain.rewards.notation import Token, UnreadableError, spelled, tokens
from posttrain.rewards.regions import ALL, Piece, Region, intersection, region, union, without
from posttrain.rewards.units import ONE_LETTER, SCALES, Unit, is_known, unit_of
from posttrain.rewards.values import InexactError, Exact, TooLargeError, equal, is_zero, sign_of

MOST_ITEMS = 40
DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Quantity:
    """Quantity(number(5), Unit((("length", 1),), Fraction(1, 100))): 5 cm."""

    term: Term
    unit: Unit | None = None
    places: int = 0
    """Digits behind the point of a literal decimal that has at least as many significant ones; 0 for all else."""
    product: Term | None = None
    """What it is if its one-letter unit is an unknown: 5 m as 5 times m."""


@dataclass(frozen=True, slots=True)
class Words:
    """A text: Words("friday")."""

    text: str


@dataclass(frozen=True, slots=True)
class Several:
    """Several("tuple", (2, 3), "()"); kinds: list (unordered, as solutions are), tuple, set, ratio, shown (a value and its
    rounding: \\sqrt2 \\approx 1.41)."""

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
_PHRASES: dict[str, Form] = {
    "no solution": EMPTY,
    "no solutions": EMPTY,
    "empty set": EMPTY,
    "the empty set": EMPTY,
    "all real numbers": Region((ALL,)),
    "all reals": Region((ALL,)),
    "all real": Region((ALL,)),
}
_TRIMMED = re.compile(r"^[\s*_`.,;:]+|[\s*_`,;:]+$")


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

    Case is kept where it may tell symbols apart: in texts of one letter.
    """
    text = re.sub(r"\\(?:text|textbf|mathrm|mbox|textit|textrm|mathbf)\s*\{([^{}]*)\}", r" \1 ", spelled(text[:20_000]))
    text = " ".join(_TRIMMED.sub("", text.replace("$", "")).split()).rstrip(". ")
    return text.casefold() if len(text) > 1 else text


def _wordy(text: str) -> Form:
    """A text of words alone is a word; all else is unread."""
    said = plain(text) if len(text) <= 1000 else ""
    if said and re.fullmatch(r"[^\W\d_]+(?:[ '’\-,.][ ]?[^\W\d_]+)*", said):
        return Words(said)
    return Unread(text)


def _trimmed(given: list[Token]) -> list[Token]:
    """Without the full stop at the end, dollars of broken formulas, and braces around all of it."""
    given = [
        token for place, token in enumerate(given)
        if token.text != "$" or (place + 1 < len(given) and given[place + 1].kind == "number")
    ]  # fmt: skip
    while given and given[-1].text in (".", ",", ";", ":", "*"):
        given.pop()
    while given and given[0].text in ("*", ":"):
        given.pop(0)
    return given


# ---------------------------------------------------------------- from the outside in


def _form(given: Sequence[Token], depth: int) -> Form:
    if depth > DEEPEST or not given:
        raise UnreadableError("nothing, or too deep")
    given = _unwrapped(list(given))
    for reading in (_phrase, _labelled, _alternatives, _conjunction, _listed, _related, _combined, _enclosed, _ratio):
        found = reading(given, depth)
        if found is not None:
            return found
    return _quantity(given)


def _unwrapped(given: list[Token]) -> list[Token]:
    while len(given) > 2 and given[0].text == "{" and _closing(given, 0) == len(given) - 1:
        inner = given[1:-1]
        if len(_split(inner, (",",))) > 1:
            break  # {1, 2} is a set
        given = inner
    return given


_OPENING = {"(", "[", "{", "\\{", "\\langle", "\\begin", "\\lfloor", "\\lceil"}
_CLOSED_BY = {")", "]", "}", "\\}", "\\rangle", "\\end", "\\rfloor", "\\rceil"}


def _depths(given: Sequence[Token]) -> list[int]:
    """How many brackets are open before each token."""
    found, depth = [], 0
    for token in given:
        if token.kind != "text" and token.text in _CLOSED_BY:
            depth -= 1
        found.append(depth)
        if token.kind != "text" and token.text in _OPENING:
            depth += 1
    return found


def _closing(given: Sequence[Token], start: int) -> int:
    """Where the bracket at `start` is closed, by whatever bracket: [2, 5) is one pair."""
    depth = 0
    for place in range(start, len(given)):
        text = given[place].text if given[place].kind != "text" else ""
        depth += (text in _OPENING) - (text in _CLOSED_BY)
        if depth == 0:
            return place
    raise UnreadableError("a bracket is open")


def _split(given: Sequence[Token], separators: Sequence[str]) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    for token, depth in zip(given, _depths(given), strict=True):
        if depth == 0 and token.kind != "text" and token.text in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _phrase(given: list[Token], depth: int) -> Form | None:
    if all(token.kind in ("word", "text", "letter") for token in given):
        said = plain(" ".join(token.text for token in given))
        if said in _PHRASES:
            return _PHRASES[said]
        if len(given) == 1 and given[0].kind == "text" and len(given[0].text) == 1:
            return _quantity([replace(given[0], kind="letter")])
        if any(len(token.text) > 1 and not _is_product(token) for token in given):
            return Words(said)
    if [token.text for token in given] in (["\\emptyset"], ["\\{", "\\}"]):
        return EMPTY
    if [token.text for token in given] in (["\\R"], ["\\mathbb", "{", "R", "}"], ["\\mathbb", "R"]):
        return Region((ALL,))
    return None


def _is_product(token: Token) -> bool:
    """xy and mn are products, "no" and "ok" are words: these have a vowel."""
    return token.kind == "word" and len(token.text) <= 3 and not set(token.text.lower()) & set("aeiou")


def _labelled(given: list[Token], depth: int) -> Form | None:
    """(C) 12, C) 12, C. 12 and C: 12."""
    texts = [token.text for token in given[:3]]
    rest: list[Token] = []
    if len(given) > 3 and texts[0] == "(" and texts[2] == ")" and texts[1] in _LABELS:
        label, rest = texts[1], given[3:]
        if rest[0].kind == "letter" and not rest[0].blank or rest[0].text in ("^", "*", "/", "+", "-", "=", ","):
            return None
    elif len(given) > 2 and texts[0] in _LABELS and texts[1] in (")", ".", ":"):
        label, rest = texts[0], given[2:]
    if not rest:
        return None
    try:
        return Labelled(label, _form(rest, depth + 1))
    except UnreadableError:
        return Labelled(label, Unread(" ".join(token.text for token in rest)))


_LABELS = frozenset("ABCDEFGHIJ")


def _alternatives(given: list[Token], depth: int) -> Form | None:
    parts = _split(given, ("\\lor",))
    if len(parts) == 1:
        return None
    forms = [_form(_trimmed(part), depth + 1) for part in parts]
    return union(_regions(forms)) if all(isinstance(form, Region) for form in forms) else _list(forms)


def _conjunction(given: list[Token], depth: int) -> Form | None:
    parts = _split(given, ("\\land",))
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
    parts = _split(given, (",", ";", "\\\\"))
    if len(parts) == 1:
        return None
    return _list([_form(part, depth + 1) for part in parts if part])


def _list(forms: Sequence[Form]) -> Form:
    """Several answers. Of "2, x = 3, and 4" the parts stand side by side, and names that are all the same say nothing."""
    flat: list[Form] = []
    for form in forms:
        inner = form.form if isinstance(form, Named) else form
        if isinstance(inner, Several) and inner.kind == "list":
            flat += [Named(form.name, item) if isinstance(form, Named) else item for item in inner.items]
        else:
            flat.append(form)
    if len(flat) > MOST_ITEMS:
        raise UnreadableError("too many answers")
    names = {form.name for form in flat if isinstance(form, Named)}
    if len(names) == 1:
        flat = [form.form if isinstance(form, Named) else form for form in flat]
    return flat[0] if len(flat) == 1 else Several("list", tuple(flat))


# ---------------------------------------------------------------- relations

_RELATIONS = {"=": "=", "\\approx": "~", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in"}
_FOREIGN = {
    "\\to", "\\iff", "\\Rightarrow", "\\implies", "\\equiv", "\\notin", "\\sim", "\\cong", "\\Leftrightarrow", "\\mapsto",
    "\\leftarrow", "\\perp", "\\parallel", "\\subset", "\\subseteq", "\\propto", "\\not", "\\nless", "\\ngtr",
}  # fmt: skip


def _related(given: list[Token], depth: int) -> Form | None:
    ops = [
        (place, _RELATIONS[token.text])
        for place, (token, level) in enumerate(zip(given, _depths(given), strict=True))
        if level == 0 and token.kind != "text" and token.text in _RELATIONS
    ]
    if any(token.text in _FOREIGN for token in given):
        raise UnreadableError("a relation that is not read")
    if not ops:
        return None
    edges = [-1, *(place for place, _ in ops), len(given)]
    sides = [given[start + 1 : end] for start, end in zip(edges, edges[1:], strict=False)]
    signs = [op for _, op in ops]
    if set(signs) <= {"=", "~"}:
        return _equation(sides, signs, depth)
    if signs == ["in"]:
        return _element(sides[0], _form(sides[1], depth + 1))
    return _inequality(sides, signs)


def _element(name: Sequence[Token], form: Form) -> Form:
    as_set = open_region(form)
    if as_set is not None:
        return replace(as_set, name=_name(name) or "")
    if isinstance(form, Several) and form.kind == "set":
        return form
    raise UnreadableError("an element of what?")


def _equation(sides: list[list[Token]], signs: list[str], depth: int) -> Form:
    if not sides[0]:  # "= 5", and "about 5"
        return _form(sides[1], depth + 1) if len(sides) == 2 else _equation(sides[1:], signs[1:], depth)
    name = _name(sides[0])
    if name is not None:
        inner = _form(sides[1], depth + 1) if len(sides) == 2 else _equation(sides[1:], signs[1:], depth)
        return _named(name, sides[0], inner)
    if len(sides) == 2 and "=" in signs and _name(sides[1]) is not None and not _is_constant(sides[1]):
        return Named(str(_name(sides[1])), _form(sides[0], depth + 1))  # 5 = x
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
    if all(is_zero(difference(left, right)) for left, right in zip(known, known[1:], strict=False)):
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


def within(term: Term, value: Fraction, distance: Fraction) -> bool:
    """Whether a number is as near to a value as that."""
    away = difference(term, number(value))
    return (
        sign_of(difference(number(distance), away)) >= 0
        and sign_of(difference(number(distance), Term("neg", (away,)))) >= 0
    )


_NAME_COMMANDS = frozenset(
    (
        "\\angle",
        "\\overline",
        "\\triangle",
        "\\vec",
        "\\mathbf",
        "\\hat",
        "\\bar",
        "\\overrightarrow",
        "\\measuredangle",
    )
)


def _is_constant(side: Sequence[Token]) -> bool:
    return len(side) == 1 and side[0].text in ("e", "i", "\\pi")


def _name(side: Sequence[Token]) -> str | None:
    """The name on the left of x = 5, f(x) = x^2, AB = 5, \\sin A = 1/2, Area = 5, (x, y) = (1, 2); None for a formula."""
    texts = [token.text for token in side]
    if not side or _is_constant(side):
        return None
    kinds = {token.kind for token in side}
    if any(token.kind in ("text", "word") and len(token.text) > 3 for token in side) and "number" not in kinds:
        return " ".join(texts).casefold()
    if all(token.kind in ("text", "word") for token in side):
        # AB is a segment, xy a product; a unit's or a variable's text is a name
        is_name = all(token.kind == "text" or token.text.isupper() for token in side)
        return " ".join(texts) if is_name else None
    if texts[0] in _NAME_COMMANDS or texts[0] in ("m",) and "\\angle" in texts:
        return "".join(texts) if "number" not in kinds or "_" in texts else None
    if texts[0] == "\\frac" and len(texts) > 4 and texts[2][0] == "d" == texts[-2][0] and "number" not in kinds:
        return "".join(texts)
    if side[0].kind == "command" and texts[0][1:] in FUNCTIONS:
        return "".join(texts) if "number" not in kinds and not {"+", "-", "*", "/"} & set(texts) else None
    return _symbol_name(side, texts)


def _symbol_name(side: Sequence[Token], texts: list[str]) -> str | None:
    inner = texts[1:-1]
    if (
        texts[0] == "("
        and texts[-1] == ")"
        and len(inner) % 2
        and all(t == "," for t in inner[1::2])
        and len(inner) > 1
    ):
        return "".join(texts) if all(token.kind == "letter" for token in side[1:-1:2]) else None
    if side[0].kind not in ("letter", "command") or (side[0].kind == "command" and len(texts[0]) < 3):
        return None
    try:
        if side[0].kind == "command" and formula(side[:1]).op != "sym":
            return None
    except UnreadableError:
        return None
    rest = texts[1:]
    name = texts[0]
    while rest[:1] == ["'"]:
        name, rest = name + "'", rest[1:]
    if rest[:1] == ["_"]:
        index = rest[1:2] if rest[1:2] != ["{"] else rest[2 : rest.index("}")] if "}" in rest else []
        name += "_" + "".join(index)
        rest = rest[2:] if rest[1:2] != ["{"] else rest[rest.index("}") + 1 :] if "}" in rest else ["?"]
    if not rest:
        return name
    if rest[0] == "(" and rest[-1] == ")" and rest.count("(") == 1 and texts[0] in _FUNCTION_NAMES:
        return name + "".join(rest)
    return None


_FUNCTION_NAMES = frozenset("fghpqrsuvyFGHPQRSTVACEN")
"""Letters that a bracket behind makes a function of: f(x), P(A); x(x + 1) is a product."""


def _inequality(sides: list[list[Token]], signs: list[str]) -> Form:
    if len(sides) > 3 or len(set(signs) & {"in", "=", "~"}) or (len(sides) == 3 and "!=" in signs):
        raise UnreadableError("several relations")
    if not sides[0]:
        if len(sides) != 2:
            raise UnreadableError("half a relation")
        return _half_line(signs[0], _term(sides[1]), "")
    terms = [_term(side) for side in sides]
    parts = [_condition(left, op, right) for left, op, right in zip(terms, signs, terms[1:], strict=False)]
    if len(parts) == 1:
        return parts[0]
    left, right = parts
    ups = [op in ("<", "<=") for op in signs]
    if ups[0] != ups[1] or not isinstance(left, Region) or not isinstance(right, Region):
        raise UnreadableError("a chain of relations")
    return intersection(left, right)


def _condition(left: Term, op: str, right: Term) -> Form:
    """One relation: of a single unknown, where it is linear, the numbers that fulfil it."""
    if left.op == "sym" and not right.names():
        return _half_line(op, right, left.name)
    if right.op == "sym" and not left.names():
        return _half_line({"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}[op], left, right.name)
    both = difference(left, right)
    names = both.names()
    if len(names) == 1:
        solved = _solved(both, op, next(iter(names)))
        if solved is not None:
            return solved
    if not names:
        raise UnreadableError("a relation without an unknown")
    if op in (">", ">="):
        both, op = difference(right, left), {">": "<", ">=": "<="}[op]
    return Relation(op, both)


def _solved(term: Term, op: str, name: str) -> Form | None:
    """term OP 0 solved for its unknown, where it is linear with rational numbers; None elsewhere."""
    try:
        at = [Exact().of(term, {name: Fraction(value)}) for value in (0, 1, 2, 7, -5)]
    except (ArithmeticError, UnreadableError):
        return None
    slope = at[1] - at[0]
    if not slope or any(at[0] + slope * x != y for x, y in zip((2, 7, -5), at[2:], strict=True)):
        return None
    turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}
    return _half_line(op if slope > 0 else turned[op], number(-at[0] / slope), name)


def _half_line(op: str, end: Term, name: str) -> Region:
    sign_of(end)  # an end is a number
    if op == "!=":
        return without([end], name)
    closed = op.endswith("=")
    piece = Piece(None, False, end, closed) if op[0] == "<" else Piece(end, closed, None, False)
    return Region((piece,), name)


# ---------------------------------------------------------------- brackets


def _combined(given: list[Token], depth: int) -> Form | None:
    """Unions, intersections and differences of sets."""
    for sign in ("\\cup", "\\cap", "\\setminus"):
        parts = _split(given, (sign,))
        if len(parts) == 1:
            continue
        forms = [_form(part, depth + 1) for part in parts]
        if sign == "\\setminus" and isinstance(forms[1], Several) and forms[0] == Region((ALL,)) and len(forms) == 2:
            return without([_only_term(item) for item in forms[1].items])
        found = [open_region(form) for form in forms]
        regions = [one for one in found if one is not None]
        if len(regions) < len(forms) or sign == "\\setminus":
            raise UnreadableError("sets that are not read")
        if sign == "\\cup":
            return union(regions)
        result = regions[0]
        for other in regions[1:]:
            result = intersection(result, other)
        return result
    return None


def _only_term(form: Form) -> Term:
    if not isinstance(form, Quantity) or form.unit is not None:
        raise UnreadableError("no number")
    return form.term


def open_region(form: Form) -> Region | None:
    """A form as a set of real numbers: (2, 3) is an interval beside another one, {2, 3} two points; None if it is none."""
    if isinstance(form, Region):
        return form
    if not isinstance(form, Several):
        return None
    try:
        terms = [_only_term(item) for item in form.items]
        if form.kind == "set":
            return region([Piece(term, True, term, True) for term in terms])
        if form.kind == "tuple" and len(terms) == 2 and form.brackets in ("()", "[]"):
            closed = form.brackets == "[]"
            return region([Piece(terms[0], closed, terms[1], closed)])
    except UnreadableError:
        return None
    return None


def _enclosed(given: list[Token], depth: int) -> Form | None:
    opening = given[0].text if given[0].kind != "text" else ""
    if opening == "\\begin":
        return _matrix(given, depth)
    if opening not in ("(", "[", "\\{", "\\langle", "{") or _closing(given, 0) != len(given) - 1:
        return None
    closing, inner = given[-1].text, given[1:-1]
    if opening in ("\\{", "{"):
        return _set(inner, depth) if closing in ("\\}", "}") else None
    parts = _split(_ungrouped(inner), (",", ";"))
    if len(parts) < 2:
        return None
    if len(parts) == 2 and {opening, closing} <= {"(", ")", "[", "]"}:
        ends = [_end(part, side) for part, side in zip(parts, (-1, 1), strict=True)]
        if None in ends or opening + closing in ("[)", "(]"):
            low, high = ends
            return region([Piece(low, opening == "[" and low is not None, high, closing == "]" and high is not None)])
    brackets = {"\\langle": "()"}.get(opening, opening + closing)
    return Several("tuple", tuple(_form(part, depth + 1) for part in parts), brackets)


def _end(part: list[Token], side: int) -> Term | None:
    """The end of an interval; None for the infinity on its side."""
    texts = [token.text for token in part if token.text != "+"]
    if texts == (["-", "\\infty"] if side < 0 else ["\\infty"]):
        return None
    return formula(_products(part))


def _ungrouped(inner: list[Token]) -> list[Token]:
    """In brackets, (1,200) are two numbers: one of thousands is not written in brackets."""
    if len(inner) != 1 or inner[0].kind != "number" or "," not in inner[0].text or "{" in inner[0].text:
        return inner
    return tokens(inner[0].text.replace(",", " , "))


def _set(inner: list[Token], depth: int) -> Form:
    if not inner:
        return EMPTY
    for sign in ("|", ":"):
        parts = _split(inner, (sign,))
        if len(parts) == 2 and _name(_split(parts[0], ("\\in",))[0]) is not None:  # {x : x > 3}
            form = _form(parts[1], depth + 1)
            if isinstance(form, Region):
                return form
            raise UnreadableError("a set by a condition that is not read")
    parts = _split(_ungrouped(inner), (",", ";"))
    return Several("set", tuple(_form(part, depth + 1) for part in parts))


def _matrix(given: list[Token], depth: int) -> Form:
    texts = [token.text for token in given]
    if texts[1:2] != ["{"] or texts[3:4] != ["}"] or texts[-4:-2] != ["\\end", "{"]:
        raise UnreadableError("an environment")
    if texts[2] not in ("pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix"):
        raise UnreadableError(f"the environment {texts[2]}")
    rows = [row for row in _split(given[4:-4], ("\\\\",)) if row]
    cells = tuple(tuple(_form(cell, depth + 1) for cell in _split(row, ("&",))) for row in rows)
    if not cells or len({len(row) for row in cells}) != 1:
        raise UnreadableError("rows of different length")
    return Matrix(cells)


def _ratio(given: list[Token], depth: int) -> Form | None:
    parts = _split(given, (":",))
    if len(parts) == 1:
        return None
    return Several("ratio", tuple(_quantity(part) for part in parts), "time" if _is_time(parts) else "")


def _is_time(parts: Sequence[Sequence[Token]]) -> bool:
    """2:30 and 1:15 are times of day, not one ratio."""
    return all(len(part) == 1 for part in parts) and all(len(part[0].text) == 2 for part in parts[1:])


# ---------------------------------------------------------------- quantities

_PROSE = frozenset(
    "is are was not no because since if then so but for when where to from more less least most only than at by it this "
    "that we you i they he she answer correct wrong with as which would could should maybe perhaps possibly".split()
)

_SHORT_WORDS = frozenset(
    "is it so we he if in of on to the are was for get has had not but you all can one two six ten did its by as at no up "
    "us do go too now see end sum let our out any off yes new how who why she him her his say way may use".split()
)


def _term(given: Sequence[Token]) -> Term:
    term = formula(_products(given))
    return term


def _quantity(given: list[Token]) -> Form:
    if not given:
        raise UnreadableError("nothing")
    sign, given = (given[0], given[1:]) if given[0].text in ("$", "€", "£") else (None, given)
    if len(given) > 2 and given[0].text == "-" and given[1].text in ("$", "€", "£"):
        sign, given = given[1], [given[0], *given[2:]]
    body, behind = _parted(given)
    words = ([sign.text] if sign else []) + _unit_words(behind)
    if sign is not None and behind:
        words = _unit_words(behind) + [sign.text]  # $5 million
    if len(words) > 5 or any(word.lower() in _PROSE for word in words):
        raise UnreadableError("a sentence")
    unit, scale = unit_of(words)
    term = formula(_products(body))
    if (
        sign is not None
        and unit is not None
        and dict(unit.measures).get(unit_of([sign.text])[0].measures[0][0], 0) != 1
    ):  # type: ignore[union-attr]
        unit = unit_of([sign.text])[0]
    if term.op == "degree" and unit is None:
        term, unit = term.parts[0], unit_of(["degree"])[0]
    if scale != 1:
        term = Term("mul", (term, number(scale)))
    found = Quantity(term, unit, _places(body, words), _as_product(given, behind))
    return _both_signs(found)


def _both_signs(found: Quantity) -> Form:
    r"""\pm 2 are two numbers."""
    if not found.term.has("pm", "mp"):
        return found
    return Several("list", tuple(replace(found, term=_with_sign(found.term, sign)) for sign in (1, -1)))


def _with_sign(term: Term, sign: int) -> Term:
    parts = tuple(_with_sign(part, sign) for part in term.parts)
    if term.op in ("pm", "mp"):
        return parts[0] if (sign > 0) == (term.op == "pm") else Term("neg", parts)
    return replace(term, parts=parts)


def _parted(given: list[Token]) -> tuple[list[Token], list[Token]]:
    """(the formula, the words of its unit)"""
    depths = _depths(given)
    if (
        len(given) > 2
        and given[-2].text in ("\\degree", "}")
        and given[-1].text in ("C", "F")
        and "\\degree" in [t.text for t in given[-4:]]
    ):
        start = max(place for place, token in enumerate(given) if token.text == "\\degree")
        start -= 1 + (given[start - 1].text == "{") if given[start - 1].text in ("^", "{") else 0
        return given[:start], [Token("text", "°" + given[-1].text.lower())]
    for place in range(1, len(given)):
        token, before = given[place], given[place - 1]
        if depths[place]:
            continue
        is_unit = (
            token.kind == "text" or (token.kind == "word" and _is_unit(token, before)) or token.text in ("%", "€", "£")
        )
        if not is_unit and token.kind == "letter" and place == len(given) - 1:
            is_unit = _may_be_unit(token, before)
        if (
            not is_unit
            and token.kind == "letter"
            and _may_be_unit(token, before)
            and given[place + 1].text in ("/", "^")
        ):
            is_unit = all(t.kind in ("letter", "word", "text") or t.text in "/^23{}" for t in given[place:])
        if is_unit and any(t.kind in ("number", "command") for t in given[:place]):
            return given[:place], given[place:]
    return given, []


def _is_unit(token: Token, before: Token) -> bool:
    low = token.text.lower()
    if is_known(token.text) or low in SCALES or len(token.text) > 3:
        return True
    return token.blank and before.kind == "number" and any(letter in "aeiou" for letter in low)


def _may_be_unit(token: Token, before: Token) -> bool:
    return token.blank and before.kind == "number" and token.text in ONE_LETTER


def _as_product(given: Sequence[Token], behind: Sequence[Token]) -> Term | None:
    """Of "5 m" the number 5 m, if m is an unknown."""
    if not behind or behind[0].kind != "letter":
        return None
    try:
        return formula(_products(given))
    except UnreadableError:
        return None


def _unit_words(behind: Sequence[Token]) -> list[str]:
    words: list[str] = []
    for token in behind:
        if token.kind == "text":
            words += re.findall(r"[^\W\d_]+|°\w|[$€£%/^°]|\d", token.text)
        elif token.kind in ("word", "letter") or token.text in ("/", "^", "%", "*", "$", "€", "£", "-"):
            words += [token.text] if token.text != "-" else []
        elif token.kind == "number" and token.text in ("2", "3"):
            words.append(token.text)
        elif token.text not in ("{", "}"):
            raise UnreadableError("what is no unit")
    return words


def _products(given: Sequence[Token]) -> list[Token]:
    """Words of two or three letters as products: xy is x times y.

    Raises:
        UnreadableError: one is a word of a sentence.
    """
    found: list[Token] = []
    for place, token in enumerate(given):
        if token.kind == "word" and token.text.lower() in _SHORT_WORDS and (token.blank or not place):
            last = place == len(given) - 1 or given[place + 1].blank or given[place + 1].text in ".,:;"
            if last:
                raise UnreadableError("a sentence")
        if token.kind == "word" and len(token.text) <= 3 and token.text.isascii():
            found += [Token("letter", letter, token.blank and not n) for n, letter in enumerate(token.text)]
        elif (
            token.kind == "text"
            and len(token.text) == 1
            and token.text.isalpha()
            and (not place or given[place - 1].kind != "number")
        ):
            found.append(replace(token, kind="letter"))
        else:
            found.append(token)
    return found


def _places(body: Sequence[Token], words: Sequence[str]) -> int:
    """Decimals of a literal decimal with as many significant digits; 0 where it is something else."""
    digits = body[-1].text if len(body) == 1 or (len(body) == 2 and body[0].text in "+-") else ""
    whole, point, part = digits.partition(".")
    if not point or not digits.replace(".", "").replace(",", "").isdigit():
        return 0
    significant = (whole + part).replace(",", "").lstrip("0")
    return len(part) if len(significant) >= len(part) or len(significant) >= 6 else 0
