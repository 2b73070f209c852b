"""What both vLLM engines share: the sampling record in vLLM's words, and answers that are checked before they are used.

Every field is written out. A field that is left out means the server's default, and a vLLM server takes its defaults
from the model folder's generation_config.json unless it was started with `--generation-config vllm`.

Where the two differ, and what is done about it:

1. vLLM applies min-p before top-p, `SamplingDistribution` after; with both on, the sets differ: refused.
2. vLLM raises temperatures between 0 and 0.01 to 0.01: refused.
3. vLLM refuses several greedy completions of one prompt: one is asked for, and repeated.
4. A seed repeats a completion only where the server computes the same logits; its batches change them by rounding.
5. Of two stop strings that one token completes, vLLM names the first of the list, or the one that ends first; the
   native engine the one that begins first.
6. vLLM reports one kind of log-prob, that of the distribution drawn from, which training needs. `Request.alternatives`
   are raw: they are refused where the two differ.
7. A server takes at most four stop strings, as OpenAI's do: more are refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, EngineError
from posttrain.rollout.engine import Alternatives, Completion, FinishReason, Request, Versions
from posttrain.sampling import SamplingDistribution

SMALLEST_TEMPERATURE = 0.01
"""vLLM's `_MAX_TEMP`: what lies between 0 and this is raised to it."""
MOST_STOPS = 4
TOKEN_ID = "token_id:"
"""What vLLM writes before an id under `return_tokens_as_token_ids`."""
IMPOSSIBLE = -9998.0
"""vLLM writes minus infinity as -9999; nothing that was sampled is that unlikely."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion as vLLM reports it: Sampled(ids=(53, 2), logprobs=(-2.3, -0.1), finish="stop")."""

    ids: Sequence[int]
    logprobs: Sequence[float]
    finish: str | None
    reason: object = None
    """vLLM's `stop_reason`: the stop string, or the id of the stop token."""
    likeliest: Sequence[Mapping[int, float]] | None = None
    """The log-probs of the likeliest ids at each id, and perhaps its own, in no order; None where nobody asked."""


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


def refuse_request(request: Request) -> None:
    """`refuse_unlike` and `refuse_empty` of one request, and what vLLM cannot say of its tokens.

    Raises:
        ConfigError: as they do; or alternatives of a distribution whose log-probs are not raw.
    """
    sampling = request.sampling
    refuse_unlike(sampling)
    refuse_empty([request.prompt], 1)
    raw = sampling.temperature in (0, 1) and not sampling.has_penalties and not sampling.is_truncated
    if request.alternatives is not None and not raw:
        raise ConfigError(
            "vLLM reports the log-probs of the distribution that it draws from, and alternatives are raw",
            found=f"alternatives={request.alternatives}, temperature={sampling.temperature}"
            + (", penalties" if sampling.has_penalties else "")
            + (", truncation" if sampling.is_truncated else ""),
            expected="temperature 0 or 1, without penalties and truncation, where the two are the same",
            remedy="leave `alternatives` out, or use the native engine",
        )


def refuse_stops(stop: Sequence[str], where: object = None) -> None:
    """Raises:
    ConfigError: more stop strings than a server takes.
    """
    if len(stop) > MOST_STOPS:
        raise ConfigError(
            "a vLLM server takes at most four stop strings",
            where=where,
            found=f"{len(stop)}: {', '.join(map(repr, stop))}",
            remedy="leave some out, or use the native engine",
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


def sampling_fields(
    sampling: SamplingDistribution, completions: int, seed: int, alternatives: int = 0
) -> dict[str, Any]:
    """All fields that decide what is drawn and where it ends, by the names of `vllm.SamplingParams` and of
    /v1/completions.

    alternatives: how many of the likeliest ids are reported beside each sampled one.
    """
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
        "stop": list(sampling.stop),
        # All ids are kept, the string's too; and its text is looked for as the native engine's `decode` writes it.
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "stop_token_ids": sorted(sampling.stop_ids),
        # The eos token of the model folder is no stop of ours unless it is among stop_ids.
        "ignore_eos": True,
        "logprobs": alternatives,  # 0: of the sampled token alone
    }


