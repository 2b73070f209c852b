"""The engine behind a vLLM server: token ids over HTTP, weights through a folder that both sides can read.

engine = ServedEngine("http://127.0.0.1:8000")
engine.update_weights(model, version=1)      # or through posttrain.rollout.weight_sync, which also proves it
completion = await engine.generate_one(Request(prompt, sampling))

The interface is vLLM's: /v1/completions with `return_token_ids`; and of the development endpoints /collective_rpc
(`reload_weights`), /pause, /resume, /abort_requests, /reset_prefix_cache, /sleep, /wake_up, /update_weight_version and
/weight_info. Each prompt carries a `cache_salt` that names the weights, so that no cache of older ones is read.

Proven on vLLM 0.32 on a CPU by `make test-vllm`; nothing here has met vLLM on a GPU. In the other tests a fake server
that speaks this interface stands in for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from posttrain.errors import ConfigError
from posttrain.rollout.engine import START, Completion, FinishReason, OnFinish, Request, Versions
from posttrain.rollout.vllm_batch import batch
from posttrain.rollout.vllm_requests import (
    Sampled,
    choices_of,
    completions_of,
    nonsense,
    refuse_request,
    refuse_stops,
    request_fields,
    sampled_of,
    sampling_fields,
    short,
)
from posttrain.rollout.vllm_server import COMMAND, Abandoned, Call, VLLMServer
from posttrain.rollout.vllm_weights import PAUSES, InFlight, ServerWeights
from posttrain.rollout.weight_folder import WeightFolder
from posttrain.sampling import SamplingDistribution

COMPLETIONS = "/v1/completions"
TEST_PROMPT = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says that it serves: ServedModel("Qwen/Qwen3-0.6B", longest=4096)."""

    name: str
    longest: int | None
    """Tokens of a prompt and its completion; None where the server does not say."""


