"""What the audit's page draws, as plain values: lengths, words of one side only, a map of the responses, scores.

`AuditReport.write` puts them into audit.json; `posttrain.report.audit_page` draws them and computes nothing itself.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from posttrain.auditing.corpus import Sides
from posttrain.auditing.report import Findings
from posttrain.auditing.shortcuts import word_features
from posttrain.auditing.statistics import log_odds
from posttrain.auditing.subject import Subject
from posttrain.data.formats import KIND_NAMES
from posttrain.errors import MissingExtraError

AUDIT_SCHEMA = 1
MOST_VALUES = 4000
"""Values of one distribution; more would only make the file large."""
CLOUD_PAIRS = 5000
CLOUD_WORDS = 40
"""Words of one side's cloud; more would be too small to read."""
CLOUD_Z = 2.5
"""z from which on a word is in a cloud; about one in a hundred would get there by chance."""
MAP_PAIRS = 400
"""t-SNE takes seconds for these, and minutes for thousands."""
DIMENSIONS = 50
"""Singular vectors that t-SNE is given; scikit-learn's documentation advises to reduce to about 50 first."""


def record(report: Findings, *, pictures: bool = True) -> dict[str, Any]:
    """The content of audit.json."""
    corpus = report.corpus
    kind = "rows" if corpus.kind is None else KIND_NAMES[corpus.kind]
    return {
        "schema": AUDIT_SCHEMA,
        "sources": list(corpus.sources)
        or sorted({ref.source for rows in report.subject.refused.values() for ref in rows}),
        "kind": kind,
        "rows": len(corpus),
        "responses": len(corpus.responses),
        "refused": {reason: len(rows) for reason, rows in report.subject.refused.items()},
        "checks": {name: round(seconds, 3) for name, seconds in report.ran.items()},
        "seconds": round(report.seconds, 2),
        "pictures": _pictures(report.subject) if pictures and len(corpus) else {},
    }


def _pictures(subject: Subject) -> dict[str, Any]:
    pictures: dict[str, Any] = {"lengths": _length_values(subject)}
    if len(subject.corpus.sides):
        pictures["clouds"] = word_clouds(subject)
    pictures["scores"] = _score_values(subject)
    if subject.measured is not None:
        pictures["model"] = _model(subject)
    if len(subject.corpus.responses) >= 20:
        # Everything else needs numpy alone: without scikit-learn the page says what is missing, and has all the others.
        try:
            pictures["map"] = response_map(subject)
        except MissingExtraError as error:
            pictures["map"] = {"missing": f"{error.problem}: {error.remedy}"}
    return pictures


