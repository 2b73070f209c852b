"""Numbers in prose: what value a text ends on."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(
    r"""
    (?P<sign> (?<![\w.)\]]) [-+\u2212] (?=[$€£]?\.?\d) )?    # a minus after a digit or a bracket subtracts
    [$€£]?
    (?P<digits> (?<![\d.]) (?: \d{1,3} (?:,\d{3})+ (?!\d) | \d+ ) (?:\.\d+)? | (?<![\d.]) \.\d+ )
    (?P<exponent> [eE][-+]?\d{1,3} (?!\w) )?
    """,
    re.VERBOSE,
)


def last_number(text: str) -> Decimal | None:
    """The value of the last number in a text, exactly; None if there is none.

    last_number("It is $1,234.50.") == Decimal("1234.5"); last_number("10 - 5 = 5") == 5; last_number("-5") == -5
    """
    # From the left: searched from the right, "1,234" would give 234.
    all_found = list(_NUMBER.finditer(text))
    return _value(all_found[-1]) if all_found else None


def whole_number(text: str) -> Decimal | None:
    """The value of a text that is one number and nothing else; None otherwise."""
    match = _NUMBER.fullmatch(text.strip())
    return _value(match) if match else None


def _value(match: re.Match[str]) -> Decimal:
    sign = "-" if match["sign"] in ("-", "\u2212") else ""
    return Decimal(sign + match["digits"].replace(",", "") + (match["exponent"] or ""))
