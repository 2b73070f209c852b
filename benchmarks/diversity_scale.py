"""How long TF-IDF embeddings and the rules of diversity take on many rows, and how much memory.

    python -m benchmarks.diversity_scale                              # 200,000 rows, 20,000 chosen, every rule
    python -m benchmarks.diversity_scale --rows 20000 --keep 2000 --rules k_centre deita

Prints one JSON object. The goal: the embedding and one rule within 6 minutes and under 2.5 GB on two cores. Every part
runs in a process of its own, so that its peak memory is its own. The rows are texts of one topic each out of 500, with
word frequencies like those of a language, so that there is something to be diverse about; one in twenty is a copy of an
earlier row with a tenth of its words exchanged.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.auditing.texts import TextStore
from posttrain.config.diversity import DEITA, DiversitySettings, FacilityLocation, KCentre, SemDeDup
from posttrain.config.embeddings import TfidfEmbedding
from posttrain.curation.diversity.choose import choose
from posttrain.curation.embeddings.cache import cached_vectors
from posttrain.curation.embeddings.tfidf import tfidf_vectors

RULES: dict[str, DiversitySettings] = {
    "semdedup": SemDeDup(kind="semdedup", threshold=0.9),
    "k_centre": KCentre(kind="k_centre"),
    "facility_location": FacilityLocation(kind="facility_location"),
    "deita": DEITA(kind="deita", threshold=0.9),
}
TOPICS = 500


def texts(rows: int, words_per_row: int, seed: int) -> Iterator[str]:
    """Half of a text's words are those of its topic."""
    generator = np.random.default_rng(seed)
    syllables = ["ba", "re", "ti", "no", "lu", "sa", "me", "ko", "di", "ra", "ve", "po", "ni", "ta", "ge", "mo"]
    words = np.array(["".join(generator.choice(syllables, generator.integers(1, 5))) for _ in range(50_000)])
    frequency = 1 / np.arange(5, 5 + len(words))
    cumulative = np.cumsum(frequency / frequency.sum())
    topics = generator.integers(0, len(words), (TOPICS, 200))
    chosen = np.empty(0, dtype=np.int64)
    for number in range(rows):
        if number % 20 == 19:
            chosen = chosen.copy()
            exchanged = generator.random(len(chosen)) < 0.1
            chosen[exchanged] = generator.integers(0, len(words), int(exchanged.sum()))
        else:
            length = int(np.exp(generator.normal(np.log(words_per_row), 0.5)).clip(8, 1500))
            chosen = np.searchsorted(cumulative, generator.random(length))
            own = generator.random(length) < 0.5
            chosen[own] = topics[generator.integers(0, TOPICS), generator.integers(0, 200, int(own.sum()))]
        yield " ".join(words[chosen].tolist())


def embedding(folder: Path, rows: int, words_per_row: int) -> dict[str, Any]:
    """Texts lie on disk before the clock starts, as in a selection."""
    store = TextStore()
    for text in texts(rows, words_per_row, 0):
        store.add(text)
    started = time.monotonic()
    cached_vectors(folder, "benchmark", rows, lambda: tfidf_vectors(store, TfidfEmbedding()), [])
    return {"seconds": round(time.monotonic() - started, 1)}


def rule(folder: Path, name: str, rows: int, keep: int) -> dict[str, Any]:
    vectors = cached_vectors(folder, "benchmark", rows, lambda: iter(()), [])
    scores = np.random.default_rng(1).random(rows)
    started = time.monotonic()
    chosen = choose(vectors, RULES[name], scores=scores, budget=keep)
    seconds = time.monotonic() - started
    reasons = {reason: chosen.reasons.count(reason) for reason in sorted(set(chosen.reasons))}
    return {"seconds": round(seconds, 1), "kept": len(chosen.kept), "removed": reasons, "notes": list(chosen.notes)}


def in_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What it returns, with the largest memory of the process that ran it."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, function, arguments))
    process.start()
    result: dict[str, Any] = receiver.recv()
    process.join()
    return result


def _measured(sender: Any, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    result = function(*arguments)
    sender.send({**result, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--keep", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=150, help="median words of a row")
    parser.add_argument("--rules", nargs="*", choices=list(RULES), default=list(RULES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = {"embedding": in_process(embedding, Path(folder), options.rows, options.words)}
        for name in options.rules:
            measured[name] = in_process(rule, Path(folder), name, options.rows, options.keep)
    print(json.dumps({"rows": options.rows, "keep": options.keep, **measured}, indent=2))


if __name__ == "__main__":
    main()
