"""T77: prompt and trained ids are what the template renders for the conversation, or a documented split of it.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.data.encode import Encoder
from posttrain.data.templates.template import DOCUMENTED_SPLITS
from posttrain.errors import TemplateError
from posttrain.types import Comparison, Demonstration, Message, RowRef
from tests.encoding import family_encoder, path_ids, shown

ROW = RowRef("t.jsonl", 1)
QUESTION = Message("user", "2 + 2?")
CONTENT = Message("assistant", "<think>\n2 and 2\n</think>\n\n4.")
COMPACT = Message("assistant", "<think>2 and 2</think>4.")
KEY = Message("assistant", "4.", reasoning="2 and 2")
PLAIN = Message("assistant", "4.")


def rendered_ids(encoder: Encoder, *messages: Message) -> list[int]:
    """The ids of the template's own rendering: of the row as it is, by the tokenizer itself."""
    rows: list[dict[str, Any]] = []
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        rows.append(row if message.reasoning is None else {**row, "reasoning_content": message.reasoning})
    text = encoder.tokenizer.apply_chat_template(rows, tokenize=False)
    return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", ["QWEN3", "QWEN35_THINK"])
@pytest.mark.parametrize("answer", [CONTENT, COMPACT, KEY, PLAIN], ids=["content", "compact", "key", "none"])
def test_what_trains_is_what_is_rendered(family: str, answer: Message) -> None:
    encoder = family_encoder(family)
    encoded = encoder.example(Demonstration((QUESTION, answer), ROW))
    (tree,) = encoded.trees
    whole = rendered_ids(encoder, QUESTION, answer)
    assert path_ids(tree) == whole[: tree.num_tokens] and len(whole) - tree.num_tokens <= 1  # the newline at the end
    assert tree.prompt_ids.tolist() == encoder.prompt([QUESTION])
    text = shown(encoder, tree)
    assert text.count("<think>") == 1 and text.count("</think>") == 1
    assert encoded.findings == ()


@pytest.mark.parametrize("family", ["QWEN35_THINK", "NEMOTRON3", "DEEPSEEK_R1"])
def test_both_sides_of_a_pair(family: str) -> None:
    encoder = family_encoder(family)
    worse = Message("assistant", "<think>\nhm\n</think>\n\n5.")
    tree = encoder.comparison(Comparison((QUESTION,), ((CONTENT,), (worse,)), 0, ROW))
    assert tree.prompt_ids.tolist() == encoder.prompt([QUESTION])
    for branch, thoughts in ((0, "2 and 2"), (1, "hm")):
        text = shown(encoder, tree, branch)
        assert text.count("<think>") == 1 and text.count("</think>") == 1 and thoughts in text
    for side, branch in ((CONTENT, 0), (worse, 1)):
        (alone,) = encoder.demonstration(Demonstration((QUESTION, side), ROW))
        assert path_ids(alone) == path_ids(tree, branch)


@pytest.mark.parametrize("family", ["NEMOTRON3", "DEEPSEEK_R1", "DEEPSEEK_V3", "GEMMA4_LOSES_CALLS"])
def test_a_split_is_documented_and_counted(family: str) -> None:
    encoder = family_encoder(family)
    answer = PLAIN if family == "GEMMA4_LOSES_CALLS" else COMPACT
    encoded = encoder.example(Demonstration((QUESTION, answer), ROW))
    assert len(encoded.findings) == 1 and encoded.findings[0] in DOCUMENTED_SPLITS
    assert encoded.trees[0].prompt_ids.tolist() == encoder.prompt([QUESTION])


@pytest.mark.parametrize("family", ["GEMMA4_LOSES_CALLS", "EXAONE4"])
@pytest.mark.parametrize("answer", [CONTENT, COMPACT, KEY], ids=["content", "compact", "key"])
def test_no_thought_trains_after_a_closed_one(family: str, answer: Message) -> None:
    encoder = family_encoder(family)
    with pytest.raises(TemplateError, match="closes the thought") as caught:
        encoder.demonstration(Demonstration((QUESTION, answer), ROW))
    assert "`template_kwargs: {enable_thinking: true}`" in caught.value.remedy


