"""Rejection sampling for SFT: which of a policy's answers to a prompt become demonstrations, and what the round yields.

    best         y* = argmax_k r(x, y_k)                                RAFT, Dong et al. 2023, arXiv:2304.06767
    all_right    {y_k : r(x, y_k) >= least, no equal y_j before it}     RFT, Yuan et al. 2023, arXiv:2308.01825

Two answers of RFT are the same where their lists of equations are: other words for one way to work a sum teach nothing.

Deviations:
1. RAFT ranks the best answers of a batch of prompts and keeps a share of it; here each prompt keeps its own best, or
   with `least_score` none.
2. Of answers with the same equations RFT keeps one at random; here it is the first that was drawn.
3. An answer without an equation is the same as one of the same text. In the paper every answer has one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.auditing.fix import as_row
from posttrain.config.attempts import AttemptSettings
from posttrain.config.best_of import BestOf
from posttrain.data.origin import Origin, with_origin
from posttrain.inference.rows import demonstration_of
from posttrain.intervals import Score, average
from posttrain.synthesis.attempts import REASONS, Attempt, sampled_as
from posttrain.types import Task

NOT_KEPT = REASONS | {
    "low_score": "its score is below `least_score`",
    "not_best": "another answer to the prompt has a higher score, or the same and was drawn before it",
    "same": "an answer that says the same was kept",
    "over_limit": "`up_to` answers of this prompt are kept already",
}
"""Why an answer made no row."""
WITHOUT_ROW = {
    "never_right": "no answer was right",
    "nothing_fit": "no answer could make a row: all were cut, empty, or could not be judged",
}
"""Why a prompt gave no row."""

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?%?"
_EQUATION = re.compile(rf"{_NUMBER}(?:\s*[-+*/x×÷·]\s*\(?\s*{_NUMBER}\)?)+\s*=\s*{_NUMBER}")
_NEUTRAL = re.compile(r"[\s$,()%]")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What became of one prompt's answers: Chosen(task, attempts, kept=(2,), reasons=("low_score", "cut", None))."""

    task: Task
    attempts: tuple[Attempt, ...]
    kept: tuple[int, ...]
    """Places among the attempts, in the order in which their rows are written."""
    reasons: tuple[str | None, ...]
    """Of each attempt why it made no row, a key of NOT_KEPT; None: it made one."""
    right: int | None
    """Attempts whose score is at least `least_score`; None where nobody says what is right."""

    @property
    def without(self) -> str | None:
        """Why the prompt gave no row, a key of WITHOUT_ROW; None where it gave one."""
        if self.kept:
            return None
        return "nothing_fit" if self.right is None else "never_right"


def choose(task: Task, attempts: Sequence[Attempt], settings: BestOf) -> Chosen:
    """The answers of one prompt that are kept."""
    least = settings.least_score
    reasons = [attempt.reason for attempt in attempts]
    for place, attempt in enumerate(attempts):
        if reasons[place] is None and least is not None and not attempt.is_right(least):
            reasons[place] = "low_score"
    right = None if least is None else sum(attempt.is_right(least) for attempt in attempts)
    # `sorted` is stable: of equal scores the earlier draw comes first, whatever else the engine did meanwhile.
    fit = [place for place, reason in enumerate(reasons) if reason is None]
    ranked = sorted(fit, key=lambda place: -_score(attempts[place]))
    kept: list[int] = []
    seen: set[tuple[str, ...]] = set()
    for place in ranked:
        same = same_as(attempts[place].text, settings.distinct)
        if settings.keep == "best" and kept:
            reasons[place] = "not_best"
        elif same in seen:
            reasons[place] = "same"
        elif settings.up_to is not None and len(kept) == settings.up_to:
            reasons[place] = "over_limit"
        else:
            kept.append(place)
            seen.add(same)
    return Chosen(task, tuple(attempts), tuple(kept), tuple(reasons), right)


