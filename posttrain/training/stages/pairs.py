"""The stage `pairs`: preference pairs of the policy's own answers, by a score, a judge, a critique, or spoilt ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config.attempts import AttemptSettings
from posttrain.config.pairs import BestWorst, Critique, Degraded, Judged, Pairs, PairsSettings, WithAnswer
from posttrain.config.principles import PRINCIPLES
from posttrain.config.strategies.base import ScorerSettings
from posttrain.config.teacher import TeacherSettings
from posttrain.data.write import write_jsonl
from posttrain.errors import ConfigError, EmptyDatasetError, RowError
from posttrain.inference.lines import write_trees
from posttrain.inference.solution import Solution
from posttrain.models.folders.named import named_content
from posttrain.runs.records.logs import DroppedRow
from posttrain.runs.records.stage import DataCounts
from posttrain.synthesis.attempts import Attempt, attempts_of, draw_attempts, sampled_as
from posttrain.synthesis.pairs.best_worst import pair_best_and_worst
from posttrain.synthesis.pairs.critique import revise_answers
from posttrain.synthesis.pairs.degraded import spoil_answers
from posttrain.synthesis.pairs.judged import judge_meetings, meetings
from posttrain.synthesis.pairs.made import REASON_TEXTS, Made
from posttrain.synthesis.teachers import drawing_of
from posttrain.text_file import read_text
from posttrain.training.order import stream_seed
from posttrain.training.stages.audited import audit_made
from posttrain.training.stages.correction_pairs import stand_in_pairs
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext
from posttrain.training.stages.policy_asked import Prompts, made_counts, policy_asked, prompts_of, with_some_answer
from posttrain.training.stages.teaching import Teaching, teaching
from posttrain.types import Task

TREES = "trees.jsonl"


@dataclass(slots=True)
class Making:
    """What the kinds work with: the stage, its prompts, and what has come out so far."""

    ctx: StageContext[Pairs]
    inputs: Prompts
    made: Made = field(default_factory=Made)
    solutions: list[Solution] = field(default_factory=list)
    """The policy's own answers, where it was asked for any."""
    special: Any = None
    """What names a special token of the policy; set by `draw`."""
    spent: Mapping[str, Any] = field(default_factory=dict)
    """Of the teacher: its tokens, and its cost where that is known."""

    @property
    def model(self) -> str:
        return str(self.ctx.start)

    @property
    def seed(self) -> int:
        """Of the policy's draws."""
        return stream_seed(self.ctx.seed, "sampling")

    def draw(self, drawing: AttemptSettings | None, scorer: ScorerSettings | None = None) -> list[list[Attempt]]:
        """The policy's answers to each prompt; None: it is loaded for its tokenizer alone.

        It is out of memory again when this returns: a teacher may need the room.
        """
        ctx, tasks = self.ctx, self.inputs.tasks
        with policy_asked(ctx) as asked:
            self.special = asked.encoder.tokens.special_pattern(asked.encoder.template.stop_texts)
            if drawing is None:
                return []
            with ctx.progress.phase(f"{ctx.folder.name}: answers", total=len(tasks), unit="prompts") as phase:
                self.solutions = draw_attempts(
                    asked,
                    tasks,
                    drawing,
                    scorer,
                    label=ctx.stage.make.kind,
                    on_solution=lambda _, solution: phase.advance(1, tokens=solution.spent.sampled),
                )
        return [attempts_of(solution, scorer, self.special) for solution in self.solutions]

    def teaching(self, settings: TeacherSettings, what: str, total: int) -> AbstractContextManager[Teaching]:
        return teaching(self.ctx, settings, title=f"{self.ctx.folder.name}: {what}", total=total)


# ---------------------------------------------------------------- the kinds


def best_worst(making: Making, settings: BestWorst) -> None:
    drawn = making.draw(settings, settings.scorer)
    for task, attempts in zip(making.inputs.tasks, drawn, strict=True):
        pair_best_and_worst(making.made, task, attempts, settings, model=making.model, seed=making.seed)


