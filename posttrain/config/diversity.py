"""The step `diversify` of a selection: which rows are unlike enough to be kept beside each other.

- {kind: diversify, method: k_centre, budget: 1000}
- {kind: diversify, method: {kind: deita, threshold: 0.9}, score: quality, embedding: {kind: policy}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.embeddings import AnyEmbedding, PolicyEmbedding, TfidfEmbedding
from posttrain.config.step import StepSettings
from posttrain.config.values import Float, Int, Settings, is_changed, refuse


class DiversitySettings(Settings):
    """A rule by which rows are chosen that are unlike each other."""

    IS_FAMILY: ClassVar[bool] = True

    NEEDS: ClassVar[tuple[Literal["budget", "score", "embedding"], ...]] = ("embedding",)
    """What the step has to give it."""


class SemDeDup(DiversitySettings):
    """Semantic duplicates (Abbas et al. 2023, arXiv:2303.09540): k-means, then cosines within each cluster."""

    kind: Literal["semdedup"]
    """`semdedup`: of rows whose cosine is above a threshold, all but one go."""
    threshold: Float = Field(default=0.95, gt=-1, lt=1)
    """Cosine, 1 - epsilon in the paper, above which two rows say the same."""
    keep: Literal["hard", "easy", "score"] = "hard"
    """Which of them stays. `hard`: the farthest from its cluster's centre, the paper's rule; `easy`: the nearest;
    `score`: the best by the step's `score`."""
    clusters: Int | None = Field(default=None, ge=1)
    """Of k-means; null: the square root of the number of rows. Rows of two clusters are not compared."""


class KCentre(DiversitySettings):
    """Greedy farthest point (Gonzalez 1985): no row of the input is far from a chosen one, within twice the optimum."""

    NEEDS = ("embedding", "budget")

    kind: Literal["k_centre"]
    """`k_centre`: each time the row that is farthest from all chosen ones."""
    quality: Float = Field(default=0, ge=0)
    """How much the step's `score` counts: a row's distance is multiplied by its rank in it, from 1/rows to 1, to this
    power. The bound of twice the optimum holds for 0."""


class FacilityLocation(DiversitySettings):
    """Every row has a chosen one that is like it: lazy greedy (Minoux 1978), at least 1 - 1/e of the best."""

    NEEDS = ("embedding", "budget")

    kind: Literal["facility_location"]
    """`facility_location`: the sum over all rows of the cosine to the nearest chosen one, as large as can be."""
    neighbours: Int = Field(default=32, ge=1)
    """Beyond `exact_rows`, cosines to this many nearest rows count for each row, and all others as 0."""
    probes: Int = Field(default=8, ge=1)
    """Neighbours are looked for in this many clusters of k-means: the row's own and those nearest to it."""
    exact_rows: Int = Field(default=4000, ge=0, le=20_000)
    """Up to so many rows all cosines count: 8 bytes for each that is above 0."""
    quality: Float = Field(default=0, ge=0)
    """Added for each chosen row, times its rank in the step's `score` from 1/rows to 1."""


class DPP(DiversitySettings):
    """A determinantal point process: greedy MAP (Chen et al. 2018, arXiv:1709.05135), rows x budget x 4 bytes large."""

    NEEDS = ("embedding", "budget")

    kind: Literal["dpp"]
    """`dpp`: the volume that the chosen rows span, as large as can be."""
    kernel: Literal["gaussian", "cosine"] = "gaussian"
    """How alike two rows are. `gaussian`: exp(-(1 - cosine) / width); `cosine`: itself, whose volume is 0 beyond as
    many rows as the embedding has dimensions."""
    width: Float = Field(default=0.5, gt=0)
    """Of `gaussian`, in cosine: smaller, and only close rows count as alike."""
    quality: Float = Field(default=0, ge=0)
    """A row's quality is exp(quality x its rank in the step's `score`, from 1/rows to 1); it scales its vector."""

    @model_validator(mode="after")
    def _width_is_used(self) -> Self:
        if self.kernel == "cosine" and is_changed(self, "width"):
            raise refuse(
                "`width` has no part in `kernel: cosine`",
                path=("width",),
                remedy="write `kernel: gaussian`, or leave `width` out",
            )
        return self


class DEITA(DiversitySettings):
    """DEITA's walk (Liu et al. 2023, arXiv:2312.15685): down the scores, passing over what is like a kept row."""

    NEEDS = ("embedding", "score")

    kind: Literal["deita"]
    """`deita`: the best scores that are unlike each other."""
    threshold: Float = Field(default=0.9, gt=-1, lt=1)
    """A row is kept if its cosine to the nearest kept one is below this."""


