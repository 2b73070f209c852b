"""What every strategy of test-time compute has: how it samples, what it may spend, and what it is scored by."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.functions import Function
from posttrain.config.rewards import AnyReward
from posttrain.config.suite_settings import Sampling
from posttrain.config.values import Float, Int, Settings, refuse

StepAggregate = Literal["last", "min", "product", "mean"]
"""From a process reward model's scores of steps to one number: of the last step, the least, the sum of log sigmoids
(Lightman et al. 2023, arXiv:2305.20050), or the mean."""
SENTENCE = "sentence"
MOST_DRAWS = 100_000
"""Most answers, steps or checks that one key may ask for. A slip of some zeros would fill the memory with requests
before the first token."""


class StrategySampling(Sampling):
    """How a strategy draws; several draws need a temperature above 0."""

    temperature: Float = Field(default=0.8, ge=0)
    """0 takes the likeliest token: every draw is then the same."""
    max_new_tokens: Int = Field(default=512, ge=1)
    """Longest whole answer, in tokens."""


class Spending(Settings):
    """What one prompt may cost. A strategy that would spend more stops with the best that it has, and says so."""

    tokens: Int | None = Field(default=None, ge=1)
    """Tokens that the model samples: answers, steps, critiques, votes; null: what the strategy itself comes to."""
    seconds: Float | None = Field(default=None, gt=0)
    """Seconds from the prompt's first token on; null: no limit. It makes a result depend on the machine."""


# ---------------------------------------------------------------- scorers


class ScorerSettings(Settings):
    """Who says how good an answer, or an answer so far, is."""

    IS_FAMILY: ClassVar[bool] = True


class RewardModelScorer(ScorerSettings):
    """A trained reward model: an outcome model judges finished answers, a process reward model steps too."""

    kind: Literal["reward_model"] = "reward_model"
    """`reward_model`: a trained one, of whole answers or of steps."""
    model: str | None = None
    """Folder or name of it."""
    stage: str | None = None
    """A stage of this recipe that trains it; instead of `model`."""
    head: str | None = None
    """Which of its outputs, by name; null: its own mix."""
    aggregate: StepAggregate = "last"
    """Of a process reward model: how the scores of the steps become one."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.stage is None):
            raise refuse(
                "the scorer needs one reward model",
                remedy="write `scorer: {model: FOLDER}`, or `scorer: {stage: NAME}` for a stage of this recipe",
                expected="`model` or `stage`",
            )
        return self


class LogProbScorer(ScorerSettings):
    """The model's own log-prob of its answer, at temperature 1."""

    kind: Literal["logprob"]
    """`logprob`: how likely the model finds it itself."""
    per_token: bool = True
    """The mean over the tokens; false: the sum, which prefers short answers."""


class RewardsScorer(ScorerSettings):
    """Rewards as training has them: verifiers, rules, functions, a judge."""

    kind: Literal["rewards"]
    """`rewards`: the weighted sum of rewards, a judge among them. Those that look at the row's answer are an oracle."""
    rewards: tuple[AnyReward, ...] = Field(min_length=1)
    """As a recipe's `rewards` (docs/rewards.md)."""
    modules: str | None = None
    """Folder in which functions are looked for first; the recipe's own if absent."""


class SelfScorer(ScorerSettings):
    """The model marks its own answer from 1 to 10; its tokens are counted."""

    kind: Literal["self"]
    """`self`: the model is asked for a mark."""
    marks: Int = Field(default=1, ge=1, le=MOST_DRAWS)
    """Marks asked for each answer, whose mean counts."""


SCORERS_BY_NAME = ("logprob", "self")
"""The kinds that need no more than their name."""


def _short(value: Any) -> Any:
    """`scorer: runs/mine/reward/model`, and the name of a kind that needs no more."""
    if isinstance(value, (str, os.PathLike)):
        return {"kind": str(value)} if str(value) in SCORERS_BY_NAME else {"kind": "reward_model", "model": str(value)}
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "reward_model", **value}
    return value


AnyScorer = Annotated[
    Annotated[RewardModelScorer | LogProbScorer | RewardsScorer | SelfScorer, Field(discriminator="kind")],
    BeforeValidator(_short),
]
"""Every kind of scorer; a path alone is a reward model."""


# ---------------------------------------------------------------- answers that are the same


class AnswerEquality(Settings):
    """When two answers are one: what votes are counted by. The name of a kind alone may stand for the group."""

    kind: Literal["maths", "exact", "function"] = "maths"
    """`maths`: the number or formula that they end on, compared as the maths verifier does; `exact`: the text without
    blanks at its ends; `function`: yours."""
    function: Function | None = None
    """`(answer) -> text or None`, by address (`my_answers.py:final`): answers of one text are one, None is none."""
    modules: str | None = None
    """Folder in which the function's module is looked for first; the recipe's own if absent."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _function_given(self) -> Self:
        if (self.function is None) == (self.kind == "function"):
            raise refuse(
                "`kind: function` and `function` belong together",
                remedy="write `answers: {kind: function, function: my_answers.py:final}`",
                expected="both or neither",
            )
        return self


# ---------------------------------------------------------------- strategies


class StrategySettings(Settings):
    """One way to spend compute on an answer."""

    IS_FAMILY: ClassVar[bool] = True

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What tables and pictures call it; null: its kind."""
    sampling: StrategySampling = StrategySampling()
    """How tokens are drawn."""
    spend: Spending = Spending()
    """The most that one prompt may cost."""

    @property
    def label(self) -> str:
        return self.name or str(getattr(self, "kind"))  # noqa: B009 - every kind has one; the family's base has none

    @property
    def scorers(self) -> tuple[ScorerSettings, ...]:
        """The scorers that it names, wherever they stand among its keys."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return tuple(value for value in values if isinstance(value, ScorerSettings))

    @property
    def parts(self) -> tuple[StrategySettings, ...]:
        """Itself, and after it the strategy that it wraps, where it wraps one."""
        return (self,)


def _text_or_number(value: Any) -> Any:
    # Before the union reads it: pydantic would report the mistakes of both readings, under names of its own types.
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return value
    raise refuse(
        "a step ends with a text or after a number of tokens",
        found="nothing" if value is None else repr(value),
        expected="a text that separates steps, `sentence`, or a number of tokens of 1 or more",
        remedy='write `step: "\\n\\n"`, `step: sentence` or `step: 32`',
    )


class StepStrategy(StrategySettings):
    """A strategy that builds an answer step by step."""

    step: Annotated[str | int, BeforeValidator(_text_or_number)] = "\n\n"
    """Where a step ends: with this text, with `sentence`, or after so many tokens."""
    max_steps: Int = Field(default=40, ge=1)
    """Most steps of one answer; the last one may go on to the end."""

    @property
    def judging(self) -> Literal["steps", "either", "answers"]:
        """What its scorer is asked about: answers that are still written, finished ones, or whichever it can judge."""
        return "answers"

    @model_validator(mode="after")
    def _step_is_something(self) -> Self:
        if self.step == "" or (isinstance(self.step, int) and self.step < 1):
            raise refuse(
                "a step has no end",
                path=("step",),
                found=repr(self.step),
                expected="a text that separates steps, `sentence`, or a number of tokens of 1 or more",
                remedy='write `step: "\\n\\n"`, `step: sentence` or `step: 32`',
            )
        return self
