"""What an objective sees of a batch: each response's log-probs, and which responses are compared with which.

Shape suffixes as in `posttrain.types`, and Q for the compared pairs of a batch: one for each tree of two branches,
every better branch with every worse one for a ranked list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from posttrain.errors import ConfigError, DataError
from posttrain.lazy_torch import torch
from posttrain.losses.reduce import branch_sums, branch_tokens
from posttrain.outputs import TokenLogprobs
from posttrain.types import Batch, RowRef

if TYPE_CHECKING:
    import numpy as np  # the losses need torch alone
    from torch import Tensor

Parameters = Mapping[str, float]
StepStatistics: TypeAlias = "Mapping[str, Tensor]"
"""Statistics of the whole step, one value for each tree of a batch, [P] each: {"shift": tensor([0.1, 0.1])}."""


@dataclass(frozen=True, slots=True)
class Responses:
    """The responses of a batch, one value per branch.

    Responses(batch, logprob_N=[...], log_ratio_N=[...], logprob_B=[-12.0, -15.0], tokens_B=[20., 24.],
              log_ratio_B=[0.5, -0.3], statistics={})
    """

    batch: Batch
    logprob_N: Tensor
    """log policy of each trained token, nats."""
    log_ratio_N: Tensor | None
    """log policy - log reference of each trained token; None without a reference."""
    log_collision_N: Tensor | None
    """log sum_v policy(v)^2 at each trained token; None unless the objective asks for it."""
    logprob_B: Tensor
    """Sum over the response's tokens of log policy, nats."""
    tokens_B: Tensor
    log_ratio_B: Tensor | None
    """Sum over the response's tokens of log policy - log reference."""
    statistics: StepStatistics
    """Of the whole step; empty for an objective without a `Coupling`."""

    @classmethod
    def of(
        cls,
        policy: TokenLogprobs,
        reference_N: Tensor | None,
        batch: Batch,
        statistics: StepStatistics | None = None,
    ) -> Responses:
        """Differences are taken per token and then summed: two long sums would lose the digits that matter."""
        logprob_N = policy.logprobs_N
        # Detached: a reference that shares the policy's weights (its adapter switched off) must stay a constant.
        log_ratio_N = None if reference_N is None else logprob_N - reference_N.detach().to(logprob_N)
        return cls(
            batch=batch,
            logprob_N=logprob_N,
            log_ratio_N=log_ratio_N,
            log_collision_N=policy.log_collision_N,
            logprob_B=branch_sums(logprob_N, batch),
            tokens_B=branch_tokens(batch, logprob_N),
            log_ratio_B=None if log_ratio_N is None else branch_sums(log_ratio_N, batch),
            statistics=statistics or {},
        )

    def against_reference(self) -> Tensor:
        """Sequence log-ratios [B]. Raises ConfigError without a reference."""
        if self.log_ratio_B is None:
            raise no_reference()
        return self.log_ratio_B

    def token_ratios(self) -> Tensor:
        """Token log-ratios [N]. Raises ConfigError without a reference."""
        if self.log_ratio_N is None:
            raise no_reference()
        return self.log_ratio_N

    def place_N(self) -> Tensor:
        """How many trained tokens of its response come before each one: 0, 1, 2, ..., 0, 1, ..."""
        tokens_B = self.tokens_B.long()
        first_B = tokens_B.cumsum(0) - tokens_B
        branch_N = self.batch.branch_N.to(first_B.device)
        return torch.arange(branch_N.shape[0], device=first_B.device) - first_B[branch_N]


def no_reference() -> ConfigError:
    return ConfigError(
        "this objective compares the policy with its start and got no reference log-probs",
        where="the loss",
        found="reference_N=None",
        expected="the reference's log-probs of the same tokens",
        remedy="pass reference_N, or choose an objective without a reference: simpo, orpo or cpo",
    )


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which branches are compared: Pairs(chosen_Q=[0, 2], rejected_Q=[1, 3], tree_Q=[0, 1], share_Q=[1.0, 1.0])."""

    chosen_Q: Tensor
    """The better branch of each pair, as an index in B."""
    rejected_Q: Tensor
    tree_Q: Tensor
    share_Q: Tensor
    """1 / pairs of the tree: a ranked list weighs as much as a pair."""
    are_trees: bool
    """Every tree is one pair, in order: Q is P."""

    @classmethod
    def of(cls, batch: Batch, like: Tensor) -> Pairs:
        """All pairs of a batch, best branch first in each tree.

        Two responses of a list that the annotators scored alike are not a pair: nobody said which is better. A tree
        of one response, which has a score alone, has none.

        Raises:
            ConfigError: branches that continue each other: which of them are answers to the same question?
        """
        device, branches = like.device, batch.num_branches
        if batch.is_nested:
            raise ConfigError(
                "responses are compared with each other, and some branches continue others",
                where=batch.rows[0],
                expected="trees whose branches all continue the prompt",
                remedy="put what the compared responses share into the prompt",
            )
        # The usual batch: no Python loop over its rows, and `per_tree` has nothing to do.
        if branches == 2 * batch.num_trees and bool((batch.tree_B[0::2] == batch.tree_B[1::2]).all()):
            index_B = torch.arange(branches, device=device)
            ones = like.new_ones(batch.num_trees)
            return cls(index_B[0::2], index_B[1::2], torch.arange(batch.num_trees, device=device), ones, True)
        members: list[list[int]] = [[] for _ in range(batch.num_trees)]
        for branch, tree in enumerate(batch.tree_B.tolist()):
            members[tree].append(branch)
        scores = None if batch.scores_B is None else batch.scores_B.tolist()
        # The row says which of two responses is better, whatever their scores; of a list only scores that differ do.
        of_tree = [
            [pair for pair in combinations(own, 2) if len(own) == 2 or scores is None or not _tied(scores, *pair)]
            for own in members
        ]
        # Branches stand best first, so the first of each combination is the better one.
        pairs = [(better, worse, tree, 1 / len(own)) for tree, own in enumerate(of_tree) for better, worse in own]
        chosen, rejected, trees, shares = ([pair[place] for pair in pairs] for place in range(4))
        long: dict[str, Any] = {"dtype": torch.long, "device": device}
        return cls(
            torch.tensor(chosen, **long),
            torch.tensor(rejected, **long),
            torch.tensor(trees, **long),
            torch.tensor(shares, dtype=like.dtype, device=device),
            False,
        )

    def sides(self, values_B: Tensor) -> tuple[Tensor, Tensor]:
        """(chosen, rejected), each [Q]."""
        return values_B[self.chosen_Q], values_B[self.rejected_Q]

    def per_tree(self, values_Q: Tensor, trees: int) -> Tensor:
        """The mean over each tree's pairs, [P]."""
        if self.are_trees:
            return values_Q
        return values_Q.new_zeros(trees).index_add(0, self.tree_Q, values_Q * self.share_Q)

    def require_trees(self, what: str) -> None:
        """Refuse ranked lists. Raises ConfigError."""
        if not self.are_trees:
            raise ConfigError(
                f"{what} is defined for pairs, and some rows are ranked lists",
                where="the loss",
                expected="two responses per row",
                remedy="write each list as pairs, or use dpo, which takes all pairs of a list, or dpo_pl",
            )


