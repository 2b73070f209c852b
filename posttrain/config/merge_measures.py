"""What a merge is measured by, beside the suites: weights that are searched, and the loss between the models.

search: {suite: sums, method: greedy, budget: 12}
barrier: {data: heldout.jsonl, points: 11}
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.values import Float, Int, Settings, listed, refuse


class WeightSearch(Settings):
    """Numbers of a merge that are chosen on one half of a suite's prompts and reported on the other."""

    over: Literal["weights", "density", "t"] = "weights"
    """What is searched: the weight or the density of each model, or the `t` of the merge."""
    suite: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(min_length=1)
    """A suite of the recipe's `evaluate`, by its name; of several, the mean counts. Their kind is match, exact or
    number: every answer has a score of its own."""
    method: Literal["greedy", "coordinate"] = Field(
        default_factory=lambda own: "greedy" if own.get("over", "weights") == "weights" else "coordinate"
    )
    """`greedy`: the models in the order of their own scores are added one by one, and stay where the suite does not
    lose (the greedy soup of Wortsman et al. 2022, arXiv:2203.05482); `coordinate`: one number after the other takes its
    best value, until none changes."""
    budget: Int = Field(default=20, ge=2)
    """Most merges that are measured; the numbers as written are the first."""
    values: tuple[Float, ...] = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=2)
    """Of `coordinate`: the values that a number may take."""
    chosen_on: Float = Field(default=0.5, gt=0, lt=1)
    """Share of each suite's prompts on which numbers are chosen; on the others they are reported."""

    @model_validator(mode="after")
    def _greedy_is_of_weights(self) -> Self:
        if self.method == "greedy" and self.over != "weights":
            raise refuse(
                f"a greedy soup adds models, and `{self.over}` adds none",
                path=("method",),
                remedy="write `method: coordinate`",
            )
        return self


class BarrierSettings(Settings):
    """The loss on the straight lines between the merged models (Frankle et al. 2020, arXiv:1912.05671); a file alone
    may stand for the group."""

    data: str
    """Rows to measure on: a file with answers, in any format that training reads, or `package://NAME`."""
    points: Int = Field(default=11, ge=3)
    """Models on each line, its ends with them."""
    limit: Int = Field(default=64, ge=1)
    """Use only the first so many rows."""
    lines: Literal["models", "base", "all"] = "models"
    """Between each two models, from the base to each model, or both."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"data": value} if isinstance(value, str) else value

    @field_validator("points")
    @classmethod
    def _odd(cls, points: int) -> int:
        # Half and half is where most merges lie: it has to be one of the points.
        if points % 2 == 0:
            raise refuse("the middle of the line would be no point", found=f"{points}", remedy=f"write {points + 1}")
        return points
