"""A whole model as one GGUF file, read back and compared tensor by tensor and text by text before it has its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrain.errors import ExportError
from posttrain.models.folders.gguf import read_gguf, require_gguf
from posttrain.models.folders.readback import probe_logits
from posttrain.models.gguf.architectures import architecture_of, as_written, write_settings
from posttrain.models.gguf.tokenizer import PROBES, vocabulary_of, write_vocabulary

DTYPES = ("f32", "f16", "bf16", "q8_0")
FILE_TYPES: Mapping[str, str] = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
BLOCK = 32
"""Weights that share a scale in q8_0."""


@dataclass(frozen=True, slots=True)
class GgufReport:
    """GgufReport(Path("out/model-q8_0.gguf"), "q8_0", bytes=..., tensors=38, largest_difference=3.1e-3,
    largest_logit_difference=0.02)"""

    path: Path
    dtype: str
    bytes: int
    tensors: int
    largest_difference: float
    """Between a weight of the model and the one that was read back; 0 in f32."""
    largest_logit_difference: float
    """Over a probe, between the model and what `transformers` reads from the file."""

    def __str__(self) -> str:
        return (
            f"saved {self.path} ({self.bytes / 1e6:,.1f} MB): read back, {self.tensors} tensors as they were rounded "
            f"(weights within {self.largest_difference:.1e}, logits within {self.largest_logit_difference:.1e}), "
            "the tokenizer gives equal ids"
        )


def write_gguf(
    model: Any, tokenizer: Any, path: Path, *, dtype: str = "f16", stop_ids: tuple[int, ...] = (), name: str = ""
) -> GgufReport:
    """Write a causal LM in fp32 on the CPU, as a file that llama.cpp loads.

    Matrices are stored in `dtype`; norms and biases in f32, as llama.cpp keeps them. Of q8_0, a matrix whose rows are
    no whole number of 32 weights is stored in f16.

    Args:
        dtype: f32, f16, bf16, or q8_0: 8 bits and a scale for each 32 weights.
        stop_ids: what ends an answer; llama.cpp knows two.
        name: what llama.cpp shows.

    Raises:
        ExportError: the architecture or the tokenizer is none that is written, a weight is beyond f16's range, or what
            was read back is another model.
        MissingExtraError: the package `gguf` is not installed.
    """
    require_gguf(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing.gguf")
    try:
        _write(model, tokenizer, temporary, dtype, stop_ids, name or path.stem)
        report = _read_back(model, tokenizer, temporary, path, dtype)
        temporary.replace(path)
        return report
    finally:
        temporary.unlink(missing_ok=True)


def _write(model: Any, tokenizer: Any, path: Path, dtype: str, stop_ids: tuple[int, ...], name: str) -> None:
    import gguf

    config = model.config
    architecture = architecture_of(config, path)
    vocabulary = vocabulary_of(tokenizer, config.vocab_size, path)
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    write_settings(writer, config)
    write_vocabulary(writer, vocabulary, tokenizer, stop_ids)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.constant], config.num_hidden_layers)
    for own, weight in weights_of(model):
        written = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ExportError(
                "a tensor of the model has no place in the file",
                where=path,
                found=own,
                expected=f"the tensors of {architecture.name}",
                remedy="export it as safetensors (`--to merged`)",
            )
        values = as_written(own, weight, architecture, config).numpy()
        kind = gguf.GGMLQuantizationType[kind_of(values.shape, dtype).upper()]
        writer.add_tensor(written, gguf.quants.quantize(_in_range(values, kind.name, own, path), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights_of(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor once, in fp32; tied embeddings stand for the output too, as llama.cpp takes them."""
    tied = bool(model.config.tie_word_embeddings)
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor.detach().to(torch.float32).contiguous()


def kind_of(shape: tuple[int, ...], dtype: str) -> str:
    """How a tensor is stored: kind_of((64,), "q8_0") -> "f32"."""
    if len(shape) < 2:
        return "f32"
    return "f16" if dtype == "q8_0" and shape[-1] % BLOCK else dtype


def _in_range(values: np.ndarray, kind: str, name: str, path: Path) -> np.ndarray:
    largest = float(np.abs(values).max(initial=0.0))
    # `not <=`: a NaN is refused too.
    if not largest <= (float(np.finfo(np.float16).max) if kind in ("F16", "Q8_0") else float(np.finfo(np.float32).max)):
        raise ExportError(
            f"a weight does not fit into {kind.lower()}",
            where=path,
            found=f"{name}: {largest:.3g}",
            remedy="choose `--dtype bf16` or f32",
        )
    return values


# ---------------------------------------------------------------- read back


def _read_back(model: Any, tokenizer: Any, temporary: Path, path: Path, dtype: str) -> GgufReport:
    read = read_gguf(temporary)
    theirs = read.model.state_dict()
    largest = 0.0
    count = 0
    for name, weight in weights_of(model):
        found = theirs.get(name)
        if found is None or found.shape != weight.shape:
            raise _differs(path, f"{name} of {None if found is None else tuple(found.shape)}", tuple(weight.shape))
        error = (found.to(torch.float32) - weight).abs()
        allowed = allowed_error(weight, kind_of(tuple(weight.shape), dtype))
        if not bool((error <= allowed).all()):
            raise _differs(path, f"{name}: a weight is off by {float(error.max()):.3g}", "the rounding of " + dtype)
        largest, count = max(largest, float(error.max())), count + 1
    for text in (*PROBES, *_rendered(tokenizer)):
        ours, other = (one(text, add_special_tokens=False)["input_ids"] for one in (tokenizer, read.tokenizer))
        if ours != other:
            raise _differs(path, f"{text[:40]!r} as {other[:12]}", ours[:12])
    row = list(tokenizer(PROBES[0])["input_ids"])
    logits = float(np.abs(probe_logits(read.model, row) - probe_logits(model, row)).max())
    return GgufReport(path, dtype, temporary.stat().st_size, count, largest, logits)


def allowed_error(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """By how much each weight may be rounded: half a step of the format at its size.

    q8_0 stores round(w / d) with d = max |w| / 127 of its block, and d itself in f16.
    """
    if kind == "f32":
        return torch.zeros_like(weight)
    if kind == "q8_0":
        blocks = weight.reshape(-1, BLOCK).abs().amax(dim=1, keepdim=True)
        # Half a step of the rounding; 2^-11 of the largest for d's own, and what is below f16's smallest number.
        return (blocks * (0.5 / 127 + 2**-11) + 127 * 2**-25).expand(-1, BLOCK).reshape(weight.shape)
    bits, smallest = (11, 2.0**-25) if kind == "f16" else (8, 2.0**-134)
    return weight.abs() * 2.0**-bits + smallest


def _rendered(tokenizer: Any) -> list[str]:
    """A conversation as the template writes it: special tokens must be found inside a text."""
    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "Hi, 12?"}, {"role": "assistant", "content": "It's 12."}]
    return [str(tokenizer.apply_chat_template(turns, tokenize=False))]


def _differs(path: Path, found: object, expected: object) -> ExportError:
    return ExportError(
        "the GGUF file was read back as another model",
        where=path,
        found=found,
        expected=expected,
        remedy="nothing was saved under this name; export it as safetensors (`--to merged`)",
    )
