"""Whether two formulas are the same: exactly where they are rational, else by their values at two precisions.

Rational arithmetic is exact: 1/2^61 is not 1/2^60, however small both are. What is irrational (roots, logarithms,
angles) is computed twice, with at least 256 and 768 bits: a difference of 0 shrinks with the precision, one that is
not stays. Unknowns are replaced by numbers, and functions that agree at all of them are the same (Schwartz 1980).
Everything is bounded: numbers beyond `MOST_BITS` are refused, not computed.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from posttrain.rewards.formula import Term, difference
from posttrain.rewards.notation import UnreadableError

MOST_BITS = 1 << 17
"""Of a numerator or denominator: 2006! has 19,000."""
MOST_WORK = 1 << 21
"""Bits that all numbers of one formula may have together."""
MOST_FACTORIAL = 10_000
LARGEST_EXPONENT = 1 << 20
"""Powers of two between which floating numbers stay."""
ROUNDS = 4
"""Sets of numbers that the unknowns are replaced by."""
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61)

_SIGNS = ((1, -1, 1, -1), (1, -1, -1, 1), (1, 1, -1, -1), (1, -1, 1, 1), (1, 1, -1, 1), (1, 1, 1, -1))

Environment = Mapping[str, Fraction]


class InexactError(ArithmeticError):
    """The value is no rational number, or not seen to be one."""


class TooLargeError(ArithmeticError):
    """The value would cost too much."""


def points(names: frozenset[str], round_: int) -> dict[str, Fraction]:
    """Small fractions of either sign, other ones for each name and round, the same in every process."""
    assignment = {}
    for name in names:
        digest = hashlib.blake2b(f"{name} {round_}".encode(), digest_size=8).digest()
        above, below = _PRIMES[digest[0] % len(_PRIMES)], _PRIMES[digest[1] % len(_PRIMES)]
        if above == below:
            above, below = 67, 71
        # round 0 is positive, since some functions live there alone; of the others at least one is negative
        pattern = _SIGNS[hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % len(_SIGNS)]
        assignment[name] = Fraction(pattern[round_] * above, below)
    return assignment


class Exact:
    """Rational arithmetic.

    Exact().of(formula(tokens("1/2 + 1/3"))) == Fraction(5, 6)
    """

    def __init__(self, signs: int = 1):
        self.signs, self.work = signs, 0

    def of(self, term: Term, env: Environment) -> Fraction:
        """The value.

        Raises:
            InexactError, TooLargeError, ZeroDivisionError
        """
        result = self._of(term, env)
        size = result.numerator.bit_length() + result.denominator.bit_length()
        self.work += size
        if size > 2 * MOST_BITS or self.work > MOST_WORK:
            raise TooLargeError
        return result

    def _of(self, term: Term, env: Environment) -> Fraction:
        op = term.op
        if op == "num":
            return term.value
        if op == "sym":
            return env[term.name]
        if op in ("const", "fn", "degree"):
            return self._special(term, env)
        values = [self.of(part, env) for part in term.parts]
        first = values[0]
        match op:
            case "add":
                return sum(values[1:], first)
            case "mul":
                return math.prod(values[1:], start=first)
            case "div":
                return first / values[1]
            case "neg":
                return -first
            case "pm":
                return self.signs * first
            case "mp":
                return -self.signs * first
            case "abs":
                return abs(first)
            case "floor":
                return Fraction(math.floor(first))
            case "ceil":
                return Fraction(math.ceil(first))
            case "fact":
                return Fraction(math.factorial(_small(first)))
            case "binom":
                return _binomial(first, values[1])
            case "pow":
                return _power(first, values[1])
            case "root":
                return _power(values[1], 1 / first)
        raise InexactError

    def _special(self, term: Term, env: Environment) -> Fraction:
        if term.op == "fn" and self.of(term.parts[0], env) == 0:  # the one argument at which they are rational
            if term.name in ("sin", "tan", "arcsin", "arctan", "sinh", "tanh"):
                return Fraction(0)
            if term.name in ("cos", "exp", "cosh", "sec"):
                return Fraction(1)
        raise InexactError


def _small(value: Fraction) -> int:
    """Of which a factorial can be taken."""
    if value.denominator != 1 or value < 0:
        raise InexactError
    if value > MOST_FACTORIAL:
        raise TooLargeError
    return int(value)


def _binomial(above: Fraction, below: Fraction) -> Fraction:
    if above.denominator != 1 or below.denominator != 1 or above < 0:
        raise InexactError
    if above > MOST_FACTORIAL:
        raise TooLargeError
    return Fraction(math.comb(int(above), int(below))) if below >= 0 else Fraction(0)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        base, exponent = _root(base, exponent.denominator), Fraction(exponent.numerator)
    power = int(exponent)
    if base in (0, 1, -1):
        if base == 0 and power < 0:
            raise ZeroDivisionError
        return base ** (power % 2 if base == -1 else min(power, 1) if power >= 0 else 1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(power) > MOST_BITS:
        raise TooLargeError
    return base**power


def _root(value: Fraction, degree: int) -> Fraction:
    """The real root where it is rational: of 4/9 it is 2/3."""
    if value < 0 or not 1 < degree <= 64:
        raise InexactError  # the principal root of -8 is not -2
    roots = [_whole_root(part, degree) for part in (value.numerator, value.denominator)]
    return Fraction(*roots)


def _whole_root(value: int, degree: int) -> int:
    root = _root_below(value, degree)
    if root**degree != value:
        raise InexactError
    return root


def _root_below(value: int, degree: int) -> int:
    """The largest whole number whose power is no more than the value.

    Newton's steps from above, begun at the root of the leading half of the bits: the cube root of 10000! takes a
    hundredth of a second, and a minute where an interval is halved for each of its 40,000 bits.
    """
    if value < 2:
        return value
    if degree == 2:
        return math.isqrt(value)
    bits = value.bit_length() // degree
    half = bits // 2
    root = (_root_below(value >> (half * degree), degree) + 1) << half if half else 1 << (bits + 1)
    while (lower := ((degree - 1) * root + value // root ** (degree - 1)) // degree) < root:
        root = lower
    return root


# ---------------------------------------------------------------- floating numbers of many digits

_LOCK = threading.Lock()
"""The precision belongs to the context, and rewards are called from several threads."""
_CONTEXT = mpmath.MPContext()


class Floating:
    """Complex arithmetic of many digits; the caller holds the lock.

    Args:
        natural: log without a base is the natural one; False: to base 10.
    """

    def __init__(self, *, natural: bool = True, signs: int = 1):
        self.natural, self.signs = natural, signs

    def of(self, term: Term, env: Environment) -> Any:
        exact = Exact(self.signs)
        try:
            value = exact.of(term, env)
        except InexactError:
            result = self._of(term, env)
        else:
            result = _CONTEXT.mpf(value.numerator) / value.denominator
        if not _CONTEXT.isfinite(result):
            raise ZeroDivisionError
        if abs(_CONTEXT.mag(result)) > LARGEST_EXPONENT and result != 0:
            raise TooLargeError
        return result

    def _of(self, term: Term, env: Environment) -> Any:
        if term.op == "const":
            return self._constant(term.name)
        values = [self.of(part, env) for part in term.parts]
        first = values[0]
        match term.op:
            case "add":
                return _CONTEXT.fsum(values)
            case "mul":
                return math.prod(values[1:], start=first)
            case "div":
                return first / values[1]
            case "neg":
                return -first
            case "pm" | "mp":
                return first * (self.signs if term.op == "pm" else -self.signs)
            case "abs":
                return abs(first)
            case "pow":
                return self._power(first, values[1])
            case "root":
                return self._root(first, values[1])
            case "degree":
                return first * _CONTEXT.pi / 180
            case "log":
                return self._log(*values)
            case "fn":
                return self._function(term.name, first)
        raise UnreadableError(term.op)  # the floor and the factorial of what is no rational number

    def _constant(self, name: str) -> Any:
        if name == "inf":
            raise UnreadableError("infinity")
        return {"pi": +_CONTEXT.pi, "e": +_CONTEXT.e, "i": _CONTEXT.j}[name]

    def _power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if _CONTEXT.re(exponent) <= 0:
                raise ZeroDivisionError
            return _CONTEXT.mpf(0)
        if abs(_CONTEXT.log(base) * exponent) > LARGEST_EXPONENT:
            raise TooLargeError
        return _CONTEXT.power(base, exponent)

    def _root(self, degree: Any, value: Any) -> Any:
        if _CONTEXT.im(degree) != 0 or degree == 0:
            raise UnreadableError("a root of no degree")
        if _CONTEXT.im(value) == 0 and value < 0 and degree == int(degree) and int(degree) % 2:
            return -self._power(-value, 1 / degree)  # the real cube root of -8, as \\sqrt[3]{-8} is read at school
        return self._power(value, 1 / degree)

    def _log(self, value: Any, base: Any = None) -> Any:
        if value == 0 or base in (0, 1):
            raise ZeroDivisionError
        if base is None:
            return _CONTEXT.log(value) if self.natural else _CONTEXT.log(value) / _CONTEXT.log(10)
        return _CONTEXT.log(value) / _CONTEXT.log(base)

    def _function(self, name: str, value: Any) -> Any:
        if name == "ln":
            if value == 0:
                raise ZeroDivisionError
            return _CONTEXT.log(value)
        if abs(value) > LARGEST_EXPONENT:
            raise TooLargeError
        functions: dict[str, Callable[[Any], Any]] = {
            "sin": _CONTEXT.sin, "cos": _CONTEXT.cos, "tan": _CONTEXT.tan, "cot": _CONTEXT.cot, "sec": _CONTEXT.sec,
            "csc": _CONTEXT.csc, "arcsin": _CONTEXT.asin, "arccos": _CONTEXT.acos, "arctan": _CONTEXT.atan,
            "arccot": _CONTEXT.acot, "sinh": _CONTEXT.sinh, "cosh": _CONTEXT.cosh, "tanh": _CONTEXT.tanh,
            "exp": _CONTEXT.exp,
        }  # fmt: skip
        return functions[name](value)


# ---------------------------------------------------------------- questions


def is_zero(term: Term, *, natural: bool = True, signs: int = 1) -> bool:
    """Whether a formula is 0 for all values of its unknowns.

    Raises:
        UnreadableError: it holds what is not computed here, or too large numbers; also where it has no value.
    """
    names = term.names()
    rounds, agreed = (ROUNDS if names else 1), 0
    for round_ in range(rounds):
        env = points(names, round_)
        try:
            if not _vanishes(lambda made, env=env: made.of(term, env), natural, signs):  # type: ignore[misc]
                return False
            agreed += 1
        except ZeroDivisionError:  # a pole: another number will do
            continue
        except (TooLargeError, OverflowError):
            raise UnreadableError("too large") from None
    if not agreed:
        raise UnreadableError("it has no value")
    return True


def _vanishes(value: Callable[[Any], Any], natural: bool = True, signs: int = 1) -> bool:
    exact = Exact(signs)
    try:
        return bool(value(exact) == 0)
    except InexactError:
        pass
    with _LOCK:
        made = Floating(natural=natural, signs=signs)
        bits = 256 + 2 * min(exact.work, 2_000)
        before = _CONTEXT.prec
        try:
            for _ in range(3):
                _CONTEXT.prec = bits
                coarse = abs(value(made))
                _CONTEXT.prec = bits = 3 * bits
                fine = abs(value(made))
                if fine == 0:
                    return True
                if coarse != 0:
                    # a true difference is the same at both precisions; rounding shrinks with the precision
                    return bool(fine <= coarse * _CONTEXT.mpf(2) ** (-bits // 6))
            return False
        finally:
            _CONTEXT.prec = before


def equal(left: Term, right: Term) -> bool:
    """Whether two formulas are the same.

    Raises:
        UnreadableError: that cannot be told.
    """
    if left == right:
        return True
    both = difference(left, right)
    signs = (1, -1) if both.has("pm", "mp") else (1,)
    readings = (True, False) if both.has("log") else (True,)  # log is the natural one to some, to base 10 to others
    return any(all(is_zero(both, natural=natural, signs=sign) for sign in signs) for natural in readings)


def proportional(left: Term, right: Term) -> int:
    """Whether left is a constant multiple of right: 1 or -1 by the sign of the constant, 0 where it is none.

    x + y - 3 and 2x + 2y - 6 give 1: the same equation, and the same inequality.

    Raises:
        UnreadableError: that cannot be told.
    """
    names = left.names() | right.names()
    if not names or left.names() != right.names():
        return 0
    values = []
    for round_ in range(ROUNDS):
        env = points(names, round_)
        try:
            values.append((Exact().of(left, env), Exact().of(right, env)))
        except ZeroDivisionError:
            continue
        except (TooLargeError, InexactError, OverflowError):
            raise UnreadableError("not rational") from None
    (a, b) = next(((a, b) for a, b in values if a and b), (Fraction(0), Fraction(0)))
    if not b or len(values) < 2 or any(x * b != y * a for x, y in values):
        return 0
    return 1 if a / b > 0 else -1


def sign_of(term: Term) -> int:
    """-1, 0 or 1 of a real number.

    Raises:
        UnreadableError: it is none.
    """
    if term.names() or term.has("pm", "mp"):
        raise UnreadableError("no number")
    if is_zero(term):
        return 0
    try:
        return 1 if Exact().of(term, {}) > 0 else -1
    except InexactError:
        pass
    with _LOCK:
        before = _CONTEXT.prec
        try:
            _CONTEXT.prec = 512
            value = Floating().of(term, {})
            if abs(_CONTEXT.im(value)) > abs(value) * _CONTEXT.mpf(2) ** -256:
                raise UnreadableError("no real number")
            return 1 if _CONTEXT.re(value) > 0 else -1
        finally:
            _CONTEXT.prec = before


def rational(term: Term) -> Fraction | None:
    """The value of a formula that is a rational number; None where it is not seen to be one."""
    if term.names() or term.has("pm", "mp"):
        return None
    try:
        return Exact().of(term, {})
    except (InexactError, TooLargeError, ZeroDivisionError, OverflowError):
        return None
