"""One distribution for sampler and trainer, and random streams that do not know their neighbours.

A draw is `argmax_v p_v / E_v` with `E_v ~ Exponential(1)` from the completion's own stream: the exponential race, the
same as Gumbel-max sampling (Maddison et al. 2014, "A* Sampling", section 2). Why not the inverse of the cumulative sum:
a batch of another size rounds logits differently by about 1e-7. Such a shift moves all 50,000 boundaries of
a cumulative sum, and some draws with them; it changes a race only if two tokens finish within 1e-6 of each other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.errors import ConfigError
from posttrain.lazy_torch import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDistribution:
    """How tokens are drawn; every field is explicit and none is taken from a model folder's generation_config.json.

    The ids that end an answer are no matter of drawing but of how the model is spoken to: `Encoder.stop_ids` has those
    that the folder lists, beside the template's.

    SamplingDistribution(temperature=0.7, max_new_tokens=64, stop_ids=frozenset({2}), seed=1)

    Logits pass through the fields in this order: penalties, temperature, top-k, top-p, min-p.
    """

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens (Fan et al. 2018); None: all. Tokens as likely as the k-th stay."""
    top_p: float = 1.0
    """The smallest set of likeliest tokens that holds this share (Holtzman et al. 2020); 1: all."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest (Nguyen et al. 2024); 0: all."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens in the prompt or the answer, multiplies their negative ones (Keskar et al.
    2019); 1: none."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that is in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time that it is in the answer."""
    max_new_tokens: int = 256
    stop_ids: frozenset[int] = frozenset()
    """A completion ends with the first of these, which belongs to it."""
    stop: tuple[str, ...] = ()
    """A completion ends with the token that completes one of these strings in the answer's text; the prompt's does not
    count. No part of drawing: every sampled id and log-prob is kept, so that ratios stay right, and the text alone is
    cut before the string (`posttrain.rollout.text.completion_text`). The earliest in the text wins, of two that begin
    there the longer."""
    seed: int = 0
    """Equal seeds give equal completions; two rollouts of one prompt that should differ need two seeds."""

    def __post_init__(self) -> None:
        _require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "None or at least 1")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        _require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "above 0; 1 is none")
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_ids", frozenset(int(number) for number in self.stop_ids))

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def is_truncated(self) -> bool:
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0

    @property
    def drawing(self) -> tuple[float | None, ...]:
        """What decides a draw. Completions that differ in nothing of it are drawn at once, whatever else they ask: each
        request of a server has a seed of its own."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return (self.temperature, self.top_k, self.top_p, self.min_p, *penalties)

    @property
    def is_plain(self) -> bool:
        """Softmax of logits / temperature over the whole vocabulary: what `Policy(batch, temperature=...)` computes.

        Only then do the sampler's log-probs equal the trainer's, and importance ratios mean anything.
        """
        return not self.is_greedy and not self.has_penalties and not self.is_truncated

    def log_probs(
        self,
        logits_RV: Tensor,
        *,
        prompts: Sequence[Sequence[int]] | None = None,
        answers: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Log-probs [R, V] of the next token in nats, fp32 or wider; -inf for tokens that are never drawn.

        At temperature 0 every draw is certain, which says nothing about the model, so these are then the log-probs
        at temperature 1 (after penalties): their argmax is what is drawn.

        Args:
            prompts, answers: the ids before the next token, one sequence per row; used by the penalties alone.
        """
        scores_RV = self._scores(logits_RV, prompts, answers)
        return scores_RV - torch.logsumexp(scores_RV, dim=-1, keepdim=True)

    def draw(
        self,
        logits_RV: Tensor,
        streams: Sequence[RandomStream],
        *,
        prompts: Sequence[Sequence[int]] | None = None,
        answers: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One token per row from `log_probs`: (ids [R], their log-probs [R]). Row r uses streams[r] alone."""
        scores_RV = self._scores(logits_RV, prompts, answers)
        top_R = scores_RV.amax(dim=-1, keepdim=True)
        weights_RV = (scores_RV - top_R).exp_()
        # Before the weights are divided by the noise, in place.
        normaliser_R = weights_RV.sum(dim=-1).log_()
        # Without noise: ties go to the smaller id.
        if self.is_greedy:
            ids_R = scores_RV.argmax(dim=-1)
        else:
            ids_R = weights_RV.div_(exponentials(streams, weights_RV)).argmax(dim=-1)
        chosen_R = scores_RV.gather(1, ids_R[:, None])[:, 0]
        return ids_R, chosen_R - top_R[:, 0] - normaliser_R

    def _scores(
        self, logits_RV: Tensor, prompts: Sequence[Sequence[int]] | None, answers: Sequence[Sequence[int]] | None
    ) -> Tensor:
        """Unnormalised log-probs, in a tensor of their own or, where nothing changes them, the logits' own."""
        scores_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
        if self.has_penalties:
            scores_RV = self._penalised(scores_RV, prompts, answers)
        if self.temperature not in (0, 1):
            scores_RV = scores_RV / self.temperature
        if self.is_truncated and not self.is_greedy:
            # Greedy draws the likeliest, which no truncation removes.
            scores_RV = scores_RV.masked_fill(~self._kept(scores_RV), float("-inf"))
        return scores_RV

    def _penalised(
        self, logits_RV: Tensor, prompts: Sequence[Sequence[int]] | None, answers: Sequence[Sequence[int]] | None
    ) -> Tensor:
        if prompts is None or answers is None:
            raise ValueError("penalties depend on the tokens so far: give prompts and answers")
        logits_RV = logits_RV.clone()
        for logits_V, prompt, answer in zip(logits_RV, prompts, answers, strict=True):
            # Presence and frequency look at the answer alone, repetition at the prompt too, as vLLM does.
            counts = Counter(answer)
            if self.repetition_penalty != 1:
                seen = torch.tensor(sorted(counts.keys() | set(prompt)), device=logits_V.device)
                values = logits_V[seen]
                logits_V[seen] = torch.where(
                    values > 0, values / self.repetition_penalty, values * self.repetition_penalty
                )
            if counts and (self.presence_penalty or self.frequency_penalty):
                used = torch.tensor(list(counts), device=logits_V.device)
                times = torch.tensor(list(counts.values()), device=logits_V.device, dtype=logits_V.dtype)
                logits_V[used] -= self.presence_penalty + self.frequency_penalty * times
        return logits_RV

    def _kept(self, scores_RV: Tensor) -> Tensor:
        """True for the tokens that may be drawn; the likeliest always may."""
        kept_RV = torch.ones_like(scores_RV, dtype=torch.bool)
        if self.top_k is not None and self.top_k < scores_RV.shape[-1]:
            smallest_R = scores_RV.topk(self.top_k, dim=-1).values[:, -1:]
            kept_RV = scores_RV >= smallest_R
        if self.top_p < 1:
            # After top-k: the share is of what top-k left, as in `transformers` and vLLM.
            order_RV = scores_RV.masked_fill(~kept_RV, float("-inf")).sort(dim=-1, descending=True)
            probs_RV = torch.softmax(order_RV.values, dim=-1)
            before_RV = probs_RV.cumsum(dim=-1) - probs_RV
            within_RV = before_RV < self.top_p
            # The likeliest stays where it alone is above the share.
            within_RV[:, 0] = True
            kept_RV &= torch.zeros_like(kept_RV).scatter(1, order_RV.indices, within_RV)
        if self.min_p > 0:
            kept_RV &= (scores_RV - scores_RV.amax(dim=-1, keepdim=True)).exp() >= self.min_p
        return kept_RV


def _stop_strings(stop: object) -> tuple[str, ...]:
    """A string alone stands for the tuple of it: as a sequence, it would stop at each of its characters."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for string in strings:
        # An empty string is in every text: each completion would end with its first token, and say nothing.
        _require(isinstance(string, str) and string != "", "stop", repr(string), "strings of at least one character")
    return tuple(dict.fromkeys(strings))


def _require(in_range: bool, field: str, found: object, expected: str) -> None:
    if not in_range:
        raise ConfigError(
            f"`{field}` is out of range", found=found, expected=expected, remedy=f"correct `{field}` of the sampling"
        )


class RandomStream:
    """The randomness of one completion: (seed, prompt, which completion of it), and nothing else.

    A prompt that occurs twice in one call gets two streams, told apart by `occurrence`.
    """

    def __init__(self, seed: int, prompt: Sequence[int], completion: int = 0, occurrence: int = 0):
        content = f"{seed} {completion} {occurrence} {list(map(int, prompt))}"
        digest = hashlib.blake2b(content.encode(), digest_size=16).digest()
        self._key = int.from_bytes(digest, "little")
        self._host: np.random.Generator | None = None
        self._device: torch.Generator | None = None

    def fill(self, exponentials_V: Tensor) -> None:
        """Overwrite a contiguous fp32 row with the stream's next Exponential(1) numbers, all above 0.

        They are made in fp64: a race over 50,000 tokens is decided by numbers around 1e-5 and below, of which fp32
        generators know few, and about one in five million is 0, which would let any token win.

        Streams repeat on the same kind of device: a GPU draws its own numbers, since copying 50,000 per token is slow.
        """
        size = exponentials_V.shape[0]
        if exponentials_V.device.type == "cpu":
            if self._host is None:
                import numpy as np  # not needed to read a recipe, which this module is loaded for too

                self._host = np.random.Generator(np.random.SFC64(self._key))
            exponentials_V.copy_(torch.from_numpy(self._host.standard_exponential(size)))
        else:
            device = exponentials_V.device
            if self._device is None:
                self._device = torch.Generator(device).manual_seed(self._key & (2**63 - 1))
            exponentials_V.copy_(
                torch.empty(size, dtype=torch.float64, device=device).exponential_(generator=self._device)
            )
        exponentials_V.clamp_(min=1e-30)


def exponentials(streams: Sequence[RandomStream], like_RV: Tensor) -> Tensor:
    """One row of Exponential(1) numbers per stream, [R, V] fp32, on the device of `like_RV`."""
    noise_RV = torch.empty(like_RV.shape, dtype=torch.float32, device=like_RV.device)
    for stream, row_V in zip(streams, noise_RV, strict=True):
        stream.fill(row_V)
    return noise_RV
