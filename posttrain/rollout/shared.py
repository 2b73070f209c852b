"""The native engine on every rank of a job: each samples its prompts, and all get what one process would have sampled.

engine = SharedEngine(NativeEngine(model))       # on every rank, each with the whole model
engine.generate(prompts, sampling, completions_per_prompt=8)

A draw depends on the seed, the prompt, the number of the completion and how many equal prompts stand before it, and on
nothing else of the batch. So equal prompts stay together on one rank, in their order, and everything else may be cut
anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.parallel.calls import OfMain, everywhere
from posttrain.parallel.shares import shares
from posttrain.parallel.world import apart, world
from posttrain.rollout.engine import Completion, OnFinish, Request
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution


class SharedEngine:
    """`posttrain.rollout.engine.Engine`. Where rank 0 drives, it has to be of what is its `own`."""

    def __init__(self, engine: NativeEngine):
        self.engine = engine

    @property
    def policy_version(self) -> int:
        return self.engine.policy_version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        self.engine.policy_version = version

    @property
    def context_tokens(self) -> int | None:
        """See `Engine.context_tokens`."""
        return self.engine.context_tokens

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingDistribution,
        *,
        completions_per_prompt: int = 1,
        on_finish: OnFinish | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`; on every rank, all completions. Rank 0 is told of those that others have sampled when
        all are there."""
        return everywhere(_generate, self, prompts, sampling, completions_per_prompt, OfMain(on_finish))

    @property
    def in_flight(self) -> int:
        """See `Engine.in_flight`."""
        return self.engine.in_flight

    async def generate_one(self, request: Request) -> Completion:
        """See `Engine.generate_one`; by this rank."""
        return await self.engine.generate_one(request)

    def abort(self, request: Request | None = None) -> None:
        """See `Engine.abort`; of this rank."""
        self.engine.abort(request)


def _generate(
    shared: SharedEngine,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingDistribution,
    completions_per_prompt: int,
    told: OfMain[OnFinish],
) -> list[list[Completion]]:
    """Every rank's part of `generate`."""
    here, engine, on_finish = world(), shared.engine, told.value
    if here.is_alone:
        return engine.generate(prompts, sampling, completions_per_prompt=completions_per_prompt, on_finish=on_finish)
    ids = [tuple(map(int, prompt)) for prompt in prompts]
    mine = shares_of(ids, completions_per_prompt * sampling.max_new_tokens, here.size)[here.rank]

    def finished(place: int, number: int, completion: Completion) -> None:
        if on_finish is not None:
            on_finish(mine[place], number, completion)

    own: list[list[Completion]] = []
    with here.together("sampling"), apart():
        # Of all of them first: a prompt that is refused is named by its own number.
        engine.require(ids, sampling)
        if mine:
            own = engine.generate(
                [ids[index] for index in mine],
                sampling,
                completions_per_prompt=completions_per_prompt,
                on_finish=finished,
            )
    found: dict[int, list[Completion]] = {}
    for rank, (indices, groups) in enumerate(here.gather((mine, own))):
        found |= dict(zip(indices, groups, strict=True))
        if rank and on_finish is not None:
            for index, group in zip(indices, groups, strict=True):
                for number, completion in enumerate(group):
                    on_finish(index, number, completion)
    return [found[index] for index in range(len(ids))]


def shares_of(prompts: Sequence[tuple[int, ...]], new_tokens: int, size: int) -> list[list[int]]:
    """The prompts of each rank, by index: equal ones together, and balanced by the tokens that they may come to.

    shares_of([(1, 2), (1, 3), (1, 2)], 64, 2) -> [[0, 2], [1]]

    Args:
        new_tokens: most that are sampled for one prompt.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(index)
    equal = list(places.values())
    # An equal prompt is computed once, its completions each time.
    costs = [len(prompt) + new_tokens * len(indices) for prompt, indices in places.items()]
    return [sorted(index for unit in units for index in equal[unit]) for units in shares(costs, size)]
