"""One step: trees in, gradients and metrics out.

    denominator = step_count(trees)                # global, before any forward
    for micro in pack(trees, budget):
        out = loss(policy(micro), reference, micro, denominator)
        out.loss.backward()                        # micro-batches add up to the step's gradient

The same trees give the same gradient whatever the budget, and however many processes share them. An objective whose
trees have to know of each other (its `coupling`) is measured once before, without gradients, and each tree's loss reads
the statistics of the whole step.

Of several processes each calls these functions with all of the step's trees, computes its share, and gets the figures
of the whole step back. Gradients are of its share alone until `sum_gradients` has added them up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate as running_sums
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from posttrain.data.micro import Micro, alike, checked_alike, planned
from posttrain.data.mismatch import mismatched
from posttrain.data.trees import collate, count, to_device
from posttrain.errors import ConfigError, TrainingError
from posttrain.losses.responses import Responses, StepStatistics
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.router import summed
from posttrain.outputs import LossOutput, Routing, Scores, TokenLogprobs
from posttrain.parallel.gradients import sum_gradients
from posttrain.parallel.world import world
from posttrain.training.measured import Gathered, Measured, on_cpu
from posttrain.training.objectives import Algorithm
from posttrain.training.optimizer import non_finite
from posttrain.training.order import Order, stream
from posttrain.types import Batch, Count, TokenTree


class Reference(Protocol):
    """The policy's start: log-probs [N] of a batch's trained tokens, without gradient."""

    def logprobs(self, batch: Batch) -> Tensor: ...


Tick = Callable[[int], None]
Place = tuple[int, int]
"""Where random draws of a step come from: (0, step) while training, (1, first row) while measuring."""


def accumulate(
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    *,
    step: int,
    seed: int = 0,
    tick: Tick = lambda tokens: None,
) -> Measured:
    """Add the step's gradient to the policy's parameters; of several processes, each ends with the whole step's.

    Args:
        trees: of the whole step, on every rank.
        step: from 0; names the step in errors, and with the seed what is drawn for it.
        seed: the run's.
        tick: called with the tokens of each micro-batch that this process has finished.

    Raises:
        NonFiniteError: a micro-batch's loss is NaN or infinite; its rows are named and nothing has been updated.
        TrainingError: the loss is a constant.
    """

    def check(loss: Tensor, batch: Batch) -> None:
        # Before the backward pass: one NaN would spoil what the step's other micro-batches have added up so far.
        if not torch.isfinite(loss):
            raise non_finite(["loss"], step, [str(row) for row in batch.rows])
        if not loss.requires_grad:
            raise TrainingError(
                f"step {step + 1}: the loss does not depend on any weight that trains",
                where=algorithm.name,
                found="a loss without a gradient",
                remedy="look which columns the loss is made of (`choices`) and which parameters train (`adapter`)",
            )

    def backward(loss: Tensor, batch: Batch) -> None:
        with checked_alike(policy.is_sharded, "the loss"):
            check(loss, batch)
        loss.backward()

    statistics = _statistics(policy, reference, algorithm, trees, tokens_per_microbatch, seed, (0, step))
    routing = step_routing(policy, algorithm, trees, tokens_per_microbatch)
    measured = _run(policy, reference, algorithm, trees, tokens_per_microbatch, statistics, backward, tick, routing)
    sum_gradients(_summed_here(policy, algorithm), world())
    return measured


def _summed_here(policy: TreeModel, algorithm: Algorithm) -> list[nn.Parameter]:
    """The parameters whose gradients are still of this rank's share: those of a sharded model FSDP2 has summed in the
    backward pass, but for a head beside it."""
    head = algorithm.wants.value_head
    own = [] if policy.is_sharded else list(policy.model.parameters())
    return own if head is None else [*own, *head.parameters()]


def replay(
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    finish: Callable[[Tensor, Batch], None],
    *,
    step: int,
    seed: int,
) -> Measured:
    """This rank's share of the step once more, with `finish(loss, batch)` in the place of the backward pass of each
    micro-batch; what it gives is of that share alone.

    What the algorithm keeps from step to step is left as it was.
    """
    memory = algorithm.memory
    kept = None if memory is None else memory.state_dict()
    try:
        statistics = _statistics(policy, reference, algorithm, trees, tokens_per_microbatch, seed, (0, step))
        given = (policy, reference, algorithm, trees, tokens_per_microbatch)
        # By itself: `finish` may leave in the middle of a share, at a place that no other rank comes to.
        return _share(*given, statistics, finish, lambda tokens: None).merged()
    finally:
        if memory is not None and kept is not None:
            memory.load_state_dict(kept)


@torch.no_grad()
def measure(
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    *,
    first: int = 0,
    seed: int = 0,
    tick: Tick = lambda tokens: None,
) -> Measured:
    """The same figures without gradients: held-out rows, and both ends of a run.

    first: index of the first tree among all that are measured; with the seed it decides what is drawn for them.
    """
    statistics = _statistics(policy, reference, algorithm, trees, tokens_per_microbatch, seed, (1, first))
    return _run(policy, reference, algorithm, trees, tokens_per_microbatch, statistics, lambda loss, batch: None, tick)


def step_count(trees: Sequence[TokenTree]) -> Count:
    """What the step trains on, over all ranks, before any forward: every loss of it divides by this.

    trees: of the whole step, which every rank knows. A rank that divided by the count of its own share would weigh its
    rows by how few it happens to have.
    """
    return count(trees)


def router_term(algorithm: Algorithm, given: TokenLogprobs | Scores, step: Routing | None = None) -> Tensor | float:
    """What a micro-batch adds to the load-balancing loss of the step; 0 where the algorithm has none.

    step: the routing of the whole step; None where this micro-batch is the step.
    """
    return 0.0 if algorithm.router is None else algorithm.router.term(given.routing, step)


def step_routing(
    policy: TreeModel, algorithm: Algorithm, trees: Sequence[TokenTree], tokens_per_microbatch: int
) -> Routing | None:
    """Where all tokens of the step go, before its first backward pass; None where nobody asks, or where one micro-batch
    is the whole step.

    Balance is a product of two means over tokens, so parts of a step cannot know theirs from themselves.
    """
    if algorithm.router is None:
        return None
    micros = planned(trees, tokens_per_microbatch, is_sharded=policy.is_sharded)
    if world().is_alone and len(micros) == 1:
        return None
    parts: list[Routing] = []
    with alike(policy.is_sharded, "the routing of the step"):
        for micro in micros:
            # Without gradients and without the vocabulary: routing needs the backbone's pass alone.
            part = policy.routing(collate([trees[index] for index in micro.members]))
            parts += [part] if part is not None and not micro.idle else []
    # A rank that had no tree has no routing either.
    of_ranks = [part.to("cpu") for part in world().gather(on_cpu(summed(parts))) if part is not None]
    total = summed(of_ranks)
    return None if total is None else total.to(policy.device)


def start_loss(
    algorithm: Algorithm, logprobs: TokenLogprobs, reference_N: Tensor | None, batch: Batch, denominator: Count
) -> LossOutput:
    """The loss of a batch that is the whole step, before step 1: the log-ratios of mismatched pairs are still 0."""
    if algorithm.coupling is None or not algorithm.coupling.mismatched:
        return algorithm.loss(logprobs, reference_N, batch, denominator)
    statistics = algorithm.coupling.at_start(batch.num_trees, logprobs.logprobs_N)
    return algorithm.loss(logprobs, reference_N, batch, denominator, statistics=statistics)


def mismatched_trees(trees: Sequence[TokenTree], seed: int, place: Place) -> list[TokenTree]:
    """The step's prompts with each other's completions: a pure function of rows, seed and place.

    Raises:
        ConfigError: fewer than two rows.
    """
    return mismatched(trees, stream(seed, "mismatch", *place))


@torch.no_grad()
def _statistics(
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    seed: int,
    place: Place,
) -> StepStatistics | None:
    """The step's statistics, one for each tree, [P]; None where the loss reads none, or one micro-batch is the step."""
    coupling, memory = algorithm.coupling, algorithm.memory
    if coupling is None:
        return None
    measured = mismatched_trees(trees, seed, place) if coupling.mismatched else trees
    micros = planned(measured, tokens_per_microbatch, is_sharded=policy.is_sharded)
    # The loss then measures its own batch, with the forward pass that it makes anyway.
    if world().is_alone and len(micros) == 1 and not coupling.mismatched and memory is None:
        return None
    parts: list[dict[str, Tensor]] = []
    with alike(policy.is_sharded, "the statistics of the step"):
        for micro, batch, reference_N in _micro_batches(policy, reference, measured, micros):
            part = coupling.observe(Responses.of(policy(batch, algorithm.wants), reference_N, batch), {})
            parts += [] if micro.idle else [part]
    observed = _in_order(parts, [index for micro in micros if not micro.idle for index in micro.members], policy.device)
    if memory is None:
        return coupling.reduce(observed)
    # Held-out rows must leave the memory alone, or how often a run is measured would change what it learns.
    training = place[0] == 0
    return memory.statistics(observed, stream(seed, "filter", *place) if training else None)


