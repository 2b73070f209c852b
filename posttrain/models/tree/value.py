"""Batch in, values out: what a state is worth, for PPO.

    value = ValueModel(with_head(causal_lm))
    value(batch) -> Tensor [N]      V of the state before each trained token

The state before a token is the text up to it, so its value is read where the policy predicts that token: at the
prompt's last token for the first one. The model inside is the backbone and scalar head of a reward model
(`posttrain.models.tree.heads.with_head`), and it runs on the same token trees.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.models.sharding.copies import twin
from posttrain.models.tree.heads import HEAD, with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel, read_values
from posttrain.models.tree.provable import Route
from posttrain.types import PLAIN, Batch, Wants


class ValueModel(TreeModel):
    """A value model; arguments are `TreeModel`'s."""

    compares: ClassVar[str] = "values"

    def forward(self, batch: Batch, wants: Wants = PLAIN, *, path: Route | None = None) -> Tensor:
        """Values [N], fp32 or the model's wider type; of `wants` only a probe is read."""
        if wants.probe is not None:
            return self._probed(batch, wants, path)
        chosen = self.path_of(batch, path)
        with self._running_on(chosen):
            states_ND = self._predictor_states(batch, chosen)
        return read_values(getattr(self.transformer, HEAD), states_ND)

    def _compared(self, batch: Batch, path: Route | None) -> tuple[Tensor, Tensor]:
        """The values, and the states along a fixed random direction: a head that starts at zero gives every state the
        same value and would hide every difference."""
        chosen = self.path_of(batch, path)
        with self._running_on(chosen):
            states_ND = self._predictor_states(batch, chosen)
        values_N = read_values(getattr(self.transformer, HEAD), states_ND)
        direction = torch.randn(states_ND.shape[1], generator=torch.Generator().manual_seed(0)).to(values_N)
        along_N = states_ND.to(values_N) @ direction / states_ND.shape[1] ** 0.5
        return torch.stack([values_N, along_N], dim=1).flatten(), batch.branch_N.repeat_interleave(2)


def value_model(policy: Policy, *, train_backbone: bool = True, seed: int = 0) -> ValueModel:
    """A value model that starts as the policy's backbone under a head at zero, so that every first value is 0.

    Weights that do not train in the policy (the base under an adapter) are shared with it, the others are copied: under
    LoRA the value model costs a second adapter, without one a second backbone.

    Args:
        train_backbone: False trains the head alone, on frozen features of the start.
    """
    policy.settle()
    # The frozen base is shared, and memory grows by the adapter alone.
    copied = twin(policy.model, lambda own: own.detach().clone() if own.requires_grad else own)
    shared = {id(p) for p in policy.model.parameters() if not p.requires_grad}
    plain = copied.get_base_model() if isinstance(copied, PeftModel) else copied
    headed = with_head(plain, ("value",), seed=seed)
    for name, parameter in headed.named_parameters():
        if not name.startswith(f"{HEAD}.") and id(parameter) not in shared:
            parameter.requires_grad_(train_backbone)
    return ValueModel(headed, policy.path, autocast=policy.autocast, sharding=policy.sharding)


def value_head(policy: Policy) -> nn.Linear:
    """A scalar head at zero for the policy's own backbone (`Policy.values`), apart from its parameters."""
    width = policy.transformer.config.get_text_config().hidden_size
    head = nn.Linear(width, 1, bias=False, device=policy.device)
    nn.init.zeros_(head.weight)
    return head