class Quotas(DiversitySettings):
    """So many rows of each category, language or source; in each the best by score, or drawn by seed without one."""

    NEEDS = ()

    kind: Literal["quotas"]
    """`quotas`: numbers of rows by what they are."""
    by: Literal["column", "language", "source"] = "column"
    """`column`: what a column holds; `language`: of the prompt, by the audit's guess ("unknown" where it is not sure);
    `source`: the file."""
    column: str | None = None
    """With `by: column`, its name; a dot leads into an object. Its value is compared as text, a missing one is
    "missing"."""
    counts: Mapping[str, Int] = Field(default_factory=dict)
    """Rows of each value."""
    shares: Mapping[str, Float] = Field(default_factory=dict)
    """Or what part of the budget each value gets, together at most 1; "other" is all values that are not named."""
    shortfall: Literal["fewer", "fill", "refuse"] = "fewer"
    """A value that has too few rows: `fewer` rows are kept in all, and it is said; `fill`: the other values that are
    named get what is missing; `refuse`: an error."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.by == "column") != (self.column is not None):
            raise refuse(
                "`by: column` and `column` belong together",
                path=("column",),
                remedy="write `by: column` and `column: category`",
                expected="both or neither",
            )
        if bool(self.counts) == bool(self.shares):
            raise refuse(
                "quotas need numbers of rows, or shares of the budget",
                remedy="write `counts: {code: 200, maths: 300}`, or `shares: {code: 0.4, maths: 0.6}`",
                expected="`counts` or `shares`",
            )
        for key, quotas in (("counts", self.counts), ("shares", self.shares)):
            below = [name for name, value in quotas.items() if value < 0]
            if below:
                raise refuse(
                    f"the quota of `{below[0]}` is below 0",
                    path=(key, below[0]),
                    remedy="write 0 to keep none of it",
                )
        # A sum of decimals may miss 1 by its last digit: 0.1 + 0.2 + 0.7 is above it.
        if (total := sum(self.shares.values())) > 1 + 1e-9:
            raise refuse(
                "the shares come to more than the budget",
                path=("shares",),
                found=f"{total:g} in all",
                expected="at most 1",
                remedy="lower one of them",
            )
        return self


def _name_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnyDiversity = Annotated[
    Annotated[SemDeDup | KCentre | FacilityLocation | DPP | DEITA | Quotas, Field(discriminator="kind")],
    BeforeValidator(_name_alone),
]
"""Every rule; a name alone stands for its defaults."""


class Diversify(StepSettings):
    """Keep rows that are unlike each other, by a rule and an embedding."""

    kind: Literal["diversify"]
    """`diversify`: by embeddings, or by quotas."""
    method: AnyDiversity
    """The rule."""
    embedding: AnyEmbedding = TfidfEmbedding()
    """Which vectors say how alike two rows are."""
    budget: Int | None = Field(default=None, ge=1)
    """Most rows that are kept; null: as many as the rule keeps, where it sets an end of its own."""
    score: str | None = None
    """A score of an earlier step, by name: which of two rows is better, higher first."""

    @property
    def asks_model(self) -> bool:
        compares = not isinstance(self.method, Quotas)
        return compares and isinstance(self.embedding, PolicyEmbedding) and self.embedding.model is None

    @property
    def label(self) -> str:
        return f"diversify {self.method.kind}"

    @model_validator(mode="after")
    def _method_has_what_it_needs(self) -> Self:
        method = self.method
        name = method.kind
        if isinstance(method, Quotas) and is_changed(self, "embedding"):
            raise refuse("quotas compare no texts", path=("embedding",), remedy="leave `embedding` out")
        by_shares = isinstance(method, Quotas) and bool(method.shares)
        if self.budget is None and ("budget" in method.NEEDS or by_shares):
            raise refuse(
                f"`{name}` has no end of its own",
                path=("budget",),
                expected="the number of rows to keep",
                remedy="write `budget: 1000`",
            )
        by_score = "score" in method.NEEDS or (isinstance(method, SemDeDup) and method.keep == "score")
        weighed = bool(isinstance(method, KCentre | FacilityLocation | DPP) and method.quality)
        if self.score is None and (by_score or weighed):
            raise refuse(
                f"`{name}` goes by a score here, and none is named",
                path=("score",),
                expected="the name of a score of an earlier step",
                remedy="write `score: NAME`, after a step `{kind: score, ...}`",
            )
        if self.score is not None and isinstance(method, KCentre | FacilityLocation | DPP) and not weighed:
            raise refuse(
                f"`score` changes nothing in `{name}` while its `quality` is 0",
                path=("score",),
                remedy=f"write `method: {{kind: {name}, quality: 1}}`, or leave `score` out",
            )
        return self
