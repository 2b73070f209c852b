"""The stage `distil`: a teacher answers the prompts, and its answers become rows for the stages after it."""

from __future__ import annotations

from pathlib import Path

from posttrain.config.distil import Distil
from posttrain.inference.rows import demonstration_of, write_rows
from posttrain.inference.scorers import Scorers
from posttrain.models.devices import device_of
from posttrain.models.folders.named import named_content
from posttrain.runs.records.stage import DataCounts
from posttrain.synthesis.distil import answer_prompts
from posttrain.training.order import stream_seed
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext
from posttrain.training.stages.policy_asked import Prompts, made_counts, prompts_of, with_some_answer
from posttrain.training.stages.teaching import special_tokens_of, teaching


def make_rows(ctx: StageContext[Distil], inputs: Prompts) -> DataCounts:
    """Write data.jsonl, dropped.jsonl, yields.jsonl and asked.jsonl into the stage's folder; returns what stage.json
    says under "data".

    Raises:
        EmptyDatasetError: no row came out.
        EngineError, ConfigError: the teacher does not answer, or refuses; what was answered by then is kept.
        PosttrainError: what a scorer raises.
    """
    stage, folder = ctx.stage, ctx.folder
    ctx.say(*inputs.notes)
    modules = None if stage.modules is None else Path(stage.modules)
    device = device_of(ctx.answers.device if ctx.answers else "auto").type
    total = len(inputs.tasks) * stage.answers_per_prompt
    with (
        Scorers(modules, device=device) as scorers,
        teaching(ctx, stage.teacher, title=f"{folder.name}: answers", total=total) as asked,
    ):
        made = answer_prompts(
            inputs.tasks,
            asked.teacher,
            stage,
            folder.path,
            seed=stream_seed(ctx.seed, "sampling"),
            scorers=scorers,
            special=special_tokens_of(ctx),
            on_reply=asked.on_reply,
        )
    ctx.say(str(made))
    if made.limit is not None:
        ctx.say(f"no more was asked: {made.limit}; raise it and run again, and what was answered is not asked twice")
    return made_counts(
        read=inputs.read,
        kept=made.rows,
        dropped=dict(made.dropped),
        tokens=made.spent.completion_tokens,
        answers=made.answers,
        prompts=made.prompts,
        notes=(str(made),),
        more=made.figures | asked.spent,
    )


def stand_in_rows(ctx: StageContext[Distil], inputs: Prompts) -> str:
    """Demonstrations of the tasks' own answers; the teacher's are known in the run."""
    stage = ctx.stage
    ctx.folder.path.mkdir(parents=True, exist_ok=True)
    tasks = [with_some_answer(task) for task in inputs.tasks]
    write_rows(ctx.folder.path / OUTPUT_NAMES["data"], [demonstration_of(task, str(task.answer)) for task in tasks])
    return (
        f"{len(tasks):,} prompts are read; {stage.answers_per_prompt} answers to each will be asked of the teacher. "
        f"Not known before: how many are kept, and how long they are (at most {stage.sampling.max_new_tokens} tokens)"
    )


DISTIL: MakingKind[Distil, Prompts] = MakingKind(
    outputs=Distil.OUTPUTS, inputs=prompts_of, make=make_rows, content=named_content, stand_in=stand_in_rows
)