def _thinned(values: np.ndarray, digits: int = 3) -> list[float]:
    # Every k-th value, not the first ones: files are often sorted by source or by length.
    step = -(-len(values) // MOST_VALUES) if len(values) else 1
    return [round(float(value), digits) for value in values[::step]]


def _length_values(subject: Subject) -> dict[str, list[float]]:
    words, sides = subject.corpus.responses.word_counts, subject.corpus.sides
    if not len(sides):
        return {"responses": _thinned(words)}
    chosen, rejected = words[sides.chosen_P].astype(float), words[sides.rejected_P].astype(float)
    return {
        "chosen": _thinned(chosen),
        "rejected": _thinned(rejected),
        "difference": _thinned(chosen - rejected),
        "log_ratio": _thinned(np.log2((1 + chosen) / (1 + rejected))),
    }


def word_clouds(subject: Subject) -> dict[str, list[list[Any]]]:
    """The words that set the sides apart: {"chosen": [[word, z, pairs here, pairs there], ...], "rejected": ...}

    Counted are pairs in which one side alone has the word; weighted by log-odds, not by counts.
    """
    sides = subject.corpus.sides.sample(CLOUD_PAIRS, subject.seed)
    both = word_features(subject, sides)
    chosen: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for chosen_words, rejected_words in zip(*both, strict=True):
        chosen.update(chosen_words - rejected_words)
        rejected.update(rejected_words - chosen_words)
    # A word in one or two pairs is an accident, however one-sided.
    fewest = max(3, len(sides) // 1000)
    frequent = {word for word in chosen.keys() | rejected.keys() if chosen[word] + rejected[word] >= fewest}
    clouds: dict[str, list[list[Any]]] = {"chosen": [], "rejected": []}
    for word, z in log_odds({w: chosen[w] for w in frequent}, {w: rejected[w] for w in frequent}) if frequent else ():
        side = clouds["chosen" if z > 0 else "rejected"]
        # "i can" beside "can help" and "i" says the same three times; words come sorted by |z|, the best one first.
        parts = set(word.split())
        repeats = any(parts & set(other[0].split()) and (" " in word or " " in other[0]) for other in side)
        if abs(z) >= CLOUD_Z and len(side) < CLOUD_WORDS and not repeats:
            side.append([word, round(abs(z), 2), chosen[word], rejected[word]])
    return clouds


def _score_values(subject: Subject) -> dict[str, list[float]]:
    scores, sides = subject.corpus.score_S, subject.corpus.sides
    known = (
        np.isfinite(scores[sides.chosen_P]) & np.isfinite(scores[sides.rejected_P]) if len(sides) else np.empty(0, bool)
    )
    if not known.any():
        return {}
    chosen, rejected = scores[sides.chosen_P][known], scores[sides.rejected_P][known]
    return {"chosen": _thinned(chosen), "rejected": _thinned(rejected), "difference": _thinned(chosen - rejected)}


def _model(subject: Subject) -> dict[str, list[float]]:
    measured = subject.measured
    assert measured is not None
    return {
        "logprob_chosen": _thinned(measured.logprob_C / measured.tokens_C),
        "logprob_rejected": _thinned(measured.logprob_R / measured.tokens_R),
        "surprise_chosen": _thinned(measured.surprise_C),
        "surprise_rejected": _thinned(measured.surprise_R),
        "alike": _thinned(measured.alike_P),
    }


# ---------------------------------------------------------------- the map


def response_map(subject: Subject) -> dict[str, Any]:
    """Responses in the plane, near where their words are alike: {"points": [[x, y, side], ...], "how": "..."}

    TF-IDF, the first 50 singular vectors, t-SNE (van der Maaten and Hinton 2008); a seeded sample. Sides: 0 chosen,
    1 rejected, or 0 for responses without sides. Where the two colours part, a glance tells the winner.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError(
            "the map of the responses needs scikit-learn", remedy="`pip install 'posttrain[audit]'`"
        ) from error

    corpus = subject.corpus
    sides = corpus.sides.sample(MAP_PAIRS, subject.seed)
    if len(sides):
        responses = [*sides.chosen_P.tolist(), *sides.rejected_P.tolist()]
    else:
        every = Sides(*(np.arange(len(corpus.responses)),) * 3)
        responses = every.sample(2 * MAP_PAIRS, subject.seed).chosen_P.tolist()

    texts = [corpus.responses[index] for index in responses]
    weights = TfidfVectorizer(max_features=20_000, token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit_transform(texts)
    components = min(DIMENSIONS, weights.shape[1] - 1, len(texts) - 1)
    if components < 2:
        return {"missing": "the responses have too few different words for a map"}
    reduced = TruncatedSVD(components, random_state=subject.seed).fit_transform(weights)
    # Without some noise, texts that are the same divide by zero.
    reduced += np.random.default_rng(subject.seed).normal(0, 1e-4, reduced.shape)

    perplexity = min(30.0, max(2.0, len(texts) / 8))
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=subject.seed, max_iter=500).fit_transform(reduced)
    plane -= (plane.max(axis=0) + plane.min(axis=0)) / 2
    plane /= np.maximum(np.abs(plane).max(axis=0), 1e-9)
    points = [
        [round(float(x), 4), round(float(y), 4), int(bool(len(sides)) and place >= len(sides))]
        for place, (x, y) in enumerate(plane)
    ]
    return {"points": points, "how": f"TF-IDF, {components} singular vectors, t-SNE; {len(texts):,} responses"}
