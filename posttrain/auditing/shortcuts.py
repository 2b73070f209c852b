"""How well a glance tells the winner: first words, last words, formatting, single words and pairs of words.

Each is a logistic regression on the difference of the two sides, in 5-fold cross-validation over prompts. On data
whose winners are better in substance, a glance is right little more often than a coin.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from posttrain.auditing.corpus import Sides
from posttrain.auditing.finding import Finding, Severity, percent
from posttrain.auditing.statistics import Differences, Predicted, cross_validate
from posttrain.auditing.subject import Subject

TOKENS = re.compile(r"\w+(?:['\u2019]\w+)?|[^\w\s]")
HEAD_COUNTS = (1, 3, 5)
_REACH = 160
"""Characters at an end that are looked at for five tokens."""
SHOWN_PHRASES = 8
END_PAIRS = 5_000
WORD_PAIRS = 5_000
"""Pairs for the bag of words, the one expensive fit."""
WORD_REACH = 4_000
MOST_FEATURES = 40_000

LIMITS: Mapping[str, tuple[float, float]] = {
    "first_tokens": (0.56, 0.62),
    "last_tokens": (0.56, 0.62),
    "formatting": (0.58, 0.65),
    "bag_of_words": (0.68, 0.78),
}
"""Check -> accuracy from which on it is a note, and a warning; the lower end of the interval counts. Words may carry
substance (a name, a refusal), so their limits are higher."""


def first_tokens(subject: Subject) -> list[Finding]:
    """The first 1, 3 and 5 tokens."""
    return _ends(subject, "first_tokens", "first", lambda text: tokens(text[:_REACH]), lambda found, n: found[:n])


def last_tokens(subject: Subject) -> list[Finding]:
    """The last 1, 3 and 5 tokens."""
    return _ends(subject, "last_tokens", "last", lambda text: tokens(text[-_REACH:]), lambda found, n: found[-n:])


def _ends(
    subject: Subject,
    check: str,
    name: str,
    read: Callable[[str], list[str]],
    cut: Callable[[list[str], int], list[str]],
) -> list[Finding]:
    if not subject.has_enough_pairs:
        return []
    sides = subject.sample.sample(END_PAIRS, subject.seed)
    texts = subject.corpus.responses
    both = [[read(texts[int(index)]) for index in side] for side in (sides.chosen_P, sides.rejected_P)]
    accuracies, best = {}, None
    for count in HEAD_COUNTS:
        features = [[_prefixes(cut(found, count), name) for found in side] for side in both]
        differences = presence(features[0], features[1], fewest=2)
        predicted = cross_validate(differences, subject.corpus.prompt_key_R[sides.row_P])
        accuracies[str(count)] = [predicted.accuracy, predicted.low, predicted.high]
        if best is None or predicted.low > best[1].low + 0.01:
            best = (count, predicted, phrases(differences, predicted.weights_F, features))
    assert best is not None
    count, predicted, carried = best
    what = f"the {name} {f'{count} tokens' if count > 1 else 'token'} alone"
    evidence = {"accuracy_by_tokens": accuracies, "phrases": carried, "pairs": len(sides)}
    remedy = (
        "rewrite or drop the answers with these phrases, or balance them over both sides; a model that learns the "
        "phrase instead of the difference looks well on held-out pairs of the same data"
    )
    return _finding(check, what, predicted, evidence, remedy)


def _prefixes(found: list[str], name: str) -> list[str]:
    """["sure", ",", "i"] -> "sure", "sure ,", "sure , i": a phrase counts as a whole."""
    if name == "first":
        return [" ".join(found[:length]) for length in range(1, len(found) + 1)]
    return [" ".join(found[-length:]) for length in range(1, len(found) + 1)]


# ---------------------------------------------------------------- formatting

FORMATTING: Mapping[str, tuple[str, re.Pattern[str]]] = {
    "bulleted list": ("-*\u2022+", re.compile(r"(?:^|\n)[ \t]*[-*\u2022+][ \t]")),
    "numbered list": (".)", re.compile(r"(?:^|\n)[ \t]*\d{1,2}[.)][ \t]")),
    "heading": ("#", re.compile(r"(?:^|\n)#{1,6}[ \t]")),
    "bold": ("*_", re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")),
    "code block": ("`", re.compile(r"```")),
    "inline code": ("`", re.compile(r"(?<!`)`[^`\n]+`(?!`)")),
    "table": ("|", re.compile(r"(?:^|\n)[ \t]*\|.+\|[ \t]*(?=\n|$)")),
    "link": (":]", re.compile(r"https?://|\]\(")),
    "blank line": ("\n", re.compile(r"\n[ \t]*\n")),
    "exclamation mark": ("!\uff01", re.compile(r"[!\uff01]")),
    "question mark": ("?\uff1f", re.compile(r"[?\uff1f]")),
    "emoji": ("", re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")),
    "capitals": ("", re.compile(r"\b[A-Z]{4,}\b")),
}
"""Name -> (signs of which a text must have one, which is quick to see; the pattern)."""
FORMATTED_PAIRS = 10_000


def _format_counts(text: str) -> list[int]:
    return [
        len(pattern.findall(text)) if not signs or any(sign in text for sign in signs) else 0
        for signs, pattern in FORMATTING.values()
    ]


def formatting(subject: Subject) -> list[Finding]:
    """Lists, bold, headings, code, tables, links, emoji: how often and whether at all."""
    if not subject.has_enough_pairs:
        return []
    sides = subject.sample.sample(FORMATTED_PAIRS, subject.seed)
    texts = subject.corpus.responses

    def counts(responses: np.ndarray) -> np.ndarray:
        found = [_format_counts(texts[int(index)]) for index in responses]
        return np.array(found, dtype=float).reshape(len(responses), len(FORMATTING))

    chosen, rejected = counts(sides.chosen_P), counts(sides.rejected_P)
    values = np.concatenate([(chosen > 0) * 1.0 - (rejected > 0), np.log1p(chosen) - np.log1p(rejected)], axis=1)
    names = [*(f"has {name}" for name in FORMATTING), *(f"count of {name}" for name in FORMATTING)]
    predicted = cross_validate(Differences.dense(values, names), subject.corpus.prompt_key_R[sides.row_P])
    shares = {
        name: {"chosen": float((chosen[:, i] > 0).mean()), "rejected": float((rejected[:, i] > 0).mean())}
        for i, name in enumerate(FORMATTING)
        if (chosen[:, i] > 0).any() or (rejected[:, i] > 0).any()
    }
    gaps = sorted(shares, key=lambda name: -abs(shares[name]["chosen"] - shares[name]["rejected"]))
    evidence = {
        "accuracy": predicted.accuracy,
        "interval": [predicted.low, predicted.high],
        "shares": {name: shares[name] for name in gaps[:SHOWN_PHRASES]},
        "pairs": len(sides),
    }
    remedy = (
        "check that formatting is what the annotators meant to reward; else balance it over both sides, or strip it "
        "from both before training"
    )
    widest = f" (most apart: {gaps[0]})" if gaps else ""
    return _finding("formatting", f"formatting alone{widest}", predicted, evidence, remedy)


# ---------------------------------------------------------------- words


def bag_of_words(subject: Subject) -> list[Finding]:
    """Single words and pairs of neighbouring words that one side has and the other has not."""
    if not subject.has_enough_pairs:
        return []
    sides = subject.sample.sample(WORD_PAIRS, subject.seed)
    features = word_features(subject, sides)
    differences = presence(features[0], features[1], fewest=max(3, len(sides) // 2000))
    predicted = cross_validate(differences, subject.corpus.prompt_key_R[sides.row_P])
    evidence = {
        "accuracy": predicted.accuracy,
        "interval": [predicted.low, predicted.high],
        "phrases": phrases(differences, predicted.weights_F, features),
        "pairs": len(sides),
    }
    remedy = (
        "look at the phrases: where they are manner and not substance, rewrite or drop the answers that carry them, or "
        "collect pairs in which both sides have them"
    )
    return _finding("bag_of_words", "single words and word pairs alone", predicted, evidence, remedy)


def word_features(subject: Subject, sides: Sides) -> tuple[list[set[str]], list[set[str]]]:
    """The words and neighbouring words of each side, chosen first."""
    texts = subject.corpus.responses
    both = [
        [words_and_pairs(texts[int(index)][:WORD_REACH]) for index in side]
        for side in (sides.chosen_P, sides.rejected_P)
    ]
    return both[0], both[1]


def words_and_pairs(text: str) -> set[str]:
    found = [token for token in tokens(text) if token[0].isalnum()]
    return {*found, *(f"{a} {b}" for a, b in pairwise(found))}


# ---------------------------------------------------------------- shared


def tokens(text: str) -> list[str]:
    """Words and single signs, in lower case: tokens("Sure, I can!") -> ["sure", ",", "i", "can", "!"]."""
    return TOKENS.findall(text.lower())


def presence(chosen: Iterable[Iterable[str]], rejected: Iterable[Iterable[str]], fewest: int) -> Differences:
    """+1 for what only the chosen side has, -1 for what only the rejected side has; rare features are left out."""
    alone = [(set(a) - set(b), set(b) - set(a)) for a, b in zip(chosen, rejected, strict=True)]
    support = Counter(name for pair in alone for side in pair for name in side)
    common = [name for name, count in support.most_common(MOST_FEATURES) if count >= fewest]
    number = {name: index for index, name in enumerate(common)}
    starts, columns, values = [0], [], []
    for only_chosen, only_rejected in alone:
        for names, sign in ((only_chosen, 1.0), (only_rejected, -1.0)):
            known = sorted(number[name] for name in names if name in number)
            columns += known
            values += [sign] * len(known)
        starts.append(len(columns))
    return Differences(
        np.array(starts, np.int64), np.array(columns, np.int32), np.array(values, np.float32), tuple(common)
    )


def phrases(
    differences: Differences, weights_F: np.ndarray, features: Iterable[Iterable[Iterable[str]]]
) -> list[dict[str, Any]]:
    """The features that decide most pairs, with how often each side has them."""
    if not len(weights_F):
        return []
    support = np.bincount(differences.columns, minlength=len(weights_F))
    order = np.argsort(-np.abs(weights_F) * np.sqrt(support), kind="stable")[: 4 * SHOWN_PHRASES]
    wanted = {differences.names[index] for index in order}
    chosen, rejected = (Counter(_kept(side, wanted)) for side in features)
    found: list[dict[str, Any]] = []
    for index in order:
        name = differences.names[index]
        # "can help" inside "can help with" says the same again.
        if any(name in entry["phrase"] or entry["phrase"] in name for entry in found):
            continue
        side = "chosen" if weights_F[index] > 0 else "rejected"
        found.append({"phrase": name, "predicts": side, "chosen": chosen[name], "rejected": rejected[name]})
        if len(found) == SHOWN_PHRASES:
            break
    return found


def _kept(side: Iterable[Iterable[str]], wanted: set[str]) -> Iterator[str]:
    for names in side:
        yield from wanted.intersection(names)


def _finding(check: str, what: str, predicted: Predicted, evidence: dict[str, Any], remedy: str) -> list[Finding]:
    noted, warned = LIMITS[check]
    if predicted.low <= noted:
        return []
    severity: Severity = "warning" if predicted.low > warned else "note"
    carried = [entry["phrase"] for entry in evidence.get("phrases", ())][:2]
    message = f"{what} can tell the chosen side in {percent(predicted.accuracy)} of held-out pairs"
    if carried:
        message += f" ({', '.join(repr(phrase) for phrase in carried)})"
    return [Finding(check, severity, message, predicted.accuracy, (), evidence, remedy)]
