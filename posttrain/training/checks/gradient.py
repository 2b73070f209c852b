"""Which tensors train, and which of them the first backward pass reaches: an adapter without a gradient is paid for,
saved and merged, and no curve shows that it stayed where it was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from posttrain.data.trees import collate, count, to_device
from posttrain.models.adapters.kinds import adapter_layers
from posttrain.models.sharding.gradients import gradients_of, nonzero
from posttrain.models.tree.every_token import frozen_weights
from posttrain.models.tree.model import TreeModel
from posttrain.training.checks.preflight import Check, probes
from posttrain.training.objectives import Algorithm
from posttrain.training.slopes import slopes_of
from posttrain.training.step import Reference, router_term
from posttrain.types import TokenTree

MOST_DEAD = 8
"""Layers without a gradient that are listed, and that the remedy's expression leaves out."""


def check_gradient(
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    *,
    dead_layers: Literal["stop", "warn"] = "stop",
) -> Check:
    """Which tensors train, and which of them get no gradient from the first backward.

    Of the part of the loss that teaches (`LossOutput.teaching`): a KL whose two sides are equal but for rounding, an
    entropy or an auxiliary loss has a gradient too, and would hide that the method itself has none.

    dead_layers: what a layer of the adapter is that gets none; see `preflight.dead_layers` of a stage.
    """
    batch = to_device(collate(probes(trees)), policy.device)
    reference_N = reference.logprobs(batch) if reference is not None else None
    policy.settle()
    named = [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]
    logprobs = policy(batch, algorithm.wants)
    weights, size = [p for _, p in named], sum(p.numel() for _, p in named)
    # d loss / d log-prob first, on copies: there a loss that is constant shows as exactly 0, whatever the model rounds.
    slopes = slopes_of(algorithm, logprobs, reference_N, batch, count(probes(trees)))
    if not slopes:
        return _no_slope(algorithm, size, policy)
    balanced = _reached(router_term(algorithm, logprobs), weights)
    figures = [getattr(logprobs, name) for name in slopes]
    gradients = gradients_of(figures, weights, list(slopes.values()))
    alive = nonzero(gradients)
    # Parts behind a factor that starts at zero (lora_A, a backbone under a fresh head) move from the second step on.
    waiting = policy.waiting()
    dead = [name for (name, _), moves in zip(named, alive, strict=True) if not moves and name not in waiting]
    alone = dead == [name for name, _ in named]  # no gradient of the method's own: balancing experts is no substitute
    dead = dead if alone else [name for name in dead if name not in {named[index][0] for index in balanced}]
    everything = sum(p.numel() for p in policy.model.parameters())
    detail = f"{size:,} of {everything:,} parameters train, in {len(named)} tensors"
    frozen, packed = frozen_weights(policy.model)
    evidence = {"trainable": size, "total": everything, "dead": dead[:20], "frozen": [*packed, *frozen][:20]}
    # Quantised tensors hold integers: they have no gradient, whatever the loss is.
    if packed:
        detail += f"; {len(packed)} are quantised and cannot train, {packed[0]} among them"
        remedy = "train an adapter (adapter: lora), or start from the folder with the weights before quantisation"
        return Check("gradient", "gradients", "fail", detail, evidence, remedy)
    if len(dead) == len(named):
        detail += "; none gets a gradient"
        return Check("gradient", "gradients", "fail", detail, evidence, "check which tokens train")
    layers = _dead_layers(policy.model, set(dead), waiting)
    if layers:
        return _dead_adapter(policy.model, layers, detail, evidence, dead_layers)
    if frozen:
        detail += f"; {len(frozen)} are frozen, {frozen[0]} among them"
        remedy = "no adapter trains in their place: set requires_grad on them if they should train"
        return Check("gradient", "gradients", "warn", detail, evidence, remedy)
    if dead:
        remedy = "experts that saw no token are normal; else check the adapter's targets"
        detail += f"; {len(dead)} get none, {dead[0]} among them"
        return Check("gradient", "gradients", "warn", detail, evidence, remedy)
    return Check("gradient", "gradients", "pass", f"{detail}; each gets a gradient", evidence)


def _reached(loss: Tensor | float, weights: Sequence[Tensor]) -> list[int]:
    """Which of `weights` get a gradient from a further loss; a router that sends a token to one expert has no other."""
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return []
    moves = nonzero(gradients_of([loss], weights, retain_graph=True))
    return [index for index, moved in enumerate(moves) if moved]


def _no_slope(algorithm: Algorithm, size: int, policy: TreeModel) -> Check:
    everything = sum(p.numel() for p in policy.model.parameters())
    return Check(
        "gradient",
        "gradients",
        "fail",
        f"the loss of `{algorithm.name}` does not depend on the model at the start: its gradient is exactly 0, beside "
        "whatever penalty it may have",
        {"trainable": size, "total": everything, "dead": ["all"]},
        "change what the loss is made of (`choices`, `objective`, `parameters`); `posttrain check` tries it again",
    )


def _dead_layers(model: nn.Module, dead: set[str], waiting: frozenset[str]) -> list[str]:
    """Layers of the adapter none of whose parameters gets a gradient; experts are left out, since one that saw no token
    of two short rows is alive."""
    layers = []
    for layer, names in adapter_layers(model).items():
        asked = [name for name in names if name not in waiting]
        if asked and dead.issuperset(asked) and "expert" not in layer:
            layers.append(layer)
    return layers


def _dead_adapter(
    model: nn.Module,
    layers: list[str],
    detail: str,
    evidence: dict[str, Any],
    dead_layers: Literal["stop", "warn"],
) -> Check:
    """A layer that gets no gradient keeps its adapter at zero for the whole run: it is paid for, saved and merged, and
    its place in the model is not trained, which no curve shows."""
    shown = ", ".join(layers[:MOST_DEAD]) + (f" and {len(layers) - MOST_DEAD} more" if len(layers) > MOST_DEAD else "")
    said = f"{detail}; {len(layers)} layers of the adapter get none: {shown}"
    evidence = {**evidence, "dead_layers": layers}
    if dead_layers == "warn":
        return Check("gradient", "gradients", "warn", said, evidence, "their adapters stay at zero")
    alive = sorted({name.rpartition(".")[2] for name in adapter_layers(model) if name not in layers})
    without = "|".join(re.escape(layer) for layer in layers)
    leave = f"leave them out (`adapter: {{targets: '(?!({without})$).*[.]({'|'.join(alive)})'}}`)"
    remedy = (
        f"{leave if len(layers) <= MOST_DEAD else 'name other `adapter.targets`'}, or train the others in spite of it "
    )
    remedy += "with `preflight: {dead_layers: warn}`"
    return Check("gradient", "gradients", "fail", said, evidence, remedy)
