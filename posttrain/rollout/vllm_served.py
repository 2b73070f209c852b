"""The engine behind a vLLM server: token ids over HTTP, weights through a folder that both sides can read.

engine = ServedEngine("http://127.0.0.1:8000")
engine.update_weights(model, version=1)      # or through posttrain.rollout.weight_sync, which also proves it

The interface is vLLM's: /v1/completions with `return_token_ids`; and of the development endpoints /collective_rpc
(`reload_weights`), /pause, /resume, /reset_prefix_cache, /sleep, /wake_up, /update_weight_version and /weight_info.

Nothing here has met vLLM on a GPU: a fake server that speaks this interface stands in for it in the tests.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from posttrain.errors import ConfigError, EngineError
from posttrain.rollout.engine import Completion, FinishReason, OnFinish
from posttrain.rollout.vllm_requests import (
    Sampled,
    completions_of,
    nonsense,
    refuse_empty,
    refuse_unlike,
    request_seed,
    sampling_fields,
)
from posttrain.rollout.vllm_server import COMMAND, VLLMServer
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
    version label that every push leaves in the server's memory is read before and after each `generate`. A server
    without that endpoint is not tried again once the connection broke after a push.

    Args:
        url: of the server.
        folder: where the weights are written for the server to read, on a file system that both see; by default
            in memory (/dev/shm), for a server on this machine.
        served_name: the server's name of the model; by default the first that it lists.
        requests: prompts in flight at a time; the server's scheduler fills its batches from them.
        patience, timeout: see `VLLMServer`.
    """

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
        self.policy_version = policy_version
        self._folder = WeightFolder(folder)
        self._name = served_name
        self._requests = requests
        self._proven = False
        self._unusable: str | None = None
        """Why nothing may be sampled: a failed update, or sleep."""
        self._run = secrets.token_hex(4)
        self._label: str | None = None
        """What the server's memory says of the weights that were pushed last."""
        self._labels: bool | None = None
        """Whether the server keeps such a label; None before it was asked."""
        self._asleep = 0
        self._aborted = threading.Event()

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
        refuse_unlike(sampling)
        refuse_empty(prompts, completions_per_prompt)
        self._prepare()
        self._aborted.clear()
        version, lost = self.policy_version, self.server.lost
        seen: Counter[tuple[int, ...]] = Counter()
        seeds = []
        for prompt in map(tuple, prompts):
            seeds.append(request_seed(sampling.seed, prompt, seen[prompt]))
            seen[prompt] += 1

        def one(index: int) -> list[Completion]:
            if self._aborted.is_set():
                return [Completion((), (), FinishReason.ABORTED, version)] * completions_per_prompt
            fields = sampling_fields(sampling, completions_per_prompt, seeds[index])
            answers = self._complete(prompts[index], fields, index)
            where = f"{self.server.url}, prompt {index}"
            return completions_of(answers, sampling, completions_per_prompt, version, where)

        groups = []
        with ThreadPoolExecutor(max(1, min(self._requests, len(prompts)))) as pool:
            pending = [pool.submit(one, index) for index in range(len(prompts))]
            try:
                for index, future in enumerate(pending):
                    groups.append(future.result())
                    for k, completion in enumerate(groups[-1] if on_finish else ()):
                        on_finish(index, k, completion)  # type: ignore[misc]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._same_weights(lost)
        return groups

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
            raise nonsense("no list of models", where, _short(listed), "data") from None
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

    def abort(self) -> None:
        """End the running `generate`, from another thread: what is unfinished comes back as ABORTED."""
        self._aborted.set()
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
        answer = self._ask(row, {**sampling_fields(plain, 1, 0), "prompt_logprobs": 1})
        where = f"{self.server.url}{COMPLETIONS}"
        told = _choices(answer, where)[0].get("prompt_logprobs")
        if not isinstance(told, list) or len(told) != len(row):
            raise nonsense("no log-prob for each prompt token", where, _short(told), f"{len(row)} of them")
        places = zip(told[len(prompt) :], ids, strict=True)
        try:
            return [float(place[str(int(number))]["logprob"]) for place, number in places]
        except (TypeError, KeyError, ValueError):
            raise nonsense(
                "prompt log-probs without the prompt's own tokens", where, _short(told), "{id: {...}}"
            ) from None

    # ------------------------------------------------------------ weights

    def update_weights(self, model: nn.Module, version: int) -> None:
        """Write the model's weights (an adapter merged) to the folder and have the server read them.

        Requests in flight end first, everything cached under the old weights is forgotten, and an engine that sleeps
        is awake afterwards.

        Raises:
            EngineError: the server did not take them; nothing is sampled until a later update succeeds.
        """
        self._unusable = f"it did not take the weights of policy version {version}"
        path = self._folder.write(model, version)
        post = self.server.post
        if self._asleep:
            post("/wake_up?tags=weights")
        else:
            post("/pause?mode=wait")
        post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
        if self._asleep:
            post("/wake_up?tags=kv_cache")
        post("/reset_prefix_cache")
        post("/resume")
        self._write_label(f"{self._run}-{version}")
        self.policy_version = version
        self._asleep, self._unusable = 0, None

    def sleep(self, level: int = 1) -> None:
        """Free the GPU: level 1 keeps the weights in the host's memory, level 2 drops them until the next update."""
        self._unusable = f"it sleeps (level {level})"
        self.server.post(f"/sleep?level={level}")
        self._asleep = level

    def wake(self) -> None:
        """Undo `sleep(1)`.

        Raises:
            ConfigError: it sleeps at level 2: its weights are gone, and only `update_weights` wakes it.
        """
        if self._asleep == 2:
            raise ConfigError(
                "the engine dropped its weights when it went to sleep",
                where=self.server.url,
                remedy="call update_weights(model, version), which wakes it",
            )
        self.server.post("/wake_up")
        self._asleep, self._unusable = 0, None

    def close(self) -> None:
        """Remove the weights that were written for the server."""
        self._folder.clear()

    def _write_label(self, label: str) -> None:
        if self._labels is None:
            self._labels = self.server.has("/weight_info")
        if self._labels:
            self.server.post("/update_weight_version", {"new_version": label})
        self._label = label

    def _same_weights(self, lost: int) -> None:
        """Stop if the server cannot be holding the weights that were pushed.

        Args:
            lost: connections that had broken when what is now checked began.
        """
        if self._label is None:
            return
        if self._labels:
            told = self.server.get("/weight_info")
            found = told.get("weight_version") if isinstance(told, dict) else told
            if found != self._label:
                raise self._changed(f"its weights are labelled {found!r}", repr(self._label))
        elif self.server.lost != lost:
            raise self._changed("the connection broke, and it keeps no label of its weights", None)

    def _changed(self, found: str, expected: str | None) -> EngineError:
        self._unusable = "it may hold other weights than those that were pushed"
        return EngineError(
            "the engine may hold other weights than those that were pushed: it was restarted, or got others",
            where=self.server.url,
            found=found,
            expected=expected,
            remedy="resume the run: it pushes its weights again before it samples",
        )

    # ------------------------------------------------------------ requests

    def _prepare(self) -> None:
        """Refuse an engine that holds no weights to sample from; at first, ask its name and prove its log-probs."""
        if self._unusable is not None:
            raise EngineError(
                f"the engine cannot be sampled from: {self._unusable}",
                where=self.server.url,
                remedy="call wake() or update_weights(model, version) first",
            )
        self._same_weights(self.server.lost)
        if self._proven:
            return
        self._name = self.served_model().name
        self._prove_logprobs()
        self._proven = True

    def _prove_logprobs(self) -> None:
        """Among one candidate, every token is certain: its log-prob is 0 if it is that of the distribution drawn from.

        Raw log-probs, which are vLLM's default, would make every importance ratio wrong that is not at temperature 1.
        """
        only_one = SamplingDistribution(top_k=1, max_new_tokens=2)
        answers = self._complete(TEST_PROMPT, sampling_fields(only_one, 1, 0), 0)
        (completion,) = completions_of(answers, only_one, 1, 0, self.server.url)
        if min(completion.logprobs) < -1e-3:
            raise ConfigError(
                "the engine reports log-probs of another distribution than the one that it draws from",
                where=self.server.url,
                found=f"{min(completion.logprobs):.3g} for a token drawn with top_k=1",
                expected="0",
                remedy=f"start it with `--logprobs-mode processed_logprobs`: {COMMAND}",
            )

    def _complete(self, prompt: Sequence[int], fields: dict[str, Any], index: int) -> list[Sampled]:
        where = f"{self.server.url}, prompt {index}"
        choices = _choices(self._ask(prompt, fields), where)
        order = [choice.get("index") for choice in choices]
        if sorted(order, key=str) != sorted(range(len(choices)), key=str):
            raise nonsense("completions that are not numbered", where, order, list(range(len(choices))))
        choices.sort(key=lambda choice: int(choice["index"]))
        return [_sampled(choice, prompt, where) for choice in choices]

    def _ask(self, prompt: Sequence[int], fields: dict[str, Any]) -> Any:
        body = {
            **fields,
            "model": self._name,
            "prompt": [int(number) for number in prompt],
            "add_special_tokens": False,
            "return_token_ids": True,
            "echo": False,
            "stream": False,
        }
        # Without a label, a server that comes back may be a new one with the weights that it was started with.
        return self.server.post(COMPLETIONS, body, retry=self._label is None or bool(self._labels))


def _choices(answer: Any, where: str) -> list[dict[str, Any]]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise nonsense("no completions", where, _short(answer), '{"choices": [{...}]}')
    return choices


def _sampled(choice: dict[str, Any], prompt: Sequence[int], where: str) -> Sampled:
    """The ids as they were sampled; never the text."""
    read = choice.get("prompt_token_ids")
    if read != list(prompt):
        raise nonsense("the completion of another prompt", where, _short(read), _short(list(prompt)))
    told = choice.get("logprobs")
    ids, logprobs = choice.get("token_ids"), told.get("token_logprobs") if isinstance(told, dict) else None
    if ids == [] and logprobs is None:
        logprobs = []  # aborted before its first token
    if not isinstance(ids, list) or not isinstance(logprobs, list):
        raise nonsense("no token ids or log-probs", where, _short(choice), "token_ids and logprobs.token_logprobs")
    return Sampled(ids, logprobs, choice.get("finish_reason"))


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 120 else text[:117] + "..."
