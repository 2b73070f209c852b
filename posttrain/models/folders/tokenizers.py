"""A model's own tokenizer: loaded as it is, held against the model's vocabulary, saved so that other tools read it.

The encoder (posttrain.data.encode) works on what is loaded here, so every id of training comes from the folder's files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from posttrain.errors import ModelError
from posttrain.models.folders.own_code import code_runs, remedy_of
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.weight_files import GET_AGAIN

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
LOADER_KEYS = ("is_local", "local_files_only", "gguf_file", "_commit_hash")
"""How a tokenizer was loaded, which `save_pretrained` writes down as if it were a property of it."""
CLASS_OF_5, CLASS_OF_4 = "TokenizersBackend", "PreTrainedTokenizerFast"
"""transformers 5 renamed the class of all fast tokenizers. It reads both names; engines on transformers 4, only the
second."""


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer as it is: no token is added, and a missing pad token stays missing (nothing here pads)."""
    if not has_tokenizer(folder):
        raise ModelError(
            "the folder holds no tokenizer",
            where=folder,
            expected="one of " + ", ".join(TOKENIZER_FILES),
            remedy="save the model's own tokenizer into the folder; another one has other ids",
        )
    model_code = code_runs(folder)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=model_code)
    except Exception as error:  # every tokenizer's code raises its own
        raise ModelError(
            "the tokenizer cannot be read",
            where=folder,
            found=f"{type(error).__name__}: {error}",
            remedy=remedy_of(folder, GET_AGAIN),
        ) from error


def check_vocabulary(model: Any, tokenizer: Any, where: object) -> None:
    """Every id that the tokenizer can produce has an embedding, and an output.

    More rows than tokens is common (rows are padded to a multiple of 64 or 128) and harmless.

    Raises:
        ModelError: naming the tokens without a row.
    """
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    # Both ends: an id without an embedding reads out of bounds on CUDA (an assertion that kills the process), and one
    # without an output can be read and never said. A reward model has no outputs over the vocabulary.
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    rows = min(end.weight.shape[0] for end in ends)
    beyond = sorted(index for index in tokens if index >= rows)
    if beyond:
        raise ModelError(
            "the tokenizer has more tokens than the model has embeddings",
            where=where,
            found=f"{rows:,} rows, ids up to {beyond[-1]:,}: " + ", ".join(repr(tokens[index]) for index in beyond[:8]),
            remedy="use the tokenizer that belongs to these weights, or resize the model's embeddings and train them",
        )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers 4, 5 and vLLM read them."""
    with quiet():
        tokenizer.save_pretrained(folder)
    # After saving, for no argument of `save_pretrained` leaves these out.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in LOADER_KEYS}
    if settings.get("tokenizer_class") == CLASS_OF_5:
        settings["tokenizer_class"] = CLASS_OF_4
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
