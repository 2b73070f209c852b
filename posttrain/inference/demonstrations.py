"""Examples that stand before a question: read once, chosen for each question.

shots = shots_of(asked, Demonstrations(path="sums.jsonl", count=2, choose="nearest"))
with_shots(solving.prompt, shots.chosen(solving.prompt), "turns")
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.config.strategies.demonstrations import Demonstrations, EmbeddingSimilarity
from posttrain.data.questions import Question, question
from posttrain.data.read import read
from posttrain.errors import ConfigError, RowError
from posttrain.inference.prompts import last_user, question_text, with_question
from posttrain.inference.similarity import diverse, likest, similarity_of
from posttrain.inference.solving import Asked
from posttrain.types import Message

SHOT = "Question: {question}\nAnswer: {answer}\n\n"
ASKED = "Question: {question}\nAnswer:"
"""How examples and the question stand in `form: text` (Brown et al. 2020, arXiv:2005.14165, appendix G)."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One example: Shot((Message("user", "2 + 2?"),), "4")."""

    prompt: tuple[Message, ...]
    """Without system turns: a conversation has one, and it is the asked prompt's."""
    answer: str

    @property
    def text(self) -> str:
        return question_text(self.prompt)


class Shots:
    """The examples of a file."""

    def __init__(self, shots: Sequence[Shot], settings: Demonstrations, folder: str = "", device: str = "cpu"):
        self._shots, self._settings = tuple(shots), settings
        self._order = list(range(len(shots)))
        # One order for all questions: they then share their beginning, which an engine computes once.
        random.Random(settings.seed).shuffle(self._order)
        self._index = None
        if settings.choose != "random":
            texts = [shot.text for shot in shots]
            self._index = similarity_of(settings.similarity, texts, folder=folder, device=device)

    def chosen(self, messages: Sequence[Message]) -> list[Shot]:
        """The examples for a question, the likest last: what stands nearest to the question weighs most.

        Rows with the same question are left out, whatever their blanks: they would show its answer.
        """
        asked = question_text(messages)
        same = " ".join(asked.split())
        allowed = [at for at in self._order if " ".join(self._shots[at].text.split()) != same]
        if self._index is None:
            return [self._shots[at] for at in allowed[: self._settings.count]]
        if self._settings.choose == "nearest":
            permitted = set(allowed)
            ranked = [at for at in likest(self._index.scores(asked)) if at in permitted][: self._settings.count]
        else:
            ranked = diverse(self._index, asked, self._settings.count, sorted(allowed), self._settings.diversity)
        return [self._shots[at] for at in reversed(ranked)]


def shots_of(asked: Asked, settings: Demonstrations) -> Shots:
    """The examples that the settings name, read for the first question and kept for all.

    Raises:
        SourceError, RowError: the file cannot be read, or a row shows no answer.
        ConfigError: it has fewer rows than each question gets.
    """
    return asked.once(("demonstrations", repr(settings)), lambda: _read(asked, settings))


def _read(asked: Asked, settings: Demonstrations) -> Shots:
    shots = [_shot(question(example)) for example in read(asked.located(settings.path), progress=False)]
    if len(shots) < settings.count:
        raise ConfigError(
            "the file has fewer demonstrations than each question gets",
            where=settings.path,
            found=f"{len(shots)} rows, count: {settings.count}",
            expected=f"{settings.count} rows or more, beside the asked one if that is in the file",
            remedy=f"write `count: {len(shots)}`, or add rows",
        )
    similarity = settings.similarity
    folder = asked.located(similarity.model) if isinstance(similarity, EmbeddingSimilarity) else ""
    return Shots(shots, settings, folder, asked.scorers.device)


def _shot(row: Question) -> Shot:
    if row.answer is None or not row.answer.strip():
        raise RowError(
            "the row has no answer to show",
            reason="no_answer",
            where=row.row,
            found=f"the question {row.text[:60]!r}",
            expected="a conversation that ends with the assistant's text, or a row with `answer`",
            remedy="write the answer, or leave the row out",
        )
    return Shot(tuple(turn for turn in row.prompt if turn.role != "system"), row.answer)


def with_shots(messages: Sequence[Message], shots: Sequence[Shot], form: str) -> tuple[Message, ...]:
    """The conversation with examples before its question, as turns or in the last user's own text."""
    if form == "text":
        asked = messages[last_user(messages)].content or ""
        shown = "".join(SHOT.format(question=shot.text, answer=shot.answer) for shot in shots)
        return with_question(messages, shown + ASKED.format(question=asked))
    system = 1 if messages and messages[0].role == "system" else 0
    turns = [turn for shot in shots for turn in (*shot.prompt, Message("assistant", shot.answer))]
    return (*messages[:system], *turns, *messages[system:])
