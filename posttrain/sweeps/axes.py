"""What a sweep varies: `dpo.beta=[0.05,0.1,0.2]`, `seed=0..4`, `dpo.learning_rate=1e-5..1e-3 log`.

    axes, fixed = read_axes(["dpo.beta=[0.05,0.1]", "seed=0..4", "dpo.steps=20"])
    # (Choices("dpo.beta", (0.05, 0.1)), Choices("seed", (0, 1, 2, 3, 4))), ["dpo.steps=20"]

A list is choices, `a..b` a range with both ends, `log` behind it draws its logarithm uniformly. All else is a setting
of every run. A list that is itself one value is written as a choice: `sft.adapter.targets=[[q_proj,v_proj]]`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.arguments import LARGEST_SEED, described
from posttrain.config.yaml_text import parse_value
from posttrain.errors import ConfigError

SEED = "seed"
"""The axis of repeats: figures of runs that differ in it alone are averaged."""
EXAMPLE = "dpo.beta=[0.05,0.1,0.2] seed=0..4"
# Each point stands between digits: of `0.1...2` nobody knows whether it ends at 2 or at .2.
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(log)?\s*")
_NEARLY_RANGE = re.compile(r"^[^\[{'\"/]*\d\s*\.\.+\s*(?:[-+.\d]|$)")
_NEARLY_LIST = re.compile(rf"\s*\(?\s*({_NUMBER}(?:\s*,\s*{_NUMBER})+)\s*\)?\s*")
PLACES = ("name", "out")
"""Keys of the recipe that say where a run lies, which a sweep says itself."""
MOST_VALUES = 10_000
"""Of a range of whole numbers that a grid writes out."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Values of a key, each tried: Choices("dpo.beta", (0.05, 0.1, 0.2))."""

    key: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.key}={json.dumps(list(self.values), ensure_ascii=False)}"


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers of an interval, both ends included, to draw from: Range("dpo.learning_rate", 1e-5, 1e-3, log=True)."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False
    """Whether they are whole numbers; then the ends are too."""

    def __str__(self) -> str:
        return f"{self.key}={_written(self.low, self.whole)}..{_written(self.high, self.whole)}{' log' * self.log}"


Axis = Choices | Range


def read_axes(assignments: Sequence[str]) -> tuple[tuple[Axis, ...], list[str]]:
    """What is varied, and the settings of every run, from `KEY=VALUE` as the command line has it.

    Raises:
        ConfigError: no `=`, a range that is none, an empty list, a value twice, or a key twice.
    """
    axes: list[Axis] = []
    fixed: list[str] = []
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                "this neither varies nor sets anything",
                where=text,
                expected="KEY=[VALUES], KEY=LOW..HIGH or KEY=VALUE",
                example=EXAMPLE,
                remedy="write the key, `=` and its values, within quotes that keep the shell away",
            )
        axis = _axis(key.strip(), value, text)
        if axis is None:
            fixed.append(text)
        else:
            axes.append(axis)
    _require_each_once([axis.key for axis in axes] + [text.partition("=")[0].strip() for text in fixed])
    return tuple(axes), fixed


def axes_of(settings: Mapping[str, Any]) -> tuple[tuple[Axis, ...], list[str]]:
    """The same from Python: {"dpo.beta": [0.05, 0.1], "dpo.learning_rate": "1e-5..1e-3 log", "seed": range(5)}.

    Raises:
        ConfigError: as `read_axes`; a key that is no text, a value that no recipe can hold.
    """
    axes: list[Axis] = []
    fixed: list[str] = []
    for key, value in settings.items():
        if not isinstance(key, str) or not key.strip():
            raise ConfigError(
                "a key of a sweep is the text of a setting",
                found=described(key),
                expected="a key as an override has it",
                example='{"dpo.beta": [0.05, 0.1], "seed": range(5)}',
                remedy="write the stage's name, a dot and the key",
            )
        if isinstance(value, str):
            axis = _axis(key, value, f"{key}={value}")
            if axis is None:
                fixed.append(f"{key}={_assigned(key, value)}")
            else:
                axes.append(axis)
        elif isinstance(value, Iterable) and not isinstance(value, Mapping | bytes):
            axes.append(_choices(key, [_plain(key, item) for item in value], f"{key}={value!r}"))
        else:
            fixed.append(f"{key}={_assigned(key, _plain(key, value))}")
    _require_each_once([axis.key for axis in axes] + [text.partition("=")[0] for text in fixed])
    return tuple(axes), fixed


