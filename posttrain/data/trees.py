"""Token trees to flat batches: count, pack to a token budget, lay end to end.

A batch has no padding and holds each prompt, and each branch, once, however many responses continue it. Nothing here
knows a model or a loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from posttrain.types import Batch, Count, Node, TokenTree


def count(trees: Iterable[TokenTree]) -> Count:
    """What the trees hold to train on; the sum over all micro-batches is the step's denominator."""
    trees = list(trees)
    return Count(
        tokens=sum(tree.num_trained for tree in trees),
        branches=sum(len(tree.branches) for tree in trees),
        trees=len(trees),
    )


def pack(trees: Sequence[TokenTree], tokens_per_microbatch: int) -> list[list[TokenTree]]:
    """Fill micro-batches to a token budget: first-fit decreasing, the same result for the same trees.

    A tree is never cut, since its branches share the activations before them: one that is larger than the budget
    gets a micro-batch of its own. Within a micro-batch, and between them by first member, the given order is kept.

    Raises:
        ValueError: the budget is not positive.
    """
    return [[trees[i] for i in members] for members in packed(trees, tokens_per_microbatch)]


def packed(trees: Sequence[TokenTree], tokens_per_microbatch: int) -> list[list[int]]:
    """The same as indices: which trees each micro-batch holds. Raises as `pack` does."""
    if tokens_per_microbatch < 1:
        raise ValueError(f"tokens_per_microbatch must be at least 1, got {tokens_per_microbatch}")
    # Of one source each, so that a micro-batch's metrics are that source's; no gradient depends on the packing.
    parts = dict.fromkeys(tree.part for tree in trees)
    if len(parts) > 1:
        members = [[index for index, tree in enumerate(trees) if tree.part == part] for part in parts]
        apart = [(own, packed([trees[index] for index in own], tokens_per_microbatch)) for own in members]
        return sorted([own[index] for index in micro] for own, micros in apart for micro in micros)
    bins: list[list[int]] = []
    room: list[int] = []
    # Largest first, ties in the given order: the same trees make the same micro-batches on every machine.
    for index in sorted(range(len(trees)), key=lambda i: -trees[i].num_tokens):
        size = trees[index].num_tokens
        for place, free in enumerate(room):
            if size <= free:
                bins[place].append(index)
                room[place] -= size
                break
        else:
            bins.append([index])
            room.append(tokens_per_microbatch - size)
    return sorted(sorted(members) for members in bins)


def collate(trees: Sequence[TokenTree]) -> Batch:
    """Lay trees end to end; see `posttrain.types.Batch` for a worked example.

    Raises:
        ValueError: no trees; a tree without branches (a bare prompt has nothing to train); a branch without tokens, or
            whose first token would train with nothing before it, or that continues one that does not stand before it;
            a column that not every branch has, or not for every token; a tree with media, which a batch of ids drops.
    """
    if not trees:
        raise ValueError("a batch needs at least one tree")
    laid = _Laid()
    for index, tree in enumerate(trees):
        laid.add(tree, index)
    margins = [tree.margin for tree in trees]
    return Batch(
        input_ids_T=_long(laid.ids),
        positions_T=_long(laid.positions),
        nodes=tuple(laid.nodes),
        target_index_N=_long(laid.targets),
        predictor_index_N=_long(laid.predictors),
        branch_N=_long(laid.branch_of),
        tree_B=torch.tensor(laid.tree_of_branch, dtype=torch.long),
        branch_nodes=tuple(laid.branch_nodes),
        keys=tuple(tree.key for tree in trees),
        rows=tuple(tree.row for tree in trees),
        margin_P=_margins(margins),
        label_P=_labels(trees),
        scores_B=_scores(trees),
        step_labels_N=_step_labels(trees),
        columns_N=_columns(trees),
    )


