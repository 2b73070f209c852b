"""A model in the form that somebody else wants: whole, in bf16, as an adapter, or as GGUF with a Modelfile.

    export_model("runs/mine/dpo/model", Path("out"), to="gguf", dtype="q8_0")

Every form is read back and compared before it has its name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from posttrain.data.speech import Speech
from posttrain.errors import ExportError
from posttrain.models.adapters.facts import adapter_config
from posttrain.models.adapters.folding import merge_in_place
from posttrain.models.folders.export import save_model
from posttrain.models.folders.export_files import ExportSettings
from posttrain.models.folders.hub import Say
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.folders.manifest import read_manifest, write_manifest
from posttrain.models.folders.source import ModelSource, resolve
from posttrain.models.gguf.modelfile import modelfile
from posttrain.models.gguf.tokenizer import vocabulary_of
from posttrain.models.gguf.write import write_gguf
from posttrain.models.reward.folders import require_policy
from posttrain.runs.disk import writing
from posttrain.runs.vllm_commands import Served, serve_adapter, serve_model
from posttrain.sampling import SamplingDistribution

Form = Literal["merged", "bf16", "adapter", "gguf"]
DTYPES: Mapping[str, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Exported:
    """Exported(Path("out"), lines=("saved out: read back ...",), commands=("vllm serve out",))"""

    folder: Path
    lines: tuple[str, ...]
    """What was written and how it was proven, and what is to be known."""
    commands: tuple[str, ...]
    """That use it."""


def export_model(
    name_or_path: str | Path, out: Path, *, to: Form, dtype: str | None = None, say: Say | None = None
) -> Exported:
    """Write a model in another form into the folder `out`.

    Args:
        to: `merged`: a whole model in safetensors, its adapter folded in; `bf16`: the same in bfloat16; `adapter`: an
            adapter alone, beside the name of its base; `gguf`: one file for llama.cpp, and a Modelfile for Ollama.
        dtype: f32, f16 or bf16 (merged: as the folder has it, unless given), of gguf also q8_0 (f16 unless given).

    Raises:
        ModelError, ConfigError: as `load`; the folder is a reward model.
        ExportError: the form cannot be had of this model, or what was read back is another one.
    """
    source = resolve(name_or_path, say=say)
    require_policy(source)
    is_adapter = source.layout == "adapter"
    if to == "adapter" and not is_adapter:
        raise ExportError(
            "this folder holds a whole model, and no adapter",
            where=source.folder,
            remedy="train with `export: {merge: false}` to keep the adapter, or choose `--to merged`",
        )
    if to == "gguf":
        return _gguf(load(name_or_path, say=say), out, dtype or "f16")
    loaded = load(name_or_path, dtype=_stored_dtype(source, torch.float32), say=say)
    target = torch.bfloat16 if to == "bf16" else None if dtype is None or to == "adapter" else DTYPES[dtype]
    settings = ExportSettings(
        merge=to != "adapter",
        speech=loaded.speech,
        stop_ids=loaded.speech.stop_ids,
        sampling=_proposed(loaded.speech),
        dtype=target,
        info={"exported_from": loaded.source.name},
    )
    report = save_model(loaded.model, loaded.tokenizer, out, settings, base=loaded.base)
    lines = [str(report)]
    if report.rounding:
        lines.append(f"rounding moved a logit by up to {report.rounding:.1e}")
    served = _served(out, loaded, to)
    if served.why_not is not None:
        lines.append(served.why_not)
    return Exported(out, tuple(lines), () if served.command is None else (served.command,))


def _stored_dtype(source: ModelSource, otherwise: torch.dtype) -> torch.dtype:
    """fp32 for an adapter, which is folded in it; of a whole model its own, so that nothing is rounded or blown up."""
    if source.layout != "model":
        return otherwise
    named = json.loads((source.folder / "config.json").read_text(encoding="utf-8")).get("dtype")
    found = getattr(torch, str(named), None)
    return found if isinstance(found, torch.dtype) else otherwise


def _proposed(speech: Speech) -> SamplingDistribution:
    fields = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return SamplingDistribution(**{name: speech.sampling[name] for name in fields if name in speech.sampling})


def _gguf(loaded: LoadedModel, out: Path, dtype: str) -> Exported:
    """The file, the Modelfile, and a manifest of both."""
    model = merge_in_place(loaded.model) if loaded.base is not loaded.source else loaded.model
    _require_free(out)
    speech, tokenizer = loaded.speech, loaded.tokenizer
    name = f"model-{dtype}.gguf"
    stops = speech.stop_ids or ((tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ())
    with writing(out):
        report = write_gguf(model, tokenizer, out / name, dtype=dtype, stop_ids=tuple(stops), name=loaded.source.name)
        adds_bos = vocabulary_of(tokenizer, model.config.vocab_size, out).adds_bos
        text, why = modelfile(
            name,
            tokenizer,
            adds_bos=adds_bos,
            stop_texts=[tokenizer.decode([stop]) for stop in stops],
            sampling=speech.sampling,
            context=model.config.max_position_embeddings,
        )
        (out / "Modelfile").write_text(text, encoding="utf-8")
        write_manifest(out, {"kind": "gguf", "exported_from": loaded.source.name, "dtype": dtype})
    lines = [str(report)]
    if len(stops) > 2:
        lines.append(f"llama.cpp ends at two tokens, and the model at {len(stops)}: the Modelfile has all of them")
    if why is not None:
        lines.append(f"the Modelfile has no TEMPLATE: {why}")
    commands = (
        f"ollama create mine -f {shlex.quote(str(out / 'Modelfile'))}",
        f"llama-server -m {shlex.quote(str(out / name))} --jinja",
    )
    return Exported(out, tuple(lines), commands)


def _require_free(out: Path) -> None:
    """An earlier export of ours is replaced file by file, and nothing else ever is."""
    if out.is_dir() and any(out.iterdir()):
        manifest = read_manifest(out)
        if manifest is None or manifest.get("kind") != "gguf":
            raise ExportError(
                "something else is there",
                where=out,
                found="a folder that holds other files",
                remedy="export into another folder",
            )


def _served(folder: Path, loaded: LoadedModel, to: Form) -> Served:
    if to != "adapter":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Served(serve_model(str(folder), dtype=str(config.get("dtype"))))
    config = adapter_config(folder)
    base = loaded.base.loadable_name
    return serve_adapter(base, str(folder), config, {path.name for path in folder.iterdir()})
