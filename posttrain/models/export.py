"""Saved means reloaded: a model folder that `transformers`, `peft` and vLLM load, proven before it has its name.

A save writes to a temporary folder. A fresh process loads that with plain `transformers` and `peft`, computes the
logits of a probe and generates. When both agree with the model in memory, the folder gets its manifest and its name.
The fresh process spends seconds on imports, so `begin_save` returns at once with a handle: go on with other work, or
begin further saves, and `wait()` for each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig

from posttrain.errors import ExportError
from posttrain.models import readback
from posttrain.models.adapters import adapter_kind, merges
from posttrain.models.fingerprint import base_fingerprint, weights_fingerprint
from posttrain.models.loading import ModelSource
from posttrain.models.manifest import publish, refuse_foreign, temporary_folder, write_manifest
from posttrain.models.merging import cpu_copy, merged_copy, state_ties
from posttrain.models.quantised import is_quantised
from posttrain.models.quiet import quiet
from posttrain.models.tokenizers import check_vocabulary, save_tokenizer
from posttrain.rollout.sampling import SamplingDistribution

PROBE_TEXT = "Hello! What can you do for me today?"
NEW_TOKENS = 16
READ_BACK_SECONDS = 900.0
QUANTISED_SHARE = 0.25
"""Of the largest logit: what computing in 4 or 8 bits may change. bitsandbytes measures 2% to 3% on a random model."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What a save is to contain: ExportSettings(merge=True, stop_ids=(2,))."""

    merge: bool = True
    """Fold the adapter into the weights; False saves the adapter alone, beside the name of its base."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end a turn, for `generation_config.json`; the tokenizer's eos if empty."""
    sampling: SamplingDistribution = field(default_factory=SamplingDistribution)
    """What the folder proposes to whoever serves it; by default the plain distribution that was trained."""
    dtype: torch.dtype | None = None
    """Of the saved weights; None keeps the model's. A narrower one rounds, and the report says by how much."""
    max_shard_size: str = "5GB"
    info: Mapping[str, Any] = field(default_factory=dict)
    """Goes into the manifest as `training`."""
    new_tokens: int = NEW_TOKENS


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A save that was read back: ExportReport(Path("runs/mine/dpo/model"), ..., largest_difference=3.1e-6, ...)."""

    folder: Path
    files: Mapping[str, Mapping[str, Any]]
    """{"model.safetensors": {"bytes": 538090408, "sha256": "..."}, ...}"""
    merged: bool
    largest_difference: float
    """Between the logits in memory and those of the fresh process, over the probe."""
    tolerance: float
    rounding: float
    """The largest logit difference that saving (or merging) in a narrow dtype brought by itself; 0 in fp32."""
    text: str | None
    """What the fresh process generated; None of a reward model, which says nothing."""
    seconds: float

    def __str__(self) -> str:
        compared, rest = ("scores", "") if self.text is None else ("logits", ", greedy text equal")
        return (
            f"saved {self.folder}: read back in a fresh process, {compared} within {self.largest_difference:.1e} "
            f"(allowed {self.tolerance:.1e}){rest}"
        )


def save_model(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    settings: ExportSettings | None = None,
    *,
    base: ModelSource | None = None,
) -> ExportReport:
    """`begin_save(...).wait()`."""
    return begin_save(model, tokenizer, folder, settings, base=base).wait()


def begin_save(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    settings: ExportSettings | None = None,
    *,
    base: ModelSource | None = None,
    write: Writer | None = None,
) -> PendingSave:
    """Write the model beside `folder` and start reading it back; `wait()` on the result gives it its name.

    All that is needed of the model is taken before this returns: it may train on while the save is pending.

    Args:
        model: a PreTrainedModel, or a PeftModel.
        base: where the weights under the adapter come from (`LoadedModel.base`); needed for an adapter alone.
        write: puts the files there and says what the fresh process must answer, where the model is not a causal LM.

    Raises:
        ExportError: the folder holds something that posttrain did not write, an adapter alone cannot be loaded without
            what is in memory, an adapter cannot be merged, or merging changed what the model computes.
        ModelError: the tokenizer has ids without embeddings.
    """
    settings = settings or ExportSettings()
    folder = Path(folder)
    refuse_foreign(folder)
    check_vocabulary(model, tokenizer, folder)
    if settings.merge and not merges(model):
        raise ExportError(
            f"an adapter of kind {adapter_kind(model)} cannot be folded into the weights",
            where=folder,
            found="merge: true",
            remedy="save the adapter alone (`merge: false`)",
        )
    started = time.monotonic()
    temporary = temporary_folder(folder)
    scratch = Path(tempfile.mkdtemp(prefix="posttrain-readback-"))
    try:
        adapter_only = isinstance(model, PeftModel) and not settings.merge
        expected = (write or _write)(model, tokenizer, temporary, settings, base if adapter_only else None)
        request = {**expected.request, "folder": str(temporary.resolve())}
        (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
        process = _start(scratch)
        info = _info(model, settings, adapter_only, base)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return PendingSave(folder, temporary, scratch, process, expected, info, started)


class PendingSave:
    """A folder on its way to its name; made by `begin_save`."""

    def __init__(
        self,
        folder: Path,
        temporary: Path,
        scratch: Path,
        process: subprocess.Popen[bytes],
        expected: Expected,
        info: dict[str, Any],
        started: float,
    ):
        self.folder = folder
        self._temporary = temporary
        self._scratch = scratch
        self._process = process
        self._expected = expected
        self._info = info
        self._started = started

    def wait(self) -> ExportReport:
        """Block until the folder has been read back, then give it its name.

        Raises:
            ExportError: it could not be loaded, or computes or says something else; the largest difference is named
                and nothing is left behind.
        """
        try:
            answer, logits = self._answer()
            difference = self._compare(answer, logits)
            read_back = {"largest_logit_difference": difference, "text": answer["text"]}
            manifest = write_manifest(self._temporary, {**self._info, "read_back": read_back})
            publish(self._temporary, self.folder)
        finally:
            self.discard()
        return ExportReport(
            folder=self.folder,
            files=manifest["files"],
            merged=self._info["kind"] == "model",
            largest_difference=difference,
            tolerance=self._expected.tolerance,
            rounding=self._expected.rounding,
            text=answer["text"],
            seconds=time.monotonic() - self._started,
        )

    def discard(self) -> None:
        """Stop reading back and remove what was written; nothing happens to a save that has its name."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _answer(self) -> tuple[dict[str, Any], np.ndarray]:
        try:
            code = self._process.wait(READ_BACK_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise self._refusal("it was not read back in time", f"no answer in {READ_BACK_SECONDS:.0f} s") from error
        if code != 0:
            words = (self._scratch / "errors.txt").read_text(encoding="utf-8", errors="replace").strip()
            last = words.splitlines()[-1] if words else f"the process ended with {code}"
            raise self._refusal("it cannot be loaded in a fresh process", last)
        answer = json.loads((self._scratch / "answer.json").read_text(encoding="utf-8"))
        return answer, np.load(self._scratch / "logits.npy")

    def _compare(self, answer: dict[str, Any], logits: np.ndarray) -> float:
        expected = self._expected
        if logits.shape != expected.logits.shape:
            raise self._refusal(
                "it has another vocabulary", f"logits of {logits.shape} instead of {expected.logits.shape}"
            )
        difference = float(np.abs(logits - expected.logits).max())
        if not difference <= expected.tolerance:
            raise self._refusal(
                "it computes something else than the model in memory",
                f"largest logit difference {difference:.3g}, allowed {expected.tolerance:.3g}",
            )
        if answer["probe_ids"] != expected.probe_ids:
            raise self._refusal(
                "its tokenizer or chat template encodes a message differently",
                f"{answer['probe_ids'][:12]} instead of {expected.probe_ids[:12]}",
            )
        if not self._says_the_same(answer["greedy"]):
            raise self._refusal(
                "it says something else than the model in memory",
                f"ids {answer['greedy']} instead of {expected.greedy}",
            )
        return difference

    def _says_the_same(self, greedy: list[int]) -> bool:
        """Equal, or parted at a place where two tokens were as likely as rounding can tell."""
        expected = self._expected
        for place, (theirs, ours) in enumerate(zip(greedy, expected.greedy, strict=False)):
            if theirs != ours:
                return expected.leads[place] <= expected.tolerance
        return len(greedy) == len(expected.greedy)

    def _refusal(self, problem: str, found: str) -> ExportError:
        return ExportError(
            f"the saved model was read back, and {problem}",
            where=self.folder,
            found=found,
            remedy="nothing was saved under this name, and the weights are still in memory or in the checkpoint; "
            "for an adapter, try the other way (`merge: true` or `merge: false`)",
        )


# ---------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class Expected:
    """What the fresh process is asked, and what it must answer."""

    logits: np.ndarray
    greedy: list[int]
    leads: list[float]
    """How far the most likely token led the second at each place, in logits."""
    probe_ids: list[int]
    tolerance: float
    rounding: float
    request: dict[str, Any]


Writer = Callable[[Any, Any, Path, ExportSettings, ModelSource | None], Expected]
"""(model, tokenizer, folder, settings, base of an adapter alone) -> what the fresh process must answer."""


def _write(
    model: Any, tokenizer: Any, folder: Path, settings: ExportSettings, adapter_base: ModelSource | None
) -> Expected:
    stop_ids = list(settings.stop_ids) or ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])
    probe_ids = readback.tokenizer_ids(tokenizer, PROBE_TEXT)
    row = [*probe_ids, *_spread_ids(model)]
    with quiet(), eval_mode(model):
        # On the CPU, where the fresh process computes: another device rounds differently.
        source = on_cpu(model)
        logits = readback.probe_logits(source, row)
        tolerance = 1e-4 + 1e-5 * float(np.abs(logits).max())
        if isinstance(source, PeftModel) and not settings.merge:
            saved, rounding = source, 0.0
            write_adapter(source, folder, adapter_base, settings.dtype)
        else:
            saved, logits, rounding = _whole(source, settings.dtype, row, logits)
            if is_quantised(_under(model)):
                rounding = max(rounding, _dequantising(model, row, logits, folder))
            saved.save_pretrained(folder, max_shard_size=settings.max_shard_size)
        speaker = saved if rounding else source
        greedy, leads = readback.greedy_ids(speaker, probe_ids, stop_ids, settings.new_tokens)
    save_tokenizer(tokenizer, folder)
    _write_generation_config(folder, tokenizer, stop_ids, settings.sampling)
    request = {
        "row": row,
        "prompt": probe_ids,
        "stop_ids": stop_ids,
        "new_tokens": settings.new_tokens,
        "text": PROBE_TEXT,
        "dtype": str(saved.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    return Expected(logits, greedy, leads, probe_ids, tolerance, rounding, request)


def on_cpu(model: Any) -> Any:
    """The model where the fresh process computes; weights in 4 or 8 bits as the full ones that they stand for."""
    if is_quantised(_under(model)):
        return merged_copy(model)
    return model if model.device.type == "cpu" else cpu_copy(model)


def _under(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _dequantising(model: Any, row: list[int], logits: np.ndarray, folder: Path) -> float:
    """How far the full weights are from the quantised ones, which compute in fewer bits; weights that were read wrongly
    are much further."""
    own = readback.probe_logits(model, row)
    apart, allowed = float(np.abs(own - logits).max()), QUANTISED_SHARE * float(np.abs(own).max())
    if not apart <= allowed:
        raise ExportError(
            "the full weights compute something else than the quantised ones that were trained over",
            where=folder,
            found=f"largest logit difference {apart:.3g}, allowed {allowed:.3g}",
            remedy="the checkpoint holds the adapter; train with `kind: lora` if this stays",
        )
    return apart


def _whole(model: Any, dtype: torch.dtype | None, row: list[int], logits: np.ndarray) -> tuple[Any, np.ndarray, float]:
    """The plain model to save, the logits it must read back with, and what rounding in its dtype changed."""
    target = dtype or model.dtype
    if target == model.dtype and not isinstance(model, PeftModel):
        state_ties(model)
        return model, logits, 0.0
    saved = merged_copy(model, target)
    if target == model.dtype and target in (torch.float32, torch.float64):
        return saved, logits, 0.0  # the fresh process shows whether merging changed anything
    rounded = readback.probe_logits(saved, row)
    return saved, rounded, float(np.abs(rounded - logits).max())


def _spread_ids(model: Any) -> list[int]:
    """Ids from all over the vocabulary, the last rows among them: tokens that were added later lie there."""
    rows = model.get_input_embeddings().weight.shape[0]
    spread = np.linspace(0, rows - 1, num=min(12, rows), dtype=int).tolist()
    return [*spread, *range(max(0, rows - 4), rows)]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def write_adapter(model: PeftModel, folder: Path, base: ModelSource | None, dtype: torch.dtype | None) -> None:
    """The adapter's own files, with a base that plain `peft` finds: a hub id or an absolute path."""
    merged_instead = "save merged (`merge: true`)"
    if dtype not in (None, model.dtype):
        raise ExportError(
            "an adapter alone keeps its own precision",
            where=folder,
            found=f"{dtype} was asked for",
            remedy=merged_instead,
        )
    if base is None or base.layout != "model":
        raise ExportError(
            "an adapter alone needs a base that others can load",
            where=folder,
            found="no base" if base is None else f"a base of kind {base.layout}",
            remedy=merged_instead,
        )
    rows = model.get_input_embeddings().weight.shape[0]
    of_base = json.loads((base.folder / "config.json").read_text(encoding="utf-8")).get("vocab_size", rows)
    if rows != of_base:
        raise ExportError(
            "tokens were added to the base, and an adapter alone does not carry their embeddings",
            where=folder,
            found=f"{rows:,} rows in memory, {of_base:,} in {base.folder}",
            remedy=merged_instead,
        )
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form to fill in, not a description
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base.loadable_name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_generation_config(
    folder: Path, tokenizer: Any, stop_ids: Sequence[int], sampling: SamplingDistribution
) -> None:
    """Stop ids and sampling for whoever serves the folder; vLLM and transformers both read them here.

    Every field is written, because a field left out means something else in each engine: without `top_k`,
    `transformers` cuts to the 50 best.
    """
    drawn = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p,
    }
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(stop_ids), None)
    config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids[0] if len(stop_ids) == 1 else list(stop_ids) or None,
        pad_token_id=pad,
        do_sample=not sampling.is_greedy,
        repetition_penalty=sampling.repetition_penalty,
        **({} if sampling.is_greedy else drawn),
    )
    with quiet():
        config.save_pretrained(folder)


def _info(model: Any, settings: ExportSettings, adapter_only: bool, base: ModelSource | None) -> dict[str, Any]:
    under = None
    if base is not None:
        under = {"name": base.name, "origin": base.origin}
        if adapter_only:
            under |= {"fingerprint": base_fingerprint(model), "dtype": str(model.dtype)}
    return {
        "kind": "adapter" if adapter_only else "model",
        "weights_fingerprint": weights_fingerprint(model),
        "base": under,
        "training": dict(settings.info),
    }


# ---------------------------------------------------------------- the fresh process


def _start(scratch: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # -P: the modules beside readback.py must not shadow packages of the same name (gguf, tokenizers).
    command = [sys.executable, "-P", str(Path(readback.__file__)), str(scratch / "request.json")]
    with (scratch / "errors.txt").open("wb") as errors:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment)
