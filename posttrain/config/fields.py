"""Fields of records that are made from tables."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from posttrain.losses.parameters import Parameter


def parameter_field(known: Parameter, default: float) -> Any:
    """A number of an objective, with the limits and the meaning that its table gives it."""
    return Field(default=default, description=known.meaning[:1].upper() + known.meaning[1:] + ".", **limits(known))


def limits(known: Parameter) -> dict[str, Any]:
    """A parameter's range in the words of `Field`: limits(Parameter("beta", above=0.0)) == {"gt": 0.0}."""
    bounds = {"ge": known.at_least, "gt": known.above, "lt": known.below, "le": known.at_most}
    return {key: bound for key, bound in bounds.items() if math.isfinite(bound)}
