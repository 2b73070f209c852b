"""A server that nobody has started is told in a moment, before a model is loaded."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import parse_recipe
from posttrain.config.online import GRPO
from posttrain.errors import EngineError, RewardError
from posttrain.rewards.endpoint import why_unreachable
from posttrain.runs.folder import RunFolder
from posttrain.training.pipeline import _check_rewards, check_recipe, run_recipe
from posttrain.training.rl.servers import require_servers


@pytest.fixture
def closed() -> str:
    """An address where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)


def judged(url: str, **options: Any) -> GRPO:
    return GRPO(data="a.jsonl", rewards=[{"kind": "judge", "url": f"{url}/v1", "model": "qwen", **options}])


def test_an_engine_that_is_not_there_is_told_at_once(closed: str, listening: str) -> None:
    started = time.monotonic()
    with pytest.raises(EngineError, match="cannot be reached") as refused:
        require_servers(GRPO(data="a.jsonl", engine={"kind": "vllm_served", "url": closed}))
    assert time.monotonic() - started < 5  # and not after `patience`, 60 s
    text = str(refused.value)
    assert "grpo: engine.url" in text and closed in text and "refused" in text and "vllm serve" in text
    require_servers(GRPO(data="a.jsonl", engine={"kind": "vllm_served", "url": listening}))


def test_a_judge_that_is_not_there_is_told_at_once(closed: str, listening: str, tmp_path: Path) -> None:
    require_servers(judged(listening))
    with pytest.raises(RewardError, match="the judge `qwen` cannot be reached") as refused:
        require_servers(judged(closed))
    assert "grpo: rewards, url" in str(refused.value)
    examined = GRPO(data="a.jsonl", examine={"rewards": [{"kind": "judge", "url": closed, "model": "q"}]})
    with pytest.raises(RewardError, match="cannot be reached"):
        require_servers(examined)
    # A run that is repeated has all its answers.
    cache = tmp_path / "cache"
    with pytest.raises(RewardError):
        require_servers(judged(closed, cache=str(cache)))
    (cache / "ab").mkdir(parents=True)
    require_servers(judged(closed, cache=str(cache)))


def test_a_judge_inside_another_reward_is_found(closed: str) -> None:
    inner = {"kind": "judge", "url": closed, "model": "q"}
    with pytest.raises(RewardError, match="cannot be reached"):
        require_servers(GRPO(data="a.jsonl", rewards=[{"kind": "cosine", "of": inner, "max_length": 64}]))


def test_an_unknown_host_is_told_and_a_silent_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    assert why_unreachable("http://nowhere.invalid/v1") == "Name or service not known"

    def silent(*arguments: Any, **options: Any) -> Any:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    assert why_unreachable("http://slow.invalid/v1") is None and why_unreachable("no url") is None
    # What a proxy reaches is not seen from here.
    monkeypatch.setattr(socket, "create_connection", unknown)
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": "http://proxy:3128"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
    assert why_unreachable("http://nowhere.invalid/v1") is None


def test_a_recipe_asks_before_anything_is_loaded_and_a_stage_that_is_done_asks_nobody(
    closed: str, tmp_path: Path
) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    text = (
        "name: mine\nmodel: ./none\nstages:\n  - {method: grpo, data: tasks.jsonl, "
        f"rewards: [{{kind: judge, model: q, url: '{closed}'}}]}}\n"
    )
    (tmp_path / "none").mkdir()
    recipe = parse_recipe(text, [f"out={tmp_path / 'runs'}"], folder=tmp_path)
    for start in (run_recipe, check_recipe):
        with pytest.raises(RewardError, match="the judge `q` cannot be reached"):
            start(recipe, progress=False)
    folder = RunFolder(recipe.folder).stage("grpo")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_stage(name="grpo", method="grpo", status="done")
    _check_rewards(recipe)
    with pytest.raises(RewardError, match="cannot be reached"):
        _check_rewards(recipe, fresh=True)