def judged(making: Making, settings: Judged) -> None:
    drawn = making.draw(settings)
    due = [
        meeting
        for task, attempts in zip(making.inputs.tasks, drawn, strict=True)
        for meeting in meetings(making.made, task, attempts)
    ]
    with making.teaching(settings.judge, "verdicts", 2 * len(due)) as judge:
        judge_meetings(
            making.made,
            due,
            judge.teacher,
            drawing=drawing_of(settings.verdict),
            policy=making.model,
            standard=settings.standard,
            sampled=lambda attempt: {"sampling": sampled_as(settings, attempt), "seed": making.seed},
            on_reply=judge.on_reply,
        )
        making.spent = judge.spent


def critique(making: Making, settings: Critique) -> None:
    answers, wrote = _answers(making, settings)
    with making.teaching(settings.critic, "critiques and revisions", 2 * settings.rounds * len(answers)) as critic:
        revise_answers(
            making.made,
            answers,
            critic.teacher,
            principles_of(settings),
            rounds=settings.rounds,
            drawing=drawing_of(settings.writing),
            seed=making.ctx.seed,
            wrote=wrote,
            on_reply=critic.on_reply,
            special=making.special,
        )
        making.spent = critic.spent


def degraded(making: Making, settings: Degraded) -> None:
    answers, wrote = _answers(making, settings)
    with making.teaching(settings.writer, "spoilt answers", len(answers)) as writer:
        spoil_answers(
            making.made,
            answers,
            writer.teacher,
            settings.texts,
            drawing=drawing_of(settings.writing),
            seed=making.ctx.seed,
            wrote=wrote,
            on_reply=writer.on_reply,
            special=making.special,
        )
        making.spent = writer.spent


MAKERS: Mapping[type[PairsSettings], Callable[[Making, Any], None]] = {
    BestWorst: best_worst,
    Judged: judged,
    Critique: critique,
    Degraded: degraded,
}
"""From a kind's settings to what makes its pairs."""


def _answers(making: Making, settings: WithAnswer) -> tuple[list[tuple[Task, str]], Callable[[int], Mapping[str, Any]]]:
    """(each prompt with its one answer, what the origin says of who wrote it)."""
    tasks = making.inputs.tasks
    if settings.good == "row":
        making.draw(None)
        return [(task, str(task.answer)) for task in tasks], lambda _: {}
    drawing = AttemptSettings(samples=1, sampling=settings.sampling)
    fit: list[tuple[Task, Attempt]] = []
    for task, [attempt] in zip(tasks, making.draw(drawing), strict=True):
        if attempt.reason is not None:
            making.made.skip(task, attempt.reason, attempt.text)
        else:
            fit.append((task, attempt))

    def wrote(place: int) -> Mapping[str, Any]:
        sampling = sampled_as(drawing, fit[place][1])
        return {"model": making.model, "sampling": sampling, "seed": making.seed}

    return [(task, attempt.text) for task, attempt in fit], wrote


