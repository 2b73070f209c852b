"""T78: a tool call that a template does not write.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.errors import TemplateError
from posttrain.types import Demonstration, Message, RowRef
from tests.encoding import CALL_TOOL, calling, family_encoder, trained_runs

ROW = RowRef("t.jsonl", 1)
HARD: dict[str, Any] = {
    "city": 'Zürich & "<co>"',
    "days": 3,
    "wet": True,
    "degrees": 1.5,
    "tags": ["alpha", "it's"],
    "place": {"deep": "gamma\nline"},
    "none": None,
}
WRITES_CALLS = ["HERMES", "QWEN3", "QWEN35_THINK", "GEMMA4", "EXAONE4", "LFM2", "GLM4", "DEEPSEEK_V3", "GPT_OSS"]
WRITES_CALLS += ["COHERE", "MISTRAL"]


def trace(*arguments: dict[str, Any], content: str | None = None) -> Demonstration:
    results = tuple(
        Message("tool", "rain", name="weather", tool_call_id=f"call{n:05d}") for n in range(1, len(arguments) + 1)
    )
    messages = (
        Message("user", "Weather?"),
        calling(*arguments, content=content),
        *results,
        Message("assistant", "Rain."),
    )
    return Demonstration(messages, ROW, tools=(CALL_TOOL,))


@pytest.mark.parametrize("family", ["GEMMA4_LOSES_CALLS", "FALCON_H1", "NEMOTRON3"])
@pytest.mark.parametrize("content", [None, "I look."])
def test_a_template_that_drops_calls_is_refused(family: str, content: str | None) -> None:
    encoder = family_encoder(family)
    with pytest.raises(TemplateError, match="chat template does not write a call of 'weather'") as caught:
        encoder.demonstration(trace({"city": "Oslo"}, content=content))
    assert "Oslo" in caught.value.found and "chatml" in caught.value.remedy


@pytest.mark.parametrize("family", WRITES_CALLS)
@pytest.mark.parametrize("arguments", [({"city": "Oslo"},), ({},), (HARD,)], ids=["one", "none", "every kind of value"])
def test_calls_that_are_written_train(family: str, arguments: tuple[dict[str, Any], ...]) -> None:
    encoder = family_encoder(family)
    runs = [run for tree in encoder.demonstration(trace(*arguments)) for run in trained_runs(encoder, tree)]
    assert len(runs) == 2 and "weather" in runs[0] and "Rain." in runs[1]
    assert "city" in runs[0] or not arguments[0]


@pytest.mark.parametrize("family", [name for name in WRITES_CALLS if name != "GPT_OSS"])
def test_all_calls_of_a_turn_are_looked_for(family: str) -> None:
    encoder = family_encoder(family)
    (first, *_) = [
        run
        for tree in encoder.demonstration(trace({"city": "Oslo"}, {"city": "Rome"}))
        for run in trained_runs(encoder, tree)
    ]
    assert "Oslo" in first and "Rome" in first


def test_a_template_that_writes_the_first_call_alone_is_refused_for_two() -> None:
    with pytest.raises(TemplateError, match="does not write a call of 'weather'"):
        family_encoder("GPT_OSS").demonstration(trace({"city": "Oslo"}, {"city": "Rome"}))


@pytest.mark.parametrize("dropped", ["arguments", "keys"])
def test_arguments_are_looked_for_as_well(dropped: str) -> None:
    kept = "{{ c.function.arguments.values() | list | tojson }}" if dropped == "keys" else ""
    source = (
        "{{ tools | tojson }}{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}" + kept + "{% endfor %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoder = family_encoder(source, specials=["<|user|>", "<|assistant|>", "<|tool|>"])
    with pytest.raises(TemplateError, match="the argument 'city' of the call of 'weather'"):
        encoder.demonstration(trace({"city": "Oslo"}))


def test_a_content_that_names_the_call_is_no_call() -> None:
    row = trace({"city": "Oslo"}, content="I call weather for the city Oslo.")
    with pytest.raises(TemplateError, match="does not write a call of 'weather'"):
        family_encoder("FALCON_H1").demonstration(row)


def test_calls_of_earlier_turns_must_stand_in_the_context() -> None:
    messages = trace({"city": "Oslo"}).messages
    untrained = (messages[0], Message("assistant", None, messages[1].tool_calls, train=False), *messages[2:])
    with pytest.raises(TemplateError, match="leaves out the tool calls of earlier turns"):
        family_encoder("FALCON_H1").demonstration(Demonstration(untrained, ROW, tools=(CALL_TOOL,)))
    with pytest.raises(TemplateError, match="leaves out the tool calls of earlier turns"):
        family_encoder("FALCON_H1").prompt(messages[:3], [CALL_TOOL])
    family_encoder("HERMES").prompt(messages[:3], [CALL_TOOL])


_TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}CALLS</s>{% endfor %}"
_TURNS += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
_ROLES = ["<|user|>", "<|assistant|>", "<|tool|>"]
_KEYS_ALONE = (
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.keys() | join }}){% endfor %}"
)
_LAST_ALONE = "{% if loop.last and m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"


@pytest.mark.parametrize(
    "arguments", [{"city": "city"}, {"city": "weather"}, {"city": "it"}, {"a3": 3}, {"is_true": True}]
)
def test_a_value_that_stands_in_its_key_or_in_the_name_is_looked_for_on_its_own(arguments: dict[str, Any]) -> None:
    row = Demonstration(trace(arguments).messages, ROW)
    with pytest.raises(TemplateError, match="does not write"):
        family_encoder(_TURNS.replace("CALLS", _KEYS_ALONE), specials=_ROLES).demonstration(row)
    (tree,) = family_encoder("HERMES").demonstration(row)
    assert tree.num_tokens


@pytest.mark.parametrize("content", [None, "Oslo city weather", "I call weather for the city of Oslo."])
def test_words_of_the_content_are_no_call_in_the_context_either(content: str | None) -> None:
    encoder = family_encoder(_TURNS.replace("CALLS", _LAST_ALONE), specials=_ROLES)
    row = Demonstration(trace({"city": "Oslo"}, content=content).messages, ROW)
    with pytest.raises(TemplateError, match="leaves out the tool calls of earlier turns"):
        encoder.demonstration(row)
    (tree,) = family_encoder("HERMES").demonstration(row)
    assert tree.num_tokens