def request_seed(seed: int, prompt: Sequence[int], occurrence: int) -> int:
    """A prompt's own seed; vLLM adds the completion's number to it. Equal prompts in one call are told apart."""
    content = f"{seed} {occurrence} {list(map(int, prompt))}"
    # Two bits less than 64: vLLM takes a signed number and adds the completion's.
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little") >> 2


def request_fields(request: Request) -> dict[str, Any]:
    """`sampling_fields` of one request: the seed that vLLM gives the same completion of a whole prompt."""
    seed = request_seed(request.sampling.seed, request.prompt, request.occurrence)
    return sampling_fields(request.sampling, 1, seed + request.completion, request.alternatives or 0)


def completions_of(
    answers: Sequence[Sampled],
    sampling: SamplingDistribution,
    wanted: int,
    versions: Versions,
    where: str,
    alternatives: int | None = None,
) -> list[Completion]:
    """The completions of one prompt, each checked; one greedy answer stands for all of them.

    Args:
        alternatives: as the request asks for them.

    Raises:
        EngineError: an answer that no server with this interface gives.
    """
    if sampling.is_greedy and len(answers) == 1:
        answers = list(answers) * wanted
    if len(answers) != wanted:
        raise nonsense("another number of completions than was asked for", where, len(answers), wanted)
    return [
        _completion(answer, sampling, versions, alternatives, f"{where}, completion {k}")
        for k, answer in enumerate(answers)
    ]


def _completion(
    answer: Sampled, sampling: SamplingDistribution, versions: Versions, alternatives: int | None, where: str
) -> Completion:
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
    finish = _finish(ids, answer, sampling, where)
    return Completion(
        ids,
        logprobs,
        finish,
        versions,
        stopped_by=str(answer.reason) if finish is FinishReason.STOP_STRING else None,
        alternatives=() if alternatives is None else alternatives_of(answer, alternatives, where),
    )


def alternatives_of(answer: Sampled, top: int, where: str) -> tuple[Alternatives, ...]:
    """Of each id, likeliest first.

    Raises:
        EngineError: the answer has fewer than it was asked for.
    """
    own = [min(float(value), 0.0) for value in answer.logprobs]
    if top == 0 or not own:  # aborted before its first token
        return tuple(map(Alternatives, own))
    places = answer.likeliest
    if places is None or len(places) != len(own) or any(len(place) < top for place in places):
        raise nonsense(f"fewer than {top} alternatives", where, short(places), f"{top} at each of {len(own)} ids")
    return tuple(
        # vLLM adds the sampled id where it is not among them.
        Alternatives(value, tuple(sorted(place.items(), key=lambda pair: (-pair[1], pair[0]))[:top]))
        for value, place in zip(own, places, strict=True)
    )


def _is_logprob(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and IMPOSSIBLE < value <= 1e-3


def _finish(ids: tuple[int, ...], answer: Sampled, sampling: SamplingDistribution, where: str) -> FinishReason:
    finish = answer.finish
    if finish == "abort":
        return FinishReason.ABORTED
    stopped = bool(ids) and ids[-1] in sampling.stop_ids
    if finish not in ("stop", "length") or not ids:
        raise nonsense("a completion that ended for an unknown reason", where, finish, "stop, length or abort")
    # A stop token at the very limit is reported as either.
    if stopped:
        return FinishReason.EMPTY if len(ids) == 1 else FinishReason.STOP_TOKEN
    if finish == "stop" and answer.reason in sampling.stop:
        return FinishReason.STOP_STRING
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
    likeliest = reported.get("top_logprobs") if isinstance(reported, dict) else None
    return Sampled(ids, logprobs, choice.get("finish_reason"), choice.get("stop_reason"), _by_id(likeliest, where))


def _by_id(places: Any, where: str) -> list[dict[int, float]] | None:
    """[{"token_id:53": -0.5}] -> [{53: -0.5}]: texts of tokens name no id, since two ids may have the same one."""
    if places is None:
        return None
    try:
        return [{int(name.removeprefix(TOKEN_ID)): float(value) for name, value in place.items()} for place in places]
    except (AttributeError, TypeError, ValueError):
        raise nonsense("alternatives that are not named by their ids", where, short(places), "token_id:53") from None


def short(value: object) -> str:
    """As an error shows it."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