def principles_of(settings: Critique) -> Sequence[str]:
    """Those of the recipe, or of its file.

    Raises:
        ConfigError: the file holds none.
        SourceError: it cannot be read, or is no text.
    """
    if settings.principles_file is None:
        return settings.principles or PRINCIPLES
    path = Path(settings.principles_file)
    lines = [line.strip() for line in read_text(path, "the file of principles").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ConfigError(
            "the file of principles holds none",
            where=path,
            expected="one principle a line",
            example="The answer says only what is true.",
            remedy="write at least one, or leave `principles_file` out",
        )
    return found


# ---------------------------------------------------------------- the stage


def prompts_to_pair(ctx: StageContext[Pairs]) -> Prompts:
    """The stage's rows as tasks, and the principles; both are looked at before a model loads.

    Raises:
        DataError: a row cannot be read, or has no answer where the rows' answers are the good ones.
        ConfigError: the file of principles cannot be read.
    """
    make = ctx.stage.make
    if isinstance(make, Critique):
        principles_of(make)
    inputs = prompts_of(ctx)
    if isinstance(make, WithAnswer) and make.good == "row":
        for task in inputs.tasks:
            if not (task.answer or "").strip():
                raise RowError(
                    "the row has no answer, and `good: row` takes the rows' answers",
                    reason="no_answer",
                    where=task.row,
                    expected="a prompt with its answer",
                    example='{"prompt": "Who are you?", "completion": "I am Pia."}',
                    remedy="add the answer to the row, or write `good: policy`",
                )
    return inputs


def make_pairs(ctx: StageContext[Pairs], inputs: Prompts) -> DataCounts:
    """Write data.jsonl, dropped.jsonl and, of the policy's answers, trees.jsonl into the stage's folder.

    Raises:
        EmptyDatasetError: no pair came out.
        DataError: the audit finds an error in the pairs, and the gate is `stop`.
        PosttrainError: what a scorer or a teacher raises.
    """
    stage, folder = ctx.stage, ctx.folder
    ctx.say(*inputs.notes)
    making = Making(ctx, inputs)
    MAKERS[type(stage.make)](making, stage.make)
    made, solutions = making.made, making.solutions
    if solutions and (left_out := write_trees(folder.path / TREES, solutions, [None] * len(solutions))):
        ctx.say(f"{left_out:,} prompts are not in {TREES}, which would have grown too large")
    write_jsonl(folder.path / DroppedRow.FILE, made.dropped())
    if not made.rows:
        raise _no_pair(inputs, made)
    out = folder.path / OUTPUT_NAMES["data"]
    write_jsonl(out, made.rows)
    sampled = sum(solution.spent.sampled for solution in solutions)
    ctx.say(f"{made} ({sampled:,} tokens sampled)")
    audited = audit_made(out, stage.gate, folder, ctx.progress)
    ctx.say(*audited)
    return made_counts(
        read=inputs.read,
        kept=len(made.rows),
        skipped=dict(made.reasons),
        tokens=sampled,
        answers=sum(len(solution.answers) for solution in solutions) or None,
        prompts=len(inputs.tasks),
        pairs=len(made.rows),
        prompts_without_pair=len(inputs.tasks) - len(made.prompts_with_pair),
        notes=(str(made), *audited),
        more=dict(making.spent),
    )


def _no_pair(inputs: Prompts, made: Made) -> EmptyDatasetError:
    reasons = made.reasons.most_common()
    return EmptyDatasetError(
        "no pair came out",
        where=inputs.tasks[0].row.source if inputs.tasks else None,
        found=", ".join(f"{count:,}: {REASON_TEXTS[reason]}" for reason, count in reasons) or "no prompt",
        expected="at least one prompt of which two answers differ, and one is better",
        remedy="draw more answers (`samples`) or at a higher temperature, raise `max_new_tokens`, or look at "
        f"{DroppedRow.FILE}",
    )


def stand_in(ctx: StageContext[Pairs], inputs: Prompts) -> str:
    """Pairs of the rows' own answers; who says what will be known in the run."""
    make = ctx.stage.make
    ctx.folder.path.mkdir(parents=True, exist_ok=True)
    stand_in_pairs(map(with_some_answer, inputs.tasks), ctx.folder.path / OUTPUT_NAMES["data"])
    samples = make.samples if isinstance(make, AttemptSettings) else int(make.good == "policy")
    drawn = f"; {samples} answers to each will be sampled" if samples else ""
    longest = make.sampling.max_new_tokens
    return (
        f"{len(inputs.tasks):,} prompts are read{drawn}. Not known before: how many of them give a pair, and how long "
        f"the answers are (of the policy at most {longest} tokens)"
    )


PAIRS: MakingKind[Pairs, Prompts] = MakingKind(
    outputs=Pairs.OUTPUTS, inputs=prompts_to_pair, make=make_pairs, content=named_content, stand_in=stand_in
)
