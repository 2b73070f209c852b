"""Tokens that a model did not have: cut out of text by its tokenizer, and a row for each at both ends of the model.

    new = with_new_tokens(tokenizer, [NewToken(text="<tool>")])       # new.tokenizer is a copy
    add_rows(model, new)                                             # in place; the rows that were there stay

The row of a new token begins as the mean of the rows of its pieces, that is of the tokens that its text was cut into
before, in the input embeddings and in the output projection apart: the model reads it as it read the text, on average,
and gives it a logit between those of its pieces. A row of noise would get a logit of its own at every place of every
text; Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models", bounds what the mean of all rows
does to the distribution, and the pieces' mean is what vocabularies are commonly extended with. A text of which the old
tokenizer knows no piece takes the mean of all rows.

Rows that pad the vocabulary (Qwen has some hundred) are taken first. Where they do not suffice, the number of rows
grows to the next number that is padded alike; the rows that then pad it are the mean of those that did, which
training has made improbable.

`loading` adds what a stage asks for; `for_adapter` gives a base the rows that somebody's adapter was trained with.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken
from torch import Tensor

from posttrain.config.new_tokens import NewToken
from posttrain.errors import ConfigError
from posttrain.models.adapters.facts import ADAPTER_CONFIG
from posttrain.models.adapters.folding import record_tying
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.source import ModelSource

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MULTIPLES = (256, 128, 64, 32, 16, 8)
"""What vocabularies are padded to, for the hardware's sake."""


@dataclass(frozen=True, slots=True)
class NewTokens:
    """NewTokens(tokenizer, old_tokens=1536, pieces={1536: (33, 87, 35)}, texts={1536: "<tool>"}, known=("</s>",))"""

    tokenizer: Any
    """Cuts the new tokens out of text; a copy where anything was added."""
    old_tokens: int
    """One more than the highest id before; the model's rows from there on padded the vocabulary."""
    pieces: Mapping[int, tuple[int, ...]]
    """Each new id, and the ids that its text was cut into before."""
    texts: Mapping[int, str]
    """Each new id's text."""
    known: tuple[str, ...] = ()
    """Tokens that were there already, by their texts: nothing was added for them."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, a line each."""
        said = []
        if self.texts:
            named = ", ".join(f"{text} ({index})" for index, text in list(self.texts.items())[:8])
            more = f" and {len(self.texts) - 8} more" if len(self.texts) > 8 else ""
            said.append(f"{len(self.texts)} new tokens: {named}{more}; each begins as the mean of its pieces")
        if self.known:
            said.append(f"the start has these tokens already, with what it has learnt of them: {', '.join(self.known)}")
        return tuple(said)


def with_new_tokens(tokenizer: Any, tokens: Sequence[NewToken], where: object = "tokens") -> NewTokens:
    """The tokenizer with these tokens, in their order behind those that it has.

    Raises:
        ConfigError: a token exists as ordinary text and is asked for as special, or the tokenizer does not cut it out.
    """
    before = tokenizer.get_vocab()
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    new, known = [], []
    for token in tokens:
        index = _known(tokenizer, before, token.text)
        if index is None:
            new.append(token)
            continue
        if token.special and index not in special:
            raise ConfigError(
                f"`{token.text}` is a token already, and ordinary text",
                where=where,
                found=f"id {index}; special: true",
                remedy="remove `special: true` to use it as it is, or choose a text that is no token yet",
            )
        known.append(token.text)
    old_tokens = max(before.values()) + 1
    if not new:
        return NewTokens(tokenizer, old_tokens, {}, {}, tuple(known))

    # By the old tokenizer, all of them: a later token's text may hold an earlier one.
    pieces = [_pieces(tokenizer, token.text) for token in new]
    grown = copy.deepcopy(tokenizer)
    for token in new:  # one by one: a special and a plain token are added by different calls
        grown.add_tokens(
            [AddedToken(token.text, special=token.special, normalized=False)], special_tokens=token.special
        )
    ids = [int(grown.convert_tokens_to_ids(token.text)) for token in new]
    for token, index in zip(new, ids, strict=True):
        cut = grown.encode(token.text, add_special_tokens=False)
        if index < old_tokens or index not in cut:
            raise ConfigError(
                f"this tokenizer does not make a token of `{token.text}`",
                where=where,
                found=f"ids {cut[:8]}",
                remedy="choose another text; letters, digits and <|_/> work everywhere",
            )
    texts = {index: token.text for index, token in zip(ids, new, strict=True)}
    return NewTokens(grown, old_tokens, dict(zip(ids, pieces, strict=True)), texts, tuple(known))


def _known(tokenizer: Any, vocabulary: Mapping[str, int], text: str) -> int | None:
    """The id of the one token that a text is; None where it is none. Byte vocabularies spell their tokens otherwise
    than text does, so what they are is asked of the tokenizer."""
    if text in vocabulary:
        return vocabulary[text]
    ids = tokenizer.encode(text, add_special_tokens=False)
    alone = len(ids) == 1 and ids[0] != tokenizer.unk_token_id
    return int(ids[0]) if alone and tokenizer.decode(ids) == text else None


def _pieces(tokenizer: Any, text: str) -> tuple[int, ...]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return tuple(index for index in ids if index != tokenizer.unk_token_id)


# ---------------------------------------------------------------- the model's rows


