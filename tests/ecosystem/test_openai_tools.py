"""The `openai` client and tools: a call is parsed back from the model's own template, and its result is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.serving import Server
from tests.ecosystem.conftest import asking, client_of

pytestmark = pytest.mark.ecosystem


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


@pytest.fixture
def caller(scripted: Server) -> Iterator[Any]:
    with client_of(scripted, "none") as client:
        yield client


def test_a_tool_is_called_and_its_result_read(caller: Any, scripted: Server) -> None:
    messages: list[Any] = asking("What is 17 and 25?")
    called = caller.chat.completions.create(
        model=scripted.model, messages=messages, tools=[ADD], temperature=0
    ).choices[0]
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert (call.type, call.function.name) == ("function", "add")
    assert call.function.arguments == '{"a": 17, "b": 25}'
    messages += [called.message, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    said = caller.chat.completions.create(model=scripted.model, messages=messages, tools=[ADD], temperature=0).choices[
        0
    ]
    assert said.message.content == "The sum is 42."
    assert said.finish_reason == "stop"
    assert not said.message.tool_calls


def test_a_call_streams(caller: Any, scripted: Server) -> None:
    asked = {"model": scripted.model, "messages": asking("Add 17 and 25."), "tools": [ADD], "temperature": 0}
    with caller.chat.completions.stream(
        **{**asked, "tools": [{**ADD, "function": {**ADD["function"], "strict": True}}]}
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 17, "b": 25}')


def test_no_tools_no_calls(caller: Any, scripted: Server) -> None:
    asked = {"model": scripted.model, "messages": asking("Add 17 and 25."), "tools": [ADD], "temperature": 0}
    answer = caller.chat.completions.create(**asked, tool_choice="none").choices[0]
    assert answer.finish_reason == "stop"
    assert not answer.message.tool_calls


def test_a_template_without_tools_refuses_them(openai_client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="tools"):
        openai_client.chat.completions.create(model="embedded", messages=asking("Hello."), tools=[ADD])