def _in_order(parts: Sequence[Mapping[str, Tensor]], indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    """Values per tree of all ranks' parts, in the step's own order, by which each micro-batch picks its part."""
    own = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]} if parts else {}
    ranks = [(indices_of, values) for indices_of, values in world().gather((list(indices), own)) if indices_of]
    back = torch.tensor([index for indices_of, _ in ranks for index in indices_of]).argsort()
    return {name: torch.cat([values[name] for _, values in ranks])[back].to(device) for name in ranks[0][1]}


def _micro_batches(
    policy: TreeModel, reference: Reference | None, trees: Sequence[TokenTree], micros: Sequence[Micro]
) -> Iterator[tuple[Micro, Batch, Tensor | None]]:
    for micro in micros:
        batch = to_device(collate([trees[index] for index in micro.members]), policy.device)
        yield micro, batch, None if reference is None else reference.logprobs(batch)


def _run(
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    statistics: StepStatistics | None,
    finish: Callable[[Tensor, Batch], None],
    tick: Tick,
    routing: Routing | None = None,
) -> Measured:
    """The whole step, each rank its share; its figures on every rank."""
    given = (policy, reference, algorithm, trees, tokens_per_microbatch)
    with alike(policy.is_sharded, "the step"):
        own = _share(*given, statistics, finish, tick, routing)
    return own.measured()


