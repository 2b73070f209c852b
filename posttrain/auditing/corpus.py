"""Examples flattened for the checks: texts on disk, and one small array for each thing that is asked of every row.

The first step of an audit: `run.py` reads the examples once into a `Corpus`, and every check reads that. Only a few
numbers a row are held in memory, so that a data set larger than memory can be audited.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from posttrain.auditing.marks import SURE_NULL_WORDS, Marks, marks_of
from posttrain.auditing.texts import TextStore
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, StepwiseFeedback, Task

ExampleKind = type[Example]


@dataclass(frozen=True, slots=True)
class Sides:
    """Two responses to compare, one entry a pair.

    Sides(chosen_P=[0, 2], rejected_P=[1, 3], row_P=[0, 1]): numbers of responses, and of the row that the pair stands
    in. A ranked list gives its best and its worst response: one independent observation a row. Feedback gives good
    responses with bad ones drawn at random (seeded), so that "accuracy" is the chance to tell a good from a bad one.
    """

    chosen_P: np.ndarray
    rejected_P: np.ndarray
    row_P: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen_P)

    def take(self, places: np.ndarray) -> Sides:
        return Sides(self.chosen_P[places], self.rejected_P[places], self.row_P[places])

    def sample(self, limit: int, seed: int) -> Sides:
        """At most `limit` pairs, in their order."""
        if len(self) <= limit:
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), limit, replace=False)))


class Corpus:
    """A data set as the checks see it.

    corpus = Corpus(read("pairs.jsonl"))
    corpus.prompts[3], corpus.responses[corpus.sides.chosen_P[3]]
    corpus.ref(3)      # RowRef("pairs.jsonl", 4)

    Suffixes: R rows, S responses of all rows, P pairs of sides.
    """

    def __init__(self, examples: Iterable[Example], *, seed: int = 0):
        # `array` holds a number in its own bytes; a list of Python integers would need five times the memory.
        self.seed = seed
        self.kind: ExampleKind | None = None
        self.prompts, self.responses = TextStore(), TextStore()
        self._sources: dict[str, int] = {}
        self._source_R, self._number_R = array("i"), array("q")
        self._first_R, self._good_R = array("q", [0]), array("b")
        self._prompt_key_R, self._key_S = array("Q"), array("Q")
        self._place_S = array("i")
        self._score_S, self._vote_S = array("d"), array("i")
        self._turn_R = array("q")
        self.null_answers: list[int] = []
        """Tasks whose answer is one of SURE_NULL_WORDS; a task has no response that the checks of texts would see."""
        for example in examples:
            self._add(example)

    def _add(self, example: Example) -> None:
        self.kind = self.kind or type(example)
        prompt, responses, places = _prompt_and_responses(example)
        row = example.row
        self._source_R.append(self._sources.setdefault(row.source, len(self._sources)))
        self._number_R.append(row.row)
        self._prompt_key_R.append(text_key(prompt))
        self.prompts.add(prompt)
        self._turn_R.append(_last_turn_length(example))
        if isinstance(example, Task) and (example.answer or "").strip() in SURE_NULL_WORDS:
            self.null_answers.append(len(self._number_R) - 1)
        scores = votes = None
        if isinstance(example, Comparison):
            scores, votes = example.scores, example.votes
        # Hashes of the exact texts: equal prompts and responses are found by them without reading the disk again.
        for index, response in enumerate(responses):
            self.responses.add(response)
            self._key_S.append(text_key(response))
            self._place_S.append(places[index])
            self._score_S.append(float("nan") if scores is None else scores[index])
            self._vote_S.append(-1 if votes is None else votes[index])
        self._first_R.append(len(self.responses))
        self._good_R.append(example.good if isinstance(example, Feedback) else 1)

    def __len__(self) -> int:
        return len(self._number_R)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self._sources)

    def ref(self, row: int) -> RowRef:
        return RowRef(self.sources[self._source_R[row]], self._number_R[row])

    def last_turn(self, row: int) -> str:
        """The last turn of the user, with which the prompt ends."""
        length = self._turn_R[row]
        return self.prompts[row][-length:] if length else ""

    def refs(self, rows: Iterable[int]) -> tuple[RowRef, ...]:
        """Of rows by their number, each once and in order."""
        sources = self.sources
        return tuple(
            [RowRef(sources[self._source_R[row]], self._number_R[row]) for row in sorted({int(row) for row in rows})]
        )

    # ------------------------------------------------------------ arrays

    @cached_property
    def first_R(self) -> np.ndarray:
        """Row r has the responses first_R[r]:first_R[r + 1]; one entry more than rows."""
        return np.array(self._first_R)

    @cached_property
    def row_S(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), np.diff(self.first_R))

    @cached_property
    def place_S(self) -> np.ndarray:
        """0 for the best response of its row, then 1, ..."""
        return np.array(self._place_S)

    @cached_property
    def good_R(self) -> np.ndarray:
        """What feedback says of each row; True for all other kinds."""
        return np.array(self._good_R, dtype=bool)

    @cached_property
    def prompt_key_R(self) -> np.ndarray:
        """uint64 hash of each prompt's exact text."""
        return np.array(self._prompt_key_R, dtype=np.uint64)

    @cached_property
    def key_S(self) -> np.ndarray:
        """uint64 hash of each response's exact text."""
        return np.array(self._key_S, dtype=np.uint64)

    @cached_property
    def score_S(self) -> np.ndarray:
        """Annotated scores, NaN where there are none."""
        return np.array(self._score_S)

    @cached_property
    def vote_S(self) -> np.ndarray:
        """Votes of each response, -1 where nobody voted."""
        return np.array(self._vote_S)

    @cached_property
    def sides(self) -> Sides:
        """What is chosen against what is rejected; none for demonstrations and tasks."""
        if self.kind is Comparison:
            first, count = self.first_R[:-1], np.diff(self.first_R)
            last = np.flatnonzero(self.place_S == np.repeat(count - 1, count))
            best = np.flatnonzero(self.place_S == 0)
            assert len(best) == len(last) == len(first)
            return Sides(best, last, np.arange(len(self)))
        if self.kind is Feedback:
            # Each response in one pair at most, so that the pairs stay independent and an interval over them is honest.
            generator = np.random.default_rng(self.seed)
            good, bad = (np.flatnonzero(self.good_R == label) for label in (True, False))
            pairs = min(len(good), len(bad))
            good, bad = (np.sort(generator.choice(rows, pairs, replace=False)) for rows in (good, bad))
            return Sides(good, generator.permutation(bad), good)
        nothing = np.empty(0, dtype=np.int64)
        return Sides(nothing, nothing, nothing)

    @cached_property
    def chosen_S(self) -> np.ndarray:
        """Responses to imitate: the best of each comparison, the good ones of feedback, all demonstrations."""
        return (self.place_S == 0) & self.good_R[self.row_S]

    @cached_property
    def marks(self) -> Marks:
        """What the pattern checks look for, counted once in every response."""
        return marks_of(self.responses)

    def rows_of(self, responses: np.ndarray) -> np.ndarray:
        """Numbers of the rows that some responses, by their number or as a mask, stand in."""
        return np.unique(self.row_S[responses])


