"""Token trees from plain lists, with the key that names their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from posttrain.types import Branch, MediaRef, RowRef, TokenTree


def make_tree(
    prompt: Sequence[int],
    branches: Sequence[tuple[Sequence[int], Sequence[bool]]],
    row: RowRef,
    *,
    margin: float | None = None,
    label: bool | None = None,
    scores: Sequence[float] | None = None,
    step_labels: Sequence[float] | None = None,
    columns: Sequence[Mapping[str, Sequence[float]]] | None = None,
    parents: Sequence[int | None] | None = None,
) -> TokenTree:
    """A tree with its content key: make_tree([1, 70], [([52, 2], [True, True])], RowRef("pairs.jsonl", 1)).

    Args:
        columns: what the tokens of each branch carry, one mapping per branch; no part of the key.
        parents: the branch that each one continues, None for the prompt; all continue the prompt if absent.
    """
    prompt_ids = np.asarray(prompt, dtype=np.int32)
    carried = columns or [{}] * len(branches)
    built = tuple(
        Branch(
            np.asarray(ids, np.int32),
            np.asarray(mask, np.bool_),
            {name: np.asarray(values, np.float32) for name, values in own.items()},
            parent,
        )
        for (ids, mask), own, parent in zip(branches, carried, parents or [None] * len(branches), strict=True)
    )
    scores = None if scores is None else tuple(float(score) for score in scores)
    assert scores is None or len(scores) == len(built), "one score for each branch"
    steps = None if step_labels is None else tuple(float(label) for label in step_labels)
    assert steps is None or len(steps) == sum(int(own.loss_mask.sum()) for own in built), "one label for each step"
    key = tree_key(prompt_ids, built, margin, label, scores, steps)
    return TokenTree(prompt_ids, built, key, row, margin, label, scores, steps)


def keep_branches(tree: TokenTree, keep: Sequence[bool]) -> TokenTree | None:
    """The tree without the branches that `keep` calls False, such as answers that were cut; None where none is left.

    A branch that is dropped counts nowhere: a step without it has the denominator of one that never had it.

    Raises:
        ValueError: a branch is kept, and the one that it continues is not.
    """
    if all(keep):
        return tree
    kept = [index for index, stays in enumerate(keep) if stays]
    if not kept:
        return None
    branches = tuple(_moved(tree, index, kept) for index in kept)
    scores = None if tree.scores is None else tuple(tree.scores[index] for index in kept)
    steps = None
    if tree.step_labels is not None:
        ends = np.cumsum([int(branch.loss_mask.sum()) for branch in tree.branches]).tolist()
        starts = [0, *ends]
        steps = tuple(label for index in kept for label in tree.step_labels[starts[index] : ends[index]])
    key = tree_key(tree.prompt_ids, branches, tree.margin, tree.label, scores, steps, tree.media)
    return replace(tree, branches=branches, scores=scores, step_labels=steps, key=key)


def _moved(tree: TokenTree, index: int, kept: Sequence[int]) -> Branch:
    """A branch that stays, under the new number of the one that it continues."""
    branch = tree.branches[index]
    if branch.parent is None:
        return branch
    if branch.parent not in kept:
        raise ValueError(f"{tree.row}: branch {index} stays and continues branch {branch.parent}, which is dropped")
    return replace(branch, parent=kept.index(branch.parent))


def require_storable(tree: TokenTree) -> None:
    """Refuse what a store of encoded rows has no place for, and would lose without a word. Raises ValueError."""
    if tree.is_nested or tree.media:
        what = "branches that continue each other" if tree.is_nested else "media"
        raise ValueError(f"{tree.row}: encoded rows are stored without {what}")


def tree_key(
    prompt_ids: np.ndarray,
    branches: Sequence[Branch],
    margin: float | None = None,
    label: bool | None = None,
    scores: Sequence[float] | None = None,
    step_labels: Sequence[float] | None = None,
    media: Sequence[MediaRef] = (),
) -> str:
    """32 hex digits over ids, masks, annotations and media, the same on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    lengths = [len(prompt_ids), *(len(branch.ids) for branch in branches)]
    digest.update(np.asarray(lengths, "<i8").tobytes())
    digest.update(prompt_ids.astype("<i4", copy=False).tobytes())
    for branch in branches:
        digest.update(branch.ids.astype("<i4", copy=False).tobytes())
        digest.update(branch.loss_mask.tobytes())
    if margin is not None:
        digest.update(np.asarray([margin], "<f8").tobytes())
    # The words keep a label and a list of scores from ever being the same bytes as a margin.
    if label is not None:
        digest.update(b"good" if label else b"bad")
    if scores is not None:
        digest.update(b"scores" + np.asarray(scores, "<f8").tobytes())
    if step_labels is not None:
        digest.update(b"steps" + np.asarray(step_labels, "<f8").tobytes())
    # Of trees without them nothing is added: their keys, and the caches that are named by them, stay what they were.
    parents = [-1 if branch.parent is None else branch.parent for branch in branches]
    if any(parent >= 0 for parent in parents):
        digest.update(b"parents" + np.asarray(parents, "<i8").tobytes())
    for medium in media:
        digest.update(f"medium {medium.kind} {medium.at} {medium.digest}".encode())
    return digest.hexdigest()
