"""The rows of a selection, on disk, and what each step says of them: the seam between the pipeline and its steps.

    rows = read_rows("chat.jsonl")                   # Rows: texts and whole rows on disk, small arrays in memory
    pool = Pool.of(rows)                             # every row is in play
    taken = deduplicate(settings, pool, tools)       # a step: Taken(kept=[0, 2], removed=(Removed(1, ...),))
    pool = pool.after(taken)                         # the next step sees what is left

A row is its place in the input, from 0; a step never renumbers. Suffixes: R all rows of the input, K those in play.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posttrain.auditing.corpus import Corpus, text_key
from posttrain.auditing.fix import as_row
from posttrain.auditing.texts import TextStore
from posttrain.data.counts import RowCounts
from posttrain.data.formats.table import ExampleKind
from posttrain.data.read import Examples
from posttrain.data.row_fields import ABSENT, field_of
from posttrain.data.row_reader import ReadOptions, RowReader
from posttrain.data.write import json_line
from posttrain.runs.progress import Phase, Progress
from posttrain.types import Example, RowRef, Task

Part = Literal["prompt", "answer", "both"]
"""Which text of a row is meant; the answer of a comparison is its best response, of a task what it is checked by."""
READ_STRIDE = 1024


class Rows:
    """All rows that were read, as their files have them, and their texts; nothing here changes after reading.

    rows = Rows(read("chat.jsonl"))
    rows.row(3)                     # {"messages": [...], "source": "web"}: every column, used or not
    rows.text(3, "answer")          # "It is 4."
    rows.ref(3)                     # RowRef("chat.jsonl", 4)
    """

    def __init__(self, examples: Iterable[Example], phase: Phase | None = None):
        self._lines = TextStore()
        self._content = array("Q")
        self._hash = hashlib.sha256()
        self._options = examples.options if isinstance(examples, Examples) else ReadOptions()
        self.corpus = Corpus(self._stored(examples, phase))
        self.examples_read = examples
        """What was read, with its sources and counts."""
        self.fingerprint = self._hash.hexdigest()
        """sha256 of all rows in their order: with a step's settings the key of whatever is computed from them."""

    def _stored(self, examples: Iterable[Example], phase: Phase | None) -> Iterator[Example]:
        pairs = examples.with_rows() if isinstance(examples, Examples) else ((one, as_row(one)) for one in examples)
        for number, (example, row) in enumerate(pairs, 1):
            line = json_line(row)
            self._lines.add(line)
            self._content.append(text_key(line))
            self._hash.update(line.encode("utf-8", "surrogatepass") + b"\n")
            if phase is not None and number % READ_STRIDE == 0:
                phase.advance(READ_STRIDE)
            yield example

    def __len__(self) -> int:
        return len(self.corpus)

    @property
    def kind(self) -> ExampleKind:
        """Demonstration, Comparison, Feedback, StepwiseFeedback or Task; one for all rows."""
        assert self.corpus.kind is not None  # reading refuses a data set without rows
        return self.corpus.kind

    def ref(self, row: int) -> RowRef:
        return self.corpus.ref(row)

    def line(self, row: int) -> str:
        """The whole row as a line of JSON."""
        return self._lines[row]

    def row(self, row: int) -> dict[str, Any]:
        """The whole row, all columns included."""
        content: dict[str, Any] = json.loads(self._lines[row])
        return content

    def examples(self, rows: Iterable[int]) -> Iterator[Example]:
        """Some rows as what trains, read from disk anew each time."""
        # Its kind is known by now: a row that fits several formats must be read as it was in the first pass.
        reader = RowReader(replace(self._options, kind=self._options.kind or self.kind), RowCounts())
        return (reader.example(self.row(int(row)), self.ref(int(row))) for row in rows)

    def example(self, row: int) -> Example:
        return next(self.examples([row]))

    def text(self, row: int, part: Part = "both") -> str:
        """Of one row; "both" is the prompt, an empty line, and the answer."""
        if part == "prompt":
            return self.corpus.prompts[row]
        response = int(self.best_R[row])
        if response >= 0:
            answer = self.corpus.responses[response]
        else:
            example = self.example(row)
            answer = (example.answer or "") if isinstance(example, Task) else ""
        return answer if part == "answer" else "\n\n".join(filter(None, (self.corpus.prompts[row], answer)))

    def all_texts(self, row: int) -> list[str]:
        """The prompt and every response of one row; of a task what it is checked by."""
        corpus = self.corpus
        responses = range(*corpus.first_R[row : row + 2].tolist())
        answers = [corpus.responses[index] for index in responses] or [self.text(row, "answer")]
        return [corpus.prompts[row], *answers]

    def texts(self, rows: Iterable[int], part: Part = "both") -> Iterator[str]:
        """Of some rows, one after the other: all of them need never be in memory."""
        return (self.text(int(row), part) for row in rows)

    def column(self, rows: Iterable[int], name: str) -> list[Any]:
        """What a column holds in some rows, None where it is missing; a dot leads into an object: `meta.source`."""
        values = (field_of(self.row(int(row)), name) for row in rows)
        return [None if value is ABSENT else value for value in values]

    def columns(self) -> list[str]:
        """Names of the first row's columns, for errors that have to name them."""
        return list(self.row(0))

    @cached_property
    def content_R(self) -> np.ndarray:
        """uint64 hash of each whole row: ties and draws go by it, so that they do not depend on the rows' order."""
        return np.array(self._content, dtype=np.uint64)

    @cached_property
    def best_R(self) -> np.ndarray:
        """Number of each row's best response; -1 where it has none."""
        corpus = self.corpus
        best = np.full(len(self), -1, dtype=np.int64)
        first = np.flatnonzero(corpus.place_S == 0) if len(corpus.responses) else np.empty(0, dtype=np.int64)
        best[corpus.row_S[first]] = first
        return best


