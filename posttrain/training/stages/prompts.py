"""The stage `prompts`: a model writes prompts, which later stages have answered, sample on, or train on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from posttrain.auditing.fix import as_row
from posttrain.config.prompts import CountedKind, EvolInstruct, NewPrompts, Personas
from posttrain.data.write import write_jsonl
from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.inference.rows import demonstration_of
from posttrain.models.folders.named import named_content
from posttrain.runs.records.logs import DroppedRow
from posttrain.runs.records.stage import DataCounts
from posttrain.synthesis.prompts.made import REASONS, MadePrompts
from posttrain.synthesis.prompts.make import Seeds, make_prompts
from posttrain.synthesis.prompts.personas import Persona
from posttrain.text_file import read_text
from posttrain.training.order import stream_seed
from posttrain.training.stages.audited import audit_made
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext
from posttrain.training.stages.policy_asked import Prompts, made_counts, prompts_of
from posttrain.training.stages.teaching import special_tokens_of, teaching
from posttrain.types import Message, RowRef, Task

GATE_CHECKS = ("duplicates", "near_duplicates", "languages", "special_tokens", "contamination")
"""Of the audit: what makes prompts worth nothing, or worse. The others look at two sides of a pair."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the stage works on: Given(Prompts([...], 175), personas=[...])."""

    prompts: Prompts
    personas: tuple[Persona, ...] = ()


def given_to(ctx: StageContext[NewPrompts]) -> Given:
    """The seeds and the personas; both are looked at before a model loads.

    Raises:
        DataError: a row cannot be read.
        ConfigError: the file of personas cannot be read, or holds none.
    """
    make = ctx.stage.make
    personas = personas_of(make) if isinstance(make, Personas) else ()
    return Given(prompts_of(ctx) if make.reads_rows else Prompts([], 0), personas)


def personas_of(make: Personas) -> tuple[Persona, ...]:
    """Those of the recipe, or of its file; none where they are made of rows.

    Raises:
        ConfigError: the file holds none.
        SourceError: it cannot be read, or is no text.
    """
    if make.personas_file is None:
        return tuple(map(Persona, make.personas))
    path = Path(make.personas_file)
    lines = [line.strip() for line in read_text(path, "the file of personas").splitlines()]
    found = tuple(Persona(line) for line in dict.fromkeys(lines) if line and not line.startswith("#"))
    if not found:
        raise ConfigError(
            "the file of personas holds none",
            where=path,
            expected="one persona a line",
            example="a beekeeper in a dry valley who sells at two markets",
            remedy="write at least one, or leave `personas_file` out",
        )
    return found


def make_new_prompts(ctx: StageContext[NewPrompts], given: Given) -> DataCounts:
    """Write data.jsonl, dropped.jsonl and asked.jsonl into the stage's folder.

    Raises:
        EmptyDatasetError: no prompt was kept.
        DataError: the audit finds an error in the rows, and the gate is `stop`.
        EngineError, ConfigError, TemplateError: the teacher does not answer; what was answered by then is kept.
    """
    stage, folder = ctx.stage, ctx.folder
    ctx.say(*given.prompts.notes)
    with teaching(ctx, stage.teacher, title=f"{folder.name}: prompts", total=_expected(stage, given)) as asked:
        made = make_prompts(
            stage,
            Seeds(given.prompts.tasks, given.personas),
            asked.teacher,
            seed=stream_seed(ctx.seed, "sampling"),
            special=special_tokens_of(ctx),
            on_reply=asked.on_reply,
        )
    write_jsonl(folder.path / DroppedRow.FILE, made.dropped_lines())
    ctx.say(str(made), *_short_of(stage, made))
    if not made.rows:
        raise _no_prompt(made)
    out = folder.path / OUTPUT_NAMES["data"]
    write_jsonl(out, (row.to_json() for row in made.rows))
    audited = audit_made(out, stage.gate, folder, ctx.progress, checks=GATE_CHECKS, against=stage.against)
    ctx.say(*audited)
    limit = {} if made.limit is None else {"stopped_by": made.limit}
    return made_counts(
        read=given.prompts.read,
        kept=len(made.rows),
        dropped=dict(made.reasons),
        tokens=asked.teacher.spent.completion_tokens,
        answers=made.asked,
        prompts=len(made.rows),
        diversity=made.curve(),
        notes=(str(made), *_short_of(stage, made), *audited),
        more=dict(asked.spent) | limit,
    )


def _expected(stage: NewPrompts, given: Given) -> int:
    """Questions, as far as they are known before: filters may ask for more."""
    make = stage.make
    if isinstance(make, CountedKind):
        asks = make.count
    elif isinstance(make, EvolInstruct):
        asks = len(given.prompts.tasks) * make.rounds
    else:
        assert isinstance(make, Personas)
        people = len(given.personas) or len(given.prompts.tasks)
        asks = people * len(make.texts) * make.prompts_per_task + len(given.prompts.tasks)
    return asks if stage.answers is None else 2 * asks


def _short_of(stage: NewPrompts, made: MadePrompts) -> Iterable[str]:
    """Why there are fewer prompts than were wanted."""
    make = stage.make
    if made.limit is not None:
        yield f"no more was asked: {made.limit}; raise it and run again, and what was answered is not asked twice"
    elif isinstance(make, CountedKind) and len(made.rows) < make.count and stage.answers is None:
        yield (
            f"{len(made.rows):,} of the {make.count:,} prompts that were wanted: `most_asks` ({make.asks_at_most:,}) "
            "was reached; dropped.jsonl says what the filters took"
        )


def _no_prompt(made: MadePrompts) -> EmptyDatasetError:
    reasons = ", ".join(f"{count:,}: {REASONS[reason]}" for reason, count in made.reasons.most_common())
    return EmptyDatasetError(
        "no prompt was kept",
        where=made.maker,
        found=reasons or "nothing was written",
        expected="at least one prompt that passes the filters",
        remedy=f"look at {DroppedRow.FILE}, loosen `make.filters`, raise `sampling.max_new_tokens`, or take a stronger "
        "teacher; what was answered is kept and not asked again",
    )


def stand_in(ctx: StageContext[NewPrompts], given: Given) -> str:
    """The seeds themselves, or one plain prompt; what the model writes is known in the run."""
    stage = ctx.stage
    longest = stage.make.sampling.max_new_tokens
    ctx.folder.path.mkdir(parents=True, exist_ok=True)
    tasks = given.prompts.tasks or [Task((Message("user", "What is a hive?"),), None, RowRef(ctx.folder.name, 1))]
    rows = tasks if stage.answers is None else [demonstration_of(task, "...") for task in tasks]
    write_jsonl(ctx.folder.path / OUTPUT_NAMES["data"], map(as_row, rows))
    return (
        f"{_expected(stage, given):,} questions and more will be asked of the teacher (`{stage.make.kind}`). Not known "
        f"before: how many prompts are kept, and how long they are (at most {longest} tokens)"
    )


PROMPTS: MakingKind[NewPrompts, Given] = MakingKind(
    outputs=NewPrompts.OUTPUTS, inputs=given_to, make=make_new_prompts, content=named_content, stand_in=stand_in
)
"""Prompts that a model writes, with or without answers."""
