"""The key `engine`: online stages that sample with a server of vLLM, with vLLM in process, or within a token budget."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from posttrain.config import stage_fingerprint
from posttrain.config.online import GRPO
from posttrain.errors import ConfigError, EngineError, MissingExtraError, UnknownKeyError, WeightSyncError
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.vllm_launch import LaunchedServers
from posttrain.training.loop import Loop
from posttrain.training.stages import sampling
from tests.fake_vllm import FakeEngine, FakeServer, fake_module
from tests.launched import fake_python
from tests.online import WHOLE, lines, loop_of, run, save_start, source_of, untimed

LORA = {"kind": "lora", "rank": 4}
SHORT: dict[str, Any] = {**WHOLE, "steps": 3, "examine": {"every_steps": 3, "keep": "last"}}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


@pytest.fixture
def server(start: Path) -> Iterator[FakeServer]:
    with FakeServer(start) as server:
        yield server


def served(server: FakeServer, **more: Any) -> dict[str, Any]:
    return {"engine": {"kind": "vllm_served", "url": server.url, "patience": 0, "requests": 1, **more}}


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = fake_module()
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def moved(loop: Loop, start: Path) -> bool:
    ours = merged_copy(loop.work.policy.model).state_dict()
    theirs = FakeEngine(start).model.state_dict()
    return any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("adapter", [None, LORA])
@pytest.mark.parametrize("kind", ["served", "colocated"])
def test_it_trains_through_vllm(
    start: Path, tmp_path: Path, server: FakeServer, vllm: Any, kind: str, adapter: Any
) -> None:
    options = served(server) if kind == "served" else {"engine": "vllm_colocated"}
    loop = run(loop_of(start, tmp_path, adapter=adapter, **SHORT, **options))
    steps = [record.values for record in loop.folder.metrics("train")]
    assert loop.step == len(steps) == 3 and moved(loop, start)
    assert max(values["sync_gap"] for values in steps) < 1e-5
    assert max(values["sampler_gap_max"] for values in steps) < 1e-4  # each sampled log-prob is the trainer's
    assert len(lines(tmp_path, "rollouts.jsonl")) == 3 * 12
    versions = [line["version"] for line in lines(tmp_path, "rollouts.jsonl")]
    assert sorted(set(versions)) == [0, 1, 2]


def test_examinations_ask_the_weights_of_their_step(start: Path, tmp_path: Path, server: FakeServer) -> None:
    """An examination comes after an update: without a push of its own, it would ask the policy of a step before."""
    loop = run(loop_of(start, tmp_path, steps=1, examine={"every_steps": 1, "keep": "last"}, **served(server)))
    trained = loop.work.policy.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in server.engine.model.state_dict().items())


@pytest.mark.parametrize("adapter", [None, LORA])
def test_t37_a_server_that_keeps_its_weights_stops_the_run(
    start: Path, tmp_path: Path, server: FakeServer, adapter: Any
) -> None:
    loop = loop_of(start, tmp_path, adapter=adapter, steps=3, held_out=0, **served(server))
    server.engine.noop_sync = True
    with pytest.raises(WeightSyncError, match="samples from other weights"):
        run(loop)
    assert loop.step == 1


def test_a_resumed_run_is_the_uninterrupted_one(start: Path, tmp_path: Path, server: FakeServer) -> None:
    options = {"steps": 4, "checkpoint": {"every_steps": 2}, "examine": {"every_steps": 2}, **served(server)}
    whole = run(loop_of(start, tmp_path / "whole", **options))
    half = loop_of(start, tmp_path / "halves", **options)
    server.engine.abort.clear()
    generate = source_of(half).setup.sampler.engine.generate

    def killed(*args: Any, **kwargs: Any) -> Any:
        if half.step == 3:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    source_of(half).setup.sampler.engine.generate = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(half)
    resumed = run(loop_of(start, tmp_path / "halves", **options))
    assert resumed.step == 4
    assert untimed(resumed.folder.metrics()) == untimed(whole.folder.metrics())
    assert lines(tmp_path / "halves", "rollouts.jsonl") == lines(tmp_path / "whole", "rollouts.jsonl")
    pairs = zip(whole.work.policy.parameters(), resumed.work.policy.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_vllm_in_process_sleeps_while_the_policy_trains(
    start: Path, tmp_path: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(start, tmp_path, **SHORT, engine={"kind": "vllm_colocated", "options": {"dtype": "float32"}})
    engine: Any = source_of(loop).setup.sampler.engine
    assert engine._llm.options["dtype"] == "float32" and engine._llm.options["skip_tokenizer_init"]
    forward, asleep = Policy.forward, []

    def watched(self: Policy, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            asleep.append(bool(engine._llm.engine.asleep))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "forward", watched)
    run(loop)
    assert len(asleep) >= 3 and all(asleep)


# ---------------------------------------------------------------- several servers, and servers of the stage's own


def test_several_servers_share_a_step_and_all_get_its_weights(start: Path, tmp_path: Path, server: FakeServer) -> None:
    with FakeServer(start) as second:
        engine = {"kind": "vllm_served", "urls": [server.url, second.url], "patience": 5}
        loop = run(loop_of(start, tmp_path, **SHORT, engine=engine))
        steps = [record.values for record in loop.folder.metrics("train")]
        assert max(values["sync_gap"] for values in steps) < 1e-5
        assert [values["engine_servers"] for values in steps] == [2, 2, 2]
        # Both had weights of every step, and both sampled beyond their probes.
        for one in (server, second):
            assert len(one.bodies("/collective_rpc")) >= 3
            assert sum(body.get("prompt_logprobs") is None for body in one.bodies("/v1/completions")) > 3


def test_a_stage_starts_its_servers_and_ends_them(start: Path, tmp_path: Path) -> None:
    launch = {"servers": 2, "python": fake_python(tmp_path)}
    loop = loop_of(start, tmp_path / "grpo", **SHORT, engine={"kind": "vllm_served", "launch": launch})
    logs = [tmp_path / "grpo" / "servers" / f"server-{number}.log" for number in (0, 1)]
    assert all(f"--model {start}" in log.read_text() for log in logs)  # the start as it lies there
    # The longest prompt and answer, rounded up to 64.
    assert all("--max-model-len 64" in log.read_text() for log in logs)
    pool: Any = source_of(loop).setup.sampler.engine
    pids = [psutil.Process(pid) for pid in pool._members._revive.__self__.pids]
    run(loop)
    assert moved(loop, start) and not any(process.is_running() for process in pids)
    assert max(record.values["sync_gap"] for record in loop.folder.metrics("train")) < 1e-5


def test_servers_are_started_with_a_copy_where_the_start_is_not_what_they_read(start: Path, tmp_path: Path) -> None:
    """On a CPU a tied head is written apart; stop strings need the tokenizer."""
    tied = save_start(tmp_path / "tied", tie_word_embeddings=True)
    launch = {"python": fake_python(tmp_path)}
    loop = loop_of(tied, tmp_path / "grpo", **SHORT, engine={"kind": "vllm_served", "launch": launch})
    copy = tmp_path / "grpo" / "servers" / "model"
    assert f"--model {copy}" in (copy.parent / "server-0.log").read_text()
    assert not json.loads((copy / "config.json").read_text())["tie_word_embeddings"]
    assert (copy / "tokenizer.json").is_file()
    run(loop)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["a sync that does nothing", "a check that fails"])
def test_servers_do_not_outlive_an_error(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    closed = []
    monkeypatch.setattr(LaunchedServers, "close", lambda self: (closed.append(1), self._finalizer()))
    if fault == "a check that fails":
        monkeypatch.setattr("posttrain.training.checks.of_rollouts.prove", lambda *_: 1 / 0)
    else:
        monkeypatch.setattr("posttrain.rollout.vllm_served.ServedEngine.load_weights", lambda *_: None)
        monkeypatch.setattr("posttrain.rollout.vllm_served.ServedEngine.score", lambda *_: [-1.0] * 16)
    launch = {"python": fake_python(tmp_path)}
    with pytest.raises((WeightSyncError, ZeroDivisionError)):
        loop_of(start, tmp_path / "grpo", **SHORT, engine={"kind": "vllm_served", "launch": launch})
    assert closed


# ---------------------------------------------------------------- refusals, before a model is trained on


def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sampling, "load_policy", refuse)


def test_vllm_that_is_not_installed(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unloaded(monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"grpo: engine.*not installed"):
        loop_of(start, tmp_path, engine="vllm_colocated")


@pytest.mark.parametrize("where", ["sampling", "examine"])
def test_stop_strings_of_an_engine_without_a_tokenizer(
    start: Path, tmp_path: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    unloaded(monkeypatch)
    sampling = {"max_new_tokens": 6, "stop": "Q:"}
    given = {"sampling": sampling} if where == "sampling" else {"examine": {"sampling": sampling}}
    with pytest.raises(ConfigError, match=rf"grpo: {where}.*stop") as refused:
        loop_of(start, tmp_path, engine="vllm_colocated", **given)
    assert "finds no stop strings" in str(refused.value) and "engine: native" in str(refused.value)


def test_a_server_that_does_not_answer(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unloaded(monkeypatch)
    server = FakeServer(start)
    server._http.server_close()
    with pytest.raises(EngineError, match=r"cannot be reached") as caught:
        loop_of(start, tmp_path, **served(server))
    assert server.url in str(caught.value) and "vllm serve" in str(caught.value)


def test_a_python_without_vllm(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unloaded(monkeypatch)
    launch = {"python": fake_python(tmp_path, has_vllm=False)}
    with pytest.raises(MissingExtraError, match=r"grpo: engine.launch.python.*has no vLLM"):
        loop_of(start, tmp_path / "grpo", engine={"kind": "vllm_served", "launch": launch})


def test_more_stop_strings_than_a_server_takes(
    start: Path, tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded(monkeypatch)
    sampling = {"max_new_tokens": 6, "stop": ["a", "b", "c", "d", "e"]}
    with pytest.raises(ConfigError, match=r"grpo: sampling.stop.*at most four"):
        loop_of(start, tmp_path, **{**served(server), "sampling": sampling})


def test_a_server_that_serves_something_else(start: Path, tmp_path: Path, server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="serves another model") as caught:
        loop_of(start, tmp_path, **served(server, served_name="llama"))
    assert "tiny" in str(caught.value)
    other = save_start(tmp_path / "wider", hidden_size=64)
    with FakeServer(other) as wrong, pytest.raises(EngineError, match="it may serve another one") as refused:
        loop_of(start, tmp_path, **served(wrong))
    assert "size mismatch" in str(refused.value)


def test_a_server_that_takes_no_weights(start: Path, tmp_path: Path) -> None:
    with FakeServer(save_start(tmp_path / "other", seed=9)) as wrong:
        wrong.engine.noop_sync = True
        with pytest.raises(WeightSyncError, match="just been given the same weights"):
            loop_of(start, tmp_path / "run", **served(wrong))


def test_a_server_whose_sequences_are_too_short(
    start: Path, tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.engine.model.config.max_position_embeddings = 20
    with pytest.raises(ConfigError, match="too short for the longest prompt"):
        loop_of(start, tmp_path, **served(server))
    unloaded(monkeypatch)
    with pytest.raises(ConfigError, match="too short for the answers"):
        loop_of(start, tmp_path, **{**served(server), "sampling": {"max_new_tokens": 20}})


# ---------------------------------------------------------------- the native engine's budget


def test_a_token_budget_bounds_the_memory_and_changes_nothing(start: Path, tmp_path: Path) -> None:
    wide = run(loop_of(start, tmp_path / "wide", **SHORT))
    tight = run(loop_of(start, tmp_path / "tight", **SHORT, engine={"kind": "native", "tokens": 120, "rows": 3}))
    engine: Any = source_of(tight).setup.sampler.engine
    assert 0 < engine.stats.peak_cells <= 120
    ids = [[line["ids"] for line in lines(tmp_path / name, "rollouts.jsonl")] for name in ("wide", "tight")]
    assert ids[0] == ids[1]
    assert wide.step == tight.step == 3


def test_a_budget_that_holds_no_completion_is_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.tokens.*does not hold one completion") as caught:
        loop_of(start, tmp_path, engine={"kind": "native", "tokens": 20})
    assert "tokens: " in str(caught.value.remedy)


def test_where_a_server_is_changes_no_fingerprint() -> None:
    def identity(engine: Any) -> str:
        return stage_fingerprint(GRPO(data="a.jsonl", engine=engine), data=["x"], start_model="y", seed=0)

    first = identity({"kind": "vllm_served", "url": "http://a:1"})
    assert first == identity({"kind": "vllm_served", "url": "http://b:2", "requests": 3})
    assert identity("native") == identity({"kind": "native", "tokens": 99}) != first


def test_an_engine_of_no_kind_is_refused() -> None:
    with pytest.raises(UnknownKeyError, match="vllm_server"):
        GRPO(data="a.jsonl", engine={"kind": "vllm_server", "url": "http://a:1"})
    with pytest.raises(ConfigError, match="url"):
        GRPO(data="a.jsonl", engine="vllm_served")
