"""A batch for servers: a thread for each prompt in flight, none of which computes; servers fill their own batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from posttrain.rollout.engine import Completion, OnFinish
from posttrain.rollout.vllm_requests import refuse_empty, refuse_stops, refuse_unlike, request_seed
from posttrain.sampling import SamplingDistribution


def batch(
    group: Callable[[int, int], list[Completion]],
    prompts: Sequence[Sequence[int]],
    sampling: SamplingDistribution,
    completions_per_prompt: int,
    *,
    threads: int,
    on_finish: OnFinish | None,
) -> list[list[Completion]]:
    """The completions of all prompts, in their order; the first error ends it.

    Args:
        group: (index of a prompt, its seed) -> its completions.
        threads: prompts in flight at a time.
    """
    refuse_unlike(sampling)
    refuse_stops(sampling.stop)
    refuse_empty(prompts, completions_per_prompt)
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in map(tuple, prompts):
        seeds.append(request_seed(sampling.seed, prompt, seen[prompt]))
        seen[prompt] += 1
    groups = []
    with ThreadPoolExecutor(max(1, min(threads, len(prompts))), thread_name_prefix="posttrain-batch") as pool:
        pending = [pool.submit(group, index, seed) for index, seed in enumerate(seeds)]
        try:
            for index, future in enumerate(pending):
                groups.append(future.result())
                for k, completion in enumerate(groups[-1] if on_finish else ()):
                    on_finish(index, k, completion)  # type: ignore[misc]
        # One prompt's error ends the batch: the requests that have not begun would be sampled for nobody.
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return groups
