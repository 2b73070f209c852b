r"""From tokens to a formula: a tree of sums, products, powers, roots and functions.

    formula(tokens(r"3\sqrt{2}"))      # Term("mul", (Term("num", value=3), Term("root", (2, Term("num", value=2)))))

A recursive descent of one pass. Depth and length are bounded, so that a hostile answer costs no more than an honest
one. What is ambiguous is refused instead of guessed: "2 3" has no operator, \frac123 no reading that its writer meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from posttrain.rewards.notation import FUNCTIONS, Token, UnreadableError

DEEPEST = 60
_CONSTANTS = {"\\pi": "pi", "\\infty": "inf", "e": "e", "i": "i"}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
_SAME_FUNCTION = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"
)
_LETTERS = frozenset("\\" + name for name in _GREEK.split())
_FENCES = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}


@dataclass(frozen=True, slots=True)
class Term:
    """A formula. Term("pow", (Term("sym", name="x"), Term("num", value=Fraction(2)))) is x^2.

    op: num, sym, const (pi, e, i, inf), add, mul, div, pow, neg, root (degree, radicand), fn, log (argument, base),
    fact, binom, abs, floor, ceil, degree (an angle), pm and mp (both signs of their part).
    """

    op: str
    parts: tuple[Term, ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""

    def has(self, *ops: str) -> bool:
        return self.op in ops or any(part.has(*ops) for part in self.parts)

    def names(self) -> frozenset[str]:
        """Of the unknowns."""
        if self.op == "sym":
            return frozenset((self.name,))
        return frozenset().union(*(part.names() for part in self.parts))


def number(value: Fraction | int) -> Term:
    """number(Fraction(1, 2)): the formula that is this value."""
    return Term("num", value=Fraction(value))


def negative(term: Term) -> Term:
    """-term."""
    return Term("neg", (term,))


def difference(left: Term, right: Term) -> Term:
    """left - right: 0 where two formulas are the same."""
    return Term("add", (left, negative(right)))


def formula(given: Sequence[Token]) -> Term:
    """The formula that all of the tokens are.

    Raises:
        UnreadableError: they are no formula, or one with a meaning that is not plain.
    """
    reader = _Reader(given)
    term = reader.whole()
    if reader.at < len(given):
        raise UnreadableError(f"what is {given[reader.at].text!r}?")
    return term


class _Reader:
    def __init__(self, given: Sequence[Token]):
        self.given, self.at, self.depth = list(given), 0, 0
        self.bars = 0
        """How many | are open: within them the next one closes."""

    # ------------------------------------------------------------ tokens

    def peek(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.given[place].text if place < len(self.given) and self.given[place].kind != "text" else ""

    def kind(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.given[place].kind if place < len(self.given) else ""

    def take(self) -> Token:
        if self.at >= len(self.given):
            raise UnreadableError("it ends too early")
        self.at += 1
        return self.given[self.at - 1]

    def expect(self, text: str) -> None:
        if self.peek() != text:
            raise UnreadableError(f"{text} is missing")
        self.at += 1

    # ------------------------------------------------------------ sums and products

    def whole(self) -> Term:
        """A sum, or two of them over one another: {1 \\over 2}."""
        term = self.sum()
        if self.peek() in ("\\over", "\\choose"):
            return Term("div" if self.take().text == "\\over" else "binom", (term, self.sum()))
        return term

    def sum(self) -> Term:
        self.depth += 1
        if self.depth > DEEPEST:
            raise UnreadableError("too deep")
        parts = [self.product()]
        while self.peek() in ("+", "-", "\\pm", "\\mp"):
            sign = self.take().text
            parts.append(_signed(sign, self.product()))
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Term("add", tuple(parts))

    def product(self) -> Term:
        signs = []
        while self.peek() in ("+", "-", "\\pm", "\\mp"):
            signs.append(self.take().text)
        term = self.power()
        while True:
            # `a * b ** c` reads as (a b)^c or a (b^c) to different writers.
            if self.peek() == "*" and self.peek(1) == "*":
                raise UnreadableError("a power of a product")
            if self.peek() in ("*", "/"):
                sign = self.take().text
                other = self.signed_power()
                term = _times(term, other) if sign == "*" else Term("div", (term, other))
            elif self.is_times_letter():
                self.at += 1
                term = _times(term, self.power())
            elif self.begins_factor():
                term = _times(term, self.power())
            else:
                break
        for sign in reversed(signs):
            term = _signed(sign, term)
        return term

    def signed_power(self) -> Term:
        """A factor behind * or / may have a sign of its own: 3 * -2."""
        if self.peek() in ("-", "+"):
            return _signed(self.take().text, self.power())
        return self.power()

    def is_times_letter(self) -> bool:
        """The x of "6.02 x 10^23"."""
        around = self.kind(-1) == "number" and self.at > 0 and self.kind(1) == "number"
        return around and self.peek() in ("x", "X") and self.given[self.at].blank and self.given[self.at + 1].blank

    def begins_factor(self) -> bool:
        text, kind = self.peek(), self.kind()
        if text == "|":
            return not self.bars
        return (
            # Not a number behind a factor ("2 3"), but for "3! 2": there nothing else can be meant.
            kind == "letter"
            or (kind == "number" and self.peek(-1) == "!")
            or text in ("(", "{", "\\sqrt", "\\frac", "\\binom", "\\pi", "\\infty", "\\lfloor", "\\lceil")
            or text in _LETTERS
            or (kind == "command" and text[1:] in FUNCTIONS)
        )

    # ------------------------------------------------------------ powers and what stands behind an atom

    def power(self) -> Term:
        term = self.postfix(self.atom())
        if self.peek() == "^" or (self.peek() == "*" and self.peek(1) == "*"):
            self.at += 1 if self.peek() == "^" else 2
            exponent = self.exponent()
            if exponent is None:
                return self.postfix(Term("degree", (term,)))
            return self.postfix(Term("pow", (term, exponent)))
        return term

    def exponent(self) -> Term | None:
        """What follows ^; None for the sign of a degree."""
        if self.peek() == "\\degree":
            self.at += 1
            return None
        if self.peek() == "{" and self.peek(1) == "\\degree" and self.peek(2) == "}":
            self.at += 3
            return None
        if self.peek() in ("-", "+"):
            return _signed(self.take().text, self.nested_power())
        return self.nested_power()

    def nested_power(self) -> Term:
        self.depth += 1
        if self.depth > DEEPEST:
            raise UnreadableError("too deep")
        if self.peek() == "{":
            term = self.fenced()
        else:
            term = self.atom(alone=True)
            if self.peek() == "^":  # 2^3^2 is 2^(3^2)
                self.at += 1
                above = self.exponent()
                term = Term("degree", (term,)) if above is None else Term("pow", (term, above))
        self.depth -= 1
        return term

    def postfix(self, term: Term) -> Term:
        while True:
            if self.peek() == "!":
                if self.peek(1) == "!":
                    raise UnreadableError("a double factorial")
                self.at += 1
                term = Term("fact", (term,))
            elif self.peek() == "\\degree":
                self.at += 1
                term = Term("degree", (term,))
            else:
                return term

    # ------------------------------------------------------------ atoms

    def atom(self, alone: bool = False) -> Term:
        """Args: alone: no mixed number, as in the exponent of 2^3 \\frac12."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise UnreadableError("too deep")
        term = self.any_atom(alone)
        self.depth -= 1
        return term

    def any_atom(self, alone: bool) -> Term:
        token = self.take()
        text = token.text
        if token.kind == "number":
            return self.number(token, alone)
        if token.kind == "letter":
            return self.symbol(text)
        if token.kind in ("text", "word"):
            raise UnreadableError(f"the word {text!r}")
        if text in ("(", "{", "[", "\\lfloor", "\\lceil"):
            self.at -= 1
            inner = self.fenced()
            return inner if text in ("(", "{", "[") else Term("floor" if text == "\\lfloor" else "ceil", (inner,))
        if text == "|":
            self.bars += 1
            inner = self.sum()
            self.bars -= 1
            self.expect("|")
            return Term("abs", (inner,))
        if text in _CONSTANTS:
            return Term("const", name=_CONSTANTS[text])
        if text in _LETTERS:
            return self.symbol(text)
        if text == "\\sqrt":
            return self.root()
        if text in ("\\frac", "\\binom"):
            above, below = self.argument(), self.argument()
            if self.kind() == "number" and not self.given[self.at].blank:
                raise UnreadableError("digits behind a fraction")
            return Term("div" if text == "\\frac" else "binom", (above, below))
        if text[1:] in FUNCTIONS:
            return self.function(text[1:])
        raise UnreadableError(f"what is {text!r}?")

    def fenced(self) -> Term:
        opening = self.take().text
        # Inside brackets an outer | cannot close, so the next one opens again: |(2|x|)|.
        bars, self.bars = self.bars, 0
        term = self.whole()
        self.bars = bars
        self.expect(_FENCES[opening])
        return term

    def number(self, token: Token, alone: bool) -> Term:
        value = number(token.value)
        if self.peek() == "_":
            return self.based(token)
        if self.peek() == "\\overline":
            return self.repeating(token)
        if self.kind() == "number" and not alone:
            return self.mixed(token)
        if not alone and self.peek() == "\\frac" and token.value.denominator == 1:
            start = self.at
            fraction = self.atom()
            if _is_proper(fraction):
                return Term("add", (value, fraction))
            # 3 \frac{x}{2} is a product: it is read again from the fraction on.
            self.at = start
        return value

    def mixed(self, token: Token) -> Term:
        """3 1/2: a whole number, a blank, and a fraction below 1."""
        above = self.take()
        if above.blank and self.peek() == "/" and self.kind(1) == "number" and token.text.isdigit():
            self.at += 1
            fraction = Term("div", (number(above.value), number(self.take().value)))
            if _is_proper(fraction):
                return Term("add", (number(token.value), fraction))
        raise UnreadableError("two numbers without an operator")

    def based(self, token: Token) -> Term:
        """1010_2: the digits in their base."""
        self.expect("_")
        base = self.argument()
        if base.op != "num" or base.value.denominator != 1 or not 2 <= base.value <= 10 or not token.text.isdigit():
            raise UnreadableError("a number with an index")
        if any(int(digit) >= base.value for digit in token.text):
            raise UnreadableError("a digit beyond its base")
        return number(int(token.text, int(base.value)))

    def repeating(self, token: Token) -> Term:
        r"""0.1\overline{6} is 1/6."""
        self.expect("\\overline")
        self.expect("{")
        period = self.take()
        self.expect("}")
        # Bounded: the denominator has as many digits as the period, and every later comparison pays for them.
        if "." not in token.text or not period.text.isdigit() or len(period.text) > 50:
            raise UnreadableError("a line over what is no period")
        decimals = len(token.text.partition(".")[2])
        return number(token.value + Fraction(int(period.text), 10**decimals * (10 ** len(period.text) - 1)))

    def symbol(self, text: str) -> Term:
        name = text
        if self.peek() == "_":
            self.at += 1
            name += "_" + self.index()
        while self.peek() == "'":
            self.at += 1
            name += "'"
        return Term("const", name=_CONSTANTS[name]) if name in _CONSTANTS else Term("sym", name=name)

    def index(self) -> str:
        """x_1 and x_{1} have the same name."""
        if self.peek() != "{":
            return self.take().text
        self.at += 1
        inside = []
        while self.peek() != "}":
            inside.append(self.take().text)
        self.at += 1
        return "".join(inside)

    def argument(self) -> Term:
        r"""Of \frac and \binom: in braces, or the next sign alone: \frac12 has the arguments 1 and 2."""
        if self.peek() == "{":
            return self.fenced()
        if self.kind() == "number":
            token = self.given[self.at]
            if not token.text.isdigit():
                raise UnreadableError("a fraction without braces")
            if len(token.text) > 1:
                first, rest = token.text[0], token.text[1:]
                self.given[self.at : self.at + 1] = [
                    Token("number", first, token.blank, Fraction(int(first))),
                    Token("number", rest, False, Fraction(int(rest))),
                ]
            return number(self.take().value)
        if self.kind() == "letter":
            return self.symbol(self.take().text)
        return self.atom()

    def root(self) -> Term:
        degree = number(2)
        if self.peek() == "[":
            self.at += 1
            degree = self.sum()
            self.expect("]")
        if self.peek() in ("{", "("):
            return Term("root", (degree, self.fenced()))
        return Term("root", (degree, self.atom(alone=True)))

    def function(self, name: str) -> Term:
        name = _SAME_FUNCTION.get(name, name)
        base = exponent = None
        for _ in range(2):
            if self.peek() == "_" and base is None:
                self.at += 1
                base = self.argument() if self.peek() == "{" or self.kind() != "number" else number(self.take().value)
            elif self.peek() == "^" and exponent is None:
                self.at += 1
                exponent = self.exponent()
        # \sin^{-1} is the inverse function, as printed everywhere, and not 1/sin.
        if exponent is not None and exponent == negative(number(1)):
            if name not in _INVERSE:
                raise UnreadableError("what is to the power of -1?")
            name, exponent = _INVERSE[name], None
        inner = self.function_argument()
        if name == "lg":
            term = Term("log", (inner, number(10)))
        elif name == "log":
            term = Term("log", (inner,) if base is None else (inner, base))
        elif base is not None:
            raise UnreadableError("a function with an index")
        else:
            term = Term("fn", (inner,), name=name)
        return term if exponent is None else Term("pow", (term, exponent))

    def function_argument(self) -> Term:
        r"""In brackets, or the product that follows: \sin 2x \cos x is (\sin 2x)(\cos x)."""
        if self.peek() in ("(", "{"):
            return self.postfix(self.fenced())
        self.depth += 1
        if self.depth > DEEPEST:
            raise UnreadableError("too deep")
        sign = self.take().text if self.peek() == "-" else ""
        term = self.power()
        while self.begins_factor() and self.peek()[1:] not in FUNCTIONS:
            term = _times(term, self.power())
        self.depth -= 1
        return negative(term) if sign else term


