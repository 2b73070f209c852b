"""Exact divergences between two models' next-token distributions, without ever holding the logits of all tokens.

Both models' hidden states are kept, [S, D], for a sample of S trained tokens. Logits exist for one chunk of rows at a
time, and the backward pass computes them again. Memory is S x D twice plus a few buffers of `BUFFER_ELEMENTS` in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from posttrain.errors import ConfigError, ModelError
from posttrain.losses.kl import exact_forward_kl, exact_reverse_kl, generalised_jsd
from posttrain.models.tree import projection
from posttrain.models.tree.projection import Head, apply_head
from posttrain.outputs import Mean, Metric
from posttrain.types import Batch

BUFFERS = 8
"""Tensors of a chunk's size that live at once: two distributions, their mixture, and what their products need."""


@dataclass(frozen=True, slots=True)
class Distributions:
    """A model's next-token distributions at S tokens, made from hidden states when they are asked for.

    Distributions(states_SD=hidden, head=Head(lm_head), temperature=1.0); on the padded path, where the model's forward
    gives logits and nothing else, `states_SD` are those logits and `head` is None.

    The head runs after the forward pass that gave the states. A sharded model has to keep it whole until then, as the
    root of FSDP2 does between a forward and its backward pass.
    """

    states_SD: Tensor
    head: Head | None
    temperature: float = 1.0
    autocast: torch.dtype | None = None
    switched: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What has to hold while the head runs, such as an adapter that is off."""

    @property
    def vocabulary(self) -> int:
        return int(self.states_SD.shape[1] if self.head is None else self.head.linear.weight.shape[0])

    def logits(self, states_RD: Tensor) -> Tensor:
        """Logits of some of the states, [R, V], in fp32 or wider, before the temperature."""
        with self.switched(), self._precision():
            logits_RV = states_RD if self.head is None else apply_head(states_RD, self.head)
        # In 16 bits the log of a small probability has two digits, and a KL is a sum of differences of these.
        return logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()

    def log_probs(self, states_RD: Tensor) -> Tensor:
        """log softmax(logits / temperature) of some of the states, [R, V], in fp32 or wider."""
        return torch.log_softmax(self.logits(states_RD) / self.temperature, dim=-1)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.states_SD.device.type, self.autocast) if self.autocast else nullcontext():
            yield


@dataclass(frozen=True, slots=True)
class ExactKL:
    """KL over the whole vocabulary at a sample of tokens, in nats.

    ExactKL(reverse_S=[0.02], forward_S=[0.03], index_S=[7])
    """

    reverse_S: Tensor
    """KL(policy || reference)."""
    forward_S: Tensor
    """KL(reference || policy)."""
    index_S: Tensor
    """Which of the batch's N trained tokens."""

    def metrics(self) -> dict[str, Metric]:
        return {"kl_exact_reverse": Mean(self.reverse_S.sum(), int(self.index_S.shape[0]))}


def spaced_tokens(batch: Batch, every: int) -> Tensor:
    """One of `every` trained tokens of each branch; where the first one is, the branch's content decides.

    Each token is as likely as any other, and the choice is the same however a step is cut into micro-batches.
    """
    branch_N = batch.branch_N.cpu()
    if every == 1:
        return torch.arange(branch_N.shape[0])
    tree_B = batch.tree_B.tolist()
    of_tree = [tree_B[:branch].count(tree) for branch, tree in enumerate(tree_B)]
    offsets = [
        # By content: a position in the batch would choose other tokens under another split into micro-batches.
        int.from_bytes(hashlib.sha256(f"{batch.keys[tree]} {number}".encode()).digest()[:8], "big") % every
        for tree, number in zip(tree_B, of_tree, strict=True)
    ]
    # Branches are laid end to end, so a token's place within its own is its distance to the first of them.
    first_B = torch.searchsorted(branch_N, torch.arange(len(tree_B)))
    place_N = torch.arange(branch_N.shape[0]) - first_B[branch_N]
    return torch.nonzero(place_N % every == torch.tensor(offsets)[branch_N])[:, 0]


def sample_tokens(batch: Batch, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices of `size` trained tokens drawn without replacement, in order; all of them if there are no more."""
    trained = batch.count.tokens
    if size >= trained:
        return torch.arange(trained)
    return torch.randperm(trained, generator=generator)[:size].sort().values


@torch.no_grad()
def exact_kl(policy: Distributions, reference: Distributions, index_S: Tensor) -> ExactKL:
    """Both directions, without gradient. Raises ModelError for two vocabularies."""

    def both(own_RV: Tensor, other_RV: Tensor) -> Tensor:
        return torch.stack([exact_reverse_kl(own_RV, other_RV), exact_forward_kl(own_RV, other_RV)])

    found_2S = _by_chunks(policy, reference, both)
    return ExactKL(found_2S[0], found_2S[1], index_S)


def divergence(policy: Distributions, teacher: Distributions, mixture: float) -> Tensor:
    """Generalised JSD at each token [S], with its gradient for the policy; the teacher has none.

    mixture: 0 is KL(teacher || policy), 1 is KL(policy || teacher); see `posttrain.losses.kl.generalised_jsd`.

    Raises:
        ConfigError: a mixture outside 0 to 1.
        ModelError: the two have other vocabularies.
    """
    if not 0 <= mixture <= 1:
        raise ConfigError(
            "the mixture of policy and teacher is out of range",
            where="mixture",
            found=f"{mixture:g}",
            expected="a number from 0 (mass-covering) to 1 (mode-seeking)",
            remedy="0.5 is the symmetric divergence",
        )

    def jsd(own_RV: Tensor, other_RV: Tensor) -> Tensor:
        return generalised_jsd(own_RV, other_RV, mixture)[None]

    return _by_chunks(policy, teacher, jsd)[0]


def _by_chunks(own: Distributions, other: Distributions, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """measure(own log-probs [R, V], other's) -> [K, R], over all rows: [K, S]."""
    # Cut to the shorter one, both would be distributions over another set, and the KL a number without a meaning.
    if own.vocabulary != other.vocabulary:
        raise ModelError(
            "the two models have vocabularies of different sizes, so their distributions cannot be compared",
            found=f"{own.vocabulary:,} and {other.vocabulary:,} tokens",
            remedy="take a teacher with the policy's tokenizer, or distil from its text",
        )

    def chunk(own_RD: Tensor, other_RD: Tensor) -> Tensor:
        with torch.no_grad():
            other_RV = other.log_probs(other_RD)
        return measure(own.log_probs(own_RD), other_RV)

    rows = max(1, projection.BUFFER_ELEMENTS // (BUFFERS * own.vocabulary))
    pairs = zip(own.states_SD.split(rows), other.states_SD.detach().split(rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([chunk(*pair) for pair in pairs], dim=1)
    # Each chunk's logits are made again in the backward pass; kept, they would be what this module exists to avoid.
    return torch.cat([checkpoint(chunk, *pair, use_reentrant=False) for pair in pairs], dim=1)
