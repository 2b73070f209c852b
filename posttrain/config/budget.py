"""The suite `budget`: strategies of test-time compute, measured against the tokens that they spend.

- name: spent
  kind: budget
  prompts: heldout.jsonl
  samples: 32
  scorers: {reward: {stage: reward}}
  strategies: [{name: early, kind: early_stopping, n: 32}]
  at: {early: {n: [8, 16, 32]}}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from posttrain.config.rewards import AnyReward
from posttrain.config.strategies import AnyStrategy, StrategySettings
from posttrain.config.strategies.base import AnswerEquality, AnyScorer, StrategySampling
from posttrain.config.suite_settings import PromptSuite
from posttrain.config.values import Float, Int, refuse, require_unique
from posttrain.errors import ConfigError, unknown

ScorerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""What tables and pictures call a scorer."""


S = TypeVar("S", bound=StrategySettings)


@dataclass(frozen=True, slots=True)
class MeasuredStrategy:
    """One strategy as it is run: MeasuredStrategy("early-16", curve="early", key="n", value=16, settings=...)."""

    label: str
    """Unique in the suite: the name of its figure."""
    curve: str
    """The strategy's own label; runs of one curve are drawn as one line."""
    key: str | None
    """Whose values the curve has; None: a single point."""
    value: Any
    settings: StrategySettings


