"""posttrain's own clients: a reward that asks a judge, and the endpoint it asks through, against a served model."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.serving import Server
from posttrain.errors import ConfigError
from posttrain.rewards.endpoint import Endpoint, why_unreachable
from posttrain.rewards.judge import Judge
from posttrain.types import Message, RowRef, Task
from tests.ecosystem.conftest import KEY, Direct

pytestmark = pytest.mark.ecosystem

QUESTION = "What is 3 plus 4?"
PROMPT = (Message("user", QUESTION),)
TASK = Task(PROMPT, "7", RowRef("test.jsonl", 1))


def test_an_endpoint_gets_the_models_answer(server: Server, direct: Direct, tmp_path: Path) -> None:
    endpoint = Endpoint(f"{server.url}/v1", "embedded", cache=tmp_path)
    asked = [{"role": "user", "content": QUESTION}]
    wanted = direct.greedy(direct.chat_ids(QUESTION), 12)
    assert endpoint.ask(asked, temperature=0, max_tokens=12) == wanted
    assert endpoint.ask(asked, temperature=0, max_tokens=12) == wanted
    assert endpoint.requests == 1  # the second was cached
    assert why_unreachable(endpoint.url) is None


def test_an_unknown_model_is_refused_at_once(server: Server) -> None:
    with pytest.raises(ConfigError, match="refuses the request"):
        Endpoint(f"{server.url}/v1", "embeded").ask([{"role": "user", "content": "Hi"}], max_tokens=1)


def test_a_key_of_the_environment_is_taken(guarded: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{"role": "user", "content": QUESTION}]
    with pytest.raises(ConfigError, match="refuses the request"):
        Endpoint(f"{guarded.url}/v1", "embedded", retries=0).ask(asked, max_tokens=1)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert Endpoint(f"{guarded.url}/v1", "embedded", key_env="JUDGE_KEY").ask(asked, max_tokens=4)


def test_an_endpoint_comes_back_to_a_full_queue(guarded: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint = Endpoint(f"{guarded.url}/v1", "embedded", key_env="JUDGE_KEY", retries=30, first_wait=0.1)
    options = {"temperature": 100, "max_tokens": 60, "n": 16}
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        asked = [[{"role": "user", "content": f"{number}"}] for number in range(8)]
        assert len(list(pool.map(lambda messages: endpoint.ask(messages, **options), asked))) == 8
    assert endpoint.requests > 8
    # The queue is empty in seconds; a server that tells its clients to come back in a minute leaves it so.
    assert time.monotonic() - started < 40


def test_a_judge_marks(scripted: Server) -> None:
    judge = Judge(Endpoint(f"{scripted.url}/v1", scripted.model), against="nobody")
    scores = judge([PROMPT] * 6, [f"The answer is {n}." for n in range(6)], [TASK] * 6, groups=[0] * 6)
    assert scores == pytest.approx([(7 - 1) / 9] * 6)  # it always says [[7]]


def test_a_judge_without_a_verdict_scores_nothing(server: Server) -> None:
    judge = Judge(Endpoint(f"{server.url}/v1", "embedded"), against="group", max_tokens=8)
    assert judge([PROMPT] * 2, ["7", "eight"], [TASK] * 2, groups=[0, 0]) == [None, None]
