"""Strategies that draw whole answers and choose among them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.strategies.base import (
    MOST_DRAWS,
    AnswerEquality,
    AnyScorer,
    StrategySampling,
    StrategySettings,
)
from posttrain.config.values import Float, Int, is_changed, refuse, require_different_draws
from posttrain.errors import ConfigError


class BestOfN(StrategySettings):
    """The answer with the highest score among n."""

    kind: Literal["best_of_n"] = "best_of_n"
    """`best_of_n`: n answers, the best by a scorer."""
    n: Int = Field(default=16, ge=1, le=MOST_DRAWS)
    """Answers drawn."""
    scorer: AnyScorer
    """Who says how good an answer is."""
    choose: Literal["best", "weighted"] = "best"
    """`best`: the highest score; `weighted`: the answer whose equals have the highest sum of scores."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one, for `weighted`."""

    def __init__(self, n: int | None = None, /, *, reward: Any = None, **values: Any) -> None:
        """BestOfN(16, reward="runs/mine/reward/model") is BestOfN(n=16, scorer="runs/mine/reward/model").

        Raises:
            ConfigError: the number of answers, or who scores them, is given twice.
        """
        for key, given in (("n", n), ("scorer", reward)):
            if given is not None and key in values:
                raise ConfigError(
                    f"`{key}` of BestOfN is given twice",
                    found=f"{given!r} and {values[key]!r}",
                    remedy=f"write it once, as `{key}=`",
                )
            if given is not None:
                values[key] = given
        super().__init__(**values)

    # Nested records are built without __init__, so that one error reports all mistakes of a recipe; see `Settings`.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        require_different_draws(self, "n")
        return self


# ---------------------------------------------------------------- votes


class VotingStrategy(StrategySettings):
    """A strategy that draws up to n answers, which then vote."""

    n: Int = Field(default=16, ge=1, le=MOST_DRAWS)
    """Most answers drawn."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one vote; an answer that ends on nothing has none."""
    text: Literal["first", "likeliest"] = "first"
    """Which of those that gave the winning answer: the first, or the one of the highest mean log-prob."""

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        require_different_draws(self, "n")
        return self


class SelfConsistency(VotingStrategy):
    """The answer that most of n agree on."""

    kind: Literal["self_consistency"] = "self_consistency"
    """`self_consistency`: n answers, the majority."""


