"""Embeddings of rows: which vector says what a row is about."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.values import Int, Settings, refuse

EmbeddedPart = Literal["prompt", "answer", "both"]


class EmbeddingSettings(Settings):
    """A way from a row to a vector of length 1."""

    IS_FAMILY: ClassVar[bool] = True

    of: EmbeddedPart = "both"
    """What of a row is embedded: its prompt, its answer (of a comparison the best one), or both."""


class TfidfEmbedding(EmbeddingSettings):
    """Words or characters in common, rare ones above all: no model. Needs the extra `audit`."""

    kind: Literal["tfidf"] = "tfidf"
    """`tfidf`: n-grams weighted by TF-IDF, brought to few dimensions by a truncated SVD."""
    unit: Literal["words", "characters"] = "words"
    """What n-grams are made of. Characters compare texts with typing errors and endings, and take longer."""
    shortest: Int = Field(default=1, ge=1, le=16)
    """Units of the shortest n-grams."""
    longest: Int = Field(default=2, ge=1, le=16)
    """Units of the longest n-grams."""
    dimensions: Int = Field(default=128, ge=1, le=4096)
    """Of the vectors; fewer where the rows have fewer."""
    fit_rows: Int = Field(default=50_000, ge=1)
    """Rows, drawn by what they hold, from which the SVD's directions are found; every row is projected on them."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.longest < self.shortest:
            raise refuse(
                "the longest n-grams are shorter than the shortest",
                path=("longest",),
                found=f"shortest: {self.shortest}, longest: {self.longest}",
                remedy=f"write `longest: {self.shortest}` or more",
            )
        return self


class PolicyEmbedding(EmbeddingSettings):
    """The last hidden states of a language model, which needs no model beside the one that is trained."""

    kind: Literal["policy"]
    """`policy`: hidden states of the policy."""
    model: str | None = None
    """A catalogue name, folder or hub id; null: the policy that the rows are selected for."""
    pooling: Literal["weighted", "mean"] = "weighted"
    """`weighted`: a token's weight is its position, so that states which have read more count more (RDS+, Ivison et al.
    2025, arXiv:2503.01807); `mean`: all alike."""
    max_length: Int = Field(default=1024, ge=2)
    """Tokens of a row that are read; what follows them is not, and how many rows that concerns is said."""
    tokens_at_once: Int = Field(default=8192, ge=1)
    """Tokens of one forward pass."""


class SentenceEmbedding(EmbeddingSettings):
    """A sentence-transformers model. Needs the extra `embed`."""

    kind: Literal["sentence_transformers"]
    """`sentence_transformers`: a model that was made for embeddings."""
    model: str
    """Folder of it; nothing is fetched."""
    batch_size: Int = Field(default=64, ge=1)
    """Texts of one forward pass."""


class ColumnEmbedding(Settings):
    """A vector that the rows carry."""

    kind: Literal["column"]
    """`column`: computed elsewhere, a list of numbers in each row."""
    column: str = Field(default="embedding", min_length=1)
    """Its name; a dot leads into an object: `meta.embedding`."""


def _short(value: Any) -> Any:
    """`embedding: tfidf`, and `embedding: {dimensions: 64}`, which is TF-IDF's."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "tfidf", **value} if isinstance(value, dict) and "kind" not in value else value


AnyEmbedding = Annotated[
    Annotated[
        TfidfEmbedding | PolicyEmbedding | SentenceEmbedding | ColumnEmbedding,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_short),
]
"""Every kind of embedding; a name alone stands for its defaults."""
