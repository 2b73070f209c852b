"""What both vLLM engines share: the sampling record in vLLM's words, and answers that are checked before they are used.

Every field is written out. A field that is left out means the server's default, and a vLLM server takes its defaults
from the model folder's generation_config.json unless it was started with `--generation-config vllm`.

Where the two differ, and what is done about it:

1. vLLM applies min-p before top-p, `SamplingDistribution` after; with both on, the sets differ: refused.
2. vLLM raises temperatures between 0 and 0.01 to 0.01: refused.
3. vLLM refuses several greedy completions of one prompt: one is asked for, and repeated.
4. A seed repeats a completion only where the server computes the same logits; its batches change them by rounding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, EngineError
from posttrain.rollout.engine import Completion, FinishReason, Request, Versions
from posttrain.sampling import SamplingDistribution

SMALLEST_TEMPERATURE = 0.01
"""vLLM's `_MAX_TEMP`: what lies between 0 and this is raised to it."""
IMPOSSIBLE = -9998.0
"""vLLM writes minus infinity as -9999; nothing that was sampled is that unlikely."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion as vLLM reports it: Sampled(ids=(53, 2), logprobs=(-2.3, -0.1), finish="stop")."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    finish: str | None


def refuse_unlike(sampling: SamplingDistribution) -> None:
    """Stop where vLLM would draw from another distribution than the record says.

    Raises:
        ConfigError: see the list in this module's docstring.
    """
    if sampling.top_p < 1 and sampling.min_p > 0:
        raise ConfigError(
            "vLLM cuts by min_p before top_p, posttrain after: the two together are not the same distribution",
            found=f"top_p={sampling.top_p}, min_p={sampling.min_p}",
            remedy="use one of them, or the native engine",
        )
    if 0 < sampling.temperature < SMALLEST_TEMPERATURE:
        raise ConfigError(
            "vLLM raises so low a temperature",
            found=f"temperature={sampling.temperature}",
            expected=f"0, or at least {SMALLEST_TEMPERATURE}",
            remedy="use 0 (greedy) or a higher temperature",
        )


def refuse_empty(prompts: Sequence[Sequence[int]], completions_per_prompt: int) -> None:
    """Raises:
    ConfigError: a prompt without tokens, or no completion asked for.
    """
    if completions_per_prompt < 1:
        raise ConfigError(
            "a prompt needs at least one completion", found=completions_per_prompt, remedy="ask for 1 or more"
        )
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigError(
                "the prompt has no tokens", where=f"prompt {index}", remedy="begin it with the BOS token or a template"
            )


def sampling_fields(sampling: SamplingDistribution, completions: int, seed: int) -> dict[str, Any]:
    """All fields that decide what is drawn, by the names of `vllm.SamplingParams` and of /v1/completions."""
    return {
        "n": 1 if sampling.is_greedy else completions,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": 0,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": seed,
        "stop": [],
        "stop_token_ids": sorted(sampling.stop_ids),
        # The eos token of the model folder is no stop of ours unless it is among stop_ids.
        "ignore_eos": True,
        "logprobs": 0,  # of the sampled token alone
    }


def request_seed(seed: int, prompt: Sequence[int], occurrence: int) -> int:
    """A prompt's own seed; vLLM adds the completion's number to it. Equal prompts in one call are told apart."""
    content = f"{seed} {occurrence} {list(map(int, prompt))}"
    # Two bits less than 64: vLLM takes a signed number and adds the completion's.
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little") >> 2


def request_fields(request: Request) -> dict[str, Any]:
    """`sampling_fields` of one request: the seed that vLLM gives the same completion of a whole prompt."""
    seed = request_seed(request.sampling.seed, request.prompt, request.occurrence)
    return sampling_fields(request.sampling, 1, seed + request.completion)


def completions_of(
    answers: Sequence[Sampled], sampling: SamplingDistribution, wanted: int, versions: Versions, where: str
) -> list[Completion]:
    """The completions of one prompt, each checked; one greedy answer stands for all of them.

    Raises:
        EngineError: an answer that no server with this interface gives.
    """
    if sampling.is_greedy and len(answers) == 1:
        answers = list(answers) * wanted
    if len(answers) != wanted:
        raise nonsense("another number of completions than was asked for", where, len(answers), wanted)
    return [_completion(answer, sampling, versions, f"{where}, completion {k}") for k, answer in enumerate(answers)]


def _completion(answer: Sampled, sampling: SamplingDistribution, versions: Versions, where: str) -> Completion:
    ids = tuple(answer.ids)
    if len(answer.logprobs) != len(ids):
        raise nonsense("ids and log-probs of different lengths", where, len(answer.logprobs), len(ids))
    if not all(isinstance(number, int) for number in ids):
        raise nonsense("ids that are no integers", where, ids[:8], "token ids")
    bad = [value for value in answer.logprobs if not _is_logprob(value)]
    if bad:
        raise nonsense("a log-prob that no sampled token has", where, bad[0], "a number of at most 0")
    # A server that goes on behind a stop token would train the policy to do so.
    if any(number in sampling.stop_ids for number in ids[:-1]):
        raise nonsense("tokens after a stop token", where, ids, f"an end at the first of {sorted(sampling.stop_ids)}")
    if len(ids) > sampling.max_new_tokens:
        raise nonsense("more tokens than were asked for", where, len(ids), sampling.max_new_tokens)
    # Rounding may put a certain token just above 0.
    logprobs = tuple(min(float(value), 0.0) for value in answer.logprobs)
    return Completion(ids, logprobs, _finish(ids, answer.finish, sampling, where), versions)


def _is_logprob(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and IMPOSSIBLE < value <= 1e-3


def _finish(ids: tuple[int, ...], finish: str | None, sampling: SamplingDistribution, where: str) -> FinishReason:
    if finish == "abort":
        return FinishReason.ABORTED
    stopped = bool(ids) and ids[-1] in sampling.stop_ids
    if finish not in ("stop", "length") or not ids:
        raise nonsense("a completion that ended for an unknown reason", where, finish, "stop, length or abort")
    # A stop token at the very limit is reported as either.
    if stopped:
        return FinishReason.EMPTY if len(ids) == 1 else FinishReason.STOP_TOKEN
    if finish == "stop":
        raise nonsense("a completion that stopped at no stop token", where, ids[-1], sorted(sampling.stop_ids))
    return FinishReason.LENGTH


def nonsense(problem: str, where: str, found: object, expected: object) -> EngineError:
    return EngineError(
        f"the engine answered with {problem}",
        where=where,
        found=found,
        expected=expected,
        remedy="see that it is vLLM 0.18 or newer and that nothing between it and the trainer rewrites answers",
    )


def choices_of(answer: Any, where: str) -> list[dict[str, Any]]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise nonsense("no completions", where, short(answer), '{"choices": [{...}]}')
    return choices


def sampled_of(choice: dict[str, Any], prompt: Sequence[int], where: str) -> Sampled:
    """The ids as they were sampled; never the text."""
    read = choice.get("prompt_token_ids")
    if read != list(prompt):
        raise nonsense("the completion of another prompt", where, short(read), short(list(prompt)))
    reported = choice.get("logprobs")
    ids, logprobs = choice.get("token_ids"), reported.get("token_logprobs") if isinstance(reported, dict) else None
    if ids == [] and logprobs is None:
        logprobs = []  # aborted before its first token
    if not isinstance(ids, list) or not isinstance(logprobs, list):
        raise nonsense("no token ids or log-probs", where, short(choice), "token_ids and logprobs.token_logprobs")
    return Sampled(ids, logprobs, choice.get("finish_reason"))


def short(value: object) -> str:
    """As an error shows it."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