class BudgetSuite(PromptSuite):
    """How accuracy grows with the tokens that are spent on a prompt, by strategy."""

    kind: Literal["budget"]
    """`budget`: which strategy is worth its tokens?"""
    samples: Int = Field(default=32, ge=2)
    """Answers drawn of each prompt: the pool from which majority, best-of-n and the oracle are computed at every n."""
    n: tuple[Int, ...] = Field(default_factory=lambda suite: _powers(suite.get("samples", 2)), min_length=1)
    """The points of these curves, none above `samples`; 1, 2, 4, ... up to `samples` unless given."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one: what majority and weighted best-of-n count by."""
    rewards: tuple[AnyReward, ...] = ()
    """What makes an answer right (docs/rewards.md). None: its last number is the row's answer."""
    right_from: Float = 1.0
    """The sum of the rewards from which on an answer is right."""
    modules: str | None = None
    """Folder in which the modules of `kind: function` are looked for first; the recipe's own if absent."""
    scorers: dict[ScorerName, AnyScorer] = Field(default_factory=dict)
    """Who chooses in best-of-n, plain and weighted, each under a name: `{judge: {stage: reward}, logprob: logprob}`."""
    strategies: tuple[AnyStrategy, ...] = ()
    """Strategies that are run as they are. One that says nothing of `sampling` draws as the suite does: its draws are
    then the pool's."""
    at: dict[str, dict[str, tuple[Any, ...]]] = Field(default_factory=dict)
    """Of a strategy, by its name, the values of one key; it is run with each: `{early: {n: [8, 16]}}`. Inner keys with
    dots: `{beam: {spend.tokens: [500, 1000]}}`."""
    sampling: StrategySampling = StrategySampling()
    """How the pool is drawn."""
    models: tuple[str, ...] = ()
    """Whose models are asked: `start`, or names of stages that train a policy; none given: of all, as other suites. A
    pool is dear, and a base model that cannot answer yet has nothing to choose from."""

    @field_validator("models", mode="before")
    @classmethod
    def _one_model(cls, models: Any) -> Any:
        return (models,) if isinstance(models, str) else models

    @field_validator("n", mode="before")
    @classmethod
    def _one_n(cls, n: Any) -> Any:
        return (n,) if isinstance(n, int) else n

    @field_validator("n")
    @classmethod
    def _in_order(cls, n: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(n)))

    @field_validator("rewards")
    @classmethod
    def _unique_labels(cls, rewards: tuple[AnyReward, ...]) -> tuple[AnyReward, ...]:
        return require_unique("rewards", rewards, [reward.label for reward in rewards])

    @field_validator("strategies")
    @classmethod
    def _unique_names(cls, strategies: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        require_unique("strategies", strategies, [strategy.label for strategy in strategies])
        if "sampling" not in info.data:  # it has a mistake of its own, which is reported
            return strategies
        # Now and not when it runs: a recipe that is written out holds every value, and must read back the same.
        return tuple(
            _drawing_as(strategy, info.data["sampling"], (place,)) for place, strategy in enumerate(strategies)
        )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.sampling.temperature == 0:
            raise refuse(
                "temperature 0 draws the same answer each time, so that there is nothing to choose from",
                path=("sampling", "temperature"),
                found=f"samples: {self.samples}, temperature: 0",
                remedy="write `sampling: {temperature: 0.8}`",
            )
        if not 1 <= self.n[0] <= self.n[-1] <= self.samples:
            raise refuse(
                "no choice is made among more answers than are drawn" if self.n[0] >= 1 else "n is below 1",
                path=("n",),
                found=f"n: {list(self.n)}, samples: {self.samples}",
                expected="each n from 1 to `samples`",
                remedy=f"write `samples: {self.n[-1]}`, or smaller n" if self.n[0] >= 1 else "write n of 1 or more",
            )
        self._check_at()
        return self

    def _check_at(self) -> None:
        known = [strategy.label for strategy in self.strategies]
        for label, keys in self.at.items():
            if label not in known:
                refusal = unknown("strategy", label, known)
                raise refuse(
                    refusal.problem,
                    path=("at", label),
                    found=label,
                    expected=f"one of {', '.join(known)}" if known else "a strategy that this suite runs",
                    remedy=refusal.remedy or "add it to `strategies`",
                )
            if len(keys) != 1 or not all(keys.values()):
                raise refuse(
                    "a curve is drawn over the values of one key",
                    path=("at", label),
                    found=", ".join(keys) or "none",
                    expected="one key with a value or more",
                    remedy=f"write `at: {{{label}: {{n: [4, 8, 16]}}}}`; for another key, add the strategy once more "
                    "under another `name`",
                )
        try:
            labels = [run.label for run in self.runs()]
        except ConfigError as error:
            raise refuse(
                error.problem,
                path=("at",),
                found=error.found or "",
                expected=error.expected or "",
                remedy=error.remedy or "correct the key or its value",
            ) from None
        require_unique("runs of strategies", tuple(labels), labels)

    def runs(self) -> Iterator[MeasuredStrategy]:
        """Every run of a strategy, in the order of `strategies` and of the values in `at`.

        Raises:
            ConfigError: a key that the strategy does not have, or a value that it does not take.
        """
        for strategy in self.strategies:
            for key, values in self.at.get(strategy.label, {}).items():
                for value in values:
                    label = f"{strategy.label}-{value}".replace(" ", "_")
                    yield MeasuredStrategy(label, strategy.label, key, value, _with(strategy, key, value))
            if strategy.label not in self.at:
                yield MeasuredStrategy(strategy.label, strategy.label, None, None, strategy)


def _drawing_as(strategy: S, sampling: StrategySampling, path: tuple[str | int, ...]) -> S:
    """The strategy, or the one that it wraps, with this sampling where it says nothing of its own."""
    inner = {name: value for name in type(strategy).model_fields if _is_strategy(value := getattr(strategy, name))}
    if inner:
        changed = {name: _drawing_as(value, sampling, (*path, name)) for name, value in inner.items()}
        return strategy.model_copy(update=changed)
    if "sampling" in strategy.model_fields_set:
        return strategy
    given = {name: getattr(strategy, name) for name in strategy.model_fields_set}
    kind = type(strategy)
    try:
        return kind(**given, sampling=sampling)
    except ConfigError as error:
        refused = error
    try:
        # One that draws nothing has a longest answer all the same.
        return kind(**given, sampling=StrategySampling(temperature=0.0, max_new_tokens=sampling.max_new_tokens))
    except ConfigError:
        raise refuse(
            f"`{strategy.label}` cannot draw as the suite does: {refused.problem}",
            path=path,
            found=refused.found or "",
            expected=refused.expected or "",
            remedy=refused.remedy or "give the strategy its own `sampling`",
        ) from None


def _is_strategy(value: Any) -> bool:
    return isinstance(value, StrategySettings)


def _powers(samples: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `samples` itself."""
    return tuple(sorted({*(1 << power for power in range(samples.bit_length())), samples}))


def _with(strategy: StrategySettings, key: str, value: Any) -> StrategySettings:
    """The strategy with another value of a key; inner keys with dots."""
    given = strategy.model_dump(by_alias=True, exclude_unset=True) | {"kind": strategy.model_dump()["kind"]}
    *outer, last = key.split(".")
    inside = given
    for name in outer:
        inside = inside.setdefault(name, {})
        if not isinstance(inside, dict):
            raise unknown("key", key, given)
    inside[last] = value
    return type(strategy)(**given)
