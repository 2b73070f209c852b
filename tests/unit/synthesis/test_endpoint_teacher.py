"""A teacher behind an endpoint, against a fake server: what is sent, read and retried, and what ends all."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from posttrain.config.teacher import EndpointTeacher
from posttrain.errors import ConfigError, EngineError
from posttrain.synthesis.cost import Meter, TokenPace
from posttrain.synthesis.endpoint import MOST_IN_A_ROW, EndpointModel, read_reply, turn_of
from posttrain.synthesis.teacher import UNASKED, Ask, Drawing, Reply
from posttrain.types import Message
from tests.teacher_server import TeacherServer, asked, reply_with


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer() as server:
        yield server


def teacher(server: TeacherServer, **settings: Any) -> EndpointModel:
    made = EndpointModel(EndpointTeacher(**{"url": server.url, "model": "big", "retries": 2, **settings}))
    made.endpoint.first_wait = 0.001
    return made


def question(text: str, **fields: Any) -> Ask:
    return Ask((Message("user", text),), **fields)


def test_answers_come_in_the_order_of_the_questions(server: TeacherServer) -> None:
    def slow_first(body: dict[str, Any]) -> str:
        time.sleep(0.05 if asked(body) == "0" else 0)
        return f"answer to {asked(body)}"

    server.answer = slow_first
    arrived: list[int] = []
    big = teacher(server, concurrency=4)
    replies = big.ask([question(str(n)) for n in range(8)], lambda index, _: arrived.append(index))
    assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(8)]
    assert sorted(arrived) == list(range(8)) and arrived[0] != 0
    assert (big.spent.answers, big.spent.prompt_tokens, big.spent.completion_tokens) == (8, 80, 40)


def test_what_is_sent(server: TeacherServer) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    ask = question("2?", drawing=Drawing(0.5, 0.9, 64, ("\n\n",)), seed=2**40 + 7, tools=(tool,))
    teacher(server, limit_key="max_completion_tokens", extra_body={"reasoning_effort": "low"}).ask([ask])
    teacher(server, send_seed=False).ask([question("3?")])
    first, second = (body for _, body in server.seen)
    assert first == {
        "model": "big",
        "messages": [{"role": "user", "content": "2?"}],
        "temperature": 0.5,
        "max_completion_tokens": 64,
        "top_p": 0.9,
        "stop": ["\n\n"],
        "seed": 7,
        "tools": [tool],
        "reasoning_effort": "low",
    }
    assert set(second) == {"model", "messages", "temperature", "max_tokens"}


def test_tool_turns_are_sent_with_their_arguments_as_text() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turn = turn_of(Message("assistant", None, tool_calls=(call,)))
    assert turn["tool_calls"] == [
        {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ]
    assert turn_of(Message("tool", "3", tool_call_id="call_0", name="add"))["tool_call_id"] == "call_0"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (reply_with("4"), ("4", None, True)),
        (reply_with("4", finish="length"), ("4", None, False)),
        (reply_with("4", finish=None), ("4", None, False)),  # type: ignore[arg-type]
        (reply_with("4", reasoning_content="2 and 2"), ("4", "2 and 2", True)),
        (reply_with("<think>\n2 and 2</think>\n\n4"), ("4", "2 and 2", True)),
        (reply_with("2 and 2</think>4"), ("4", "2 and 2", True)),
        (reply_with("<think>2 and", finish="length"), ("", "<think>2 and", False)),
        (reply_with(None, refusal="I cannot help."), ("I cannot help.", None, True)),
        (reply_with([{"type": "text", "text": "4"}]), ("4", None, True)),  # type: ignore[arg-type]
        (reply_with(None, finish="length", reasoning="2 and"), ("", "2 and", False)),
        (reply_with(None, finish="length", reasoning_content="2 and"), ("", "2 and", False)),
        ({**reply_with("4"), "usage": [1]}, ("4", None, True)),
        ({**reply_with("4"), "usage": {"prompt_tokens": "many", "completion_tokens": None}}, ("4", None, True)),
    ],
)
def test_what_is_read(reply: dict[str, Any], expected: tuple[str, str | None, bool]) -> None:
    read = read_reply(reply)
    assert (read.text, read.reasoning, read.ended) == expected


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("<html>log in</html>", "no JSON .*<html>log in"),
        ('data: {"choices": []}\n\ndata: [DONE]', r"no JSON .*data: \[DONE\]"),
        ('{"choices": [{"mess', "no JSON .*choices"),
        ({"error": {"message": "no credit is left"}}, "no answer of chat completions: .*no credit is left"),
        ({"choices": []}, "no answer of chat completions"),
        ({"choices": [{"text": "4"}]}, "no answer of chat completions"),
        ({"choices": [{"message": "4"}]}, "no answer of chat completions"),
        ([1], "no answer of chat completions"),
        (r'{"choices": [{"message": {"content": "4 \ud83d"}}]}', "surrogates not allowed"),
    ],
)
def test_a_reply_that_is_no_answer_is_shown_and_ends_one_question(server: TeacherServer, sent: Any, words: str) -> None:
    server.answer = lambda body: (200, sent) if asked(body) == "a" else "4"
    broken, right = teacher(server, retries=1, concurrency=1).ask([question("a"), question("b")])
    assert broken.error is not None and re.search(words, broken.error)
    assert (right.text, right.error) == ("4", None) and server.questions == ["a", "a", "b"]


def test_tool_calls_are_read_with_their_arguments_as_mappings() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    read = read_reply(reply_with(None, finish="tool_calls", tool_calls=[call]))
    assert read.tool_calls == ({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},)
    assert read.ended and read.text == ""


def test_a_failure_that_passes_is_asked_again(server: TeacherServer) -> None:
    answers = iter([(503, {"error": "busy"}), (200, "no JSON"), (200, reply_with("4"))])
    server.answer = lambda body: next(answers)
    assert teacher(server).ask([question("2 + 2?")])[0].text == "4"
    assert len(server.seen) == 3


def test_retry_after_is_waited_for(server: TeacherServer) -> None:
    answers = iter([(429, {"error": "slow down"}), (200, reply_with("4"))])
    server.answer = lambda body: next(answers)
    server.headers = {"Retry-After": "0.2"}
    begin = time.monotonic()
    assert teacher(server).ask([question("2 + 2?")])[0].text == "4"
    assert time.monotonic() - begin >= 0.2


def test_a_question_that_is_given_up_stops_no_other(server: TeacherServer) -> None:
    server.answer = lambda body: (500, {"error": "broken"}) if asked(body) == "bad" else "fine"
    big = teacher(server, concurrency=1)
    replies = big.ask([question("a"), question("bad"), question("b")])
    assert [reply.text for reply in replies] == ["fine", "", "fine"]
    assert "HTTP 500" in str(replies[1].error) and replies[1].details["attempts"] == 3
    assert (big.spent.answers, big.spent.failures) == (2, 1)


def test_a_filtered_answer_is_an_error_of_its_own(server: TeacherServer) -> None:
    server.answer = lambda body: (200, reply_with("", finish="content_filter"))
    assert "filter" in str(teacher(server).ask([question("x")])[0].error)


def test_a_refused_key_ends_all_and_keeps_what_was_answered(
    server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")

    def answer(body: dict[str, Any]) -> Any:
        return "fine" if asked(body) == "0" else (401, {"error": "bad key sk-very-secret"})

    server.answer = answer
    kept: list[Reply] = []
    with pytest.raises(ConfigError, match="the teacher's endpoint refuses the request") as caught:
        teacher(server, key_env="TEACHER_KEY", concurrency=1).ask(
            [question(str(n)) for n in range(50)], lambda _, reply: kept.append(reply)
        )
    assert [reply.text for reply in kept if reply.error is None] == ["fine"]
    assert len(server.seen) == 2
    assert "sk-very-secret" not in str(caught.value) + repr(kept)
    assert server.seen[0][0]["Authorization"] == "Bearer sk-very-secret"


def test_a_dead_server_is_given_up_once_and_not_for_every_question() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    big = EndpointModel(EndpointTeacher(url=f"http://127.0.0.1:{port}/v1", model="big", retries=1))
    big.endpoint.first_wait = 0.001
    with pytest.raises(EngineError, match="the teacher `big` does not answer"):
        big.ask([question(str(n)) for n in range(1000)])
    assert big.endpoint.requests <= 2 * 8 * 2


def test_many_failures_in_a_row_end_all(server: TeacherServer) -> None:
    server.answer = lambda body: (500, {"error": "broken"})
    with pytest.raises(EngineError, match="does not answer") as caught:
        teacher(server, concurrency=1, retries=0).ask([question(str(n)) for n in range(100)])
    assert len(server.seen) == MOST_IN_A_ROW and f"{MOST_IN_A_ROW} questions in a row" in str(caught.value)


def test_a_request_that_is_refused_for_every_question_ends_all_with_its_words(server: TeacherServer) -> None:
    server.answer = lambda body: (400, {"error": "unknown parameter: seed"})
    with pytest.raises(ConfigError, match="refuses the request") as caught:
        teacher(server, concurrency=1).ask([question(str(n)) for n in range(100)])
    assert "unknown parameter: seed" in str(caught.value)


def test_a_missing_key_is_an_error_before_anything_is_sent(
    server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(ConfigError, match="TEACHER_KEY is not set"):
        teacher(server, key_env="TEACHER_KEY").ask([question("a")])
    assert server.seen == []


def test_asking_stops_when_the_money_is_spent(server: TeacherServer) -> None:
    # 10 prompt tokens at 1 and 5 of the answer at 2 for a million: 0.00002 an answer.
    big = teacher(server, concurrency=1, price={"prompt": 1, "completion": 2}, most_cost=0.00005)
    given: list[str | None] = []
    replies = big.ask([question(str(n)) for n in range(10)], lambda _, reply: given.append(reply.error))
    assert [reply.error for reply in replies] == [None] * 3 + [UNASKED] * 7
    assert len(server.seen) == 3 and len(given) == 10
    assert big.spent.cost == pytest.approx(0.00006)
    assert "most_cost: 5e-05" in str(big.spent.limit_reached)
    assert [reply.error for reply in big.ask([question("more")])] == [UNASKED]


def test_asking_stops_when_the_tokens_are_spent(server: TeacherServer) -> None:
    replies = teacher(server, concurrency=1, most_tokens=30).ask([question(str(n)) for n in range(10)])
    assert [reply.error for reply in replies] == [None] * 2 + [UNASKED] * 8


def test_a_limit_that_cannot_be_kept_is_refused(server: TeacherServer) -> None:
    server.answer = lambda body: (200, {"choices": reply_with("4")["choices"]})
    with pytest.raises(ConfigError, match="does not say how many tokens"):
        teacher(server, most_tokens=30).ask([question("a")])
    big = teacher(server)
    big.ask([question("a")])
    assert big.spent.uncounted == 1 and "without a count" in str(big.spent)


def test_requests_a_minute(server: TeacherServer) -> None:
    begin = time.monotonic()
    teacher(server, per_minute=1200).ask([question(str(n)) for n in range(5)])
    assert time.monotonic() - begin >= 4 * 0.05


def test_a_pace_of_tokens_is_corrected_by_what_was_used() -> None:
    now = 100.0
    pace = TokenPace(600, now=lambda: now)  # 10 tokens a second
    assert pace.reserve(50) == 0
    assert pace.reserve(50) == pytest.approx(5)
    pace.correct(50, 10)
    assert pace.reserve(1) == pytest.approx(6)
    now = 200.0
    assert pace.reserve(1) == 0


def test_tokens_a_minute(server: TeacherServer) -> None:
    begin = time.monotonic()
    # Each takes 15 tokens: 300 a second, so that the fifth waits for some 0.2 seconds.
    big = teacher(server, tokens_per_minute=18_000, concurrency=1)
    big.ask([question(str(n), drawing=Drawing(max_new_tokens=5)) for n in range(5)])
    assert 0.15 <= time.monotonic() - begin < 5


def test_what_a_meter_says() -> None:
    meter = Meter(price=(1.0, 2.0))
    meter.count(Reply("a", prompt_tokens=1_000_000, completion_tokens=500_000))
    meter.count(Reply("", error="broken"))
    assert meter.cost == 2.0 and meter.limit_reached is None
    assert str(meter) == ("1 answers, 1,000,000 prompt and 500,000 answer tokens, cost 2, 1 questions given up")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "http://me:pw@host/v1"}, "credential"),
        ({"url": "host/v1"}, "url"),
        ({"most_cost": 1.0}, "nobody knows"),
        ({"extra_body": {"temperature": 0}}, "set by the stage"),
        ({"price": {"prompts": 1}}, "price.prompts"),
        ({"key_env": "sk-abc"}, "key_env"),
        ({"url": "http://host/v1/chat/completions"}, "write `url: http://host/v1`"),
        ({"extra_body": {"api_key": "sk-abc"}}, "`api_key` is a credential"),
        ({"extra_body": {"Authorization": "Bearer sk-abc"}}, "`Authorization` is a credential"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        EndpointTeacher(**{"url": "http://localhost:1/v1", "model": "big", **settings})
    assert "sk-abc" not in str(caught.value)
