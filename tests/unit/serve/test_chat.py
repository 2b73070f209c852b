"""`/v1/chat/completions`: prompts by the model's own template, and what its answers are read as."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from posttrain.data.encode import Encoder
from posttrain.rollout.engine import FinishReason
from posttrain.serve.served import ServedPolicy
from posttrain.types import Message
from tests.family_templates import FAMILIES
from tests.unit.serve.kit import HI, client_of, events_of, scripted_policy, tiny_policy

POLICY = tiny_policy()
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]
ADD = '{"name": "add", "arguments": {"a": 1}}'


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(POLICY) as client:
        yield client


def family(name: str, *answers: str, **options: Any) -> ServedPolicy:
    source, specials = FAMILIES[name]
    return scripted_policy(*answers, template=source, specials=specials, **options)


def asked(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json={"messages": HI, **body})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def streamed(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/chat/completions", json={"messages": HI, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events_of(answer.text)
    assert last == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def message_of(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """A stream's deltas put together, as OpenAI's client does it."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for choice in (c for chunk in chunks for c in chunk["choices"] if c["index"] == index):
        delta = choice["delta"]
        message["role"] = delta.get("role", message.get("role"))
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", []):
            assert call["index"] == len(message["tool_calls"]), "one delta for each call"
            message["tool_calls"].append({key: value for key, value in call.items() if key != "index"})
        message["finish_reason"] = choice["finish_reason"] or message.get("finish_reason")
    return message


def refused(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json={"messages": HI, **body})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("name", ["HERMES", "QWEN3", "QWEN35_THINK", "GLM4", "MISTRAL", "COHERE", "LFM2"])
@pytest.mark.parametrize("tools", [[], TOOLS])
def test_prompt_ids_are_those_of_training(name: str, tools: list[Any]) -> None:
    policy = family(name, "ok")
    messages = (Message("system", "Be kind."), Message("user", "Hi")) if name != "MISTRAL" else (Message("user", "Hi"),)
    with client_of(policy) as client:
        answer = asked(
            client,
            messages=[{"role": message.role, "content": message.content} for message in messages],
            tools=tools,
            return_token_ids=True,
        )
    expected = Encoder(policy.encoder.tokenizer, policy.encoder.settings).prompt(messages, tools)
    assert answer["prompt_token_ids"] == expected
    assert policy.engine.requests[0].prompt == expected  # type: ignore[attr-defined]


def test_contents_in_parts_and_developers(client: TestClient) -> None:
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]}]
    plain = [{"role": "system", "content": "Be kind."}]
    body: dict[str, Any] = {"max_tokens": 1, "return_token_ids": True}
    first = asked(client, messages=parts + HI, **body)["prompt_token_ids"]
    assert first == asked(client, messages=plain + HI, **body)["prompt_token_ids"]


def test_an_empty_answer_comes_back_in_the_next_request(client: TestClient) -> None:
    asked(client, messages=[*HI, {"role": "assistant", "content": "", "refusal": None}, *HI], max_tokens=1)


def test_the_beginning_of_an_answer_is_continued(client: TestClient) -> None:
    messages = [*HI, {"role": "assistant", "content": "Good"}]
    body: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False, "max_tokens": 1}
    answer = asked(client, messages=messages, return_token_ids=True, **body)
    prompt = POLICY.encoder.prompt((Message("user", "Hi"),))
    assert answer["prompt_token_ids"] == [*prompt, *POLICY.encoder.tokens.ids("Good")]
    assert refused(client, **body)["param"] == "continue_final_message"
    both = {**body, "add_generation_prompt": True}
    assert refused(client, messages=messages, **both)["param"] == "add_generation_prompt"


def test_values_of_the_template() -> None:
    policy = family("QWEN3", "ok")
    with client_of(policy) as client:
        answer = asked(client, chat_template_kwargs={"enable_thinking": False}, return_token_ids=True)
        text = policy.encoder.tokens.decode(answer["prompt_token_ids"])
        assert text.endswith("<think>\n\n</think>\n\n")
        for name in ("messages", "tokenize", "chat_template", "tools", "add_generation_prompt", "bos_token", "enable"):
            error = refused(client, chat_template_kwargs={name: "x"})
            assert error["param"] == f"chat_template_kwargs.{name}"
        assert refused(client, chat_template_kwargs={"enable_thinking": "x" * 3000})["param"] == "chat_template_kwargs"
        assert refused(client, reasoning_effort="high")["param"] == "reasoning_effort"
        assert asked(client, chat_template_kwargs={"enable_thinking": None})


