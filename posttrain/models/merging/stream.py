"""The merge itself: one tensor of every model is read, merged, rounded and written, and then the next.

    written = merge_tensors(settings, models, base, vocabulary, folder, progress)

Memory holds one tensor of each model in float32, what the method makes of them, and no model. Of a method that looks at
each entry by itself, it holds a block of rows: an embedding matrix is the largest tensor by far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posttrain.config.merging import MergeSettings
from posttrain.errors import ConfigError, ModelError
from posttrain.models.devices import dtype_of
from posttrain.models.folders.finite import is_finite
from posttrain.models.folders.shard_files import DTYPES, SHARD_BYTES, ShardWriter
from posttrain.models.merging.comparison import Comparer
from posttrain.models.merging.inputs import OpenModel
from posttrain.models.merging.methods.parameters import Layers, resolved
from posttrain.models.merging.methods.parts import generator_of
from posttrain.models.merging.methods.table import METHODS, Parts
from posttrain.models.merging.tokens import Vocabulary, merge_rows
from posttrain.runs.progress import Progress

ENTRYWISE = frozenset({"linear", "task_arithmetic", "passthrough"})
"""Methods whose every entry is made of the same entry of each model, without a draw, a norm or a rank over others: in
blocks they give the same bits."""
BLOCK_BYTES = 32_000_000
"""Of a block, as one model stores it."""


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
    ground: OpenModel | None = None,
    comparer: Comparer | None = None,
) -> Written:
    """Write the weights of the merge into `folder`.

    Args:
        seed: of a method that draws and has none of its own.
        ground: what the models come from, where the method itself takes no base; read for the comparison alone.
        comparer: is given every tensor as it goes by.

    Raises:
        ModelError: a tensor of a model is not finite, or a merged one is not in the dtype that is written.
        ConfigError: a tensor of whole numbers differs between the models.
    """
    dtype = dtype_of_merge(settings, models[0])
    writer = ShardWriter(folder, kinds_of(models[0], vocabulary, dtype), shard_bytes)
    everyone = [*models, *([one] if (one := base or ground) is not None else [])]
    total = sum(one.bytes_to_read(name) for one in everyone for name in writer.kinds if name in one.entries)
    one_tensor = Merger.of(settings, models, base, vocabulary, dtype, seed=seed, ground=ground, comparer=comparer)
    title = f"merging {len(models)} models by {settings.kind}"
    try:
        with progress.phase(title, total=total / 1e6, unit="MB") as phase, torch.no_grad():
            for name, (shape, _) in writer.kinds.items():
                blocks = blocks_of(shape, models[0].entries[name].size) if one_tensor.is_entrywise(name) else [None]
                writer.write_blocks(name, (one_tensor(name, rows) for rows in blocks))
                phase.advance(sum(one.bytes_to_read(name) for one in everyone if name in one.entries) / 1e6)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    return Written(writer.checksums, total, writer.bytes)


def blocks_of(shape: tuple[int, ...], size: int) -> list[tuple[int, int] | None]:
    """The rows of each block: blocks_of((5, 4), 80) == [None]; None: the whole tensor."""
    count = -(-size // BLOCK_BYTES)
    if count < 2 or not shape or shape[0] < 2:
        return [None]
    rows = -(-shape[0] // count)
    return [(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows)]


@dataclass(frozen=True, slots=True)
class Merger:
    """Makes one tensor of the merge, or some of its rows."""

    settings: MergeSettings
    models: Sequence[OpenModel]
    base: OpenModel | None
    vocabulary: Vocabulary | None
    dtype: torch.dtype
    seed: int
    layers: Layers
    ground: OpenModel | None = None
    comparer: Comparer | None = None

    @classmethod
    def of(
        cls,
        settings: MergeSettings,
        models: Sequence[OpenModel],
        base: OpenModel | None,
        vocabulary: Vocabulary | None,
        dtype: torch.dtype,
        *,
        seed: int = 0,
        ground: OpenModel | None = None,
        comparer: Comparer | None = None,
    ) -> Merger:
        layers = Layers.of(models[0].entries)
        return cls(settings, models, base, vocabulary, dtype, settings.draws_from(seed), layers, ground, comparer)

    def is_entrywise(self, name: str) -> bool:
        """Whether blocks of rows give what the whole gives: not where rows are put together by their tokens."""
        is_united = self.vocabulary is not None and name in self.vocabulary.names
        return self.settings.kind in ENTRYWISE and self.models[0].entries[name].is_floating and not is_united

    def __call__(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        settings, method = self.settings, METHODS[self.settings.kind]
        if not self.models[0].entries[name].is_floating:
            return _equal(name, self.models)
        parts = self._parts(name, rows)
        if self.vocabulary is not None and name in self.vocabulary.names:
            result = merge_rows(parts, self.vocabulary, method).to(self.dtype)
        else:
            result = method(parts, self.dtype)
        # fp16 ends at 65,504: a weight beyond it becomes infinite as it is rounded.
        if not is_finite(result):
            raise ModelError(
                f"`{name}` is not finite once it is merged by `{settings.kind}`",
                found=f"NaN or infinity in {str(self.dtype).removeprefix('torch.')}",
                remedy="write `dtype: float32` (`--dtype fp32`), or smaller weights",
            )
        if self.comparer is not None:
            self._compare(self.comparer, name, rows, parts, result)
        return result

    def _compare(
        self, comparer: Comparer, name: str, rows: tuple[int, int] | None, parts: Parts, result: Tensor
    ) -> None:
        """As it goes by: to read everything a second time would double what a merge of large models takes."""
        base = parts.base
        if base is None and self.ground is not None and name in self.ground.entries:
            # Rows of a base with fewer tokens may not be there; what has another shape is passed over.
            whole = self.ground.entries[name].shape == self.models[0].entries[name].shape
            base = self.ground.read(name, rows) if whole else None
        # The same place is another token's in every model.
        if (self.vocabulary is not None and name in self.vocabulary.names) or (base is None and comparer.base):
            comparer.leave_out(name)
        else:
            comparer.add(name, parts.tensors, base, result)

    def _parts(self, name: str, rows: tuple[int, int] | None) -> Parts:
        def wide(model: OpenModel) -> Tensor:
            # One after the other, so that no model's tensor is held in both dtypes while the next is read.
            tensor = model.read(name, rows)
            return tensor if tensor.dtype == torch.float64 else tensor.float()

        per_model, options = resolved(self.settings, name, *self.layers.place(name))
        # A stream of its own for each tensor: shards may be read in any order.
        generator = generator_of(self.seed, name) if self.settings.row.random else None
        tensors = tuple(wide(model) for model in self.models)
        base = None if self.base is None else wide(self.base).to(tensors[0].dtype)
        return Parts(name, base, tensors, per_model, options, generator)


def _equal(name: str, models: Sequence[OpenModel]) -> Tensor:
    """Whole numbers are indices or masks, and no mean of them is one."""
    first = models[0].read(name)
    for model in models[1:]:
        if not torch.equal(model.read(name), first):
            raise ConfigError(
                f"`{name}` holds whole numbers, which cannot be merged, and the models have different ones",
                where=model.folder,
                found=f"other values in `{models[0].name}` and `{model.name}`",
                remedy="merge models whose buffers are equal",
            )
    return first
