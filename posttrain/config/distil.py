"""The stage `distil`: a stronger model answers the prompts, and its answers become rows to imitate.

- {name: answers, method: distil, data: prompts.jsonl, teacher: {url: http://localhost:8000/v1, model: qwen2.5-72b}}
- {method: sft, data: {stage: answers}}
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.config.strategies.base import AnyScorer, LogProbScorer, SelfScorer
from posttrain.config.teacher import AnyTeacher, SynthesisStage
from posttrain.config.values import Float, Int, Settings, refuse, require_different_draws


class DistilFilters(Settings):
    """Which answers make a row. What does not is counted by reason and written to dropped.jsonl."""

    # Imitated, a cut answer teaches to stop in the middle.
    ended: bool = True
    """Only answers that the teacher ended itself; false: also those that `max_new_tokens` cut."""
    refusals: Literal["drop", "keep"] = "drop"
    """Answers that decline, by their words or the endpoint's own mark."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Answers that were kept before for the same prompt, blanks aside. Near duplicates are found by `select`."""
    least_words: Int | None = Field(default=None, ge=1)
    """Shorter answers make no row; words are what blanks part."""
    most_words: Int | None = Field(default=None, ge=1)
    """Longer answers make no row."""
    language: str | None = None
    """`same`: answers in another language than their prompt make no row; or the name of a language: `English`. A text
    too short to tell counts as right."""
    scorer: AnyScorer | None = None
    """Who scores the answers: rewards, a judge among them, or a reward model."""
    least_score: Float | None = None
    """Answers with a lower score make no row; null: the score is only written into the row's origin."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.least_score is not None and self.scorer is None:
            raise refuse(
                "`least_score` is of the scores of the answers, and nobody scores them",
                path=("least_score",),
                found=f"least_score: {self.least_score:g}",
                expected="a scorer beside it",
                remedy="write `scorer: {kind: rewards, rewards: [{kind: math}]}`, or leave `least_score` out",
            )
        if isinstance(self.scorer, LogProbScorer | SelfScorer):
            raise refuse(
                "a model's own log-prob or mark is of a search, in which the model that answers is at hand",
                path=("scorer",),
                found=f"kind: {self.scorer.kind}",
                expected="rewards, or a reward model",
                remedy="write `scorer: {kind: rewards, rewards: [{kind: judge, url: URL, model: NAME}]}`",
            )
        if self.least_words is not None and self.most_words is not None and self.least_words > self.most_words:
            raise refuse(
                "no answer is as long as `least_words` and as short as `most_words`",
                path=("most_words",),
                found=f"least_words: {self.least_words}, most_words: {self.most_words}",
                remedy="raise `most_words`",
            )
        return self


class Distil(SynthesisStage):
    """A teacher answers the prompts; the answers become demonstrations. Trains nothing."""

    method: Literal["distil"] = "distil"
    """Ask a stronger model, and keep its answers as rows to imitate (sequence-level distillation: Kim and Rush 2016,
    arXiv:1606.07947)."""
    teacher: AnyTeacher = Field()
    """Who is asked: a model by name or folder, `{stage: NAME}`, `policy`, or `{url: ..., model: ...}`."""
    answers_per_prompt: Int = Field(default=1, ge=1, le=1000)
    """How often each prompt is asked, each time with a seed of its own."""
    reasoning: Literal["drop", "keep", "inside"] = "drop"
    """The teacher's thoughts: `drop` trains the answer alone; `keep` writes them as `reasoning_content`, for templates
    that render it; `inside` writes them into the answer, between <think> and </think>."""
    system: str | None = Field(default=None, min_length=1)
    """A system message for the teacher, for prompts that have none."""
    keep_system: bool = False
    """Whether that message stands in the rows too; false: what it asks for is learned without it (context
    distillation: Askell et al. 2021, arXiv:2112.00861, section 2.2)."""
    filters: DistilFilters = DistilFilters()
    """Which answers make a row."""

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        require_different_draws(self, "answers_per_prompt")
        if self.keep_system and self.system is None:
            raise refuse(
                "there is no system message to keep",
                path=("keep_system",),
                found="keep_system: true, without `system`",
                remedy="write `system: TEXT`, or leave `keep_system` out; what a row has itself always stays",
            )
        return self
