"""Which path a model's forward takes: the fastest that was proven for this model, on rows as long as the longest.

    paths = Paths("tree")                    # nothing is proven yet
    paths.of(policy, batch) -> "tree"        # after a comparison with each row alone, on rows of this very batch
    paths.prove(policy, trees)               # the same before anything else runs, on rows of one's choice

The oracle is each row by itself through the model's own forward. A path is taken for rows of up to as many tokens as
it was proven on and a little more (`reach`); a longer row has it proven again, so that a window, a chunk or a scaled
rotary angle that begins to matter late is met before it can do harm. A path that fails is left for the next slower
one, for rows of that length and longer, and one sentence says so. It costs a few small forward passes for each model,
and two of one row whenever rows grow by a quarter.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from posttrain.errors import ModelError, PosttrainError
from posttrain.models.devices import out_of_memory
from posttrain.models.sharding.lockstep import most, trees_of_longest
from posttrain.models.tree.attention import NOT_SERVED
from posttrain.models.tree.exact import HALF, exact
from posttrain.models.tree.parity import Gap, against, computed_in, looks_ahead, values_and_gradient
from posttrain.models.tree.provable import ProvableModel, Route
from posttrain.models.tree.rows import row_lengths, trees_of
from posttrain.types import Batch, Branch, TokenTree

ORDER: tuple[Route, ...] = ("tree", "padded", "rows")
"""From the fastest to the slowest; each is tried where the one before it fails. `rows` is the oracle."""

SHORT_TREES = 2
"""Trees that values and the whole gradient are compared on: enough for packing to matter, small enough for a laptop."""
SHORT_PROMPT, SHORT_BRANCH, BRANCHES = 160, 64, 3
"""Most tokens of a prompt and of a branch, and branches, of these: a gradient keeps every activation."""
SPREAD = (0.5, 1.0)
"""Quantiles of the rows' lengths from which the longer trees are taken, each with two of its branches, for values
alone: what depends on a neighbour's length may begin in the middle."""
LEAST_REACH = 64
GROWTH = 1.25
"""A proof covers rows this much longer, as long as no number in the model's config lies between."""
NOT_A_LENGTH = re.compile(
    r"(^|_)(num|n|dim|dims|rank|size|heads?|layers?|id|ids|embd|inner|groups?|experts?|factor|count|version)(_|$)"
    r"|vocab|token_id|hidden|intermediate|d_model|d_ff|head_dim"
)
"""Fields of a config that count something other than tokens of a row. Another one too many costs a small proof."""
A_LENGTH = re.compile(r"window|chunk|block|stride|local|position|length|context|sink|topk|top_k|max_seq|original")

logger = logging.getLogger("posttrain.models")


@dataclass(slots=True)
class Reach:
    """Reach(tokens=560, gradient=True, closed=True): proven for rows of up to 560 tokens, and wrong for longer ones."""

    tokens: int = 0
    gradient: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """One path on some rows: Verdict(reach=640, gap=Gap(3e-6, ...)), or Verdict(0, reason="its code stops ...")."""

    reach: int
    gap: Gap | None = None
    reason: str | None = None
    """Why rows that are longer than `reach` do not run on this path; a sentence without its subject."""
    error: str | None = None
    """What the model's own code raised, for whoever looks for the cause."""


