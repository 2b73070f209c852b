"""Many answers to each prompt, scored by several scorers: what best-of-n and majority at every n are computed from.

    pools = draw_pools(asked, tasks, sampling, 32)
    score_pools(asked, pools, "judge", RewardModelScorer(model="runs/mine/reward/model"))
    pools.prompts[0].scores["judge"]        # 32 numbers

The draws are those that a strategy makes which asks for 32 answers with the same seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from posttrain.config.strategies.base import ScorerSettings, Spending
from posttrain.inference.run import side_by_side
from posttrain.inference.solution import Node, Spent
from posttrain.inference.solving import Asked, Solving
from posttrain.rewards.scorer import run_async
from posttrain.sampling import SamplingDistribution
from posttrain.types import Task


@dataclass(slots=True)
class Pool:
    """The answers to one prompt."""

    task: Task
    solving: Solving
    answers: list[Node]
    scores: dict[str, list[float]] = field(default_factory=dict)
    """By scorer, one a answer; -inf where it abstained."""
    scoring: dict[str, Spent] = field(default_factory=dict)
    """By scorer, the tokens that it took to score all of them."""

    @property
    def tokens(self) -> float:
        """Mean tokens of an answer, its stop token included."""
        return fmean(len(node.ids) for node in self.answers)


@dataclass(slots=True)
class Pools:
    """Of all prompts, in the order of the tasks."""

    prompts: list[Pool]
    samples: int
    seconds: float
    """In which all answers were drawn, prompts side by side."""
    scoring_seconds: dict[str, float] = field(default_factory=dict)
    """By scorer, in which it scored all answers."""

    @property
    def tokens(self) -> float:
        """Mean tokens of an answer, each prompt counted alike."""
        return fmean(pool.tokens for pool in self.prompts)


def draw_pools(
    asked: Asked,
    tasks: Sequence[Task],
    sampling: SamplingDistribution,
    samples: int,
    *,
    raw_logprobs: bool = False,
    on_pool: Callable[[Pool], None] = lambda pool: None,
) -> Pools:
    """`samples` answers to each task.

    Args:
        sampling: stop ids and seed are set here.
        raw_logprobs: what a scorer by log-prob needs of each draw.
        on_pool: called when a prompt's answers are drawn.

    Raises:
        ConfigError: a prompt that the model cannot hold.
    """

    async def draw(index: int, occurrence: int) -> Pool:
        solving = Solving(
            asked, tasks[index], sampling, Spending(), "pool", occurrence=occurrence, raw_logprobs=raw_logprobs
        )
        pool = Pool(tasks[index], solving, await solving.sample(samples))
        on_pool(pool)
        return pool

    began = time.monotonic()
    pools: list[Pool] = run_async(side_by_side(asked, tasks, draw))
    return Pools(pools, samples, time.monotonic() - began)


def score_pools(
    asked: Asked,
    pools: Pools,
    name: str,
    settings: ScorerSettings,
    *,
    on_pool: Callable[[Pool], None] = lambda pool: None,
) -> None:
    """Every answer scored, under `name`; a call of its own for each scorer, so that its seconds are its own.

    Raises:
        ModelError: a reward model that cannot be loaded.
        PosttrainError: what the scorer raises.
    """

    async def score(index: int, _: int) -> None:
        pool = pools.prompts[index]
        before = pool.solving.spent
        pool.scores[name] = await pool.solving.score(pool.answers, settings)
        after = pool.solving.spent
        pool.scoring[name] = Spent(sampled=after.sampled - before.sampled, scored=after.scored - before.scored)
        on_pool(pool)

    began = time.monotonic()
    run_async(side_by_side(asked, [pool.task for pool in pools.prompts], score))
    pools.scoring_seconds[name] = time.monotonic() - began
