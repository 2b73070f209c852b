"""What strategies of test-time compute reached, and what they spent.

evaluations/<suite>.budget.json    BudgetCurves    of a suite of kind budget: accuracy against tokens and seconds
evaluations/<suite>.trees.jsonl    SolutionLine    all that a strategy tried on one prompt
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.runs.records.base import Record, optional_key
from posttrain.runs.records.evaluation import Figure


@dataclass(frozen=True, slots=True)
class BudgetPoint(Record):
    """One point of a curve: BudgetPoint("n = 8", 8, Figure(0.61, 0.55, 0.67, 40), tokens=1030.0, scored=1030.0,
    seconds=0.4)."""

    label: str
    n: float | None
    """Answers drawn; null for a strategy, whose own key is in the label."""
    accuracy: Figure | None
    tokens: float | None
    """That the model sampled for one prompt, a mean over prompts."""
    scored: float | None
    """That reward models read for one prompt, beside those."""
    seconds: float | None
    """Of one prompt, when all of them are worked on side by side: seconds of the whole, divided by the prompts."""
    stopped: Mapping[str, int] | None = optional_key()
    """Of a strategy: how many prompts ended for which reason."""


@dataclass(frozen=True, slots=True)
class BudgetCurve(Record):
    """BudgetCurve("majority", "majority", scorer=None, points=(BudgetPoint("n = 1", ...), ...))"""

    name: str
    kind: str
    """oracle, majority, best, weighted: computed from the pool. strategy: run as it is."""
    scorer: str | None
    """Who chose, by its name in the suite."""
    points: tuple[BudgetPoint, ...]


@dataclass(frozen=True, slots=True)
class BudgetChoice(Record):
    """Who is best at the price of n samples: BudgetChoice(32, 4120.0, "majority", "best of n by judge", Figure(...),
    clear=False)."""

    n: int | None
    tokens: float | None
    """The price: n times the mean tokens of an answer."""
    best: str
    second: str | None
    difference: Figure | None
    """Best minus second over the same prompts."""
    clear: bool | None
    """Whether chance does not explain it."""


@dataclass(frozen=True, slots=True)
class DifficultyBin(Record):
    """Prompts that the model finds about as hard: DifficultyBin(0.0, 0.12, 9, ("majority", "majority"), 0.21, 0.18)."""

    low: float | None
    """Least share of right answers among its prompts."""
    high: float | None
    prompts: int | None
    choices: tuple[str, ...]
    """What was chosen on either half of the prompts."""
    chosen: float | None
    """Accuracy of these choices on the other half."""
    fixed: float | None
    """Accuracy there of the one strategy that was best over all prompts."""


@dataclass(frozen=True, slots=True)
class DifficultyChoice(Record):
    """The best strategy by difficulty against one for all, at the price of n samples; chosen on one half of the
    prompts, measured on the other: DifficultyChoice(16, ("majority", "early"), Figure(0.02, -0.01, 0.05), (...))."""

    n: int | None
    fixed: tuple[str, ...]
    """The best over all prompts, by either half."""
    gain: Figure | None
    """By difficulty minus one for all, over the same prompts."""
    bins: tuple[DifficultyBin, ...]


@dataclass(frozen=True, slots=True)
class BudgetFinding(Record):
    """BudgetFinding("warn", "accuracy falls from 60 to 52 % between n = 8 and n = 32 ...")"""

    kind: str
    """good, warn or plain."""
    said: str


@dataclass(frozen=True, slots=True)
class BudgetCurves(Record):
    """BudgetCurves("spent", samples=32, prompts=40, tokens_per_answer=128.7, subsets=1000, curves=(...), choices=(...),
    difficulty=None, findings=(...), trees_left_out=0)"""

    suite: str
    samples: int | None
    """Answers of each prompt in the pool."""
    prompts: int | None
    tokens_per_answer: float | None
    """Mean of the pool, stop tokens included."""
    subsets: int | None
    """Most subsets over which majority and weighted choices are averaged."""
    curves: tuple[BudgetCurve, ...]
    choices: tuple[BudgetChoice, ...]
    difficulty: DifficultyChoice | None
    findings: tuple[BudgetFinding, ...]
    trees_left_out: int | None
    """Solutions whose trees were not written, because the file would have grown too large."""


# ---------------------------------------------------------------- the trees


@dataclass(frozen=True, slots=True)
class SolutionNode(Record):
    """Something that the model wrote on the way: SolutionNode(3, "step", (1,), "12\\n", 3, "stop_string", ...)."""

    number: int | None
    kind: str
    parents: tuple[int, ...]
    text: str
    """Cut in the middle where it is very long."""
    tokens: int | None
    finish: str
    scores: Mapping[str, float | None]
    """null where the scorer abstained."""
    facts: Mapping[str, float | None]
    note: str


@dataclass(frozen=True, slots=True)
class SolutionLine(Record):
    """What a strategy did on one prompt: SolutionLine("beam", "2 + 2?", "4", "4", True, 3, "done", 120, ...)."""

    strategy: str
    prompt: str
    answer: str
    wanted: str | None
    right: bool | None
    chosen: int | None
    """The node that is the answer; null where the strategy wrote one of its own, or found none."""
    stopped: str
    sampled: int | None
    """Tokens that the model drew."""
    scored: int | None
    """Tokens that reward models read."""
    seconds: float | None
    facts: Mapping[str, float | None]
    nodes: tuple[SolutionNode, ...]
