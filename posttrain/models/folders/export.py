"""Saved means reloaded: a model folder that `transformers`, `peft` and vLLM load, proven before it has its name.

A save writes to a temporary folder. A fresh process loads that with plain `transformers` and `peft`, computes the
logits of a probe and generates. When both agree with the model in memory, the folder gets its manifest and its name.
The fresh process spends seconds on imports, so `begin_save` returns at once with a handle: go on with other work, or
begin further saves, and `wait()` for each.

    begin_save -> export_files (writes, says what is expected) -> readback (another process) -> wait -> manifest, name
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from peft import PeftModel

from posttrain.data.templates.template import first_difference
from posttrain.errors import ExportError
from posttrain.models.adapters.kinds import adapter_kind, merges
from posttrain.models.folders import readback
from posttrain.models.folders.export_files import Expected, ExportSettings, Writer, write_model
from posttrain.models.folders.fingerprint import base_fingerprint, weights_fingerprint
from posttrain.models.folders.manifest import publish, refuse_foreign, temporary_folder, write_manifest
from posttrain.models.folders.own_code import ran_own_code
from posttrain.models.folders.source import ModelSource
from posttrain.models.folders.tokenizers import check_vocabulary
from posttrain.runs.disk import writing
from posttrain.runs.owner import scratch_folder

READ_BACK_SECONDS = 900.0
MERGE_REMEDY = "for an adapter, try the other way (`merge: true` or `merge: false`)"
TEMPLATE_REMEDY = (
    "the tokenizer renders conversations by more than the template that is saved with it: train under a template of "
    "which all is text (`encoding: {template: chatml}`, or a file)"
)


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
        compared, text = ("scores", "") if self.text is None else ("logits", ", greedy text equal")
        return (
            f"saved {self.folder}: read back in a fresh process, {compared} within {self.largest_difference:.1e} "
            f"(allowed {self.tolerance:.1e}){text}"
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
        SourceError: the system refuses the files: a full disk, say.
    """
    settings = settings or ExportSettings()
    folder = Path(folder)
    require_savable(model, tokenizer, folder, settings)
    started = time.monotonic()
    # Beside the final name, so that the rename stays on one file system.
    temporary = temporary_folder(folder)
    try:
        adapter_only = isinstance(model, PeftModel) and not settings.merge
        with writing(folder):
            expected = (write or write_model)(model, tokenizer, temporary, settings, base if adapter_only else None)
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        code = ran_own_code(plain, tokenizer)
        info = manifest_info(model, settings, adapter_only, base)
        return begin_reading_back(PendingSave, folder, temporary, expected, info, started, model_code=code)
    except BaseException:  # an interrupt too: nobody else knows of this folder yet
        shutil.rmtree(temporary, ignore_errors=True)
        raise


P = TypeVar("P", bound="PendingSave")


