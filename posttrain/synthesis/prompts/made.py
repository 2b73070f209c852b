"""What all ways to make prompts give: prompts with their origins, and what became none, with the reason.

made = MadePrompts("prompts/magpie", teacher.name, filters)
made.take(Candidate("Name a red fruit.", "magpie 3", seed=17))     # 0, its number; None where a filter drops it
made.rows, made.reasons, made.curve()
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from re import Pattern
from typing import Any

from posttrain.auditing.diversity import distinct, diversity_of
from posttrain.auditing.fix import as_row
from posttrain.auditing.language import STOP_WORDS, detect_language
from posttrain.auditing.marks import SCRIPTS
from posttrain.auditing.tfidf import require_scikit_learn
from posttrain.auditing.words import words_of
from posttrain.config.prompts import PromptFilters
from posttrain.data.origin import Origin, with_origin
from posttrain.errors import MissingExtraError, unknown
from posttrain.inference.rows import unfit
from posttrain.rewards.refusal import is_refusal
from posttrain.runs.records.logs import DroppedRow
from posttrain.runs.records.stage import DiversityPoint
from posttrain.synthesis.prompts.alike import Alike
from posttrain.synthesis.teacher import UNASKED, Drawing, Reply
from posttrain.types import Demonstration, Message, RowRef, Task

POINTS = 10
SHORT_SORRY = 80
"""Words: a shorter reply with "sorry" in it is an apology and no prompt (Evol-Instruct, arXiv:2304.12244, section
3.2)."""
LANGUAGES = {name.casefold(): name for name in (*STOP_WORDS, *SCRIPTS)}

REASONS: Mapping[str, str] = {
    "failed": "the teacher gave no answer",
    UNASKED: "a limit of tokens or cost was spent before it was asked",
    "empty": "the teacher wrote nothing",
    "cut": "it was cut by a limit",
    "no_prompt": "the reply holds no prompt in the form that was asked for",
    "refusal": "the teacher declines or apologises",
    "too_short": "it has fewer words than `least_words`",
    "too_long": "it has more words than `most_words`",
    "language": "it is in another language",
    "keyword": "it asks for what a model of texts cannot see, read or send",
    "quotes_request": "it speaks of the request that it was to rewrite",
    "nothing_new": "it adds fewer words to its parent than `least_new_words`",
    "duplicate": "it says word for word what an earlier prompt says",
    "alike": "its ROUGE-L with an earlier prompt is `most_alike` or more",
    "surplus": "`count` was reached before it",
    "no_answer": "the teacher gave no answer to it",
    "cut_answer": "the answer to it was cut by a limit",
    "refused_answer": "the teacher declines to answer it",
    "special_tokens": "it, or the answer to it, holds the name of a special token: it would end or begin a turn",
    "bad_character": "it, or the answer to it, holds a NUL character, which no reader of rows takes",
}
"""Why a reply or a prompt made no row."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that may become a prompt: Candidate("Name a red fruit.", "magpie 3", seed=17)."""

    text: str
    question: str
    """What it is an answer to, by name and number."""
    seed: int
    source: str = ""
    """The row that it was made of; empty where there is none, or more than one."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For its origin: the evolution, the examples, the persona, the round."""
    kin: Collection[int] = ()
    """Numbers of the prompts that it grew out of: it may be like them."""


@dataclass(slots=True)
class Row:
    """A prompt that is kept: Row((Message("user", "..."),), Origin(...), "magpie 3")."""

    prompt: tuple[Message, ...]
    origin: Origin
    question: str
    answer: str | None = None

    def to_json(self) -> dict[str, Any]:
        ref = RowRef("", 0)
        if self.answer is None:
            return with_origin(as_row(Task(self.prompt, None, ref)), self.origin)
        turns = (*self.prompt, Message("assistant", self.answer))
        return with_origin(as_row(Demonstration(turns, ref)), self.origin)


@dataclass(frozen=True, slots=True)
class _Seen:
    text: str
    reason: str | None


