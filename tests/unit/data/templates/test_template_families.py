"""What families' layouts train: the token that ends each kind of turn, thoughts in every form, faults as faults."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.templates.call_text import call_in_form, lost_part
from posttrain.data.templates.thoughts import (
    THINK,
    ThoughtMarks,
    marks_in,
    marks_order,
    split_thoughts,
    thought_state,
    trailing_marks,
)
from posttrain.errors import TemplateError
from posttrain.types import Demonstration, Message, RowRef
from tests.encoding import CALL_TOOL, calling, contexts, family_encoder, trained_runs
from tests.family_templates import FAMILIES

ROW = RowRef("t.jsonl", 1)
TOOL_RESULT = Message("tool", "rain", name="weather", tool_call_id="call00001")

STOPS = {
    "HERMES": ("<|im_end|>",),
    "QWEN3": ("<|im_end|>",),
    "QWEN35_THINK": ("<|im_end|>",),
    "KIMI_K2": ("<|im_end|>",),
    "NEMOTRON3": ("<|im_end|>",),
    "GEMMA4_LOSES_CALLS": ("<turn|>",),
    "GEMMA4": ("<turn|>", "<|tool_response>"),
    "EXAONE4": ("[|endofturn|]",),
    "FALCON_H1": ("<|im_end|>",),
    "LFM2": ("<|im_end|>",),
    "GLM4": ("</s>", "<|observation|>"),
    "DEEPSEEK_V3": ("</s>",),
    "DEEPSEEK_R1": ("</s>",),
    "GPT_OSS": ("<|return|>", "<|call|>"),
    "COHERE": ("<|END_TURN|>",),
    "MISTRAL": ("</s>",),
}


def test_every_family_is_covered() -> None:
    assert set(STOPS) == set(FAMILIES)


@pytest.mark.parametrize(("family", "stops"), STOPS.items())
def test_the_tokens_that_end_turns(family: str, stops: tuple[str, ...]) -> None:
    encoder = family_encoder(family)
    assert tuple(stop.text for stop in encoder.template.stops) == stops
    assert {encoder.tokens.added[stop] for stop in stops} <= encoder.stop_ids


@pytest.mark.parametrize(("family", "mark"), [("DEEPSEEK_V3", "<|sep|>"), ("GPT_OSS", "<|end|>")])
def test_a_mark_in_the_middle_of_an_answer_ends_none_in_whatever_form_the_template_takes_it(
    family: str, mark: str
) -> None:
    """Arguments as text; thoughts as `thinking`."""
    encoder = family_encoder(family)
    number = encoder.tokens.added[mark]
    listed = Encoder(encoder.tokenizer, EncoderSettings(stop_ids=(number,)))
    assert number not in listed.stop_ids
    assert any(repr(mark) in note and "in the middle" in note for note in listed.notes)


@pytest.mark.parametrize(
    ("family", "call_end", "answer_end"),
    [
        ("GLM4", "</tool_call><|observation|>", "Rain.</s>"),
        ("GPT_OSS", "}<|call|>", "Rain.<|return|>"),
        ("GEMMA4", "}<tool_call|><|tool_response>", "Rain.<turn|>"),
        ("COHERE", "<|END_ACTION|><|END_TURN|>", "Rain.<|END_RESPONSE|><|END_TURN|>"),
        ("LFM2", "]<|tool_call_end|><|im_end|>", "Rain.<|im_end|>"),
        ("MISTRAL", "}]</s>", "Rain.</s>"),
        ("HERMES", "</tool_call><|im_end|>", "Rain.<|im_end|>"),
    ],
)
def test_a_calling_turn_ends_as_the_template_ends_it(family: str, call_end: str, answer_end: str) -> None:
    encoder = family_encoder(family)
    messages = (Message("user", "q"), calling({"city": "Oslo"}), TOOL_RESULT, Message("assistant", "Rain."))
    encoded = encoder.example(Demonstration(messages, ROW, tools=(CALL_TOOL,)))
    runs = [run for tree in encoded.trees for run in trained_runs(encoder, tree)]
    assert runs[0].endswith(call_end) and runs[1].endswith(answer_end)
    assert sum(encoded.stop_tokens) == 2
    # What the model has to see after its call is the result, behind ids that are the prompt's own.
    assert [ids for tree in encoded.trees for ids in contexts(tree)] == [
        encoder.prompt(messages[:1], [CALL_TOOL]),
        encoder.prompt(messages[:3], [CALL_TOOL]),
    ]


def test_a_header_of_another_turn_ends_no_call() -> None:
    """The case of verl#7664: a tool's result stands in a turn of the system."""
    source = (
        "{% for m in messages %}{{ '<|system|>' if m.role == 'tool' else '<|' + m.role + '|>' }}{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoder = family_encoder(source, specials=["<|system|>", "<|user|>", "<|assistant|>"])
    assert [stop.text for stop in encoder.template.stops] == ["</s>"]


def test_a_template_that_begins_the_next_turn_unasked_does_not_end_with_its_header() -> None:
    """Cohere's command_a_tool_use, which writes its generation prompt whether it is asked to or not."""
    source = (
        "{% for m in messages %}<|START|>{{ '<|BOT|>' if m.role == 'assistant' else '<|USER|>' }}{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
        "{{ '<|END_ACTION|>' if m.tool_calls else '<|END|>' }}{% endfor %}<|START|><|BOT|>"
    )
    encoder = family_encoder(source, specials=["<|START|>", "<|BOT|>", "<|USER|>", "<|END|>", "<|END_ACTION|>"])
    assert [stop.text for stop in encoder.template.stops] == ["<|END|>", "<|END_ACTION|>"]


def test_calls_that_are_shown_in_the_last_turn_alone_are_missed_in_the_context() -> None:
    source = (
        "{{ tools | tojson if tools }}{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
        "{% if loop.last %}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endif %}</s>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoder = family_encoder(source, specials=["<|user|>", "<|assistant|>", "<|tool|>"])
    messages = (Message("user", "q"), calling({"city": "Oslo"}), TOOL_RESULT, Message("assistant", "Rain."))
    encoder.demonstration(Demonstration(messages[:2], ROW, tools=(CALL_TOOL,)))
    with pytest.raises(TemplateError, match="leaves out the tool calls of earlier turns"):
        encoder.demonstration(Demonstration(messages, ROW, tools=(CALL_TOOL,)))


def test_the_first_of_two_ending_tokens_is_written_and_stripped_from_answers() -> None:
    encoder = family_encoder("COHERE")
    assert encoder.tokens.added["<|END_RESPONSE|>"] not in encoder.stop_ids
    assert "two tokens" in encoder.notes[0]
    assert encoder.template.without_stops("b<|END_RESPONSE|><|END_TURN|>") == "b"


# ---------------------------------------------------------------- thoughts


def test_thoughts_behind_a_thought_that_the_template_writes_itself() -> None:
    encoder = family_encoder("KIMI_K2")
    for content in ("<think>\n2 and 2\n</think>\n\n4.", "<think>2 and 2</think>4."):
        encoded = encoder.example(Demonstration((Message("user", "q"), Message("assistant", content)), ROW))
        assert trained_runs(encoder, encoded.trees[0]) == ["2 and 2</think>4.<|im_end|>"]
        assert encoded.findings == ("moved_thoughts",)


@pytest.mark.parametrize("family", ["GLM4", "QWEN3", "QWEN35_THINK"])
def test_thoughts_have_one_form_wherever_the_row_has_them(family: str) -> None:
    encoder = family_encoder(family)
    forms = [
        Message("assistant", "<think>\n2 and 2\n</think>\n\n4."),
        Message("assistant", "<think>2 and 2</think>4."),
        Message("assistant", "2 and 2</think>4."),
        Message("assistant", "4.", reasoning="2 and 2"),
    ]
    trained = {
        trained_runs(encoder, encoder.demonstration(Demonstration((Message("user", "q"), form), ROW))[0])[0]
        for form in forms
    }
    assert len(trained) == 1


def test_thoughts_and_calls_of_a_hidden_turn_train_together() -> None:
    encoder = family_encoder("DEEPSEEK_R1")
    turn = calling({"city": "Oslo"}, content="<think>\nlook\n</think>\n\n")
    (tree,) = encoder.demonstration(Demonstration((Message("user", "q"), turn), ROW))
    call = '<|call|>function<|sep|>weather\n```json\n{"city": "Oslo"}\n```<|call_end|></s>'
    assert trained_runs(encoder, tree) == ["look\n</think>\n\n" + call]


def test_an_answer_that_the_thoughts_repeat_is_not_taken_for_shown() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
        "{% else %}{{ m.content }}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoder = family_encoder(source, specials=["<|user|>", "<|assistant|>"])
    with pytest.raises(TemplateError, match="hides the"):
        encoder.demonstration(Demonstration((Message("user", "q"), Message("assistant", "4", reasoning="2+2=4")), ROW))


def test_foreign_thoughts_are_told() -> None:
    encoder = family_encoder("GPT_OSS")
    row = Demonstration((Message("user", "q"), Message("assistant", "<think>a</think>b")), ROW)
    assert encoder.example(row).findings == ("foreign_thoughts",)
    own = Demonstration((Message("user", "q"), Message("assistant", "b", reasoning="a")), ROW)
    assert encoder.example(own).findings == ()


def test_thoughts_that_the_opened_marks_cannot_close_are_refused() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</judge>')[-1] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><judge>{% endif %}"
    )
    encoder = family_encoder(source, specials=["<|user|>", "<|assistant|>"])
    with pytest.raises(TemplateError, match="opens <judge>, and the thoughts of this turn end with </think>"):
        encoder.demonstration(Demonstration((Message("user", "q"), Message("assistant", "<think>a</think>b")), ROW))
    row = Demonstration((Message("user", "q"), Message("assistant", "<judge>a</judge>b")), ROW)
    assert trained_runs(encoder, encoder.demonstration(row)[0]) == ["a</judge>b</s>"]


def test_a_prompt_that_ends_with_the_users_own_mark_opens_nothing() -> None:
    encoder = family_encoder(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    row = Demonstration((Message("user", "Think first: <think>"), Message("assistant", "4.")), ROW)
    assert trained_runs(encoder, encoder.demonstration(row)[0]) == ["4.</s>"]


def test_a_value_that_closes_the_thought_is_named_only_where_it_was_tried() -> None:
    row = Demonstration((Message("user", "q"), Message("assistant", "4.")), ROW)
    with pytest.raises(TemplateError, match="opens <think>") as caught:
        family_encoder("NEMOTRON3").demonstration(row)
    assert "`template_kwargs: {enable_thinking: false}`" in caught.value.remedy
    followed = family_encoder("NEMOTRON3", template_kwargs={"enable_thinking": False})
    assert trained_runs(followed, followed.demonstration(row)[0]) == ["4.<|im_end|>"]
    with pytest.raises(TemplateError) as caught:
        family_encoder("DEEPSEEK_R1").demonstration(row)
    assert "template_kwargs" not in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "order"), [("a<think>b</think>c", "oc"), ("</think>", "c"), ("", ""), ("<think><think>", "oo")]
)
def test_the_order_of_marks(text: str, order: str) -> None:
    assert marks_order(text, [THINK, ThoughtMarks("<think", "</think>")]) == order
    assert (
        thought_state("") == "none"
        and thought_state("o") == "open"
        and thought_state("oc") == thought_state("c") == "closed"
    )


