"""Evaluation: how answers are sampled, and the suites that score them."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.budget import BudgetSuite
from posttrain.config.functions import Function, address_of
from posttrain.config.judge_endpoint import STANDARD, JudgeEndpoint
from posttrain.config.rewards import AnyReward
from posttrain.config.suite_settings import PromptSuite as PromptSuite
from posttrain.config.suite_settings import SampledSuite as SampledSuite
from posttrain.config.suite_settings import Sampling as Sampling
from posttrain.config.suite_settings import SuiteSettings as SuiteSettings
from posttrain.config.suite_settings import without_empty_stop as without_empty_stop
from posttrain.config.text_suites import (
    BleuSuite,
    ChrfSuite,
    F1Suite,
    LmEvalSuite,
    RetentionSuite,
    RougeSuite,
    TextPerplexitySuite,
)
from posttrain.config.values import (
    Float,
    Int,
    Pattern,
    Settings,
    as_text,
    refuse,
    require_different_draws,
    require_unique,
)


class MatchSuite(SampledSuite):
    """The share of answers in which a pattern occurs."""

    kind: Literal["match"]
    """`match`: does the text occur?"""
    pattern: Pattern
    """Regular expression, searched anywhere in the answer: `\\bPia\\b`."""
    ignore_case: bool = False
    """Whether A and a are the same."""
    wanted: bool = True
    """false: the fewer answers hold the pattern, the better; the metric is then called `unwanted_match`."""


class ExactSuite(SampledSuite):
    """The share of answers that are the row's answer, blanks at the ends aside."""

    kind: Literal["exact"]
    """`exact`: is it the row's answer?"""


class NumberSuite(SampledSuite):
    """The share of answers whose last number is the row's answer."""

    kind: Literal["number"]
    """`number`: is the last number right?"""


class PerplexitySuite(PromptSuite):
    """How surprised a stage's model is by the start model's own answers; a rise means that it has drifted."""

    kind: Literal["perplexity"]
    """`perplexity`: does it still speak as it did?"""


class RewardModelOf(Settings):
    """The reward model that judges. A path or name alone may stand for the group: `reward_model: models/mine`."""

    stage: str | None = None
    """Name of a stage of this recipe that trains a reward model, before or after the stages that it judges."""
    path: str | None = None
    """Folder or name of a trained reward model; instead of `stage`."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, (str, os.PathLike)) else value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        # With both, it would be left open who judges.
        if (self.path is None) == (self.stage is None):
            raise refuse(
                "the reward model comes from a `stage` or from a `path`: give one of the two",
                remedy="write `reward_model: {stage: NAME}`",
            )
        return self


class ComparingJudge(JudgeEndpoint):
    """A model behind an OpenAI-compatible endpoint that compares two answers, each pair in both orders."""

    standard: str = STANDARD
    """What the judge goes by."""
    show_reference: bool = False
    """The judge sees the row's answer."""
    cache: Annotated[str | None, BeforeValidator(as_text)] = None
    """Folder of replies by the content of their question, relative to the recipe; null: `verdicts` in the folder of the
    start."""


JUDGES = ("reward_model", "judge", "votes")
"""Keys that say who judges in a suite of win rates."""


