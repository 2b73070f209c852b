"""The stage `search`: a strategy answers prompts, and what it found becomes rows for the stages after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from posttrain.config.search import Search
from posttrain.config.strategies import PREFIX_TOKENS
from posttrain.config.strategies.base import SENTENCE, ScorerSettings, Spending, StepStrategy
from posttrain.data.encode import Encoder
from posttrain.data.questions import as_task
from posttrain.data.read import read
from posttrain.data.write import write_jsonl
from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.inference.labels import step_labels
from posttrain.inference.lines import write_trees
from posttrain.inference.named import named_content
from posttrain.inference.rows import (
    WITHOUT,
    Kept,
    Right,
    StepLabels,
    demonstration_of,
    pairs,
    steps,
    winners,
    write_rows,
)
from posttrain.inference.run import solve_all
from posttrain.inference.scorers import ABSTAINED, Scorers, label_of
from posttrain.inference.solution import Node, Solution
from posttrain.inference.solving import Asked, Solving
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.rewards.gym import tasks_of
from posttrain.rewards.scorer import run_async
from posttrain.rollout.native import NativeEngine
from posttrain.runs.records.logs import DroppedRow
from posttrain.runs.records.stage import DataCounts
from posttrain.sampling import SamplingDistribution
from posttrain.training.order import stream_seed
from posttrain.training.rl.tasks import is_generated, notes_of
from posttrain.training.stages.correction_pairs import stand_in_pairs
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext
from posttrain.types import Comparison, Demonstration, StepwiseFeedback, Task

TREES = "trees.jsonl"


@dataclass(frozen=True, slots=True)
class SearchInputs:
    """The prompts: SearchInputs(tasks, read=400, notes=("...",))."""

    tasks: list[Task]
    read: int
    notes: tuple[str, ...] = ()


def prompts_to_solve(ctx: StageContext[Search]) -> SearchInputs:
    """The stage's rows; all are looked at now, so that a bad one is found before a model loads.

    Raises:
        DataError: a row cannot be read.
        ConfigError: labels of steps are wanted of a strategy that has none.
    """
    stage, data = ctx.stage, ctx.stage.data
    assert data is not None  # the recipe's validation refuses a stage without data
    if stage.rows == "steps":
        _labels_of(stage)
    tasks = [task for path in data.path if is_generated(path) for task in tasks_of(path)][: data.limit]
    files = [path for path in data.path if not is_generated(path)]
    if not files or len(tasks) == data.limit:
        return SearchInputs(tasks, len(tasks))
    rows = read(
        files,
        format=data.format,
        columns=data.columns,
        roles=data.roles,
        bad_rows=data.bad_rows,
        rejected_path=ctx.folder.path / "rejected_rows.jsonl" if data.bad_rows == "skip" else None,
        limit=None if data.limit is None else data.limit - len(tasks),
        split=data.split,
        dialogues_in_text=data.dialogues_in_text,
        longest_row_mb=data.longest_row_mb,
        repairs=data.repairs.model_dump(),
    )
    read_tasks = [as_task(example) for example in rows]
    return SearchInputs([*tasks, *read_tasks], len(tasks) + rows.counts.read, tuple(notes_of(rows)))


def make_rows(ctx: StageContext[Search], inputs: SearchInputs) -> DataCounts:
    """Write data.jsonl and trees.jsonl into the stage's folder; returns what stage.json says under "data".

    Raises:
        EmptyDatasetError: no row came out.
        ConfigError: a scorer that cannot judge what the strategy gives it.
        PosttrainError: what a scorer raises.
    """
    stage, folder = ctx.stage, ctx.folder
    ctx.say(*inputs.notes)
    assert not isinstance(ctx.start, LoadedModel)  # a recipe's stage starts from a folder
    device = device_of(ctx.answers.device if ctx.answers else "auto")
    loaded = load(ctx.start, device=device, say=ctx.progress.say)
    encoder = Encoder(loaded.tokenizer, ctx.answers.encoding if ctx.answers else loaded.speech.settings())
    engine = NativeEngine(loaded.model, decode=encoder.tokens.decode, prefix_tokens=PREFIX_TOKENS)
    modules = None if stage.modules is None else Path(stage.modules)
    with Scorers(modules, device=device.type) as scorers:
        asked = Asked(engine, encoder, scorers, stream_seed(ctx.seed, "sampling"), modules)
        if stage.judge is not None:
            scorers.grader(stage.judge)  # before anything is drawn
        solutions = _solutions(ctx, asked, inputs.tasks)
        scores = _scores(asked, solutions, stage)
    kept = _kept(stage, solutions, scores, encoder)
    left_out = write_trees(folder.path / TREES, solutions, [None] * len(solutions))
    if left_out:
        ctx.say(f"{left_out:,} trees are not in {TREES}, which would have grown too large")
    if not kept.rows:
        raise _nothing_found(stage, kept)
    write_rows(folder.path / OUTPUT_NAMES["data"], kept.rows)
    dropped = (
        DroppedRow(str(solution.task.row), reason, WITHOUT[reason], solution.answer).to_json()
        for solution, reason in kept.without
    )
    write_jsonl(folder.path / DroppedRow.FILE, dropped)
    sampled = sum(solution.spent.sampled for solution in solutions)
    ctx.say(f"{kept} ({sampled:,} tokens sampled)")
    return DataCounts(
        read=inputs.read,
        kept=len(kept.rows),
        dropped=dict(kept.reasons),
        truncated={},
        findings={},
        tokens=sampled,
        trained_tokens=None,
        stop_share=None,
        rows=None,
        held_out_rows=None,
        answers=sum(len(solution.answers) for solution in solutions),
        prompts=len(solutions),
        pairs=len(kept.rows) if stage.rows == "pairs" else None,
    )


def _solutions(ctx: StageContext[Search], asked: Asked, tasks: Sequence[Task]) -> list[Solution]:
    stage = ctx.stage
    title = f"{ctx.folder.name}: {stage.strategy.label}"
    with ctx.progress.phase(title, total=len(tasks), unit="prompts") as phase:
        return solve_all(
            asked,
            tasks,
            stage.strategy,
            on_solution=lambda _, solution: phase.advance(1, tokens=solution.spent.sampled),
            judged_by=() if stage.scorer is None else (stage.scorer,),
        )


def _scores(asked: Asked, solutions: Sequence[Solution], stage: Search) -> list[list[float | None]]:
    """Of each solution's nodes, by number; None where nobody has judged one."""
    judge = stage.judge
    if judge is None:
        return [[None] * len(solution.nodes) for solution in solutions]
    if stage.scorer is not None:
        run_async(_score_again(asked, solutions, stage.scorer))
    label = label_of(judge)
    return [[node.scores.get(label) for node in solution.nodes] for solution in solutions]