def _share(
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    statistics: StepStatistics | None,
    finish: Callable[[Tensor, Batch], None],
    tick: Tick,
    routing: Routing | None = None,
) -> Gathered:
    """This rank's micro-batches."""
    # Once for the whole step: divided by its own count, a micro-batch of few tokens would weigh as much as a full one.
    denominator = step_count(trees)
    gathered = Gathered()
    for micro, batch, reference_N in _micro_batches(
        policy, reference, trees, planned(trees, tokens_per_microbatch, is_sharded=policy.is_sharded)
    ):
        logprobs = policy(batch, algorithm.wants)
        if statistics is None:
            out = algorithm.loss(logprobs, reference_N, batch, denominator)
        else:
            own = {name: values_P[micro.members] for name, values_P in statistics.items()}
            out = algorithm.loss(logprobs, reference_N, batch, denominator, statistics=own)
        loss = out.loss + router_term(algorithm, logprobs, routing)
        finish(loss * 0.0 if micro.idle else loss, batch)
        if not micro.idle:
            gathered.add(out, logprobs.routing, batch, trees[micro.members[0]].part)
            tick(int(batch.input_ids_T.shape[0]))
    return gathered


def slices(trees: int, size: int, algorithm: Algorithm) -> list[tuple[int, int]]:
    """(first, end) of the parts in which many trees are measured, as large as a step.

    Where a loss needs at least two rows, a last part of one row joins the one before it.
    """
    bounds = [(start, min(start + size, trees)) for start in range(0, trees, size)]
    # A single row cannot be paired with another row's completion.
    if _needs_two_rows(algorithm) and len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:
        bounds[-2:] = [(bounds[-2][0], trees)]
    return bounds