@dataclass(frozen=True, slots=True)
class Pool:
    """The rows that are still in play, and what the steps so far have said of them.

    Pool(rows, kept=array([0, 2, 5]), scores={"length": array([3., nan, 8., ...])}, chosen=array([5, 0, 2]))
    """

    rows: Rows
    kept: np.ndarray
    """int64 [K], rising."""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """float64 [R] by name, higher is better unless whoever reads it says otherwise; NaN where a row was not scored."""
    chosen: np.ndarray | None = None
    """int64 [K]: the same rows in the order in which a step chose them; None where none did."""

    @classmethod
    def of(cls, rows: Rows) -> Pool:
        return cls(rows, np.arange(len(rows), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.kept)

    def after(self, taken: Taken) -> Pool:
        """What is left when a step has removed what it removes."""
        kept = np.sort(taken.kept)
        chosen = self.chosen
        if taken.is_order:
            chosen = taken.kept
        elif chosen is not None:
            chosen = chosen[np.isin(chosen, kept)]
        return Pool(self.rows, kept, {**self.scores, **taken.scores}, chosen)


@dataclass(frozen=True, slots=True)
class Removed:
    """One row that a step took out.

    Removed(7, "near_duplicate", "it says nearly what the kept row says", nearest=2, similarity=0.93)
    """

    row: int
    reason: str
    """One of the step's few: what is counted."""
    message: str
    """In words, with what is particular to this row."""
    nearest: int | None = None
    """The kept row that it is most like, where a step looked for one."""
    similarity: float | None = None
    """To that one: a cosine, or a share of common words."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step leaves and what it removes: together exactly the rows that it was given.

    Taken(kept=array([0, 2]), removed=(Removed(1, "duplicate", ...),), scores={}, notes=("3 rows have no score",))
    """

    kept: np.ndarray
    """int64 [K]."""
    removed: Sequence[Removed] = ()
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """New columns, float64 [R]; a name that there is already is replaced."""
    is_order: bool = False
    """Whether the order of `kept` is the order of choice, the best first: what a budget then goes by."""
    notes: tuple[str, ...] = ()
    """What a user should know of it, a line each."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a step may use: Tools(seed=0, progress=Progress(), cache=Path("picked/.steps"))."""

    seed: int = 0
    """Of this step alone: no two steps share a random stream."""
    progress: Progress = field(default_factory=Progress)
    cache: Path | None = None
    """A folder for what is dear to compute (embeddings, scores of models), by a key of its content; None: nowhere."""
    model: str | Path | None = None
    """The policy that will be trained, where it is known: whose tokens are counted, whose hidden states are taken."""
    device: str = "auto"
    modules: Path | None = None
    """Folder in which functions are looked for first."""


StepFunction = Callable[[Any, Pool, Tools], Taken]
"""(settings, pool, tools) -> Taken. A row of `steps/table.py` names it by the type of its settings."""


def everything(pool: Pool, removed: Sequence[Removed], **options: Any) -> Taken:
    """`Taken` of what is removed: all other rows of the pool are kept, in their order."""
    gone = np.fromiter((one.row for one in removed), dtype=np.int64, count=len(removed))
    return Taken(pool.kept[~np.isin(pool.kept, gone)], removed, **options)


def require_whole(step: str, pool: Pool, taken: Taken) -> None:
    """A step that loses a row, or counts one twice, is a fault of its code: nothing is dropped without a line."""
    gone = np.fromiter((one.row for one in taken.removed), dtype=np.int64, count=len(taken.removed))
    together = np.sort(np.concatenate([taken.kept, gone]))
    assert np.array_equal(together, pool.kept), f"`{step}`: kept and removed rows are not those that it was given"


def random_order(rows: Rows, among: np.ndarray, seed: int) -> np.ndarray:
    """`among` in an order drawn by seed, which depends on what the rows hold and not on where they stand.

    The same rows in another order in their file, or in two files, give the same draw: what is compared with a random
    subset must not change when somebody sorts the file. Of equal rows each has a place of its own: drawn as one block,
    a row that stands there a hundred times would be in a subset a hundred times or not at all.
    """
    values = rows.content_R[among] ^ np.uint64(int.from_bytes(hashlib.sha256(b"%d" % seed).digest()[:8], "little"))
    values ^= _copies_before(values).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    # splitmix64's finish: without it, xor alone would leave neighbouring hashes neighbours for every seed.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return among[np.argsort(values ^ (values >> np.uint64(31)), kind="stable")]


def _copies_before(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each: [7, 3, 7, 7] -> [0, 0, 1, 2]. Which of them is which changes no draw."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    places = np.arange(len(values))
    begins = np.ones(len(values), dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    counts = np.empty(len(values), dtype=np.int64)
    counts[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return counts