class Paths:
    """What is known of one model's paths.

    Args:
        wanted: the fastest path that may be taken.
    """

    def __init__(self, wanted: Route = "tree"):
        self.order = ORDER[ORDER.index(wanted) :]
        self.reach = {path: Reach() for path in self.order}
        self.verdicts: dict[Route, Verdict] = {}
        """The last verdict on each path that was tried."""
        self._causal: bool = False

    @property
    def path(self) -> Route:
        """That most rows take: the fastest path that did not fail on the shortest of them."""
        return next(path for path in self.order if path == "rows" or not self._failed(path))

    def _failed(self, path: Route) -> bool:
        return self.reach[path].closed and self.reach[path].tokens == 0

    def of(self, model: ProvableModel, batch: Batch) -> Route:
        """The path of this batch, proven on its own rows where that was not done before.

        Raises:
            ModelError: the model lets a token see later ones, and what it is used for does not allow that.
        """
        own = max(row_lengths(batch))
        # Ranks of one model go the same way, on the proof that the longest row of any of them needs.
        longest = most(own, model.sharding)
        known = self.known(longest, gradient=torch.is_grad_enabled() and model.trains())
        if known is not None:
            return known
        trees = trees_of(batch, _chosen(row_lengths(batch), batch))
        return self._decide(model, trees_of_longest(trees, own, longest, model.sharding), longest, say=True)

    def known(self, longest: int, *, gradient: bool = False) -> Route | None:
        """The path of rows of up to `longest` tokens, if no proof is missing."""
        for path in self.order:
            reach = self.reach[path]
            if path == "rows" and self._causal:
                return path
            # A value that agrees says nothing of its gradient (a detached mask, a kernel's backward): each is proven.
            if longest <= reach.tokens:
                return path if reach.gradient or not gradient else None
            if not reach.closed:
                return None
        return None

    def prove(self, model: ProvableModel, trees: Sequence[TokenTree], *, gradient: bool = True) -> Route:
        """Decide on these trees, before anything else runs. Nothing is logged: `reasons` says what was found.

        Raises:
            ModelError: as `of`.
        """
        longest = max(map(row_length, trees))
        return self._decide(model, trees, longest, say=False, gradient=gradient)

    def _decide(
        self,
        model: ProvableModel,
        trees: Sequence[TokenTree],
        longest: int,
        *,
        say: bool,
        gradient: bool | None = None,
    ) -> Route:
        """The fastest path that holds on the trees; what was found is kept."""
        if gradient is None:
            gradient = torch.is_grad_enabled()
        gradient = gradient and model.trains()
        if not self._causal:
            # Once, and first: if the model sees its answers, no path of it is worth comparing.
            require_causal(model, trees[0])
            self._causal = True
        for path in self.order:
            reach = self.reach[path]
            if path == "rows":
                return path
            # Known to be wrong from here on; tried again, it would fail again for each longer row.
            if reach.closed and longest > reach.tokens:
                continue
            before = reach.tokens
            verdict = examined(model, trees, path, longest, gradient=gradient and not reach.gradient)
            if verdict is None:  # the numbers are not finite, so that nothing is known: each row alone is right anyway
                return "rows"
            self.verdicts[path] = verdict
            # A longer row that fails says nothing of the shorter ones before it. It says nothing of a gradient either,
            # which is proven on the next batch whose rows the values do hold for.
            tokens = max(verdict.reach, before) if longest > before else verdict.reach
            closed = reach.closed or verdict.reason is not None
            self.reach[path] = Reach(tokens, reach.gradient or (gradient and verdict.reach > 0), closed)
            if verdict.reason is not None and say:
                logger.warning("%s", sentence(model, path, self))
            if longest <= self.reach[path].tokens:
                return path
        raise AssertionError("`rows` always holds")

    def reasons(self, model: ProvableModel) -> list[str]:
        """A sentence for each path that some rows do not take."""
        return [sentence(model, path, self) for path in self.order if self.reach[path].closed]


def sentence(model: ProvableModel, path: Route, paths: Paths) -> str:
    """BloomForCausalLM runs padded: its attention adds a bias of its own, such as ALiBi (log-probs differ by ...)"""
    verdict = paths.verdicts[path]
    slower = paths.order[paths.order.index(path) + 1]
    how = {"padded": "padded", "rows": "one row at a time"}[slower]
    name = type(model.transformer).__name__
    if paths.reach[path].tokens:
        return f"{name}: rows of more than {paths.reach[path].tokens:,} tokens run {how}: {verdict.reason}"
    return f"{name} runs {how}: {verdict.reason}"


# ---------------------------------------------------------------- one path


def examined(
    model: ProvableModel, trees: Sequence[TokenTree], path: Route, longest: int, *, gradient: bool
) -> Verdict | None:
    """The path against each row alone, on short trees with the gradient, and on longer ones beside them.

    None: there is no number to compare, or one that is not finite, so that nothing can be said.

    Raises:
        torch.OutOfMemoryError and its like: running out of memory says nothing about the model.
    """
    short, spread = probes(trees)
    model.calls = None
    with exact(model) as wide:
        dtype = computed_in(model, short)
        oracle, slope = values_and_gradient(model, short, "rows", gradient=gradient)
        first = _compared(model, short, path, oracle, slope, dtype)
        if not isinstance(first, Gap):
            return first
        unseen = _unseen_windows(model) if path == "tree" else set()
        # Beyond a window that the tree does not see, the paths must differ: longer rows would blame what is right for
        # short ones.
        window = min(unseen, default=longest)
        spread = [tree for tree in spread if row_length(tree) <= window]
        gap = first
        if spread:
            longer, _ = values_and_gradient(model, spread, "rows", gradient=False)
            second = _compared(model, [*short, *spread], path, torch.cat([oracle, longer]), None, dtype)
            if not isinstance(second, Gap):
                return second
            gap = larger_gap(first, second)
    if wide and (own := model.autocast or model.dtype) in HALF:
        # In fp32 the path is right; now the kernels that will really run, which may have a fault of their own.
        rough = _in_its_own_precision(model, short, path, own)
        if not rough.holds:
            return Verdict(0, rough, _differs(model, path, rough))
    if unseen:
        return Verdict(window, gap, _hidden(window))
    return Verdict(reach_of(model.transformer.config.get_text_config(), longest), gap)