def _times(left: Term, right: Term) -> Term:
    """One product of all factors, so that a long one is not deep."""
    return Term("mul", (*left.parts, right) if left.op == "mul" else (left, right))


def _signed(sign: str, term: Term) -> Term:
    if sign == "+":
        return term
    return negative(term) if sign == "-" else Term("pm" if sign == "\\pm" else "mp", (term,))


def _is_proper(fraction: Term) -> bool:
    """A fraction of whole numbers between 0 and 1: what a mixed number ends in."""
    above, below = fraction.parts
    whole = all(part.op == "num" and part.value.denominator == 1 for part in (above, below))
    return whole and 0 < above.value < below.value


_PERIOD = re.compile(r"(\d*)\.(\d*?)(\d)\3\3+(?:\.\.\.|\\ldots)")


def periodic(text: str) -> Term | None:
    """0.333... as 1/3: a digit that stands three times before the dots."""
    # The length comes first: from each digit the pattern runs on to the end, which of 30,000 ones takes a minute.
    if len(text) > 60 or (match := _PERIOD.fullmatch(text.replace(" ", ""))) is None:
        return None
    whole, fixed, digit = match.groups()
    base = Fraction(int((whole + fixed) or "0"), 10 ** len(fixed))
    return number(base + Fraction(int(digit), 9 * 10 ** len(fixed)))
