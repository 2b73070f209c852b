"""Trees unfolded into ordinary rows, one for each branch with its path before it: what any model can run.

A branch that others continue is a row too, and part of theirs: rows compute again what the tree computes once.
"""

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
    """Unfold the trees: branch b becomes row b = its path + branch; padded slots hold id 0 under a zero mask."""
    ids = batch.input_ids_T
    rows = _unfolded(batch)
    # To the right: real tokens keep their positions, and causal attention never looks at what follows.
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    attention_mask = (torch.arange(input_ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()
    # A token's position is its index in its row, whatever its place in T.
    predictor_N = batch.positions_T[batch.target_index_N] - 1
    return PaddedRows(input_ids, attention_mask, batch.branch_N, predictor_N)


def single_rows(batch: Batch) -> list[Batch]:
    """Each branch as a batch of its own, in order, its path as the row before it; annotations are dropped."""
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
                branch_nodes=(0,),
                keys=batch.keys[tree : tree + 1],
                rows=batch.rows[tree : tree + 1],
            )
        )
    return singles


def row_lengths(batch: Batch) -> list[int]:
    """Tokens of each branch with its path before it; nothing on the device is read."""
    return [sum(node.end - node.start for node in path) for path in _paths(batch)]


def trees_of(batch: Batch, indices: Iterable[int]) -> list[TokenTree]:
    """Some of a batch's trees, made anew from its ids and trained tokens; annotations are dropped."""
    ids = batch.input_ids_T.cpu().numpy().astype(np.int32)
    trained = np.zeros(len(ids), dtype=bool)
    trained[batch.target_index_N.cpu().numpy()] = True
    tree_B = batch.tree_B.tolist()
    made = []
    for index in indices:
        own = [node for node, tree in zip(batch.branch_nodes, tree_B, strict=True) if tree == index]
        root = batch.nodes[own[0]].parent  # the first branch continues the prompt, or nothing
        prompt = ids[batch.nodes[root].start : batch.nodes[root].end] if root >= 0 else ids[:0]
        branches = tuple(_branch(batch, node, own, ids, trained) for node in own)
        made.append(TokenTree(prompt, branches, batch.keys[index], batch.rows[index]))
    return made


def _branch(batch: Batch, index: int, own: list[int], ids: np.ndarray, trained: np.ndarray) -> Branch:
    node = batch.nodes[index]
    parent = own.index(node.parent) if node.parent in own else None
    return Branch(ids[node.start : node.end], trained[node.start : node.end], parent=parent)


def _paths(batch: Batch) -> Iterable[list[Node]]:
    """Of each branch the nodes from the root to its own."""
    for index in batch.branch_nodes:
        path: list[Node] = []
        while index >= 0:
            path.insert(0, batch.nodes[index])
            index = batch.nodes[index].parent
        yield path


def _unfolded(batch: Batch) -> list[Tensor]:
    """The ids of each branch with its path before it."""
    ids = batch.input_ids_T
    rows = []
    for path in _paths(batch):
        parts = [ids[node.start : node.end] for node in path]
        rows.append(parts[0] if len(parts) == 1 else torch.cat(parts))
    return rows