def require_two_rows(algorithm: Algorithm, order: Order, held_out: int) -> None:
    """Refuse a plan in which a step, or the held-out rows, are a single row, for a loss that needs at least two.

    Raises:
        ConfigError: before the first step, with a number of rows per step that would do.
    """
    if not _needs_two_rows(algorithm):
        return
    per_step = order.rows_per_step
    if order.smallest_step < 2:
        # Only numbers under which no step is a single row: what the error proposes has to work.
        fitting = next((n for n in range(max(2, per_step), order.rows + 1) if order.rows % n != 1), None)
        raise ConfigError(
            f"`{algorithm.name}` estimates a KL from mismatched completions, and a step of one row has none",
            where="rows_per_step",
            found=f"{order.rows:,} rows, {per_step} a step: the smallest step has {order.smallest_step}",
            expected="at least 2 rows in every step",
            remedy=f"write `rows_per_step: {fitting}`" if fitting else "give more rows",
        )
    if held_out == 1:
        raise ConfigError(
            f"`{algorithm.name}` estimates a KL from mismatched completions, and a single held-out row has none",
            where="held_out",
            found="1 held-out row",
            expected="no held-out row, or at least 2",
            remedy="raise `held_out`, or write `held_out: 0`",
        )


def _needs_two_rows(algorithm: Algorithm) -> bool:
    return algorithm.coupling is not None and algorithm.coupling.mismatched


class MismatchedTrees(Sequence[TokenTree]):
    """Every mismatched tree of a run, in the order of its steps, made when it is asked for.

    MismatchedTrees(steps, at, seed, kind): step i measures `mismatched_trees(at(i), seed, (kind, name(i)))`.
    """

    def __init__(self, seed: int, places: Sequence[Place], sizes: Sequence[int], at: Callable[[int], list[TokenTree]]):
        self._seed, self._places, self._at = seed, places, at
        self._ends = list(running_sums(sizes))
        self._made: tuple[int, list[TokenTree]] = (-1, [])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        if self._made[0] != part:  # trees are asked for in order, so the last step's are enough to keep
            self._made = (part, mismatched_trees(self._at(part), self._seed, self._places[part]))
        return self._made[1][index - (self._ends[part - 1] if part else 0)]


def mismatched_of_run(
    algorithm: Algorithm, order: Order, rows: Sequence[TokenTree], held_out: Sequence[TokenTree], seed: int
) -> list[MismatchedTrees]:
    """The mismatched trees of all steps and of the held-out rows, for a reference that is computed beforehand.

    Empty for an algorithm that measures no others than its own trees.
    """
    if not _needs_two_rows(algorithm):
        return []
    steps = range(order.steps)
    # The very draws that the steps will make: a cached reference knows these trees and no others.
    bounds = slices(len(held_out), order.rows_per_step, algorithm)
    of_steps = MismatchedTrees(
        seed,
        [(0, step) for step in steps],
        [len(order.at(step)) for step in steps],
        lambda step: [rows[index] for index in order.at(step)],
    )
    of_held_out = MismatchedTrees(
        seed,
        [(1, first) for first, _ in bounds],
        [end - first for first, end in bounds],
        lambda part: [held_out[index] for index in range(*bounds[part])],
    )
    return [of_steps, of_held_out]


@torch.no_grad()
def branch_values(
    policy: TreeModel, reference: Reference | None, algorithm: Algorithm, tree: TokenTree
) -> dict[str, list[float]]:
    """What the algorithm says of each of a tree's responses: {"logprob": [-12.0, -15.0]} in nats for a policy."""
    batch = to_device(collate([tree]), policy.device)
    reference_N = None if reference is None else reference.logprobs(batch)
    out = start_loss(algorithm, policy(batch, algorithm.wants), reference_N, batch, batch.count)
    return {name: values_B.tolist() for name, values_B in out.per_branch.items()}