def test_marks_are_read_from_a_template_and_at_a_texts_end() -> None:
    source = "{{ '</seed:think>' }}[/THINK] <|END_THINKING|> <channel|> ◁/think▷"
    for marks in (
        ThoughtMarks("<seed:think>", "</seed:think>"),
        ThoughtMarks("[THINK]", "[/THINK]"),
        ThoughtMarks("<|START_THINKING|>", "<|END_THINKING|>"),
        ThoughtMarks("<|channel>", "<channel|>"),
        ThoughtMarks("◁think▷", "◁/think▷"),
    ):
        assert marks in marks_in(source)
    assert trailing_marks("x<think>\n\n</think>\n\n", [THINK]) == "<think>\n\n</think>\n\n"
    assert trailing_marks("x<think>\n", [THINK]) == "<think>\n" and trailing_marks("<think>x", [THINK]) == ""


def test_a_content_taken_apart() -> None:
    written = split_thoughts("<think>\na\n</think>\n\nb", [THINK], opened=False)
    assert written is not None and (written.thoughts, written.gap, written.visible) == ("a\n", "\n\n", "b")
    assert split_thoughts("a</think>b", [THINK], opened=False) is None
    assert split_thoughts("Sure. <think>a</think>b", [THINK], opened=True) is None


# ---------------------------------------------------------------- calls