# ---------------------------------------------------------------- answers


def test_the_answer_and_its_stream(client: TestClient) -> None:
    body: dict[str, Any] = {"seed": 4, "n": 3, "max_tokens": 20, "temperature": 0.8}
    whole = asked(client, **body)
    chunks = streamed(client, stream_options={"include_usage": True}, **body)
    assert whole["object"] == "chat.completion" and chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["choices"] == []
    for index, choice in enumerate(whole["choices"]):
        message = message_of(chunks, index)
        assert message["content"] == choice["message"]["content"]
        assert message["finish_reason"] == choice["finish_reason"]


def test_log_probs_of_a_chat(client: TestClient) -> None:
    body: dict[str, Any] = {"seed": 4, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    content = asked(client, **body)["choices"][0]["logprobs"]["content"]
    assert [sorted(entry) for entry in content] == [["bytes", "logprob", "token", "top_logprobs"]] * 3
    assert [len(entry["top_logprobs"]) for entry in content] == [2, 2, 2]
    pieces = [c["logprobs"]["content"] for chunk in streamed(client, **body) for c in chunk["choices"] if c["logprobs"]]
    assert [entry["token"] for piece in pieces for entry in piece] == [entry["token"] for entry in content]
    assert asked(client, max_tokens=1, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert refused(client, top_logprobs=2)["param"] == "top_logprobs"


def test_an_empty_answer_is_an_empty_text() -> None:
    with client_of(scripted_policy("")) as client:
        choice = asked(client)["choices"][0]
    assert choice["message"]["content"] == "" and choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("name", "answer", "reasoning", "content"),
    [
        ("QWEN3", "<think>\n2 and 2\n</think>\n\n4.", "2 and 2", "4."),
        ("QWEN35_THINK", "2 and 2\n</think>\n\n4.", "2 and 2", "4."),
        ("QWEN35_THINK", "2 and", "2 and", ""),
        ("QWEN3", "4.", None, "4."),
        ("HERMES", "<think>2</think>4.", None, "<think>2</think>4."),
    ],
)
def test_thoughts_stand_apart_where_the_template_knows_them(
    name: str, answer: str, reasoning: str | None, content: str
) -> None:
    with client_of(family(name, answer)) as client:
        message = asked(client)["choices"][0]["message"]
        pieces = message_of(streamed(client))
    assert message.get("reasoning_content") == reasoning and message["content"] == content
    assert (pieces["reasoning_content"], pieces["content"]) == (reasoning or "", content)


def call_text(name: str) -> str:
    """What the family's template has its model write for one call of `add`."""
    policy = family(name, "ok")
    template = policy.encoder.template
    call = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    message = template.plain(Message("assistant", None, tool_calls=(call,)))
    context = template.prompt([{"role": "user", "content": "Hi"}], TOOLS).removesuffix(template.layout.prefill)
    rendered = template.render([{"role": "user", "content": "Hi"}, message], TOOLS)
    return str(template.cut_tail(rendered[len(context) :], [message])[0])


@pytest.mark.parametrize("name", ["HERMES", "QWEN3", "GEMMA4", "LFM2", "GLM4", "COHERE", "MISTRAL"])
def test_tool_calls_come_back(name: str) -> None:
    """Marks of calls are special tokens in most of these: they are read, and shown to nobody."""
    with client_of(family(name, call_text(name))) as client:
        choice = asked(client, tools=TOOLS)["choices"][0]
        pieces = message_of(streamed(client, tools=TOOLS, tool_choice="auto"))
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"
    assert call["type"] == "function" and call["id"].isalnum() and len(call["id"]) == 9
    assert call["function"]["name"] == "add" and json.loads(call["function"]["arguments"]) == {"a": 1}
    assert pieces["finish_reason"] == "tool_calls"
    assert [c["function"] for c in pieces["tool_calls"]] == [call["function"]]


def test_a_call_and_its_result_go_on() -> None:
    policy = family("HERMES", f"Let me see.\n<tool_call>\n{ADD}\n</tool_call>", "2")
    with client_of(policy) as client:
        message = asked(client, tools=TOOLS)["choices"][0]["message"]
        assert message["content"] == "Let me see."
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "2", "name": "add"}
        asked(client, messages=[*HI, message, result], tools=TOOLS)
    prompt = policy.encoder.tokens.decode(policy.engine.requests[1].prompt)  # type: ignore[attr-defined]
    assert '{"name": "add", "arguments": {"a": 1}}' in prompt and "tool\n2<|im_end|>" in prompt


