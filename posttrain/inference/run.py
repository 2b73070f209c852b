"""Many prompts, each solved by a strategy, side by side on one engine.

with Scorers() as scorers:
    asked = Asked(engine, encoder, scorers, seed=0)
    solutions = solve_all(asked, tasks, BestOfN(n=16, scorer="runs/mine/reward/model"))

solve("embedded", ["What is 17 + 25?"], BestOfN(n=16, scorer="logprob"))[0].answer
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from posttrain.arguments import checked_seed
from posttrain.config.strategies import PREFIX_TOKENS, StrategySettings, strategy_of
from posttrain.config.strategies.base import LogProbScorer, ScorerSettings
from posttrain.data.encode import Encoder
from posttrain.data.given import as_examples, as_messages
from posttrain.data.questions import as_task
from posttrain.data.sources.splits import SUFFIXES
from posttrain.errors import EmptyDatasetError
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Asked, Solving, SpendingEnded
from posttrain.inference.table import STRATEGIES
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.folders.source import resolve
from posttrain.models.reward.folders import require_policy
from posttrain.models.reward.scoring import RewardModel
from posttrain.rewards.scorer import run_async
from posttrain.rollout.native import NativeEngine
from posttrain.runs.showing import Shown, showing
from posttrain.sampling import SamplingDistribution
from posttrain.types import Message, RowRef, Task

T = TypeVar("T")

AT_ONCE = 32
"""Prompts that are solved at the same time: enough to fill the engine's batch with what each asks one after another."""


def solve_all(
    asked: Asked,
    tasks: Sequence[Task],
    strategy: StrategySettings,
    *,
    on_solution: Callable[[int, Solution], None] = lambda index, solution: None,
    at_once: int = AT_ONCE,
    judged_by: Sequence[ScorerSettings] = (),
) -> list[Solution]:
    """A solution for each task, in their order.

    Args:
        on_solution: called as each is found, with its index.
        judged_by: scorers that the solutions are given to afterwards: what these need of a draw is kept, too.

    Raises:
        ConfigError: a scorer that cannot judge what the strategy gives it; a prompt that the model cannot hold.
        PosttrainError: what a scorer raises.
    """
    asked.scorers.check(strategy)

    async def solve(index: int, occurrence: int) -> Solution:
        solution = await solve_one(asked, tasks[index], strategy, occurrence, judged_by=judged_by)
        on_solution(index, solution)
        return solution

    # Also where a loop runs already, as in a notebook.
    solutions: list[Solution] = run_async(side_by_side(asked, tasks, solve, at_once))
    return solutions


async def side_by_side(
    asked: Asked, tasks: Sequence[Task], work: Callable[[int, int], Awaitable[T]], at_once: int = AT_ONCE
) -> list[T]:
    """What `work(index, occurrence)` gives for each task, in their order, so many of them at the same time.

    `occurrence` counts the equal prompts before a task, which get draws of their own.
    """
    places = asyncio.Semaphore(at_once)
    seen: Counter[tuple[int, ...]] = Counter()
    occurrences = []
    for task in tasks:
        ids = tuple(asked.encoder.prompt(task.prompt, task.tools))
        occurrences.append(seen[ids])
        seen[ids] += 1

    async def one(index: int) -> T:
        async with places:
            return await work(index, occurrences[index])

    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one(index)) for index in range(len(tasks))]
    except* Exception as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


async def solve_one(
    asked: Asked,
    task: Task,
    strategy: StrategySettings,
    occurrence: int = 0,
    *,
    judged_by: Sequence[ScorerSettings] = (),
) -> Solution:
    """One task; what its spending ends, ends with the best that there is."""
    solving = Solving(
        asked,
        task,
        SamplingDistribution(**strategy.sampling.model_dump()),
        strategy.spend,
        strategy.label,
        occurrence=occurrence,
        raw_logprobs=any(isinstance(scorer, LogProbScorer) for scorer in (*strategy.scorers, *judged_by)),
    )
    try:
        return await STRATEGIES[type(strategy)](solving, strategy)
    except SpendingEnded as ended:
        return solving.solution(_best_so_far(solving), ended.reason)


def _best_so_far(solving: Solving) -> Any:
    """What the strategy thought best, else the first whole answer, else the longest part of one."""
    if solving.leading is not None:
        return solving.leading
    parts = [node for node in solving.nodes if node.kind in ("answer", "step")]
    whole = [node for node in parts if node.ended]
    return whole[0] if whole else max(parts, key=lambda node: len(node.path_ids), default=None)


