"""What autograd keeps for the backward pass, in the machine's memory instead of the card's.

    activations = HostActivations(policy.model, policy.device)
    with activations.away():
        output = model(...)          # what the backward pass needs leaves the card, and comes back when it is read

The bytes come back as they were, so no gradient changes. With activation checkpointing it is each layer's input that
moves. Beside `torch.autograd.graph.save_on_cpu`:

1. Weights stay: they are on the card anyway, and FSDP frees and gathers a layer's own memory.
2. What lies in one storage goes once: query, key and value read one input, and chunks of the vocabulary are its views.
3. Small tensors stay, since a transfer costs more than it frees.

Copies follow one another on the stream that computes: they are not overlapped with it by streams of their own. Copies
of weights that autocast rounds move like activations where checkpointing does not compute them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

LEAST_BYTES = 1 << 20
"""Of a storage that moves."""

Away = Callable[[Tensor], Any]
"""Of a storage's bytes [n] on the card; gives what is kept of them."""
Back = Callable[[Any, slice, torch.device], Tensor]
"""Of what is kept: a range of the bytes, on the device."""


def to_host(bytes_n: Tensor) -> Tensor:
    """See `Away`. In pinned memory, so that the processor goes on while the bytes travel."""
    # Elsewhere a copy that is not waited for would be read before it is there.
    pinned = bytes_n.is_cuda
    host = torch.empty(bytes_n.shape, dtype=torch.uint8, pin_memory=pinned)
    return host.copy_(bytes_n, non_blocking=pinned)


def from_host(kept: Tensor, part: slice, device: torch.device) -> Tensor:
    """See `Back`."""
    # Always a copy: on a CPU `to` would give the kept bytes themselves, which an operation in place would change.
    return kept[part].to(device, non_blocking=kept.is_pinned(), copy=True)


@dataclass(frozen=True, slots=True)
class _Moved:
    """A view of a storage that is kept elsewhere."""

    kept: Any
    part: slice
    """Its bytes among those of the storage."""
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    device: torch.device


class HostActivations:
    """See the module's docstring."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        away: Away = to_host,
        back: Back = from_host,
        least: int = LEAST_BYTES,
    ):
        """
        Args:
            model: whose weights stay.
            device: of the tensors that move; all others stay.
            away, back: how bytes leave and return.
            least: bytes of the smallest storage that moves.
        """
        self._model, self._device = model, device
        self._away, self._back, self._least = away, back, least

    @contextmanager
    def away(self) -> Iterator[None]:
        """What is computed within keeps nothing on the card for its backward pass, where gradients are recorded."""
        if not torch.is_grad_enabled():
            yield
            return
        weights = {
            tensor.untyped_storage()._cdata
            for tensor in (*self._model.parameters(), *self._model.buffers())
            if not isinstance(tensor, DTensor)
        }
        # The weak reference keeps an address from being given to another storage as long as it stands for this one.
        known: dict[tuple[int, int], tuple[StorageWeakRef, Any]] = {}
        with saved_tensors_hooks(partial(self._pack, weights, known), self._unpack):
            yield

    @torch.no_grad()
    def _pack(
        self, weights: set[int], known: dict[tuple[int, int], tuple[StorageWeakRef, Any]], tensor: Tensor
    ) -> Tensor | _Moved:
        if self._stays(tensor) or tensor.untyped_storage()._cdata in weights:
            return tensor
        storage, width = tensor.untyped_storage(), tensor.element_size()
        key = (storage._cdata, tensor._version)  # an operation in place makes other bytes of the same storage
        if key not in known:
            whole = tensor.detach().as_strided((storage.nbytes() // width,), (1,), 0).view(torch.uint8)
            known[key] = StorageWeakRef(storage), self._away(whole)
        span = 1 + sum((count - 1) * step for count, step in zip(tensor.shape, tensor.stride(), strict=True))
        first = tensor.storage_offset() * width
        part = slice(first, first + span * width)
        return _Moved(known[key][1], part, tensor.dtype, tensor.shape, tensor.stride(), tensor.device)

    @torch.no_grad()
    def _unpack(self, kept: Tensor | _Moved) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        bytes_n = self._back(kept.kept, kept.part, kept.device)
        return bytes_n.view(kept.dtype).as_strided(kept.size, kept.stride)

    def _stays(self, tensor: Tensor) -> bool:
        # Sharded layers compute with parameters that are made when they are gathered, and are freed by FSDP alone.
        is_weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        return (
            is_weight
            or isinstance(tensor, DTensor)
            or tensor.device.type != self._device.type
            or tensor.layout != torch.strided
            or tensor.numel() == 0
            or tensor.untyped_storage().nbytes() < self._least
        )
