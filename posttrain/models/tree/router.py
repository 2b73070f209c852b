"""The load-balancing loss of a mixture of experts: what keeps a router from sending every token to the same few.

    loss = coefficient * E * sum_e share_e * probability_e        Fedus et al. 2021, arXiv:2101.03961, Eq. 4 to 6

share_e is the part of all (token, layer) pairs that chose expert e (it sums to the number of experts per token) and
carries no gradient; probability_e is the router's mean probability of e over the same pairs, and carries it. Layers are
pooled before the product, as in `load_balancing_loss_func` of `transformers`, whose number this is on one micro-batch.

What is done otherwise than elsewhere:

1. The shares are those of the whole step, over all its micro-batches, so that the gradient does not depend on how the
   step is split (Qiu et al. 2025, arXiv:2501.11873: balance over the global batch). TRL and `transformers` take each
   micro-batch for itself and average; with one micro-batch a step the two are equal. Where a step has several, its
   shares are counted by a forward pass of the backbone alone, without gradients, before the first backward pass.
2. All tokens of a row count, those of its prompt too, padding does not, as there. A prompt that branches share is
   computed once and counted once for each branch, which is what it weighs in padded rows.
3. JetMoE and DBRX name their coefficient otherwise (`aux_loss_coef`, `ffn_config.moe_loss_weight`): it is read there,
   as their own code does. TRL 1.16 reads `router_aux_loss_coef` alone and adds nothing for them.
4. Families that balance by a bias on the router's scores (DeepSeek-V3, GLM-4-MoE and others) have no such loss in
   `transformers`, and it does not update the bias. They train without either, and the user is told so.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.outputs import Maximum, Mean, Metric, Routing
from posttrain.types import Batch

BALANCED_BY_BIAS = ("e_score_correction_bias", "expert_bias", "correction_bias")
"""What families call a bias that is added to the router's scores for the choice of experts alone."""


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How a family's routers choose, for its load-balancing loss: RoutingRule(top_k=8, coefficient=0.001)."""

    top_k: int
    coefficient: float
    """The model's own, from its config."""
    keys: int | None = None
    """Doge's experts are pairs of keys: so many of each."""


@dataclass(frozen=True, slots=True)
class RouterLoss:
    """RouterLoss(coefficient=0.001): what a step adds to the loss of its method."""

    coefficient: float

    def term(self, own: Routing | None, step: Routing | None = None) -> Tensor | float:
        """A micro-batch's part, with its gradient; the parts of a step add up to the step's.

        step: the routing of the whole step, where this is a part of it.
        """
        if own is None or not self.coefficient:
            return 0.0
        return self.coefficient * balance(own, step or own)


def balance(own: Routing, step: Routing) -> Tensor:
    """E * sum_e share_e of the step * probability_e that `own` adds to it; E is the number of experts, so that even
    routing of k experts a token gives k."""
    # Divided by the whole step's places: a part's terms add up to the step's, as those of every loss here do.
    share_E = step.chosen_LE.sum(dim=0) / step.places
    return share_E.shape[0] * (share_E * own.probability_E).sum() / step.places


def router_metrics(step: Routing | None) -> dict[str, Metric]:
    """How evenly the experts were used: the loss (k if each is used as often as any other), the busiest expert's share
    over an even one, and the share of experts that no token of the step reached."""
    if step is None:
        return {}
    experts = step.chosen_LE.shape[1]
    # Per layer, unlike the loss: pooled over layers, two layers that each use one expert look balanced.
    share_LE = step.chosen_LE / step.chosen_LE.sum(dim=1, keepdim=True)
    idle = float((step.chosen_LE == 0).sum())
    return {
        "router_aux_loss": Mean(float(balance(step, step)) * step.places, step.places),
        "router_load_max": Maximum(float(share_LE.max()) * experts),
        "router_idle_share": Mean(idle, step.chosen_LE.numel()),
    }


# ---------------------------------------------------------------- what a family has


def has_router(model: nn.Module) -> bool:
    """Whether the model has modules whose router logits `transformers` records."""
    plain = _plain(model)
    kinds = tuple(kind for module in plain.modules() for kind in _recorded_kinds(module))
    return bool(kinds) and any(isinstance(module, kinds) for module in plain.modules())


def routing_rule(model: nn.Module) -> RoutingRule | None:
    """None where the model has no experts, or its family no load-balancing loss in `transformers`."""
    plain = _plain(model)
    if not has_router(model) or not hasattr(sys.modules[type(plain).__module__], "load_balancing_loss_func"):
        return None
    config = plain.config.get_text_config()
    ffn = getattr(config, "ffn_config", None)
    top_k = getattr(config, "num_experts_per_tok", None) or getattr(ffn, "moe_top_k", None)
    # `_first` and not `or`: a coefficient of 0 says that the loss is off.
    coefficient = _first(
        getattr(config, "router_aux_loss_coef", None),
        getattr(config, "aux_loss_coef", None),
        getattr(ffn, "moe_loss_weight", None),
    )
    if top_k is None or coefficient is None:
        return None
    keys = math.isqrt(config.num_experts) if config.model_type == "doge" else None
    return RoutingRule(int(top_k), float(coefficient), keys)


def why_not(model: nn.Module) -> str:
    """Why a model with experts has no rule, in words."""
    plain = _plain(model)
    family = type(plain).__name__
    names = [name for name, _ in (*plain.named_parameters(), *plain.named_buffers())]
    if any(name.endswith(BALANCED_BY_BIAS) for name in names):
        return f"{family} balances its experts by a bias on the router's scores, which stays as it was loaded"
    return f"transformers defines no load-balancing loss for {family}"


