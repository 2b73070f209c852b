"""What a row is worth to a selection, as a recipe and a program write it; `posttrain.curation.scores` computes it.

    {kind: length, of: answer, unit: words}
    {kind: column, column: quality}
    {kind: combine, of: [ifd, judge]}

A score is one number a row, higher for what is to be kept unless a step says `lowest`; a row may have none.
Those that ask a model are in `model_scores.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.model_scores import (
    DEITAScore,
    IFDScore,
    InsTagScore,
    JudgeScore,
    LogProbScore,
    PassRateScore,
    PerplexityScore,
    RDSScore,
    RewardModelScore,
)
from posttrain.config.score import ScoreSettings
from posttrain.config.values import refuse


class LengthScore(ScoreSettings):
    """How long a text is."""

    kind: Literal["length"]
    """`length`: how long the prompt, the answer or both are."""
    of: Literal["answer", "prompt", "both"] = "answer"
    """Which text; of a comparison the best answer, of a task what it is checked by."""
    unit: Literal["words", "characters", "tokens"] = "words"
    """`words` are runs of letters and digits, and single characters of Chinese, Japanese and Korean. `tokens` are those
    of the selection's `tokenizer`."""

    @property
    def asks_model(self) -> bool:
        return self.unit == "tokens"


class FormScore(ScoreSettings):
    """Whether an answer looks whole: the share of the audit's row checks that it passes."""

    kind: Literal["form"]
    """`form`: the share of ten checks of the audit that the answer passes: it ends no sentence in the middle, holds no
    special token, role marker, lone think tag, lone code fence, broken or invisible character, is not the word for
    nothing (nan, null), repeats no prompt, and is no refusal. For a comparison the best answer's; a task has no answer
    to look at, and no score."""


class ColumnScore(ScoreSettings):
    """A number that the rows carry already."""

    kind: Literal["column"]
    """`column`: a number that the rows carry."""
    column: str = Field(min_length=1)
    """Its name; a dot leads into an object: `meta.quality`."""

    @property
    def label(self) -> str:
        return self.name or self.column


class CombineScore(ScoreSettings):
    """One number of several scores that earlier steps gave."""

    kind: Literal["combine"]
    """`combine`: the mean, product, least or greatest of several scores. A row that lacks one of them has none."""
    of: tuple[str, ...] = Field(min_length=2)
    """Names of the scores."""
    how: Literal["mean", "product", "min", "max"] = "mean"
    """What becomes of the row's numbers."""
    scale: Literal["ranks", "z", "raw"] = "ranks"
    """What is combined. `ranks`: from 0 for the lowest to 1 for the highest row, equal scores alike; `z`: distances
    from the mean in standard deviations; `raw`: the scores themselves, of which that with the widest scale decides."""

    @property
    def reads(self) -> tuple[tuple[str, str], ...]:
        return tuple(("of", name) for name in self.of)

    @model_validator(mode="after")
    def _product_of_positive(self) -> Self:
        if self.how == "product" and self.scale == "z":
            raise refuse(
                "a product of z-scores makes two low scores a high one",
                path=("scale",),
                found="how: product, scale: z",
                expected="`scale: ranks`, or `raw` for scores that are above 0",
                remedy="write `scale: ranks`",
            )
        return self


class DisagreementScore(ScoreSettings):
    """How far several scores are apart on a row: where they disagree one of them is wrong, or the row is hard."""

    kind: Literal["disagreement"]
    """`disagreement`: the standard deviation of several scores of a row. A row that lacks one of them has none."""
    of: tuple[str, ...] = Field(min_length=2)
    """Names of the scores."""
    scale: Literal["ranks", "z"] = "ranks"
    """What is compared: ranks, from 0 for the lowest row to 1 for the highest, or z-scores. Scores as they are have
    scales of their own, which are no disagreement."""

    @property
    def reads(self) -> tuple[tuple[str, str], ...]:
        return tuple(("of", name) for name in self.of)


SCORE_KINDS: Mapping[str, type[ScoreSettings]] = {
    "length": LengthScore,
    "form": FormScore,
    "column": ColumnScore,
    "ifd": IFDScore,
    "perplexity": PerplexityScore,
    "logprob": LogProbScore,
    "rds": RDSScore,
    "reward_model": RewardModelScore,
    "judge": JudgeScore,
    "deita": DEITAScore,
    "instag": InsTagScore,
    "pass_rate": PassRateScore,
    "combine": CombineScore,
    "disagreement": DisagreementScore,
}
"""Every score by its kind; what each does is `posttrain.curation.scores.table.SCORES`."""


def _short(value: Any) -> Any:
    """`score: form`: a kind that needs no more than its name."""
    return {"kind": value} if isinstance(value, str) else value


AnyScore = Annotated[
    # one kind a line, as in SCORE_KINDS
    Annotated[
        LengthScore
        | FormScore
        | ColumnScore
        | IFDScore
        | PerplexityScore
        | LogProbScore
        | RDSScore
        | RewardModelScore
        | JudgeScore
        | DEITAScore
        | InsTagScore
        | PassRateScore
        | CombineScore
        | DisagreementScore,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_short),
]
"""Every kind of score; the name of a kind alone may stand for the group."""
