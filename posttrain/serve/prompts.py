"""The prompts of `/v1/completions` and `/tokenize`, texts or ids, as ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.serve.fields import Fields, shown
from posttrain.serve.refusals import refused
from posttrain.serve.served import ServedPolicy

EXPECTED = "a text, a list of texts, a list of token ids, or a list of such lists"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt((1, 70, 71), "Hi"); a prompt of ids has the text that they decode to."""

    ids: list[int]
    text: str
    unwritten: int = 0
    """How many ids stand before the text: those that the tokenizer puts before texts."""


def given_prompts(fields: Fields) -> list[str | list[int]]:
    """The prompts as they were sent.

    Raises:
        RequestRefused: there is none, or it is neither texts nor ids.
    """
    value = fields.any("prompt")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise refused(
            "there is no `prompt`" if value is None else "`prompt` is no prompt",
            param="prompt",
            found=shown(value),
            expected=EXPECTED,
            remedy="write the prompt as a text, or as token ids",
        )
    if all(type(item) is int for item in value):
        return [value]
    for index, item in enumerate(value):
        is_ids = isinstance(item, list) and item and all(type(number) is int for number in item)
        if not (isinstance(item, str) or is_ids):
            raise refused(
                f"`prompt[{index}]` is no prompt",
                param=f"prompt[{index}]",
                found=shown(item),
                expected=EXPECTED,
                remedy="write each prompt as a text, or as a list of at least one token id",
            )
    return value


def encoded(policy: ServedPolicy, given: list[Any], *, add_special_tokens: bool) -> list[Prompt]:
    """The ids of each prompt; call it under the policy's lock. Ids that were sent are taken as they are.

    Args:
        add_special_tokens: whether a text begins with what the tokenizer puts before texts (Llama's <s>).

    Raises:
        RequestRefused: an id that the model does not have.
    """
    tokens = policy.encoder.tokens
    added = tokens.added_by_default() if add_special_tokens else []
    prompts = []
    for index, item in enumerate(given):
        if isinstance(item, str):
            ids = tokens.ids(item)
            # A text that has it already, as templates write it, would have two.
            begins = bool(added) and ids[: len(added)] == added
            prompts.append(Prompt(ids, item) if begins else Prompt([*added, *ids], item, len(added)))
            continue
        check_ids(policy, item, f"prompt[{index}]" if len(given) > 1 else "prompt")
        prompts.append(Prompt(list(item), policy.encoder.tokens.decode(item)))
    return prompts


def check_ids(policy: ServedPolicy, ids: list[int], param: str) -> None:
    """
    Raises:
        RequestRefused: an id that the model has no embedding for, which would be an error deep inside it.
    """
    odd = next((number for number in ids if not 0 <= number < policy.vocabulary), None)
    if odd is not None:
        raise refused(
            "the prompt has an id that the model does not have",
            param=param,
            found=odd,
            expected=f"ids from 0 to {policy.vocabulary - 1:,}",
            remedy="encode the prompt with the tokenizer of this model, or ask `/tokenize`",
        )
