"""Retrieval: passages of a folder of documents stand before the question; then it is answered once, or by `then`.

    passages    cut at paragraph ends, about `chunk_tokens` long
    ranked      by BM25 or embeddings (posttrain/inference/similarity.py)
    packed      from the likest on, each that still has room in `context_tokens`, at most `top`
    ordered     as `order` says: what stands at the ends of a long prompt is used best (Liu et al. 2024,
                arXiv:2307.03172, section 2.3)

Lewis et al. 2020, arXiv:2005.11401, for the idea. Deviations: nothing is trained, passages are found once and by the
question alone, and all of them stand in one prompt (their "RAG-Sequence" weighs answers over passages).

The solution's notes name the passages that stood in the prompt, and those that had no room; its facts count them.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.strategies import Retrieval
from posttrain.errors import ConfigError
from posttrain.inference.documents import Library, Passage, library_of
from posttrain.inference.nested import CarryOut, answered
from posttrain.inference.prompts import last_user, question_text, with_question
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Solving

_NAMED = 8
"""Passages without room that are named; the others are counted."""


async def solve(solving: Solving, settings: Retrieval, carry_out: CarryOut) -> Solution:
    library = library_of(solving.asked, settings)
    asked = solving.prompt[last_user(solving.prompt)].content or ""
    ranked = library.ranked(question_text(solving.prompt), unrelated=settings.top is None)
    packed, left_out = pack(solving, ranked, settings)
    text = "\n\n".join(passage.block for passage in ordered(packed, library, settings))
    solving.facts.update(
        passages=len(packed), left_out=len(left_out), context_tokens=len(solving.text_ids(text)) if packed else 0
    )
    if packed:
        solving.prompt = with_question(solving.prompt, settings.prompt.format(documents=text, question=asked))
        solving.notes.append("in the prompt: " + ", ".join(passage.name for passage in packed))
    else:
        solving.notes.append("no passage has a word of the question: it was asked alone")
    if left_out:
        names = ", ".join(passage.name for passage in left_out[:_NAMED])
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        solving.notes.append(f"no room for: {names}{more}")
    return await answered(solving, settings, carry_out)


def pack(solving: Solving, ranked: Sequence[Passage], settings: Retrieval) -> tuple[list[Passage], list[Passage]]:
    """The passages that stand in the prompt, and those that were wanted and have no room, both likest first.

    A passage is never cut, and one that has no room does not keep a shorter one after it out.

    Raises:
        ConfigError: there are passages, and not one has room.
    """
    wanted = ranked if settings.top is None else ranked[: settings.top]
    if settings.context_tokens is None:
        return list(wanted), []
    packed: list[Passage] = []
    left_out: list[Passage] = []
    used = 0
    for passage in wanted:
        fits = used + passage.block_tokens <= settings.context_tokens
        (packed if fits else left_out).append(passage)
        used += passage.block_tokens if fits else 0
    # Blocks are counted one by one, and a tokenizer may write all together in some tokens more: the limit holds.
    while packed and len(solving.text_ids("\n\n".join(one.block for one in packed))) > settings.context_tokens:
        left_out.insert(0, packed.pop())
    if wanted and not packed:
        raise ConfigError(
            "not one passage has room before the question",
            where=settings.documents,
            found=f"the shortest has {min(passage.block_tokens for passage in wanted)} tokens with its name, "
            f"context_tokens: {settings.context_tokens}",
            expected="room for one passage or more",
            remedy="raise `context_tokens`, or lower `chunk_tokens`",
        )
    return packed, left_out


def ordered(packed: Sequence[Passage], library: Library, settings: Retrieval) -> list[Passage]:
    """The passages as they stand in the prompt."""
    if settings.order == "document":
        places = {passage: at for at, passage in enumerate(library.passages)}
        return sorted(packed, key=lambda passage: places[passage])
    return list(packed) if settings.order == "best_first" else list(reversed(packed))
