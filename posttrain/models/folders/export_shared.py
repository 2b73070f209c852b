"""Saving from several ranks: rank 0 writes, reads back and gives the folder its name, and every rank has to call.

    pending = begin_shared_save(policy.model, tokenizer, folder, settings, sharding=loaded.sharding)    # on every rank
    report = pending.wait()                                                                             # on every rank

A model that each rank holds whole is rank 0's to save. One that ranks share is written tensor by tensor, as all gather
it, and asked layer by layer what the fresh process has to answer: no rank holds more than one tensor, or one layer, of
it. The fresh process of rank 0 does, as any other program that loads the folder. It speaks first: the ranks follow its
greedy text in one pass, where a text of their own would gather every layer once for each token.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from posttrain.models.folders import readback
from posttrain.models.folders.export import (
    ExportReport,
    ExportSettings,
    PendingSave,
    begin_reading_back,
    begin_save,
    manifest_info,
    require_savable,
)
from posttrain.models.folders.export_files import (
    PROBE_TEXT,
    Expected,
    Writer,
    eval_mode,
    probe_request,
    spread_ids,
    stop_ids_of,
    write_adapter,
    write_beside_weights,
    write_model,
)
from posttrain.models.folders.manifest import temporary_folder
from posttrain.models.folders.own_code import ran_own_code
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.source import ModelSource
from posttrain.models.sharding.copies import twin
from posttrain.models.sharding.export import asked, computing, same, to_write_adapter, write_weights
from posttrain.models.sharding.folding import folded_in_parts
from posttrain.models.sharding.mesh import Sharding
from posttrain.parallel.world import World, world
from posttrain.runs.disk import writing


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """Files of a model that ranks share, and what is to be asked of both sides."""

    request: dict[str, Any]
    """For the fresh process."""
    expected: Callable[[list[int]], Expected]
    """What it must answer, by the model in memory, which is given the greedy text that the process said. Collective."""


SharedWriter = Callable[[Any, Any, Path, ExportSettings, ModelSource | None, Sharding], SharedFiles]
"""`export_files.Writer` of a model that ranks share: called on all of them, and rank 0 alone writes."""
OTHER_DEVICE = 1e-3
"""Of the largest logit: by how much a card may differ from the CPU of the fresh process; a lost weight moves more."""


def begin_shared_save(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    settings: ExportSettings | None = None,
    *,
    base: ModelSource | None = None,
    sharding: Sharding | None = None,
    write: Writer = write_model,
    write_shared: SharedWriter | None = None,
) -> SharedSave | PendingSave:
    """`begin_save` on every rank of a job; in a single process it is that.

    Args:
        sharding: how ranks share the model; None: each has it whole.
        write_shared: in the place of `write` where they share it; None: of a causal LM.

    Raises:
        As `begin_save`, on every rank.
    """
    here, settings, folder = world(), settings or ExportSettings(), Path(folder)
    if sharding is None:
        if here.is_alone:
            return begin_save(model, tokenizer, folder, settings, base=base, write=write)
        pending: PendingSave | None = None
        with here.together("saving the model"):
            if here.is_main:
                pending = begin_save(model, tokenizer, folder, settings, base=base, write=write)
        return SharedSave(folder, pending, here)
    return _begin(model, tokenizer, folder, settings, base, sharding, write_shared or write_model_in_parts, here)


def _begin(
    model: Any,
    tokenizer: Any,
    folder: Path,
    settings: ExportSettings,
    base: ModelSource | None,
    sharding: Sharding,
    write: SharedWriter,
    here: World,
) -> SharedSave:
    here.agreed(lambda: require_savable(model, tokenizer, folder, settings))
    started = time.monotonic()
    temporary = here.agreed(lambda: temporary_folder(folder))
    pending: PendingSave | None = None
    try:
        adapter_only = isinstance(model, PeftModel) and not settings.merge
        written = write(model, tokenizer, temporary, settings, base if adapter_only else None, sharding)
        info = manifest_info(model, settings, adapter_only, base)
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        with here.together("reading the model back"):
            if here.is_main:
                code = ran_own_code(plain, tokenizer)
                unknown = Expected(np.zeros(0), [], [], [], 0.0, 0.0, written.request)
                pending = begin_reading_back(PendingSave, folder, temporary, unknown, info, started, model_code=code)
        # Waited for here, and not when the save is: the model may train on meanwhile.
        expected = written.expected(here.agreed(lambda: _said(pending)))
        if pending is not None:
            pending.expect(expected)
        return SharedSave(folder, pending, here)
    except BaseException:  # an interrupt too: nobody else knows of this folder yet
        if pending is not None:
            pending.discard()
        if here.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _said(pending: PendingSave | None) -> list[int]:
    assert pending is not None
    return pending.said()


class SharedSave:
    """A folder on its way to its name; on rank 0 there is a `PendingSave` behind it."""

    def __init__(self, folder: Path, pending: PendingSave | None, here: World):
        self.folder = folder
        self._pending, self._here = pending, here

    def wait(self) -> ExportReport:
        """`PendingSave.wait`, on every rank."""

        def wait() -> ExportReport:
            assert self._pending is not None
            return self._pending.wait()

        return self._here.agreed(wait)

    def discard(self) -> None:
        """`PendingSave.discard`; not collective."""
        if self._pending is not None:
            self._pending.discard()


# ---------------------------------------------------------------- in parts


def write_model_in_parts(
    model: Any,
    tokenizer: Any,
    folder: Path,
    settings: ExportSettings,
    adapter_base: ModelSource | None,
    sharding: Sharding,
) -> SharedFiles:
    """The files of a causal LM that ranks share; see `SharedWriter`. The fresh process is asked as by `write_model`,
    and for the checksums of whole weights."""
    here, stop_ids = world(), stop_ids_of(settings, tokenizer)
    probe_ids = readback.tokenizer_ids(tokenizer, PROBE_TEXT)
    row = [*probe_ids, *spread_ids(model.get_input_embeddings().weight.shape[0])]
    checksums: dict[str, int] = {}
    with quiet(), eval_mode(model):
        source = saved = computing(twin(model, same))
        if isinstance(model, PeftModel) and not settings.merge:
            write_adapter_in_parts(model, folder, adapter_base, settings, here)
        else:
            saved = to_save(model, settings, sharding, source)
            checksums = write_weights(saved, folder, settings.max_shard_size, here)
    with here.together("writing the model's folder"), writing(folder):
        if here.is_main:
            write_beside_weights(folder, tokenizer, settings)

    def expected(said: list[int]) -> Expected:
        # A pass sends the whole model around, layer by layer: so both rows in one, and no text token by token.
        rows, rounding = [row, [*probe_ids, *said]], 0.0
        logits, text = _answers(source, rows)
        scale = float(np.abs(logits).max())
        if saved is not source and saved.dtype not in (torch.float32, torch.float64):
            # In a narrow dtype the file is compared with the rounded weights, as `write_model` does.
            exact = logits
            logits, text = _answers(computing(saved), rows)
            rounding = float(np.abs(logits - exact).max())
        tolerance = 1e-4 + (1e-5 if source.device.type == "cpu" else OTHER_DEVICE) * scale
        greedy, margins = readback.followed(text, said, stop_ids, settings.new_tokens)
        return Expected(logits, greedy, margins, probe_ids, tolerance, rounding, request)

    request = {**probe_request(settings, tokenizer, row, saved.dtype), "checksums": checksums}
    return SharedFiles(request, expected)


def _answers(model: Any, rows: list[list[int]]) -> list[np.ndarray]:
    """`readback.rows_logits` of a `computing` model. Collective."""
    with quiet():
        return readback.rows_logits(asked(model), rows)


def to_save(model: Any, settings: ExportSettings, sharding: Sharding, source: Any) -> Any:
    """The plain model whose weights are written, parked; `source` where it is that."""
    target = settings.dtype or model.dtype
    if target == model.dtype and not isinstance(model, PeftModel):
        return source

    def rounded(parameter: Tensor) -> Tensor:
        return parameter.detach().to(target) if parameter.is_floating_point() else parameter

    # Rounded last: a delta of LoRA is often smaller than half a step of bf16, and would vanish if it were added there.
    plain = folded_in_parts(model, sharding) if isinstance(model, PeftModel) else model
    return twin(plain, rounded if target != model.dtype else same)


def write_adapter_in_parts(
    model: PeftModel, folder: Path, base: ModelSource | None, settings: ExportSettings, here: World
) -> None:
    """`write_adapter` by rank 0, of what all gather."""
    shell, state = to_write_adapter(model)
    with here.together("writing the adapter"), writing(folder):
        if here.is_main:
            write_adapter(shell, folder, base, settings.dtype, state={n: t.cpu() for n, t in state.items()})
