"""From the settings of an embedding to the vectors of the rows that are still in play.

    embedded = embed(TfidfEmbedding(), pool, tools)
    embedded.vectors                        # float32 [K, D], of length 1, memory-mapped where there is a cache

Their key in the cache is what they depend on: all rows, which of them are in play, the settings and the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from posttrain.config.embeddings import (
    AnyEmbedding,
    ColumnEmbedding,
    PolicyEmbedding,
    SentenceEmbedding,
    TfidfEmbedding,
)
from posttrain.curation.embeddings.cache import cached_vectors
from posttrain.curation.embeddings.column import column_vectors
from posttrain.curation.embeddings.sentences import sentence_vectors
from posttrain.curation.embeddings.tfidf import tfidf_vectors
from posttrain.curation.rows import Pool, Tools
from posttrain.curation.said import Said, content_key, forget
from posttrain.errors import ConfigError
from posttrain.models.folders.named import named_content
from posttrain.models.sentence import load_sentence_model

WINDOW = 256
"""Rows whose vectors are kept together: what a kill costs."""
VERSION = 1
"""Part of every key; grows whenever the same rows would have other vectors."""


@dataclass(frozen=True, slots=True)
class EmbeddedRows:
    """EmbeddedRows(vectors=array([[0.6, 0.8], ...]), notes=("3 rows hold no text to compare",))"""

    vectors: np.ndarray
    """float32 [K, D], of length 1; of zeros where a row has nothing to compare."""
    notes: tuple[str, ...] = ()


def embed(settings: AnyEmbedding, pool: Pool, tools: Tools) -> EmbeddedRows:
    """The vectors of the pool's rows, in their order.

    Raises:
        MissingExtraError: the package of the kind is not installed.
        ConfigError, ModelError: the model is not named, not there, or cannot be loaded.
        EncodingError, RowError: a row cannot be embedded; it names the row.
    """
    if not len(pool):  # a step before has taken every row
        return EmbeddedRows(np.empty((0, 0), np.float32))
    notes: list[str] = []
    written: list[Callable[[], None]] = []
    made_of, make = _maker(settings, pool, tools, notes, written)
    key = hashlib.sha256()
    for part in (VERSION, pool.rows.fingerprint, settings.model_dump_json(), made_of):
        key.update(f"{part}\n".encode())
    key.update(np.ascontiguousarray(pool.kept, np.int64).tobytes())
    vectors = cached_vectors(tools.cache, key.hexdigest(), len(pool), make, notes)
    for finish in written:
        finish()
    empty = int((~vectors.any(axis=1)).sum()) if len(vectors) else 0
    if empty:
        notes.append(f"{empty:,} rows have nothing to compare (a vector of zeros): they count as unlike all others")
    return EmbeddedRows(vectors, tuple(notes))


def _maker(
    settings: AnyEmbedding, pool: Pool, tools: Tools, notes: list[str], written: list[Callable[[], None]]
) -> tuple[str, Callable[[], Iterable[np.ndarray]]]:
    """(what the vectors depend on beside rows and settings, a function that computes them)

    Args:
        written: receives what is to be done once all vectors are on disk.
    """
    rows, kept = pool.rows, pool.kept.tolist()
    if isinstance(settings, PolicyEmbedding):
        return _policy_maker(settings, pool, tools, notes, written)
    if isinstance(settings, SentenceEmbedding):
        otherwise = "write `embedding: tfidf`"
        model = load_sentence_model(settings.model, device=_device(tools), otherwise=otherwise)

        def by_sentences() -> Iterable[np.ndarray]:
            with tools.progress.phase("embeddings: sentence_transformers", total=len(kept), unit="rows") as phase:
                yield from sentence_vectors(rows.texts(kept, settings.of), settings, model, phase.advance)

        return str(named_content(settings)), by_sentences
    if isinstance(settings, ColumnEmbedding):

        def by_column() -> Iterable[np.ndarray]:
            values = ((rows.ref(row), rows.column([row], settings.column)[0]) for row in kept)
            return column_vectors(values, settings.column, rows.columns())

        return "", by_column
    assert isinstance(settings, TfidfEmbedding)

    def by_tfidf() -> Iterable[np.ndarray]:
        with tools.progress.phase("embeddings: tfidf", total=len(kept), unit="rows") as phase:
            yield from tfidf_vectors(rows.texts(kept, settings.of), settings, phase.advance)

    return "", by_tfidf


def _policy_maker(
    settings: PolicyEmbedding, pool: Pool, tools: Tools, notes: list[str], written: list[Callable[[], None]]
) -> tuple[str, Callable[[], Iterable[np.ndarray]]]:
    # Here, not above: a selection by words must not wait for torch.
    from posttrain.curation.embeddings.policy import policy_vectors
    from posttrain.data.encode import Encoder
    from posttrain.models.devices import device_of
    from posttrain.models.folders.loading import load
    from posttrain.models.tree.logprobs import Policy

    name = settings.model or tools.model
    if name is None:
        raise ConfigError(
            "`embedding: policy` needs a model, and no policy is known here",
            expected="a catalogue name, a folder or a hub id",
            remedy="write `embedding: {kind: policy, model: FOLDER}`",
        )
    loaded = load(name, device=device_of(tools.device))
    encoder = Encoder(loaded.tokenizer, replace(loaded.speech.settings(), max_length=None))
    made_of = f"{loaded.fingerprint} {encoder.version}"
    how = settings.model_dump_json(exclude={"model", "tokens_at_once"})
    # A file of vectors is written whole or not at all: what a pass over hours has reached lies in a store until then.
    key = f"vectors {VERSION} {made_of} {how}"
    written.append(lambda: forget(tools.cache, key))

    def by_policy() -> Iterable[np.ndarray]:
        policy, cut = Policy(loaded.model), 0
        rows, left = pool.rows, iter(pool.kept.tolist())
        said = Said(tools.cache, key, dtype=np.float32, again=False)
        with said, tools.progress.phase("embeddings: policy", total=len(pool), unit="rows") as phase:
            while window := list(islice(left, WINDOW)):
                keys = [content_key(rows.line(row)) for row in window]
                known = [said.get(key) for key in keys]
                new = [place for place, found in enumerate(known) if found is None]
                names: list[str] = []
                examples = (rows.example(window[place]) for place in new)
                made = policy_vectors(examples, settings, policy, encoder, cut=names)
                vectors = (vector for block in made for vector in block)
                for place, vector in zip(new, vectors, strict=True):
                    # Whether it was cut is part of what is known of a row.
                    was_cut = float(str(rows.ref(window[place])) in names)
                    found = np.array([*vector, was_cut], np.float32)
                    said.put(keys[place], found)
                    known[place] = found
                block = np.stack([found for found in known if found is not None])
                cut += int(block[:, -1].sum())
                yield block[:, :-1]
                phase.advance(len(window))
        if cut:
            notes.append(f"{cut:,} rows are longer than {settings.max_length:,} tokens and are embedded in part")

    return made_of, by_policy


def _device(tools: Tools) -> str:
    from posttrain.models.devices import device_of

    return str(device_of(tools.device))