def _compared(
    model: ProvableModel,
    trees: Sequence[TokenTree],
    path: Route,
    oracle: torch.Tensor,
    slope: list[torch.Tensor] | None,
    dtype: torch.dtype,
) -> Gap | Verdict | None:
    """The difference from what each row alone gives where it is small enough, else the verdict; None where there is no
    number that could differ."""
    if not len(oracle) or not bool(torch.isfinite(oracle).all()):
        return None
    try:
        gap = against(model, trees, path, oracle, slope, dtype)
    except PosttrainError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        # The model's own code refuses rows laid end to end; the slower paths never meet that code.
        return Verdict(0, reason=_stops(model, path), error=f"{type(error).__name__}: {error}")
    return gap if gap.holds else Verdict(0, gap, _differs(model, path, gap))


@torch.no_grad()
def _in_its_own_precision(model: ProvableModel, trees: Sequence[TokenTree], path: Route, dtype: torch.dtype) -> Gap:
    """Values alone: fp32 has shown what the path computes, and this shows that its kernels work in 16 bits too."""
    oracle, _ = values_and_gradient(model, trees, "rows", gradient=False)
    return against(model, trees, path, oracle, None, dtype)


def larger_gap(one: Gap, other: Gap) -> Gap:
    """The larger of both differences, over the tokens of both."""
    larger = one if one.logprob >= other.logprob else other
    return replace(larger, gradient=max(one.gradient, other.gradient), tokens=max(one.tokens, other.tokens))


def _differs(model: ProvableModel, path: Route, gap: Gap) -> str:
    if path == "padded":
        return f"a row depends on how long the longest one beside it is ({gap.logprob:.1e}): each runs alone"
    return f"{_cause(model)} ({gap.line()})"


def _cause(model: ProvableModel) -> str:
    """What the model's calls of the tree's attention tell about why it is not served."""
    calls, layers = model.calls, getattr(model.transformer.config.get_text_config(), "num_hidden_layers", None)
    if calls is None or calls.layers == 0:
        return "its layers have an attention of their own, which does not see which rows belong together"
    if calls.unknown:
        return NOT_SERVED[min(calls.unknown)]
    if layers is not None and calls.layers < layers:
        return f"{layers - calls.layers} of its {layers} layers keep a state that runs on from row to row"
    if unseen := _unseen_windows(model):
        return _hidden(min(unseen))
    return "something in it runs on from row to row, such as a convolution, a state or positions of its own"


def _unseen_windows(model: ProvableModel) -> set[int]:
    return set() if model.calls is None else model.calls.unseen_windows(model.transformer.config.get_text_config())


def _hidden(window: int) -> str:
    return f"its layers keep a window of {window:,} tokens in a mask of their own, which the tree does not see"


def _stops(model: ProvableModel, path: Route) -> str:
    if path == "padded":
        return "its code stops on several padded rows at once: each runs alone"
    calls = model.calls
    if calls is not None and calls.unknown:
        return NOT_SERVED[min(calls.unknown)]
    return "its code stops on rows laid end to end without a mask"


# ---------------------------------------------------------------- causality


def require_causal(model: ProvableModel, tree: TokenTree) -> None:
    """Refuse a model that reads ahead where a token's value must not know what comes after it.

    Raises:
        ModelError: it does. A policy that sees its answer while it is trained on it learns to copy, and its loss falls
            while it learns nothing that it could use when it writes.
    """
    if not model.reads_ahead_is_wrong:
        return
    seen = looks_ahead(model, tree)
    if seen is None:
        return
    moved, place = seen
    raise ModelError(
        f"{type(model.transformer).__name__} is not causal: it sees the tokens that it should predict",
        where=tree.row,
        found=f"changing token {place + 1} of a row moves what it gives before it, by {moved:.1e} of its size",
        expected="a decoder, in which a token sees the tokens before it and no other",
        remedy="start from a decoder-only model; a BERT is one with `is_decoder: true` in its config.json",
    )


