"""Tool calls read back from what each family's template writes, found by rendering alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.data.templates.call_text import call_in_form
from posttrain.data.templates.probe import QUESTION
from posttrain.errors import TemplateError
from posttrain.serve.call_format import CallFormat, call_format
from posttrain.serve.call_notations import NOTATIONS, Call
from tests.chat_templates import TEMPLATE_TOKENS, TEMPLATES
from tests.family_templates import FAMILIES
from tests.unit.serve.kit import encoder_of

LLAMA31 = """\
{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>

{{ tools | tojson }}<|eot_id|>{% endif %}{% for m in messages %}\
<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>

{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}\
{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{% else %}{{ m.content | trim }}{% endif %}\
<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
"""Nothing announces a call, and arguments are called parameters."""
MISTRAL11 = """\
{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}\
{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}\
[/TOOL_RESULTS]{% else %}{{ m.content or '' }}{% for t in m.tool_calls or [] %}[TOOL_CALLS]{{ t.function.name }}[ARGS]\
{{ t.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"""
"""The name and the arguments behind marks of their own."""
OWN = {
    "TOOLS": (TEMPLATES["TOOLS"], TEMPLATE_TOKENS["TOOLS"]),
    "LLAMA31": (LLAMA31, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")),
    "MISTRAL11": (MISTRAL11, ("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")),
}
NOTATION_OF = {
    "HERMES": "json",
    "QWEN3": "json",
    "QWEN35_THINK": "xml",
    "GEMMA4": "braced",
    "EXAONE4": "json",
    "LFM2": "python",
    "GLM4": "keyed",
    "DEEPSEEK_V3": "named_json",
    "DEEPSEEK_R1": "named_json",
    "GPT_OSS": "named_json",
    "COHERE": "json",
    "MISTRAL": "json_list",
    "TOOLS": "json",
    "LLAMA31": "json",
    "MISTRAL11": "named_json",
}
ARGUMENTS: dict[str, Any] = {"city": 'Sankt Pölten, "old" town\'s', "days": 3, "share": 0.5, "now": True}
DEEP: dict[str, Any] = {"list": [1, "b"], "nested": {"deep": "c"}}
PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "share": {"type": "number"},
    "now": {"type": "boolean"},
    "list": {"type": "array"},
    "nested": {"type": "object"},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}}
    for name in ("weather", "get_time.now")
]


def template_of(family: str) -> Any:
    source, specials = {**FAMILIES, **OWN}[family]
    return encoder_of(source, specials=specials).template


def format_of(family: str) -> CallFormat:
    found = call_format(template_of(family))
    assert found is not None
    return found


def written(family: str, *calls: tuple[str, dict[str, Any]]) -> str | None:
    """What the family's template has a model write for these calls; None where it refuses so many."""
    template = template_of(family)
    plain = [
        call_in_form(
            {"id": f"call{i:05d}", "type": "function", "function": {"name": name, "arguments": arguments}},
            template.calls.form,
        )
        for i, (name, arguments) in enumerate(calls)
    ]
    turns = [QUESTION, {"role": "assistant", "content": template.null_content, "tool_calls": plain}]
    context = template.prompt([QUESTION], TOOLS).removesuffix(template.layout.prefill)
    try:
        rendered = template.render(turns, TOOLS)
        return str(template.cut_tail(rendered[len(context) :], turns)[0])
    except TemplateError:
        return None


@pytest.mark.parametrize("family", sorted(NOTATION_OF))
def test_calls_of_every_family_come_back(family: str) -> None:
    reader = format_of(family)
    assert reader.notation == NOTATION_OF[family]
    # Neither of these two writes deep values as anything that could be read: Python's and Jinja's own notation.
    arguments = ARGUMENTS if family in ("GEMMA4",) else {**ARGUMENTS, **DEEP}
    one = written(family, ("weather", arguments))
    assert one is not None
    calls = [part for part in reader.read(one, TOOLS) if isinstance(part, Call)]
    assert [(call.name, dict(call.arguments)) for call in calls] == [("weather", arguments)]


@pytest.mark.parametrize("family", sorted(set(NOTATION_OF) - {"GPT_OSS", "LLAMA31"}))
def test_two_calls_of_one_turn(family: str) -> None:
    text = written(family, ("weather", {"city": "Graz"}), ("get_time.now", {"days": 2}))
    assert text is not None
    calls = [part for part in format_of(family).read(text, TOOLS) if isinstance(part, Call)]
    assert [(call.name, dict(call.arguments)) for call in calls] == [
        ("weather", {"city": "Graz"}),
        ("get_time.now", {"days": 2}),
    ]


@pytest.mark.parametrize("family", sorted(NOTATION_OF))
@pytest.mark.parametrize("text", ["Plain.", '{"answer": 4}', "[1, 2]", "<tool_call>", "call: me", "functions"])
def test_what_is_no_call_stays_text(family: str, text: str) -> None:
    assert "".join(map(str, format_of(family).read(text, TOOLS))) == text


def test_templates_without_calls_have_no_format() -> None:
    assert call_format(template_of("FALCON_H1")) is None
    assert call_format(encoder_of("CHATML").template) is None


def test_a_call_behind_llamas_python_tag() -> None:
    text = '<|python_tag|>{"name": "weather", "parameters": {"city": "Graz"}}'
    assert format_of("LLAMA31").read(text, TOOLS) == [Call("weather", {"city": "Graz"})]


@pytest.mark.parametrize(
    "text",
    [
        "[f(__import__('os').system('true'))]",
        "[f(**{'a': 1})]",
        "[f(1)]",
        "[f(a={1, 2})]",
        "[f(a=b)]",
        "[" * 500 + "f()]",
    ],
)
def test_python_notation_runs_and_reads_nothing_but_literals(text: str) -> None:
    assert NOTATIONS["python"](text, 0, "") is None


@pytest.mark.parametrize("notation", sorted(NOTATIONS))
@pytest.mark.parametrize(
    "text", ["", "{", "[", "[{", '{"name": 1}', "a" * 50, '{"a":' * 3000, "<function=", "call:a{b:"]
)
def test_torn_calls_are_no_calls(notation: str, text: str) -> None:
    assert NOTATIONS[notation](text, 0, "\n```json\n") is None


def test_values_that_are_text_are_typed_by_the_schema() -> None:
    text = written("QWEN35_THINK", ("weather", {"city": "12", "days": 12}))
    assert text is not None
    (call,) = [part for part in format_of("QWEN35_THINK").read(text, TOOLS) if isinstance(part, Call)]
    assert json.dumps(call.arguments) == '{"city": "12", "days": 12}'
