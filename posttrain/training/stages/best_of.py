"""The stage `best_of`: the policy's own best answers become rows to imitate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.auditing.fix import as_row
from posttrain.config.best_of import BestOf
from posttrain.data.questions import question
from posttrain.data.write import write_jsonl
from posttrain.errors import EmptyDatasetError
from posttrain.inference.lines import write_trees
from posttrain.inference.rows import demonstration_of, write_rows
from posttrain.inference.solution import Solution
from posttrain.intervals import Score
from posttrain.models.folders.named import named_content
from posttrain.runs.records.logs import DroppedRow, YieldLine
from posttrain.runs.records.stage import DataCounts
from posttrain.synthesis.attempts import attempts_of, draw_attempts
from posttrain.synthesis.best_of import NOT_KEPT, WITHOUT_ROW, Chosen, Yield, choose, rows_of, yield_of
from posttrain.training.order import stream_seed
from posttrain.training.stages.audited import audit_made
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext
from posttrain.training.stages.policy_asked import Prompts, made_counts, policy_asked, prompts_of, with_some_answer

TREES = "trees.jsonl"
UNSOLVED = "unsolved.jsonl"
"""Prompts of which no answer was right, as rows that a later stage or another model may be asked."""


def make_rows(ctx: StageContext[BestOf], inputs: Prompts) -> DataCounts:
    """Write data.jsonl, yields.jsonl, trees.jsonl, dropped.jsonl and unsolved.jsonl into the stage's folder.

    Raises:
        EmptyDatasetError: no row came out.
        DataError: the audit finds an error in the rows, and the gate is `stop`.
        PosttrainError: what a scorer raises.
    """
    stage, folder = ctx.stage, ctx.folder
    ctx.say(*inputs.notes)
    title = f"{folder.name}: answers"
    with policy_asked(ctx) as asked, ctx.progress.phase(title, total=len(inputs.tasks), unit="prompts") as phase:
        solutions = draw_attempts(
            asked,
            inputs.tasks,
            stage,
            stage.scorer,
            label=stage.method,
            on_solution=lambda _, solution: phase.advance(1, tokens=solution.spent.sampled),
        )
        special = asked.encoder.tokens.special_pattern(asked.encoder.template.stop_texts)
    chosen = [choose(one.task, attempts_of(one, stage.scorer, special), stage) for one in solutions]
    found = yield_of(chosen)
    _write_tries(ctx, solutions, chosen)
    if not found.rows:
        raise _nothing_kept(inputs, found)
    model, seed = str(ctx.start), stream_seed(ctx.seed, "sampling")
    rows = (row for one in chosen for row in rows_of(one, stage, model=model, seed=seed))
    out = folder.path / OUTPUT_NAMES["data"]
    write_jsonl(out, rows)
    sampled = sum(solution.spent.sampled for solution in solutions)
    ctx.say(f"{found} ({sampled:,} tokens sampled)")
    audited = audit_made(out, stage.gate, folder, ctx.progress)
    ctx.say(*audited)
    return made_counts(
        read=inputs.read,
        kept=found.rows,
        dropped=dict(found.without),
        skipped=dict(found.skipped),
        tokens=sampled,
        answers=found.answers,
        prompts=found.prompts,
        notes=(str(found), *audited),
        more=_figures(found),
    )


def _write_tries(ctx: StageContext[BestOf], solutions: Sequence[Solution], chosen: Sequence[Chosen]) -> None:
    """Everything that was drawn, what each prompt gave, and the prompts that gave nothing."""
    folder = ctx.folder.path
    for one in chosen:
        for attempt, reason in zip(one.attempts, one.reasons, strict=True):
            attempt.node.note = "kept" if reason is None else NOT_KEPT[reason]
    solved = [None if one.right is None else one.right > 0 for one in chosen]
    if left_out := write_trees(folder / TREES, solutions, solved):
        ctx.say(f"{left_out:,} prompts are not in {TREES}, which would have grown too large")
    write_jsonl(folder / YieldLine.FILE, (_yield_line(one).to_json() for one in chosen))
    without = [(one, one.without) for one in chosen if one.without is not None]
    dropped = (
        DroppedRow(str(one.task.row), reason, WITHOUT_ROW[reason], solution.answer).to_json()
        for one, solution in zip(chosen, solutions, strict=True)
        if (reason := one.without) is not None
    )
    write_jsonl(folder / DroppedRow.FILE, dropped)
    never = [one.task for one, reason in without if reason == "never_right"]
    if never:
        write_jsonl(folder / UNSOLVED, map(as_row, never))
        ctx.say(f"{len(never):,} prompts of which no answer was right are in {folder / UNSOLVED}")


def _yield_line(one: Chosen) -> YieldLine:
    scores = [attempt.score for attempt in one.attempts if attempt.score is not None]
    skipped: dict[str, int] = {}
    for reason in filter(None, one.reasons):
        skipped[reason] = skipped.get(reason, 0) + 1
    asked = question(one.task)
    best = max(scores, default=None)
    return YieldLine(str(one.task.row), asked.text, len(one.attempts), one.right, len(one.kept), best, skipped)


def _figures(found: Yield) -> dict[str, Any]:
    """What stage.json says of the round beside the counts of every stage."""
    if found.right is None:
        return {}
    passed = {f"pass@{k}": _score(score) for k, score in found.passed}
    return {"right": found.right, "never_right": found.never_right, "pass_at": passed}


def _score(score: Score) -> dict[str, float | int]:
    return {"value": score.value, "low": score.low, "high": score.high, "n": score.n}


def _nothing_kept(inputs: Prompts, found: Yield) -> EmptyDatasetError:
    reasons = ", ".join(f"{count:,} answers: {NOT_KEPT[reason]}" for reason, count in found.skipped.most_common())
    return EmptyDatasetError(
        "no row came out: none of the answers could be kept",
        where=inputs.tasks[0].row.source if inputs.tasks else None,
        found=reasons or "no prompt",
        expected="at least one answer that is right and ends by itself",
        remedy="draw more (`samples`), lower `least_score`, take easier prompts, or raise `sampling.max_new_tokens`",
    )


def stand_in_rows(ctx: StageContext[BestOf], inputs: Prompts) -> str:
    """Demonstrations of the tasks' own answers; the policy's are known in the run."""
    stage = ctx.stage
    ctx.folder.path.mkdir(parents=True, exist_ok=True)
    tasks = [with_some_answer(task) for task in inputs.tasks]
    write_rows(ctx.folder.path / OUTPUT_NAMES["data"], [demonstration_of(task, str(task.answer)) for task in tasks])
    return (
        f"{len(tasks):,} prompts are read; {stage.samples} answers to each will be sampled. Not known before: how many "
        f"are kept, and how long they are (at most {stage.sampling.max_new_tokens} tokens)"
    )


BEST_OF: MakingKind[BestOf, Prompts] = MakingKind(
    outputs=BestOf.OUTPUTS, inputs=prompts_of, make=make_rows, content=named_content, stand_in=stand_in_rows
)
