"""Answers of the start and of every stage to the same prompts, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.report.evaluation import aligned
from posttrain.report.numbers import MINUS, count
from posttrain.report.text import FINISHES, shorten
from posttrain.runs.read import RunContents
from posttrain.runs.records.evaluation import GIVEN, AnswerLine

SHOWN_PROMPTS = 30


@dataclass(frozen=True, slots=True)
class AnswerCell:
    """One model's answer; `change` is "up", "down" or "" against the start's score."""

    text: str
    score: str
    tokens: str
    finish: str
    """What is worth saying about its end; "" if it ended by itself."""
    change: str


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One prompt over all models; a cell is None where that model was not asked."""

    prompt: str
    wanted: str
    cells: list[AnswerCell | None]

    @property
    def moved(self) -> bool:
        return any(cell is not None and cell.change for cell in self.cells)


@dataclass(frozen=True, slots=True)
class ShownAnswers:
    """The first prompts of one suite."""

    name: str
    columns: list[str]
    rows: list[AnswerRow]
    total: int


def answer_suites(run: RunContents, order: list[str]) -> list[ShownAnswers]:
    """Answers to the same prompts side by side, start first; the suites in the `order` of the final table."""
    measured = run.measured
    known = dict.fromkeys(suite for _, found in measured for suite in found.answers)
    # The answers of a perplexity suite are fixed, and given texts are no answers: there is nothing to compare in words.
    known = {suite: None for suite in known if any(_said(f.answers.get(suite, [])) for _, f in measured)}
    known = {suite: None for suite in known if not any("perplexity" in f.scores.get(suite, {}) for _, f in measured)}
    suites = [suite for suite in order if suite in known] + [suite for suite in known if suite not in order]
    return [
        _answer_suite(suite, [(name, _said(found.answers.get(suite, []))) for name, found in measured])
        for suite in suites
    ]


def _said(answers: list[AnswerLine]) -> list[AnswerLine]:
    return [answer for answer in answers if answer.finish != GIVEN]


def _answer_suite(suite: str, answers: list[tuple[str, list[AnswerLine]]]) -> ShownAnswers:
    known = [(name, aligned(given)) for name, given in answers if given]
    # By prompt and not by place: a stage may have been evaluated on fewer prompts, or in another order.
    keys = list(dict.fromkeys(key for _, given in known for key in given))
    rows = []
    for key in keys[:SHOWN_PROMPTS]:
        found = [given.get(key) for _, given in known]
        # Without the start's answers there is nothing to have moved from; the first stage's would be taken for it.
        start = found[0] if known[0][0] == "start" else None
        wanted = next((answer.answer for answer in found if answer and answer.answer), "")
        cells = [None if answer is None else _cell(answer, start) for answer in found]
        rows.append(AnswerRow(shorten(key[0]), shorten(wanted, 300), cells))
    return ShownAnswers(suite, [name for name, _ in known], rows, len(keys))


def _cell(answer: AnswerLine, start: AnswerLine | None) -> AnswerCell:
    change = ""
    if start is not None and start.score is not None and answer.score is not None and start.score != answer.score:
        change = "up" if answer.score > start.score else "down"
    return AnswerCell(
        text=shorten(answer.completion),
        score="" if answer.score is None else f"{answer.score:g}".replace("-", MINUS),
        tokens="" if answer.tokens is None else count(answer.tokens),
        finish=FINISHES.get(answer.finish.lower(), ""),
        change=change,
    )
