"""Selecting rows: the steps, and the stage `select`; `posttrain.curation` carries them out.

- name: picked
  method: select
  data: chat.jsonl
  steps:
    - {kind: decontaminate, against: [human-eval, heldout.jsonl]}
    - {kind: score, score: {kind: length}, keep: {least: 5}}
    - {kind: deduplicate}
    - {kind: budget, rows: 1000, by: length}
- {method: sft, data: {stage: picked}}                                               # the selection
- {name: twin, method: sft, data: {stage: picked, rows: random}, starts_from: start}   # as many rows, at random
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config.base import Output, StageSettings
from posttrain.config.diversity import Diversify
from posttrain.config.scores import AnyScore
from posttrain.config.step import StepSettings
from posttrain.config.values import Float, Int, Settings, listed, refuse, require_unique
from posttrain.errors import unknown

ORDERS = ("auto", "choice", "random")
"""What a budget can go by beside a score's name."""


class Decontaminate(StepSettings):
    """Take out rows that hold questions or answers of evaluation sets; always the first step."""

    kind: Literal["decontaminate"]
    """`decontaminate`: take out what evaluation sets hold, by the rule of the audit (docs/audit.md)."""
    against: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(min_length=1)
    """Evaluation sets: files, folders, hub ids, or `embedded`, `human-eval`, `heldout_facts`, ... that come along."""


class Keep(Settings):
    """Which rows a score lets through; all, where nothing is set."""

    least: Float | None = None
    """Rows with a lower score go."""
    most: Float | None = None
    """Rows with a higher score go."""
    top: Float | None = Field(default=None, gt=0, le=1)
    """Then only this share of what is left stays, those with the highest scores; rounded up."""
    bottom: Float | None = Field(default=None, gt=0, le=1)
    """The same with the lowest scores."""
    unscored: Literal["keep", "drop"] = "keep"
    """What becomes of rows that could not be scored; they are counted either way, and are no part of `top`."""

    @model_validator(mode="after")
    def _lets_something_through(self) -> Self:
        if self.least is not None and self.most is not None and self.least > self.most:
            raise refuse(
                "no score is within these bounds",
                path=("least",),
                found=f"least: {self.least:g}, most: {self.most:g}",
                remedy="exchange the two",
            )
        if self.top is not None and self.bottom is not None:
            raise refuse(
                "a row cannot be among the highest and the lowest scores",
                path=("bottom",),
                expected="`top` or `bottom`",
                remedy="leave one out; `least` and `most` cut at both ends",
            )
        return self


class Score(StepSettings):
    """Give every row a number, and perhaps keep only some of them by it."""

    kind: Literal["score"]
    """`score`: give every row a number, for `keep` here, and for the steps after it."""
    score: AnyScore
    """The number, by its `kind`."""
    keep: Keep = Keep()
    """Which rows stay."""

    @property
    def asks_model(self) -> bool:
        return self.score.asks_model

    @property
    def label(self) -> str:
        return f"score {self.score.label}"


class Deduplicate(StepSettings):
    """Keep one of each group of rows that say the same, or nearly the same."""

    kind: Literal["deduplicate"]
    """`deduplicate`: keep one of those that say the same."""
    of: Literal["row", "prompt", "answer"] = "row"
    """What is compared: whole rows (prompt and all answers), the prompts alone, or the answers alone."""
    near: Float | None = Field(default=0.8, gt=0, le=1)
    """Overlap of their three-word sequences (MinHash, Broder 1997) from which on two texts of 12 words or more say
    nearly the same; as the audit. null: only texts that are equal to the letter."""
    keep: str = "first"
    """Which one stays: the `first` in the input, or the one with the highest score of this name."""

    @property
    def label(self) -> str:
        return "deduplicate" if self.of == "row" else f"deduplicate {self.of}"


class Budget(StepSettings):
    """Keep so many rows, the best ones; the last step."""

    kind: Literal["budget"]
    """`budget`: keep only so many rows."""
    rows: Int | None = Field(default=None, ge=1)
    """This many."""
    share: Float | None = Field(default=None, gt=0, le=1)
    """This share of what is left; rounded up."""
    tokens: Int | None = Field(default=None, ge=1)
    """As many rows, in their order, as have this many tokens together: of all texts of a row, without the marks of a
    template."""
    by: str = "auto"
    """What goes first: the name of a score; `choice`, the order in which a step before has chosen them; `random`.
    `auto`: the order of choice where there is one, else the last score, else random."""
    lowest: bool = False
    """Begin with the lowest scores."""

    @property
    def asks_model(self) -> bool:
        return self.tokens is not None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        given = [key for key in ("rows", "share", "tokens") if getattr(self, key) is not None]
        if len(given) != 1:
            raise refuse(
                "a budget has one size",
                found=" and ".join(f"`{key}`" for key in given) or "none",
                expected="`rows`, `share` or `tokens`",
                remedy="write `{kind: budget, rows: 1000}`",
            )
        if self.lowest and self.by in ("choice", "random"):
            raise refuse(
                f"`by: {self.by}` has no scores of which some are lowest",
                path=("lowest",),
                remedy="leave `lowest` out, or write `by: NAME` of a score",
            )
        return self


