"""Examples that stand before a question: out of which file, how many, and by what they are chosen."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.values import Float, Int, Settings, is_changed, refuse


class BM25Similarity(Settings):
    """By the words that two texts share: Okapi BM25 (Robertson and Zaragoza 2009)."""

    kind: Literal["bm25"] = "bm25"
    """`bm25`: words in common, rare ones above all."""
    k1: Float = Field(default=1.5, ge=0)
    """How fast the repetition of a word stops counting."""
    b: Float = Field(default=0.75, ge=0, le=1)
    """How much long texts are marked down; 0: not at all."""


class EmbeddingSimilarity(Settings):
    """By the cosine of two texts' embeddings; needs the extra `embed`."""

    kind: Literal["embeddings"]
    """`embeddings`: texts that mean the same, also in other words."""
    model: str
    """Folder of a sentence-transformers model; nothing is fetched."""


def _short(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnySimilarity = Annotated[
    Annotated[BM25Similarity | EmbeddingSimilarity, Field(discriminator="kind")], BeforeValidator(_short)
]
"""Every way in which texts are alike; `bm25` alone stands for its defaults."""


class Demonstrations(Settings):
    """Examples out of a file. The path alone may stand for the group."""

    path: str
    """File with questions and answers, in any format that training reads."""
    count: Int = Field(default=4, ge=1)
    """Examples before each question."""
    choose: Literal["random", "nearest", "diverse"] = "random"
    """`random`: the same for every question; `nearest`: most like the question; `diverse`: like it, and unlike each
    other. The asked question itself is never among them."""
    seed: Int = Field(default=0, ge=0)
    """Of `random`."""
    similarity: AnySimilarity = BM25Similarity()
    """What `nearest` and `diverse` mean by alike."""
    diversity: Float = Field(default=0.5, ge=0, le=1)
    """Of `diverse`: the weight of being unlike those chosen already; 0: as `nearest`."""
    form: Literal["turns", "text"] = "turns"
    """`turns`: earlier turns of the conversation; `text`: written out before the question, in its own turn."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, (str, os.PathLike)) else value

    @model_validator(mode="after")
    def _keys_are_used(self) -> Self:
        # A key that changes nothing would be taken for one that does.
        for key, users in (("seed", ("random",)), ("similarity", ("nearest", "diverse")), ("diversity", ("diverse",))):
            if is_changed(self, key) and self.choose not in users:
                raise refuse(
                    f"`{key}` has no part in `choose: {self.choose}`",
                    path=(key,),
                    found=f"choose: {self.choose}",
                    expected=" or ".join(f"`choose: {user}`" for user in users),
                    remedy=f"write `choose: {users[0]}`, or leave `{key}` out",
                )
        return self
