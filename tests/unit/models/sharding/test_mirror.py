"""A policy that ranks share samples from a plain copy: what one process would, before and after a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import distributed as dist

from posttrain.config.settings import OptimizerSettings, Schedule
from posttrain.errors import ConfigError, WeightSyncError
from posttrain.models.sharding.mirror import Mirror
from posttrain.models.sharding.shards import local
from posttrain.models.tree.logprobs import Policy
from posttrain.rollout.engine import Completion
from posttrain.sampling import SamplingDistribution
from posttrain.training.optimizer import Optimizer
from posttrain.training.rl import engines
from posttrain.training.rl.main_engine import sampler_of_job
from tests.online import Online
from tests.ranks import ranks
from tests.unit.models.sharding.scenes import TREES, Scene, loss_of, plain_model, sharding, tree_model

SAMPLING = SamplingDistribution(max_new_tokens=6, seed=3)
PROMPTS = [(3, 5, 8), (4, 9), (3, 5, 8), (7, 7, 2, 6)]
SCENES = {
    "2 ranks": Scene(),
    "2 x 2, tied": Scene(replicate=2, fields={"tie_word_embeddings": True}),
    "lora": Scene(adapter="lora"),
}


def policy_of(scene: Scene) -> Policy:
    policy = tree_model(scene, sharding(scene) if dist.is_initialized() else None)
    assert isinstance(policy, Policy)
    return policy


def ids_of(groups: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in group] for group in groups]


def sampled(scene: Scene) -> tuple[Any, ...]:
    """What the stage's own engine samples, before and after a step, and the gaps that its probe shows."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    policy, stage = policy_of(scene), Online("grpo")
    sampler = sampler_of_job(stage, policy, lambda whole: engines.start(stage, whole, (3, 5), 8))
    found, gaps = [], [sampler.sync_weights(0)]
    optimizer = Optimizer(policy.model, OptimizerSettings(), learning_rate=0.5, schedule=Schedule(), steps=2)
    for version in (1, 2):
        found.append(ids_of(sampler.engine.generate(PROMPTS, SAMPLING, completions_per_prompt=3)))
        loss_of(policy, TREES[rank::size], scene.wants).backward()
        optimizer.step(version - 1)
        gaps.append(sampler.sync_weights(version))
    found.append(ids_of(sampler.engine.generate(PROMPTS, SAMPLING, completions_per_prompt=3)))
    return found, [gap or 0.0 for gap in gaps], sampler.engine.policy_version


@pytest.mark.parametrize("name", SCENES)
def test_completions_are_those_of_one_process(name: str) -> None:
    scene = SCENES[name]
    wanted, _, _ = sampled(replace(scene, shard=1, replicate=1))
    assert wanted[0] != wanted[1] != wanted[2]  # the steps are large enough to be seen
    for found, gaps, version in ranks(scene.ranks).run(sampled, scene):
        assert found == wanted
        # The engine scores in fp32.
        assert max(gaps) < 1e-5 and version == 2


def stale(scene: Scene) -> str:
    """Rank 1's copy misses an update, which rank 0 cannot see."""
    policy, stage = policy_of(scene), Online("grpo")
    sampler = sampler_of_job(stage, policy, lambda whole: engines.start(stage, whole, (3, 5), 8))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            local(parameter).mul_(1.5)
    if dist.get_rank() == 1:
        engine: Any = sampler.engine
        engine.engine._mirror.model.state_dict = lambda keep_vars: {
            name: tensor.clone() for name, tensor in plain_model(scene).state_dict(keep_vars=keep_vars).items()
        }
    try:
        sampler.sync_weights(1)
    except WeightSyncError as error:
        return str(error)
    return "nothing was noticed"


def test_a_copy_that_missed_an_update_ends_all() -> None:
    for said in ranks(2).run(stale, Scene()):
        assert "the engine samples from other weights than the trainer's" in said


def mirrored(scene: Scene, keeper: int) -> tuple[bool, bool]:
    """Whether this rank has a copy, and whether it is the model."""
    policy = policy_of(scene)
    mirror = Mirror(policy.model, kept=dist.get_rank() == keeper)
    mirror.refresh()
    if mirror.model is None:
        return False, True
    own, wanted = mirror.model.state_dict(), plain_model(scene).state_dict()
    same = own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in wanted)
    return True, same and not any(p.requires_grad for p in mirror.model.parameters())


def test_a_rank_without_a_copy_takes_part() -> None:
    assert ranks(2).run(mirrored, Scene(fields={"tie_word_embeddings": True}), 0) == [(True, True), (False, True)]


def others(scene: Scene) -> str:
    policy, stage = policy_of(scene), Online("grpo")
    sampler: Any = sampler_of_job(stage, policy, lambda whole: engines.start(stage, whole, (3, 5), 8))
    with pytest.raises(ConfigError) as caught:
        sampler.engine.engine.update_weights(plain_model(scene), 1)
    return str(caught.value)


def test_another_model_is_refused() -> None:
    assert all("samples from a copy" in said for said in ranks(2).run(others, Scene()))
