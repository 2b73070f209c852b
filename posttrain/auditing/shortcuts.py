"""How well a glance tells the winner: first words, last words, formatting, single words and pairs of words.

Checks of `checks.py`, on the regression of `statistics.py`.

Each is a logistic regression on the difference of the two sides, in 5-fold cross-validation over prompts. On data
whose winners are better in substance, a glance is right little more often than a coin.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from posttrain.auditing.corpus import Sides
from posttrain.auditing.finding import AuditFinding, AuditSeverity, percent
from posttrain.auditing.statistics import Differences, Predicted, cross_validate
from posttrain.auditing.subject import Subject

TOKENS = re.compile(r"\w+(?:['\u2019]\w+)?|[^\w\s]")
HEAD_COUNTS = (1, 3, 5)
_END_CHARACTERS = 160
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


def first_tokens(subject: Subject) -> list[AuditFinding]:
    """The first 1, 3 and 5 tokens."""
    return _end_tokens(
        subject,
        "first_tokens",
        "first",
        lambda text: lowercase_tokens(text[:_END_CHARACTERS]),
        lambda words, n: words[:n],
    )


def last_tokens(subject: Subject) -> list[AuditFinding]:
    """The last 1, 3 and 5 tokens."""
    return _end_tokens(
        subject,
        "last_tokens",
        "last",
        lambda text: lowercase_tokens(text[-_END_CHARACTERS:]),
        lambda words, n: words[-n:],
    )


def _end_tokens(
    subject: Subject,
    check: str,
    name: str,
    read: Callable[[str], list[str]],
    cut: Callable[[list[str], int], list[str]],
) -> list[AuditFinding]:
    if not subject.has_enough_pairs:
        return []
    sides = subject.sample.sample(END_PAIRS, subject.seed)
    texts = subject.corpus.responses
    both = [[read(texts[int(index)]) for index in side] for side in (sides.chosen_P, sides.rejected_P)]
    accuracies, best = {}, None
    for count in HEAD_COUNTS:
        features = [[_prefixes(cut(words, count), name) for words in side] for side in both]
        differences = presence(features[0], features[1], fewest=2)
        predicted = cross_validate(differences, subject.corpus.prompt_key_R[sides.row_P])
        accuracies[str(count)] = [predicted.accuracy, predicted.low, predicted.high]
        # A longer beginning must be better by a point: else the shortest phrase is what a reader should look at.
        if best is None or predicted.low > best[1].low + 0.01:
            best = (count, predicted, phrases(differences, predicted.weights_F, features))
    assert best is not None
    count, predicted, best_phrases = best
    what = f"the {name} {f'{count} tokens' if count > 1 else 'token'} alone"
    evidence = {"accuracy_by_tokens": accuracies, "phrases": best_phrases, "pairs": len(sides)}
    remedy = (
        "rewrite or drop the answers with these phrases, or balance them over both sides; a model that learns the "
        "phrase instead of the difference looks well on held-out pairs of the same data"
    )
    return _shortcut_finding(check, what, predicted, evidence, remedy)


def _prefixes(words: list[str], name: str) -> list[str]:
    """["sure", ",", "i"] -> "sure", "sure ,", "sure , i": a phrase counts as a whole."""
    if name == "first":
        return [" ".join(words[:length]) for length in range(1, len(words) + 1)]
    return [" ".join(words[-length:]) for length in range(1, len(words) + 1)]


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


def formatting(subject: Subject) -> list[AuditFinding]:
    """Lists, bold, headings, code, tables, links, emoji: how often and whether at all."""
    if not subject.has_enough_pairs:
        return []
    sides = subject.sample.sample(FORMATTED_PAIRS, subject.seed)
    texts = subject.corpus.responses

    def counts(responses: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(responses), len(FORMATTING)))
        for row, index in enumerate(responses.tolist()):
            text = texts[index]
            for column, (signs, pattern) in enumerate(FORMATTING.values()):
                if not signs or any(sign in text for sign in signs):
                    rows[row, column] = len(pattern.findall(text))
        return rows

    chosen, rejected = counts(sides.chosen_P), counts(sides.rejected_P)
    # Both whether and how often: one bold word says something else than twenty. Logarithms, so that one long table does
    # not outweigh a hundred answers.
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
    return _shortcut_finding("formatting", f"formatting alone{widest}", predicted, evidence, remedy)


# ---------------------------------------------------------------- words


def bag_of_words(subject: Subject) -> list[AuditFinding]:
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
    return _shortcut_finding("bag_of_words", "single words and word pairs alone", predicted, evidence, remedy)


def word_features(subject: Subject, sides: Sides) -> tuple[list[set[str]], list[set[str]]]:
    """The words and neighbouring words of each side, chosen first."""
    texts = subject.corpus.responses
    both = [
        [words_and_pairs(texts[int(index)][:WORD_REACH]) for index in side]
        for side in (sides.chosen_P, sides.rejected_P)
    ]
    return both[0], both[1]


def words_and_pairs(text: str) -> set[str]:
    words = [token for token in lowercase_tokens(text) if token[0].isalnum()]
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


# ---------------------------------------------------------------- shared


def lowercase_tokens(text: str) -> list[str]:
    """Words and single signs, in lower case: lowercase_tokens("Sure, I can!") -> ["sure", ",", "i", "can", "!"]."""
    return TOKENS.findall(text.lower())


def presence(chosen: Iterable[Iterable[str]], rejected: Iterable[Iterable[str]], fewest: int) -> Differences:
    """+1 for what only the chosen side has, -1 for what only the rejected side has; rare features are dropped."""
    # What both sides have cannot tell them apart, and would only shorten every row of the regression.
    alone = [(set(a) - set(b), set(b) - set(a)) for a, b in zip(chosen, rejected, strict=True)]
    support = Counter(name for pair in alone for side in pair for name in side)
    # Names decide between equal counts: sets are walked in another order in each process, and so would the findings be.
    ranked = heapq.nsmallest(MOST_FEATURES, support.items(), key=lambda feature: (-feature[1], feature[0]))
    common = [name for name, count in ranked if count >= fewest]
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
    # Weight times the root of the support: a large weight on two pairs decides nothing.
    order = np.argsort(-np.abs(weights_F) * np.sqrt(support), kind="stable")[: 4 * SHOWN_PHRASES]
    wanted = {differences.names[index] for index in order}
    chosen, rejected = (Counter(name for names in side for name in wanted.intersection(names)) for side in features)
    shown: list[dict[str, Any]] = []
    for index in order:
        name = differences.names[index]
        # "can help" inside "can help with" says the same again.
        if any(name in entry["phrase"] or entry["phrase"] in name for entry in shown):
            continue
        side = "chosen" if weights_F[index] > 0 else "rejected"
        shown.append({"phrase": name, "predicts": side, "chosen": chosen[name], "rejected": rejected[name]})
        if len(shown) == SHOWN_PHRASES:
            break
    return shown


def _shortcut_finding(
    check: str, what: str, predicted: Predicted, evidence: dict[str, Any], remedy: str
) -> list[AuditFinding]:
    note_above, warn_above = LIMITS[check]
    # The interval's lower end: by its middle, every small data set would have a shortcut or two.
    if predicted.low <= note_above:
        return []
    severity: AuditSeverity = "warning" if predicted.low > warn_above else "note"
    phrases_shown = [entry["phrase"] for entry in evidence.get("phrases", ())][:2]
    message = f"{what} can tell the chosen side in {percent(predicted.accuracy)} of held-out pairs"
    if phrases_shown:
        message += f" ({', '.join(repr(phrase) for phrase in phrases_shown)})"
    return [AuditFinding(check, severity, message, predicted.accuracy, (), evidence, remedy)]