class MadePrompts:
    """Prompts as they come in, in order.

    Args:
        maker: for the rows' origin: `prompts/magpie`.
        special: what names a special token of the model that will train on the rows.
        system: stands before each prompt in its row.

    Raises:
        ConfigError: `filters.language` is not among those that are told apart.
    """

    def __init__(
        self,
        maker: str,
        model: str,
        filters: PromptFilters,
        *,
        drawing: Drawing,
        special: Pattern[str] | None = None,
        system: str | None = None,
        seeded: bool = True,
    ):
        self.maker, self.model, self.filters, self.special, self.system = maker, model, filters, special, system
        self.sampling = sampling_of(drawing)
        self.seeded = seeded
        """Whether the teacher draws by the questions' seeds; an endpoint may take none."""
        if filters.language is not None and filters.language.casefold() not in LANGUAGES:
            # A slip would drop every prompt that is long enough to tell.
            raise unknown("language", filters.language, LANGUAGES.values(), where="make.filters.language")
        self._keyword = keyword_pattern(filters.keywords)
        self._earlier = Alike()
        self._texts: dict[str, int] = {}
        self.seeds = 0
        """Prompts that were there before: they are compared with, and are no rows."""
        self.rows: list[Row] = []
        self.asked = 0
        """Questions that were asked of the teacher."""
        self.dropped: list[tuple[str, str, str]] = []
        """(question, a key of REASONS, the text)"""
        self._seen: list[_Seen] = []
        self.limit: str | None = None
        """The limit that ended the asking, in words."""

    # ------------------------------------------------------------ what comes in

    def known(self, text: str) -> int:
        """A prompt that was there before. Returns its number."""
        self.seeds += 1
        return self._number(text)

    def take(self, candidate: Candidate) -> int | None:
        """Keep it, or drop it with the reason. Returns its number, None where it is dropped."""
        text = candidate.text.strip()
        reason = self.reason(text, candidate.kin)
        self._seen.append(_Seen(text, reason))
        if reason is not None:
            self._drop(candidate.question, reason, candidate.text)
            return None
        before = () if self.system is None else (Message("system", self.system),)
        origin = Origin(
            self.maker,
            model=self.model,
            source=candidate.source,
            sampling=self.sampling,
            seed=candidate.seed if self.seeded else None,
            details=candidate.details,
        )
        self.rows.append(Row((*before, Message("user", text)), origin, candidate.question))
        return self._number(text)

    def drop(self, candidate: Candidate, reason: str) -> None:
        """For what only the way that made it can tell."""
        self._seen.append(_Seen(candidate.text, reason))
        self._drop(candidate.question, reason, candidate.text)

    def usable(self, reply: Reply, question: str) -> bool:
        """Whether a reply has text; what has none is dropped here."""
        if reply.error is not None:
            self._drop(question, UNASKED if reply.error == UNASKED else "failed", reply.error)
        elif not reply.text.strip():
            self._drop(question, "empty", reply.text)
        else:
            return True
        return False

    def answered(self, replies: Collection[Reply], drawing: Drawing, seeds: Collection[int]) -> None:
        """Put the answers beside their prompts, in the order of the rows; a prompt without one is dropped."""
        rows, self.rows = self.rows, []
        for row, reply, seed in zip(rows, replies, seeds, strict=True):
            if (reason := self._answer_reason(reply)) is not None:
                self._drop(row.question, reason, row.prompt[-1].content or "")
                continue
            answer: dict[str, Any] = {"sampling": sampling_of(drawing)} | ({"seed": seed} if self.seeded else {})
            origin = replace(row.origin, details={**row.origin.details, "answer": answer})
            self.rows.append(replace(row, origin=origin, answer=reply.text.strip()))

    # ------------------------------------------------------------ filters

    def reason(self, text: str, kin: Collection[int] = ()) -> str | None:
        """Why a text is no prompt; in the order of what it costs to find out."""
        filters = self.filters
        words = int(words_of([text]).counts[0])
        if words == 0:
            return "empty"
        if (reason := unfit(text, self.special)) is not None:
            return reason
        if is_refusal(text) or ("sorry" in text.casefold() and words < SHORT_SORRY):
            return "refusal"
        if words < filters.least_words:
            return "too_short"
        if filters.most_words is not None and words > filters.most_words:
            return "too_long"
        if self._keyword is not None and self._keyword.search(text) is not None:
            return "keyword"
        found = None if filters.language is None else detect_language(text)
        if found and filters.language is not None and found.casefold() != filters.language.casefold():
            return "language"
        return self._repeated(text, kin)

    def _repeated(self, text: str, kin: Collection[int]) -> str | None:
        if _same(text) in self._texts:
            return "duplicate"
        least = self.filters.most_alike
        if least is not None and self._earlier.nearest(text, least=least, but=kin) is not None:
            return "alike"
        return None

    def _answer_reason(self, reply: Reply) -> str | None:
        if reply.error is not None:
            return UNASKED if reply.error == UNASKED else "no_answer"
        if not reply.text.strip():
            return "no_answer"
        if not reply.ended:
            return "cut_answer"
        return "refused_answer" if is_refusal(reply.text) else unfit(reply.text, self.special)

    def _number(self, text: str) -> int:
        number = self._earlier.add(text)
        self._texts.setdefault(_same(text), number)
        return number

    def _drop(self, question: str, reason: str, text: str) -> None:
        assert reason in REASONS, reason
        self.dropped.append((question, reason, text))

    # ------------------------------------------------------------ what has come out

    @property
    def reasons(self) -> Counter[str]:
        return Counter(reason for _, reason, _ in self.dropped)

    def dropped_lines(self) -> Iterator[dict[str, Any]]:
        """The lines of dropped.jsonl."""
        for question, reason, text in self.dropped:
            yield DroppedRow(question, reason, REASONS[reason], text).to_json()

    def curve(self) -> tuple[DiversityPoint, ...]:
        """How diverse what is kept is after each tenth of what was made: whether more of it still brings anything new.
        Without scikit-learn, the words alone."""
        made = len(self._seen)
        sizes = sorted({round(made * point / POINTS) for point in range(1, POINTS + 1)} - {0})
        return tuple(self._point(size) for size in sizes)

    def _point(self, size: int) -> DiversityPoint:
        seen = self._seen[:size]
        kept = [one.text for one in seen if one.reason is None]
        repeated = sum(one.reason in ("duplicate", "alike") for one in seen)
        point = DiversityPoint(
            size,
            len(kept),
            repeated / size,
            _finite(distinct(kept, 1)) if kept else None,
            _finite(distinct(kept, 2)) if kept else None,
        )
        try:
            require_scikit_learn("TF-IDF")
        except MissingExtraError:
            return point
        measured = diversity_of(kept)
        return replace(point, nearest_distance=_finite(measured.nearest_distance), vendi=_finite(measured.vendi))

    def __str__(self) -> str:
        what = "answered prompts" if self.rows and self.rows[0].answer is not None else "prompts"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        return f"{len(self.rows):,} {what} of {self.asked:,} questions" + (f"; dropped: {reasons}" if reasons else "")


def sampling_of(drawing: Drawing) -> dict[str, Any]:
    """As the rows' origin has it: what was set."""
    sampling: dict[str, Any] = {"temperature": drawing.temperature, "max_new_tokens": drawing.max_new_tokens}
    sampling |= {} if drawing.top_p == 1 else {"top_p": drawing.top_p}
    return sampling | ({"stop": list(drawing.stop)} if drawing.stop else {})


def keyword_pattern(keywords: Collection[str]) -> Pattern[str] | None:
    """Any of the words or phrases as whole words: `map` is not in `mapping`. Blanks in a phrase match any."""
    alternatives = "|".join(r"\s+".join(map(re.escape, keyword.split())) for keyword in keywords if keyword.strip())
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE) if alternatives else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _same(text: str) -> str:
    return " ".join(text.casefold().split())
