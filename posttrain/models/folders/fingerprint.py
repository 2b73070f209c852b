"""What a model computes with, as one hash: the key under which anything derived from its weights is cached.

Reference log-probs (`logprob_store`), evaluations and an adapter's tie to its base rest on it: two models that differ
must never share a hash, or a run silently reads another model's numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.models.adapters.kinds import ADAPTER_PARTS
from posttrain.models.folders.own_code import class_fingerprint
from posttrain.models.sharding.shards import mesh_of, whole


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 (hex) over all parameters and persistent buffers by name, dtype, shape and bytes, the adapter included.

    The scale of each adapter counts too: alpha changes what a model computes and no weight. So does the code of a class
    that a folder brought. Tied tensors count once.
    Two models with the same fingerprint and the same config give the same log-probs. Collective for a sharded model,
    whose fingerprint is that of the whole one.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return _digest(model.state_dict(keep_vars=True), [*_adapter_settings(model), *class_fingerprint(plain)])


def base_fingerprint(model: PeftModel) -> str:
    """`weights_fingerprint` of the model under the adapter, as it is when it is loaded by itself."""
    base = model.get_base_model()
    state = base.state_dict(keep_vars=True)
    state = {_plain_name(name): tensor for name, tensor in state.items() if not _belongs_to_adapter(name)}
    return _digest(state, class_fingerprint(base))


def backbone_fingerprint(model: nn.Module) -> str:
    """`weights_fingerprint` of what lies under the head, without an adapter: what a saved head or adapter sits on."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    state = plain.base_model.state_dict(keep_vars=True)  # type: ignore[union-attr]
    return _digest({_plain_name(name): tensor for name, tensor in state.items() if not _belongs_to_adapter(name)}, ())


def _belongs_to_adapter(name: str) -> bool:
    return any(part in name for part in ADAPTER_PARTS)


def _plain_name(name: str) -> str:
    """The name of a base's weight without what `peft` puts around it: the model under an adapter hashes as itself."""
    return name.replace(".token_adapter.", ".").replace(".base_layer.", ".").replace(".original_module.", ".")


def _digest(state: Mapping[str, Tensor], settings: Iterable[str]) -> str:
    digest = hashlib.sha256()
    named = list(_distinct(state))
    with ThreadPoolExecutor(4) as pool:  # hashing large buffers releases the interpreter lock
        # One whole tensor of a sharded model at a time, and gathered by every rank in the same order.
        apply: Any = map if mesh_of(tensor for _, tensor in named) is not None else pool.map
        for (name, tensor), content in zip(named, apply(_content, (tensor for _, tensor in named)), strict=True):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}\n".encode())
    for line in settings:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _distinct(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tied tensors once, under the first of their names: whether a tie is stored or made again changes no number."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, DTensor):
            # By the object: a rank without a row of it has it at address 0, and would skip what others hash.
            if (id(tensor), ()) not in seen:
                seen.add((id(tensor), ()))
                yield name, tensor
            continue
        # The shape too: a view of the first rows starts at the same address. Empty tensors may all lie at address 0.
        memory = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and memory in seen:
            continue
        seen.add(memory)
        yield name, tensor


def _content(tensor: Tensor) -> str:
    # Through uint8, since numpy has no bf16.
    raw = whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def _adapter_settings(model: nn.Module) -> Iterator[str]:
    """What of an adapter changes the output and is no weight: its scale, which one is active, whether it is on."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield f"{name} scales={[module.scaling.get(adapter) for adapter in module.active_adapters]}"
        if isinstance(module, BaseTunerLayer):
            yield f"{name} {(module.active_adapters, module.disable_adapters, module.merged_adapters)}"