class _Laid:
    """The flat sequence while trees are laid into it, one after the other."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.nodes: list[Node] = []
        self.targets: list[np.ndarray] = []
        self.predictors: list[np.ndarray] = []
        self.branch_of: list[np.ndarray] = []
        self.tree_of_branch: list[int] = []
        self.branch_nodes: list[int] = []
        self._end = 0

    def add(self, tree: TokenTree, index: int) -> None:
        _require_whole(tree)
        root = self._node(np.asarray(tree.prompt_ids), 0, -1) if len(tree.prompt_ids) else -1
        own: list[int] = []
        # Positions go on from the end of the branch's own path, so siblings begin at the same one.
        depth = tree.row_lengths
        for branch, end in zip(tree.branches, depth, strict=True):
            parent = root if branch.parent is None else own[branch.parent]
            # A branch's first token is predicted by the last one of its path, which may lie anywhere before it.
            before = self.nodes[parent].end - 1 if parent >= 0 else -1
            node = self._node(np.asarray(branch.ids), end - len(branch.ids), parent)
            start = self.nodes[node].start
            own.append(node)
            trained = np.flatnonzero(branch.loss_mask)
            self.targets.append(start + trained)
            # `before` is -1 where nothing stands before: `_require_whole` has refused such a token if it trains.
            self.predictors.append(np.where(trained == 0, before, start + trained - 1))
            self.branch_of.append(np.full(len(trained), len(self.tree_of_branch)))
            self.tree_of_branch.append(index)
        self.branch_nodes += own

    def _node(self, ids: np.ndarray, position: int, parent: int) -> int:
        """Lay a run of tokens; their positions go on from `position`."""
        self.nodes.append(Node(self._end, self._end + len(ids), parent))
        self.ids.append(ids)
        self.positions.append(np.arange(position, position + len(ids)))
        self._end += len(ids)
        return len(self.nodes) - 1


def _require_whole(tree: TokenTree) -> None:
    """Refuse what a batch cannot hold, or what has nothing to train. Raises ValueError."""
    if not tree.branches:
        raise ValueError(f"{tree.row}: a tree without branches has nothing to train")
    if tree.media:
        raise ValueError(f"{tree.row}: the prompt has {len(tree.media)} media, and a batch of ids would drop them")
    for index, branch in enumerate(tree.branches):
        if len(branch.ids) == 0:
            raise ValueError(f"{tree.row}: a branch has no tokens")
        if branch.parent is not None and not 0 <= branch.parent < index:
            raise ValueError(f"{tree.row}: branch {index} continues branch {branch.parent}, which is not before it")
        if branch.parent is None and not len(tree.prompt_ids) and branch.loss_mask[0]:
            raise ValueError(f"{tree.row}: the first token of a sequence has nothing to predict it and cannot train")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on `device`; the node table stays on the host, where the segments are cut."""
    if batch.input_ids_T.device == device:
        return batch
    return Batch(
        input_ids_T=batch.input_ids_T.to(device, non_blocking=True),
        positions_T=batch.positions_T.to(device, non_blocking=True),
        nodes=batch.nodes,
        target_index_N=batch.target_index_N.to(device, non_blocking=True),
        predictor_index_N=batch.predictor_index_N.to(device, non_blocking=True),
        branch_N=batch.branch_N.to(device, non_blocking=True),
        tree_B=batch.tree_B.to(device, non_blocking=True),
        branch_nodes=batch.branch_nodes,
        keys=batch.keys,
        rows=batch.rows,
        margin_P=_moved(batch.margin_P, device),
        label_P=_moved(batch.label_P, device),
        scores_B=_moved(batch.scores_B, device),
        step_labels_N=_moved(batch.step_labels_N, device),
        columns_N={name: values_N.to(device, non_blocking=True) for name, values_N in batch.columns_N.items()},
    )


def _moved(values: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if values is None else values.to(device, non_blocking=True)


def _long(pieces: list[np.ndarray]) -> torch.Tensor:
    joined = np.concatenate(pieces) if pieces else np.empty(0)
    # int32 on disk, int64 here: embeddings and gathers of torch index with it on every device.
    return torch.from_numpy(joined.astype(np.int64))


def _margins(margins: list[float | None]) -> torch.Tensor | None:
    """None when no tree is annotated; NaN for a tree without a margin among annotated ones: it is unknown, not 0."""
    if all(margin is None for margin in margins):
        return None
    return torch.tensor([float("nan") if margin is None else margin for margin in margins], dtype=torch.float32)


def _labels(trees: Sequence[TokenTree]) -> torch.Tensor | None:
    """None unless every tree is feedback: there is no third label for a tree that nobody judged."""
    labels = [tree.label for tree in trees if tree.label is not None]
    return torch.tensor(labels, dtype=torch.bool) if len(labels) == len(trees) else None


def _scores(trees: Sequence[TokenTree]) -> torch.Tensor | None:
    """None when no tree is scored; NaN for the branches of a tree without scores among scored ones."""
    if all(tree.scores is None for tree in trees):
        return None
    scores = [tree.scores or (float("nan"),) * len(tree.branches) for tree in trees]
    return torch.tensor([score for of_tree in scores for score in of_tree], dtype=torch.float32)


def _step_labels(trees: Sequence[TokenTree]) -> torch.Tensor | None:
    """None unless every tree has labels for its steps, which stand in the order of the trained tokens."""
    labels = [tree.step_labels for tree in trees if tree.step_labels is not None]
    if len(labels) < len(trees):
        return None
    return torch.tensor([label for of_tree in labels for label in of_tree], dtype=torch.float32)


def _columns(trees: Sequence[TokenTree]) -> dict[str, torch.Tensor]:
    """Each column at the trained tokens, [N]: what stands elsewhere never enters a batch."""
    names = list(trees[0].branches[0].columns)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for tree in trees:
        for branch in tree.branches:
            if branch.columns.keys() != pieces.keys():
                raise ValueError(
                    f"{tree.row}: a branch has the columns {sorted(branch.columns)}, and the first of the batch has "
                    f"{sorted(names)}: a column is on all branches of a batch or on none"
                )
            for name in names:
                values = np.asarray(branch.columns[name])
                if values.shape != branch.ids.shape:
                    raise ValueError(f"{tree.row}: column {name} has shape {values.shape} for {len(branch.ids)} tokens")
                # Only trained tokens: a NaN at a tool's tokens ends here.
                pieces[name].append(values[branch.loss_mask])
    return {name: _wide(parts) for name, parts in pieces.items()}


def _wide(parts: list[np.ndarray]) -> torch.Tensor:
    """float64 where a part is, float32 otherwise."""
    joined = np.concatenate(parts)
    return torch.from_numpy(joined if joined.dtype == np.float64 else joined.astype(np.float32))