def test_without_tools_no_call_is_looked_for() -> None:
    policy = family("HERMES", f"<tool_call>\n{ADD}\n</tool_call>")
    with client_of(policy) as client:
        for body in ({}, {"tools": TOOLS, "tool_choice": "none"}):
            choice = asked(client, **body)["choices"][0]
            assert "tool_calls" not in choice["message"] and ADD in choice["message"]["content"]
    prompts = [policy.encoder.tokens.decode(request.prompt) for request in policy.engine.requests]  # type: ignore[attr-defined]
    assert prompts[0] == prompts[1], "a model that is to call none is shown none"


def test_marks_of_calls_are_shown_where_tools_are() -> None:
    with client_of(family("MISTRAL", "[TOOL_CALLS]x")) as client:
        assert asked(client)["choices"][0]["message"]["content"] == "x"
        assert asked(client, tools=TOOLS)["choices"][0]["message"]["content"] == "[TOOL_CALLS]x"


def test_a_thought_that_was_begun_goes_on() -> None:
    policy = family("QWEN35_THINK", " and 2</think>4.")
    messages = [*HI, {"role": "assistant", "content": "2"}]
    with client_of(policy) as client:
        message = asked(client, messages=messages, continue_final_message=True)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("and 2", "4.")


def test_a_call_that_the_limit_cuts_is_text() -> None:
    with client_of(family("HERMES", f"<tool_call>\n{ADD}\n</tool_call>", finish=FinishReason.LENGTH)) as client:
        choice = asked(client, tools=TOOLS, max_tokens=20)["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"].startswith("<tool_call>")


def test_calls_of_one_answer_are_counted_and_a_limit_behind_them_is_told() -> None:
    text = f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{ADD}\n</tool_call>"
    with client_of(family("HERMES", text, finish=FinishReason.LENGTH)) as client:
        choice = asked(client, tools=TOOLS)["choices"][0]
        pieces = message_of(streamed(client, tools=TOOLS))
    assert len(choice["message"]["tool_calls"]) == len(pieces["tool_calls"]) == 2
    assert choice["finish_reason"] == pieces["finish_reason"] == "length", "a client that asks on must know"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "human", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 4}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "Hi", "images": ["x"]}]}, "messages[0].images"),
        ({"messages": [{"role": "user", "content": "Hi", "tool_calls": [{"name": "a"}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls"),
        ({"tools": {"a": 1}}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": TOOLS}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"echo": True}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"prompt": "Hi"}, "prompt"),
        ({"top_logprobs": 30, "logprobs": True}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, "messages"),
    ],
)
def test_every_wrong_field_is_named(client: TestClient, body: dict[str, Any], param: str) -> None:
    error = refused(client, **body)
    assert error["param"] == param
    assert "remedy" in error["message"] and "row" not in error["message"].split()


def test_what_a_template_refuses_is_the_clients_fault_and_shows_no_path() -> None:
    with client_of(scripted_policy("ok", template="NO_SYSTEM")) as client:
        error = refused(client, messages=[{"role": "system", "content": "Be kind."}, *HI])
    assert "System role not supported" in error["message"] and "/" not in error["message"].replace("and/or", "")


@pytest.mark.parametrize(("name", "words"), [("DEEPSEEK_V3", "shows no tools"), ("FALCON_H1", "writes no tool calls")])
def test_tools_of_a_template_that_cannot_call_them(name: str, words: str) -> None:
    with client_of(family(name, "ok")) as client:
        error = refused(client, tools=TOOLS)
    assert error["param"] == "tools" and words in error["message"]
