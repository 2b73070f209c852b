"""T37: engine and trainer agree on a fixed sequence after every update, and a sync that does nothing stops the run.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.errors import WeightSyncError
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.weight_sync import (
    SMALLEST_NOISE,
    Probe,
    SyncedEngine,
    WeightSync,
    sample_probe,
    trainer_logprobs,
)
from posttrain.sampling import SamplingDistribution
from tests.fake_vllm import FakeServer
from tests.fixtures import tiny_model

PROMPT = [1, 2, 3]


def model_of(kind: str) -> Any:
    if kind == "full":
        return tiny_model()
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3, init_lora_weights=False)
    return get_peft_model(tiny_model(), config).train()


def update(model: Any, learning_rate: float = 1e-2) -> None:
    """One step that makes the model surer of a sequence."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    ids = torch.tensor([[*PROMPT, 9, 8, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.zero_grad()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    tiny_model(seed=5).save_pretrained(tmp_path)  # weights that nobody trained
    with FakeServer(tmp_path) as running:
        yield running


@pytest.fixture(params=["native", "served"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def engine_of(kind: str, model: Any, server: FakeServer, tmp_path: Path) -> SyncedEngine:
    return NativeEngine(model) if kind == "native" else ServedEngine(server.url, folder=tmp_path / "weights")


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_both_sides_agree_after_each_update(trained: str, kind: str, server: FakeServer, tmp_path: Path) -> None:
    model = model_of(trained)
    engine = engine_of(kind, model, server, tmp_path)
    sync = WeightSync(engine, Policy(model), sample_probe(engine, PROMPT))
    assert sync(0) < 1e-5
    assert sync.noise == SMALLEST_NOISE
    for version in range(1, 4):
        update(model)
        report = sync.sync(version)
        assert report.gap < 1e-5
        assert report.trainer_moved > 0.05
        assert report.engine_moved == pytest.approx(report.trainer_moved, abs=1e-4)
        assert engine.policy_version == version
        completion = engine.generate([PROMPT], SamplingDistribution(max_new_tokens=4))[0][0]
        assert completion.versions == (version, version)


@pytest.mark.parametrize("level", [1, 2])
def test_and_after_sleep(level: int, server: FakeServer, tmp_path: Path) -> None:
    model = model_of("lora")
    engine = ServedEngine(server.url, folder=tmp_path / "weights")
    sync = WeightSync(engine, Policy(model), Probe((1, 2, 3), (9, 8, 7)))
    sync(0)
    engine.sleep(level)
    if level == 1:
        engine.wake()
        assert sync.check().gap < 1e-5
    update(model)
    assert sync(1) < 1e-5


def test_a_sync_that_does_nothing_stops_the_run(server: FakeServer, tmp_path: Path) -> None:
    model = model_of("full")
    engine = ServedEngine(server.url, folder=tmp_path / "weights")
    sync = WeightSync(engine, Policy(model), sample_probe(engine, PROMPT))
    sync(0)
    server.engine.noop_sync = True
    update(model)
    with pytest.raises(WeightSyncError, match="other weights than the trainer's") as stopped:
        sync(1)
    assert "by 0 in the engine" in str(stopped.value)


def test_so_does_one_that_hides_in_the_noise_of_a_rough_engine() -> None:
    """bf16 servers score a hundredth apart: an update that moves less than the band is still missed by nobody."""
    model = tiny_model()
    probe = Probe((1, 2, 3), (9, 8, 7, 60))

    class Rough(NativeEngine):
        frozen: list[float] | None = None

        def score(self, prompt: Any, ids: Any) -> list[float]:
            return self.frozen or [value + 0.02 for value in super().score(prompt, ids)]

    engine = Rough(model)
    sync = WeightSync(engine, Policy(model), probe)
    sync(0)
    assert sync.noise == pytest.approx(0.02, abs=1e-4)
    update(model, 3e-4)
    sync(1)
    engine.frozen = engine.score(probe.prompt, probe.ids)
    update(model, 1.2e-4)
    with pytest.raises(WeightSyncError) as stopped:
        sync(2)
    moved = [abs(a + 0.02 - b) for a, b in zip(trainer_logprobs(Policy(model), probe), engine.frozen, strict=True)]
    assert sync.noise < sum(moved) / len(moved) < sync.band - sync.noise
    assert "by 0 in the engine" in str(stopped.value)


def test_weights_that_arrive_in_part_stop_the_run(server: FakeServer, tmp_path: Path) -> None:
    model = model_of("full")
    engine = ServedEngine(server.url, folder=tmp_path / "weights")
    sync = WeightSync(engine, Policy(model), sample_probe(engine, PROMPT))
    sync(0)
    whole = server.engine.reload_weights

    def all_but_the_head(weights_path: str) -> None:
        head = server.engine.model.get_output_embeddings().weight
        kept = head.detach().clone()
        whole(weights_path)
        with torch.no_grad():
            head.copy_(kept)

    server.engine.reload_weights = all_but_the_head  # type: ignore[method-assign]
    update(model)
    with pytest.raises(WeightSyncError):
        sync(1)


def test_another_model_is_noticed_before_the_first_step(server: FakeServer, tmp_path: Path) -> None:
    server.engine.noop_sync = True
    model = model_of("full")
    engine = ServedEngine(server.url, folder=tmp_path / "weights")
    with pytest.raises(WeightSyncError, match="just been given the same weights"):
        WeightSync(engine, Policy(model), sample_probe(engine, PROMPT))(0)


def test_scores_that_are_no_numbers_stop_the_run() -> None:
    model = tiny_model()

    class Broken(NativeEngine):
        def score(self, prompt: Any, ids: Any) -> list[float]:
            return [float("nan")] * len(ids)

    with pytest.raises(WeightSyncError):
        WeightSync(Broken(model), Policy(model), Probe((1,), (2, 3)))(0)


def test_measuring_leaves_sampling_and_training_as_they_were() -> None:
    model = model_of("lora")
    engine = NativeEngine(model)
    sampling = SamplingDistribution(max_new_tokens=8)
    before = engine.generate([PROMPT], sampling)
    stats = engine.stats
    state = torch.random.get_rng_state()
    policy = Policy(model)
    modes = [module.training for module in model.modules()]
    WeightSync(engine, policy, Probe((1, 2, 3), (9, 8, 7)))(0)
    assert engine.stats is stats
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert engine.generate([PROMPT], sampling) == before
