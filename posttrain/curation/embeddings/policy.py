"""Hidden states of a language model as embeddings of rows.

    v = sum over tokens i of w_i h_i / sum of w_i,     w_i = i (`weighted`) or 1 (`mean`),   divided by its length

h are the last layer's states after its norm. The weights are those of RDS+ (Ivison et al. 2025, arXiv:2503.01807,
section 3.2), taken from SGPT (Muennighoff 2022, arXiv:2202.08904): in a causal model only a late state has read the
whole row.

Deviations from RDS+:
1. `of: answer` sums over the answer's tokens alone, which have read the prompt.
2. A row is what training makes of it, template included. Of a template that rewrites earlier turns the context of the
   last turn counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch

from posttrain.config.embeddings import PolicyEmbedding
from posttrain.curation.diversity.vectors import unit_length
from posttrain.data.encode import Encoder
from posttrain.data.tree_key import make_tree
from posttrain.data.trees import collate, packed
from posttrain.models.tree.logprobs import Policy
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, StepwiseFeedback, TokenTree, Wants

_WINDOW = 256
"""Rows that are packed together: enough to fill batches well, few enough that progress moves."""
HIDDEN = Wants(logprobs=False, hidden=True)


def policy_vectors(
    examples: Iterable[Example],
    settings: PolicyEmbedding,
    policy: Policy,
    encoder: Encoder,
    *,
    cut: list[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Blocks of vectors of length 1, float32 [n, D], in the order of the examples.

    Args:
        encoder: without a limit of length; rows are cut here.
        cut: receives the name of each row that is longer than `max_length`.

    Raises:
        EncodingError, RowError: a row cannot be encoded for this model; it names the row.
    """
    remaining = iter(examples)
    while window := list(islice(remaining, _WINDOW)):
        trees = [embedded_tree(example, settings, encoder, cut) for example in window]
        vectors: np.ndarray | None = None
        for members in packed(trees, settings.tokens_at_once):
            pooled = _pooled([trees[index] for index in members], settings, policy)
            if vectors is None:
                vectors = np.empty((len(trees), pooled.shape[1]), np.float32)
            vectors[members] = pooled
        assert vectors is not None  # a window has a row
        yield unit_length(vectors)
        if progress is not None:
            progress(len(window))


def embedded_tree(
    example: Example, settings: PolicyEmbedding, encoder: Encoder, cut: list[str] | None = None
) -> TokenTree:
    """A row as a tree of one branch, in which a token "trains" where the state before it is summed.

    The model's door gives the states that predict trained tokens. So the mask stands one token late, and one token
    follows the row, so that the last state is asked for too; causal attention keeps it out of all of them.
    """
    prompt, answer, tools = _parts(example)
    asked = encoder.prompt(prompt, tools)
    if answer and settings.of != "prompt":
        tree = encoder.demonstration(Demonstration((*prompt, *answer), example.row, tools))[-1]
        ids = [*tree.prompt_ids.tolist(), *tree.branches[0].ids.tolist()]
        first = min(len(asked), len(ids) - 1) if settings.of == "answer" else 0
    else:
        ids, first = asked, 0
    begins = 0
    if len(ids) > settings.max_length:
        # The answer is what is asked for: of a long prompt its end stays, and with it as much of the answer as fits.
        begins = min(first, len(ids) - settings.max_length)
        ids = ids[begins : begins + settings.max_length]
        first -= begins
        if cut is not None:
            cut.append(str(example.row))
    mask = [place >= first for place in range(len(ids))]
    return make_tree(ids[:1], [([*ids[1:], ids[0]], mask)], example.row)


def _parts(example: Example) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple]:
    """(prompt, answer, tools); of responses the best one, of a task what it is checked by."""
    if isinstance(example, Demonstration):
        cut = len(example.messages)
        while cut and example.messages[cut - 1].role != "user":
            cut -= 1
        return example.messages[:cut], example.messages[cut:], example.tools
    if isinstance(example, Comparison):
        best = example.winner if example.ranking is None else example.ranking[0]
        return example.prompt, example.responses[best], example.tools
    if isinstance(example, Feedback):
        return example.prompt, example.response, example.tools
    text = "\n".join(example.steps) if isinstance(example, StepwiseFeedback) else example.answer
    return example.prompt, (Message("assistant", text),) if text else (), example.tools


@torch.no_grad()
def _pooled(trees: list[TokenTree], settings: PolicyEmbedding, policy: Policy) -> np.ndarray:
    """Weighted means, [trees, D]; the path of each batch is proven by the policy itself."""
    batch = collate(trees)
    hidden_ND = policy(batch, HIDDEN).hidden_ND.float()
    branch_N = batch.branch_N.to(hidden_ND.device)
    # The target's position is that of the summed state plus 1, so positions count from 1.
    weight_N = batch.positions_T[batch.target_index_N].to(hidden_ND) if settings.pooling == "weighted" else None
    if weight_N is None:
        weight_N = torch.ones(len(hidden_ND), device=hidden_ND.device)
    sums_BD = torch.zeros(batch.num_branches, hidden_ND.shape[1], device=hidden_ND.device)
    sums_BD.index_add_(0, branch_N, hidden_ND * weight_N[:, None])
    weights_B = torch.zeros(batch.num_branches, device=hidden_ND.device).index_add_(0, branch_N, weight_N)
    return (sums_BD / weights_B[:, None]).cpu().numpy()
