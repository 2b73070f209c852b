"""Mismatched completions: each prompt of a step with the completion of another row, for KTO's reference point.

    derangement(trees, generator) -> [2, 0, 1]      # row i gets the completion of row 2, ...
    mismatched(trees, generator)  -> [TokenTree, ...]

No row keeps its own completion. As far as the step allows, no row gets one with the same words, or one that was
written for the same prompt: an answer to the prompt is what the estimate must not be made of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from posttrain.data.tree_key import make_tree
from posttrain.errors import ConfigError
from posttrain.types import TokenTree


def mismatched(trees: Sequence[TokenTree], generator: np.random.Generator) -> list[TokenTree]:
    """For each tree its prompt with the completion of another tree of the same step.

    A completion is cut where it would make its tree longer than the longest of the step, which fits the model.

    Raises:
        ConfigError: fewer than two trees.
    """
    others = derangement(trees, generator)
    longest = max(tree.num_tokens for tree in trees)
    return [_with_completion(tree, trees[other], longest) for tree, other in zip(trees, others, strict=True)]


def derangement(trees: Sequence[TokenTree], generator: np.random.Generator) -> list[int]:
    """A random permutation of the rows without a fixed point, as different in content as it can be.

    First as many rows as possible are given a completion of other words that answers another prompt; then, of those
    left, one of other words; then any but their own.

    Raises:
        ConfigError: fewer than two rows.
    """
    if len(trees) < 2:
        raise ConfigError(
            "a step of one row has no mismatched completion, which the KL estimate is made of",
            found=f"{len(trees)} row in a step",
            expected="at least 2 rows in every step",
            remedy="raise rows_per_step, or choose another so that the last step of an epoch has two rows",
        )
    prompts = _classes([tree.prompt_ids.tobytes() for tree in trees])
    answers = _classes([tree.branches[0].ids.tobytes() for tree in trees])
    own = np.arange(len(trees))
    another_row = own[:, None] != own[None, :]
    other_words = another_row & (answers[:, None] != answers[None, :])
    other_prompt = other_words & (prompts[:, None] != prompts[None, :])
    matching = _Matching(len(trees), generator)
    for allowed in (other_prompt, other_words, another_row):
        matching.extend(allowed)
    return matching.partner.tolist()


def _classes(contents: Sequence[bytes]) -> np.ndarray:
    numbers: dict[bytes, int] = {}
    return np.asarray([numbers.setdefault(content, len(numbers)) for content in contents])


class _Matching:
    """A bipartite matching of rows with completions that grows by augmenting paths (Berge 1957)."""

    def __init__(self, size: int, generator: np.random.Generator):
        self.partner = np.full(size, -1)
        """The completion of each row, -1 while it has none."""
        self._holder = np.full(size, -1)
        self._rows = generator.permutation(size)
        self._completions = generator.permutation(size)

    def extend(self, allowed: np.ndarray) -> None:
        """Match as many more rows as the allowed (row, completion) pairs admit; matched rows stay matched."""
        for row in self._rows:
            if self.partner[row] < 0:
                self._augment(int(row), allowed)

    def _augment(self, start: int, allowed: np.ndarray) -> None:
        reached_from: dict[int, int] = {}
        waiting = deque([start])
        while waiting:
            row = waiting.popleft()
            for completion in self._completions[allowed[row, self._completions]].tolist():
                if completion in reached_from:
                    continue
                reached_from[completion] = row
                if self._holder[completion] < 0:
                    self._take(completion, reached_from)
                    return
                waiting.append(int(self._holder[completion]))

    def _take(self, completion: int, reached_from: dict[int, int]) -> None:
        """Hand the free completion along the path; each row on it gives up what it had."""
        while completion >= 0:
            row = reached_from[completion]
            given_up = int(self.partner[row])
            self.partner[row], self._holder[completion] = completion, row
            completion = given_up


def _with_completion(tree: TokenTree, other: TokenTree, longest: int) -> TokenTree:
    completion = other.branches[0]
    room = longest - len(tree.prompt_ids)  # at least the tree's own completion, so at least one token
    ids, mask = completion.ids[:room], completion.loss_mask[:room]
    return make_tree(tree.prompt_ids.tolist(), [(ids.tolist(), mask.tolist())], tree.row)