class ServedEngine:
    """See `posttrain.rollout.engine.Engine` and `posttrain.rollout.weight_sync.SyncedEngine`.

    The first call asks the server for its model's name and proves that it reports processed log-probs.

    A server that was restarted, or that somebody else gave weights, holds others than those that were pushed. The
    version label that every push leaves in the server's memory is read after each answer, once for all that came in the
    meantime. A server without that endpoint is not tried again once the connection broke after a push.

    Args:
        url: of the server.
        folder: where the weights are written for the server to read, on a file system that both see; by default
            in memory (/dev/shm), for a server on this machine.
        served_name: the server's name of the model; by default the first that it lists.
        requests: prompts in flight at a time; the server's scheduler fills its batches from them.
        patience, timeout: see `VLLMServer`.
    """

    context_tokens: int | None = None
    """See `Engine.context_tokens`: vLLM has its own limit, which is not asked for."""

    def __init__(
        self,
        url: str,
        *,
        folder: Path | None = None,
        served_name: str | None = None,
        requests: int = 256,
        patience: float = 60.0,
        timeout: float = 1200.0,
        policy_version: int = 0,
    ):
        self.server = VLLMServer(url, patience=patience, timeout=timeout)
        self._folder = WeightFolder(folder)
        self._name = served_name
        self._requests = requests
        self._proven = False
        self._weights = ServerWeights(self.server, policy_version)
        self._aborted = threading.Event()
        self._calls: dict[Request, Call] = {}
        self._threads: ThreadPoolExecutor | None = None
        """One for each request that is on its way to the server, where the caller's event loop must not wait."""

    @property
    def policy_version(self) -> int:
        """See `Engine.policy_version`."""
        return self._weights.version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        self._weights.version = version

    # ------------------------------------------------------------ sampling

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingDistribution,
        *,
        completions_per_prompt: int = 1,
        on_finish: OnFinish | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. `on_finish` is called when a prompt's completions are all there.

        Raises:
            ConfigError: a prompt or a distribution that the server cannot serve; see `vllm_requests` for the latter.
            EngineError: the server cannot be reached, died, holds other weights, or answers nonsense.
        """
        self._aborted.clear()
        where = self.server.url

        def group(index: int, seed: int) -> list[Completion]:
            if self._aborted.is_set():
                return self.aborted(completions_per_prompt)
            return self.group(prompts[index], sampling, completions_per_prompt, seed, f"{where}, prompt {index}")

        return batch(group, prompts, sampling, completions_per_prompt, threads=self._requests, on_finish=on_finish)

    def group(
        self, prompt: Sequence[int], sampling: SamplingDistribution, completions: int, seed: int, where: str
    ) -> list[Completion]:
        """One prompt's completions; the caller waits. For batches that are made elsewhere, as `ServerPool` does.

        Args:
            seed: see `vllm_requests.request_seed`.

        Raises:
            ConfigError, EngineError: as `generate`.
        """
        fields = sampling_fields(sampling, completions, seed)
        answers, versions = self._sampled(prompt, fields, where)
        return completions_of(answers, sampling, completions, versions, where)

    def aborted(self, completions: int) -> list[Completion]:
        """What a prompt gets whose turn had not come when the batch was aborted."""
        versions = Versions(self.policy_version, self.policy_version)
        return [Completion((), (), FinishReason.ABORTED, versions)] * completions

    async def generate_one(self, request: Request) -> Completion:
        """See `Engine.generate_one`. The server's scheduler batches what is in flight, at most `requests` at a time.

        A request that is cancelled or aborted closes its connection, by which a vLLM server knows to stop sampling for
        it; nothing of what it had sampled comes back. One that is asked for while weights are pushed waits for them.

        Raises:
            ConfigError, EngineError: as `generate`; the request has an `on_token`, or alternatives that are not raw.
        """
        refuse_request(request)
        refuse_stops(request.sampling.stop)
        if request.on_token is not None:
            raise ConfigError(
                "the served engine gives a completion when it has ended, not token by token",
                found="a request with `on_token`",
                remedy="leave `on_token` out, or use the native or the colocated engine",
            )
        if request in self._calls:
            raise ValueError("this request is in flight already: make another one for another completion")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._requests, thread_name_prefix="posttrain-request")
        call = self._calls[request] = Call()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, request, call)
        except Abandoned:
            return Completion((), (), FinishReason.ABORTED, Versions(self.policy_version, self.policy_version))
        finally:
            del self._calls[request]
            # Whatever ended the wait: of a request that has its answer nothing is left to give up.
            call.abandon()

    @property
    def in_flight(self) -> int:
        """See `Engine.in_flight`."""
        return len(self._calls)

    def _answer(self, request: Request, call: Call) -> Completion:
        where = self.server.url
        answers, versions = self._sampled(request.prompt, request_fields(request), where, call)
        return completions_of(answers, request.sampling, 1, versions, where, request.alternatives)[0]

    def served_model(self) -> ServedModel:
        """The model that the server answers for.

        Raises:
            ConfigError: it does not serve one of that name.
            EngineError: it cannot be reached, or answers nonsense.
        """
        where = f"{self.server.url}/v1/models"
        listed = self.server.get("/v1/models")
        try:
            models = {str(entry["id"]): entry.get("max_model_len") for entry in listed["data"]}
            name = next(iter(models)) if self._name is None else self._name
        except (TypeError, KeyError, AttributeError, StopIteration):
            raise nonsense("no list of models", where, short(listed), "data") from None
        if name not in models:
            raise ConfigError(
                "the server serves another model",
                where=where,
                found=", ".join(models),
                expected=name,
                remedy="correct `served_name`, or leave it out for the first that it lists",
            )
        longest = models[name]
        return ServedModel(name, int(longest) if isinstance(longest, int) else None)

    def abort(self, request: Request | None = None) -> None:
        """End a request, or without one the running `generate` and all requests: what is unfinished comes back as
        ABORTED. From any thread."""
        if request is not None:
            if (call := self._calls.get(request)) is not None:
                call.abandon()
            return
        self._aborted.set()
        for waiting in list(self._calls.values()):
            if not waiting.is_sent:  # the server ends those that it has, and gives back what it sampled
                waiting.abandon()
        try:
            self.server.post("/abort_requests")
        except ConfigError:  # a server older than this endpoint
            # Under the lock: weights that are being read must not be sampled from.
            with self._weights.lock:
                self.server.post("/pause?mode=abort")
                self.server.post("/resume")

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Log-probs of `ids` after `prompt` in nats, at temperature 1 over the whole vocabulary; no cache is read.

        Raises:
            EngineError: as `generate`.
        """
        self._prepare()
        row = [*map(int, prompt), *map(int, ids)]
        plain = SamplingDistribution(temperature=0, max_new_tokens=1)
        # One token has to be sampled for vLLM to score a prompt; it is thrown away.
        answer = self._ask(row, {**sampling_fields(plain, 1, 0), "prompt_logprobs": 1})
        where = f"{self.server.url}{COMPLETIONS}"
        reported = choices_of(answer, where)[0].get("prompt_logprobs")
        if not isinstance(reported, list) or len(reported) != len(row):
            raise nonsense("no log-prob for each prompt token", where, short(reported), f"{len(row)} of them")
        places = zip(reported[len(prompt) :], ids, strict=True)
        try:
            return [float(place[str(int(number))]["logprob"]) for place, number in places]
        except (TypeError, KeyError, ValueError):
            raise nonsense(
                "prompt log-probs without the prompt's own tokens", where, short(reported), "{id: {...}}"
            ) from None

    # ------------------------------------------------------------ weights

    def update_weights(self, model: nn.Module, version: int, in_flight: InFlight = "wait") -> None:
        """Write the model's weights (an adapter merged) to the folder and have the server read them.

        Everything cached under the old weights is forgotten, and an engine that sleeps is awake afterwards. Requests in
        flight end first; or go on under the new weights ("keep", "recompute"), as their versions then say.

        Raises:
            EngineError: the server did not take them; nothing is sampled until a later update succeeds.
        """
        with self._weights.lock:  # two pushes would otherwise remove each other's folder
            self.load_weights(self._folder.write(model, version), version, in_flight)

    def load_weights(self, folder: Path, version: int, in_flight: InFlight = "wait") -> None:
        """`update_weights` of weights that are written already, where the server can read them."""
        self._weights.load(folder, version, in_flight)

    def pause(self) -> None:
        """Hold what is in flight as it is, and what comes, until `resume` or the next weights."""
        self.server.post(f"/pause?{PAUSES['keep']}")

    def resume(self) -> None:
        """Go on with what was held."""
        self.server.post("/resume")

    def sleep(self, level: int = 1) -> None:
        """Free the GPU: level 1 keeps the weights in the host's memory, level 2 drops them until the next update.

        A server on a CPU stops sampling and frees nothing.
        """
        self._weights.sleep(level)

    def wake(self) -> None:
        """Undo `sleep(1)`.

        Raises:
            ConfigError: it sleeps at level 2: its weights are gone, and only `update_weights` wakes it.
        """
        self._weights.wake()

    def restarted(self, url: str, *, needs_weights: bool) -> None:
        """The server is a new one, perhaps elsewhere: it is asked its name again.

        Args:
            needs_weights: whether it has to be given weights before it is sampled from.
        """
        self.server.url = url
        self._proven = False
        self._weights.forget(needs_weights=needs_weights)

    def close(self) -> None:
        """Remove the weights that were written for the server."""
        self._folder.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    # ------------------------------------------------------------ requests

    def _prepare(self) -> None:
        """Refuse an engine that holds no weights to sample from; at first, ask its name and prove its log-probs."""
        self._weights.require_usable()
        if self._proven:
            return
        with self._weights.lock:
            if not self._proven:
                self._name = self.served_model().name
                self._prove_logprobs()
                self._proven = True

    def _prove_logprobs(self) -> None:
        """Among one candidate, every token is certain: its log-prob is 0 if it is that of the distribution drawn from.

        Raw log-probs, which are vLLM's default, would make every importance ratio wrong that is not at temperature 1.
        """
        only_one = SamplingDistribution(top_k=1, max_new_tokens=2)
        answers = self._complete(TEST_PROMPT, sampling_fields(only_one, 1, 0), self.server.url)
        (completion,) = completions_of(answers, only_one, 1, START, self.server.url)
        if min(completion.logprobs) < -1e-3:
            raise ConfigError(
                "the engine reports log-probs of another distribution than the one that it draws from",
                where=self.server.url,
                found=f"{min(completion.logprobs):.3g} for a token drawn with top_k=1",
                expected="0",
                remedy=f"start it with `--logprobs-mode processed_logprobs`: {COMMAND}",
            )

    def _sampled(
        self, prompt: Sequence[int], fields: dict[str, Any], where: str, call: Call | None = None
    ) -> tuple[list[Sampled], Versions]:
        """Completions, and the versions between which they were sampled."""
        mark = self._weights.mark()  # first: a server that is another one from here on is noticed
        self._prepare()
        oldest = self._weights.version
        answers = self._complete(prompt, fields, where, call)
        # Read at once: a push names its version before the server goes on, and the look below waits for a push.
        newest = self._weights.version
        # A server that was restarted meanwhile answered with the weights that it was started with.
        self._weights.require_same(mark)
        self._weights.require_usable()
        return answers, Versions(oldest, newest)

    def _complete(
        self, prompt: Sequence[int], fields: dict[str, Any], where: str, call: Call | None = None
    ) -> list[Sampled]:
        choices = choices_of(self._ask(prompt, fields, call), where)
        order = [choice.get("index") for choice in choices]
        if sorted(order, key=str) != sorted(range(len(choices)), key=str):
            raise nonsense("completions that are not numbered", where, order, list(range(len(choices))))
        # By their number: vLLM may list them as they ended, and seeds go by it.
        choices.sort(key=lambda choice: int(choice["index"]))
        return [sampled_of(choice, prompt, where) for choice in choices]

    def _ask(self, prompt: Sequence[int], fields: dict[str, Any], call: Call | None = None) -> Any:
        body = {
            **fields,
            "model": self._name,
            "prompt": [int(number) for number in prompt],
            "add_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "echo": False,
            "stream": False,
            "cache_salt": self._weights.salt,
        }
        # Without a label, a server that comes back may be a new one with the weights that it was started with.
        return self.server.post(COMPLETIONS, body, retry=self._weights.are_known, call=call)
