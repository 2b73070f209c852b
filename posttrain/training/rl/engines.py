"""What samples for an online stage: the engine that its recipe names, holding the weights that train.

engines.require(stage)                            # before anything is loaded: is it there at all?
sampler = engines.start(stage, policy, prompt, 200)    # given the start's weights, and proven to have taken them
sampler.sync_weights(version)                     # before every rollout and examination; the gap that a probe shows
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config.engines import NativeEngineSettings, VLLMColocatedSettings, VLLMServedSettings
from posttrain.config.online import SamplingStage
from posttrain.config.rollout import AsyncRollout
from posttrain.errors import ConfigError, EngineError, MissingExtraError
from posttrain.models.sharding.mirror import Mirror
from posttrain.models.tree.logprobs import Policy
from posttrain.parallel.world import job, world
from posttrain.rollout.engine import Engine
from posttrain.rollout.mirrored import MirroredEngine
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.shared import SharedEngine
from posttrain.rollout.text import Decode
from posttrain.rollout.vllm_colocated import ColocatedEngine
from posttrain.rollout.vllm_install import installed
from posttrain.rollout.vllm_pool import PoolCounts
from posttrain.rollout.vllm_requests import refuse_stops
from posttrain.rollout.weight_folder import WeightFolder
from posttrain.rollout.weight_sync import WeightSync, sample_probe
from posttrain.training.rl.served import Surroundings, served_sampler, server_of


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Sampler:
    """An engine and what keeps it in step with the policy.

    Sampler(NativeEngine(model)) samples from the trainer's own weights, so nothing is pushed.
    """

    engine: Engine
    sync: WeightSync | None = None
    """For an engine with weights of its own."""
    release: Callable[[], None] = _nothing
    """Called when sampling is over for the moment: a colocated engine gives the GPU back."""
    close: Callable[[], None] = _nothing
    """Called when it is over for good."""
    counts: Callable[[], PoolCounts | None] = _nothing
    """Of an engine of several servers: what was lost and mended."""

    def metrics(self) -> dict[str, float]:
        """Totals since the stage began, for its metrics."""
        counts = self.counts()
        if counts is None:
            return {}
        return {
            "engine_servers": counts.ready,
            "engine_restarts": counts.restarts,
            "engine_asked_again": counts.asked_again,
        }

    def sync_weights(self, version: int) -> float | None:
        """Give the engine the policy's weights as they are; what a fixed sequence shows of the difference, in nats
        per token, or None where the weights are shared.

        Raises:
            WeightSyncError: the engine samples from other weights.
            EngineError: it did not take them.
        """
        if self.sync is not None:
            return self.sync(version)
        # The weights are shared, but completions say their version, and the engine's caches of older ones must go.
        self.engine.policy_version = version
        return None


def require(stage: SamplingStage) -> None:
    """Refuse an engine that is not there, or that cannot do what is asked.

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineError: the server does not answer, or not as a vLLM server does.
        ConfigError: it serves nothing, not the model that was named, or sequences that are too short; or stop strings
            are asked of an engine that runs without a tokenizer.
    """
    engine = stage.engine
    asked = {"sampling": stage.sampling, "examine.sampling": stage.examine.sampling}
    stopping = [key for key, sampling in asked.items() if sampling is not None and sampling.stop]
    if stopping and isinstance(engine, VLLMColocatedSettings):
        raise ConfigError(
            "the colocated engine runs without a tokenizer, so it finds no stop strings",
            where=f"{stage.name}: {stopping[0]}.stop",
            remedy="write `engine: native` or `engine: {kind: vllm_served, url: ...}`, or remove `stop`",
        )
    if isinstance(engine, VLLMColocatedSettings) and importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            "the colocated engine is vLLM, which is not installed",
            where=f"{stage.name}: engine",
            remedy="`pip install 'posttrain[vllm]'` on a machine with a GPU, or write `engine: native`",
        )
    if not isinstance(engine, VLLMServedSettings):
        return
    for key, sampling in asked.items():
        if sampling is not None:
            refuse_stops(sampling.stop, f"{stage.name}: {key}.stop")
    if engine.launch is not None:
        installed(engine.launch.python, f"{stage.name}: engine.launch.python")
    for url in engine.addresses:
        served = server_of(engine, url).served_model()
        longest = served.longest
        if longest is not None and stage.sampling.max_new_tokens >= longest:
            raise ConfigError(
                "the server's sequences are too short for the answers",
                where=f"{stage.name}: sampling.max_new_tokens",
                found=f"{stage.sampling.max_new_tokens:,} new tokens; {url} serves {served.name} with "
                f"{longest:,} tokens in all",
                remedy="start the server with a larger --max-model-len, or lower sampling.max_new_tokens",
            )


def start(
    stage: SamplingStage,
    policy: Policy,
    prompt: Sequence[int],
    longest: int,
    decode: Decode | None = None,
    around: Surroundings | None = None,
) -> Sampler:
    """The stage's engine with the policy's weights in it.

    Args:
        prompt: one of the stage's, with which the probe begins.
        longest: tokens of the longest prompt.
        decode: ids to text, for stop strings.
        around: what servers need that the stage starts itself; None for an engine that starts none.

    Raises:
        ConfigError: a prompt that the engine has no room for.
        EngineError: it does not take the weights.
        WeightSyncError: it took them and computes another model.
    """
    settings = stage.engine
    if isinstance(settings, NativeEngineSettings):
        _require_room(stage, settings, longest)
        # The trainer's arithmetic: what samples has to be what trains, to the last rounding that can be had.
        options: dict[str, Any] = {
            "max_rows": settings.rows,
            "cache_tokens": settings.tokens,
            "autocast": policy.autocast,
            "decode": decode,
        }
        if policy.is_sharded:
            return _mirrored(policy, prompt, options)
        native = NativeEngine(policy.model, **options)
        return Sampler(native if job().is_alone else SharedEngine(native))
    # Sampled by the trainer itself: an engine that is wrong would propose a probe on which it is right.
    probe = sample_probe(NativeEngine(policy.model, autocast=policy.autocast), prompt)
    if isinstance(settings, VLLMServedSettings):
        served = served_sampler(stage, settings, policy, longest + _most_new(stage), around)
        engine = served.engine
        sync = WeightSync(engine, policy, probe, score_each=served.score_each, in_flight=_in_flight(stage))
        served.prove_with(sync.prove)
        sampler, where = Sampler(engine, sync, close=served.close, counts=served.counts), served.where
    else:
        folder = WeightFolder()
        # A tokenizer of vLLM could only differ from the one that training uses.
        given = {"skip_tokenizer_init": True, **settings.options}  # ids in, ids out
        # vLLM reads an architecture from a folder; with the start's weights in it, the first sync changes none.
        written = folder.write(policy.model, 0)
        colocated = ColocatedEngine(written, gpu_memory_utilization=settings.gpu_memory, **given)
        folder.clear()
        sampler = Sampler(colocated, WeightSync(colocated, policy, probe), colocated.sleep, colocated.close)
        where = "vLLM in this process"
    try:
        sampler.sync_weights(0)
    except BaseException as error:
        # The folder in memory is the size of the model, and servers hold more: an error must leave neither behind.
        sampler.close()
        if not isinstance(error, EngineError):
            raise
        raise EngineError(
            "the engine does not take the weights of the model that trains: it may serve another one",
            where=f"{stage.name}: engine, {where}",
            found=error.found or error.problem,
            remedy="serve the start of this stage (the same architecture and size), with VLLM_SERVER_DEV_MODE=1 so "
            "that it takes weights",
        ) from error
    return sampler


def _mirrored(policy: Policy, prompt: Sequence[int], options: Mapping[str, Any]) -> Sampler:
    """The native engine of a policy that ranks share; collective. A probe shows after each sync that the copy is it."""
    mirror = Mirror(policy.model, kept=True)
    mirror.refresh()
    engine = MirroredEngine(mirror, **options)
    sampler = Sampler(SharedEngine(engine), _SyncedTogether(engine, policy, sample_probe(engine, prompt)))
    sampler.sync_weights(0)
    return sampler


class _SyncedTogether(WeightSync):
    """`WeightSync` on every rank, each with an engine of its own: a gap on one of them ends all."""

    def __call__(self, version: int) -> float:
        gap = math.nan
        with world().together("giving the engine its weights"):
            gap = super().__call__(version)
        return max(world().gather(gap))


def _require_room(stage: SamplingStage, settings: NativeEngineSettings, longest: int) -> None:
    longest += _most_new(stage)
    if longest > settings.tokens:
        raise ConfigError(
            "the engine's memory does not hold one completion of the longest prompt",
            where=f"{stage.name}: engine.tokens",
            found=f"{settings.tokens:,} tokens; {longest:,} are needed",
            remedy=f"write `engine: {{kind: native, tokens: {longest}}}` or more, or set max_length",
        )


def _in_flight(stage: SamplingStage) -> str | None:
    """What becomes of requests in flight when the weights change; None: there are none."""
    if not isinstance(stage.rollout, AsyncRollout):
        return None
    return {"continue": "keep", "recompute": "recompute"}[stage.rollout.on_update]


def _most_new(stage: SamplingStage) -> int:
    examined = stage.examine.sampling
    return max(stage.sampling.max_new_tokens, examined.max_new_tokens if examined is not None else 0)