# ---------------------------------------------------------------- from Python


def solve(
    model: str | Path | LoadedModel,
    prompts: Any,
    strategy: StrategySettings | str | dict[str, Any],
    *,
    seed: int = 0,
    device: str = "auto",
    reward_models: dict[str, RewardModel] | None = None,
    progress: Shown = None,
) -> list[Solution]:
    """What a strategy finds for each prompt: solve("embedded", "2 + 2?", BestOfN(n=8, scorer="logprob"))[0].answer

    Args:
        model: what `load` gave, or a name that it takes.
        prompts: a text, a list of texts, conversations or tasks, or whatever `read` takes (a path, rows, a table); a
            row's answer is seen by verifiers alone.
        strategy: `pt.BestOfN(...)`, or what a recipe writes: {"kind": "best_of_n", "n": 8, "scorer": "logprob"}.
        seed: the same seed gives the same solutions.
        device: of the model and of reward models.
        reward_models: loaded ones, by the name that a scorer's `model` has.

    Raises:
        ConfigError: an argument is none of these, or a scorer cannot judge what the strategy gives it.
        ModelError: a model that cannot be loaded, or a reward model where one that answers is needed.
        EmptyDatasetError: there is no prompt.
    """
    settings = strategy_of(strategy)
    checked_seed(seed)
    tasks = tasks_of(prompts)
    with showing(progress) as shown:
        if not isinstance(model, LoadedModel):
            require_policy(resolve(model, say=shown.say))
            model = load(model, device=device_of(device), say=shown.say)
        encoder = Encoder(model.tokenizer, model.speech.settings())
        engine = NativeEngine(model.model, decode=encoder.tokens.decode, prefix_tokens=PREFIX_TOKENS)
        with Scorers(device=device_of(device).type, models=reward_models) as scorers:
            asked = Asked(engine, encoder, scorers, seed)
            with shown.phase(settings.label, total=len(tasks), unit="prompts") as phase:
                return solve_all(
                    asked,
                    tasks,
                    settings,
                    on_solution=lambda _, solution: phase.advance(1, tokens=solution.spent.sampled),
                )


def tasks_of(prompts: Any) -> list[Task]:
    """What a program passes as prompts, as tasks.

    tasks_of("2 + 2?"); tasks_of(["2 + 2?", "3 + 3?"]); tasks_of("sums.jsonl"); tasks_of([{"prompt": "2 + 2?"}])
    tasks_of([{"role": "user", "content": "2 + 2?"}, ...])        # one conversation; a list of such lists is several

    A text that ends as files do (.jsonl, .parquet, ...) is a path; any other text is a prompt.

    Raises:
        EmptyDatasetError: there is none.
        DataError: rows that cannot be read.
    """
    if isinstance(prompts, str) and not prompts.endswith(SUFFIXES):
        prompts = [prompts]
    if isinstance(prompts, list | tuple) and prompts and all(isinstance(prompt, str) for prompt in prompts):
        blank = next((place for place, prompt in enumerate(prompts, 1) if not prompt.strip()), None)
        if blank is not None:
            raise EmptyDatasetError(
                "a prompt holds no text", where=f"prompt {blank}", remedy="write one, or leave it out"
            )
        return [Task((Message("user", text),), None, RowRef("prompts", at)) for at, text in enumerate(prompts, 1)]
    if _is_conversation(prompts):
        prompts = [prompts]
    if isinstance(prompts, list | tuple) and prompts and all(map(_is_conversation, prompts)):
        return [Task(as_messages(turns), None, RowRef("prompts", at)) for at, turns in enumerate(prompts, 1)]
    tasks = [as_task(example) for example in as_examples(prompts)]
    if not tasks:
        raise EmptyDatasetError("there is no prompt to solve", remedy="give at least one")
    return tasks


def _is_conversation(given: Any) -> bool:
    """Whether something is a list of turns, as `Message`s or as objects of either dialect; a row has other keys."""
    return isinstance(given, list | tuple) and bool(given) and all(map(_is_turn, given))


def _is_turn(item: Any) -> bool:
    return isinstance(item, Message) or (isinstance(item, Mapping) and bool({"role", "from"} & item.keys()))
