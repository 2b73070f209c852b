"""Parameters of objectives: what they mean, where they may lie, and the errors for those that do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.errors import ConfigError, UnknownKeyError, unknown


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that an objective takes: Parameter("what it does", above=0.0) admits any finite value > 0."""

    meaning: str
    at_least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf

    def admits(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    @property
    def range(self) -> str:
        signs = {">=": self.at_least, ">": self.above, "<": self.below, "<=": self.at_most}
        limits = [f"{sign} {limit:g}" for sign, limit in signs.items() if math.isfinite(limit)]
        return " and ".join(limits) or "of any size"


def resolve(
    given: Mapping[str, float],
    defaults: Mapping[str, float],
    known: Mapping[str, Parameter],
    *,
    where: str,
    owners: Mapping[str, list[str]],
) -> dict[str, float]:
    """An objective's defaults with `given` over them, all checked.

    Args:
        defaults: the objective's parameters, all of them.
        known: what each parameter means and admits.
        where: names the objective in errors, e.g. "dpo".
        owners: for each parameter, the objectives that have it.

    Raises:
        UnknownKeyError: a key that the objective does not have; says which objectives do, and the nearest name.
        ConfigError: a value out of range.
    """
    for key, value in given.items():
        if key not in defaults:
            raise _unknown(key, defaults, where, owners.get(key, []))
        if not known[key].admits(value):
            raise ConfigError(
                f"{key} is out of range",
                where=where,
                found=f"{key}: {value!r}",
                expected=f"a number {known[key].range} ({known[key].meaning})",
                example=f"{key}: {defaults[key]:g}",
                remedy=f"set {key} within the range, or leave it out to take {defaults[key]:g}",
            )
    return {**defaults, **given}


def numbered(names: Sequence[str]) -> list[str]:
    """Names as keys, each once: numbered(["dpo", "sft", "dpo"]) == ["dpo", "sft", "dpo2"]. No method's name ends in a
    digit, so that a number makes none of them another's."""
    return [f"{name}{n}" if (n := names[: at + 1].count(name)) > 1 else name for at, name in enumerate(names)]


def _unknown(key: str, defaults: Mapping[str, float], where: str, owners: list[str]) -> UnknownKeyError:
    remove = f"remove `{key}`"
    return unknown(
        "parameter",
        key,
        # A key that another objective has is no misspelling, however much it looks like one of this objective's.
        () if owners else defaults,
        problem=f"`{key}` is not a parameter of this objective",
        where=where,
        found=key,
        expected=f"one of {', '.join(defaults)}" if defaults else "no parameters",
        otherwise=f"{remove}, or use an objective that has it: {', '.join(owners)}" if owners else remove,
    )