def _score(attempt: Attempt) -> float:
    assert attempt.score is not None, "an attempt without a reason was judged"
    return attempt.score


def same_as(text: str, distinct: str = "equations") -> tuple[str, ...]:
    """What two answers have in common that are one: same_as("3 + 4 = 7, so 7.") == ("3+4=7",), else the text."""
    equations = equations_of(text) if distinct == "equations" else ()
    return equations or (" ".join(text.split()),)


def equations_of(text: str) -> tuple[str, ...]:
    """The equations between numbers, in their order and without blanks: equations_of("2 + 3 = 5") == ("2+3=5",)."""
    return tuple(_NEUTRAL.sub("", found[0]) for found in _EQUATION.finditer(text))


# ---------------------------------------------------------------- rows and figures


def rows_of(chosen: Chosen, drawing: AttemptSettings, *, model: str, seed: int) -> list[dict[str, object]]:
    """The rows of one prompt, each with its origin."""
    rows = []
    for place in chosen.kept:
        attempt = chosen.attempts[place]
        details: dict[str, object] = {"attempt": place + 1, "of": len(chosen.attempts)}
        if chosen.right is not None:
            details["right"] = chosen.right
        origin = Origin(
            "best_of",
            model=model,
            source=str(chosen.task.row),
            sampling=sampled_as(drawing, attempt),
            seed=seed,
            scores=dict(attempt.node.scores),
            details=details,
        )
        rows.append(with_origin(as_row(demonstration_of(chosen.task, attempt.text)), origin))
    return rows


@dataclass(frozen=True, slots=True)
class Yield:
    """What a round gives: Yield(prompts=200, answers=1600, rows=512, right=700, never_right=31, ...)."""

    prompts: int
    answers: int
    rows: int
    right: int | None
    never_right: int | None
    """Prompts of which no answer is right; None where nobody says what is."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Answers that made no row, by reason."""
    without: Counter[str] = field(default_factory=Counter)
    """Prompts that gave no row, by reason."""
    passed: tuple[tuple[int, Score], ...] = ()
    """pass@1 and pass@K of the round: (k, the share of prompts with its 95 % interval over prompts)."""

    def __str__(self) -> str:
        lines = [f"{self.rows:,} rows of {self.answers:,} answers to {self.prompts:,} prompts"]
        if self.right is not None:
            lines.append(f"{self.right:,} answers were right; {self.never_right:,} prompts had none")
        if self.passed:
            said = (f"pass@{k} {said_share(score)}" for k, score in self.passed)
            lines.append(", ".join(said) + ", of the prompts that were sampled from")
        return "; ".join(lines)


def said_share(score: Score) -> str:
    """0.31 [0.25, 0.38] as a person reads it: "31 % [25, 38]"."""
    return f"{100 * score.value:.0f} % [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def yield_of(round_: Sequence[Chosen]) -> Yield:
    """What all prompts together gave.

    With K answers each, a prompt's pass@1 is the share of right ones, and its pass@K whether there is one (the estimate
    of Chen et al. 2021, arXiv:2107.03374, at k = 1 and k = n).
    """
    rights = [chosen.right for chosen in round_ if chosen.right is not None]
    samples = len(round_[0].attempts) if round_ else 0
    passed: tuple[tuple[int, Score], ...] = ()
    if rights and samples:
        passed = ((1, average([right / samples for right in rights])),)
        if samples > 1:
            passed += ((samples, average([float(right > 0) for right in rights])),)
    return Yield(
        prompts=len(round_),
        answers=sum(len(chosen.attempts) for chosen in round_),
        rows=sum(len(chosen.kept) for chosen in round_),
        right=sum(rights) if rights else None,
        never_right=sum(right == 0 for right in rights) if rights else None,
        skipped=Counter(reason for chosen in round_ for reason in chosen.reasons if reason is not None),
        without=Counter(chosen.without for chosen in round_ if chosen.without is not None),
        passed=passed,
    )
