"""Units: 5 km and 5000 m are the same length, 5 m and 5 cm are not, and apples are no pears.

    unit_of(["km", "/", "h"])      # Unit((("length", 1), ("time", -1)), Fraction(5, 18))
    unit_of(["red", "apples"])     # Unit((("red apple", 1),), 1): what no table knows is its own measure

Factors are exact (the inch is 0.0254 m by definition), so that conversions compare exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """Unit((("length", 2),), Fraction(1, 10000)): the square centimetre."""

    measures: tuple[tuple[str, int], ...]
    factor: Fraction = Fraction(1)

    @property
    def is_percent(self) -> bool:
        return self.measures == (("percent", 1),)

    @property
    def is_degree(self) -> bool:
        return self.measures == (("angle", 1),)


_INCH = Fraction(254, 10_000)
_POUND = Fraction(45_359_237, 100_000)
_KNOWN: dict[str, tuple[str, Fraction | int, str]] = {
    "metre": ("length", 1, "m meter metres meters"),
    "km": ("length", 1000, "kilometer kilometre kilometers kilometres kms"),
    "cm": ("length", Fraction(1, 100), "centimeter centimetre centimeters centimetres cms"),
    "mm": ("length", Fraction(1, 1000), "millimeter millimetre millimeters millimetres"),
    "dm": ("length", Fraction(1, 10), "decimeter decimetre decimeters decimetres"),
    "nm": ("length", Fraction(1, 10**9), "nanometer nanometre nanometers nanometres"),
    "inch": ("length", _INCH, "in inches ins"),
    "ft": ("length", 12 * _INCH, "foot feet"),
    "yd": ("length", 36 * _INCH, "yard yards yds"),
    "mile": ("length", 63_360 * _INCH, "mi miles"),
    "gram": ("mass", 1, "g grams"),
    "kg": ("mass", 1000, "kilogram kilograms kgs"),
    "mg": ("mass", Fraction(1, 1000), "milligram milligrams"),
    "tonne": ("mass", 10**6, "tonnes"),
    "lb": ("mass", _POUND, "lbs"),
    "oz": ("mass", _POUND / 16, "ounce ounces"),
    "second": ("time", 1, "s sec secs seconds"),
    "ms": ("time", Fraction(1, 1000), "millisecond milliseconds"),
    "minute": ("time", 60, "min mins minutes"),
    "hour": ("time", 3600, "h hr hrs hours"),
    "day": ("time", 86_400, "days"),
    "week": ("time", 604_800, "weeks wk wks"),
    "dollar": ("dollar", 1, "$ dollars usd"),
    "cent": ("dollar", Fraction(1, 100), "cents ¢"),
    "euro": ("euro", 1, "€ euros eur"),
    "£": ("£", 1, "gbp"),
    "percent": ("percent", 1, "% pct percents percentage"),
    "degree": ("angle", 1, "\\degree degrees deg"),
    "celsius": ("celsius", 1, "°c"),
    "newton": ("newton", 1, "n newtons"),
    "joule": ("joule", 1, "j joules"),
    "kj": ("joule", 1000, "kilojoule kilojoules"),
    "watt": ("watt", 1, "w watts"),
    "kw": ("watt", 1000, "kilowatt kilowatts"),
    "volt": ("volt", 1, "v volts"),
    "ampere": ("ampere", 1, "a amp amps amperes"),
    "kelvin": ("kelvin", 1, "k"),
    "mole": ("mole", 1, "mol mols moles"),
    "hz": ("hertz", 1, "hertz"),
    "rad": ("radian", 1, "radian radians rads"),
    "unit": ("unit", 1, "units"),
}
_VOLUMES = {
    "litre": (Fraction(1, 1000), "l liter liters litres"),
    "ml": (Fraction(1, 10**6), "milliliter millilitre milliliters millilitres"),
}
# By every spelling: a look-up instead of rules for plurals that English breaks.
_TABLE: dict[str, Unit] = {}
for _name, (_measure, _factor, _others) in _KNOWN.items():
    for _word in (_name, *_others.split()):
        _TABLE[_word] = Unit(((_measure, 1),), Fraction(_factor))
for _name, (_factor, _others) in _VOLUMES.items():
    for _word in (_name, *_others.split()):
        _TABLE[_word] = Unit((("length", 3),), Fraction(_factor))
_TABLE["mph"] = Unit((("length", 1), ("time", -1)), 63_360 * _INCH / 3600)
_TABLE["kph"] = _TABLE["kmh"] = Unit((("length", 1), ("time", -1)), Fraction(1000, 3600))

SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
ONE_LETTER = frozenset("msghlnjwvakLNJWVAK")
"""Letters that are units behind a number and a blank, and unknowns elsewhere."""
_PLURALS = {"feet": "foot", "children": "child", "people": "person", "men": "man", "women": "woman", "mice": "mouse"}


def is_known(word: str) -> bool:
    """Whether the table has the unit; of single letters, which are unknowns as well, signs such as % alone."""
    return word.lower() in _TABLE and (len(word) > 1 or word in ("%", "$", "€", "£", "¢"))


def unit_of(words: Sequence[str]) -> tuple[Unit | None, int]:
    """(the unit, the scale before it) of the words behind a number: ["million", "dollars"] gives the dollar and 10^6.

    "/" and "per" divide, "^", "2" raise what stands before them; "square" what follows.
    """
    scale = 1
    words = list(words)
    while words and words[0].lower() in SCALES:
        scale *= SCALES[words.pop(0).lower()]
    measures: Counter[str] = Counter()
    factor = Fraction(1)
    sign, raised, own = 1, 1, []
    for place, word in enumerate(words):
        low = word.lower()
        if low in ("/", "per"):
            # For all that follows: m / s / s is m s^-2, as it is written in answers.
            sign = -1
        elif low in ("*", "of", "^", "a", "an", "the") and (low != "a" or len(words) > 1):
            continue
        elif low in _POWERS and (low[-1] != "d"):
            raised = _POWERS[low]
        elif low.isdigit() or low in ("squared", "cubed"):
            continue  # taken with the word before it
        else:
            power = sign * raised * _power_behind(words, place)
            # In any case but for single letters, whose case is their meaning: M is no metre, S no second.
            known = _TABLE.get(low if len(word) > 1 or word in ONE_LETTER else word)
            raised = 1
            if known is None:
                own.append((_singular(low), power))
                continue
            for measure, exponent in known.measures:
                measures[measure] += exponent * power
            factor *= known.factor**power
    for name, power in _joined(own):
        measures[name] += power
    kept = tuple(sorted((name, power) for name, power in measures.items() if power))
    return (Unit(kept, factor) if kept else None), scale


def _joined(own: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Words that no table knows, one name for all that multiply: red apples."""
    factors = []
    for sign in (1, -1):
        names = [name for name, power in own if power == sign]
        # One name together: "red apples" is one measure, not red times apple.
        if names:
            factors.append((" ".join(names), sign))
    return factors + [(name, power) for name, power in own if abs(power) != 1]


def _power_behind(words: Sequence[str], place: int) -> int:
    behind = [word.lower() for word in words[place + 1 : place + 3]]
    if behind[:1] and behind[0] in ("squared", "cubed"):
        return _POWERS[behind[0]]
    if len(behind) == 2 and behind[0] == "^" and behind[1].isdigit() and len(behind[1]) == 1:
        return int(behind[1])
    return int(behind[0]) if behind[:1] and behind[0] in ("2", "3") else 1


def _singular(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word
