"""Trees unfolded into ordinary rows, one for each branch with its prompt before it: what any model can run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from posttrain.types import Batch, Branch, Node, TokenTree


class PaddedRows:
    """A batch as ordinary rows: input_ids and attention_mask [B, L], and where each trained token is predicted."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, row_N: Tensor, predictor_N: Tensor):
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.row_N = row_N
        self.predictor_N = predictor_N


def padded_rows(batch: Batch) -> PaddedRows:
    """Unfold the trees: branch b becomes row b = prompt + branch; padded slots hold id 0 under a zero mask."""
    ids = batch.input_ids_T
    rows = _unfolded(batch)
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    attention_mask = (torch.arange(input_ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()
    predictor_N = batch.positions_T[batch.target_index_N] - 1
    return PaddedRows(input_ids, attention_mask, batch.branch_N, predictor_N)


def single_rows(batch: Batch) -> list[Batch]:
    """Each branch as a batch of its own, in order, under the tree's prompt; annotations are left behind."""
    singles = []
    for branch, ids in enumerate(_unfolded(batch)):
        tree = int(batch.tree_B[branch])
        # A token's position is its index in its own row.
        targets = batch.positions_T[batch.target_index_N[batch.branch_N == branch]]
        singles.append(
            Batch(
                input_ids_T=ids,
                positions_T=torch.arange(len(ids), device=ids.device),
                nodes=(Node(0, len(ids), -1),),
                target_index_N=targets,
                predictor_index_N=targets - 1,
                branch_N=torch.zeros_like(targets),
                tree_B=batch.tree_B.new_zeros(1),
                keys=batch.keys[tree : tree + 1],
                rows=batch.rows[tree : tree + 1],
            )
        )
    return singles


def row_lengths(batch: Batch) -> list[int]:
    """Tokens of each branch with its prompt before it; nothing on the device is read."""
    return [leaf.end - leaf.start + (above.end - above.start if above else 0) for leaf, above in _leaves(batch)]


def trees_of(batch: Batch, indices: Iterable[int]) -> list[TokenTree]:
    """Some of a batch's trees, made anew from its ids and trained tokens; annotations are left behind."""
    ids = batch.input_ids_T.cpu().numpy().astype(np.int32)
    trained = np.zeros(len(ids), dtype=bool)
    trained[batch.target_index_N.cpu().numpy()] = True
    tree_B, leaves = batch.tree_B.tolist(), list(_leaves(batch))
    made = []
    for index in indices:
        own = [leaf for leaf, tree in zip(leaves, tree_B, strict=True) if tree == index]
        above = own[0][1]
        prompt = ids[above.start : above.end] if above else ids[:0]
        branches = tuple(Branch(ids[leaf.start : leaf.end], trained[leaf.start : leaf.end]) for leaf, _ in own)
        made.append(TokenTree(prompt, branches, batch.keys[index], batch.rows[index]))
    return made


def _leaves(batch: Batch) -> Iterable[tuple[Node, Node | None]]:
    """The node of each branch and that of its prompt, if it has one."""
    parents = {node.parent for node in batch.nodes}
    for leaf in (node for index, node in enumerate(batch.nodes) if index not in parents):
        yield leaf, batch.nodes[leaf.parent] if leaf.parent >= 0 else None


def _unfolded(batch: Batch) -> list[Tensor]:
    """The ids of each branch with its prompt before it."""
    ids = batch.input_ids_T
    rows = []
    for leaf, above in _leaves(batch):
        own = ids[leaf.start : leaf.end]
        rows.append(own if above is None else torch.cat([ids[above.start : above.end], own]))
    return rows