async def _score_again(asked: Asked, solutions: Sequence[Solution], scorer: ScorerSettings) -> None:
    """The whole answers of every solution by another scorer than the strategy's; scores go into the nodes."""
    label = label_of(scorer)
    for solution in solutions:
        # The strategy's own scorer may have the same name: what it said is not this scorer's word.
        for node in solution.nodes:
            node.scores.pop(label, None)
        solving = Solving(asked, solution.task, SamplingDistribution(), Spending(), "search")
        solving.nodes = list(solution.nodes)
        await solving.score(solution.answers, scorer)


def _kept(
    stage: Search, solutions: Sequence[Solution], scores: Sequence[Sequence[float | None]], encoder: Encoder
) -> Kept[Demonstration] | Kept[Comparison] | Kept[StepwiseFeedback]:
    special = encoder.tokens.special_pattern(encoder.template.stop_texts)
    if stage.rows == "pairs":
        by_answer = [
            [own[node.number] for node in solution.answers] for solution, own in zip(solutions, scores, strict=True)
        ]
        return pairs(solutions, by_answer, special=special)
    if stage.rows == "steps":
        return steps(solutions, _is_right(stage), _labels_of(stage), special=special)
    chosen = [
        None if solution.chosen is None else own[solution.chosen]
        for solution, own in zip(solutions, scores, strict=True)
    ]
    return winners(solutions, scores=chosen, least_score=stage.least_score, special=special)


def _is_right(stage: Search) -> Right:
    judge, least = stage.judge, stage.least_score
    assert judge is not None and least is not None  # the settings' validation refuses labels without them
    label = label_of(judge)

    def right(node: Node) -> bool | None:
        score = node.scores.get(label)
        return None if score is None or score == ABSTAINED else score >= least

    return right


def _labels_of(stage: Search) -> StepLabels:
    """What labels the steps of this strategy's trees.

    Raises:
        ConfigError: it builds no answer step by step, or its steps end after so many tokens and no text parts them.
    """
    drawing = stage.strategy.parts[-1]
    mark = drawing.step if isinstance(drawing, StepStrategy) else None
    if isinstance(mark, str) and mark != SENTENCE:
        return partial(step_labels, mark=mark)
    found = "no steps" if mark is None else f"step: {mark}"
    raise ConfigError(
        f"the strategy `{stage.strategy.label}` has no steps that could be labelled",
        where=f"{stage.name}.rows",
        found=f"rows: steps, of a strategy with {found}",
        expected="a strategy that builds an answer step by step, with a text that parts its steps",
        remedy='take `mcts` or `prm_beam` with `step: "\\n\\n"`, or write `rows: winners` or `rows: pairs`',
    )


def _nothing_found(
    stage: Search, kept: Kept[Demonstration] | Kept[Comparison] | Kept[StepwiseFeedback]
) -> EmptyDatasetError:
    solution = kept.without[0][0]
    return EmptyDatasetError(
        f"no row came out: none of the {stage.rows} could be kept",
        where=solution.task.row.source,
        found=", ".join(f"{count:,} prompts: {WITHOUT[reason]}" for reason, count in kept.reasons.most_common()),
        expected="at least one prompt that gives a row",
        remedy="spend more on each prompt, lower `least_score`, or raise `sampling.max_new_tokens` of the strategy",
    )


def stand_in_rows(ctx: StageContext[Search], inputs: SearchInputs) -> str:
    """Rows of the same form from the tasks' own answers; the model's are known in the run."""
    stage = ctx.stage
    out = ctx.folder.path / OUTPUT_NAMES["data"]
    ctx.folder.path.mkdir(parents=True, exist_ok=True)
    # A task need not have an answer: the text that stands for it has the length of no answer.
    tasks = [task if task.answer else replace(task, answer="...") for task in inputs.tasks]
    if stage.rows == "pairs":
        stand_in_pairs(tasks, out)
    elif stage.rows == "steps":
        write_rows(
            out, [StepwiseFeedback(task.prompt, (str(task.answer),), (1.0,), task.row, task.tools) for task in tasks]
        )
    else:
        write_rows(
            out,
            [demonstration_of(task, str(task.answer)) for task in tasks],
        )
    return (
        f"{len(tasks):,} prompts are read; each is answered by `{stage.strategy.label}`. Not known before: how many "
        f"of them give {stage.rows}, and how long the answers are (at most "
        f"{stage.strategy.sampling.max_new_tokens} tokens)"
    )


SEARCH: MakingKind[Search, SearchInputs] = MakingKind(
    outputs=Search.OUTPUTS, inputs=prompts_to_solve, make=make_rows, content=named_content, stand_in=stand_in_rows
)
