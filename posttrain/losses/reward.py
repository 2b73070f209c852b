"""Losses of reward models on ordered or scored responses.

    loss = mean over the step of OBJECTIVES[name].loss(reward_B, batch, parameters)

`posttrain.losses.reward_rule` makes reward_B of the head's outputs.

To add an objective, write one small function and add a row to `OBJECTIVES`; recipes and docs read the table.

Notation as in `posttrain.types`: B branches (responses), P trees (pairs or lists), H outputs of the head; w the better,
l the worse response of a pair. A tree's branches stand best first.

Deviations from the papers
 1. A list of K responses under `bradley_terry` is all of its K (K - 1) / 2 pairs, averaged within the list, as in
    InstructGPT (Ouyang et al. 2022, Eq. 1), so that a long list weighs no more than a pair. Two responses of a list
    that were scored alike are not a pair; `plackett_luce` refuses such a list, which has no one order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from posttrain.errors import ConfigError
from posttrain.lazy_torch import F, torch
from posttrain.losses.parameters import Parameter, resolve
from posttrain.losses.reduce import loss_mean, over_denominator
from posttrain.losses.responses import Pairs, refuse_ties
from posttrain.losses.reward_rule import RewardRule
from posttrain.outputs import Deviation, LossOutput, Mean, Metric, Scores, Total
from posttrain.types import Batch, Count

if TYPE_CHECKING:
    from torch import Tensor

# ---------------------------------------------------------------- rewards to losses

Parameters = Mapping[str, float]


def branches_per_tree(batch: Batch) -> list[int]:
    return torch.bincount(batch.tree_B, minlength=batch.num_trees).tolist()


def bradley_terry(reward_B: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    """-log sigma(r_w - r_l - m), [P]; smoothed over the two labels, plus the centring term. Source: see the table."""
    pairs = Pairs.of(batch, reward_B)
    better_Q, worse_Q = pairs.sides(reward_B)
    ahead = better_Q - worse_Q
    if parameters["margin_scale"]:
        ahead = ahead - parameters["margin_scale"] * _margins(batch).to(ahead)[pairs.tree_Q]
    smoothing = parameters["label_smoothing"]
    loss = -(1 - smoothing) * F.logsigmoid(ahead) - smoothing * F.logsigmoid(-ahead)
    return pairs.per_tree(loss, batch.num_trees) + parameters["centre"] * centring(reward_B, batch)


def plackett_luce(reward_B: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    """-log P(ranking) = sum_k [logsumexp(r_k, ..., r_K) - r_k], [P]; for two responses, Bradley-Terry.

    Raises:
        DataError: a list whose scores have ties.
    """
    refuse_ties(batch, "plackett_luce", "bradley_terry")
    lists = reward_B.split(branches_per_tree(batch))
    # At rank k the candidates are k and all worse ones: a log-sum-exp from the end of the list.
    remaining = [torch.logcumsumexp(rewards.flip(0), 0).flip(0) for rewards in lists]
    loss = torch.stack([(rest - own).sum() for rest, own in zip(remaining, lists, strict=True)])
    return loss + parameters["centre"] * centring(reward_B, batch)


def regression(reward_B: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    """(r - s)^2 of every response, [B]."""
    return (reward_B - _annotated(batch).to(reward_B)).square()


def centring(reward_B: Tensor, batch: Batch) -> Tensor:
    """(r_w + r_l)^2, the mean over each tree's pairs, [P]: holds the rewards around 0, which no pair does by itself."""
    pairs = Pairs.of(batch, reward_B)
    better_Q, worse_Q = pairs.sides(reward_B)
    # Comparisons fix differences only; without it the rewards of two runs may differ by any constant.
    return pairs.per_tree((better_Q + worse_Q).square(), batch.num_trees)


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

    def resolve(self, given: Parameters, *, where: str = "reward objective") -> dict[str, float]:
        """The row's defaults with `given` over them, all checked: what `reward_loss` takes.

        OBJECTIVES["plackett_luce"].resolve({}) == {"centre": 0.0}

        Raises:
            UnknownKeyError: a parameter that the row does not have; says which rows do, and the nearest name.
            ConfigError: a value out of range.
        """
        return resolve(given, self.defaults, PARAMETERS, where=where, owners=owners())


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


def owners() -> dict[str, list[str]]:
    """Which objectives have a parameter: owners()["margin_scale"] == ["bradley_terry"]."""
    return {key: [name for name, row in OBJECTIVES.items() if key in row.defaults] for key in PARAMETERS}


def reward_loss(
    name: str, parameters: Parameters, rule: RewardRule, scores: Scores, batch: Batch, denominator: Count
) -> LossOutput:
    """Mean over the *step's* pairs (or responses) of the objective's loss.

    Args:
        name: a row of `OBJECTIVES`.
        parameters: all of the row's, as its `resolve` gives them; they are not checked again here.
        scores: of the batch's B branches, [B, H].
        denominator: count of the whole step, over all micro-batches and ranks.

    Returns:
        loss, metrics, and per tree `rewards_chosen` (of the best response), `rewards_rejected` (the mean of the
        others), `tokens_chosen` and `tokens_rejected`; per branch `reward`.

    Raises:
        ConfigError: the margins or scores that the objective needs are missing.
        DataError: a row of a file that no attribute or group has; a list with ties under `plackett_luce`.
    """
    row, scores_BH = OBJECTIVES[name], scores.scores_BH
    tokens_B = response_tokens(batch).to(scores_BH)
    divisor = denominator.trees if row.per == "trees" else denominator.branches
    if rule.is_ensemble:
        # A loss for each member: trained on their mean, they would agree by construction, and their spread would
        # measure nothing.
        members = [rule.corrected(member_B, tokens_B) for member_B in scores_BH.unbind(1)]
        losses = torch.stack([row.loss(member_B, batch, parameters) for member_B in members]).mean(0)
        reward_B = rule.corrected(rule.mixed(scores_BH), tokens_B)
    else:
        reward_B = rule.corrected(_own_output(scores_BH, rule, batch), tokens_B)
        losses = row.loss(reward_B, batch, parameters)
    reward_B = reward_B.detach()
    metrics: dict[str, Metric] = {"loss": loss_mean(losses.sum(), losses.shape[0])}
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
    pairs, trees = Pairs.of(batch, reward_B), batch.num_trees
    better_Q, worse_Q = pairs.sides(reward_B)
    ahead = better_Q - worse_Q
    correct_P = pairs.per_tree((torch.sign(ahead) + 1) / 2, trees)  # equal rewards count half
    compared = int(pairs.tree_Q.unique().numel())  # single responses and lists of ties are no pair
    mean = reward_B.mean()
    metrics: dict[str, Metric] = {
        name: Mean(per_tree[name].sum(), trees) for name in ("rewards_chosen", "rewards_rejected")
    }
    return metrics | {
        "reward_margin": Mean(pairs.per_tree(ahead, trees).sum(), compared),
        "reward_accuracy": Mean(correct_P.sum(), compared),
        "reward_confidence": Mean(pairs.per_tree(torch.sigmoid(ahead.abs()), trees).sum(), compared),
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
