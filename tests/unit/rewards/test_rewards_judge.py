"""The judge, against a fake server that speaks the OpenAI interface."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, RewardError
from posttrain.rewards import Sampled
from posttrain.rewards.endpoint import Endpoint
from posttrain.rewards.judge import Judge, ring
from posttrain.rewards.scorer import Scorer
from posttrain.types import Message, RowRef, Task

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Server:
    """Answers POSTs with what `answer` says; keeps the requests."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body: (200, longer_wins(body))
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.at_once = self.most_at_once = 0
        self.headers: dict[str, str] = {}
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append((self.path, dict(self.headers), body))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                status, text = outer.answer(body)
                reply = {"choices": [{"message": {"content": text}}]} if status == 200 else {"error": text}
                with lock:
                    outer.at_once -= 1
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, format: str, *args: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def shown(body: dict[str, Any], name: str) -> str:
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", body["messages"][1]["content"], re.DOTALL)
    assert found is not None
    return found[1]


def longer_wins(body: dict[str, Any]) -> str:
    first, second = len(shown(body, "answer_a")), len(shown(body, "answer_b"))
    return f"Because. [[{'A' if first > second else 'B' if second > first else 'C'}]]"


def items(*answers: str, groups: list[int] | None = None, gold: str | None = None) -> list[Sampled]:
    prompt = (Message("user", "Say something."),)
    return [
        Sampled(prompt, text, Task(prompt, gold, RowRef("p.jsonl", i + 1)), group=group)
        for i, (text, group) in enumerate(zip(answers, groups or [0] * len(answers), strict=True))
    ]


def score(judge: Judge, rows: list[Sampled]) -> list[float | None]:
    return Scorer("judge", judge).score(rows)


# ---------------------------------------------------------------- judging


def test_groups_meet_within_themselves(server: Server) -> None:
    judge = Judge(Endpoint(server.url, "j"))
    rows = items("a", "aaa", "aa", "bbbb", "b", "alone", groups=[0, 0, 0, 1, 1, 2])
    assert score(judge, rows) == [0.0, 1.0, 0.5, 1.0, 0.0, None]
    assert len(server.seen) == 2 * (3 + 1), "each pair in both orders"


def test_a_judge_that_prefers_the_first_answer_says_nothing(server: Server) -> None:
    server.answer = lambda body: (200, "[[A]]")
    assert score(Judge(Endpoint(server.url, "j")), items("a", "aaa", "aa")) == [0.5, 0.5, 0.5]


def test_equal_answers_are_not_asked_about(server: Server) -> None:
    assert score(Judge(Endpoint(server.url, "j")), items("a", "a")) == [0.5, 0.5]
    assert server.seen == []


def test_against_the_rows_answer(server: Server) -> None:
    judge = Judge(Endpoint(server.url, "j"), against="answer")
    assert score(judge, items("a", "aaa", "bb", gold="aa")) == [0.0, 1.0, 0.5]
    assert score(judge, items("a")) == [None]


def test_marks(server: Server) -> None:
    marks = {"a": "[[1]]", "b": "[[10]]", "c": "Not [[3]] but [[5.5]]", "d": "no mark", "e": "[[99]]"}
    server.answer = lambda body: (200, marks[shown(body, "answer")])
    judge = Judge(Endpoint(server.url, "j"), against="nobody", show_reference=True)
    assert score(judge, items(*marks, gold="the reference")) == [0.0, 1.0, 0.5, None, 1.0]
    assert "<reference_answer>\nthe reference\n" in server.seen[0][2]["messages"][1]["content"]


def test_no_verdict_is_no_score(server: Server) -> None:
    server.answer = lambda body: (200, "I cannot say." if "aaa" in str(body) else longer_wins(body))
    assert score(Judge(Endpoint(server.url, "j")), items("a", "aaa", "aa")) == [0.0, None, 1.0]


def test_thoughts_are_not_shown(server: Server) -> None:
    assert score(Judge(Endpoint(server.url, "j")), items("<think>long thoughts</think>a", "aa")) == [0.0, 1.0]
    assert "long thoughts" not in str(server.seen)


