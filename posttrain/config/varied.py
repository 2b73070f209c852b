"""Numbers of a merge that differ between layers and tensors, as mergekit's files write them.

weight: 0.5                                                       one for every tensor
weight: [0, 0.5, 1]                                               from the first layer to the last
weight: [{filter: mlp, value: [0, 1]}, {value: 0.5}]              by the tensor's name, the first that fits
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from posttrain.config.values import Float, Settings


def _form(value: Any) -> str:
    """By what is written, so that a mistake is reported once and not for every form."""
    return "layers" if isinstance(value, (list, tuple)) else "number"


class Filtered(Settings):
    """A value for some of the tensors: {filter: self_attn, value: [0, 0.5, 1]}."""

    filter: str | None = None
    """A part of the tensor's name; `*` or null: every tensor."""
    value: Annotated[
        Annotated[Float, Tag("number")] | Annotated[tuple[Float, ...], Field(min_length=1), Tag("layers")],
        Discriminator(_form),
    ]
    """A number, or a list of numbers from the first layer to the last."""

    def fits(self, tensor: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in tensor


def _varied_form(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "tensors" if any(isinstance(item, (Mapping, Filtered)) for item in value) else "layers"
    return "number"


Varied = float | tuple[float, ...] | tuple[Filtered, ...]
"""A number, one that changes over the layers, or one that differs between tensors."""
VariedField = Annotated[
    Annotated[Float, Tag("number")]
    | Annotated[tuple[Float, ...], Field(min_length=1), Tag("layers")]
    | Annotated[tuple[Filtered, ...], Field(min_length=1), Tag("tensors")],
    Discriminator(_varied_form),
    # mergekit's form for one condition alone.
    BeforeValidator(lambda value: [value] if isinstance(value, (Mapping, Filtered)) else value),
]


def numbers_of(value: Varied) -> Iterator[float]:
    """Every number in it: list(numbers_of((0.0, 0.5))) == [0.0, 0.5]"""
    if isinstance(value, (int, float)):
        yield value
        return
    for item in value:
        yield from numbers_of(item.value) if isinstance(item, Filtered) else (item,)


def filters_of(value: object) -> tuple[Filtered, ...]:
    """The filters of a value that differs between tensors; none of any other value."""
    return tuple(item for item in value if isinstance(item, Filtered)) if isinstance(value, tuple) else ()
