"""Reward models: from the scores of responses to one reward each, and from rewards to a loss.

    scores_BH = the head's outputs                     one row per response, one column per output
    reward_B  = RewardRule.rewards(scores_BH, ...)     outputs combined, corrected for length
    loss      = mean over the step of OBJECTIVES[name].loss(reward_B, batch, parameters)

To add an objective, write one small function and add a row to `OBJECTIVES`; recipes and docs read the table.

Notation as in `posttrain.types`: B branches (responses), P trees (pairs or lists), H outputs of the head; w the better,
l the worse response of a pair. A tree's branches stand best first.

Deviations from the papers
 1. A list of K responses under `bradley_terry` is all of its K (K - 1) / 2 pairs, averaged within the list, as in
    InstructGPT (Ouyang et al. 2022, Eq. 1), so that a long list weighs no more than a pair.
 2. `length.penalty` is taken from the score and not added to the loss: |length - target| does not depend on the model,
    and as a term of the loss it would change no gradient. It is applied when responses are scored, not in training,
    where the model would learn to give it back.
 3. Product aggregation adds log sigmoid of the steps' scores: the log of the product of their probabilities, which
    orders responses as the product does and does not underflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePath
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError, DataError
from posttrain.losses.parameters import Parameter, resolve
from posttrain.losses.reduce import over_denominator
from posttrain.types import Batch, Count, Deviation, LossOutput, Mean, Metric, RowRef, Scores, Total

Combine = Literal["mean", "worst", "mean_minus_std"]
Pooling = Literal["last", "mean", "steps"]
StepRule = Literal["min", "last", "product"]

# ---------------------------------------------------------------- many numbers to one


def combine(scores: Tensor, how: Combine, std_weight: float = 1.0) -> Tensor:
    """Members of an ensemble to one reward: [..., M] in, [...] out.

    `mean`; `worst`, the least of them (worst-case optimisation, Coste et al. 2023, arXiv:2310.02743);
    `mean_minus_std`, mean - std_weight * standard deviation over the members (Eisenstein et al. 2023,
    arXiv:2312.09244; Coste et al. subtract the variance).
    """
    if how == "mean":
        return scores.mean(dim=-1)
    if how == "worst":
        return scores.amin(dim=-1)
    return scores.mean(dim=-1) - std_weight * scores.std(dim=-1, correction=0)


def aggregate_steps(steps_SH: Tensor, branch_S: Tensor, branches: int, how: StepRule) -> Tensor:
    """Scores of steps to scores of responses: [S, H] in, [B, H] out; every branch has at least one step.

    `min` and `product`: Lightman et al. 2023, arXiv:2305.20050. See deviation 3 for the product.
    """
    index_SH = branch_S[:, None].expand_as(steps_SH)
    out_BH = steps_SH.new_zeros(branches, steps_SH.shape[1])
    if how == "product":
        return out_BH.scatter_add(0, index_SH, F.logsigmoid(steps_SH))
    if how == "min":
        return out_BH.scatter_reduce(0, index_SH, steps_SH, "amin", include_self=False)
    return steps_SH[last_of_each(branch_S, branches)]


def last_of_each(branch_S: Tensor, branches: int) -> Tensor:
    """Index of the last entry of each branch, [B]; entries of a branch stand together and in order."""
    return torch.bincount(branch_S, minlength=branches).cumsum(0) - 1


@dataclass(frozen=True, slots=True)
class RewardRule:
    """How the outputs of a reward model's head become one reward per response; saved with the model.

    RewardRule(heads=("helpful", "harmless"), files=(("helpful*",), ("harmless*",)), weights=(0.7, 0.3))
    """

    pooling: Pooling = "last"
    """Where a response is scored: its last token, the mean over its tokens, or the end of each of its steps."""
    heads: tuple[str, ...] = ("reward",)
    """Names of the head's outputs: one, attributes or groups, or the members of an ensemble."""
    files: tuple[tuple[str, ...], ...] = ()
    """For attributes and groups: patterns of the data files whose rows train each output (or state each condition).
    Empty: every row trains every output."""
    conditions: tuple[str, ...] = ()
    """Attributes or groups that the prompt names, in place of outputs of their own."""
    condition_text: str = ""
    """What the system message says of a condition; `{name}` is its name."""
    weights: tuple[float, ...] = ()
    """The mixing vector of attributes; equal weights if empty."""
    combine: Combine = "mean"
    """How the members of an ensemble become one reward."""
    std_weight: float = 1.0
    steps: StepRule = "min"
    step_mark: str = ""
    """Text that ends a step."""
    length_offset: float | None = None
    """alpha: the reward is r / (alpha + length), in training and afterwards. None: no division."""
    length_penalty: float = 0.0
    """Taken from the reward for every token above or below `length_target` when responses are scored."""
    length_target: float = 0.0
    system: str = ""
    """System message of conversations that have none."""
    whole_row: bool = False
    """Score where the template ends the conversation instead of at the response's stop token: how most public reward
    models were trained. Some templates write a line break after the stop token."""
    scale: float | None = None
    """Normalised reward = scale * (reward - shift); None: the model carries no normalisation."""
    shift: float = 0.0

    @property
    def is_ensemble(self) -> bool:
        return len(self.heads) > 1 and not self.files and not self.weights

    @property
    def names(self) -> tuple[str, ...]:
        """What a reward can be asked for by name: conditions, or outputs."""
        return self.conditions or self.heads

    def file_of(self, row: RowRef) -> int:
        """Which output or condition a row belongs to, by the file it comes from.

        Raises:
            DataError: none of them has this file.
        """
        for index, patterns in enumerate(self.files):
            if any(fnmatch(name, p) for name in (row.source, PurePath(row.source).name) for p in patterns):
                return index
        raise DataError(
            "the reward model has no output or condition for this file",
            where=row,
            expected="; ".join(f"{h}: {', '.join(p)}" for h, p in zip(self.names, self.files, strict=True)),
            remedy="name the file (or a pattern such as helpful*.jsonl) under one of them in `head.files`",
        )

    def corrected(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """r / (alpha + length): what training compares; both of one shape."""
        return scores if self.length_offset is None else scores / (self.length_offset + tokens)

    def mixed(self, scores_BH: Tensor, head: str | None = None) -> Tensor:
        """The outputs as one score, [B]: one of them by name, the members combined, or the attributes weighed."""
        if head is not None and not self.conditions:
            return scores_BH[:, self.index(head)]
        if self.is_ensemble:
            return combine(scores_BH, self.combine, self.std_weight)
        weights = self.weights or (1.0 / len(self.heads),) * len(self.heads)
        return scores_BH @ scores_BH.new_tensor(weights)

    def rewards(
        self, scores_BH: Tensor, tokens_B: Tensor, *, head: str | None = None, normalised: bool = False
    ) -> Tensor:
        """The reward of each response, [B], as `posttrain score` writes it.

        Args:
            tokens_B: length of each response.
            head: one output by name, in place of the mix.
            normalised: apply the scale and shift that were stored with the model.

        Raises:
            ConfigError: no such output, or the model carries no normalisation.
        """
        reward_B = self.corrected(self.mixed(scores_BH, head), tokens_B)
        reward_B = reward_B - self.length_penalty * (tokens_B - self.length_target).abs()
        if not normalised:
            return reward_B
        if self.scale is None:
            raise ConfigError(
                "this reward model carries no normalisation",
                expected="a model trained with `normalise: {kind: whiten}` or `{kind: affine}`",
                remedy="train it with `normalise`, or take the rewards as they are",
            )
        return self.scale * (reward_B - self.shift)

    def index(self, head: str) -> int:
        """The place of an output or condition; raises ConfigError for a name that there is not."""
        if head not in self.names:
            raise ConfigError(
                f"the reward model has no output called {head!r}",
                expected=f"one of {', '.join(self.names)}",
                remedy="name one of those, or leave the name out" + ("" if self.conditions else " to take their mix"),
            )
        return self.names.index(head)


# ---------------------------------------------------------------- rewards to losses

Parameters = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class OrderedPairs:
    """All pairs of a batch: winner and loser by branch, the tree of each, and its share of the tree.

    Two trees of 2 and 3 branches: winner=[0, 2, 2, 3], loser=[1, 3, 4, 4], tree=[0, 1, 1, 1], share=[1, 1/3, 1/3, 1/3].
    """

    winner: Tensor
    loser: Tensor
    tree: Tensor
    share: Tensor

    @classmethod
    def of(cls, batch: Batch, like: Tensor) -> OrderedPairs:
        winner, loser, tree, share = [], [], [], []
        first = 0
        for index, size in enumerate(branches_per_tree(batch)):
            pairs = torch.combinations(torch.arange(first, first + size), 2)
            winner.append(pairs[:, 0])
            loser.append(pairs[:, 1])
            tree.append(torch.full((len(pairs),), index))
            share.append(torch.full((len(pairs),), 1 / max(len(pairs), 1), dtype=like.dtype))
            first += size
        joined = (torch.cat(part).to(like.device) for part in (winner, loser, tree, share))
        return cls(*joined)

    def per_tree(self, values: Tensor, trees: int) -> Tensor:
        """The mean over each tree's pairs, [P]."""
        return values.new_zeros(trees).index_add(0, self.tree, values * self.share)


def branches_per_tree(batch: Batch) -> list[int]:
    return torch.bincount(batch.tree_B, minlength=batch.num_trees).tolist()


def bradley_terry(reward_B: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    """-log sigma(r_w - r_l - m), [P]; smoothed over the two labels, plus the centring term. Source: see the table."""
    pairs = OrderedPairs.of(batch, reward_B)
    ahead = reward_B[pairs.winner] - reward_B[pairs.loser]
    if parameters["margin_scale"]:
        ahead = ahead - parameters["margin_scale"] * _margins(batch)[pairs.tree].to(ahead)
    smoothing = parameters["label_smoothing"]
    loss = -(1 - smoothing) * F.logsigmoid(ahead) - smoothing * F.logsigmoid(-ahead)
    return pairs.per_tree(loss, batch.num_trees) + parameters["centre"] * centring(reward_B, batch)


def plackett_luce(reward_B: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    """-log P(ranking) = sum_k [logsumexp(r_k, ..., r_K) - r_k], [P]; for two responses, Bradley-Terry."""
    lists = reward_B.split(branches_per_tree(batch))
    remaining = [torch.logcumsumexp(rewards.flip(0), 0).flip(0) for rewards in lists]
    loss = torch.stack([(rest - own).sum() for rest, own in zip(remaining, lists, strict=True)])
    return loss + parameters["centre"] * centring(reward_B, batch)


def regression(reward_B: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    """(r - s)^2 of every response, [B]."""
    return (reward_B - _annotated(batch).to(reward_B)).square()


def centring(reward_B: Tensor, batch: Batch) -> Tensor:
    """(r_w + r_l)^2, the mean over each tree's pairs, [P]: holds the rewards around 0, which no pair does by itself."""
    pairs = OrderedPairs.of(batch, reward_B)
    return pairs.per_tree((reward_B[pairs.winner] + reward_B[pairs.loser]).square(), batch.num_trees)


def _margins(batch: Batch) -> Tensor:
    if batch.margin_P is None:
        raise ConfigError(
            "the objective uses annotated margins and the data has none",
            where=batch.rows[0],
            expected="a `margin` in the rows, or two `scores`, whose difference is the margin",
            remedy="add margins, or leave `margin_scale` at 0",
        )
    return batch.margin_P


def _annotated(batch: Batch) -> Tensor:
    missing = batch.scores_B is None or bool(torch.isnan(batch.scores_B).any())
    if batch.scores_B is None or missing:
        raise ConfigError(
            "regression needs a score for every response, and a row has none",
            where=batch.rows[0],
            expected="`scores` in every row, one for each response",
            remedy="add scores, or use `objective: bradley_terry`, which needs only the order",
        )
    return batch.scores_B


@dataclass(frozen=True, slots=True)
class Objective:
    """Objective(bradley_terry, {"centre": 0.0, ...}, "Bradley and Terry 1952 ...")"""

    loss: Callable[[Tensor, Batch, Parameters], Tensor]
    defaults: Mapping[str, float]
    source: str
    per: Literal["trees", "branches"] = "trees"
    """What the loss has a value for, and is a mean over: pairs and lists, or responses."""


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "bradley_terry": Objective(
            bradley_terry,
            {"margin_scale": 0.0, "label_smoothing": 0.0, "centre": 0.0},
            "Bradley and Terry 1952 as in Ouyang et al. 2022, arXiv:2203.02155, Eq. 1; margin: Touvron et al. 2023 "
            "(Llama 2), arXiv:2307.09288, Eq. 2; centring: Eisenstein et al. 2023, arXiv:2312.09244, Eq. 2",
        ),
        "plackett_luce": Objective(
            plackett_luce,
            {"centre": 0.0},
            "Plackett 1975 and Luce 1959; as a loss over a ranked list: Xia et al. 2008 (ListMLE)",
        ),
        "regression": Objective(
            regression,
            {},
            "Squared error to annotated scores: Wang et al. 2024 (HelpSteer2), arXiv:2406.08673",
            per="branches",
        ),
    }
)

PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "margin_scale": Parameter("reward per unit of annotated margin", at_least=0.0),
        "label_smoothing": Parameter("share of labels believed to be flipped", at_least=0.0, below=0.5),
        "centre": Parameter("weight of (r_w + r_l)^2, which holds the rewards around 0", at_least=0.0),
    }
)