class WinRateSuite(SampledSuite):
    """How often an answer is preferred to the start model's own answer, raw and at equal length; a tie counts half. By
    a reward model, a judge or people: one of the three."""

    kind: Literal["win_rate"]
    """`win_rate`: is it better than what the start says?"""
    reward_model: RewardModelOf | None = None
    """A reward model judges. Answers that come before it is trained are kept, and judged then."""
    judge: ComparingJudge | None = None
    """A model behind an URL judges, each pair in both orders."""
    votes: Annotated[str | None, BeforeValidator(as_text)] = None
    """A file of people's votes, relative to the recipe; docs/ratings.md. What nobody has voted on is written beside the
    answers, as rows to vote on."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        given = [key for key in JUDGES if getattr(self, key) is not None]
        if len(given) != 1:
            raise refuse(
                "nobody judges" if not given else f"{' and '.join(f'`{key}`' for key in given)} both judge",
                found=", ".join(given) or "none of the three",
                expected=f"one of {', '.join(JUDGES)}",
                remedy="write `reward_model: {stage: NAME}`, `judge: {url: ..., model: ...}` or `votes: FILE`",
            )
        return self


class AnswerSampling(Sampling):
    """How several answers are drawn that are to differ."""

    temperature: Float = Field(default=1.0, ge=0)
    """As in reinforcement learning; 0 draws the same answer each time, and is refused."""


class PassAtKSuite(PromptSuite):
    """The chance that one of k sampled answers is right, for k from 1 to `samples`."""

    kind: Literal["pass_at_k"]
    """`pass_at_k`: does it get there in k attempts?"""
    samples: Int = Field(default=64, ge=1)
    """Answers sampled of each prompt."""
    k: tuple[Int, ...] = Field(default_factory=lambda suite: (1, suite.get("samples", 1)), min_length=1)
    """The k of the tables, none above `samples`; the curve has 1, 2, 4, ... up to `samples` whatever stands here."""
    rewards: tuple[AnyReward, ...] = ()
    """What makes an answer right (docs/rewards.md). None: its last number is the row's answer."""
    right_from: Float = 1.0
    """The sum of the rewards from which on an answer is right."""
    modules: str | None = None
    """Folder in which the modules of `kind: function` are looked for first; the recipe's own if absent."""
    sampling: AnswerSampling = AnswerSampling()
    """How the answers are drawn; at temperature 1, as they are in reinforcement learning."""

    @field_validator("k", mode="before")
    @classmethod
    def _one_k(cls, k: Any) -> Any:
        return (k,) if isinstance(k, int) else k

    @field_validator("k")
    @classmethod
    def _in_order(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(k)))

    @field_validator("rewards")
    @classmethod
    def _unique_labels(cls, rewards: tuple[AnyReward, ...]) -> tuple[AnyReward, ...]:
        return require_unique("rewards", rewards, [reward.label for reward in rewards])

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        require_different_draws(self, "samples", instead=1.0)
        return self

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        # Sorted by now, so the ends bound all of them.
        if not 1 <= self.k[0] <= self.k[-1] <= self.samples:
            raise refuse(
                "pass@k cannot be estimated from fewer than k answers" if self.k[0] >= 1 else "there is no pass@0",
                path=("k",),
                found=f"k: {list(self.k)}, samples: {self.samples}",
                expected="each k from 1 to `samples`",
                remedy=f"write `samples: {self.k[-1]}`, or smaller k" if self.k[0] >= 1 else "write k of 1 or more",
            )
        return self


class FunctionSuite(SampledSuite):
    """A function of yours: `(prompt, answer, row) -> float | bool | None`, or of lists."""

    kind: Literal["function"]
    """`function`: your own."""
    function: Function
    """`file.py:function`, relative to the recipe, or `module:function`; from Python the function itself. None where it
    cannot judge an answer."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Given to the function by name, besides the prompt, the answer and the row."""
    higher_is_better: bool = True
    """false: the table calls a fall better; the metric is then called `unwanted_score`."""
    # A function may give any number, so that a goal is no share.
    goal: Float | None = None
    """The score that the run sets out to reach: at least, or with `higher_is_better: false` at most. It changes no
    answer; the report says whether the run came there."""
    modules: str | None = None
    """Folder in which the function's module is looked for first; the recipe's own if absent."""

    @property
    def address(self) -> str:
        return address_of(self.function)


AnySuite = Annotated[
    MatchSuite
    # one kind a line; what is done with each is posttrain.evaluate.suites.SUITES
    | ExactSuite
    | NumberSuite
    | PerplexitySuite
    | WinRateSuite
    | PassAtKSuite
    | BudgetSuite
    | FunctionSuite
    | F1Suite
    | BleuSuite
    | ChrfSuite
    | RougeSuite
    | TextPerplexitySuite
    | LmEvalSuite
    | RetentionSuite,
    Field(discriminator="kind"),
]
"""Every kind of suite that a recipe may have."""


def _kind_of(suite: Any) -> Any:
    return suite.get("kind") if isinstance(suite, dict) else vars(suite).get("kind")


class Evaluation(Settings):
    """What the models of a recipe are asked."""

    every_stage: bool = True
    """Evaluate after every stage that trains; false: only the start and the end."""
    suites: tuple[AnySuite, ...] = ()
    """The suites, in the order of the final table."""
    retention: bool = False
    """true: as if the last suite were `{name: retention, kind: retention}`."""

    @model_validator(mode="before")
    @classmethod
    def _with_retention(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("retention") is not True:
            return given
        suites = given.get("suites") or ()
        if not isinstance(suites, list | tuple) or any(_kind_of(suite) == "retention" for suite in suites):
            return given
        return {**given, "suites": [*suites, {"name": "retention", "kind": "retention"}]}

    @field_validator("suites")
    @classmethod
    def _unique_names(cls, suites: tuple[AnySuite, ...]) -> tuple[AnySuite, ...]:
        return require_unique("suites", suites, [suite.name for suite in suites])
