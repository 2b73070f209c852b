"""Fields of records that are made from tables."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from posttrain.losses.parameters import Parameter


def parameter_field(known: Parameter, default: float) -> Any:
    """A number of an objective, with the limits and the meaning that its table gives it."""
    limits: dict[str, Any] = {"ge": known.at_least, "gt": known.above, "lt": known.below, "le": known.at_most}
    finite = {key: limit for key, limit in limits.items() if math.isfinite(limit)}
    return Field(default=default, description=known.meaning[:1].upper() + known.meaning[1:] + ".", **finite)
