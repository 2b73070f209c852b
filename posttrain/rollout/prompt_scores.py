"""Raw log-probs of every token of whole prompts: no cache, and no logits beyond a bounded chunk.

The model runs once per batch, with its head shown one column only; the other columns' hidden states then go through the
head in chunks. That this head is all that the model does to its states (scale, softcap) is seen on the column that
went through the model itself; where it is not, the head is shown one window of columns after another, at the price of a
forward for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.errors import ConfigError, ModelError, NonFiniteError
from posttrain.models.tree.logprobs import LARGEST_LOGITS
from posttrain.models.tree.projection import apply_head, chunk_rows, read_head
from posttrain.models.tree.rope import forget_lengths, static_positions
from posttrain.rollout.alternatives import alternatives_of
from posttrain.rollout.engine import Alternatives
from posttrain.rollout.sampled_model import require_known_ids

LogitsOf = Callable[[Tensor, Tensor], Tensor]
"""(rows [N], columns [N]) of a batch -> their logits [N, V]."""


def prompt_scores(
    model: nn.Module,
    causal_lm: Any,
    prompts: Sequence[tuple[int, ...]],
    top: int,
    *,
    tokens: int,
    tolerance: float,
) -> list[list[Alternatives | None]]:
    """See `posttrain.rollout.native.NativeEngine.prompt_scores`.

    Args:
        model: what is run; `causal_lm` is the model of `transformers` in it.
        tokens: of one forward pass, padding included; a longer prompt has one of its own.
        tolerance: nats between the model's own log-probs and those of its head, beyond which the head is not all.

    Raises:
        ModelError: the model does not call its head as a module.
        NonFiniteError: logits of a prompt are not finite.
    """
    scores: list[list[Alternatives | None]] = [[None] for _ in prompts]
    config = causal_lm.config.get_text_config()
    fixed = static_positions(config)
    for batch in _batches(prompts, tokens, fixed):
        longest = max(len(prompts[index]) for index in batch)
        # Right padding: causal attention never looks at it.
        padded = [[*prompts[index], *[0] * (longest - len(prompts[index]))] for index in batch]
        ids_BL = torch.tensor(padded, device=next(model.parameters()).device)
        # Every token but the first of each row, beside the column that predicts it.
        lengths_B = torch.tensor([len(prompts[index]) for index in batch], device=ids_BL.device)
        row_N, column_N = (torch.arange(longest - 1, device=ids_BL.device) < lengths_B[:, None] - 1).nonzero(
            as_tuple=True
        )
        logits_of, rows = _projection(model, causal_lm, ids_BL, tolerance, fixed is not None)
        for row_C, column_C in zip(row_N.split(rows), column_N.split(rows), strict=True):
            found = alternatives_of(logits_of(row_C, column_C), ids_BL[row_C, column_C + 1], top)
            for row, column, one in zip(row_C.tolist(), column_C.tolist(), found, strict=True):
                if not one.logprob <= 1e-3:  # NaN, or +inf; a log-prob is at most 0 but for rounding
                    raise NonFiniteError(
                        "the model's logits are not finite",
                        tensors=("logits",),
                        rows=(f"prompt {batch[row]}, token {column + 1}",),
                        remedy="the weights are broken (see the run's alarms): score by an earlier checkpoint",
                    )
                scores[batch[row]].append(one._replace(logprob=min(one.logprob, 0.0)))
    return scores


def require_scorable(prompts: Sequence[Sequence[int]], top: int, positions: int | None, vocabulary: int) -> None:
    """
    Raises:
        ConfigError: a prompt is empty, longer than the model's `positions`, or has ids beyond its `vocabulary`; or
            `top` is below 0.
    """
    if top < 0:
        raise ConfigError("`top` is out of range", found=top, expected="0 or more", remedy="ask for 0 or more")
    for index, prompt in enumerate(prompts):
        where = f"prompt {index}"
        if not prompt:
            raise ConfigError("the prompt has no tokens", where=where, remedy="leave it out")
        require_known_ids(prompt, where, vocabulary)
        if positions is not None and len(prompt) > positions:
            raise ConfigError(
                "the prompt is longer than the model",
                where=where,
                found=f"{len(prompt)} tokens",
                expected=f"at most {positions}",
                remedy="shorten the prompt or drop it",
            )


def _batches(prompts: Sequence[Sequence[int]], tokens: int, fixed: int | None) -> list[list[int]]:
    """Indices of prompts of more than one token, of like lengths together; a prompt for whose length the rotary angles
    are not `fixed` is alone, since they depend on the longest row of a batch."""
    order = sorted((i for i, prompt in enumerate(prompts) if len(prompt) > 1), key=lambda i: -len(prompts[i]))
    batches: list[list[int]] = []
    for index in order:
        # Longest first: the first of a batch says how wide it is.
        longest = len(prompts[batches[-1][0]]) if batches else 0
        alone = fixed is not None and longest >= fixed
        if not batches or alone or longest * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def _projection(
    model: nn.Module, causal_lm: Any, ids_BL: Tensor, tolerance: float, forgets: bool
) -> tuple[LogitsOf, int]:
    """How the batch's logits are computed, and how many of them at a time."""
    head = read_head(causal_lm)

    def forward(shown: slice | Tensor) -> tuple[Tensor, Tensor]:
        if forgets:
            forget_lengths(model)
        return _narrowed(model, causal_lm.get_output_embeddings(), ids_BL, shown)

    own_B1V, hidden_BLD = forward(slice(-1, None))
    vocabulary = own_B1V.shape[-1]
    # Virtual tokens have states too, before the row's own.
    virtual = hidden_BLD.shape[1] - ids_BL.shape[1]
    gap = torch.log_softmax(own_B1V.double(), -1) - torch.log_softmax(apply_head(hidden_BLD[:, -1:], head).double(), -1)
    # Not "<=" of the largest alone: where both are NaN, the tokens' own check names the prompt.
    if not bool((gap.abs() > tolerance).any()):
        return lambda row_N, column_N: apply_head(hidden_BLD[row_N, column_N + virtual], head), chunk_rows(vocabulary)

    def windowed(row_N: Tensor, column_N: Tensor) -> Tensor:
        kept, index_N = (column_N + virtual).unique(return_inverse=True)
        return forward(kept)[0][row_N, index_N]

    # Every row of the batch is shown at each column.
    return windowed, max(1, LARGEST_LOGITS // (vocabulary * ids_BL.shape[0]))


def _narrowed(model: nn.Module, head: Any, ids_BL: Tensor, shown: slice | Tensor) -> tuple[Tensor, Tensor]:
    """A forward whose head sees some columns only: (their logits, the hidden states of all columns)."""
    seen: list[Tensor] = []

    def narrow(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not inputs:
            return None
        seen.append(inputs[0])
        return (inputs[0][:, shown], *inputs[1:])

    hook = head.register_forward_pre_hook(narrow)
    try:
        logits = model(input_ids=ids_BL, use_cache=False).logits
    finally:
        hook.remove()
    if len(seen) != 1:
        raise ModelError(
            "the prompt's tokens cannot be scored: the model does not run its head as one module",
            found=f"{len(seen)} calls of {type(head).__name__} in a forward pass",
            expected="one call",
            remedy="score by another architecture",
        )
    return logits, seen[0]