def test_tools_whose_name_stands_in_a_call_alone_are_told() -> None:
    messages = (Message("user", "q"), calling({"city": "Oslo"}), TOOL_RESULT, Message("assistant", "Rain."))
    row = Demonstration(messages, ROW, tools=(CALL_TOOL,))
    assert family_encoder("DEEPSEEK_V3").example(row).findings == ("hidden_tools",)
    assert family_encoder("HERMES").example(row).findings == ()


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    "text",
    [
        'f {"a": "x\\ny", "n": 1.0, "t": true, "u": "\\u00fc & \\"q\\""}',
        'f {"a": "x\\ny", "n": 1.0, "t": true, "u": "ü \\u0026 \\"q\\""}',
        "f(a='x\\ny', n=1.0, t=True, u='ü & \"q\"')",
        '<f><a>x\ny</a><n>1</n><t>True</t><u>ü &amp; "q"</u></f>',
        'f {\\"a\\": \\"x\\\\ny\\", \\"n\\": 1.0, \\"t\\": true, \\"u\\": \\"ü & \\\\\\"q\\\\\\"\\"}',
    ],
)
def test_a_call_is_found_in_every_notation(text: str) -> None:
    assert lost_part([call(a="x\ny", n=1.0, t=True, u='ü & "q"')], text) is None


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("", "a call of 'f'"),
        ('f {"a": ""}', "'a'"),
        ('f {"a": "xy", "b": {"c": [1]}}', "'b.c'"),
        ('f {"a": "xy", "b": [2]}', "'b.c'"),
    ],
)
def test_what_is_lost_is_named(text: str, lost: str) -> None:
    found = lost_part([call(a="xy", b={"c": [2]})], text)
    assert found is not None and lost in found


