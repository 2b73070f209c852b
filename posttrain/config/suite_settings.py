"""What all suites have, and how tokens are drawn; the kinds themselves are `suites.py` and `budget.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.values import Float, Int, Settings, as_text, require_different_draws


class Sampling(Settings):
    """How tokens are drawn. Every field is explicit: a model folder's generation_config.json changes none of them."""

    # Greedy, whatever the model folder says: two evaluations of one model are then the same.
    temperature: Float = Field(default=0.0, ge=0)
    """0 takes the likeliest token."""
    top_k: Int | None = Field(default=None, ge=1)
    """Only the k likeliest tokens; null: all."""
    top_p: Float = Field(default=1.0, gt=0, le=1)
    """The likeliest tokens that hold this share together; 1: all."""
    min_p: Float = Field(default=0.0, ge=0, le=1)
    """Only tokens at least this share as likely as the likeliest; 0: all."""
    repetition_penalty: Float = Field(default=1.0, gt=0)
    """Divides the scores of tokens in the prompt or the answer; 1: none."""
    presence_penalty: Float = 0.0
    """Subtracted from the score of each token that the answer holds."""
    frequency_penalty: Float = 0.0
    """Subtracted once for each time that the answer holds it."""
    max_new_tokens: Int = Field(default=128, ge=1)
    """Longest answer."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end an answer, which is cut before the first that comes: `stop: ["\\n\\n", "Q:"]`. One alone may stand
    for the list. Every token that was sampled counts and trains, those that spell the text too."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else stop


class SuiteSettings(Settings):
    """What a model is measured on."""

    IS_FAMILY: ClassVar[bool] = True

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Letters, digits, - and _; names the suite's file and its row in the final table."""


class PromptSuite(SuiteSettings):
    """One set of prompts and what makes an answer good."""

    prompts: Annotated[str, BeforeValidator(as_text)]
    """File with the prompts, in any format that training reads; relative to the recipe."""
    limit: Int | None = Field(default=None, ge=1)
    """Use only the first so many prompts."""
    sampling: Sampling = Sampling()
    """How the answers are drawn; greedy by default, so that a run repeats."""


class SampledSuite(PromptSuite):
    """A suite whose prompts may be answered several times."""

    samples_per_prompt: Int = Field(default=1, ge=1)
    """Answers per prompt; more than one needs a temperature above 0."""
    goal: Float | None = Field(default=None, ge=0, le=1)
    """The share that the run sets out to reach: at least, or with `wanted: false` at most. It changes no training and
    no answer; the report says whether the run came there."""

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        require_different_draws(self, "samples_per_prompt")
        return self


def without_empty_stop(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """A sampling's values as hashes take them: `stop` is younger than they are, so that where there is none, what older
    runs made keeps its hash and is not made again."""
    return {key: value for key, value in sampling.items() if key != "stop" or value}