def assignment(key: str, value: Any) -> str:
    """A setting as an override: assignment("dpo.beta", 0.05) is "dpo.beta=0.05"; JSON is YAML too."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _axis(key: str, value: str, text: str) -> Axis | None:
    if (found := _RANGE.fullmatch(value)) is not None:
        return _range(key, found, text)
    if _NEARLY_RANGE.match(value):
        raise ConfigError(
            "this looks like a range, and is none",
            where=text,
            found=value,
            expected="LOW..HIGH, or LOW..HIGH log",
            example=f"{key}=1e-5..1e-3 log",
            remedy="write two numbers with `..` between them, or put a text into quotes",
        )
    if (found := _NEARLY_LIST.fullmatch(value)) is not None:
        raise ConfigError(
            "this looks like a list, and is a text",
            where=text,
            found=value,
            expected="values within square brackets",
            example=f"{key}=[{found[1]}]",
            remedy=f"write `'{key}=[{found[1]}]'`",
        )
    read = parse_value(value, text)
    return _choices(key, read, text) if isinstance(read, list) else None


def _range(key: str, found: re.Match[str], text: str) -> Range | Choices:
    whole = all(re.fullmatch(r"[-+]?\d+", bound) for bound in found.groups()[:2])
    low, high, log = float(found[1]), float(found[2]), found[3] is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        raise ConfigError(
            "the range holds no numbers",
            where=text,
            found=f"from {found[1]} to {found[2]}",
            expected="a lower end above 0 for `log`" if log and low <= 0 else "a lower end below the upper",
            remedy="write the smaller number first" if low > high else "give two different numbers above 0",
        )
    if key == SEED:
        # Seeds are repeats: all of them, in every design.
        if not whole or log:
            raise ConfigError(
                "seeds are whole numbers",
                where=text,
                expected="a list, or a range of whole numbers",
                example="seed=0..4",
                remedy="write `seed=0..4`",
            )
        return _choices(key, _whole_numbers(int(low), int(high), text), text)
    return Range(key, low, high, log, whole)


def _whole_numbers(low: int, high: int, text: str) -> list[int]:
    if high - low >= MOST_VALUES:
        raise ConfigError(
            "the range has too many numbers to try each",
            where=text,
            found=f"{high - low + 1:,}",
            expected=f"at most {MOST_VALUES:,}",
            remedy="give a shorter range, or draw from it: `--design random --trials N`",
        )
    return list(range(low, high + 1))


def values_of(axis: Range) -> tuple[int, ...]:
    """Every whole number of a range, for a design that tries all.

    Raises:
        ConfigError: its numbers are not whole, so that nobody can try each.
    """
    if not axis.whole or axis.log:
        raise ConfigError(
            "a grid cannot try every number of this range",
            where=str(axis),
            expected="a list of values, or a range of whole numbers without `log`",
            example=f"{axis.key}=[{_written(axis.low, axis.whole)},{_written(axis.high, axis.whole)}]",
            remedy="list the values, or draw from the range: `--design random --trials N`",
        )
    return tuple(_whole_numbers(int(axis.low), int(axis.high), str(axis)))


def _choices(key: str, values: Sequence[Any], text: str) -> Choices:
    if key in PLACES:
        raise ConfigError(
            f"`{key}` trains nothing differently: its runs would be the same",
            where=text,
            remedy="take it out; each run gets a folder named by its settings (`--name` and `--out` say where)",
        )
    if not values:
        raise ConfigError(
            "the list has no value to try", where=text, example=f"{key}=[0.05,0.1]", remedy="write the values into it"
        )
    written = [json.dumps(value, sort_keys=True) for value in values]
    if twice := next((value for value in written if written.count(value) > 1), None):
        raise ConfigError(
            "a value stands twice in the list, and its runs would be the same run",
            where=text,
            found=twice,
            remedy="write it once; repeats differ in their seed: `seed=0..4`",
        )
    if key == SEED and (wrong := next((value for value in values if not _is_seed(value)), None)) is not None:
        raise ConfigError(
            "a seed is a whole number from 0 up",
            where=text,
            found=described(wrong),
            expected=f"whole numbers below {LARGEST_SEED:,}",
            remedy="write `seed=[0,1,2]` or `seed=0..2`",
        )
    return Choices(key, tuple(values))


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_SEED


def _require_each_once(keys: Sequence[str]) -> None:
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(
            f"`{twice}` is given twice", found=twice, remedy="write it once, with all of its values in one list"
        )


def _plain(key: str, value: Any) -> Any:
    """A value that a recipe can hold; numpy's numbers become Python's."""
    if hasattr(value, "item") and not isinstance(value, type):
        value = value.item()
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ConfigError(
            f"a value of `{key}` is none that a recipe can hold",
            found=described(value),
            expected="numbers, texts, true and false, None, and lists and groups of these",
            remedy="write it as the recipe would",
        ) from None
    return value


def _assigned(key: str, value: Any) -> str:
    return value if isinstance(value, str) else assignment(key, value).partition("=")[2]


def _written(number: float, whole: bool) -> str:
    return str(int(number)) if whole else f"{number:g}"