STEP_KINDS: Mapping[str, type[StepSettings]] = {
    "decontaminate": Decontaminate,
    "score": Score,
    "deduplicate": Deduplicate,
    "diversify": Diversify,
    "budget": Budget,
}
"""Every step by its kind; what each does is `posttrain.curation.steps.table.STEPS`."""

AnyStep = Annotated[
    # one kind a line, as in STEP_KINDS
    Decontaminate | Score | Deduplicate | Diversify | Budget,
    Field(discriminator="kind"),
]
"""Every kind of step that a selection may have."""


class SelectSettings(Settings):
    """What is selected, and how: a recipe's stage has these keys, and a file of `posttrain select --recipe`."""

    steps: tuple[AnyStep, ...] = Field(min_length=1)
    """What is done with the rows, in this order."""
    order: Literal["input", "choice"] = "input"
    """The order in which the kept rows are written: as they were read, or the best first."""
    tokenizer: str | None = None
    """Model whose tokens are counted, where something counts tokens; null: in a recipe the start model."""
    token_twin: bool = False
    """Write random_tokens.jsonl too: random rows with as many tokens as the selection, beside as many rows."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        for place, step in enumerate(self.steps):
            before = self.steps[:place]
            if isinstance(step, Decontaminate):
                _require_first(before, place)
            if before and isinstance(before[-1], Budget):
                raise refuse(
                    "a step after the budget would take rows that nothing replaces",
                    path=("steps", place),
                    found=f"`{step.label}` after `budget`",
                    remedy="put the budget last",
                )
            known = [other.score.label for other in before if isinstance(other, Score)]
            for key, name in step.score.reads if isinstance(step, Score) else ():
                _require_score(name, known, (), ("steps", place, "score", key))
            if isinstance(step, Deduplicate) and step.keep != "first":
                _require_score(step.keep, known, ("first",), ("steps", place, "keep"))
            if isinstance(step, Diversify) and step.score is not None:
                _require_score(step.score, known, (), ("steps", place, "score"))
            if isinstance(step, Budget) and step.by not in ORDERS:
                _require_score(step.by, known, ORDERS, ("steps", place, "by"))
        scores = tuple(step.score for step in self.steps if isinstance(step, Score))
        require_unique("scores", scores, [score.label for score in scores])
        return self


def _require_first(before: tuple[StepSettings, ...], place: int) -> None:
    """Whatever compares rows hides leaks: of a leaked question and its paraphrase one is removed as a duplicate, and
    the other passes; and the random twin would be drawn from rows that hold the test."""
    other = next((step for step in before if not isinstance(step, Decontaminate)), None)
    if other is not None:
        raise refuse(
            "rows are decontaminated before anything else",
            path=("steps", place),
            found=f"`{other.label}` before `decontaminate`",
            expected="`decontaminate` as the first step: one before it can remove the row that shows a leak, and keep "
            "its paraphrase",
            remedy="move `decontaminate` to the beginning",
        )


def _require_score(name: str, scores: list[str], words: tuple[str, ...], path: tuple[str | int, ...]) -> None:
    if name in scores:
        return
    refusal = unknown("score", name, [*words, *scores], otherwise="add a step `{kind: score, score: ...}` before it")
    raise refuse(
        f"no score named `{name}` is computed before this step",
        path=path,
        found=name,
        expected=refusal.expected,
        remedy=refusal.remedy,
    )


class Select(SelectSettings, StageSettings):
    """Keep the rows that are worth training on, say of each other row why it went, and draw a random twin of the same
    size. Trains nothing."""

    OUTPUTS: ClassVar[Output] = "data"

    method: Literal["select"] = "select"
    """Choose rows by steps; writes data.jsonl, rejected.jsonl, random.jsonl and manifest.json."""


def select_settings_of(value: Mapping[str, Any]) -> SelectSettings:
    """The settings from the keys that a recipe would have: select_settings_of({"steps": [{"kind": "deduplicate"}]}).

    Raises:
        ConfigError: a value that there is not.
        UnknownKeyError: a key that there is not.
    """
    return SelectSettings(**value)
