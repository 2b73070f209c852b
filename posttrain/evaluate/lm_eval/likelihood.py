"""How likely a model finds continuations of a context, and whether it would say them itself.

    scorer = ContinuationScorer(model)
    scorer.score([Continuations((1, 70, 71), ((52, 2), (53, 2)))])
    # [[Likelihood(-3.1, True), Likelihood(-9.4, False)]]

Choices to one question have their context in common, so they are branches of one token tree: the context is computed
once, where a batch of rows computes it for every choice. The tree path is proven on these very trees first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from posttrain.data.micro import alike, planned
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate
from posttrain.evaluate.suites.perplexity import microbatch_tokens
from posttrain.models.tree.divergence import Distributions
from posttrain.models.tree.logprobs import Policy
from posttrain.parallel.calls import OfMain, everywhere
from posttrain.parallel.world import world
from posttrain.types import Batch, RowRef, TokenTree, Wants

LARGEST_LOGITS = 1 << 24
"""Elements of the logits from which the likeliest tokens are read at a time."""


class Likelihood(NamedTuple):
    """Likelihood(logprob=-3.1, is_greedy=True)"""

    logprob: float
    """Of all tokens of the continuation together, nats."""
    is_greedy: bool
    """Whether each of them is the likeliest where it stands."""


@dataclass(frozen=True, slots=True)
class Continuations:
    """Continuations((1, 70, 71), ((52, 2), (53, 2))): what may follow one context."""

    context: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def tree(self) -> TokenTree:
        branches = [(ids, [True] * len(ids)) for ids in self.branches]
        return make_tree(self.context, branches, RowRef("evaluation", 1))


class ContinuationScorer:
    """Of several ranks each scores its share; where rank 0 drives, the model has to be of its `own`."""

    def __init__(self, model: nn.Module):
        self._model = model

    def score(
        self, asked: Sequence[Continuations], done: Callable[[int, int], None] | None = None
    ) -> list[list[Likelihood]]:
        """For each context one likelihood for each of its branches, in their order.

        Args:
            done: is told after each micro-batch of this rank how many continuations, of how many tokens, were scored.
        """
        return everywhere(_scored, self._model, tuple(asked), OfMain(done))


@torch.no_grad()
def _scored(
    model: nn.Module, asked: Sequence[Continuations], done: OfMain[Callable[[int, int], None]]
) -> list[list[Likelihood]]:
    """See `ContinuationScorer.score`; every rank's part of it."""
    policy = Policy(model)
    trees = [one.tree() for one in asked]
    own: dict[int, list[Likelihood]] = {}
    if trees:
        policy.prove(trees, gradient=False)
    with alike(policy.is_sharded, "scoring continuations"):
        for micro in planned(trees, microbatch_tokens(policy), is_sharded=policy.is_sharded):
            found = _of_batch(policy, collate([trees[index] for index in micro.members]))
            if micro.idle:
                continue
            for index in micro.members:
                count = len(trees[index].branches)
                own[index], found = found[:count], found[count:]
            if done.value is not None:
                of_micro = [branch for index in micro.members for branch in asked[index].branches]
                done.value(len(of_micro), sum(map(len, of_micro)))
    gathered: dict[int, list[Likelihood]] = {}
    for part in world().gather(own):
        gathered |= part
    return [gathered[index] for index in range(len(trees))]


def _of_batch(policy: Policy, batch: Batch) -> list[Likelihood]:
    """One for each branch of the batch, in the order of its trees."""
    out = policy(batch, Wants(distributions_at=torch.arange(batch.count.tokens)))
    branch_N = batch.branch_N.cpu()
    total_B = torch.zeros(int(branch_N.max()) + 1, dtype=torch.float64)
    total_B.index_add_(0, branch_N, out.logprobs_N.double().cpu())
    missed_B = torch.zeros_like(total_B).index_add_(
        0, branch_N, (_likeliest(out.distributions) != batch.target_ids_N).double().cpu()
    )
    return [Likelihood(total, missed == 0) for total, missed in zip(total_B.tolist(), missed_B.tolist(), strict=True)]


def _likeliest(distributions: Distributions) -> torch.Tensor:
    """The likeliest token at each place, [N]; logits exist for one chunk of places at a time."""
    rows = max(1, LARGEST_LOGITS // distributions.vocabulary)
    states_ND = distributions.states_SD
    return torch.cat([distributions.logits(part).argmax(dim=-1) for part in states_ND.split(rows)])
