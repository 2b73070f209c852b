"""Inequalities as sets of numbers, and what stands on the left of x = 5."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from posttrain.rewards.forms import Form, Relation
from posttrain.rewards.formula import Term, difference, formula, number
from posttrain.rewards.notation import FUNCTIONS, Token, UnreadableError
from posttrain.rewards.quantities import term_of
from posttrain.rewards.regions import Piece, Region, intersection, union, without
from posttrain.rewards.values import Exact, sign_of


def inequality(sides: list[list[Token]], signs: list[str]) -> Form:
    """x < 3, 2 <= x < 5 or x + y > 3: the set of numbers where it has one unknown and is linear, else the relation.

    Args:
        sides: what stands between the signs, one more than `signs`; the first may be empty, as in "> 3".

    Raises:
        UnreadableError: signs of both directions in one chain, or no relation of an unknown.
    """
    if len(sides) > 3 or len(set(signs) & {"in", "=", "~"}) or (len(sides) == 3 and "!=" in signs):
        raise UnreadableError("several relations")
    if not sides[0]:
        if len(sides) != 2:
            raise UnreadableError("half a relation")
        return half_line(signs[0], term_of(sides[1]), "")
    terms = [term_of(side) for side in sides]
    parts = [_condition(left, op, right) for left, op, right in zip(terms, signs, terms[1:], strict=False)]
    if len(parts) == 1:
        return parts[0]
    left, right = parts
    ups = [op in ("<", "<=") for op in signs]
    # 2 < x > 1 chains two directions: some mean "and", others made a mistake.
    if ups[0] != ups[1] or not isinstance(left, Region) or not isinstance(right, Region):
        raise UnreadableError("a chain of relations")
    return intersection(left, right)


def _condition(left: Term, op: str, right: Term) -> Form:
    """One relation: of a single unknown, where it is linear, the numbers that fulfil it."""
    if left.op == "sym" and not right.names():
        return half_line(op, right, left.name)
    if left.op == "abs" and not right.names():
        return _distance(left.parts[0], op, right)
    if right.op == "sym" and not left.names():
        return half_line({"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}[op], left, right.name)
    both = difference(left, right)
    names = both.names()
    if len(names) == 1:
        solved = _solved(both, op, next(iter(names)))
        if solved is not None:
            return solved
    if not names:
        raise UnreadableError("a relation without an unknown")
    # One form for both directions, so that x + y > 3 meets 3 < x + y.
    if op in (">", ">="):
        both, op = difference(right, left), {">": "<", ">=": "<="}[op]
    return Relation(op, both)


def _distance(inner: Term, op: str, end: Term) -> Form:
    """|x| < 3 is -3 < x < 3, and |x| > 3 both sides of it."""
    if sign_of(end) <= 0:
        raise UnreadableError("a distance below 0")
    flipped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
    if op not in flipped:
        raise UnreadableError("a distance that is none")
    sides = [_condition(inner, op, end), _condition(inner, flipped[op], Term("neg", (end,)))]
    regions = [side for side in sides if isinstance(side, Region)]
    if len(regions) < 2:
        raise UnreadableError("a distance of several unknowns")
    return intersection(*regions) if op[0] == "<" else union(regions)


def _solved(term: Term, op: str, name: str) -> Form | None:
    """term OP 0 solved for its unknown, where it is linear with rational numbers; None elsewhere."""
    try:
        # Two points make the line, three others test it: what is not linear fails at one of them.
        at = [Exact().of(term, {name: Fraction(value)}) for value in (0, 1, 2, 7, -5)]
    except (ArithmeticError, UnreadableError):
        return None
    slope = at[1] - at[0]
    if not slope or any(at[0] + slope * x != y for x, y in zip((2, 7, -5), at[2:], strict=True)):
        return None
    turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}
    return half_line(op if slope > 0 else turned[op], number(-at[0] / slope), name)


def half_line(op: str, end: Term, name: str) -> Region:
    """The x with x OP end: half_line("<", number(3), "x") is (-oo, 3). Raises UnreadableError if end is no number."""
    sign_of(end)  # an end is a number
    if op == "!=":
        return without([end], name)
    closed = op.endswith("=")
    piece = Piece(None, False, end, closed) if op[0] == "<" else Piece(end, closed, None, False)
    return Region((piece,), name)


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

_FUNCTION_NAMES = frozenset("fghpqrsuvyFGHPQRSTVACEN")
"""Letters that a bracket behind makes a function of: f(x), P(A); x(x + 1) is a product."""


def is_constant(side: Sequence[Token]) -> bool:
    """Whether this is e, i or pi alone, which name nothing."""
    return len(side) == 1 and side[0].text in ("e", "i", "\\pi")


def name_of(side: Sequence[Token]) -> str | None:
    """What is named on the left of x = 5, f(x) = x^2, AB = 5, \\sin A = 1/2, (x, y) = (1, 2); None for a formula."""
    texts = [token.text for token in side]
    if not side or is_constant(side):
        return None
    kinds = {token.kind for token in side}
    is_named = any(token.kind in ("text", "word") and len(token.text) > 3 for token in side) and len(side) <= 4
    if is_named and "number" not in kinds and not {"is", "are"} & set(texts):
        return " ".join(texts).casefold()
    if all(token.kind in ("text", "word") for token in side):
        # AB is a segment, xy a product; a unit's or a variable's text is a name
        is_name = all(token.kind == "text" or token.text.isupper() for token in side)
        return " ".join(texts) if is_name else None
    if texts[0] in _NAME_COMMANDS or (texts[0] in ("m",) and "\\angle" in texts):
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
    after = texts[1:]
    name = texts[0]
    while after[:1] == ["'"]:
        name, after = name + "'", after[1:]
    if after[:1] == ["_"]:
        index = after[1:2] if after[1:2] != ["{"] else after[2 : after.index("}")] if "}" in after else []
        name += "_" + "".join(index)
        after = after[2:] if after[1:2] != ["{"] else after[after.index("}") + 1 :] if "}" in after else ["?"]
    if not after:
        return name
    if after[0] == "(" and after[-1] == ")" and after.count("(") == 1 and texts[0] in _FUNCTION_NAMES:
        return name + "".join(after)
    return None
