"""Numbers with their units, from tokens: what of "2 dozen red apples" is the number, and what the unit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from posttrain.rewards.forms import Form, Quantity, Several
from posttrain.rewards.formula import Term, difference, formula, number
from posttrain.rewards.notation import Token, UnreadableError, depths
from posttrain.rewards.units import ONE_LETTER, SCALES, is_known, unit_of
from posttrain.rewards.values import sign_of

_SENTENCE = (
    "is are was not no because since if then so but for when where to from more less least most only than at by it "
    "this that we you i they he she answer correct wrong with as which would could should maybe perhaps possibly"
)
_PROSE = frozenset(_SENTENCE.split())
"""Words that are no units: "5 is wrong" is no number of wrongs."""

_SHORT = (
    "is it so we he if in of on to the are was for get has had not but you all can one two six ten did its by as at no "
    "up us do go too now see end sum let our out any off yes new how who why she him her his say way may use"
)
_SHORT_WORDS = frozenset(_SHORT.split())
"""Of two or three letters, and no products of unknowns where they stand alone."""


def quantity(given: list[Token]) -> Form:
    """The number that all of the tokens are, with its unit; two of them where it has the sign \\pm.

    Raises:
        UnreadableError: they are a sentence, or no formula with a unit behind it.
    """
    if not given:
        raise UnreadableError("nothing")
    sign, given = (given[0], given[1:]) if given[0].text in ("$", "€", "£") else (None, given)
    if len(given) > 2 and given[0].text == "-" and given[1].text in ("$", "€", "£"):
        sign, given = given[1], [given[0], *given[2:]]
    body, behind = _parted(given)
    words = [*_unit_words(behind), *([sign.text] if sign is not None else [])]  # $5 million: million, then dollars
    # A sentence that begins with a number is no quantity; read as one, "5 of the boys left" would equal "5 boys".
    if len(words) > 5 or any(word.lower() in _PROSE for word in words):
        raise UnreadableError("a sentence")
    unit, scale = unit_of(words)
    term = term_of(body)
    # 90° and 90 degrees are written as an operator and as a word, and have to meet in one form.
    if term.op == "degree" and unit is None:
        term, unit = term.parts[0], unit_of(["degree"])[0]
    if scale != 1:
        term = Term("mul", (term, number(scale)))
    measure = Quantity(term, unit, _places(body, words), _otherwise(given, body, behind))
    return _both_signs(measure)


def _both_signs(measure: Quantity) -> Form:
    r"""\pm 2 are two numbers."""
    if not measure.term.has("pm", "mp"):
        return measure
    return Several("list", tuple(replace(measure, term=_with_sign(measure.term, sign)) for sign in (1, -1)))


def _with_sign(term: Term, sign: int) -> Term:
    parts = tuple(_with_sign(part, sign) for part in term.parts)
    if term.op in ("pm", "mp"):
        return parts[0] if (sign > 0) == (term.op == "pm") else Term("neg", parts)
    return replace(term, parts=parts)


def _parted(given: list[Token]) -> tuple[list[Token], list[Token]]:
    """(the formula, the words of its unit)"""
    levels = depths(given)
    if (
        len(given) > 2
        and given[-2].text in ("\\degree", "}")
        and given[-1].text in ("C", "F")
        and "\\degree" in [t.text for t in given[-4:]]
    ):
        start = max(place for place, token in enumerate(given) if token.text == "\\degree")
        start -= 1 + (given[start - 1].text == "{") if given[start - 1].text in ("^", "{") else 0
        # °C is a scale of its own; read as an angle it would equal 90° and \pi/2.
        return given[:start], [Token("text", "°" + given[-1].text.lower())]
    # The first word that may be a unit, outside of brackets and behind a number, ends the formula.
    for place in range(1, len(given)):
        token, before = given[place], given[place - 1]
        if levels[place]:
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
    return token.blank and (before.kind == "number" or before.text == "}") and token.text in ONE_LETTER


def _otherwise(given: Sequence[Token], body: Sequence[Token], behind: Sequence[Token]) -> Term | None:
    """Of "5 m" the number 5 m, if m is an unknown; of 1010_2 the digits."""
    if len(body) > 2 and body[0].kind == "number" and body[1].text == "_":
        return number(body[0].value)
    if not behind or behind[0].kind != "letter":
        return None
    try:
        return term_of(given)
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


def term_of(given: Sequence[Token]) -> Term:
    """The formula that all of the tokens are, words of two or three letters taken for products of unknowns."""
    return formula(products(given))


def products(given: Sequence[Token]) -> list[Token]:
    """Words of two or three letters as products: xy is x times y.

    Raises:
        UnreadableError: one is a word of a sentence.
    """
    factors: list[Token] = []
    for place, token in enumerate(given):
        if token.kind == "word" and token.text.lower() in _SHORT_WORDS and (token.blank or not place):
            last = place == len(given) - 1 or given[place + 1].blank or given[place + 1].text in ".,:;"
            if last:
                raise UnreadableError("a sentence")
        if token.kind == "word" and len(token.text) <= 3 and token.text.isascii():
            factors += [Token("letter", letter, token.blank and not n) for n, letter in enumerate(token.text)]
        elif (
            token.kind == "text"
            and len(token.text) == 1
            and token.text.isalpha()
            and (not place or given[place - 1].kind != "number")
        ):
            factors.append(replace(token, kind="letter"))
        else:
            factors.append(token)
    return factors


def is_product(token: Token) -> bool:
    """xy and mn are products, "no" and "ok" are words: these have a vowel."""
    return token.kind == "word" and len(token.text) <= 3 and not set(token.text.lower()) & set("aeiou")


def _places(body: Sequence[Token], words: Sequence[str]) -> int:
    """Decimals of a literal decimal with as many significant digits; 0 where it is something else."""
    digits = body[-1].text if len(body) == 1 or (len(body) == 2 and body[0].text in "+-") else ""
    whole, point, part = digits.partition(".")
    if not point or not digits.replace(".", "").replace(",", "").isdigit():
        return 0
    significant = (whole + part).replace(",", "").lstrip("0")
    return len(part) if len(significant) >= len(part) or len(significant) >= 6 else 0


def within(term: Term, value: Fraction, distance: Fraction) -> bool:
    """Whether a number is as near to a value as that."""
    away = difference(term, number(value))
    return (
        sign_of(difference(number(distance), away)) >= 0
        and sign_of(difference(number(distance), Term("neg", (away,)))) >= 0
    )
