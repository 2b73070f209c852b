"""AdamW over fp32 master weights, which refuses a gradient that is not finite before anything moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.config.adapters import AdapterSettings
from posttrain.config.settings import OptimizerSettings, Schedule
from posttrain.errors import ConfigError, NonFiniteError
from posttrain.models.sharding.shards import anywhere, local, mesh_of, moved, whole
from posttrain.training.decay import decays
from posttrain.training.rank_allocation import ALLOCATION_STATE, rank_allocation
from posttrain.training.schedule import factor


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did: Update(grad_norm=0.83, learning_rate=4.5e-6); the norm is the one before clipping."""

    grad_norm: float
    learning_rate: float


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with the schedule and the clipping of one stage.

    Args:
        model: of a sharded one, which has to be settled (`TreeModel.settle`), each rank updates its rows, with moments
            of these alone.
        adapter: the record of the adapter that trains; AdaLoRA takes ranks away around each update.
        offload: keep the moments in the machine's memory, and take those of one tensor at a time to its device. The
            numbers are the same.

    Raises:
        ConfigError: nothing trains, or a weight that trains is not kept in fp32 (a bf16 weight of 1.0 does not feel an
            update below 0.004, so most of Adam's steps would vanish).
    """

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizerSettings,
        *,
        learning_rate: float,
        schedule: Schedule,
        steps: int,
        adapter: AdapterSettings | None = None,
        offload: bool = False,
    ):
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        _check_trainable(self.named)
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.steps = steps
        self.allocation = rank_allocation(model, adapter, steps)
        self.clip_norm = settings.clip_norm
        self._offload = offload
        maps = decays(model)
        groups = [
            {"params": [p for name, p in self.named if name in maps], "weight_decay": settings.weight_decay},
            {"params": [p for name, p in self.named if name not in maps], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            # One kernel for all parameters. It rounds otherwise than a loop over them: a run keeps to one of the two.
            fused=True,
        )

    def step(self, step: int, rows: Sequence[str] = ()) -> Update:
        """Clip, update, and clear the gradients; `step` counts from 0, `rows` name the step's data in errors.

        Raises:
            NonFiniteError: the gradient is NaN or infinite; no weight and no moment has moved.
        """
        if self.allocation is not None:
            self.allocation.regularise()
        gradients = [p.grad for _, p in self.named if p.grad is not None]
        # One number says whether every gradient is finite, so each tensor is looked through only where it is not. Of
        # shards it is the whole model's, so that all ranks clip alike, and refuse together.
        norm = whole(nn.utils.get_total_norm(gradients))
        if not torch.isfinite(norm):
            # Finite gradients whose squares add up beyond fp32 have no bad tensor among them.
            raise non_finite(self._bad_tensors() or ["the gradient's norm"], step, rows)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_((p for _, p in self.named), self.clip_norm, norm)
        rate = self.learning_rate * factor(
            step,
            self.steps,
            kind=self.schedule.kind,
            warmup_ratio=self.schedule.warmup_ratio,
            final_ratio=self.schedule.final_ratio,
        )
        for group in self.adamw.param_groups:
            group["lr"] = rate
        if self._offload:
            self._step_by_tensor()
        else:
            self.adamw.step()
        # Its scores are products of weight and gradient: it needs the gradients of this update.
        if self.allocation is not None:
            self.allocation.after_update(step)
        self.adamw.zero_grad(set_to_none=True)
        return Update(float(norm), rate)

    def _step_by_tensor(self) -> None:
        """The same update, one tensor after the other, whose moments alone are beside it while it is made."""
        whole_groups = [group["params"] for group in self.adamw.param_groups]
        try:
            for group, parameters in zip(self.adamw.param_groups, whole_groups, strict=True):
                for other in self.adamw.param_groups:
                    other["params"] = []
                for parameter in parameters:
                    self._move_moments(parameter, parameter.device)
                    group["params"] = [parameter]
                    self.adamw.step()
                    self._move_moments(parameter, torch.device("cpu"))
        finally:
            for group, parameters in zip(self.adamw.param_groups, whole_groups, strict=True):
                group["params"] = parameters

    def _move_moments(self, parameter: Tensor, device: torch.device) -> None:
        state = self.adamw.state.get(parameter, {})
        for key, value in state.items():
            if key != "step":  # a number, which the fused kernel wants where it was made
                state[key] = moved(value, device)

    def _bad_tensors(self) -> list[str]:
        own = [p.grad is not None and not bool(torch.isfinite(local(p.grad)).all()) for _, p in self.named]
        bad = anywhere(own, mesh_of(p for _, p in self.named))
        return [name for (name, _), is_bad in zip(self.named, bad, strict=True) if is_bad]

    # The state is saved by parameter name, so that a changed order of parameters cannot hand moments to the wrong one.

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        state = {name: dict(self.adamw.state[p]) for name, p in self.named if p in self.adamw.state}
        for name, scores in (self.allocation.state_dict() if self.allocation else {}).items():
            state.setdefault(name, {}).update(scores)
        return state

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        for name, parameter in self.named:
            if name in state:
                moments = {key: value for key, value in state[name].items() if key not in ALLOCATION_STATE}
                device = torch.device("cpu") if self._offload else parameter.device
                self.adamw.state[parameter] = {
                    key: value.to(parameter.device) if key == "step" else moved(value, device)
                    for key, value in moments.items()
                }
        if self.allocation is not None:
            self.allocation.load_state_dict(state)


def non_finite(tensors: Sequence[str], step: int, rows: Sequence[str]) -> NonFiniteError:
    """The error of a step that must not be taken."""
    shown = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
    return NonFiniteError(
        f"step {step + 1}: {shown} is not finite; the step was not taken",
        remedy="look at these rows, lower learning_rate, lengthen schedule.warmup_ratio, "
        "or set compute.precision: fp32",
        tensors=tensors,
        rows=rows,
    )


def _check_trainable(named: list[tuple[str, nn.Parameter]]) -> None:
    if not named:
        raise ConfigError(
            "no parameter trains",
            remedy="give the stage an adapter, or load a model whose weights are not frozen",
        )
    narrow = [name for name, p in named if p.dtype in (torch.float16, torch.bfloat16)]
    if narrow:
        raise ConfigError(
            f"{len(narrow)} weights that train are kept in 16 bits, {narrow[0]} among them",
            expected="fp32 master weights; compute.precision: bf16 already makes the arithmetic bf16",
            remedy="load the model with dtype=torch.float32",
        )