@pytest.mark.parametrize(("family", "answer"), [("GEMMA4_LOSES_CALLS", KEY), ("EXAONE4", CONTENT)])
def test_the_remedy_works_when_it_is_followed(family: str, answer: Message) -> None:
    encoder = family_encoder(family, template_kwargs={"enable_thinking": True})
    (tree,) = encoder.demonstration(Demonstration((QUESTION, answer), ROW))
    assert "2 and 2" in encoder.tokens.decode(tree.branches[0].ids.tolist())


def test_a_difference_without_a_name_shows_both_texts() -> None:
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    encoder = family_encoder(turns + "{% if add_generation_prompt %}[bot]{% endif %}")
    with pytest.raises(TemplateError) as caught:
        encoder.demonstration(Demonstration((QUESTION, PLAIN), ROW))
    assert "[assistant]4." in caught.value.found and "[bot]" in caught.value.expected


@pytest.mark.parametrize("content", ["<think>a</think><think>b</think>4.", "<think>a</think>4.</think>"])
def test_two_thoughts_in_a_turn_are_refused(content: str) -> None:
    for family in ("QWEN3", "QWEN35_THINK"):
        with pytest.raises(TemplateError):
            family_encoder(family).demonstration(Demonstration((QUESTION, Message("assistant", content)), ROW))


@pytest.mark.parametrize(
    "marks", [("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")]
)
def test_other_marks_than_think(marks: tuple[str, str]) -> None:
    opening, closing = marks
    source = (
        "{%- for m in messages -%}{%- set c = m.content -%}{%- if m.role == 'assistant' and 'CLOSE' in c -%}"
        "{%- set c = 'OPEN\\n' + c.split('CLOSE')[0].split('OPEN')[-1].strip() + '\\nCLOSE\\n' + "
        "c.split('CLOSE')[-1].strip() -%}{%- endif -%}<|{{ m.role }}|>{{ c }}</s>{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|assistant|>OPEN\n{%- endif -%}"
    )
    source = source.replace("OPEN\n{%-", "{{ 'OPEN\\n' }}{%-").replace("OPEN", opening).replace("CLOSE", closing)
    encoder = family_encoder(source, specials=["<|user|>", "<|assistant|>"])
    row = Demonstration((QUESTION, Message("assistant", f"{opening}2 and 2{closing}4.")), ROW)
    (tree,) = encoder.demonstration(row)
    text = shown(encoder, tree)
    assert text.count(opening) == 1 and text.count(closing) == 1
    assert path_ids(tree) == rendered_ids(encoder, *row.messages)


_WRITES_MARKS = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}<|{{ m.role }}|>{%- if m.role == 'assistant' -%}"
    "{{ '<think>' + ((m.reasoning_content or '') if loop.index0 > ns.last else '') + '</think>' }}{%- endif -%}"
    "{{ m.content }}</s>{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
"""Kimi-K2: the marks are the template's own in every turn, and a thought in the content stands beside them."""


@pytest.mark.parametrize("answer", [CONTENT, COMPACT, KEY, Message("assistant", "2 and 2</think>4.")])
def test_a_thought_in_the_content_is_moved_in_earlier_turns_too(answer: Message) -> None:
    encoder = family_encoder(_WRITES_MARKS, specials=["<|user|>", "<|assistant|>"])
    row = Demonstration((QUESTION, answer, QUESTION, Message("assistant", "Four.", reasoning="again")), ROW)
    trees = encoder.demonstration(row)
    texts = [shown(encoder, tree) for tree in trees]
    assert texts == [
        "<|user|>2 + 2?</s><|assistant|><think>2 and 2</think>4.</s>",
        "<|user|>2 + 2?</s><|assistant|><think></think>4.</s>"
        "<|user|>2 + 2?</s><|assistant|><think>again</think>Four.</s>",
    ]
    assert trees[1].prompt_ids.tolist() == encoder.prompt([QUESTION, answer, QUESTION])


def test_an_empty_thought_that_no_prompt_has_is_not_taken_away() -> None:
    encoder = family_encoder(_WRITES_MARKS, specials=["<|user|>", "<|assistant|>"])
    with pytest.raises(TemplateError, match="opens or closes a thought more than once") as caught:
        encoder.demonstration(Demonstration((QUESTION, Message("assistant", "<think>2 and 2 4.")), ROW))
    assert "<think></think><think>2 and 2 4." in caught.value.found
