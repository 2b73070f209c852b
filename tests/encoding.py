"""Short words for what the encoder tests look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.data.encode import Encoder, EncoderSettings
from posttrain.types import Branch, Comparison, Message, RowRef, TokenTree
from tests.family_templates import FAMILIES
from tests.fixtures import byte_tokenizer

CALL_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
"""The tool that `calling` calls."""


def encoder_of(template: str | None = "CHATML", settings: dict[str, Any] | None = None, **tokenizer: Any) -> Encoder:
    """An encoder over a byte tokenizer that knows the template's special tokens."""
    return Encoder(byte_tokenizer(template, **tokenizer), EncoderSettings(**(settings or {})))


def family_encoder(family: str, specials: Sequence[str] = (), **settings: Any) -> Encoder:
    """An encoder over a byte tokenizer with a family's template (or a template's text) and its special tokens."""
    template, own = FAMILIES.get(family, (family, ()))
    return Encoder(byte_tokenizer(template, specials=[*own, *specials]), EncoderSettings(**settings))


def calling(*arguments: Any, content: str | None = None, name: str = "weather") -> Message:
    """An assistant's turn that calls a tool once for each of `arguments`: calling({"city": "Oslo"})."""
    calls = tuple(
        {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": one}}
        for number, one in enumerate(arguments, 1)
    )
    return Message("assistant", content, tool_calls=calls)


def trained_runs(encoder: Encoder, tree: TokenTree, branch: int = 0) -> list[str]:
    """The texts that train, one for each unbroken run: ["a1<|im_end|>", "a2<|im_end|>"]."""
    return [text for text, trained in encoder.decode_marked(tree, branch) if trained]


def shown(encoder: Encoder, tree: TokenTree, branch: int = 0) -> str:
    """The whole path as text."""
    return "".join(text for text, _ in encoder.decode_marked(tree, branch))


def path_ids(tree: TokenTree, branch: int = 0) -> list[int]:
    """Prompt and branch as one list of ids."""
    return [*tree.prompt_ids.tolist(), *tree.branches[branch].ids.tolist()]


def contexts(tree: TokenTree, branch: int = 0) -> list[list[int]]:
    """The ids before each unbroken run of trained tokens."""
    ids = path_ids(tree, branch)
    mask = [False] * len(tree.prompt_ids) + tree.branches[branch].loss_mask.tolist()
    return [ids[:at] for at in range(len(ids)) if mask[at] and (at == 0 or not mask[at - 1])]


def pair(prompt: tuple[Message, ...], chosen: str, rejected: str, row: int = 1, **extra: Any) -> Comparison:
    """A comparison of two answers, the better one first."""
    sides = tuple((Message("assistant", text),) for text in (chosen, rejected))
    return Comparison(prompt, sides, 0, RowRef("pairs.jsonl", row), **extra)


def same(left: Branch, right: Branch) -> bool:
    return left.ids.tolist() == right.ids.tolist() and left.loss_mask.tolist() == right.loss_mask.tolist()
