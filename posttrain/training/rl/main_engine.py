"""An engine that rank 0 asks for all ranks of a job: servers do the sampling, and one process is enough to ask them.

sampler = sampler_of_job(stage, policy, lambda whole: engines.start(stage, whole, prompt, longest))    # on every rank

Rank 0 pushes the weights, proves that they arrived, and asks with as many requests at a time as the engine's settings
allow; the completions go to all. The native engine is none of these: each rank has its own (`rollout/shared.py`). Of a
policy that ranks share, rank 0 keeps a plain copy, which all bring up to date before each push.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from posttrain.config.engines import NativeEngineSettings, VLLMColocatedSettings
from posttrain.config.online import SamplingStage
from posttrain.errors import ConfigError
from posttrain.models.sharding.mirror import Mirror
from posttrain.models.tree.logprobs import Policy
from posttrain.parallel.world import world
from posttrain.rollout.engine import Completion, Engine, OnFinish, Request
from posttrain.rollout.weight_sync import WeightSync
from posttrain.sampling import SamplingDistribution
from posttrain.training.rl.engines import Sampler


def sampler_of_job(stage: SamplingStage, policy: Policy, start: Callable[[Policy], Sampler]) -> Sampler:
    """The stage's sampler on every rank; collective. Alone, what `start` gives.

    Args:
        start: makes the sampler of a policy: this one, or a plain copy of one that lies in parts.

    Raises:
        ConfigError: an engine that several processes cannot have yet; what `start` raises.
    """
    here = world()
    if here.is_alone or isinstance(stage.engine, NativeEngineSettings):
        return start(policy)
    if isinstance(stage.engine, VLLMColocatedSettings):
        raise _refusal(stage, "the colocated engine shares one process with its trainer, and this job has several")
    mirror: Mirror | None = None
    pushed = policy
    if policy.is_sharded:
        mirror = Mirror(policy.model, kept=here.is_main)
        mirror.refresh()
        pushed = Policy(mirror.model, autocast=policy.autocast) if here.is_main else policy
    own: Sampler | None = None
    with here.together("starting the engine"):
        own = start(pushed) if here.is_main else None
    sync = None if own is None else own.sync
    if not here.agreed(lambda: sync is not None):
        return Sampler(_AskedByMain(None if own is None else own.engine))
    engine = _AskedByMain(None if own is None else own.engine)
    shared = Sampler(engine, _PushedByMain(sync, mirror))
    return shared if own is None else replace(own, engine=engine, sync=shared.sync)


def _refusal(stage: SamplingStage, problem: str) -> ConfigError:
    return ConfigError(
        problem,
        where=f"{stage.name}: engine",
        found=f"engine: {stage.engine.kind}, and {world().size} processes",
        remedy="write `engine: native`, or a served engine",
    )


class _AskedByMain:
    """`posttrain.rollout.engine.Engine`; `engine` is there on rank 0."""

    def __init__(self, engine: Engine | None):
        self._engine = engine
        self._version = 0
        self._context: int | None = world().agreed(lambda: self._here.context_tokens)

    @property
    def _here(self) -> Engine:
        assert self._engine is not None, "rank 0 asks"
        return self._engine

    @property
    def policy_version(self) -> int:
        return self._version if self._engine is None else self._engine.policy_version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        self._version = version
        if self._engine is not None:
            self._engine.policy_version = version

    @property
    def context_tokens(self) -> int | None:
        return self._context

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingDistribution,
        *,
        completions_per_prompt: int = 1,
        on_finish: OnFinish | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`; collective."""

        def ask() -> list[list[Completion]]:
            return self._here.generate(
                prompts, sampling, completions_per_prompt=completions_per_prompt, on_finish=on_finish
            )

        return world().agreed(ask)

    @property
    def in_flight(self) -> int:
        return 0 if self._engine is None else self._engine.in_flight

    async def generate_one(self, request: Request) -> Completion:
        """See `Engine.generate_one`; of rank 0 alone."""
        return await self._here.generate_one(request)

    def abort(self, request: Request | None = None) -> None:
        if self._engine is not None:
            self._engine.abort(request)


class _PushedByMain(WeightSync):
    """`WeightSync` on every rank; `sync` is there on rank 0, and does it. `mirror` is what rank 0 pushes of a policy
    that lies in parts; None where it has the policy itself."""

    def __init__(self, sync: WeightSync | None, mirror: Mirror | None = None):
        self._sync, self._mirror = sync, mirror
        self._noise: float | None = None

    @property
    def noise(self) -> float | None:
        return self._noise

    @noise.setter
    def noise(self, measured: float | None) -> None:
        self._noise = measured
        if self._sync is not None:
            self._sync.noise = measured

    def __call__(self, version: int) -> float:
        """Push the weights and prove that they arrived; collective."""

        def push() -> tuple[float, float | None]:
            assert self._sync is not None
            return self._sync(version), self._sync.noise

        if self._mirror is not None:
            self._mirror.refresh()
        gap, self._noise = world().agreed(push)
        return gap
