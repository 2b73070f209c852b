"""Training methods by name: what data each takes, what it counts, and its loss.

    algorithm("dpo", {"beta": 0.2}).loss(policy, reference_N, batch, denominator) -> LossOutput

The names are `sft` and the rows of `posttrain.losses.pairwise.PAIRWISE`; a row added there appears here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from posttrain.errors import UnknownKeyError, nearest
from posttrain.losses.pairwise import PAIRWISE, owners, pairwise_loss, resolve_parameters
from posttrain.losses.parameters import resolve
from posttrain.losses.sft import sft_loss
from posttrain.types import Batch, Comparison, Count, Demonstration, LossOutput, TokenLogprobs

Loss = Callable[[TokenLogprobs, Tensor | None, Batch, Count], LossOutput]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A method with its parameters settled.

    Algorithm("dpo", Comparison, unit="pairs", needs_reference=True, parameters={"beta": 0.1}, loss=...)
    """

    name: str
    kind: type[Demonstration] | type[Comparison]
    """What one row of its data says."""
    unit: Literal["tokens", "pairs"]
    """What the loss is a mean over: the field of `Count` that it divides by (`pairs` are `Count.trees`)."""
    needs_reference: bool
    parameters: Mapping[str, float]
    """Every parameter of the method, defaults included."""
    loss: Loss
    """(policy, reference_N or None, batch, global denominator) -> LossOutput"""


ALGORITHMS: tuple[str, ...] = ("sft", *PAIRWISE)


def algorithm(name: str, parameters: Mapping[str, float] | None = None) -> Algorithm:
    """The method called `name`, with `parameters` over its defaults.

    Raises:
        UnknownKeyError: no method of that name, or a parameter that it does not have.
        ConfigError: a parameter out of range.
    """
    given = parameters or {}
    if name == "sft":
        none = resolve(given, {}, {}, where="sft", owners=owners())
        return Algorithm("sft", Demonstration, "tokens", False, none, _sft)
    if name not in PAIRWISE:
        guess = nearest(name, ALGORITHMS)
        raise UnknownKeyError(
            f"there is no method {name!r}",
            found=name,
            expected=f"one of: {', '.join(ALGORITHMS)}",
            remedy=f"did you mean {guess}?" if guess else "choose one of these",
        )
    row = PAIRWISE[name]
    settled = resolve_parameters(row, given, where=name)
    return Algorithm(name, Comparison, "pairs", row.needs_reference, settled, partial(pairwise_loss, row, settled))


def _sft(policy: TokenLogprobs, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
    return sft_loss(policy, batch, denominator)
