"""AdaLoRA's two extras around an update: the penalty on its factors, and the ranks that it takes away.

    allocation.regularise()            # adds the penalty's gradient, before the update
    allocation.after_update(step)      # scores the singular values and masks those that matter least

Zhang et al. 2023, arXiv:2303.10512: the penalty is equation 4, averaged over factors as in `peft`; the scores are
equations 8 to 11; the budget is the cubic schedule of equation 12. `peft` computes scores and masks; it would add the
penalty to a loss of its own, which no run here has. The penalty is in the gradient only, not in the reported loss.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.config.adapters import AdaLoRA
from posttrain.errors import ConfigError
from posttrain.models.adapters.kinds import adapter_kind

SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The running scores that `peft` keeps for each factor: importance, its average, the average of its uncertainty."""
KEPT = "kept"
ALLOCATION_STATE = (*SCORES, KEPT)
"""Keys under which a checkpoint keeps them, beside Adam's moments of the same parameter."""


class RankAllocation:
    """What an AdaLoRA adapter needs of the loop.

    RankAllocation(model, AdaLoRA(rank=8, initial_rank=12), steps=200)

    Args:
        steps: of the whole training.

    Raises:
        ConfigError: the steps are too few for a schedule.
    """

    def __init__(self, model: PeftModel, settings: AdaLoRA, steps: int):
        self._model: Any = model
        self._tuner: Any = model.base_model
        self._adapter: str = model.active_adapter
        config = model.active_peft_config
        # `peft` reads its schedule from the config, which is saved with the adapter.
        config.tinit, config.tfinal = schedule(settings, steps)
        config.total_step = steps
        config.deltaT = settings.every_steps
        self._weight = float(settings.orthogonality)

    def regularise(self) -> None:
        """Add the gradient of weight * mean over factors of ||P^T P - I|| (and Q Q^T) to the factors' gradients."""
        factors = [(name, p) for name, p in self._model.named_parameters() if _is_factor(name) and p.requires_grad]
        if not self._weight or not factors:
            return
        with torch.enable_grad():
            penalty = torch.stack([_not_orthogonal(name, p) for name, p in factors]).mean() * self._weight
        # Not through `backward`: the penalty is no part of the loss that is reported and compared.
        gradients = torch.autograd.grad(penalty, [p for _, p in factors])
        for (_, parameter), gradient in zip(factors, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def after_update(self, step: int) -> None:
        """Call it after the update and before gradients are cleared; `step` counts from 0."""
        self._tuner.update_and_allocate(step + 1)

    # What a checkpoint keeps of it, by the name of the parameter that it belongs to.

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        state: dict[str, dict[str, Tensor]] = {}
        prefix = _prefix(self._model, self._tuner.model)
        for key in SCORES:
            for name, tensor in getattr(self._tuner.rankallocator, key).items():
                state.setdefault(prefix + name, {})[key] = tensor
        for name, kept in (self._model.active_peft_config.rank_pattern or {}).items():
            state.setdefault(prefix + name, {})[KEPT] = torch.tensor(kept, dtype=torch.uint8)
        return state

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        prefix = _prefix(self._model, self._tuner.model)
        device = self._model.device
        allocator = self._tuner.rankallocator
        for key in SCORES:
            scores = {name: parts[key].to(device) for name, parts in state.items() if key in parts}
            setattr(allocator, key, {name.removeprefix(prefix): tensor for name, tensor in scores.items()})
        pattern = {
            name.removeprefix(prefix): parts[KEPT].bool().tolist() for name, parts in state.items() if KEPT in parts
        }
        self._model.active_peft_config.rank_pattern = pattern or None


def schedule(settings: AdaLoRA, steps: int) -> tuple[int, int]:
    """Steps before ranks are taken away, and steps after: schedule(AdaLoRA(), 200) -> (20, 100).

    Raises:
        ConfigError: too few are left between.
    """
    before, after = int(settings.initial_ratio * steps), int(settings.final_ratio * steps)
    if before + 1 >= steps - after:
        raise ConfigError(
            "the training is too short for AdaLoRA to take ranks away",
            where="adapter",
            found=f"{steps} steps, {before} before and {after} after the ranks are taken away",
            expected="at least 2 steps between",
            remedy="train for more steps, lower adapter.initial_ratio or final_ratio, or write `kind: lora`",
        )
    return before, after


def rank_allocation(model: nn.Module, settings: Any, steps: int) -> RankAllocation | None:
    """What the loop needs for this model: None but for an AdaLoRA that begins. One that is gone on with has its ranks.

    Args:
        settings: the adapter's record.
    """
    if not isinstance(settings, AdaLoRA) or adapter_kind(model) != "adalora":
        return None
    assert isinstance(model, PeftModel)
    return RankAllocation(model, settings, steps)


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _not_orthogonal(name: str, factor: Tensor) -> Tensor:
    """||Q Q^T - I|| of the right factor [r, in], ||P^T P - I|| of the left one [out, r]."""
    product = factor @ factor.T if ".lora_A." in name else factor.T @ factor
    return torch.linalg.norm(product - torch.eye(len(product), dtype=product.dtype, device=product.device))


def _prefix(outer: nn.Module, inner: nn.Module) -> str:
    """The name of `inner` within `outer`, with a dot: `peft` counts names from the model within the adapter."""
    return next(f"{name}." for name, module in outer.named_modules() if module is inner)
