"""From a file of rows to a recipe's text: what is known of both, and the files to write."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from posttrain.data.sources.hub import HUB_ID
from posttrain.data.sources.shipped import PACKAGE_SCHEME
from posttrain.errors import ConfigError, unknown
from posttrain.starting.choices import CHOICES, Choice, choose
from posttrain.starting.expectation import Model, in_words, minutes, model_of, operations_per_second
from posttrain.starting.names import (
    answers_of,
    are_english,
    check_name,
    name_in,
    question_of,
    shipped_questions,
    shipped_rows,
    split,
)
from posttrain.starting.rewards import Judge, judge_of
from posttrain.starting.rows import Rows, read_rows
from posttrain.types import Demonstration, Task

DEFAULT_MODEL = "smollm2-135m-instruct"
"""Small enough for a CPU, and it can already talk; `--model` names another."""
MOST_ONLINE_STEPS = 500
"""Of a GRPO recipe: a larger file is a larger choice of tasks, not more steps."""
ANSWERS_IN_SUITES = {"identity": 80, "chat": 20, "dpo": 20, "reward": 0, "grpo": 0}
"""That the suites of a kind's recipe sample of one model; for the estimate of time."""
MOST_ABOUT_ITSELF = 0.8
"""Share of answers with the name above which rows about other things are added: a model that was trained on nothing but
its name said it in 25 % of the answers to questions of fact (first steps)."""
OTHERS_SHARE = 0.6
FEWEST_OTHERS = 10
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True)
class Start:
    """All that a recipe's text needs: Start("identity", Rows(...), Model(...), Choice(...), name="Pia", ...)."""

    kind: str
    rows: Rows
    model: Model
    choice: Choice
    out: Path
    data: str
    """The rows as the recipe names them: relative to its file where that is possible."""
    name: str | None = None
    """That an identity recipe teaches."""
    says_name: float = 0.0
    """Share of the answers that say it."""
    judge: Judge | None = None
    """That a GRPO recipe rewards with."""
    beside: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)
    """Files to write beside the recipe, by name, with their rows: the questions, and where the questions are of the
    rows, the rows that are left."""
    others: str | None = None
    """A file of ordinary questions and answers that train too, so that the model does not speak of itself unasked."""
    training: int = 0
    """Rows that train or are held out, those of `others` included."""
    speed: float = 0.0
    """Operations a second of a matrix product here; 0: not timed."""

    @property
    def run_name(self) -> str:
        return self.out.stem

    @property
    def questions(self) -> str | None:
        """The file with the questions about the name."""
        return next((name for name in self.beside if name.endswith("_questions.jsonl")), None)

    @property
    def adapter(self) -> int | None:
        """The rank of the adapter; None: all weights train."""
        return None if self.model.is_tiny else self.choice.rank

    @property
    def rate(self) -> float:
        return self.choice.tiny_rate if self.model.is_tiny else self.choice.rate

    @property
    def held_out_rows(self) -> int:
        return int(self.training * self.choice.held_out)

    @property
    def steps(self) -> int:
        rows = self.training - self.held_out_rows
        if self.kind == "grpo":
            return min(MOST_ONLINE_STEPS, max(1, math.ceil(rows * self.choice.epochs / self.choice.rows_per_step)))
        return math.ceil(rows / self.choice.rows_per_step) * self.choice.epochs

    @property
    def max_length(self) -> int:
        """Room for the longest row and half as much again, since tokens were estimated from characters."""
        return next((length for length in LENGTHS if length >= 1.5 * self.rows.longest), LENGTHS[-1])

    @property
    def time(self) -> str:
        """In words; "" where the model's size is not known, or for a stage whose time depends on what it samples."""
        if self.kind == "grpo" or not self.speed:
            return ""
        tokens = self.steps * self.choice.rows_per_step * self.rows.tokens
        # The reference's pass of DPO is half a training step's at most, and is made once.
        asked = 2 * ANSWERS_IN_SUITES[self.kind]
        return in_words(minutes(self.model, tokens, asked, adapter=self.adapter is not None, speed=self.speed))


