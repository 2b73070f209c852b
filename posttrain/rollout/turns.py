"""From sampled ids to what trains, and to the next turn's prompt, without passing through text.

A tokenizer may know "hello" as one token where the model sampled "he" and "llo". Whoever decodes and encodes again
trains on ids that nobody sampled, and asks the model to continue a conversation that it did not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.encode import Encoder
from posttrain.data.tree_key import make_tree
from posttrain.errors import TemplateError
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.types import Message, RowRef, TokenTree

_ANSWER = "posttrainsampledanswer"


def completion_tree(prompt_ids: Sequence[int], completions: Sequence[Completion], row: RowRef) -> TokenTree:
    """A prompt and its completions as one tree: every sampled id trains (`Completion.trains`), and no other does.

    A completion that was cut gets no stop token.

    Raises:
        ValueError: a completion has no sampled ids, since it was aborted before its first.
    """
    for index, completion in enumerate(completions):
        if not completion.num_sampled:
            raise ValueError(f"{row}: completion {index} has no ids ({completion.finish}); leave it out")
    return make_tree(prompt_ids, [(completion.ids, completion.trains) for completion in completions], row)


def next_prompt(
    encoder: Encoder,
    messages: Sequence[Message],
    prompt_ids: Sequence[int],
    completion: Completion,
    following: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Ids of the conversation after a sampled turn: `prompt_ids`, the sampled ids, and then the following messages.

    What the template writes between the turns is found by rendering a placeholder in the answer's place.

    Args:
        messages: those that `prompt_ids` was built from.
        following: what comes after the answer, such as the next question or a tool's result.

    Raises:
        TemplateError: the template shows earlier turns otherwise than they were sampled (thinking templates do), so
            that no sequence of ids is both what was sampled and what inference would see.
    """
    template = encoder.template
    plain = [template.plain(message) for message in messages]
    conversation = [*plain, {"role": "assistant", "content": _ANSWER}, *map(template.plain, following)]
    before, _, after = template.prompt(conversation, tools).partition(_ANSWER)
    prompt = template.prompt(plain, tools)
    # A blank that the template puts before an answer is the model's to write, as in "assistant: Hi".
    if not before.startswith(prompt) or before[len(prompt) :].strip():
        raise TemplateError(
            "the chat template changes earlier turns, so sampled turns cannot be continued id for id",
            found=f"...{before[-60:]!r} before the answer in the longer conversation",
            expected="the prompt that was sampled from",
            remedy="train on single turns, or name a template that keeps earlier turns (`template: chatml`)",
        )
    return [*prompt_ids, *completion.ids, *encoder.tokens.ids(_without_stop(encoder, completion, after))]


def _without_stop(encoder: Encoder, completion: Completion, after: str) -> str:
    """The text after what ends the answer, if the model sampled its end; else all of it.

    Only ends that stand directly behind the answer are the answer's. A template may have several (GLM closes a call
    with `<|observation|>`), and one of them further on belongs to a later turn: to cut there would lose the turns
    between.
    """
    # A completion that was cut has not said its end, so the template's is kept.
    if completion.finish not in (FinishReason.STOP_TOKEN, FinishReason.EMPTY):
        return after
    for _ in encoder.template.end_texts:  # Cohere writes two
        bare = after.lstrip()
        end = next((text for text in encoder.template.end_texts if bare.startswith(text)), None)
        if end is None:
            break
        after = bare.removeprefix(end)
        if end in encoder.template.stop_texts:
            break
    return after
