"""Rows to token trees with the peer's ids, so that both sides compute the same loss.

TRL renders prompt and prompt + response with the chat template, takes the common prefix of the ids as the prompt,
trains on all that follows (the newline after the stop token too), and cuts what lies beyond `max_length`. The
project's own encoder stops at the stop token; here its rules are put aside for TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.data.tree_key import make_tree
from posttrain.types import RowRef, TokenTree


def pair_trees(rows: Sequence[dict[str, str]], tokenizer: Any, max_length: int) -> list[TokenTree]:
    """A tree for each row, chosen branch first; rows whose prompt fills `max_length` are left out, as TRL does."""
    return _trees(rows, tokenizer, max_length, ("chosen", "rejected"))


def demonstration_trees(rows: Sequence[dict[str, str]], tokenizer: Any, max_length: int) -> list[TokenTree]:
    """The same with the chosen response alone."""
    return _trees(rows, tokenizer, max_length, ("chosen",))


def whole_pair_trees(rows: Sequence[dict[str, str]], tokenizer: Any, max_length: int) -> list[TokenTree]:
    """Pairs of which neither side is longer than `max_length`: TRL's reward trainer leaves the others out."""
    trees = pair_trees(rows, tokenizer, 1 << 30)
    return [t for t in trees if len(t.prompt_ids) + max(len(b.ids) for b in t.branches) <= max_length]


def _trees(rows: Sequence[dict[str, str]], tokenizer: Any, max_length: int, sides: tuple[str, ...]) -> list[TokenTree]:
    trees = []
    for number, row in enumerate(rows, 1):
        asked = {"role": "user", "content": row["prompt"]}
        whole = [_ids(tokenizer, [asked, {"role": "assistant", "content": row[side]}]) for side in sides]
        prompt = _common_beginning([_ids(tokenizer, [asked], add_generation_prompt=True), *whole])
        if len(prompt) >= max_length:
            continue
        branches = [ids[len(prompt) : max_length] for ids in whole]
        marked = [(ids, [True] * len(ids)) for ids in branches]
        trees.append(make_tree(prompt, marked, RowRef("rows.jsonl", number)))
    return trees


def _ids(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]


def _common_beginning(sequences: Sequence[list[int]]) -> list[int]:
    beginning = []
    for ids in zip(*sequences, strict=False):
        if len(set(ids)) > 1:
            break
        beginning.append(ids[0])
    return beginning