def resolve_parameters(name: str, given: Parameters) -> dict[str, float]:
    """The objective's defaults with `given` over them, all checked."""
    owners = {key: [n for n, row in OBJECTIVES.items() if key in row.defaults] for key in PARAMETERS}
    return resolve(given, OBJECTIVES[name].defaults, PARAMETERS, where=name, owners=owners)


def reward_loss(
    name: str, parameters: Parameters, rule: RewardRule, scores: Scores, batch: Batch, denominator: Count
) -> LossOutput:
    """Mean over the *step's* pairs (or responses) of the objective's loss.

    Args:
        name: a row of `OBJECTIVES`.
        scores: of the batch's B branches, [B, H].
        denominator: count of the whole step, over all micro-batches and ranks.

    Returns:
        loss, metrics, and per tree `rewards_chosen` (of the best response), `rewards_rejected` (the mean of the
        others), `tokens_chosen` and `tokens_rejected`; per branch `reward`.

    Raises:
        ConfigError: a parameter is out of range; the margins or scores that the objective needs are missing.
        DataError: a row of a file that no attribute or group has.
    """
    row, parameters = OBJECTIVES[name], resolve_parameters(name, parameters)
    scores_BH = scores.scores_BH
    tokens_B = response_tokens(batch).to(scores_BH)
    divisor = denominator.trees if row.per == "trees" else denominator.branches
    if rule.is_ensemble:
        members = [rule.corrected(member_B, tokens_B) for member_B in scores_BH.unbind(1)]
        losses = torch.stack([row.loss(member_B, batch, parameters) for member_B in members]).mean(0)
        reward_B = rule.corrected(rule.mixed(scores_BH), tokens_B)
    else:
        reward_B = rule.corrected(_own_output(scores_BH, rule, batch), tokens_B)
        losses = row.loss(reward_B, batch, parameters)
    reward_B = reward_B.detach()
    metrics: dict[str, Metric] = {"loss": Mean(losses.detach().sum(), losses.shape[0])}
    if parameters.get("centre"):
        centred = centring(reward_B, batch)
        metrics["centre_loss"] = Mean(centred.sum(), centred.shape[0])
    if row.per == "branches":
        metrics["regression_error"] = Mean((reward_B - _annotated(batch).to(reward_B)).abs().sum(), len(reward_B))
    per_tree = _sides(reward_B, tokens_B, batch)
    metrics |= _reward_metrics(reward_B, per_tree, batch)
    if row.per == "branches":
        del metrics["reward_confidence"]  # fitted to scores, sigmoid(margin) is no probability
    return LossOutput(
        loss=over_denominator(losses.sum(), divisor),
        metrics=metrics,
        per_tree=per_tree,
        per_branch={"reward": reward_B},
    )


