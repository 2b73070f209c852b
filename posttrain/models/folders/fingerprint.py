"""What a model computes with, as one hash: the key under which anything derived from its weights is cached."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from posttrain.models.adapters.kinds import ADAPTER_PARTS


def weights_fingerprint(model: nn.Module) -> str:
    """sha256 (hex) over all parameters and persistent buffers by name, dtype, shape and bytes, the adapter included.

    The scale of each adapter counts too: alpha changes what a model computes and no weight. Tied tensors count once.
    Two models with the same fingerprint and the same config give the same log-probs.
    """
    return _digest(model.state_dict(), _adapter_state(model))


def base_fingerprint(model: PeftModel) -> str:
    """`weights_fingerprint` of the model under the adapter, as it is when it is loaded by itself."""
    state = model.get_base_model().state_dict()
    return _digest({_bare(name): tensor for name, tensor in state.items() if not _is_adapters(name)}, ())


def backbone_fingerprint(model: nn.Module) -> str:
    """`weights_fingerprint` of what lies under the head, without an adapter: what a saved head or adapter sits on."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    state = plain.base_model.state_dict()  # type: ignore[union-attr]
    return _digest({_bare(name): tensor for name, tensor in state.items() if not _is_adapters(name)}, ())


def _is_adapters(name: str) -> bool:
    return any(part in name for part in ADAPTER_PARTS)


def _bare(name: str) -> str:
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _digest(state: Mapping[str, Tensor], remarks: Iterable[str]) -> str:
    digest = hashlib.sha256()
    named = list(_each_once(state))
    with ThreadPoolExecutor(4) as pool:  # hashing large buffers releases the interpreter lock
        for (name, tensor), content in zip(named, pool.map(_content, (t for _, t in named)), strict=True):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}\n".encode())
    for remark in remarks:
        digest.update(f"{remark}\n".encode())
    return digest.hexdigest()


def _each_once(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in sorted(state.items()):
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        yield name, tensor


def _content(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def _adapter_state(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield f"{name} scales={[module.scaling.get(adapter) for adapter in module.active_adapters]}"
        if isinstance(module, BaseTunerLayer):
            yield f"{name} {(module.active_adapters, module.disable_adapters, module.merged_adapters)}"
