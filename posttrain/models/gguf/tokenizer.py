"""A tokenizer as GGUF has it: tokens by id, their kinds, merges, and the name of how a text is cut into words.

llama.cpp knows the cutting by name only (`tokenizer.ggml.pre`), with its expressions in its source. A tokenizer of
another cutting would load, and encode some texts otherwise than in training; so it is recognised by its own
description, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import ExportError

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
AFTER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{WORDS}\p{{N}}{AFTER}"
LLAMA3 = rf"{WORDS}\p{{N}}{{1,3}}{AFTER}"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, as llama.cpp numbers them."""
PROBES = (
    "Hello! What can you do for me today?",
    "12 + 34 = 46, 3.14159, 1,000,000",
    "  two blanks,\ttabs\n\n\nand lines  ",
    "it's I'LL don't — “quotes” … 😀 naïve Größe",
    "你好，世界。 Привет мир",
    "def f(x):\n    return x**2  # code\n",
)
"""Texts on which the file's tokenizer must give the ids of the model's own."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Vocabulary(tokens=["<pad>", ...], kinds=[3, ...], merges=["h e", ...], cutting="smollm", adds_bos=True)"""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    cutting: str
    adds_bos: bool


def vocabulary_of(tokenizer: Any, rows: int, where: Path) -> Vocabulary:
    """
    Args:
        rows: of the model's embeddings; ids without a token are written as unused ones.

    Raises:
        ExportError: the tokenizer is no byte-level BPE, or cuts texts in a way that llama.cpp has no name for here.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = {} if backend is None else json.loads(backend.to_str())
    model = described.get("model", {})
    if model.get("type") != "BPE":
        raise _refused(where, f"a tokenizer of kind {model.get('type') or type(tokenizer).__name__}", "byte-level BPE")
    cutting = cutting_of(described, where)
    added = {int(token["id"]): token for token in described.get("added_tokens", [])}
    by_id = {number: text for text, number in model["vocab"].items()}
    by_id |= {number: token["content"] for number, token in added.items()}
    if max(by_id) >= rows:
        raise _refused(where, f"id {max(by_id):,}", f"ids below the {rows:,} rows of the embeddings")
    kinds = []
    for number in range(rows):
        token = added.get(number)
        if number not in by_id:
            kinds.append(UNUSED)
        elif token is not None:
            kinds.append(CONTROL if token["special"] else USER_DEFINED)
        else:
            kinds.append(NORMAL)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    first = tokenizer("a")["input_ids"][:1]
    adds_bos = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    return Vocabulary([by_id.get(number, f"[PAD{number}]") for number in range(rows)], kinds, merges, cutting, adds_bos)


def cutting_of(described: Mapping[str, Any], where: Path) -> str:
    """llama.cpp's name for how the tokenizer cuts a text into words, of its description in tokenizer.json."""
    before = described.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before]) if before.get("type") == "Sequence" else [before]
    form = [_form(step) for step in steps]
    known = {
        ("bytes and words",): "gpt-2",
        ("digits", "bytes and words"): "smollm",
        (QWEN2, "bytes"): "qwen2",
        (LLAMA3, "bytes"): "llama-bpe",
    }
    found = known.get(tuple(form))
    normaliser = (described.get("normalizer") or {}).get("type")
    if found is None or (normaliser is not None and (normaliser, found) != ("NFC", "qwen2")):
        text = ", ".join(form) if normaliser is None else f"normaliser {normaliser}; {', '.join(form)}"
        raise _refused(where, f"it cuts texts by: {text}", f"as one of {', '.join(known.values())}")
    return found


def _form(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes and words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = str(step.get("pattern", {}).get("Regex", step.get("pattern")))
        return "digits" if pattern in (r"\d", r"\p{N}") else pattern
    return str(kind)


def _refused(where: Path, found: str, expected: str) -> ExportError:
    return ExportError(
        "this tokenizer cannot be written as GGUF",
        where=where,
        found=found,
        expected=expected,
        remedy="export it as safetensors (`--to merged`), and convert that with llama.cpp's convert_hf_to_gguf.py",
    )


def write_vocabulary(writer: Any, vocabulary: Vocabulary, tokenizer: Any, stop_ids: tuple[int, ...]) -> None:
    """The keys `tokenizer.*`. The first stop is the file's eos, the second its end of turn: llama.cpp ends at both."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.cutting)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if stop_ids:
        writer.add_eos_token_id(stop_ids[0])
    if len(stop_ids) > 1:
        writer.add_eot_token_id(stop_ids[1])
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    template = tokenizer.chat_template
    if isinstance(template, str):
        writer.add_chat_template(template)
