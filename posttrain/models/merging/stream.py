"""The merge itself: one tensor of every model is read, merged, rounded and written, and then the next.

    written = merge_tensors(settings, models, base, vocabulary, folder, progress)

Memory holds one tensor of each model in float32, what the method makes of them, and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posttrain.config.merging import MergeSettings
from posttrain.errors import ConfigError, ModelError
from posttrain.models.devices import dtype_of
from posttrain.models.folders.finite import is_finite
from posttrain.models.merging.inputs import OpenModel
from posttrain.models.merging.methods.parameters import Layers, resolved
from posttrain.models.merging.methods.parts import generator_of
from posttrain.models.merging.methods.table import METHODS, Parts
from posttrain.models.merging.tensors import DTYPES, SHARD_BYTES, ShardWriter
from posttrain.models.merging.tokens import Vocabulary, merge_rows
from posttrain.runs.progress import Progress


@dataclass(frozen=True, slots=True)
class Written:
    """Written(checksums={"lm_head.weight": 3735928559, ...}, read=2_152_000_000, bytes=1_076_000_000)"""

    checksums: dict[str, int]
    """zlib.crc32 of each tensor."""
    read: int
    """Bytes of all models."""
    bytes: int
    """Of the weights that were written."""


def dtype_of_merge(settings: MergeSettings, first: OpenModel) -> torch.dtype:
    """`auto`: what most of the first model's bytes are stored in."""
    if settings.dtype != "auto":
        return dtype_of(settings.dtype)
    sizes: dict[str, int] = {}
    for entry in first.entries.values():
        if entry.is_floating:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.size
    return DTYPES[max(sizes, key=lambda name: sizes[name])]


def kinds_of(
    first: OpenModel, vocabulary: Vocabulary | None, dtype: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor of the merge, in the order in which the first model stores them."""
    kinds = {}
    for name, entry in first.entries.items():
        shape = entry.shape
        if vocabulary is not None and name in vocabulary.names:
            shape = (vocabulary.rows, *shape[1:])
        kinds[name] = (shape, dtype if entry.is_floating else DTYPES[entry.dtype])
    # Wide entries first: a reader that maps the file wants each at a multiple of its own size.
    return dict(sorted(kinds.items(), key=lambda item: -item[1][1].itemsize))


def merge_tensors(
    settings: MergeSettings,
    models: Sequence[OpenModel],
    base: OpenModel | None,
    vocabulary: Vocabulary | None,
    folder: Path,
    progress: Progress,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Written:
    """Write the weights of the merge into `folder`.

    Args:
        seed: of a method that draws and has none of its own.

    Raises:
        ModelError: a tensor of a model is not finite, or a merged one is not in the dtype that is written.
        ConfigError: a tensor of whole numbers differs between the models.
    """
    dtype = dtype_of_merge(settings, models[0])
    writer = ShardWriter(folder, kinds_of(models[0], vocabulary, dtype), shard_bytes)
    everyone = [*models, *([base] if base is not None else [])]
    total = sum(one.bytes_to_read(name) for one in everyone for name in writer.kinds)
    one_tensor = _merger(settings, models, base, vocabulary, dtype, settings.draws_from(seed))
    title = f"merging {len(models)} models by {settings.kind}"
    try:
        with progress.phase(title, total=total / 1e6, unit="MB") as phase, torch.no_grad():
            for name in writer.kinds:
                writer.write(name, one_tensor(name))
                phase.advance(sum(one.bytes_to_read(name) for one in everyone) / 1e6)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return Written(writer.checksums, total, writer.bytes)


def _merger(
    settings: MergeSettings,
    models: Sequence[OpenModel],
    base: OpenModel | None,
    vocabulary: Vocabulary | None,
    dtype: torch.dtype,
    seed: int,
) -> Callable[[str], Tensor]:
    method, layers = METHODS[settings.kind], Layers.of(models[0].entries)

    def merged(name: str) -> Tensor:
        tensors = tuple(model.read(name) for model in models)
        under = None if base is None else base.read(name)
        if not tensors[0].is_floating_point():
            return _equal(name, models, tensors)
        per_model, options = resolved(settings, name, *layers.place(name))
        # A stream of its own for each tensor: shards may be read in any order.
        generator = generator_of(seed, name) if method.random else None
        parts = Parts(name, under, tensors, per_model, options, generator)
        if vocabulary is not None and name in vocabulary.names:
            wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
            parts = Parts(
                name,
                None if under is None else under.to(wide),
                tuple(tensor.to(wide) for tensor in tensors),
                per_model,
                options,
                generator,
            )
            result = merge_rows(parts, vocabulary, method).to(dtype)
        else:
            result = method(parts, dtype)
        # fp16 ends at 65,504: a weight beyond it becomes infinite as it is rounded.
        if not is_finite(result):
            raise ModelError(
                f"`{name}` is not finite once it is merged by `{settings.kind}`",
                found=f"NaN or infinity in {str(dtype).removeprefix('torch.')}",
                remedy="write `dtype: float32` (`--dtype fp32`), or smaller weights",
            )
        return result

    return merged


def _equal(name: str, models: Sequence[OpenModel], tensors: Sequence[Tensor]) -> Tensor:
    """Whole numbers are indices or masks, and no mean of them is one."""
    for model, tensor in zip(models[1:], tensors[1:], strict=True):
        if not torch.equal(tensor, tensors[0]):
            raise ConfigError(
                f"`{name}` holds whole numbers, which cannot be merged, and the models have different ones",
                where=model.folder,
                found=f"other values in `{models[0].name}` and `{model.name}`",
                remedy="merge models whose buffers are equal",
            )
    return tensors[0]
