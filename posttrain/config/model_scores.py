"""Scores of a selection that ask a model: the policy, a reward model, or a judge behind an endpoint.

    {kind: ifd, model: smollm2-135m-instruct}
    {kind: reward_model, stage: reward}
    {kind: judge, url: http://localhost:8000/v1, model: qwen2.5-72b}

What each costs: `ifd` two forward passes of a row, `perplexity`, `logprob`, `rds` and `reward_model` one, a judge a
request, `deita` two, `pass_rate` as many sampled answers as it has `samples`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.attempts import AttemptSampling
from posttrain.config.judge_endpoint import STANDARD, JudgeEndpoint
from posttrain.config.rewards import AnyReward
from posttrain.config.score import ScoreSettings
from posttrain.config.strategies.base import RewardModelScorer
from posttrain.config.values import Float, Int, as_text, is_changed, listed, refuse, require_different_draws


class LanguageModelScore(ScoreSettings):
    """A score by what a language model finds likely."""

    model: str | None = None
    """A catalogue name, folder or hub id; null: the policy that the rows are selected for."""
    max_length: Int = Field(default=2048, ge=2)
    """Tokens of a row, with its template; a longer row has no score, since one of a part of it would say nothing of the
    rest."""
    tokens_at_once: Int = Field(default=8192, ge=1)
    """Tokens of one forward pass."""

    @property
    def asks_model(self) -> bool:
        return self.model is None


class IFDScore(LanguageModelScore):
    """How little the prompt helps with the answer: instruction-following difficulty (Li et al. 2023,
    arXiv:2308.12032)."""

    kind: Literal["ifd"]
    """`ifd`: loss of the answer after its prompt over its loss alone. Near 0 the prompt says the answer, near 1 it
    helps little."""
    ratio: Literal["loss", "perplexity"] = "loss"
    """`loss`: of the mean losses (Cherry LLM); `perplexity`: of their exponentials (Superfiltering, Li et al. 2024,
    arXiv:2402.00530)."""
    alone: Literal["bos", "template"] = "bos"
    """What stands before the answer alone. `bos`: the tokenizer's beginning token, as in the papers; where it has none,
    the answer's first token is counted in neither loss. `template`: the template around an empty question."""
    # Li et al. 2023, section 2.3: the two do not belong together.
    above_1: Literal["drop", "keep"] = "drop"
    """What becomes of rows whose prompt makes the answer less likely than it is alone; the papers drop them."""

    @property
    def bound(self) -> float | None:
        return 1.0 if self.above_1 == "drop" else None


class PerplexityScore(LanguageModelScore):
    """How unlikely a model finds a text."""

    kind: Literal["perplexity"]
    """`perplexity`: exp of the mean loss a token."""
    of: Literal["answer", "both"] = "answer"
    """The `answer` given its prompt, or the whole row as the template renders it, prompt and marks included."""


class LogProbScore(LanguageModelScore):
    """How likely the model finds the answer, given its prompt."""

    kind: Literal["logprob"]
    """`logprob`: log-prob of the answer given its prompt, in nats."""
    per_token: bool = True
    """The mean over the tokens; false: the sum, which prefers short answers."""


class RDSScore(ScoreSettings):
    """Which rows are like those of a target set, by the policy's hidden states (RDS+, Ivison et al. 2025,
    arXiv:2503.01807)."""

    kind: Literal["rds"]
    """`rds`: nearness to the rows of `targets`, by the embedding `policy`."""
    targets: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(min_length=1)
    """Files of rows like those that the model shall be good at: development rows, not the test."""
    order: Literal["round_robin", "best", "mean"] = "round_robin"
    """`round_robin`: each target in turn takes the nearest row that no other has taken, the paper's rule, and the score
    falls from 1 in that order; `best`: the cosine to the nearest target, `mean`: the mean cosine to all."""
    model: str | None = None
    """A catalogue name, folder or hub id; null: the policy that the rows are selected for."""
    pooling: Literal["weighted", "mean"] = "weighted"
    """As in the embedding `policy`."""
    max_length: Int = Field(default=1024, ge=2)
    """Tokens of a row that are read; how many rows are longer is said."""
    tokens_at_once: Int = Field(default=8192, ge=1)
    """Tokens of one forward pass."""

    @property
    def asks_model(self) -> bool:
        return self.model is None


class RewardModelScore(RewardModelScorer, ScoreSettings):
    """What a trained reward model says of an answer."""

    kind: Literal["reward_model"]
    """`reward_model`: of a folder (`model`), or trained by a stage of this recipe (`stage`)."""
    of: Literal["best", "margin"] = "best"
    """Of comparisons: the reward of the `best` answer, or its `margin` above the best of the others."""

    @model_validator(mode="after")
    def _whole_answers(self) -> Self:
        if is_changed(self, "aggregate"):
            raise refuse(
                "a selection takes reward models of whole answers, which have no steps to aggregate",
                path=("aggregate",),
                remedy="leave `aggregate` out",
            )
        return self


class JudgedScore(JudgeEndpoint, ScoreSettings):
    """A score by the replies of a model behind an OpenAI-compatible endpoint."""

    cache: Annotated[str | None, BeforeValidator(as_text)] = None
    """Folder of replies by the content of their question; null: in the selection's own folder."""


class JudgeScore(JudgedScore):
    """The mark of a judge, 1 to 10; a reply that ends in no mark is no score."""

    kind: Literal["judge"]
    """`judge`: a mark from 1 to 10."""
    standard: str = STANDARD
    """The rubric: what the judge goes by, in words."""


class DEITAScore(JudgedScore):
    """Complexity of the prompt times quality of the answer (DEITA, Liu et al. 2023, arXiv:2312.15685), two marks of a
    judge. Of scores that rows carry, or that other models gave: `{kind: combine, how: product, scale: raw}`."""

    kind: Literal["deita"]
    """`deita`: the product of two marks, 1 to 100; two requests a row."""
    complexity: str = (
        "how demanding the prompt is, whatever the answer is like: how many steps, constraints and kinds of knowledge "
        "a right answer to it takes"
    )
    """What the first mark goes by."""
    quality: str = "helpfulness, correctness, relevance, depth and level of detail of the answer"
    """What the second mark goes by."""


class InsTagScore(JudgedScore):
    """How much a prompt asks for at once: the number of tags that name its intentions (InsTag, Lu et al. 2023,
    arXiv:2308.07074)."""

    kind: Literal["instag"]
    """`instag`: the number of different tags that a judge lists for the prompt."""


class PassRateScore(ScoreSettings):
    """How often the policy solves a task: neither never nor always is what it can learn from."""

    kind: Literal["pass_rate"]
    """`pass_rate`: the share of the policy's answers whose reward is at least `passes`; of tasks alone."""
    rewards: tuple[AnyReward, ...] = Field(min_length=1)
    """As a stage's `rewards` (docs/rewards.md); their weighted sum counts."""
    model: str | None = None
    """A catalogue name, folder or hub id; null: the policy that the rows are selected for."""
    samples: Int = Field(default=8, ge=1, le=1024)
    """Answers to each task."""
    passes: Float = 1.0
    """An answer with this reward or a higher one is right."""
    sampling: AttemptSampling = AttemptSampling()
    """How answers are drawn."""
    modules: str | None = None
    """Folder in which functions are looked for first."""

    @property
    def asks_model(self) -> bool:
        return self.model is None

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        require_different_draws(self, "samples")
        return self
