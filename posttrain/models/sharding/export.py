"""A model that ranks share, as a folder of whole weights: asked and written without a process that holds all of it.

    source = computing(twin(policy.model, same))                # answers like a plain model, layer by layer
    checksums = write_weights(source, folder, "5GB", here)      # rank 0 writes what all gather, tensor by tensor

Everything here is collective. An error of rank 0's disk is raised by all ranks, after the last tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save

from posttrain.errors import ExportError
from posttrain.models.adapters.folding import record_tying
from posttrain.models.adapters.kinds import ADAPTER_PARTS
from posttrain.models.folders.shard_files import ShardWriter
from posttrain.models.sharding.copies import twin
from posttrain.models.sharding.shards import whole
from posttrain.models.sharding.wrap import own_layers, parameter_slots, reshard
from posttrain.models.tree.checkpointing import layers_of
from posttrain.parallel.world import World
from posttrain.runs.disk import writing

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
Kinds = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype by name."""


def same(parameter: Tensor) -> Tensor:
    """For `twin`: shared with the model."""
    return parameter


def computing(model: Any) -> Any:
    """A parked model that can answer without `TreeModel` around it: in place, and given back. See `asked`.

    Each rank has to ask it the same. A layer is whole while it computes, and so are the embeddings and the head, which
    are the largest tensors; whatever else there is, tied ends among it, while the model is called. Not by FSDP2, whose
    gathering holds a layer three times on gloo, as it is sent, as it is received, and as it computes.
    """
    root = asked(model)
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    units = own_layers(root, [*layers_of(root), *ends])
    inside = {id(parameter) for unit in units for parameter in unit.parameters()}
    for unit in units:
        _whole_while_called(unit, list(parameter_slots(unit)))
    _whole_while_called(root, [slot for slot in parameter_slots(root) if id(slot[2]) not in inside])
    return model.eval()


def _whole_while_called(module: nn.Module, slots: Sequence[tuple[nn.Module, str, nn.Parameter]]) -> None:
    def gather(*_: Any) -> None:
        made: dict[int, nn.Parameter] = {}
        for holder, name, shard in slots:
            if id(shard) not in made:
                made[id(shard)] = nn.Parameter(whole(shard), requires_grad=False)
            holder._parameters[name] = made[id(shard)]

    def free(*_: Any) -> None:
        for holder, name, shard in slots:
            holder._parameters[name] = shard

    module.register_forward_pre_hook(gather)
    module.register_forward_hook(free, always_call=True)


def asked(model: Any) -> Any:
    """Who answers for a `computing` model: the base in its adapter, whose wrapper may call past the hooks that gather
    weights (AdaLoRA's does), unless the wrapper itself adds virtual tokens."""
    is_plain = not isinstance(model, PeftModel) or model.active_peft_config.is_prompt_learning
    return model if is_plain else model.get_base_model()


@torch.no_grad()
def write_weights(model: Any, folder: Path, shard_size: str, here: World) -> dict[str, int]:
    """Config and weights of a model of `transformers`, in the names of its files; gives zlib.crc32 by name.

    On ranks other than 0, whose disk is not asked, the checksums are empty.

    Raises:
        ExportError: the files of this family hold tensors that are made of several of the model's.
        SourceError: rank 0's disk refuses a file; raised by all.
    """
    reshard(model)
    record_tying(model)
    tensors = _to_write(model)
    names = _names_on_disk(model, tensors, folder)
    kinds = {name: kind for ours in names.values() for name, kind in ours.items()}
    writer: ShardWriter | None = None
    failure: Exception | None = None
    if here.is_main:
        writer = ShardWriter(folder, kinds, _bytes(shard_size))
    for name, tensor in tensors.items():
        # On every rank, whatever rank 0's disk says: those that stopped would leave the others waiting.
        gathered = whole(tensor)
        if writer is None or failure is not None:
            continue
        try:
            on_disk = _as_on_disk(model, name, gathered.cpu()) if list(names[name]) != [name] else {name: gathered}
            for key, value in on_disk.items():
                writer.write(key, value.cpu())
        except Exception as error:  # the boundary: raised below, by all
            failure = error
    with here.together("writing the model"), writing(folder):
        if failure is not None:
            assert writer is not None
            writer.abandon()
            raise failure
        if writer is not None:
            writer.close()
            _write_config(model, folder)
    return {} if writer is None else writer.checksums


def to_write_adapter(model: PeftModel) -> tuple[PeftModel, dict[str, Tensor]]:
    """What `peft` can save the adapter from: a parked twin of the model, and the adapter's tensors, whole, by their
    names in `state_dict`."""
    model = twin(model, same)
    if model.active_peft_config.is_prompt_learning:
        # `peft` computes what it saves of virtual tokens, and on one rank.
        for module in model.prompt_encoder.modules():
            for name, parameter in module._parameters.items():
                if isinstance(parameter, DTensor):
                    module._parameters[name] = nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad)
    state = model.state_dict(keep_vars=True)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    own = {
        name: whole(tensor)
        for name, tensor in state.items()
        if id(tensor) in trained or any(part in name for part in ADAPTER_PARTS)
    }
    return model, own


def _to_write(model: Any) -> dict[str, Tensor]:
    """As `save_pretrained` chooses: tied tensors once, none that is made anew. Wide ones first: a reader that maps the
    file wants each at a multiple of its own size."""
    left_out = set(model._keys_to_ignore_on_save or ())
    chosen: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in left_out and id(tensor) not in seen:
            chosen[name] = tensor
        seen.add(id(tensor))
    return dict(sorted(chosen.items(), key=lambda item: -item[1].element_size()))


def _names_on_disk(model: Any, tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Kinds]:
    """Of each tensor, what the files of this family hold in its place: stacked experts lie there one by one."""
    empty = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}
    together = revert_weight_conversion(model, dict(empty))
    if list(together) == list(empty) or set(together) == set(empty):
        return {name: {name: (tuple(t.shape), t.dtype)} for name, t in empty.items()}
    names = {name: dict(_kinds(_as_on_disk(model, name, tensor))) for name, tensor in empty.items()}
    alone = {key for ours in names.values() for key in ours}
    if alone != set(together):
        raise ExportError(
            "files of this kind of model hold tensors that are made of several of its weights",
            where=folder,
            found=f"{len(set(together) ^ alone)} of {len(together)}, `{min(set(together) ^ alone)}` first",
            remedy="train with `compute: {mesh: {shard: 1, replicate: N}}`, where a process saves its whole model",
        )
    return names


def _as_on_disk(model: Any, name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in revert_weight_conversion(model, {name: tensor}).items()}


def _kinds(state: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[tuple[int, ...], torch.dtype]]]:
    return ((name, (tuple(tensor.shape), tensor.dtype)) for name, tensor in state.items())


def _write_config(model: Any, folder: Path) -> None:
    """As `save_pretrained` leaves it."""
    config = model.config
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    if model.is_remote_code():
        custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)


def _bytes(size: str) -> int:
    """_bytes("5GB") == 5_000_000_000"""
    return int(float(size[:-2]) * UNITS[size[-2:].upper()])
