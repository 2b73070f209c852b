"""What the probes find out about a template, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.templates.template import ChatTemplate, StopToken
from posttrain.data.tokens import Tokens
from posttrain.errors import ConfigError, TemplateError
from posttrain.types import Message
from tests.fixtures import CHATML, TEMPLATES, byte_tokenizer


def template_of(
    template: str | None, name: str = "chat", kwargs: dict[str, Any] | None = None, **options: Any
) -> ChatTemplate:
    return ChatTemplate(Tokens(byte_tokenizer(template, **options)), name, kwargs or {})


STOPS = {
    "CHATML": "<|im_end|>",
    "CHATML_DEFAULT_SYSTEM": "<|im_end|>",
    "BOS_IN_TEMPLATE": "</s>",
    "NO_BOS": "</s>",
    "NO_GENERATION_PROMPT": "</s>",
    "NO_TERMINATOR": "</s>",
    "TURN_END": "<turn_end>",
    "THINK_DROPPED": "<|im_end|>",
    "THINK_PREFILL": "<|im_end|>",
    "THINK_PREFILL_VERBATIM": "<|im_end|>",
    "NO_SYSTEM": "<end_of_turn>",
    "GEMMA_LIKE": "<end_of_turn>",
    "LLAMA3_LIKE": "<|eot_id|>",
    "MISTRAL_LIKE": "</s>",
    "PHI3_LIKE": "<|end|>",
    "TOOLS": "<|im_end|>",
}


def test_every_template_of_the_fixtures_is_covered() -> None:
    assert set(STOPS) == set(TEMPLATES)


@pytest.mark.parametrize(("name", "stop"), STOPS.items())
def test_the_stop_token_is_found(name: str, stop: str) -> None:
    assert [found.text for found in template_of(name).stops] == [stop]


def test_a_stop_token_that_only_stands_between_turns_is_found() -> None:
    text = "{% for m in messages %}<|user|>{{ m.content }}{% if not loop.last %}<|end|>{% endif %}{% endfor %}"
    template = template_of(text, specials=["<|user|>", "<|end|>"])
    assert [stop.text for stop in template.stops] == ["<|end|>"]


def test_the_next_header_is_no_stop_token() -> None:
    text = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    template = template_of(text, specials=["<|user|>", "<|assistant|>"])
    assert [stop.text for stop in template.stops] == ["</s>"]
    assert "'</s>' is put there" in template.notes[0]


def test_a_stop_token_may_be_an_ordinary_word_of_the_vocabulary() -> None:
    turns = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    template = template_of(turns + "{% if add_generation_prompt %}assistant:{% endif %}")
    number = template.tokens.whole(";")[0]
    assert template.stops == (StopToken(";", number),)


def test_a_terminator_of_several_tokens_is_refused() -> None:
    with pytest.raises(TemplateError, match="not one token") as caught:
        template_of(CHATML)  # without <|im_start|> and <|im_end|> among the tokens
    assert "'<|im_end|>' is 10 tokens" in str(caught.value) and "chatml" in str(caught.value)


def test_a_missing_generation_prompt_is_added_and_said() -> None:
    template = template_of("NO_GENERATION_PROMPT")
    assert template.prompt([{"role": "user", "content": "a"}]) == "<|user|>a</s><|assistant|>"
    assert "'<|assistant|>' is added" in template.notes[0]
    assert template.source.endswith("{{ '<|assistant|>' }}{% endif %}")


def test_no_template_names_the_ways_out() -> None:
    with pytest.raises(TemplateError) as caught:
        template_of(None)
    for remedy in ("`template: raw`", "`template: chatml`", ".jinja"):
        assert remedy in str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="the chat template `chatlm` is not known") as caught:
        template_of(None, name="chatlm")
    assert "`chatml`" in caught.value.remedy


def test_a_template_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATES["TURN_END"])
    template = template_of(None, name=str(path), specials=["<turn>", "<turn_end>"])
    assert template.prompt([{"role": "user", "content": "a"}]) == "<turn>user\na<turn_end>\n<turn>assistant\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}</s>", "neither question nor answer"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}</s>",
            "neither question",
        ),
        ("{{ nonsense(1) }}", "a fault inside the tokenizer's chat template in line 1: UndefinedError"),
        ("{% for m in messages %}", "is not valid Jinja"),
    ],
)
def test_templates_that_cannot_serve_are_refused(text: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        template_of(text)


def test_a_finished_turn_that_does_not_begin_as_it_was_asked_for_is_refused() -> None:
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    template = template_of(turns + "{% if add_generation_prompt %}<bot>{% endif %}")
    with pytest.raises(TemplateError, match="otherwise than the prompt that asks for it"):
        template.turn([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], 1)


def test_a_refused_role_says_which_roles_there_were() -> None:
    template = template_of("NO_SYSTEM")
    with pytest.raises(TemplateError, match="System role not supported") as caught:
        template.prompt([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    assert caught.value.found == "roles: system, user"


def test_hidden_roles_are_noticed() -> None:
    silent = (
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
        "<{{ m.role }}>{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    template = template_of(silent + "{% if add_generation_prompt %}<assistant>{% endif %}")
    assert template.hides("system") and template.hides("tool") and not template.hides("user")
    assert not template_of("CHATML").hides("system")


def test_an_absent_content_is_never_printed_as_none() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    message = Message("assistant", None, tool_calls=(call,))
    naive = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ (m.tool_calls or '') | string }}</s>{% endfor %}"
    ask = "{% if add_generation_prompt %}<assistant>{% endif %}"
    for template in (template_of("TOOLS"), template_of(naive + ask)):
        text = template.render([{"role": "user", "content": "1 + 2"}, template.plain(message)])
        assert "add" in text and "None" not in text


def test_a_message_as_templates_read_it() -> None:
    message = Message("tool", "3", name="add", tool_call_id="c1")
    assert template_of("TOOLS").plain(message) == {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"}
    thought = Message("assistant", "4", reasoning="2 + 2")
    assert template_of("TOOLS").plain(thought)["reasoning_content"] == "2 + 2"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("b", "b"),
        ("b</s>", "b"),
        ("b<|im_end|>\n", "b"),
        ("b</s><|im_end|>", "b"),
        ("b</s> c", "b</s> c"),
        ("b\n", "b\n"),
    ],
)
def test_stop_texts_at_the_end_of_an_answer_are_taken_off(content: str, expected: str) -> None:
    assert template_of("CHATML").without_stops(content) == expected


def test_another_terminator_for_tool_calls_is_a_stop_token_too() -> None:
    text = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
        "{{ '<|eom|>' if m.tool_calls else '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    template = template_of(text, specials=["<|eot|>", "<|eom|>"])
    assert [stop.text for stop in template.stops] == ["<|eot|>", "<|eom|>"]
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    turn = template.turn(messages, 1)
    assert (turn.completion, turn.stop and turn.stop.text) == ("add", "<|eom|>")


def test_a_template_that_writes_the_date_is_said() -> None:
    template = template_of("{{ strftime_now('%Y') }}" + CHATML, specials=["<|im_start|>", "<|im_end|>"])
    assert "today's date" in template.notes[0]


def test_template_kwargs_reach_the_template() -> None:
    text = "{{ mood }}" + CHATML
    template = template_of(text, kwargs={"mood": "calm "}, specials=["<|im_start|>", "<|im_end|>"])
    assert template.prompt([{"role": "user", "content": "a"}]).startswith("calm <|im_start|>")


def test_chatml_is_built_in_with_tools_and_a_real_stop_token() -> None:
    known = template_of(None, name="chatml", specials=["<|im_start|>", "<|im_end|>"])
    assert [stop.text for stop in known.stops] == ["<|im_end|>"]
    unknown = template_of(None, name="chatml")
    assert [stop.text for stop in unknown.stops] == ["</s>"]
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    text = known.render(
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "U"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "three", "reasoning_content": "hm"},
        ],
        [tool],
    )
    assert text == (
        "<|im_start|>system\nS\n\n# Tools\n\nYou may call these functions. Each call is a JSON object between "
        "<tool_call> and </tool_call>.\n<tools>\n"
        + '{"type": "function", "function": {"name": "add", "parameters": {}}}'
        "\n</tools><|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n<|im_start|>tool\n3<|im_end|>\n'
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\nthree<|im_end|>\n"
    )


def test_raw_writes_texts_and_eos_and_the_tokenizers_bos() -> None:
    messages = [{"role": "user", "content": "Once "}, {"role": "assistant", "content": "upon"}]
    assert template_of(None, name="raw").render(messages) == "Once upon</s>"
    assert template_of(None, name="raw", add_bos=True).render(messages) == "<s>Once upon</s>"
    already = [{"role": "user", "content": "<s>Once "}]
    assert template_of(None, name="raw", add_bos=True).prompt(already) == "<s>Once "


def test_raw_needs_an_eos_token() -> None:
    with pytest.raises(TemplateError, match="this tokenizer has none"):
        template_of(None, name="raw", eos=None)