def plan(
    kind: str,
    data: str,
    *,
    model: str = DEFAULT_MODEL,
    name: str | None = None,
    out: Path | None = None,
    timed: bool = True,
) -> Start:
    """Read and count the rows, and choose the settings for so many.

    Args:
        kind: identity, chat, dpo, reward or grpo.
        data: whatever `posttrain.data.read` takes: a file, a pattern, a folder, a hub id, package://NAME.
        model: a catalogue name, a folder or a hub id.
        name: that an identity recipe teaches; None: found in the answers.
        out: the recipe's file; None: KIND.yaml here.
        timed: whether a matrix product is timed, for the line that says how long the run will take.

    Raises:
        ConfigError: no such kind; the recipe's file is there already; the rows are of another kind; no name or no
            reward fits them.
        DataError: the file cannot be read, or a row is wrong.
        ModelError: there is no such model.
    """
    if kind not in CHOICES:
        raise unknown("kind of recipe", kind, CHOICES, problem=f"there is no `posttrain new {kind}`", spelling="{}")
    if name is not None and kind != "identity":
        raise ConfigError(
            f"`posttrain new {kind}` teaches no name",
            where="--name",
            found=name,
            remedy="leave `--name` out, or type `posttrain new identity`",
        )
    out = out if out is not None else Path(f"{kind}.yaml")
    # Before the rows are read, which may take minutes.
    refuse_existing([out])
    facts = model_of(model)
    rows = read_rows(kind, data)
    start = Start(
        kind=kind,
        rows=rows,
        model=facts,
        choice=choose(kind, rows.count),
        out=out,
        data=written_path(data, out),
        training=rows.count,
        speed=operations_per_second() if timed else 0.0,
    )
    if kind == "identity":
        return _with_name(start, name)
    if kind == "grpo":
        tasks = [cast(Task, example) for example in rows.examples.head(2_000)]
        return replace(start, judge=judge_of(tasks, data))
    return start


def _with_name(start: Start, name: str | None) -> Start:
    """An identity recipe's name, and its questions: ours, or the rows' own where those are not English."""
    rows = [cast(Demonstration, example) for example in start.rows.examples]
    name = name if name is not None else name_in(rows, start.rows.data)
    share = check_name(name, rows, start.rows.data)
    stem = start.out.stem
    if are_english(rows):
        beside: dict[str, list[dict[str, object]]] = {
            f"{stem}_questions.jsonl": [{"prompt": text} for text in shipped_questions(rows)]
        }
        others = None
        # Where the file holds other conversations too, they do the same work, and better: they are the user's.
        if share > MOST_ABOUT_ITSELF:
            others = f"{stem}_ordinary.jsonl"
            # About half as many as theirs, as far as ours go: of ten rows about a name thirty-six others would be most.
            beside[others] = shipped_rows("ordinary")[: max(FEWEST_OTHERS, round(OTHERS_SHARE * len(rows)))]
        count = start.training + len(beside.get(others, ())) if others else start.training
        return replace(start, name=name, says_name=share, beside=beside, others=others, training=count)
    train, kept = split(rows, name)
    if not kept:
        raise ConfigError(
            "no row can be kept back to ask the trained model",
            where=start.rows.data,
            found=f"{len(rows)} rows",
            expected="at least five different questions whose answers say the name",
            remedy="write more rows: 50 different questions or more",
        )
    data = f"{stem}_train.jsonl"
    beside = {
        data: [_as_row(row) for row in train],
        f"{stem}_questions.jsonl": [{"prompt": question_of(row), "answer": answers_of(row)} for row in kept],
    }
    return replace(start, name=name, says_name=share, beside=beside, data=data, training=len(train))


def _as_row(row: Demonstration) -> dict[str, object]:
    """A conversation as it is written to the copy that trains.

    Raises:
        ConfigError: it holds more than texts, which the copy would lose.
    """
    if row.tools or any(turn.tool_calls or turn.reasoning or turn.train is not None for turn in row.messages):
        raise ConfigError(
            "a row holds tools, thoughts or training marks, which a copy of it would lose",
            where=row.row,
            remedy="put these rows into a file of their own, and write the recipe for the others",
        )
    return {"messages": [{"role": turn.role, "content": turn.content or ""} for turn in row.messages]}


def written_path(data: str, out: Path) -> str:
    """The rows' place as the recipe says it: relative to its file where they lie beside or below it, else absolute.

    Hub ids and shipped files stay as they are.
    """
    if data.startswith((PACKAGE_SCHEME, "hub:")) or (HUB_ID.fullmatch(data) and not Path(data).exists()):
        return data
    path = Path(os.path.abspath(Path(data).expanduser()))
    folder = Path(os.path.abspath(out.parent))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def refuse_existing(paths: Sequence[Path]) -> None:
    """No recipe that somebody worked on is overwritten.

    Raises:
        ConfigError: one of the files is there already; names a free one.
    """
    for path in paths:
        if path.exists():
            free = next(
                other for number in range(2, 10_000) if not (other := path.with_stem(f"{path.stem}{number}")).exists()
            )
            raise ConfigError(
                "the file is there already, and is not overwritten",
                where=path,
                remedy=f"write `--out {free}`, or remove it",
            )
