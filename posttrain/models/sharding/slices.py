"""A model's folder, read by many ranks at once: each reads its rows of every tensor, and none ever holds the model.

    model, info = read_slices(folder, AutoModelForCausalLM, torch.float32, sharding)

The model is built without memory, its parameters become shards without memory, and the loader of `transformers` fills
them: where it finds a shard it reads that part of the file alone, stacked experts and renamed tensors included. What
comes out is parked (`wrap.park`). The plans of `transformers` for tensor parallelism are not used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig

from posttrain.errors import ModelError
from posttrain.models.sharding.mesh import Sharding
from posttrain.models.sharding.shards import local_rows, placed

INDEX = "model.safetensors.index.json"


def weight_shards(folder: Path) -> list[Path]:
    """The folder's safetensors files; empty where its weights are kept otherwise."""
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []


def require_plain_weights(folder: Path) -> None:
    """
    Raises:
        ModelError: the weights are quantised: packed numbers and their scales are no rows of a matrix.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = config.get("quantization_config")
    if settings:
        raise ModelError(
            "quantised weights cannot be spread over ranks",
            where=folder,
            found=f"quantization_config: {settings.get('quant_method', 'unknown')}",
            expected="weights in fp32, bf16 or fp16",
            remedy="start from the folder before quantisation, or write `compute: {mesh: {shard: 1, replicate: N}}`",
        )


def read_slices(
    folder: Path, kind: Any, dtype: torch.dtype, sharding: Sharding, device: torch.device
) -> tuple[Any, dict[str, Any]]:
    """The parked model in eval mode, and what `transformers` says of missing, unexpected and mismatched keys.

    Args:
        kind: an `AutoModelFor...`; the folder's own code is not run.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = kind.from_config(config, dtype=dtype, trust_remote_code=False)
    _without_memory(model, sharding)
    files = [str(path) for path in weight_shards(folder)]
    load = LoadStateDictConfig(
        pretrained_model_name_or_path=str(folder),
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=get_model_conversion_mapping(model),
        use_safetensors=True,
    )
    info, _ = model._load_pretrained_model(model, None, files, load)
    info = model._finalize_model_loading(model, load, info)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    _require_filled(model.state_dict(), folder)
    _move(model, sharding, device)
    return model.eval(), info.to_dict()


@torch.no_grad()
def _without_memory(model: nn.Module, sharding: Sharding) -> None:
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.ndim:
                continue
            if id(parameter) not in made:
                rows = local_rows(parameter.shape[0], sharding.rank, sharding.ranks)
                shape = (rows.stop - rows.start, *parameter.shape[1:])
                empty = torch.empty(shape, dtype=parameter.dtype, device="meta")
                shard = placed(empty, parameter, sharding)
                made[id(parameter)] = nn.Parameter(shard, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]


def _require_filled(named: dict[str, torch.Tensor], folder: Path) -> None:
    empty = [name for name, tensor in named.items() if tensor.is_meta]
    if empty:
        raise ModelError(
            "the folder's weights do not fill the model",
            where=folder,
            found=", ".join(empty[:5]),
            remedy="check config.json against the weights",
        )


@torch.no_grad()
def _move(model: nn.Module, sharding: Sharding, device: torch.device) -> None:
    """To the device where the mesh computes; they were read into the machine's memory."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in moved:
                    rows = parameter.to_local().to(device).contiguous()
                    shard = placed(rows, parameter, sharding)
                    moved[id(parameter)] = nn.Parameter(shard, requires_grad=parameter.requires_grad)
                module._parameters[name] = moved[id(parameter)]
    model.to(device)  # buffers
