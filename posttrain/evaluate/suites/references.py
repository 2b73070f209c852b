"""`f1`, `bleu`, `chrf`, `rouge`: answers compared with the row's answer and with further right ones.

{"prompt": "Say cat in German.", "answer": "Katze", "references": ["die Katze", "Kater"]}
{"prompt": "Who wrote it?", "answers": {"text": ["Ada", "Ada Lovelace"], "answer_start": [3, 3]}}  # references: answers
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config.text_suites import BleuSuite, ChrfSuite, F1Suite, ReferenceSuite, RougeSuite
from posttrain.data.questions import Question, questions
from posttrain.errors import RowError
from posttrain.evaluate.asking import Figures, SuiteRun, general_figures, write_answers
from posttrain.evaluate.metrics.metric import TextMetric, figures_of_parts
from posttrain.evaluate.metrics.rouge import Rouge
from posttrain.evaluate.metrics.squad import SquadF1
from posttrain.evaluate.metrics.translation import Bleu, Chrf
from posttrain.runs.records.evaluation import Direction, Meaning
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, RowRef, Task

METRICS = {
    "f1": Meaning("token F1", "share", Direction.UP, primary=True),
    "exact_match": Meaning("exact match", "share", Direction.UP),
    "bleu": Meaning("BLEU", "", Direction.UP, primary=True),
    "chrf": Meaning("chrF", "", Direction.UP, primary=True),
    "rouge_l": Meaning("ROUGE-L", "share", Direction.UP, primary=True),
    "rouge_lsum": Meaning("ROUGE-Lsum", "share", Direction.UP),
    "rouge_1": Meaning("ROUGE-1", "share", Direction.UP),
    "rouge_2": Meaning("ROUGE-2", "share", Direction.UP),
}


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """ReferenceAnswers("qa", questions, references=(("Paris", "in Paris"), ...), metric=SquadF1(), sampling=...)"""

    name: str
    questions: Sequence[Question]
    references: Sequence[tuple[str, ...]]
    """The right answers to each question, at least one."""
    metric: TextMetric
    sampling: SamplingDistribution
    samples_per_prompt: int = 1

    def ask(self, asking: SuiteRun) -> Figures:
        groups, texts = asking.answers.to(self.name, self.questions, self.sampling, self.samples_per_prompt)
        parts, scores = [], []
        for answers, references in zip(texts, self.references, strict=True):
            parts.append([self.metric.parts(text, references) for text in answers])
            scores.append([self.metric.score(text, references) for text in answers])
        write_answers(asking.out, self.name, self.questions, groups, texts, scores, parts)
        return figures_of_parts(parts) | general_figures(groups, texts)


def references_of(example: Example, column: str, *, may_be_silent: bool = False) -> tuple[str, ...]:
    """The row's answer and what its column of references adds, each once.

    Args:
        may_be_silent: an empty list says that the right answer is none, as in SQuAD 2; it becomes ("",).

    Raises:
        RowError: there is none, or the column holds something else than texts.
    """
    asked = questions([example])[0]
    given = example.metadata.get(column) if isinstance(example, Task) else None
    # SQuAD's layout: the texts beside where they begin.
    listed = given.get("text") if isinstance(given, dict) else [given] if isinstance(given, str) else given
    if listed is not None and not (isinstance(listed, list | tuple) and all(isinstance(text, str) for text in listed)):
        raise RowError(
            f"the column `{column}` holds no list of texts",
            reason="bad_label",
            where=asked.row,
            found=repr(given),
            expected='a text, a list of texts, or {"text": [...]}',
            remedy="write the right answers as texts, or name another column with `references: COLUMN`",
        )
    texts = [*([] if asked.answer is None else [asked.answer]), *(listed or ())]
    if may_be_silent and not texts and listed is not None:
        return ("",)
    if not texts or (not may_be_silent and any(not text.strip() for text in texts)):
        raise RowError(
            "the row has no answer to compare with" if not texts else "a right answer of the row is empty",
            reason="bad_label",
            where=asked.row,
            found=f"answer: {asked.answer!r}, {column}: {given!r}",
            expected=f"an `answer`, or a list of texts in `{column}`",
            remedy="add the answer, or name the column that has it with `references: COLUMN`",
        )
    return tuple(dict.fromkeys(texts))


def require_words(references: Sequence[str], row: RowRef) -> None:
    """rouge-score splits texts at all but a to z and digits: without any of these, whatever is said scores 0.

    Raises:
        RowError: a right answer holds none.
    """
    for text in references:
        if not re.search(r"[a-z0-9]", text.lower()):
            raise RowError(
                "ROUGE sees no word in a right answer, so that every answer would score 0",
                reason="bad_label",
                where=row,
                found=repr(text[:80]),
                expected="letters from a to z or digits, the only ones that rouge-score keeps",
                remedy="ask with `kind: chrf`, which counts the characters of any script",
            )


def _loading(
    metric_of: Callable[[Any], TextMetric],
    *,
    may_be_silent: bool = False,
    require: Callable[[Sequence[str], RowRef], None] | None = None,
) -> Callable[[ReferenceSuite, list[Example], SamplingDistribution], ReferenceAnswers]:
    def load(settings: ReferenceSuite, examples: list[Example], sampling: SamplingDistribution) -> ReferenceAnswers:
        """Raises RowError for a row without a right answer, MissingExtraError without the metric's package."""
        references = [references_of(example, settings.references, may_be_silent=may_be_silent) for example in examples]
        asked = questions(examples)
        if require is not None:
            for question, own in zip(asked, references, strict=True):
                require(own, question.row)
        return ReferenceAnswers(
            settings.name,
            asked,
            references,
            metric_of(settings),
            sampling,
            settings.samples_per_prompt,
        )

    return load


def _bleu(settings: BleuSuite) -> Bleu:
    return Bleu(settings.tokenize, settings.lowercase)


def _chrf(settings: ChrfSuite) -> Chrf:
    return Chrf(settings.word_order)


def _rouge(settings: RougeSuite) -> Rouge:
    return Rouge(settings.stemmer)


def _f1(settings: F1Suite) -> SquadF1:
    return SquadF1()


load_f1, load_bleu, load_chrf, load_rouge = (
    _loading(_f1, may_be_silent=True),
    _loading(_bleu),
    _loading(_chrf),
    _loading(_rouge, require=require_words),
)
