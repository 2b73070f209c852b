"""PPO's value model beside the policy: its own optimizer, its own loss, the same trees.

critic = Critic(value_model(policy), ...)
critic.model(batch)           # V of the state before each token, for GAE
critic.update(trees, 12)      # after the policy's update on the same trees; metrics
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from posttrain.config.settings import OptimizerSettings, Schedule
from posttrain.data.trees import collate, to_device
from posttrain.diagnostics.metrics import merge, numbers
from posttrain.losses.value import value_loss
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.value import ValueModel
from posttrain.outputs import Mean, Metric
from posttrain.parallel.gradients import sum_gradients
from posttrain.parallel.world import world
from posttrain.training.micro import alike, checked_alike, planned
from posttrain.training.optimizer import Optimizer, non_finite
from posttrain.training.step import step_count
from posttrain.types import Batch, TokenTree

RATE_FACTOR = 5.0
"""The value model's learning rate over the policy's: it starts from nothing and has a target to run after."""


class Valuer(Protocol):
    """What PPO asks of a value model, wherever its backbone is."""

    @property
    def model(self) -> Callable[[Batch], Tensor]:
        """V of the state before each trained token, [N]."""
        ...

    @property
    def part(self) -> tuple[nn.Module, Optimizer]:
        """What a checkpoint keeps."""
        ...

    def update(self, trees: Sequence[TokenTree], index: int) -> Mapping[str, Metric]:
        """Called after the policy's update on the same trees; `index` counts updates from 0."""
        ...


class SharedCritic:
    """A head on the policy's own backbone. The policy's loss has the value loss in it (`value_weight`), so its backward
    pass has left the head's gradient, and only the head's step is taken here.

    Args:
        updates: of the whole run, for the schedule.
    """

    def __init__(
        self,
        policy: Policy,
        head: nn.Module,
        settings: OptimizerSettings,
        *,
        learning_rate: float,
        schedule: Schedule,
        updates: int,
    ):
        self._policy, self._head = policy, head
        self._optimizer = Optimizer(head, settings, learning_rate=learning_rate, schedule=schedule, steps=updates)

    def model(self, batch: Batch) -> Tensor:
        return self._policy.values(batch, self._head)

    @property
    def part(self) -> tuple[nn.Module, Optimizer]:
        return self._head, self._optimizer

    def update(self, trees: Sequence[TokenTree], index: int) -> Mapping[str, Metric]:
        # Its gradient came with the policy's backward pass; a loss of its own here would train the backbone twice.
        update = self._optimizer.step(index, [str(tree.row) for tree in trees])
        return {"value_grad_norm": Mean(update.grad_norm, 1)}


class Critic:
    """A value model with a backbone of its own, and what trains it; see the module's docstring.

    Args:
        updates: of the whole run, for the schedule.
        clip: how far a value may move from what it was when the rollout was made; 0 is no clip.
    """

    def __init__(
        self,
        model: ValueModel,
        settings: OptimizerSettings,
        *,
        learning_rate: float,
        schedule: Schedule,
        updates: int,
        clip: float,
        tokens_per_microbatch: int,
    ):
        self.model = model
        self.clip = clip
        self._tokens = tokens_per_microbatch
        model.settle()
        self._optimizer = Optimizer(
            model.model, settings, learning_rate=learning_rate, schedule=schedule, steps=updates
        )

    @property
    def part(self) -> tuple[nn.Module, Optimizer]:
        """What a checkpoint keeps."""
        return self.model.model, self._optimizer

    def update(self, trees: Sequence[TokenTree], index: int) -> Mapping[str, Metric]:
        """One update on the trees' `values` and `returns`; `index` counts updates from 0.

        Raises:
            NonFiniteError: the value loss or its gradient is NaN or infinite; nothing of the value model has moved.
        """
        # Over the whole update, or micro-batches of different sizes would weigh their tokens differently.
        total = step_count(trees)
        parts: list[dict[str, Metric]] = []
        with alike(self.model.is_sharded, "the value model's update"):
            for micro in planned(trees, self._tokens, is_sharded=self.model.is_sharded):
                batch = to_device(collate([trees[place] for place in micro.members]), self.model.device)
                out = value_loss(self.model(batch), batch, total, clip=self.clip)
                # Before its backward pass: a NaN in the gradients would otherwise look like one of the optimizer.
                with checked_alike(self.model.is_sharded, "the value loss"):
                    if not torch.isfinite(out.loss):
                        raise non_finite(["value loss"], index, [str(row) for row in batch.rows])
                (out.loss * 0.0 if micro.idle else out.loss).backward()
                parts += [] if micro.idle else [out.metrics]
        if not self.model.is_sharded:
            sum_gradients(self.model.model.parameters(), world())
        update = self._optimizer.step(index, [str(tree.row) for tree in trees])
        metrics = merge(part for own in world().gather([numbers(merge(parts))]) for part in own)
        return {**metrics, "value_grad_norm": Mean(update.grad_norm, 1)}