def response_tokens(batch: Batch) -> Tensor:
    """Length of each response in tokens, [B]."""
    return torch.bincount(batch.branch_N, minlength=batch.num_branches)


def _own_output(scores_BH: Tensor, rule: RewardRule, batch: Batch) -> Tensor:
    """The output that each response trains, [B]."""
    if len(rule.heads) == 1:
        return scores_BH[:, 0]
    head_P = torch.tensor([rule.file_of(ref) for ref in batch.rows], device=scores_BH.device)
    return scores_BH.gather(1, head_P[batch.tree_B][:, None])[:, 0]


def _sides(reward_B: Tensor, tokens_B: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Of each tree: its best response, and the mean of the others (of a pair, the rejected one)."""
    sizes = branches_per_tree(batch)

    def split(values_B: Tensor) -> tuple[Tensor, Tensor]:
        trees = values_B.split(sizes)
        return torch.stack([tree[0] for tree in trees]), torch.stack([_mean(tree[1:]) for tree in trees])

    chosen, rejected = zip(split(reward_B), split(tokens_B), strict=True)
    return {
        "rewards_chosen": chosen[0],
        "rewards_rejected": rejected[0],
        "tokens_chosen": chosen[1],
        "tokens_rejected": rejected[1],
    }


def _mean(values: Tensor) -> Tensor:
    return values.mean() if len(values) else values.new_tensor(float("nan"))


def _reward_metrics(reward_B: Tensor, per_tree: Mapping[str, Tensor], batch: Batch) -> dict[str, Metric]:
    pairs, trees = OrderedPairs.of(batch, reward_B), batch.num_trees
    ahead = reward_B[pairs.winner] - reward_B[pairs.loser]
    correct_P = pairs.per_tree((torch.sign(ahead) + 1) / 2, trees)  # a tie counts half
    mean = reward_B.mean()
    metrics: dict[str, Metric] = {
        name: Mean(per_tree[name].sum(), trees) for name in ("rewards_chosen", "rewards_rejected")
    }
    return metrics | {
        "reward_margin": Mean(pairs.per_tree(ahead, trees).sum(), trees),
        "reward_accuracy": Mean(correct_P.sum(), trees),
        "reward_confidence": Mean(pairs.per_tree(torch.sigmoid(ahead.abs()), trees).sum(), trees),
        "reward_mean": Mean(reward_B.sum(), len(reward_B)),
        "reward_std": Deviation(len(reward_B), mean, (reward_B - mean).square().sum()),
        "length_chosen": Mean(per_tree["tokens_chosen"].sum(), trees),
        "length_rejected": Mean(per_tree["tokens_rejected"].sum(), trees),
        "supervised_tokens": Total(batch.count.tokens),
        "supervised_share": Mean(batch.count.tokens, batch.input_ids_T.shape[0]),
    }


def fit_normalisation(rewards: Sequence[float]) -> tuple[float, float]:
    """(scale, shift) that give these rewards mean 0 and standard deviation 1.

    Raises:
        ConfigError: fewer than two rewards, or all the same.
    """
    values = torch.tensor(list(rewards), dtype=torch.float64)
    spread = float(values.std(correction=0)) if len(values) > 1 else 0.0
    if spread == 0.0:
        raise ConfigError(
            "whitening needs held-out rewards that differ",
            where="normalise",
            found=f"{len(values)} rewards, all the same" if len(values) else "no held-out rows",
            remedy="hold rows out (`held_out: 0.05`), or set `normalise: {kind: none}`",
        )
    return 1.0 / spread, float(values.mean())