def _plain(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _recorded_kinds(module: nn.Module) -> Iterable[type[nn.Module]]:
    recorders = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits", ())
    for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
        kind = getattr(recorder, "target_class", recorder)
        if isinstance(kind, type):
            yield kind


# ---------------------------------------------------------------- what a batch was routed like


class Routers:
    """The routers of one model: what a pass has to be asked for, and what is kept of it.

    with routers.recording(True) as routed:
        output = backbone(..., **routers.asked())
        routers.keep(output, lambda: weight_T)
    summed(routed)
    """

    def __init__(self, model: nn.Module):
        self.rule = routing_rule(model)
        """None where the model has no experts, or its family no loss for them."""
        self._kept: list[Routing] | None = None

    @contextmanager
    def recording(self, wanted: bool) -> Iterator[list[Routing]]:
        """Within this context every pass keeps its routing, if it is wanted and the model has routers."""
        kept: list[Routing] = []
        self._kept = kept if wanted and self.rule is not None else None
        try:
            yield kept
        finally:
            self._kept = None

    def asked(self) -> dict[str, bool]:
        """Arguments for the model's forward."""
        return {} if self._kept is None else {"output_router_logits": True}

    def keep(self, output: Any, weights: Callable[[], Tensor]) -> None:
        """weights: how often each token of the pass counts, in the order of the router logits."""
        if self._kept is None or self.rule is None:
            return
        found = routing(getattr(output, "router_logits", None) or (), weights(), self.rule)
        if found is not None:
            self._kept.append(found)


def routing(logits: Sequence[Tensor | None], weight_T: Tensor, rule: RoutingRule) -> Routing | None:
    """Of router logits [T, E], one tensor per layer, and how often each token counts.

    None where no layer of this model has experts.
    """
    layers = [layer for layer in logits if layer is not None]
    if not layers:
        return None
    device = layers[0].device
    weight_T = weight_T.to(device)
    read = _product_keys if rule.keys is not None else _softmax
    parts = [read(layer.to(device), weight_T, rule) for layer in layers]
    chosen_LE = torch.stack([chosen_E for chosen_E, _ in parts])
    probability_E = torch.stack([probability_E for _, probability_E in parts]).sum(dim=0)
    return Routing(chosen_LE, probability_E, float(weight_T.sum()) * len(layers))


def _softmax(logits: Tensor, weight_T: Tensor, rule: RoutingRule) -> tuple[Tensor, Tensor]:
    """(how many tokens chose each expert, the sum of their probabilities), [E] each."""
    wide = logits.reshape(-1, logits.shape[-1])
    wide = wide if wide.dtype == torch.float64 else wide.float()  # two scores in bf16 are often equal
    probability_TE = wide.softmax(dim=-1)
    return _counted(probability_TE.topk(rule.top_k, dim=-1).indices, probability_TE, weight_T)


def _product_keys(logits: Tensor, weight_T: Tensor, rule: RoutingRule) -> tuple[Tensor, Tensor]:
    """Doge: an expert is a pair of keys and its score the sum of theirs, logits [2, T, keys]; its shares sum to 1."""
    assert rule.keys is not None
    wide = logits if logits.dtype == torch.float64 else logits.float()
    (first_TK, second_TK), (row_TK, column_TK) = wide.topk(rule.keys, dim=-1)
    score_TE = (first_TK.unsqueeze(-1) + second_TK.unsqueeze(-2)).flatten(-2)
    expert_TE = (row_TK.unsqueeze(-1) * rule.keys + column_TK.unsqueeze(-2)).flatten(-2)
    chosen = expert_TE.gather(-1, score_TE.topk(rule.top_k, dim=-1).indices)
    probability_TE = torch.zeros_like(score_TE).scatter(-1, expert_TE, score_TE.softmax(dim=-1))
    chosen_E, probability_E = _counted(chosen, probability_TE, weight_T)
    # As Doge's own loss does, which normalises its shares to 1 and not to k.
    return chosen_E / rule.top_k, probability_E


def _counted(chosen_Tk: Tensor, probability_TE: Tensor, weight_T: Tensor) -> tuple[Tensor, Tensor]:
    weight_T1 = weight_T.to(probability_TE.dtype)[:, None]
    chosen_E = torch.zeros_like(probability_TE[0].detach())
    chosen_E.index_add_(0, chosen_Tk.flatten(), weight_T1.expand_as(chosen_Tk).flatten())
    return chosen_E, (probability_TE * weight_T1).sum(dim=0)


def rows_of_tokens(batch: Batch) -> Tensor:
    """In how many rows each token of the flat batch stands, [T]: once for its own branch, and once for each branch that
    goes on from it; a prompt's tokens once for each branch of the tree."""
    # As if unfolded into rows: otherwise a prompt shared by eight completions would weigh an eighth of what it does
    # padded.
    rows = [0] * len(batch.nodes)
    for index in batch.branch_nodes:
        rows[index] = 1
    for index in reversed(range(len(batch.nodes))):  # children come after their parents
        if batch.nodes[index].parent >= 0:
            rows[batch.nodes[index].parent] += rows[index]
    lengths = torch.tensor([node.end - node.start for node in batch.nodes])
    return torch.tensor(rows).repeat_interleave(lengths).to(batch.input_ids_T.device)


def tokens_that_count(attention_mask: Tensor, virtual: int = 0) -> Tensor:
    """The tokens of padded rows [B, L] as a flat mask [B * (virtual + L)], virtual tokens before each row."""
    ones = attention_mask.new_ones(attention_mask.shape[0], virtual)
    return torch.cat([ones, attention_mask], dim=1).flatten()


def summed(parts: Sequence[Routing]) -> Routing | None:
    """The sum of several passes' routing; None of none."""
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total
