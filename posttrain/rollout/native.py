"""The engine that needs nothing else: sampling in the trainer's process, on the trainer's weights.

engine = NativeEngine(model)                     # any causal LM of transformers, or a peft model around one
groups = engine.generate(prompts, SamplingDistribution(max_new_tokens=64, stop_ids=encoder.stop_ids),
                         completions_per_prompt=8)
completion = await engine.generate_one(Request(prompt, sampling))     # beside others, each in its own time

`transformers.generate` is not used: it reads the model folder's generation_config.json, keeps finished rows in the
batch until the last one ends, and computes a prompt once per completion.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from posttrain.errors import ConfigError
from posttrain.models.adapters.active import ACTIVE, AdapterName, adapter_in_use, require_adapter
from posttrain.models.adapters.kinds import virtual_tokens
from posttrain.rollout.decode import CachedDecoder, CausalLM, Decoder, DecodeStats, RecomputingDecoder
from posttrain.rollout.engine import Alternatives, Completion, FinishReason, OnFinish, Request
from posttrain.rollout.native_requests import NativeStepSampler
from posttrain.rollout.prefixes import PrefixStore, prefix_store, weights_now
from posttrain.rollout.prompt_scores import prompt_scores, require_scorable
from posttrain.rollout.requests import RequestQueue
from posttrain.rollout.rows import Row, sample_tokens
from posttrain.rollout.sampled_model import (
    causal_lm,
    evaluating,
    layers_without_keys,
    require_known_ids,
    text_config,
    vocabulary_of,
)
from posttrain.rollout.text import Decode, StopSearch
from posttrain.sampling import RandomStream, SamplingDistribution

logger = logging.getLogger(__name__)


CACHE_TOLERANCE = 1e-3
"""Largest difference in nats between a log-prob from the cache and one without it. Rounding in SmolLM2-135M (30 layers,
fp32) measures 2e-5."""
HALF_TOLERANCE = 0.25
"""The same where weights or activations are bf16 or fp16."""
PROVEN_TOKENS = 256
"""Tokens over which the two are compared."""


class NativeEngine:
    """Continuous batching in process; see `posttrain.rollout.engine.Engine` for what every engine promises.

    Memory: `cache_tokens` x (key + value bytes of one token, over all layers); 46 kB a token for SmolLM2-135M in fp32,
    so 1.5 GB by default. Whatever does not fit waits.

    After the first call, the longest and the shortest sequence are scored again without the cache. If the log-probs
    differ, the cache is wrong for this model: it is switched off, the call is repeated, and a warning says so.

    Args:
        model: a causal LM; its mode is eval while sampling and what it was afterwards.
        autocast: the dtype of matrix multiplies, as `Policy` has it: an engine that computes otherwise than the trainer
            samples from another distribution than the one that trains (0.1 nats a token for SmolLM2-135M, bf16 against
            fp32). None is the weights' own.
        max_rows: most completions that are sampled at a time; None is 64 on a CPU, where more gain little, else 256.
        cache_tokens: cells of the cache; `prompt + max_new_tokens` of the longest prompt must fit.
        decode: ids to text, `encoder.tokens.decode`; needed by stop strings alone.
        adapter: which adapter of a `PeftModel` samples: its name, None for the base without any, or ACTIVE, whichever
            is active then. Several engines may share one model: each switches to its own while it samples, and back.
        prefix_tokens: tokens of sequences that have ended whose keys and values are kept, also while nothing is
            sampled, for prompts that begin with them, as those of search and chats do; `score` never uses them.
            Each costs what a token of the cache costs; the least recently used go first. A new `policy_version` empties
            it. 0 keeps nothing, so that the memory is the trainer's.
        prefill_tokens: prompt tokens of one forward pass.

    Raises:
        ConfigError: an `adapter` that the model does not have; `prefix_tokens` is negative.
        ModelError: an encoder-decoder.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_rows: int | None = None,
        cache_tokens: int = 32_768,
        prefix_tokens: int = 0,
        prefill_tokens: int = 4_096,
        policy_version: int = 0,
        autocast: torch.dtype | None = None,
        decode: Decode | None = None,
        adapter: AdapterName = ACTIVE,
    ):
        config = text_config(model)
        self.model = model
        self.autocast = autocast
        self.decode = decode
        self.adapter = adapter
        self.policy_version = policy_version
        self.stats = DecodeStats()
        """Of the last call, or of all requests since one came to an idle engine."""
        require_adapter(model, adapter)
        # Flags switch layers off; virtual tokens stand in the wrapper's forward, and below it there are none.
        lowest = causal_lm(model) if adapter is None else model
        with adapter_in_use(model, adapter):
            self._lm, virtual = CausalLM(lowest), virtual_tokens(lowest)
        self._max_rows = max_rows or (64 if self._lm.device.type == "cpu" else 256)
        self._cache_tokens = cache_tokens
        self._prefill_tokens = prefill_tokens
        self._prefixes = prefix_store(prefix_tokens, config, CACHE_TOLERANCE if self._is_wide else HALF_TOLERANCE)
        self._num_layers: int = config.num_hidden_layers
        self._positions: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary = vocabulary_of(model)
        self.path: Literal["cached", "recomputed"] = "cached"
        odd = layers_without_keys(config)
        if virtual:
            # Virtual tokens take positions that a row then does not have.
            self._positions = None if self._positions is None else self._positions - virtual
            self._switch_off(f"its adapter puts {virtual} virtual tokens before every row")
        if odd:
            self._switch_off(f"its layers of type {', '.join(odd)} keep another kind of state")
        self._proven = False
        self._aborted = False
        self._requests = RequestQueue(NativeStepSampler(self, self._fresh_decoder))

    # ------------------------------------------------------------ public

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingDistribution,
        *,
        completions_per_prompt: int = 1,
        on_finish: OnFinish | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`.

        Raises:
            ConfigError: a prompt is empty, too long for the model or the cache, or has ids that the model lacks.
            NonFiniteError: the model's logits are not finite.
        """
        if completions_per_prompt < 1:
            raise ConfigError(
                "a prompt needs at least one completion", found=completions_per_prompt, remedy="ask for 1 or more"
            )
        self._aborted = False
        ids = [tuple(map(int, prompt)) for prompt in prompts]
        with self.sampling():
            completions = self._run(ids, sampling, completions_per_prompt, on_finish)
            if self._cache_differs(ids, completions, sampling):
                # The same draws again, now of the right distribution.
                completions = self._run(ids, sampling, completions_per_prompt, on_finish)
        return completions

    def require(self, prompts: Sequence[tuple[int, ...]], sampling: SamplingDistribution) -> None:
        """Refuse what `generate` would refuse of these prompts. Raises ConfigError."""
        for index, prompt in enumerate(prompts):
            self._limit(index, prompt, sampling)

    async def generate_one(self, request: Request) -> Completion:
        """See `Engine.generate_one`. Requests share the steps of one batch, on the caller's event loop; those that the
        cache has no room for wait in the order in which they came.

        Raises:
            ConfigError: as `generate`.
            NonFiniteError: the logits of this request are not finite.
        """
        row = self.row_of(request)  # refused before anything is sampled for it
        self._prove_cache(row.prompt, request.sampling)
        return await self._requests.complete(request)

    @property
    def context_tokens(self) -> int | None:
        """See `Engine.context_tokens`."""
        return self._positions

    @property
    def in_flight(self) -> int:
        """See `Engine.in_flight`."""
        return len(self._requests)

    def stream(self, prompt: Sequence[int], sampling: SamplingDistribution) -> Iterator[int]:
        """The ids of one completion as they are sampled, the same as `generate` gives."""
        row = self._rows([tuple(map(int, prompt))], sampling, 1)[0]
        self._prove_cache(row.prompt, sampling)
        self._aborted = False
        decoder, waiting = self._fresh_decoder(), deque([row])
        while row.finish is None and not self._aborted:
            # Entered for each token: between two of them the caller may train, or record gradients.
            with self.sampling():
                decoder.admit(waiting)
                self._step(decoder, waiting)
            yield row.answer[-1]
        decoder.retire([row])  # ended as others end: what it computed is kept for a prompt that goes on from here

    def update_weights(self, model: nn.Module, version: int) -> None:
        """Note the version: the weights are the trainer's own, so nothing is copied.

        Raises:
            ConfigError: another model than the one that this engine was made for.
        """
        if model is not self.model:
            raise ConfigError(
                "the native engine samples from the model that it was made for",
                found=f"another {type(model).__name__}",
                remedy="make a new NativeEngine(model)",
            )
        self.policy_version = version

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Log-probs of `ids` after `prompt` in nats at temperature 1, by the steps that sampling takes."""
        plain = SamplingDistribution(max_new_tokens=max(1, len(ids)))
        (row,) = self._rows([tuple(map(int, prompt))], plain, 1)
        if len(ids) > row.limit:
            raise ConfigError(
                "the sequence is longer than the model",
                found=f"{len(prompt)} + {len(ids)} tokens",
                expected=f"at most {len(prompt) + row.limit}",
                remedy="score a shorter one",
            )
        decoder, waiting = self._decoder(DecodeStats()), deque([row])
        with self.sampling():
            decoder.admit(waiting)
            for number in ids:
                logprobs_V = plain.log_probs(decoder.next_logits(waiting))[0]
                row.logprobs.append(float(logprobs_V[number]))
                row.answer.append(int(number))
        return row.logprobs

    def prompt_scores(self, prompts: Sequence[Sequence[int]], *, top: int = 0) -> list[list[Alternatives | None]]:
        """Raw log-probs of every prompt token after the first, None at the first, which nothing predicts.

        Whole prompts are computed without a cache, in batches of at most `prefill_tokens`; logits are held for a
        bounded number of tokens at a time.

        Args:
            top: how many of the likeliest ids to give at each token.

        Raises:
            ConfigError: a prompt is empty, too long for the model, or has ids that it lacks; `top` below 0.
        """
        require_scorable(prompts, top, self._positions, self._vocabulary)
        ids, lm = [tuple(map(int, prompt)) for prompt in prompts], self._lm.model
        with self.sampling():
            tolerance = CACHE_TOLERANCE if self._is_wide else HALF_TOLERANCE
            return prompt_scores(lm, causal_lm(lm), ids, top, tokens=self._prefill_tokens, tolerance=tolerance)

    def abort(self, request: Request | None = None) -> None:
        """End a request, or without one the running `generate` and all requests; from a signal handler or another
        thread too. The unfinished come back as ABORTED."""
        self._aborted = self._aborted or request is None
        # Both only leave a mark, which the next step reads.
        self._requests.abort(request)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """No gradients, no dropout, the precision that trains, and the engine's own adapter.

        Entered once for a whole call where that is possible: within it autocast turns each weight into bf16 once.
        """
        precision = torch.autocast(self._lm.device.type, self.autocast) if self.autocast else nullcontext()
        with torch.no_grad(), evaluating(self.model), precision, adapter_in_use(self.model, self.adapter):
            yield

    def row_of(self, request: Request) -> Row:
        """A request as a row that nothing has been sampled for.

        Raises:
            ConfigError: as `generate`.
        """
        prompt, sampling = tuple(map(int, request.prompt)), request.sampling
        stream = RandomStream(sampling.seed, prompt, request.completion, request.occurrence)
        limit = self._limit(0, prompt, sampling)
        stops = self._stop_search(sampling)
        return Row(prompt, 0, request.completion, stream, limit, sampling, stops=stops, top=request.alternatives)

    # ------------------------------------------------------------ the loop

    @property
    def _is_wide(self) -> bool:
        weights = next(self.model.parameters()).dtype
        return self.autocast is None and weights in (torch.float32, torch.float64)

    def _run(
        self,
        prompts: list[tuple[int, ...]],
        sampling: SamplingDistribution,
        completions_per_prompt: int,
        on_finish: OnFinish | None,
    ) -> list[list[Completion]]:
        rows = self._rows(prompts, sampling, completions_per_prompt)
        version = self.policy_version
        done: dict[tuple[int, int], Completion] = {}

        def finish(row: Row, reason: FinishReason) -> None:
            completion = row.completed(reason, version)
            done[row.prompt_index, row.completion_index] = completion
            if on_finish is not None:
                on_finish(row.prompt_index, row.completion_index, completion)

        # Longest first, as the decoder wants them; equal prompts side by side, so that they are prefilled once.
        waiting = deque(sorted(rows, key=lambda row: (-len(row.prompt), row.prompt)))
        decoder = self._fresh_decoder()
        while (waiting or decoder.rows) and not self._aborted:
            decoder.admit(waiting)
            self._step(decoder, waiting)
            ended = [(row, reason) for row in decoder.rows if (reason := row.finish) is not None]
            decoder.retire([row for row, _ in ended])
            for row, reason in ended:
                finish(row, reason)
        for row in [*decoder.rows, *waiting]:
            finish(row, FinishReason.ABORTED)
        return [[done[index, k] for k in range(completions_per_prompt)] for index in range(len(prompts))]

    def _step(self, decoder: Decoder, waiting: deque[Row]) -> None:
        """One token more for every live row; in a batch, a row that cannot have one is an error of all."""
        for _, error in sample_tokens(decoder.rows, decoder.next_logits(waiting), self.policy_version):
            raise error

    def _rows(
        self, prompts: Sequence[tuple[int, ...]], sampling: SamplingDistribution, completions_per_prompt: int
    ) -> list[Row]:
        seen: Counter[tuple[int, ...]] = Counter()
        rows = []
        for index, prompt in enumerate(prompts):
            limit = self._limit(index, prompt, sampling)
            for k in range(completions_per_prompt):
                stream = RandomStream(sampling.seed, prompt, k, seen[prompt])
                rows.append(Row(prompt, index, k, stream, limit, sampling, stops=self._stop_search(sampling)))
            seen[prompt] += 1
        return rows

    def _stop_search(self, sampling: SamplingDistribution) -> StopSearch | None:
        """One row's own; a prompt's text never counts, since its ids are never decoded."""
        if not sampling.stop:
            return None
        if self.decode is None:
            raise ConfigError(
                "stop strings are found in the text, and this engine knows ids alone",
                found=f"stop: {', '.join(map(repr, sampling.stop))}",
                remedy="write `NativeEngine(model, decode=encoder.tokens.decode)`",
            )
        return StopSearch(sampling.stop, self.decode)

    def _limit(self, index: int, prompt: tuple[int, ...], sampling: SamplingDistribution) -> int:
        """Most new tokens of this prompt: as asked, and no further than the model's last position."""
        where = f"prompt {index}"
        # Nothing would predict the first token: the model would be asked for a distribution that training never saw.
        if not prompt:
            raise ConfigError(
                "the prompt has no tokens", where=where, remedy="begin it with the BOS token or a template"
            )
        require_known_ids(prompt, where, self._vocabulary)
        limit = sampling.max_new_tokens
        if self._positions is not None:
            if len(prompt) >= self._positions:
                raise ConfigError(
                    "the prompt is longer than the model",
                    where=where,
                    found=f"{len(prompt)} tokens",
                    expected=f"at most {self._positions - 1}, so that one can follow",
                    remedy="shorten the prompt or drop it",
                )
            limit = min(limit, self._positions - len(prompt))
        if len(prompt) + limit > self._cache_tokens:
            raise ConfigError(
                "the cache does not hold one completion of this prompt",
                where=where,
                found=f"{len(prompt)} tokens + {limit} new ones",
                expected=f"at most cache_tokens = {self._cache_tokens}",
                remedy="raise cache_tokens or lower max_new_tokens",
            )
        return limit

    def _fresh_decoder(self) -> Decoder:
        self.stats = DecodeStats()
        if self._prefixes is not None:
            with self.sampling():  # as it samples, which is not how it stands between two steps
                self._prefixes.begin(weights_now(self.model, self.policy_version, self.autocast))
        return self._decoder(self.stats, self._prefixes)

    def _decoder(self, stats: DecodeStats, prefixes: PrefixStore | None = None) -> Decoder:
        """`score` gives no prefixes: it says what the weights of the moment compute, to prove that they arrived."""
        if self.path == "recomputed":
            return RecomputingDecoder(self._lm, stats, self._max_rows, self._cache_tokens)
        return CachedDecoder(
            self._lm, self._num_layers, stats, self._max_rows, self._cache_tokens, self._prefill_tokens, prefixes
        )

    # ------------------------------------------------------------ the proof

    def _prove_cache(self, prompt: tuple[int, ...], sampling: SamplingDistribution) -> None:
        """Before ids are given away one by one: what was sampled from a wrong cache could not be taken back."""
        if self.path == "cached" and not self._proven:
            self.generate([prompt, prompt[len(prompt) // 2 :]], replace(sampling, max_new_tokens=4, stop=()))

    def _cache_differs(
        self, prompts: Sequence[tuple[int, ...]], completions: list[list[Completion]], sampling: SamplingDistribution
    ) -> bool:
        """Once per engine, score again without the cache; True if the cache had to be switched off.

        The longest sequence shows a fault of windows and positions, the shortest one of masks: it has the most cells of
        others beside it.
        """
        sampled = [(prompt, c) for prompt, group in zip(prompts, completions, strict=True) for c in group if c.ids]
        if self._proven or self.path != "cached" or not sampled:
            return False
        # Before the comparison: it calls nothing that would prove again, and a second call is not to repeat it.
        self._proven = True
        sampled.sort(key=lambda pair: len(pair[0]) + len(pair[1].ids))
        gap = max(self._largest_gap(*pair, sampling) for pair in (sampled[0], sampled[-1]))
        tolerance = CACHE_TOLERANCE if self._is_wide else HALF_TOLERANCE
        if gap <= tolerance:
            return False
        self._switch_off(f"log-probs with it differ by {gap:.2g} from those without")
        return True

    def _largest_gap(self, prompt: tuple[int, ...], completion: Completion, sampling: SamplingDistribution) -> float:
        """Over the last tokens of the completion, which lean on the cache the most."""
        # Errors of positions and windows grow along the sequence, so its end shows them; all of it could be too long.
        first = max(0, len(completion.ids) - PROVEN_TOKENS)
        ids = torch.tensor([[*prompt, *completion.ids[:-1]]], device=self._lm.device)
        logits_TV = self._lm.last_columns(len(completion.ids) - first, input_ids=ids, use_cache=False)
        steps = range(first, len(completion.ids))
        logprobs_TV = sampling.log_probs(
            logits_TV, prompts=[prompt] * len(steps), answers=[completion.ids[:step] for step in steps]
        )
        targets_T = torch.tensor(completion.ids[first:], device=logprobs_TV.device)
        fresh_T = logprobs_TV.gather(1, targets_T[:, None])[:, 0].cpu().double()
        sampled_T = torch.tensor(completion.logprobs[first:], dtype=torch.float64)
        # A token at the very edge of the top-k or top-p may fall off by rounding; that is no fault of the cache.
        gaps_T = (fresh_T - sampled_T)[~torch.isinf(fresh_T)].abs()
        return float(gaps_T.max()) if len(gaps_T) else 0.0

    def _switch_off(self, reason: str) -> None:
        self.path = "recomputed"
        self._prefixes = None
        logger.warning("%s is sampled without a cache, which is slow: %s", type(causal_lm(self.model)).__name__, reason)
