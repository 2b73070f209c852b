"""The engine that is vLLM itself, in the trainer's process and on its GPU; needs the extra `vllm`.

engine = ColocatedEngine("runs/mine/sft/model", gpu_memory_utilization=0.4)
with engine.awake():                         # asleep otherwise: the GPU belongs to the trainer
    groups = engine.generate(prompts, sampling)
    completion = await engine.generate_one(Request(prompt, sampling))

vLLM pins its own torch. Where that pin does not suit the trainer, run a server from another environment instead, on
the same GPU if you like: `posttrain.rollout.vllm_served`.

Tried with vLLM 0.32 on a CPU; nothing here has met vLLM on a GPU: a module with its interface stands in for it in the
tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from posttrain.errors import ConfigError, EngineError, MissingExtraError
from posttrain.rollout.engine import START, Completion, OnFinish, Request, SampledToken, Versions
from posttrain.rollout.requests import RequestQueue, hand_over
from posttrain.rollout.vllm_requests import (
    Sampled,
    alternatives_of,
    completions_of,
    nonsense,
    refuse_empty,
    refuse_request,
    refuse_unlike,
    request_fields,
    request_seed,
    sampling_fields,
)
from posttrain.rollout.weight_folder import WeightFolder
from posttrain.sampling import SamplingDistribution

WHERE = "vLLM in this process"


class ColocatedEngine:
    """See `posttrain.rollout.engine.Engine` and `posttrain.rollout.weight_sync.SyncedEngine`.

    Args:
        model: a folder or a hub id: the architecture, and the weights until the first `update_weights`.
        gpu_memory_utilization: share of the GPU that vLLM may fill while it is awake.
        folder: where weights are written for vLLM's workers to read; by default in memory (/dev/shm).
        options: further arguments of `vllm.LLM`: tensor_parallel_size=2, dtype="bfloat16", ...

    Raises:
        MissingExtraError: vLLM is not installed.
    """

    context_tokens: int | None = None
    """See `Engine.context_tokens`: vLLM has its own limit, which is not asked for."""

    def __init__(
        self,
        model: str | Path,
        *,
        gpu_memory_utilization: float = 0.4,
        folder: Path | None = None,
        policy_version: int = 0,
        **options: Any,
    ):
        try:
            import vllm
        except ImportError as error:
            raise MissingExtraError(
                "the colocated engine is vLLM, which is not installed",
                remedy="`pip install 'posttrain[vllm]'` on a machine with a GPU, or use the native engine",
            ) from error
        self.policy_version = policy_version
        self._parameters = vllm.SamplingParams
        self._without_tokenizer = bool(options.get("skip_tokenizer_init"))
        self._folder = WeightFolder(folder)
        self._unusable: str | None = None
        self._dropped = False
        """Whether the weights were dropped by `sleep(2)`."""
        self.can_sleep = _can_sleep()
        """Whether this vLLM frees its memory between rollouts; on a CPU it cannot."""
        self._llm = vllm.LLM(
            model=str(model),
            gpu_memory_utilization=gpu_memory_utilization,
            enable_sleep_mode=self.can_sleep,
            # "auto", the default, lets the model folder change the distribution.
            generation_config="vllm",
            # vLLM's default are log-probs before temperature and truncation: every importance ratio would be wrong.
            logprobs_mode="processed_logprobs",
            **options,
        )
        self._requests = RequestQueue(_StepSampler(self._llm.llm_engine, self._sampling_parameters))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingDistribution,
        *,
        completions_per_prompt: int = 1,
        on_finish: OnFinish | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. `on_finish` is called when all completions are there, in the order of the prompts.

        Raises:
            ConfigError: a prompt or a distribution that vLLM cannot serve; see `vllm_requests`.
            EngineError: it is asleep, or answers nonsense.
        """
        refuse_unlike(sampling)
        refuse_empty(prompts, completions_per_prompt)
        self._refuse_strings(sampling)
        self._prepare()
        seen: Counter[tuple[int, ...]] = Counter()
        parameters = []
        for prompt in map(tuple, prompts):
            seed = request_seed(sampling.seed, prompt, seen[prompt])
            seen[prompt] += 1
            fields = sampling_fields(sampling, completions_per_prompt, seed)
            parameters.append(self._sampling_parameters(fields))
        versions = Versions(self.policy_version, self.policy_version)
        outputs = self._run(prompts, parameters)
        groups = []
        for index, output in enumerate(outputs):
            where = f"{WHERE}, prompt {index}"
            # An answer to another prompt would be scored and trained as this one's.
            if list(output.prompt_token_ids) != list(prompts[index]):
                raise nonsense("the completion of another prompt", where, output.prompt_token_ids, prompts[index])
            answers = [_sampled(own) for own in sorted(output.outputs, key=lambda own: own.index)]
            groups.append(completions_of(answers, sampling, completions_per_prompt, versions, where))
        for index, group in enumerate(groups if on_finish else ()):
            for k, completion in enumerate(group):
                on_finish(index, k, completion)  # type: ignore[misc]
        return groups

    async def generate_one(self, request: Request) -> Completion:
        """See `Engine.generate_one`. Requests share vLLM's steps, on the caller's event loop; until the last has ended,
        the engine takes no batch, no weights and no sleep.

        Raises:
            ConfigError, EngineError: as `generate`.
        """
        refuse_request(request)
        self._refuse_strings(request.sampling)
        self._refuse_unusable()
        # No weights are taken while it is in flight, so the version after it is the version that sampled it.
        completion = await self._requests.complete(request)
        return replace(completion, versions=Versions(self.policy_version, self.policy_version))

    @property
    def in_flight(self) -> int:
        """See `Engine.in_flight`."""
        return len(self._requests)

    def abort(self, request: Request | None = None) -> None:
        """End a request, or without one all of them. A `generate` that runs is vLLM's own loop, and is not ended."""
        self._requests.abort(request)

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Log-probs of `ids` after `prompt` in nats, at temperature 1 over the whole vocabulary; no cache is read."""
        self._prepare()
        greedy = sampling_fields(SamplingDistribution(temperature=0, max_new_tokens=1), 1, 0)
        parameters = self._sampling_parameters({**greedy, "prompt_logprobs": 1})
        (output,) = self._run([[*prompt, *ids]], [parameters])
        places, total = output.prompt_logprobs, len(prompt) + len(ids)
        if places is None or len(places) != total:
            raise nonsense("no log-prob for each prompt token", WHERE, places and len(places), total)
        return [float(place[number].logprob) for place, number in zip(places[len(prompt) :], ids, strict=True)]

    def update_weights(self, model: nn.Module, version: int) -> None:
        """Write the model's weights (an adapter merged) to the folder and have vLLM's workers read them.

        An engine that sleeps is awake afterwards.

        Raises:
            EngineError: requests are in flight.
        """
        self._refuse_in_flight("take other weights")
        self._unusable = f"it did not take the weights of policy version {version}"
        path = self._folder.write(model, version)
        # Waking what is awake does nothing; after sleep(2) the cache stays down until the weights are in.
        self._wake(["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        self._wake(["kv_cache"])
        self._llm.reset_prefix_cache()
        self.policy_version = version
        self._unusable, self._dropped = None, False

    def sleep(self, level: int = 1) -> None:
        """Free the GPU: level 1 keeps the weights in the host's memory, level 2 drops them until the next update.

        Without a sleep mode (`can_sleep`) nothing is freed, and the engine stays awake.

        Raises:
            EngineError: requests are in flight.
        """
        self._refuse_in_flight("sleep")
        if not self.can_sleep:
            return
        self._llm.sleep(level=level)
        self._unusable, self._dropped = f"it sleeps (level {level})", level == 2

    def wake(self) -> None:
        """Undo `sleep(1)`.

        Raises:
            EngineError: it sleeps at level 2: its weights are gone, and only `update_weights` wakes it.
        """
        if self._dropped:
            raise EngineError(
                "the engine dropped its weights when it went to sleep",
                where=WHERE,
                remedy="call update_weights(model, version), which wakes it",
            )
        self._wake()
        self._unusable = None

    def _wake(self, tags: list[str] | None = None) -> None:
        if self.can_sleep:
            self._llm.wake_up(tags=tags)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Awake inside, asleep at level 1 afterwards."""
        if self._unusable is not None:
            self.wake()
        try:
            yield
        finally:
            self.sleep()

    def close(self) -> None:
        """Remove the weights that were written for the workers."""
        self._folder.clear()

    def _run(self, prompts: Sequence[Sequence[int]], parameters: list[Any]) -> list[Any]:
        rows = [{"prompt_token_ids": [int(number) for number in prompt]} for prompt in prompts]
        outputs: list[Any] = self._llm.generate(rows, parameters, use_tqdm=False)
        if len(outputs) != len(rows):
            raise nonsense("another number of prompts than was asked for", WHERE, len(outputs), len(rows))
        return outputs

    def _sampling_parameters(self, fields: dict[str, Any]) -> Any:
        # Text is made for stop strings alone: ids in, ids out.
        return self._parameters(**fields, detokenize=bool(fields["stop"]))

    def _refuse_strings(self, sampling: SamplingDistribution) -> None:
        if sampling.stop and self._without_tokenizer:
            raise ConfigError(
                "vLLM finds stop strings with its tokenizer, and this engine was started without one",
                where=WHERE,
                found=f"stop: {', '.join(map(repr, sampling.stop))}, skip_tokenizer_init: true",
                remedy="leave `stop` out, or use the native engine or a server",
            )

    def _prepare(self) -> None:
        self._refuse_in_flight("answer a batch")  # vLLM's own loop would take the outputs of the requests for its own
        self._refuse_unusable()

    def _refuse_in_flight(self, what: str) -> None:
        if self.in_flight:
            raise EngineError(
                f"the engine cannot {what} while requests are in flight",
                where=WHERE,
                found=f"{self.in_flight} of them",
                remedy="await them first, or call abort()",
            )

    def _refuse_unusable(self) -> None:
        if self._unusable is not None:
            raise EngineError(
                f"the engine cannot be sampled from: {self._unusable}",
                where=WHERE,
                remedy="call wake() or update_weights(model, version) first",
            )


