"""The language model of a score, with its encoder and its store of what it said; and a row's prompt and answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from posttrain.curation.rows import Pool, Tools
from posttrain.data.encode import Encoder
from posttrain.data.reward_encode import Rated
from posttrain.errors import ConfigError, DataError
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import load
from posttrain.models.reward.scoring import scored_part
from posttrain.types import Comparison, Example, Message, Task

WINDOW = 256
"""Rows that are packed together: enough to fill batches well, few enough that a kill costs little."""


@dataclass(frozen=True, slots=True)
class AskedModel:
    """A causal LM and how it is spoken to."""

    model: Any
    encoder: Encoder
    fingerprint: str
    """Of its weights and of how rows become ids: what is kept of it depends on both."""
    context: int | None
    """Positions that it has; None where its config names none."""


def asked_model(name: str | None, label: str, tools: Tools) -> AskedModel:
    """The model of a score, or the policy of the selection where none is named.

    Raises:
        ConfigError: neither is known.
        ModelError: it is not there, or cannot be loaded.
    """
    known = name or tools.model
    if known is None:
        raise ConfigError(
            f"the score `{label}` needs a model, and no policy is known here",
            where=f"score {label}",
            expected="a catalogue name, a folder or a hub id",
            example="score: {kind: ifd, model: smollm2-135m-instruct}",
            remedy="write `model:` beside its `kind`",
        )
    loaded = load(known, device=device_of(tools.device), say=tools.progress.say)
    # Without a limit of length: a row that is too long has no score and is counted, in whole and not in part.
    encoder = Encoder(loaded.tokenizer, replace(loaded.speech.settings(), max_length=None))
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    return AskedModel(loaded.model, encoder, f"{loaded.fingerprint} {encoder.version}", context)


def windows(pool: Pool) -> Iterator[list[tuple[int, Example]]]:
    """The rows in play with their examples, WINDOW at a time."""
    rows = iter(pool.kept.tolist())
    while window := list(islice(rows, WINDOW)):
        yield list(zip(window, pool.rows.examples(window), strict=True))


def answered(example: Example) -> Rated | None:
    """A row's prompt and responses, the best one first; None for a row that has no prompt or no answer.

    Of a conversation the last turn of the assistant counts, the turns before it are its prompt; of a task the answer
    that it is checked by.
    """
    if isinstance(example, Task):
        if not example.answer:
            return None
        return Rated(example.prompt, ((Message("assistant", example.answer),),), example.row, example.tools)
    try:
        part = scored_part(example)
    except DataError:
        return None
    if isinstance(example, Comparison):
        order = example.ranking or (example.winner, *(i for i in range(len(part.responses)) if i != example.winner))
        part = replace(part, responses=tuple(part.responses[index] for index in order))
    return part
