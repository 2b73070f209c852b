"""PPO's value model beside the policy: its own optimizer, its own loss, the same trees.

critic = Critic(value_model(policy), ...)
critic.model(batch)           # V of the state before each token, for GAE
critic.update(trees, 12)      # after the policy's update on the same trees; metrics
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from posttrain.config.settings import Optimizer as OptimizerSettings
from posttrain.config.settings import Schedule
from posttrain.data.trees import collate, count, pack, to_device
from posttrain.diagnostics.metrics import merge
from posttrain.losses.value import value_loss
from posttrain.models.value import ValueModel
from posttrain.training.optimizer import Optimizer, non_finite
from posttrain.types import Mean, Metric, TokenTree

RATE_FACTOR = 5.0
"""The value model's learning rate over the policy's: it starts from nothing and has a target to run after."""


class Critic:
    """A value model and what trains it; see the module's docstring.

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
        total = count(trees)
        parts: list[dict[str, Metric]] = []
        for micro in pack(trees, self._tokens):
            batch = to_device(collate(micro), self.model.device)
            out = value_loss(self.model(batch), batch, total, clip=self.clip)
            if not torch.isfinite(out.loss):
                raise non_finite(["value loss"], index, [str(row) for row in batch.rows])
            out.loss.backward()
            parts.append(out.metrics)
        update = self._optimizer.step(index, [str(tree.row) for tree in trees])
        return {**merge(parts), "value_grad_norm": Mean(update.grad_norm, 1)}