@torch.no_grad()
def add_rows(model: Any, new: NewTokens, *, rows: int | None = None) -> None:
    """Give each new token its row in both ends of `model`, in place; config.vocab_size follows.

    Args:
        model: without an adapter on it, whose parts would keep their old sizes.
        rows: how many the model then has, where something else says so; fewer drop rows without a token.

    Raises:
        ConfigError: the model carries an adapter.
    """
    if isinstance(model, PeftModel):
        raise ConfigError(
            "tokens cannot be added beneath an adapter that is on the model",
            where="tokens",
            remedy='load the model with both, `pt.load(name, tokens=["<tool>"], adapter=pt.LoRA())`',
        )
    before = int(model.get_input_embeddings().weight.shape[0])
    rows = rows or _rows(before, new)
    if not new.pieces and rows == before:
        return
    # Made anew by whoever reads the flag: with it on and the ends apart, a resize would tie them and lose one.
    record_tying(model)
    made = {role: _made(tensor, new, before, rows) for role, tensor in _ends(model).items()}
    if rows != before:
        with quiet(), torch.random.fork_rng(devices=[]):  # `transformers` draws rows that are then overwritten
            model.resize_token_embeddings(rows, mean_resizing=False)
    for role, tensor in _ends(model).items():
        for index, row in made[role].items():
            if index < tensor.shape[0]:
                tensor[index] = row.to(tensor)


def _rows(before: int, new: NewTokens) -> int:
    needed = max(new.pieces, default=-1) + 1
    if needed <= before:
        return before
    if before == new.old_tokens:  # not padded
        return needed
    multiple = next((number for number in MULTIPLES if before % number == 0), 1)
    return -(-needed // multiple) * multiple


def _ends(model: Any) -> dict[str, Tensor]:
    """The tensors with a row for each token; tied ones once. The backbone under a reward's head has no output end."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = {"input": embeddings.weight}
    if head is not None and head.weight is not embeddings.weight:
        found["output"] = head.weight
    if head is not None and getattr(head, "bias", None) is not None:
        found["bias"] = head.bias
    return found


def _made(tensor: Tensor, new: NewTokens, before: int, rows: int) -> dict[int, Tensor]:
    """What the rows without training hold: {id: row}; means in fp64, so that every machine makes the same."""
    tokens = tensor[: min(new.old_tokens, before)]
    of_all = tokens.double().mean(dim=0)
    padding = tensor[new.old_tokens : before].double()
    filler = padding.mean(dim=0) if len(padding) else of_all
    made = {index: filler for index in range(before, rows)}
    for index, pieces in new.pieces.items():
        made[index] = tensor[list(pieces)].double().mean(dim=0) if pieces else of_all
    return made


# ---------------------------------------------------------------- adapters that came with tokens


def for_adapter(
    model: Any, tokenizer: Any, adapter_tokenizer: Any, source: ModelSource
) -> tuple[NewTokens, int] | None:
    """What the base needs before an adapter's folder fits it: the tokens that are new to it and the rows it then has;
    None where it fits as it is.

    The number of rows is what the adapter's tensors say (`modules_to_save`, embeddings that were saved beside LoRA),
    else what its tokenizer and its `trainable_token_indices` need.
    """
    before = int(model.get_input_embeddings().weight.shape[0])
    trained = trained_rows(source)
    stated = _stated_rows(model, source)
    old = tokenizer.get_vocab()
    by_id = {index: text for text, index in adapter_tokenizer.get_vocab().items() if text not in old}
    # A row that the adapter replaces counts as new wherever it lies: the base under it is hashed with the mean there.
    pieces = {
        index: _pieces(tokenizer, text) for index, text in sorted(by_id.items()) if index >= before or index in trained
    }
    needed = max([before, *(index + 1 for index in (*pieces, *trained))])
    rows = stated or needed
    if not pieces and rows == before:
        return None
    new = NewTokens(adapter_tokenizer, max(old.values()) + 1, pieces, {index: by_id[index] for index in pieces})
    return new, rows if stated or needed == before else max(needed, _rows(before, new))


def trained_rows(source: ModelSource) -> frozenset[int]:
    """The ids whose rows an adapter's folder brings, by its config: `trainable_token_indices` of peft."""
    config = json.loads((source.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    stated = config.get("trainable_token_indices") or config.get("token_indices") or ()
    lists: Iterable[Sequence[int]] = stated.values() if isinstance(stated, dict) else [stated]
    return frozenset(int(index) for indices in lists for index in indices)


def _stated_rows(model: Any, source: ModelSource) -> int | None:
    """How many rows the embeddings or the output projection have that lie in the adapter's file, or a LoRA on them."""
    path = source.folder / ADAPTER_WEIGHTS
    ends = {id(end) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    names = [name for name, module in model.named_modules() if id(module) in ends]
    wide = {f"{name}{rest}": side for name in names for rest, side in WIDE.items()}
    try:
        with safe_open(path, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                side = wide.get(key.removeprefix("base_model.model."))
                if side is not None:
                    return int(weights.get_slice(key).get_shape()[side])
    except (SafetensorError, OSError):
        return None  # whoever loads it names the file
    return None


WIDE: Mapping[str, int] = {
    ".weight": 0,
    ".base_layer.weight": 0,
    ".modules_to_save.weight": 0,
    ".lora_embedding_A": 1,
    ".lora_B.weight": 0,
}
"""Tensors of an embedding or an output projection in an adapter's file -> the side as long as the vocabulary."""