def test_what_only_the_content_says_is_not_the_call() -> None:
    assert lost_part([call(a="xy")], "f: xy a f", beside="f: xy a f") is not None
    assert lost_part([call(a="xy")], 'f: xy a {"name": "f", "a": "xy"}', beside="f: xy a") is None
    assert lost_part([call(), call()], "f()") is not None and lost_part([call(), call()], "f() f()") is None


def test_arguments_in_the_form_that_is_asked_for() -> None:
    assert call_in_form(call(b="ü", a=1), "text")["function"]["arguments"] == '{"b": "ü", "a": 1}'
    text = {"function": {"name": "f", "arguments": '{"b": "ü", "a": 1}'}}
    assert call_in_form(text, "mapping")["function"]["arguments"] == {"b": "ü", "a": 1}
    assert call_in_form(text, "text")["function"]["arguments"] == '{"b": "ü", "a": 1}'
    odd = {"function": {"name": "f", "arguments": "no JSON"}}
    assert call_in_form(odd, "mapping")["function"]["arguments"] == "no JSON"


# ---------------------------------------------------------------- faults


TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ BODY }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("body", "kind", "shown"),
    [
        ("'' + m.tool_calls[0] if m.tool_calls else m.content", "TypeError", "line 2: "),
        ("m.tool_calls[0].name.upper() if m.tool_calls else m.content", "UndefinedError", "line 2: "),
    ],
)
def test_a_fault_inside_a_template_is_told_as_one(body: str, kind: str, shown: str) -> None:
    encoder = family_encoder("{# a comment #}\n" + TURNS.replace("BODY", body), specials=["<|user|>", "<|assistant|>"])
    with pytest.raises(
        TemplateError, match=f"a fault inside the tokenizer's chat template in line 2: {kind}"
    ) as caught:
        encoder.demonstration(Demonstration((Message("user", "q"), calling({"a": 1})), ROW))
    assert shown in caught.value.found and "roles: user, assistant" in caught.value.found


def test_a_templates_own_refusal_is_told_as_one() -> None:
    with pytest.raises(TemplateError, match="the chat template refuses this conversation: Only user") as caught:
        family_encoder("MISTRAL").prompt([Message("system", "s"), Message("user", "q")])
    assert caught.value.found == "roles: system, user"