# ---------------------------------------------------------------- messages to texts


def _prompt_and_responses(example: Example) -> tuple[str, list[str], list[int]]:
    """(prompt, responses, place of each response in the order from best to worst)"""
    if isinstance(example, Comparison):
        order = example.ranking
        if order is None:
            order = (example.winner, *(i for i in range(len(example.responses)) if i != example.winner))
        places = [0] * len(order)
        for place, index in enumerate(order):
            places[index] = place
        return turns_text(example.prompt), [turns_text(response) for response in example.responses], places
    if isinstance(example, Feedback):
        return turns_text(example.prompt), [turns_text(example.response)], [0]
    if isinstance(example, StepwiseFeedback):
        return turns_text(example.prompt), ["\n".join(example.steps)], [0]
    if isinstance(example, Demonstration):
        # The last user turn ends the prompt; all that follows, tool calls and their results included, is the response.
        cut = len(example.messages)
        while cut and example.messages[cut - 1].role != "user":
            cut -= 1
        return turns_text(example.messages[:cut]), [turns_text(example.messages[cut:])], [0]
    return turns_text(example.prompt), [], []


def _last_turn_length(example: Example) -> int:
    """Characters of the prompt's last turn if it is the user's; else 0."""
    messages = example.messages if isinstance(example, Demonstration) else example.prompt
    cut = len(messages)
    while isinstance(example, Demonstration) and cut and messages[cut - 1].role != "user":
        cut -= 1
    last = messages[cut - 1] if cut else None
    return len(last.content or "") if last is not None and last.role == "user" else 0


def turns_text(messages: tuple[Message, ...]) -> str:
    """The text of some turns; of one plain turn exactly its own, blanks included."""
    # The exact text, since white space at its ends is something that a check looks at.
    if len(messages) == 1 and not messages[0].tool_calls and messages[0].reasoning is None:
        return messages[0].content or ""
    parts = []
    for message in messages:
        if message.reasoning is not None:
            parts.append(f"<think>{message.reasoning}</think>")
        if message.content:
            parts.append(message.content)
        parts += [json.dumps(call, default=str, sort_keys=True) for call in message.tool_calls]
    return "\n\n".join(parts)


_PROSE_PUNCTUATION = re.compile(r"[\s.,!?;:'\"\u2018\u2019\u201c\u201d\u2026\u3002\uff0c\uff01\uff1f*_#`()]+")


def normalised(text: str) -> str:
    """A text without case, white space and the punctuation of prose; the signs of sums and code stay: 5 - 3, x < 0."""
    return _PROSE_PUNCTUATION.sub("", text.lower())


def text_key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