class EarlyStoppingConsistency(VotingStrategy):
    """Self-consistency in windows, until all answers of one agree."""

    kind: Literal["early_stopping_consistency"] = "early_stopping_consistency"
    """`early_stopping_consistency`: self-consistency that stops when a window agrees (ESC)."""
    n: Int = Field(default=40, ge=1, le=MOST_DRAWS)
    """Most answers drawn; a multiple of `window`."""
    window: Int = Field(default=5, ge=2)
    """Answers drawn at a time; sampling stops when all of them are the same."""

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.n % self.window:
            fitting = max(self.n // self.window, 1) * self.window
            raise refuse(
                "the windows do not part the answers evenly",
                path=("window",),
                found=f"n: {self.n}, window: {self.window}",
                expected="`n` as a multiple of `window`",
                remedy=f"write `n: {fitting}`",
            )
        return self


class AdaptiveConsistency(VotingStrategy):
    """Self-consistency answer by answer, until the majority is unlikely to change."""

    kind: Literal["adaptive_consistency"] = "adaptive_consistency"
    """`adaptive_consistency`: self-consistency that stops by a Beta criterion."""
    n: Int = Field(default=40, ge=1, le=MOST_DRAWS)
    """Most answers drawn."""
    threshold: Float = Field(default=0.95, gt=0.5, lt=1)
    """Stop where the leading answer is ahead of the second in the long run with this probability."""
    at_once: Int = Field(default=1, ge=1)
    """Answers drawn between two looks at the votes: more are faster, and may draw some too many."""


class DeepConf(VotingStrategy):
    """Votes weighted by the model's confidence, without those of the least confident answers."""

    kind: Literal["deepconf"] = "deepconf"
    """`deepconf`: votes by confidence."""
    n: Int = Field(default=32, ge=1, le=MOST_DRAWS)
    """Most answers drawn, the warm-up's among them."""
    warmup: Int | None = Field(default=None, ge=1)
    """Answers drawn whole, which set the threshold; later ones end once they fall below it. null: all are whole."""
    keep: Float = Field(default=0.9, gt=0, le=1)
    """Share of the answers that are confident enough to vote: the paper has 0.1 and 0.9."""
    confidence: Literal["lowest", "bottom", "tail", "mean"] = "lowest"
    """Of an answer: the `lowest` group's, the mean of the `bottom` tenth of groups, the last group's (`tail`), or the
    mean over all tokens."""
    group: Int = Field(default=64, ge=1)
    """Tokens of a group, whose mean confidence counts; the paper has 2048 for thoughts of tens of thousands."""
    top: Int = Field(default=20, ge=1)
    """Likeliest tokens over which a token's confidence is averaged."""
    consensus: Float | None = Field(default=0.95, gt=0.5, le=1)
    """With a warm-up: draw no more where one answer has this share of the votes; null: draw all n."""
    at_once: Int = Field(default=1, ge=1)
    """With a warm-up: answers drawn between two looks at the votes; more are faster, and may draw some too many."""

    @model_validator(mode="after")
    def _threshold_can_be_set(self) -> Self:
        if self.warmup is None:
            unused = next((key for key in ("consensus", "at_once") if is_changed(self, key)), None)
            if unused is not None:
                raise refuse(
                    f"`{unused}` is of answers that are drawn after a warm-up, and there is none",
                    path=(unused,),
                    remedy=f"write `warmup: {max(1, self.n // 2)}`, or leave `{unused}` out",
                )
        elif self.warmup > self.n:
            raise refuse(
                "the warm-up draws more answers than there are",
                path=("warmup",),
                found=f"warmup: {self.warmup}, n: {self.n}",
                remedy=f"write `warmup: {max(1, self.n // 2)}`, or a larger `n`",
            )
        elif self.confidence != "lowest":
            raise refuse(
                "an answer is ended early by its lowest group, and the votes go by something else",
                path=("confidence",),
                found=f"confidence: {self.confidence}",
                expected="`lowest`, where there is a `warmup`",
                remedy="write `confidence: lowest`, or leave `warmup` out",
            )
        return self


# ---------------------------------------------------------------- search over tokens


class LikeliestAnswer(StrategySettings):
    """Beam search by log-prob over tokens: the answer that the model itself finds likeliest."""

    kind: Literal["likeliest_answer"] = "likeliest_answer"
    """`likeliest_answer`: beam search by log-prob. Nothing is drawn: of `sampling`, `max_new_tokens` counts alone."""
    beams: Int = Field(default=4, ge=1, le=MOST_DRAWS)
    """Beginnings of answers that are kept at each token."""
    length_penalty: Float = 1.0
    """Exponent of the length by which an answer's log-prob is divided: above 0 prefers longer answers, 0 is the plain
    log-prob, below 0 prefers shorter ones."""
    length: Literal["tokens", "gnmt"] = "tokens"
    """What is raised to it: the number of `tokens`, as in `transformers`, or (5 + tokens) / 6 (`gnmt`)."""

    @model_validator(mode="after")
    def _nothing_is_drawn(self) -> Self:
        neutral, unset = StrategySampling(temperature=0.0), StrategySampling()
        for key in type(self.sampling).model_fields:
            value = getattr(self.sampling, key)
            # A recipe that is written out holds every default, and must read back.
            if key != "max_new_tokens" and value not in (getattr(neutral, key), getattr(unset, key)):
                raise refuse(
                    f"beam search draws nothing, so that `{key}` has no meaning",
                    path=("sampling", key),
                    found=f"{key}: {value}",
                    expected="`max_new_tokens` alone",
                    remedy=f"leave `{key}` out",
                )
        return self
