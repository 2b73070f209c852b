"""What stages have that let the policy answer each prompt several times: how many answers, and how they are drawn."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from posttrain.config.strategies.base import MOST_DRAWS, StrategySampling
from posttrain.config.values import Float, Int, Settings, is_changed, refuse


class AttemptSampling(StrategySampling):
    """How the policy's own answers are drawn."""

    # Yuan et al. 2023 (arXiv:2308.01825, section 3.3) draw at 0.7.
    temperature: Float = Field(default=0.7, ge=0)
    """0 takes the likeliest token: every draw is then the same."""


class AttemptSettings(Settings):
    """Several answers of the policy to each prompt: {samples: 8, sampling: {temperature: 0.7}}."""

    samples: Int = Field(default=8, ge=1, le=MOST_DRAWS)
    """Answers to each prompt."""
    sampling: AttemptSampling = AttemptSampling()
    """How they are drawn."""
    temperatures: tuple[Float, ...] = ()
    """A ladder: the answers to a prompt take these temperatures in turn, instead of the one of `sampling`."""

    @property
    def ladder(self) -> tuple[tuple[float, int], ...]:
        """(temperature, answers) of each step: ((0.7, 3), (1.0, 2)) of five answers and two temperatures."""
        steps = self.temperatures or (self.sampling.temperature,)
        whole, over = divmod(self.samples, len(steps))
        return tuple((step, whole + (place < over)) for place, step in enumerate(steps))

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        if self.temperatures and is_changed(self.sampling, "temperature"):
            raise refuse(
                "`temperatures` and `sampling.temperature` both say at which temperature the answers are drawn",
                path=("temperatures",),
                found=f"temperatures: {list(self.temperatures)}, temperature: {self.sampling.temperature:g}",
                remedy="keep one of the two",
            )
        if len(self.temperatures) > self.samples:
            raise refuse(
                "there are fewer answers than temperatures, so that some would never be drawn at",
                path=("temperatures",),
                found=f"samples: {self.samples}, temperatures: {list(self.temperatures)}",
                remedy=f"write `samples: {len(self.temperatures)}` or more",
            )
        for place, (temperature, count) in enumerate(self.ladder):
            if temperature < 0 or (temperature == 0 and count > 1):
                path = ("temperatures", place) if self.temperatures else ("samples",)
                raise refuse(
                    "temperature 0 draws the same answer each time" if temperature == 0 else "a temperature is below 0",
                    path=path,
                    found=f"samples: {self.samples}, temperature: {temperature:g}",
                    remedy="write `sampling: {temperature: 0.7}`, or `samples: 1`",
                )
        return self