# ---------------------------------------------------------------- which rows


def probes(trees: Sequence[TokenTree]) -> tuple[list[TokenTree], list[TokenTree]]:
    """(the shortest, cut short; longer ones whole, with two branches each), every token but a first one trained."""
    order = sorted(trees, key=row_length)
    short = [_cut(tree) for tree in order[:SHORT_TREES]]
    places = dict.fromkeys(round(quantile * (len(order) - 1)) for quantile in SPREAD)
    known = max(map(row_length, short))
    return short, [_two(order[i]) for i in places if row_length(order[i]) > known or i >= SHORT_TREES]


def row_length(tree: TokenTree) -> int:
    """Tokens of the longest row: the prompt and the longest path of branches after it."""
    return max(tree.row_lengths, default=len(tree.prompt_ids))


def _cut(tree: TokenTree) -> TokenTree:
    """The first branches, cut short, and so the branches that they continue."""
    return _bare(tree, range(len(tree.branches))[:BRANCHES], prompt=SHORT_PROMPT, branch=SHORT_BRANCH)


def _two(tree: TokenTree) -> TokenTree:
    """The longest row and one other, so that what they continue is shared."""
    lengths = tree.row_lengths
    longest = max(range(len(lengths)), key=lambda index: lengths[index])
    kept = {longest, 0 if longest else min(1, len(tree.branches) - 1)}
    for index in range(longest, -1, -1):  # a path goes to earlier branches only
        parent = tree.branches[index].parent
        if index in kept and parent is not None:
            kept.add(parent)
    return _bare(tree, sorted(kept))


def _bare(tree: TokenTree, kept: Sequence[int], *, prompt: int | None = None, branch: int | None = None) -> TokenTree:
    """Some branches, without annotations, and with every token trained that something predicts; at most `prompt` tokens
    of the prompt and `branch` of each branch."""
    prompt_ids = tree.prompt_ids[:prompt]
    made = []
    for index in kept:
        ids, parent = tree.branches[index].ids[:branch], tree.branches[index].parent
        mask = np.ones(len(ids), dtype=bool)
        mask[0] = bool(len(prompt_ids)) or parent is not None
        made.append(Branch(ids, mask, parent=None if parent is None else kept.index(parent)))
    return TokenTree(prompt_ids, tuple(made), tree.key, tree.row)


def _chosen(lengths: Sequence[int], batch: Batch) -> list[int]:
    """Trees of a batch for a proof: the two shortest by their longest row, and those at the quantiles of `SPREAD`."""
    longest: dict[int, int] = {}
    for tree, length in zip(batch.tree_B.tolist(), lengths, strict=True):
        longest[tree] = max(length, longest.get(tree, 0))
    order = sorted(longest, key=lambda tree: longest[tree])
    places = [*range(min(SHORT_TREES, len(order))), *(round(q * (len(order) - 1)) for q in SPREAD)]
    return [order[place] for place in dict.fromkeys(places)]


# ---------------------------------------------------------------- how far a proof reaches


def reach_of(config: Any, longest: int) -> int:
    """Rows of how many tokens a proof on rows of `longest` tokens covers.

    Up to the next number in the config that may be a length: there a window may begin to hide tokens. Just beyond such
    a number its effect may be too small to show (one token of 560 is hidden), so the proof is repeated soon after it.

    reach_of(mistral with sliding_window 4096, 100) -> 125        (…, 4000) -> 4096       (…, 4097) -> 4098
    """
    borders = set(lengths_in(config.to_dict()))
    above = min((border for border in borders if border >= longest), default=None)
    below = max((border for border in borders if border < longest), default=0)
    # A quarter at a time, so a run whose rows grow to 16 times their length costs some dozen small proofs.
    reach = max(int(longest * GROWTH), LEAST_REACH)
    if below:
        reach = min(reach, longest + max(1, longest - below))
    return reach if above is None else max(longest, min(reach, above))


def lengths_in(config: Any, name: str = "") -> Iterator[int]:
    """Every number of a config, at any depth, that may be a length in tokens."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from lengths_in(value, str(key))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from lengths_in(value, name)
    # A bool is an int in Python, but True is not above 1.
    elif isinstance(config, int) and config > 1 and (A_LENGTH.search(name) or not NOT_A_LENGTH.search(name)):
        yield config
