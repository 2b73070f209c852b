"""What our two scripts share: the pieces of the training loop, with a clock around each step."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from benchmarks.record import Record, peak_rss, step_arguments
from benchmarks.settings import ADAM_BETAS, LEARNING_RATE
from posttrain.config.settings import OptimizerSettings, Schedule
from posttrain.models.reference import LiveReference
from posttrain.models.tree.model import TreeModel
from posttrain.training.checks.memory import activation_bytes_per_token, fitting_microbatch
from posttrain.training.objectives import Algorithm
from posttrain.training.optimizer import Optimizer
from posttrain.training.step import accumulate
from posttrain.types import TokenTree


def arguments(batch: int, steps: int) -> argparse.Namespace:
    parser = step_arguments(batch, steps)
    parser.add_argument("--tokens-per-microbatch", type=int, help="default: what a run would choose here")
    return parser.parse_args()


def train(
    policy: TreeModel,
    reference: LiveReference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    *,
    batch: int,
    steps: int,
    tokens_per_microbatch: int | None,
) -> Record:
    """Take `steps` steps of `batch` rows in the given order.

    Raises:
        ValueError: there are fewer rows than that.
    """
    if len(trees) < batch * steps:
        raise ValueError(f"{steps} steps of {batch} rows need {batch * steps} rows, {len(trees)} are there")
    optimizer = Optimizer(
        policy.model,
        OptimizerSettings(betas=ADAM_BETAS),
        learning_rate=LEARNING_RATE,
        schedule=Schedule(kind="linear", warmup_ratio=0.0),
        steps=steps,
    )
    budget = tokens_per_microbatch or microbatch(policy, trees[: batch * steps], live_reference=reference is not None)
    loaded, seconds, losses, tokens = peak_rss(), [], [], []
    for step in range(steps):
        started = time.perf_counter()
        measured = accumulate(policy, reference, algorithm, trees[step * batch : (step + 1) * batch], budget, step=step)
        optimizer.step(step)
        seconds.append(time.perf_counter() - started)
        losses.append(measured.metrics["loss"].value)
        tokens.append(measured.tokens)
    return Record("posttrain", tuple(seconds), tuple(losses), loaded, peak_rss(), tuple(tokens))


def microbatch(policy: TreeModel, trees: Sequence[TokenTree], *, live_reference: bool) -> int:
    """The micro-batch that a run of `posttrain` with `tokens_per_microbatch: auto` takes."""
    by_size = sorted(trees, key=lambda tree: tree.num_tokens)
    return fitting_microbatch(
        policy,
        activation_bytes_per_token(policy, by_size[len(by_size) // 2]),
        largest_tree=by_size[-1].num_tokens,
        live_reference=live_reference,
    )
