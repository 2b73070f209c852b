"""Completions while they are sampled, and the step that gives each of them one token more.

Between the decoder, which turns live rows into logits, and the engine, which turns ended rows into completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.errors import EngineError, NonFiniteError, PosttrainError
from posttrain.rollout.alternatives import alternatives_of
from posttrain.rollout.engine import Alternatives, Completion, FinishReason, SampledToken, Versions
from posttrain.rollout.text import StopSearch
from posttrain.sampling import RandomStream, SamplingDistribution


@dataclass(slots=True, eq=False)
class Row:
    """A completion that is being sampled."""

    prompt: tuple[int, ...]
    prompt_index: int
    completion_index: int
    stream: RandomStream
    limit: int
    """Most ids that the answer may have."""
    sampling: SamplingDistribution
    answer: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    oldest_version: int | None = None
    """Of the weights that sampled its first token; None before that."""
    stops: StopSearch | None = None
    """Looks for the sampling's stop strings; None where there are none."""
    stopped_by: str | None = None
    top: int | None = None
    """How many of the likeliest ids are kept at each token, raw; None: nothing raw at all."""
    alternatives: list[Alternatives] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens whose keys and values the next step needs: all but the last."""
        return len(self.prompt) + len(self.answer) - 1

    @property
    def remaining(self) -> int:
        return self.limit - len(self.answer)

    @property
    def last_id(self) -> int:
        return self.answer[-1] if self.answer else self.prompt[-1]

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.answer]

    @property
    def finish(self) -> FinishReason | None:
        """Why it has ended; None while it goes on."""
        if self.answer and self.answer[-1] in self.sampling.stop_ids:
            return FinishReason.EMPTY if len(self.answer) == 1 else FinishReason.STOP_TOKEN
        if self.stopped_by is not None:
            return FinishReason.STOP_STRING
        return FinishReason.LENGTH if self.remaining == 0 else None

    @property
    def latest(self) -> SampledToken:
        """Its last token."""
        return SampledToken(self.answer[-1], self.logprobs[-1], self.alternatives[-1] if self.alternatives else None)

    def look_for_stop(self) -> None:
        """Note the stop string that the last id completed.

        Raises:
            EngineError: the ids cannot be decoded.
        """
        # A stop token is no part of the text, however it is spelled.
        if self.stops is None or self.answer[-1] in self.sampling.stop_ids:
            return
        try:
            self.stopped_by = self.stops.found(self.answer)
        except Exception as error:  # `decode` is anybody's
            raise EngineError(
                "the ids of an answer cannot be decoded, so its stop strings cannot be seen",
                where=f"prompt {self.prompt_index}, token {len(self.answer) - 1} of its answer",
                found=f"{type(error).__name__}: {error}",
                remedy="give the engine the `decode` of the model's own tokenizer, or leave `stop` out",
            ) from error

    def completed(self, finish: FinishReason, version: int) -> Completion:
        """What it has come to, under weights of `version`."""
        return Completion(
            tuple(self.answer),
            tuple(self.logprobs),
            finish,
            Versions(version if self.oldest_version is None else self.oldest_version, version),
            stopped_by=self.stopped_by if finish is FinishReason.STOP_STRING else None,
            alternatives=tuple(self.alternatives),
        )


def sample_tokens(rows: Sequence[Row], logits_RV: Tensor, version: int) -> list[tuple[Row, PosttrainError]]:
    """Give every row its next id and log-prob from its logits.

    Args:
        version: of the weights that the logits come from.

    Returns:
        Rows that failed, with the error that names them: those whose logits are not finite got no id, those whose ids
        cannot be decoded have theirs. The others are well: what one request meets is not the others' affair.
    """
    ids_R, logprobs_R = _draw(rows, logits_RV)
    raw = _alternatives(rows, logits_RV, ids_R)
    broken: list[tuple[Row, PosttrainError]] = []
    for row, number, logprob in zip(rows, ids_R.tolist(), logprobs_R.tolist(), strict=True):
        if not logprob <= 1e-3:  # NaN, or +inf; a log-prob is at most 0 but for rounding
            error = NonFiniteError(
                "the model's logits are not finite",
                tensors=("logits",),
                rows=(f"prompt {row.prompt_index}, token {len(row.answer)} of its answer",),
                remedy="the weights are broken (see the run's alarms): sample from an earlier checkpoint",
            )
            broken.append((row, error))
            continue
        # At the first token, not when it was asked for: a row that waited was sampled by nobody meanwhile.
        if row.oldest_version is None:
            row.oldest_version = version
        row.answer.append(number)
        row.logprobs.append(min(logprob, 0.0))
        if row.top is not None:
            row.alternatives.append(raw[row])
        try:
            row.look_for_stop()
        except EngineError as error:
            broken.append((row, error))
    return broken


def _alternatives(rows: Sequence[Row], logits_RV: Tensor, ids_R: Tensor) -> dict[Row, Alternatives]:
    """Of the rows that ask; the others' logits are not looked at again."""
    asking = [(index, row, row.top) for index, row in enumerate(rows) if row.top is not None]
    if not asking:
        return {}
    indices = torch.tensor([index for index, _, _ in asking], device=logits_RV.device)
    found = alternatives_of(logits_RV[indices], ids_R[indices], max(top for _, _, top in asking))
    return {row: one._replace(top=one.top[:top]) for (_, row, top), one in zip(asking, found, strict=True)}


def _draw(rows: Sequence[Row], logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    """(ids [R], log-probs [R]); rows of one distribution are drawn at once, as all rows of a batch are."""
    members: dict[tuple[float | None, ...], list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(row.sampling.drawing, []).append(index)
    # The common case, without a copy of the logits: they are [rows, vocabulary].
    if len(members) == 1:
        return _drawn(rows[0].sampling, rows, logits_RV)
    ids_R = torch.empty(len(rows), dtype=torch.long, device=logits_RV.device)
    # Wide enough for either: a distribution over float64 logits gives float64.
    logprobs_R = torch.empty(len(rows), dtype=torch.float64, device=logits_RV.device)
    for indices in members.values():
        alike = [rows[index] for index in indices]
        ids, logprobs = _drawn(alike[0].sampling, alike, logits_RV[indices])
        ids_R[indices], logprobs_R[indices] = ids, logprobs.double()
    return ids_R, logprobs_R


def _drawn(sampling: SamplingDistribution, rows: Sequence[Row], logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    return sampling.draw(
        logits_RV,
        [row.stream for row in rows],
        prompts=[row.prompt for row in rows],
        answers=[row.answer for row in rows],
    )
