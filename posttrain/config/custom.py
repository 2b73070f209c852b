"""Stages whose objective is a function of the user's own: `method: custom_pairwise`, `method: custom_tokens`.

    Objective(hinge_squared, parameters={"beta": 0.2}, learning_rate=1e-5)      # from Python, by what it is declared as

Two methods and not one: what rows a stage takes, and how they are encoded, is known before any of its code has run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.base import RowStage, require_reference_fits
from posttrain.config.functions import Function, address_of
from posttrain.config.settings import Audit, PairEncoding, ReferenceSettings, SFTEncoding
from posttrain.errors import ConfigError
from posttrain.losses.custom import ObjectiveFunction


class CustomStage(RowStage):
    """A stage whose objective is a function of yours (docs/extending.md)."""

    objective: Function
    """`file.py:function`, relative to the recipe, or `module:function`; declared with `@pt.objective`."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Given to the function by name."""
    modules: str | None = None
    """Folder in which the function's module is looked for first; the recipe's own if absent."""
    reference: ReferenceSettings = ReferenceSettings()
    """The policy's start, for an objective that is declared with `reference=True`."""

    @model_validator(mode="after")
    def _reference_fits(self) -> Self:
        require_reference_fits(self.adapter, self.reference)
        return self

    @property
    def reference_kind(self) -> str | None:
        return self.reference.kind

    @property
    def address(self) -> str:
        return address_of(self.objective)

    @property
    def objective_names(self) -> tuple[str, ...]:
        return (self.address,)


class CustomPairwise(CustomStage):
    """Prefer the chosen answers to the rejected ones, by a function of yours."""

    method: Literal["custom_pairwise"] = "custom_pairwise"
    """A function of the log-probs of chosen and rejected answers."""
    encoding: PairEncoding = PairEncoding()
    """How messages become ids."""
    audit: Audit = Audit()
    """What is asked of the rows before they are encoded."""


class CustomTokens(CustomStage):
    """Train on the answers of demonstrations, by a function of yours."""

    method: Literal["custom_tokens"] = "custom_tokens"
    """A function of the log-probs of the trained tokens."""
    encoding: SFTEncoding = SFTEncoding()
    """How messages become ids, and which of them train."""


OF_KIND: Mapping[str, type[CustomStage]] = {"pairwise": CustomPairwise, "tokens": CustomTokens}
"""The stage of each kind that a function is declared as."""


def Objective(function: Callable[..., Any], **options: Any) -> CustomStage:
    """The stage of a function that is declared with `@pt.objective`.

    train(Objective(hinge_squared, parameters={"beta": 0.2}, steps=100), model, pairs, out="runs/mine")

    Raises:
        ConfigError: the function is not declared, or a value is not admitted.
        UnknownKeyError: an option that the stage does not have.
    """
    return OF_KIND[require_declared(function, "pt.Objective").kind](objective=function, **options)


def require_declared(function: Any, where: str, address: str | None = None) -> ObjectiveFunction:
    """Raises ConfigError where nothing says what the function is an objective of."""
    if isinstance(function, ObjectiveFunction):
        return function
    known = callable(function) or isinstance(function, str)
    named = address or (address_of(function) if known else repr(function))
    raise ConfigError(
        f"nothing says what `{named}` is an objective of",
        where=where,
        found=f"a {type(function).__name__} without a declaration",
        expected="a function with the decorator `pt.objective`",
        example='@pt.objective(kind="pairwise", reference=True)',
        remedy="declare it; docs/extending.md says what each kind is given",
    )
