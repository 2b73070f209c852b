"""Strategies that put something before the question: examples, documents. Each may wrap another strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.strategies.base import ScorerSettings, StrategySettings
from posttrain.config.strategies.demonstrations import AnySimilarity, BM25Similarity, Demonstrations
from posttrain.config.strategies.prompts import require_placeholders
from posttrain.config.values import Int, is_changed, refuse

if TYPE_CHECKING:
    # Resolved where the union is complete (`posttrain.config.strategies`), which these records are a part of.
    AnyStrategy = StrategySettings

DOCUMENTS = """Answer the question with the help of these documents.

{documents}

Question: {question}"""


def _kind_alone(value: Any) -> Any:
    """`then: chain_of_thought`, of a kind that needs no more."""
    return {"kind": value} if isinstance(value, str) else value


class ContextStrategy(StrategySettings):
    """Something stands before the question; then it is answered once, or by another strategy."""

    then: Annotated[AnyStrategy | None, BeforeValidator(_kind_alone)] = None
    """The strategy that answers, any kind: `then: {kind: best_of_n, n: 8, scorer: logprob}`. Its `sampling` is in
    force, and `spend` stands here for both; null: one answer."""

    @model_validator(mode="after")
    def _one_place_for_each_key(self) -> Self:
        if self.then is None:
            return self
        if is_changed(self, "sampling"):
            raise refuse(
                "`sampling` has no part where another strategy answers",
                path=("sampling",),
                found=f"sampling beside then: {{kind: {self.then.label}}}",
                expected="the sampling of the strategy that draws",
                remedy="write `sampling` under `then`",
            )
        if is_changed(self.then, "spend"):
            raise refuse(
                "what a prompt may cost is limited once, for both strategies",
                path=("then", "spend"),
                found="spend under then",
                expected=f"`spend` beside `kind: {super().label}`",
                remedy="move `spend` out of `then`",
            )
        return self

    @property
    def label(self) -> str:
        own = super().label
        return own if self.name is not None or self.then is None else f"{own}.{self.then.label}"

    @property
    def scorers(self) -> tuple[ScorerSettings, ...]:
        return (*super().scorers, *(() if self.then is None else self.then.scorers))

    @property
    def parts(self) -> tuple[StrategySettings, ...]:
        return (self, *(() if self.then is None else self.then.parts))


class FewShot(ContextStrategy):
    """Examples with their answers stand before the question."""

    kind: Literal["few_shot"] = "few_shot"
    """`few_shot`: examples out of a file, then the answer."""
    demonstrations: Demonstrations
    """Out of which file, how many, and by what they are chosen."""


class Retrieval(ContextStrategy):
    """Passages out of a folder of documents stand before the question."""

    kind: Literal["retrieval"] = "retrieval"
    """`retrieval`: the passages most like the question, then the answer."""
    documents: str
    """Folder of documents: .txt, .md, and .jsonl whose rows have `text`."""
    files: str = "**/*"
    """Which of its files, as a pattern: `**/*.md`; hidden files are never read."""
    chunk_tokens: Int = Field(default=200, ge=8)
    """About so many tokens are one passage; it ends where a paragraph ends, if one does."""
    overlap_tokens: Int = Field(default=40, ge=0)
    """About so many tokens of a passage are the beginning of the next one as well."""
    top: Int | None = Field(default=5, ge=1)
    """Most passages before a question; null: all that `context_tokens` has room for."""
    context_tokens: Int | None = Field(default=None, ge=1)
    """Tokens that all passages may take together; null: no limit but `top`. What has no room is named."""
    order: Literal["best_first", "best_last", "document"] = "best_last"
    """How they stand: the likest first, next to the question, or as in the documents."""
    similarity: AnySimilarity = BM25Similarity()
    """What alike means."""
    prompt: str = DOCUMENTS
    """The user's turn: {documents}, {question}."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        require_placeholders(self.prompt, "prompt", ("documents", "question"))
        if self.overlap_tokens >= self.chunk_tokens:
            raise refuse(
                "passages would overlap as a whole",
                path=("overlap_tokens",),
                found=f"overlap_tokens: {self.overlap_tokens}, chunk_tokens: {self.chunk_tokens}",
                expected="less than `chunk_tokens`",
                remedy=f"write `overlap_tokens: {self.chunk_tokens // 5}`",
            )
        if self.top is None and self.context_tokens is None:
            raise refuse(
                "all documents would stand before each question",
                path=("top",),
                found="top: null, context_tokens: null",
                expected="a number of passages, or a limit of tokens",
                remedy="write `context_tokens: 2000`, or `top: 5`",
            )
        if self.context_tokens is not None and self.context_tokens < self.chunk_tokens:
            raise refuse(
                "no whole passage has room",
                path=("context_tokens",),
                found=f"context_tokens: {self.context_tokens}, chunk_tokens: {self.chunk_tokens}",
                expected="`chunk_tokens` or more",
                remedy=f"write `context_tokens: {4 * self.chunk_tokens}`, or smaller passages",
            )
        return self