def test_braces_in_answers_are_text(server: Server) -> None:
    assert score(Judge(Endpoint(server.url, "j")), items("{first} {0}", "{}")) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("count", "opponents", "pairs"),
    [
        (1, None, []),
        (2, None, [(0, 1)]),
        (3, None, [(0, 1), (1, 2), (2, 0)]),
        (4, 2, [(0, 1), (1, 2), (2, 3), (3, 0)]),
        (4, 1, [(0, 1), (1, 2), (2, 3), (3, 0)]),
    ],
)
def test_who_meets_whom(count: int, opponents: int | None, pairs: list[tuple[int, int]]) -> None:
    assert ring(range(count), opponents) == pairs


@pytest.mark.parametrize("count", range(2, 9))
def test_everybody_meets_everybody_once(count: int) -> None:
    met = [frozenset(pair) for pair in ring(range(count), None)]
    assert len(met) == len(set(met)) == count * (count - 1) // 2


# ---------------------------------------------------------------- asking


def test_the_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k-123")
    score(Judge(Endpoint(server.url + "/", "j", key_env="JUDGE_KEY"), temperature=0.5), items("a", "aa"))
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer k-123"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("j", 0.5, 512)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_answers_are_kept_by_their_content(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k-123")
    endpoint = Endpoint(server.url, "j", cache=tmp_path, key_env="JUDGE_KEY")
    rows = items("a", "aaa", "aa")
    first = score(Judge(endpoint), rows)
    assert (len(server.seen), endpoint.requests) == (6, 6)
    again = Endpoint(server.url, "j", cache=tmp_path)
    assert score(Judge(again), rows) == first
    assert (len(server.seen), again.requests) == (6, 0)
    score(Judge(again, standard="wit"), items("a", "aaa"))
    assert len(server.seen) == 8, "another question"
    assert not any("k-123" in path.read_text() for path in tmp_path.rglob("*.json"))


def test_trouble_that_passes_is_waited_out(server: Server) -> None:
    replies = iter([(429, "slow down"), (503, "starting"), (200, None), (200, "4")])
    server.answer = lambda body: next(replies)
    assert Endpoint(server.url, "j", first_wait=0.001).ask([{"role": "user", "content": "?"}]) == "4"
    assert len(server.seen) == 4


def test_the_server_may_say_how_long_to_wait(server: Server) -> None:
    replies = iter([(429, "slow down"), (200, "4")])
    server.answer = lambda body: next(replies)
    server.headers = {"Retry-After": "0.05"}
    started = time.monotonic()
    Endpoint(server.url, "j", first_wait=30.0).ask([{"role": "user", "content": "?"}])
    assert 0.05 <= time.monotonic() - started < 5


def test_trouble_that_stays_is_an_error(server: Server) -> None:
    server.answer = lambda body: (500, "broken")
    judge = Judge(Endpoint(server.url, "j", retries=2, first_wait=0.001))
    with pytest.raises(RewardError, match="did not answer") as caught:
        score(judge, items("a", "aa"))
    assert "HTTP 500" in str(caught.value) and "asked 3 times" in str(caught.value)


def test_a_refusal_is_not_retried(server: Server) -> None:
    server.answer = lambda body: (401, "no key")
    with pytest.raises(ConfigError, match="refuses the request") as caught:
        Endpoint(server.url, "j").ask([{"role": "user", "content": "?"}])
    assert "key_env" in str(caught.value) and len(server.seen) == 1


def test_a_missing_key_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
        Endpoint(server.url, "j", key_env="JUDGE_KEY").ask([{"role": "user", "content": "?"}])


def test_nobody_listens() -> None:
    with pytest.raises(RewardError, match="did not answer"):
        Endpoint("http://127.0.0.1:9/v1", "j", retries=0).ask([{"role": "user", "content": "?"}])


def test_requests_are_spaced(server: Server) -> None:
    started = time.monotonic()
    score(Judge(Endpoint(server.url, "j", per_minute=1200)), items("a", "aaa", "aa"))
    assert time.monotonic() - started >= 5 * 0.05
    assert len(server.seen) == 6


def test_requests_run_side_by_side_and_no_more_than_allowed(server: Server) -> None:
    def slow(body: dict[str, Any]) -> tuple[int, str]:
        time.sleep(0.02)
        return 200, longer_wins(body)

    server.answer = slow
    score(Judge(Endpoint(server.url, "j"), concurrency=3), items(*("a" * n for n in range(1, 6))))
    assert 2 <= server.most_at_once <= 3
