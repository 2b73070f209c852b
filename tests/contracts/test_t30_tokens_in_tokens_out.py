"""T30: what trains is what was sampled, and a second turn continues the first one's ids.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from posttrain.data.encode import Encoder
from posttrain.errors import TemplateError
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.rollout.turns import completion_tree, next_prompt
from posttrain.types import Message, RowRef
from tests.fixtures import bpe_tokenizer, byte_tokenizer, chat

ROW = RowRef("rollout", 1)
NEXT_HEADER_ENDS = """\
{%- for m in messages -%}
{{ '<|' + ('observation' if m.role == 'tool' else m.role) + '|>' + (m.content or '') }}
{%- for t in m.tool_calls or [] -%}{{ t.function.name + ' ' + t.function.arguments | tojson }}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""
"""A turn ends where the next one's header begins, as in GLM."""


def sampled(encoder: Encoder, pieces: list[str], finish: FinishReason = FinishReason.STOP_TOKEN) -> Completion:
    """A completion of these tokens, as a sampler may have drawn them whatever the tokenizer would write."""
    ids = [encoder.tokenizer.convert_tokens_to_ids(piece) for piece in pieces]
    assert all(number is not None for number in ids)
    if finish is FinishReason.STOP_TOKEN:
        ids.append(encoder.template.stops[0].id)
    return Completion(tuple(ids), tuple(-1.0 for _ in ids), finish)


def test_training_ids_are_the_sampled_ids() -> None:
    encoder = Encoder(bpe_tokenizer(template="CHATML"))
    assert len(encoder.tokens.ids("hello")) == 1
    completion = sampled(encoder, ["he", "llo"])
    prompt = encoder.prompt(chat("Hi"))
    tree = completion_tree(prompt, [completion, sampled(encoder, ["hello"])], ROW)
    assert tree.prompt_ids.tolist() == prompt
    assert tree.branches[0].ids.tolist() == list(completion.ids)
    assert tree.branches[0].loss_mask.all()
    assert tree.key != completion_tree(prompt, [sampled(encoder, ["hello"])], ROW).key


@pytest.mark.parametrize("template", ["CHATML", "NO_BOS", "BOS_IN_TEMPLATE", "TURN_END", "LLAMA3_LIKE"])
def test_the_second_turn_continues_the_first_ones_ids(template: str) -> None:
    encoder = Encoder(bpe_tokenizer(template=template))
    messages, following = chat("Hi"), chat("And then?")
    prompt = encoder.prompt(messages)
    second = next_prompt(encoder, messages, prompt, sampled(encoder, ["he", "llo"]), following)
    first_turn = [*prompt, *sampled(encoder, ["he", "llo"]).ids]
    assert second[: len(first_turn)] == first_turn
    # Only the tokens of the answer differ from what encoding the whole text would have given.
    written = encoder.prompt([*messages, *chat("?", "hello")[1:], *following])
    after = len(second) - len(first_turn)
    assert second[-after:] == written[-after:]
    assert encoder.tokens.decode(second) == encoder.tokens.decode(written)


def test_a_template_without_terminator_keeps_the_sampled_eos() -> None:
    encoder = Encoder(bpe_tokenizer(template="NO_TERMINATOR"))
    messages, prompt = chat("Hi"), encoder.prompt(chat("Hi"))
    second = next_prompt(encoder, messages, prompt, sampled(encoder, ["Ġ", "he", "llo"]), chat("So?"))
    assert encoder.tokens.decode(second) == "user: Hi\nassistant: hello</s>\nuser: So?\nassistant:"


def test_a_cut_answer_gets_its_terminator_in_the_next_prompt_and_not_in_training() -> None:
    encoder = Encoder(bpe_tokenizer(template="CHATML"))
    messages, prompt = chat("Hi"), encoder.prompt(chat("Hi"))
    cut = sampled(encoder, ["he"], FinishReason.LENGTH)
    assert completion_tree(prompt, [cut], ROW).branches[0].ids.tolist() == list(cut.ids)
    second = next_prompt(encoder, messages, prompt, cut, chat("Go on."))
    written = encoder.prompt([*messages, *chat("?", "he")[1:], *chat("Go on.")])
    assert second == written


def test_a_stop_token_of_a_later_turn_does_not_end_this_one() -> None:
    """GLM's calls end with `<|observation|>`, which heads a tool's result: after an answer that ended with eos, the
    question between the two must stay."""
    encoder = Encoder(byte_tokenizer(NEXT_HEADER_ENDS, specials=("<|user|>", "<|assistant|>", "<|observation|>")))
    observation = encoder.tokens.added["<|observation|>"]
    assert observation in encoder.stop_ids
    call = Message("assistant", None, tool_calls=({"function": {"name": "weather", "arguments": {"city": "Oslo"}}},))
    following = [*chat("And Oslo?"), call, Message("tool", "rain")]
    messages, prompt = chat("Hi"), encoder.prompt(chat("Hi"))
    eos = encoder.tokens.eos_id
    assert eos is not None
    answer = [*encoder.tokens.ids("Hello."), eos]
    second = next_prompt(
        encoder, messages, prompt, Completion(tuple(answer), (-1.0,) * len(answer), FinishReason.STOP_TOKEN), following
    )
    text = encoder.tokens.decode(second[len(prompt) + len(answer) :])
    assert text.startswith("<|user|>") and "And Oslo?" in text and "weather" in text and "rain" in text


def test_a_template_that_rewrites_the_first_turn_is_refused() -> None:
    encoder = Encoder(bpe_tokenizer(template="THINK_PREFILL"))
    messages, prompt = chat("Hi"), encoder.prompt(chat("Hi"))
    with pytest.raises(TemplateError, match="changes earlier turns"):
        next_prompt(encoder, messages, prompt, sampled(encoder, ["he", "llo"]), chat("And then?"))


def test_a_completion_without_ids_is_no_branch() -> None:
    with pytest.raises(ValueError, match="has no ids"):
        completion_tree([1], [Completion((), (), FinishReason.ABORTED)], ROW)
