"""Where a step that is not finite went wrong: the first module, parameter and row, found in a second pass with hooks.

    try:
        accumulate(policy, reference, algorithm, trees, budget, step=step)
    except NonFiniteError as error:
        raise explained(error, policy, reference, algorithm, trees, budget, step=step) from None

The loss says only that something below it is NaN, and the gradient's norm that something above is. The second pass
costs one step and happens once, at the end of a run that stops. It draws from a copy of the random stream and leaves no
gradient, so that what is saved afterwards is what would have been saved without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from posttrain.data.trees import collate, to_device
from posttrain.errors import NonFiniteError
from posttrain.models.folders.finite import is_finite, non_finite_weights
from posttrain.models.tree.model import TreeModel
from posttrain.parallel.world import world
from posttrain.training.objectives import Algorithm
from posttrain.training.step import Reference, replay
from posttrain.types import Batch, TokenTree

MOST_ROWS = 64
"""Rows of a micro-batch that are tried one by one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Place("model.layers.3.mlp", "LlamaMLP", "NaN"): the module, its class, and what stands in its output."""

    module: str
    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.module or 'the model'} ({self.kind})"


class _Stop(Exception):
    """Ends the second pass at the micro-batch that was looked for."""


@dataclass
class Probe:
    """Watches one micro-batch: with Probe(model) as probe: ...; then probe.output, probe.gradient, probe.parameters."""

    model: nn.Module
    output: Place | None = None
    """The first module whose output is not finite though its inputs are."""
    gradient: Place | None = None
    """The first module, going backward, at whose output the gradient is not finite."""
    before: Place | None = None
    """The last module, going backward, at whose output the gradient was finite."""
    finite: set[str] = field(default_factory=set)
    """Modules at whose output the gradient was finite."""
    parameters: list[str] = field(default_factory=list)
    """Parameters whose gradient is not finite, in the order in which the backward pass reached them."""
    _handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_hook(partial(self._forward, name), with_kwargs=True))
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                hook = partial(self._accumulated, name)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _forward(self, name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        tensors = list(_tensors(output))
        place = Place(name, type(module).__name__, "")
        bad = next((value for tensor in tensors if (value := _kind(tensor))), None)
        # An input of -inf is what masks are made of, and a module that makes NaN of it is the one to name.
        if bad and self.output is None and not any(_kind(x) in ("NaN", "inf") for x in _tensors([args, kwargs])):
            self.output = Place(name, place.kind, bad)
        # On the tensor, not the module: a module's backward hook copies its outputs, and in-place code then fails.
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._backward, place))

    def _backward(self, place: Place, gradient: Tensor) -> None:
        bad = _kind(gradient)
        if not bad:
            self.finite.add(place.module)
        if self.gradient is None and bad:
            self.gradient = Place(place.module, place.kind, bad)
        elif self.gradient is None:
            self.before = place

    def _accumulated(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None and name not in self.parameters and not is_finite(parameter.grad):
            self.parameters.append(name)


@dataclass(frozen=True, slots=True)
class Fault:
    """What the second pass found, in words, with the names for the record and the rows."""

    words: str
    names: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


def explained(
    error: NonFiniteError,
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    *,
    step: int,
    seed: int = 0,
) -> NonFiniteError:
    """The same error with the first module, parameter and rows that are not finite; gradients are cleared.

    Arguments as `posttrain.training.step.accumulate` had them.
    """
    for parameter in policy.model.parameters():
        parameter.grad = None
    # No second pass is needed: every module would be one to name.
    if weights := non_finite_weights(policy.model):
        shown = ", ".join(weights[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
        fault = Fault(f"the weights themselves are not finite: {shown}", tuple(weights))
    elif policy.is_sharded:
        # A rank that leaves a pass of a sharded model at its faulty module leaves the others waiting in it.
        fault = Fault("the weights are finite; which module made it so is not looked for in a sharded model")
    else:
        try:
            # The run ends here, but its random state is saved with the last whole step.
            with torch.random.fork_rng(devices=_devices(policy)), torch.enable_grad():
                fault = _second_pass(policy, reference, algorithm, trees, tokens_per_microbatch, step, seed)
        except RuntimeError as failure:  # no memory for the hooks, say: what is known already is raised all the same
            fault = Fault(f"a second pass to find the module failed ({type(failure).__name__})")
    for parameter in policy.model.parameters():
        parameter.grad = None
    # Of several processes the one whose rows are at fault has found it; the others' rows were finite.
    fault = max(world().gather(fault), key=lambda found: bool(found.names))
    names = tuple(dict.fromkeys([*error.tensors, *fault.names]))
    return NonFiniteError(
        f"{error.problem}: {fault.words}", remedy=error.remedy, tensors=names, rows=fault.rows or error.rows
    )


def _second_pass(
    policy: TreeModel,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    step: int,
    seed: int,
) -> Fault:
    faulty: list[tuple[Probe, Tensor, Batch]] = []
    probes = [Probe(policy.model)]

    def finish(loss: Tensor, batch: Batch) -> None:
        probe = probes[-1]
        bad = not torch.isfinite(loss)
        if not bad:
            loss.backward()
        # The first is enough; the micro-batches behind it would be NaN for its sake.
        if bad or probe.parameters or probe.gradient:
            faulty.append((probe, loss.detach(), batch))
            raise _Stop
        # Of this micro-batch only: the next has its own last finite module.
        probe.before = None

    try:
        with probes[0]:
            replay(policy, reference, algorithm, trees, tokens_per_microbatch, finish, step=step, seed=seed)
    except _Stop:
        pass
    if not faulty:
        return Fault("in a second pass every micro-batch was finite: what failed does not repeat, or is their sum")
    probe, loss, batch = faulty[0]
    members = [tree for tree in trees if tree.row in batch.rows]
    if torch.isfinite(loss):
        return _of_gradient(probe, batch)
    return _of_loss(policy, probe, batch, members)


def _of_loss(policy: TreeModel, probe: Probe, batch: Batch, members: Sequence[TokenTree]) -> Fault:
    rows = _bad_rows(policy, members) or tuple(map(str, batch.rows))
    if probe.output is not None:
        words = f"the output of {probe.output} is the first to be {probe.output.value}, of inputs that are finite"
        return Fault(words, (f"output of {probe.output.module or 'the model'}",), rows)
    if _bad_rows(policy, members):
        words = f"every module's output is finite, the {policy.compares} made of the last one are not"
        return Fault(words, (policy.compares,), rows)
    return Fault("every module's output is finite: it is the loss that is not", (), rows)


def _of_gradient(probe: Probe, batch: Batch) -> Fault:
    rows = tuple(map(str, batch.rows))
    first = f"; the first parameter that it reaches is {probe.parameters[0]}" if probe.parameters else ""
    owner = probe.parameters[0].rpartition(".")[0] if probe.parameters else ""
    if owner in probe.finite:
        kind = type(probe.model.get_submodule(owner)).__name__
        words = f"the backward pass of {owner} ({kind}) is the first to make it so, of a gradient that is finite{first}"
        return Fault(words, (f"backward pass of {owner}",), rows)
    if probe.gradient is None:
        return Fault(f"the gradient of {probe.parameters[0]} is the first that is not finite", (), rows)
    where = f"the gradient at the output of {probe.gradient} is the first to be {probe.gradient.value}"
    after = f", behind that of {probe.before}, which is finite" if probe.before else ""
    names = (f"gradient at the output of {probe.gradient.module or 'the model'}",)
    return Fault(f"{where}{after}{first}", names, rows)


@torch.no_grad()
def _bad_rows(policy: TreeModel, members: Sequence[TokenTree]) -> tuple[str, ...]:
    """Rows that are not finite by themselves, so that a good one in the same micro-batch is not blamed."""
    return tuple(
        str(tree.row)
        for tree in members[:MOST_ROWS]
        if not is_finite(policy.compared(to_device(collate([tree]), policy.device))[0])
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating tensors in what a module takes or gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _kind(tensor: Tensor) -> str | None:
    """ "NaN", "inf" or "-inf"; None for a tensor that is finite."""
    if is_finite(tensor):
        return None
    low, high = torch.aminmax(tensor.detach())
    return "NaN" if torch.isnan(low) else "inf" if torch.isinf(high) and high > 0 else "-inf"


def _devices(policy: TreeModel) -> list[int]:
    return [policy.device.index or 0] if policy.device.type == "cuda" else []
