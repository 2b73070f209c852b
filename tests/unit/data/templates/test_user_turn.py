"""Where a template opens and ends a user's turn: found by rendering, for every family alike, or refused by name."""

from __future__ import annotations

import pytest

from posttrain.data.templates.template import ChatTemplate
from posttrain.data.templates.user_turn import UserTurn, user_turn
from posttrain.data.tokens import Tokens
from posttrain.errors import TemplateError
from tests.fixtures import byte_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
ANSWERED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def template_of(text: str, name: str = "chat", **options: object) -> ChatTemplate:
    return ChatTemplate(Tokens(byte_tokenizer(text, **options)), name, {})  # type: ignore[arg-type]


def parts(turn: UserTurn) -> tuple[str, str | None, str | None]:
    return turn.prefix, None if turn.stop is None else turn.stop.text, turn.stop_text


@pytest.mark.parametrize(
    ("template", "prefix", "stop", "stop_text"),
    [
        ("CHATML", "<|im_start|>user\n", "<|im_end|>", None),
        (
            "CHATML_DEFAULT_SYSTEM",
            "<|im_start|>system\nYou are a tiny helper.<|im_end|>\n<|im_start|>user\n",
            "<|im_end|>",
            None,
        ),
        ("LLAMA3_LIKE", "<s><|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", None),
        ("GEMMA_LIKE", "<s><start_of_turn>user\n", "<end_of_turn>", None),
        ("MISTRAL_LIKE", "<s>[INST]", "[/INST]", None),  # the blank is the model's to write
        ("PHI3_LIKE", "<|user|>\n", "<|end|>", None),
        ("NO_BOS", "<|user|>\n", "</s>", None),
        ("TURN_END", "<turn>user\n", "<turn_end>", None),
    ],
)
def test_where_the_turn_begins_and_ends(template: str, prefix: str, stop: str | None, stop_text: str | None) -> None:
    assert parts(user_turn(template_of(template))) == (prefix, stop, stop_text)


def test_turns_before_stand_in_the_prefix() -> None:
    assert user_turn(template_of("CHATML"), [SYSTEM]).prefix == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )
    assert user_turn(template_of("GEMMA_LIKE"), [SYSTEM]).prefix == "<s><start_of_turn>user\nBe brief.\n\n"
    assert user_turn(template_of("CHATML"), ANSWERED).prefix.endswith("Hello<|im_end|>\n<|im_start|>user\n")


PLAIN = """\
{% for m in messages %}{% if m['role'] == 'user' %}### Asked: {{ m['content'] }}
{% else %}### Said: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}### Said:{% endif %}
"""


def test_a_mark_of_plain_text_ends_the_turn_too() -> None:
    assert parts(user_turn(template_of(PLAIN))) == ("### Asked:", None, "\n### Said:")


NOTHING_AFTER = """\
{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }} {% else %}\
{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"""
TWICE = """\
{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }} {{ m['content'] }}<|im_end|>\
{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"""


@pytest.mark.parametrize(
    ("template", "name", "problem"),
    [
        ("CHATML", "raw", "the template 'raw' writes nothing before a user's text"),
        (NOTHING_AFTER, "chat", "writes nothing after a user's text"),
        (TWICE, "chat", "writes a user's text 2 times"),
    ],
)
def test_a_template_without_marks_is_refused(template: str, name: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem) as caught:
        user_turn(template_of(template, name, specials=("<|im_start|>", "<|im_end|>")))
    assert "self_instruct" in str(caught.value)


def test_a_system_turn_that_the_template_refuses_is_refused() -> None:
    with pytest.raises(TemplateError):
        user_turn(template_of("NO_SYSTEM"), [SYSTEM])