@dataclass(slots=True)
class _Running:
    """A request that vLLM has."""

    name: str
    latest: Any = None
    """vLLM's last output of it, since it gives none for a request that is aborted; None before the first."""
    given: int = 0
    """Tokens that its `on_token` has had."""


def _can_sleep() -> bool:
    """As vLLM says of the machine's platform, before it would refuse to start with a mode that the platform lacks."""
    try:
        from vllm.platforms import current_platform
    except ImportError:  # older than the question
        return True
    return bool(current_platform.is_sleep_mode_available())


class _StepSampler:
    """`posttrain.rollout.requests.StepSampler` over `vllm.LLMEngine`, whose scheduler lets requests join at a step."""

    def __init__(self, engine: Any, make_parameters: Callable[[dict[str, Any]], Any]):
        self._engine, self._make_parameters = engine, make_parameters
        self._requests: dict[str, Request] = {}
        self._running: dict[Request, _Running] = {}
        self._ids = (f"posttrain-{number}" for number in count())

    def add(self, request: Request) -> None:
        name = next(self._ids)
        rows = {"prompt_token_ids": [int(number) for number in request.prompt]}
        self._engine.add_request(name, rows, self._make_parameters(request_fields(request)))
        self._requests[name], self._running[request] = request, _Running(name)

    def step(self) -> list[tuple[Request, Completion | Exception]]:
        ended: list[tuple[Request, Completion | Exception]] = []
        for output in self._engine.step():
            request = self._requests.get(output.request_id)
            # Of a request that was aborted in this step, or of somebody else's.
            if request is None:
                continue
            running = self._running[request]
            running.latest = output.outputs[0]
            try:
                if (failed := self._hand_over(request, running)) is not None:
                    ended.append((request, failed))
                    if not output.finished:
                        self._engine.abort_request([running.name])
                elif output.finished:
                    ended.append((request, _completion(_sampled(running.latest), request)))
            except EngineError as error:
                ended.append((request, error))
        for request, _ in ended:
            self._forget(request)
        return ended

    @staticmethod
    def _hand_over(request: Request, running: _Running) -> EngineError | None:
        if request.on_token is None:
            return None
        # Counted, since vLLM's list of ids may be one that grows.
        fresh = _sampled(running.latest, running.given)
        running.given += len(fresh.ids)
        top = request.alternatives
        raw = [None] * len(fresh.ids) if top is None else alternatives_of(fresh, top, WHERE)
        for number, logprob, alternatives in zip(fresh.ids, fresh.logprobs, raw, strict=True):
            token = SampledToken(number, min(float(logprob), 0.0), alternatives)
            if (failed := hand_over(request, token)) is not None:
                return failed
        return None

    def remove(self, request: Request) -> Completion:
        running = self._forget(request)
        self._engine.abort_request([running.name])
        sampled = Sampled((), (), None) if running.latest is None else _sampled(running.latest)
        return _completion(replace(sampled, finish="abort"), request)

    def _forget(self, request: Request) -> _Running:
        running = self._running.pop(request)
        del self._requests[running.name]
        return running


def _completion(sampled: Sampled, request: Request) -> Completion:
    return completions_of([sampled], request.sampling, 1, START, WHERE, request.alternatives)[0]


def _sampled(output: Any, first: int = 0) -> Sampled:
    """From the id at `first` on."""
    ids, places = list(output.token_ids)[first:], list(output.logprobs or [])[first:]
    logprobs = [place[number].logprob for place, number in zip(places, ids, strict=True)]
    likeliest = [{number: float(one.logprob) for number, one in place.items()} for place in places]
    return Sampled(ids, logprobs, output.finish_reason, output.stop_reason, likeliest)
