"""From the outputs of a reward model's head to one reward for each response.

    scores_BH = the head's outputs                     one row per response, one column per output
    reward_B  = RewardRule.rewards(scores_BH, ...)     outputs combined, corrected for length

Notation as in `posttrain.types`: B branches (responses), S steps, H outputs of the head, M members of an ensemble.

Deviations from the papers
 1. `length.penalty` is taken from the score and not added to the loss: |length - target| does not depend on the model,
    and as a term of the loss it would change no gradient. It is applied when responses are scored, not in training,
    where the model would learn to give it back.
 2. Product aggregation adds log sigmoid of the steps' scores: the log of the product of their probabilities, which
    orders responses as the product does and does not underflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from posttrain.errors import ConfigError, DataError
from posttrain.lazy_torch import F, torch
from posttrain.types import RowRef

if TYPE_CHECKING:
    from torch import Tensor

Combine = Literal["mean", "worst", "mean_minus_std"]
Pooling = Literal["last", "mean", "steps"]
StepRule = Literal["min", "last", "product"]


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
    # The population's deviation: one member alone has 0, where n - 1 would give NaN.
    return scores.mean(dim=-1) - std_weight * scores.std(dim=-1, correction=0)


def aggregate_steps(steps_SH: Tensor, branch_S: Tensor, branches: int, how: StepRule) -> Tensor:
    """Scores of steps to scores of responses: [S, H] in, [B, H] out; every branch has at least one step.

    `min` and `product`: Lightman et al. 2023, arXiv:2305.20050. See deviation 2 for the product.
    """
    index_SH = branch_S[:, None].expand_as(steps_SH)
    out_BH = steps_SH.new_zeros(branches, steps_SH.shape[1])
    if how == "product":
        return out_BH.scatter_add(0, index_SH, F.logsigmoid(steps_SH))
    if how == "min":
        # Without `include_self`: the zeros that it starts from would be the least of positive scores.
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
            # By the path and by the bare name: rows say data/helpful.jsonl where a recipe writes helpful*.
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
        # A condition has no output of its own: it was named in the prompt, and the mix below is already its reward.
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
        # Only here, never in training (deviation 1).
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
