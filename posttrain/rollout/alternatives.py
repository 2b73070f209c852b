"""What the model itself said of each token, whatever distribution it was drawn from."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.rollout.engine import Alternatives


def alternatives_of(logits_NV: Tensor, ids_N: Tensor, top: int) -> list[Alternatives]:
    """log softmax of the logits, in fp32 or wider, at the ids and at the `top` likeliest ones (at most all)."""
    wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logprobs_NV = torch.log_softmax(wide_NV, dim=-1)
    chosen_N = logprobs_NV.gather(1, ids_N[:, None])[:, 0]
    likeliest = logprobs_NV.topk(min(top, logprobs_NV.shape[1]), dim=-1)
    return [
        Alternatives(chosen, tuple(zip(ids, values, strict=True)))
        for chosen, ids, values in zip(
            chosen_N.tolist(), likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
        )
    ]