def _tied(scores: Sequence[float], first: int, second: int) -> bool:
    return scores[first] == scores[second]  # NaN, no score, is equal to nothing


def refuse_ties(batch: Batch, objective: str, all_pairs: str) -> None:
    """For objectives that need one order of a list: refuse lists in which two responses have the same score.

    Args:
        all_pairs: the objective that takes such lists, and drops the tied pairs.

    Raises:
        DataError: it names the row and its scores.
    """
    if batch.scores_B is None:
        return
    sizes = torch.bincount(batch.tree_B, minlength=batch.num_trees).tolist()
    for row, scores in zip(batch.rows, batch.scores_B.cpu().split(sizes), strict=True):
        if has_ties(scores.tolist()):
            raise ties_error(objective, all_pairs, row, scores.tolist())


def has_ties(scores: Sequence[float]) -> bool:
    """Whether a list of more than two responses has two of the same score; of a pair it is known which is better."""
    return len(scores) > 2 and any(_tied(scores, *pair) for pair in combinations(range(len(scores)), 2))


def ties_error(objective: str, all_pairs: str, row: RowRef, scores: Sequence[float], rows: int = 1) -> DataError:
    """The error of a list without one order; `rows` counts all such lists that are known."""
    return DataError(
        f"`{objective}` needs one order of each list, and responses of "
        + ("a list have the same score" if rows == 1 else f"{rows:,} lists have the same score"),
        where=row,
        found="scores, best first: " + ", ".join(f"{score:g}" for score in scores),
        expected="scores that all differ within a list",
        remedy=f"use `{all_pairs}`, which takes all pairs of a list and drops the tied ones, or remove such rows "
        "(without `allow_ties` they are refused when they are read)",
    )


# ---------------------------------------------------------------- objectives that look at the whole step


class Memory(Protocol):
    """What an objective keeps from step to step; it is saved with every checkpoint."""

    def statistics(self, observed: Mapping[str, Tensor], draw: np.random.Generator | None) -> dict[str, Tensor]:
        """`Coupling.reduce` with a past. draw: the step's random stream, None where rows are only measured."""

    def state_dict(self) -> dict[str, Any]:
        """For JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""


@dataclass(frozen=True, slots=True)
class Coupling:
    """What the trees of a step have to know of each other before any of them has a loss.

    The step is measured once without gradients (`observe`, per micro-batch), its values are reduced to statistics
    (`reduce`), and each tree's loss reads its own. So the gradient is the same for every split into micro-batches.

    Coupling(observe=rewards, reduce=their_mean)
    """

    observe: Callable[[Responses, Parameters], dict[str, Tensor]]
    """Values per tree, [P] each."""
    reduce: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """The values of all trees of the step, in their order, to its statistics, one for each tree: again [P] each."""
    mismatched: bool = False
    """What is measured is each prompt with the completion of another row of the step, not the step's own trees."""
    memory: Callable[[Parameters], Memory] | None = None
    """Makes what is kept from step to step and has `reduce`'s place; `reduce` itself is for a step without a past."""

    def of_batch(self, responses: Responses, parameters: Parameters) -> StepStatistics:
        """The statistics of a batch that is the whole step."""
        if self.mismatched:
            raise ConfigError(
                "this objective measures other trees than those it trains on, and was given no statistics of them",
                where="the loss",
                found="statistics=None",
                expected="`statistics`, from the step's mismatched completions",
                remedy="use posttrain.training.step.accumulate, which measures them, or pass `statistics`",
            )
        with torch.no_grad():
            return self.reduce(self.observe(responses, parameters))

    def at_start(self, trees: int, like: Tensor) -> StepStatistics | None:
        """The statistics of mismatched completions before step 1, where the policy is its reference: log-ratios of 0.

        None where the batch's own trees are measured.
        """
        return self.reduce({"log_ratio": like.new_zeros(trees)}) if self.mismatched else None