def begin_reading_back(
    kind: type[P],
    folder: Path,
    temporary: Path,
    expected: Expected,
    info: dict[str, Any],
    started: float,
    *,
    model_code: bool,
) -> P:
    """Start the fresh process that loads what lies in `temporary`.

    Args:
        kind: compares its answer with `expected` and gives the folder its name.
        info: goes into the manifest.
        model_code: whether the process may run Python files of the folder.
    """
    # Anywhere else than the model, so that the manifest lists that alone.
    scratch = scratch_folder("readback")
    try:
        request = {**expected.request, "folder": str(temporary.resolve()), "model_code": model_code}
        (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
        process = _start(scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return kind(folder, temporary, scratch, process, expected, info, started)


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

    def said(self) -> list[int]:
        """The greedy text of the fresh process, once it has answered.

        Raises:
            ExportError: it could not load the folder.
        """
        answer, _ = self._answer()
        return list(answer["greedy"])

    def expect(self, expected: Expected) -> None:
        """In the place of what the save was begun with, for who has to hear `said` first."""
        self._expected = expected

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
            with writing(self.folder):
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
        if isinstance(self._process, subprocess.Popen) and self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _answer(self) -> tuple[dict[str, Any], np.ndarray]:
        try:
            code = self._process.wait(READ_BACK_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise self._refusal("it was not read back in time", f"no answer in {READ_BACK_SECONDS:.0f} s") from error
        if code != 0:
            words = (self._scratch / "errors.txt").read_text(encoding="utf-8", errors="replace").strip()
            # A traceback's last line names the error; those before it are about a folder that is gone in a moment.
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
        if answer.get("differing"):
            raise self._refusal(
                "it has other weights than were written",
                f"{len(answer['differing']):,} of {answer['compared']:,} tensors, {answer['differing'][0]} first",
            )
        # `not <=`, so that a NaN on either side is refused.
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
        # Equal logits say nothing of the template, and one that lost a token asks another question than training did.
        for ours, theirs in zip(expected.request["prompt_ids"], answer["prompt_ids"], strict=True):
            if ours != theirs:
                raise self._refusal(
                    "plain `transformers` builds other prompts than training had",
                    _describe_difference(ours, theirs),
                    TEMPLATE_REMEDY,
                )
        if not self._same_greedy_text(answer["greedy"]):
            raise self._refusal(
                "it says something else than the model in memory",
                f"ids {answer['greedy']} instead of {expected.greedy}",
            )
        return difference

    def _same_greedy_text(self, greedy: list[int]) -> bool:
        """Equal, or parted at a place where two tokens were as likely as rounding can tell."""
        expected = self._expected
        for index, (theirs, ours) in enumerate(zip(greedy, expected.greedy, strict=False)):
            if theirs != ours:  # what follows another token is another text, so only the first difference counts
                return expected.margins[index] <= expected.tolerance
        return len(greedy) == len(expected.greedy)

    def _refusal(self, problem: str, found: str, advice: str = MERGE_REMEDY) -> ExportError:
        return ExportError(
            f"the saved model was read back, and {problem}",
            where=self.folder,
            found=found,
            remedy="nothing was saved under this name, and the weights are still in memory or in the checkpoint; "
            + advice,
        )


def _describe_difference(ours: list[int], theirs: list[int] | str) -> str:
    """Where the ids of one prompt part, in few words."""
    if isinstance(theirs, str):
        return theirs
    at = first_difference(ours, theirs)
    return (
        f"{theirs[at : at + 8]} at token {at} instead of {ours[at : at + 8]}, of {len(theirs)} and {len(ours)} tokens"
    )


def require_savable(model: Any, tokenizer: Any, folder: Path, settings: ExportSettings) -> None:
    """
    Raises:
        ExportError: something else is there, or the adapter cannot be merged.
        ModelError: the tokenizer has ids without embeddings.
    """
    refuse_foreign(folder)
    check_vocabulary(model, tokenizer, folder)
    if settings.merge and not merges(model):
        raise ExportError(
            f"an adapter of kind {adapter_kind(model)} cannot be folded into the weights",
            where=folder,
            found="merge: true",
            remedy="save the adapter alone (`merge: false`)",
        )


def manifest_info(model: Any, settings: ExportSettings, adapter_only: bool, base: ModelSource | None) -> dict[str, Any]:
    """What a folder's manifest says beside its files. Collective for a model that ranks share."""
    saved_base = None
    if base is not None:
        saved_base = {"name": base.name, "origin": base.origin}
        # What `adapters.folders.check_base` compares when the adapter is loaded, maybe over a base that was changed.
        if adapter_only:
            saved_base |= {"fingerprint": base_fingerprint(model), "dtype": str(model.dtype)}
    return {
        "kind": "adapter" if adapter_only else "model",
        "weights_fingerprint": weights_fingerprint(model),
        "base": saved_base,
        "training": dict(settings.info),
    }


# ---------------------------------------------------------------- the fresh process


def _start(scratch: Path) -> subprocess.Popen[bytes]:
    # Offline: what the folder lacks must be missing there too, not quietly fetched from the hub.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # `transformers` copies a folder's own code there before it runs it; this folder is about to get another name.
    environment["HF_MODULES_CACHE"] = str(scratch / "modules")
    # -P: the modules beside readback.py must not shadow packages of the same name (gguf, tokenizers).
    command = [sys.executable, "-P", str(Path(readback.__file__)), str(scratch / "request.json"), "parent"]
    with (scratch / "errors.txt").open("wb") as errors:
        # The pipe is never written to: it closes when this process ends, and the other one ends with it.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, env=environment)
