"""Credit assignment: rewards in, advantages out; pure functions on tensors.

    advantages("group_std", Rollout(rewards_B, group_B, mask_BL)) -> Advantages(values_BL, ...)

Two levels. A *group* rule looks at whole responses, and every token of a response gets its number (`group_advantages`):

    group_std               (r - mean of the group) / std of the group                                          GRPO
    group_centre            r - mean of the group                                                           Dr. GRPO
    leave_one_out           r - mean of the group's others                                                      RLOO
    maxrl                   (r - mean of the group) / mean of the group; r is 0 or 1                           MaxRL
    group_centre_batch_std  r - mean of the group, then whitened over the batch                 REINFORCE++-baseline

A *token* rule looks at rewards per token, the score on the last sampled one, and KL terms, if any, on all of them:

    batch_whiten            the reward to come, whitened over the batch's tokens                         REINFORCE++
    gae                     generalised advantage estimation with a value model, whitened                        PPO
    teacher                 log teacher - log policy of each token                            on-policy distillation

Suffixes: B responses, G groups, L tokens of a response in padded rows, whose `mask_BL` is True where a token trains.
What stands at a masked place (NaN, 1e9) changes nothing.

Deviations, and what the papers leave open
 1. A group of equal rewards has advantage 0, not rounding noise over rounding noise: seven times 0.3 in fp32 have a
    standard deviation of 3e-8. Rewards count as equal within `TIE` of the largest. Sums run in fp64.
 2. GRPO's paper does not say which standard deviation; this is the sample's (n - 1), as in TRL and verl.
 3. A reward that is NaN was not given (the scorer abstained, or the completion was aborted): the response is in no
    mean, and has advantage 0. A group of which fewer than two rewards are left has no signal. An empty response that
    was scored stays in its group's mean, and has no token to train.
 4. Whitening takes the population's standard deviation over all tokens of the rollout, as the REINFORCE++ authors'
    code (OpenRLHF) does; `group_centre_batch_std` over responses that weigh as much as they have tokens: the same.
 5. RLOO's KL is in the reward, so that a group of equal rewards still has a gradient. `zero_signal_G`, mean and
    deviation are those of the rewards as they were given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from posttrain.errors import ConfigError, unknown

# Relative: an absolute bound would call small rewards equal and miss the rounding of large ones.
TIE = 1e-6
"""Rewards that differ by less than this share of the largest are equal: a few roundings of fp32."""
EPSILON = 1e-6
"""Added to a standard deviation that divides."""


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """One number for each response, and what is known of its group.

    GroupAdvantages(values_B=[0.75, 0.0, -0.75], counted_B=[T, T, T], zero_signal_G=[F], mean_G=[0.5], std_G=[0.5])
    """

    values_B: Tensor
    """0 for a response without a reward."""
    counted_B: Tensor
    """bool: the response has a reward."""
    zero_signal_G: Tensor
    """bool: rewards that are all equal, or fewer than two of them; nothing can be learned from the group."""
    mean_G: Tensor
    """Mean reward, NaN for a group without any."""
    std_G: Tensor
    """The sample's standard deviation, NaN for a group of fewer than two rewards."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What was sampled and scored, in padded rows.

    Rollout(rewards_B=[1.0, 0.0], group_B=[0, 0], mask_BL=[[T, T, F], [T, T, T]])
    """

    rewards_B: Tensor
    """NaN where nobody gave one."""
    group_B: Tensor
    """The prompt of each response, from 0."""
    mask_BL: Tensor
    """bool: this token was sampled and trains; it may have holes, where a tool speaks."""
    kl_BL: Tensor | None = None
    """What a KL in the reward charges each token: an estimate of KL(policy || reference), such as k1."""
    values_BL: Tensor | None = None
    """V of each state, before its token; `gae` needs it."""
    teacher_ratio_BL: Tensor | None = None
    """log teacher - log policy of each token; `teacher` needs it."""
    charged_BL: Tensor | None = None
    """bool: a group rule takes the KL of this token from its response's reward, also where it does not train, as in a
    response that was cut and is dropped; None: where `mask_BL` is True."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """Advantages(values_BL=[[0.7, 0.7, 0.0], [-0.7, -0.7, -0.7]], returns_BL=None, groups=GroupAdvantages(...))."""

    values_BL: Tensor
    """0 at masked places."""
    returns_BL: Tensor | None
    """What a value model learns to predict; only `gae` has it."""
    groups: GroupAdvantages
    """What the rewards say of the groups; of a token rule, `values_B` are the rewards around their group's mean."""


# ---------------------------------------------------------------- rewards


def reward_tensor(rewards: Sequence[float | None], aborted: Sequence[bool] | None = None) -> Tensor:
    """Rewards [B] in fp64, NaN where the scorer abstained (None or NaN) or the completion was aborted.

    Raises:
        ValueError: an infinite reward.
    """
    values = torch.tensor(
        [float("nan") if reward is None else float(reward) for reward in rewards], dtype=torch.float64
    )
    _require_finite(values)
    return values if aborted is None else values.masked_fill(torch.tensor(aborted, dtype=torch.bool), float("nan"))


def soft_overlong(lengths_B: Tensor, max_length: int, buffer: int) -> Tensor:
    """What a long response loses: 0 up to max_length - buffer, falling in a line to -1 at max_length, -1 beyond.

    Added to the reward. DAPO, Yu et al. 2025, arXiv:2503.14476, Eq. 13 (L_max and L_cache).

    Raises:
        ConfigError: the buffer is not between 1 and `max_length`.
    """
    if not 1 <= buffer <= max_length:
        raise ConfigError(
            "the buffer of the overlong penalty does not fit the limit",
            where="soft_overlong",
            found=f"buffer {buffer} of {max_length} tokens",
            expected="1 or more, and at most the limit",
            remedy="a fifth of the limit is DAPO's",
        )
    return ((max_length - buffer - lengths_B.to(torch.float64)) / buffer).clamp(-1.0, 0.0)


def token_rewards(scores_B: Tensor, mask_BL: Tensor, kl_BL: Tensor | None = None, kl_beta: float = 0.0) -> Tensor:
    """Rewards per token [B, L]: -kl_beta * kl everywhere, and the score on the last sampled token.

    Ziegler et al. 2019, arXiv:1909.08593, Sec. 2 (the KL-shaped reward); Ouyang et al. 2022, arXiv:2203.02155. A
    response without a sampled token has no place for its score.

    Raises:
        ValueError: a response that trains has no score; leave it out of the step.
    """
    # Filled with 0, a missing score would train the response as if it had been judged.
    trains_B = mask_BL.any(dim=1)
    if bool((trains_B & scores_B.isnan()).any()):
        raise ValueError("a response without a score has tokens that train: mask them, or leave it out")
    rewards_BL = torch.zeros(mask_BL.shape, dtype=_wide(scores_B), device=mask_BL.device)
    if kl_BL is not None:
        rewards_BL = torch.where(mask_BL, -kl_beta * kl_BL.to(rewards_BL), rewards_BL)
    # A response that does not train at all has its "last" token at 0; its score, perhaps NaN, must not get there.
    last_B = last_sampled(mask_BL)
    scores_B = torch.where(trains_B, scores_B.to(rewards_BL), torch.zeros_like(scores_B).to(rewards_BL))
    return rewards_BL.scatter_add(1, last_B[:, None], scores_B[:, None]) if mask_BL.shape[1] else rewards_BL


def last_sampled(mask_BL: Tensor) -> Tensor:
    """Index in L of each row's last True, [B]; 0 for a row without any."""
    places_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    return torch.where(mask_BL, places_L, 0).amax(dim=1) if mask_BL.shape[1] else mask_BL.new_zeros(len(mask_BL)).long()


# ---------------------------------------------------------------- token rules


def gae(
    rewards_BL: Tensor, values_BL: Tensor, mask_BL: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (advantages [B, L], returns [B, L]), both 0 at masked places.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return_t = A_t + V_t, where t + 1 is the
    row's next sampled token, and V is 0 after its last. Schulman et al. 2015, arXiv:1506.02438, Eq. 11 to 16.

    gae([[0, 1, 0]], [[0, 0, 100]], [[T, T, F]]) is ([[0.95, 1.0, 0]], [[0.95, 1.0, 0]]).
    """
    wide = torch.promote_types(_wide(rewards_BL), _wide(values_BL))
    # `where`, not a product with the mask: 0 * NaN is NaN.
    rewards_BL = torch.where(mask_BL, rewards_BL.to(wide), 0.0)
    values_BL = torch.where(mask_BL, values_BL.to(wide), 0.0)
    next_value_B = next_advantage_B = rewards_BL.new_zeros(rewards_BL.shape[0])
    columns: list[Tensor] = []
    for place in reversed(range(rewards_BL.shape[1])):
        here_B = mask_BL[:, place]
        value_B = values_BL[:, place]
        delta_B = rewards_BL[:, place] + gamma * next_value_B - value_B
        advantage_B = delta_B + gamma * lam * next_advantage_B
        # A masked place is passed over, not stepped through: a tool's words cost neither a discount nor a value.
        columns.append(torch.where(here_B, advantage_B, 0.0))
        next_advantage_B = torch.where(here_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(here_B, value_B, next_value_B)
    advantages_BL = torch.stack(columns[::-1], dim=1) if columns else rewards_BL
    return advantages_BL, advantages_BL + values_BL


def rewards_to_come(rewards_BL: Tensor, mask_BL: Tensor, gamma: float = 1.0) -> Tensor:
    """sum_{s >= t} gamma^(s - t) r_s over sampled tokens [B, L], 0 at masked places."""
    return gae(rewards_BL, torch.zeros_like(rewards_BL), mask_BL, gamma, 1.0)[0]


def whitened(values_BL: Tensor, mask_BL: Tensor, epsilon: float = EPSILON) -> Tensor:
    """(x - mean) / (std + epsilon) over the places of the whole batch that train; 0 elsewhere, and if all are equal."""
    inside_BL = torch.where(mask_BL, values_BL, 0.0)
    flat = _whiten(inside_BL.flatten(), mask_BL.flatten().to(torch.float64), epsilon)
    return torch.where(mask_BL, flat.view_as(inside_BL).to(inside_BL), 0.0)


# ---------------------------------------------------------------- group rules


@dataclass(frozen=True, slots=True)
class _Groups:
    """The rewards of a batch in fp64, 0 where there is none, and sums over their groups."""

    reward_B: Tensor
    counted_B: Tensor
    group_B: Tensor
    weight_B: Tensor
    """What a response weighs in a mean over the batch: its tokens, or 1."""
    groups: int

    def sums(self, values_B: Tensor) -> Tensor:
        # A response without a reward is in no mean: its 0 is a placeholder, and is not counted.
        return values_B.new_zeros(self.groups).index_add(0, self.group_B, values_B * self.counted_B)

    @property
    def count_G(self) -> Tensor:
        return self.sums(torch.ones_like(self.reward_B))

    @property
    def mean_G(self) -> Tensor:
        return self.sums(self.reward_B) / self.count_G.clamp(min=1)

    @property
    def centred_B(self) -> Tensor:
        return self.reward_B - self.mean_G[self.group_B]

    @property
    def std_G(self) -> Tensor:
        return (self.sums(self.centred_B.square()) / (self.count_G - 1).clamp(min=1)).sqrt()

    @property
    def tied_G(self) -> Tensor:
        """Fewer than two rewards, or all of them equal."""
        # Compared, not measured by the deviation: that of seven times 0.3 is rounding noise and not 0.
        nothing_G = self.reward_B.new_full((self.groups,), torch.inf)
        kept_B = torch.where(self.counted_B, self.reward_B, torch.inf)
        lowest_G = nothing_G.scatter_reduce(0, self.group_B, kept_B, "amin")
        highest_G = -nothing_G.scatter_reduce(
            0, self.group_B, torch.where(self.counted_B, -self.reward_B, torch.inf), "amin"
        )
        largest_G = torch.maximum(lowest_G.abs(), highest_G.abs())
        return (self.count_G < 2) | (highest_G - lowest_G <= TIE * largest_G)


def _group_std(groups: _Groups, epsilon: float) -> Tensor:
    return groups.centred_B / (groups.std_G + epsilon)[groups.group_B]


def _group_centre(groups: _Groups, epsilon: float) -> Tensor:
    return groups.centred_B


def _leave_one_out(groups: _Groups, epsilon: float) -> Tensor:
    """r - (sum - r) / (n - 1) = n / (n - 1) * (r - mean)."""
    count_G = groups.count_G
    return groups.centred_B * (count_G / (count_G - 1).clamp(min=1))[groups.group_B]


def _maxrl(groups: _Groups, epsilon: float) -> Tensor:
    reward_B = groups.reward_B
    if not bool(((reward_B == 0) | (reward_B == 1)).all()):
        raise ConfigError(
            "maxrl is defined for answers that are right (1) or wrong (0)",
            where="advantages",
            found=f"a reward of {float(reward_B[(reward_B != 0) & (reward_B != 1)][0]):g}",
            remedy="give a reward of 0 or 1, or use grpo, dr_grpo or rloo",
        )
    # A group without a right answer has nothing to divide: its centred rewards are 0 already.
    mean_G = groups.mean_G
    return groups.centred_B / torch.where(mean_G > 0, mean_G, 1.0)[groups.group_B]


def _group_centre_batch_std(groups: _Groups, epsilon: float) -> Tensor:
    return _whiten(groups.centred_B, groups.weight_B, epsilon)


GROUP_RULES: Mapping[str, Callable[[_Groups, float], Tensor]] = MappingProxyType(
    {
        "group_std": _group_std,
        "group_centre": _group_centre,
        "leave_one_out": _leave_one_out,
        "maxrl": _maxrl,
        "group_centre_batch_std": _group_centre_batch_std,
    }
)
TOKEN_RULES = ("batch_whiten", "gae", "teacher")
ADVANTAGES = (*GROUP_RULES, *TOKEN_RULES)
"""Every way to turn rewards into advantages, by name."""


def group_advantages(
    kind: str, rewards_B: Tensor, group_B: Tensor, *, tokens_B: Tensor | None = None, epsilon: float = EPSILON
) -> GroupAdvantages:
    """One advantage for each response, by a rule of `GROUP_RULES`.

    Args:
        rewards_B: NaN where nobody gave one.
        group_B: the prompt of each response, from 0.
        tokens_B: what each response weighs in a mean over the batch; None: 1. Only `group_centre_batch_std` asks.

    Raises:
        UnknownKeyError: no such rule.
        ConfigError: a group of one response, which has nothing to be compared with; maxrl with other rewards than 0, 1.
        ValueError: an infinite reward.
    """
    if kind not in GROUP_RULES:
        raise unknown("advantage", kind, GROUP_RULES, found=kind)
    groups = _groups(rewards_B, group_B, tokens_B)
    require_groups(kind, group_B)
    tied_G = groups.tied_G
    values_B = GROUP_RULES[kind](groups, epsilon)
    # Whitening moves tied groups off 0 as well; only a batch-wide rule means to.
    silent_B = ~groups.counted_B if kind == "group_centre_batch_std" else ~groups.counted_B | tied_G[groups.group_B]
    return _described(values_B.masked_fill(silent_B, 0.0), groups, tied_G, rewards_B)


def require_groups(kind: str, group_B: Tensor) -> None:
    """Refuse groups of one under a rule that compares the responses of a group. Raises ConfigError."""
    if kind in GROUP_RULES and bool((torch.bincount(group_B) == 1).any()):
        raise ConfigError(
            f"`{kind}` compares the completions of a prompt with each other, and a group of 1 has no other",
            where="completions_per_prompt",
            found="1 completion of a prompt",
            expected="at least 2",
            example="completions_per_prompt: 8",
            remedy="raise completions_per_prompt, or use reinforce_pp or ppo, which need no group",
        )


# ---------------------------------------------------------------- by name


def advantages(
    kind: str,
    rollout: Rollout,
    *,
    kl_beta: float = 0.0,
    gamma: float = 1.0,
    lam: float = 0.95,
    epsilon: float = EPSILON,
) -> Advantages:
    """Advantages of a whole rollout, by any rule of `ADVANTAGES`; whitening is over all of it.

    With `rollout.kl_BL`, a KL is charged in the reward: per token by the token rules, summed over the response and
    taken from its reward by the group rules (as in RLOO, Ahmadian et al. 2024, arXiv:2402.14740).

    Raises:
        UnknownKeyError: no such rule.
        ConfigError: a group of one where the rule compares; values or a teacher missing.
        ValueError: an infinite reward, or, under a token rule, a response that trains without a reward.
    """
    rewards_B, mask_BL = rollout.rewards_B, rollout.mask_BL
    tokens_B = mask_BL.sum(dim=1)
    # A group rule compares whole responses, so a KL in the reward is charged as one sum per response.
    if kind in GROUP_RULES:
        if rollout.kl_BL is not None:
            charged_BL = mask_BL if rollout.charged_BL is None else rollout.charged_BL
            rewards_B = rewards_B.double() - kl_beta * torch.where(charged_BL, rollout.kl_BL, 0.0).sum(dim=1)
        groups = group_advantages(kind, rewards_B, rollout.group_B, tokens_B=tokens_B, epsilon=epsilon)
        # What is reported of the groups is about the rewards as given, before the KL was taken from them (deviation 5).
        raw = _groups(rollout.rewards_B, rollout.group_B, None)
        groups = _described(groups.values_B, raw, raw.tied_G, rollout.rewards_B)
        spread_BL = groups.values_B.to(_wide(rollout.rewards_B))[:, None].expand(mask_BL.shape)
        return Advantages(torch.where(mask_BL, spread_BL, 0.0), None, groups)
    if kind not in TOKEN_RULES:
        raise unknown("advantage", kind, ADVANTAGES, found=kind)
    raw = _groups(rewards_B, rollout.group_B, None)
    groups = _described(raw.centred_B.masked_fill(~raw.counted_B, 0.0), raw, raw.tied_G, rewards_B)
    if kind == "teacher":
        return Advantages(torch.where(mask_BL, _needed(rollout.teacher_ratio_BL, kind, "a teacher"), 0.0), None, groups)
    rewards_BL = token_rewards(rewards_B, mask_BL, rollout.kl_BL, kl_beta)
    if kind == "batch_whiten":
        return Advantages(whitened(rewards_to_come(rewards_BL, mask_BL, gamma), mask_BL, epsilon), None, groups)
    values_BL = _needed(rollout.values_BL, kind, "a value model")
    # Only advantages are whitened: the value model predicts returns in units of reward.
    raw_BL, returns_BL = gae(rewards_BL, values_BL, mask_BL, gamma, lam)
    return Advantages(whitened(raw_BL, mask_BL, epsilon), torch.where(mask_BL, returns_BL, 0.0), groups)


# ---------------------------------------------------------------- small parts


def _groups(rewards_B: Tensor, group_B: Tensor, tokens_B: Tensor | None) -> _Groups:
    reward_B = rewards_B.detach().double()
    _require_finite(reward_B)
    counted_B = ~reward_B.isnan()
    # By tokens, since the loss is a mean over tokens: one long response moves a token's mean as far as many short ones.
    weight_B = torch.ones_like(reward_B) if tokens_B is None else tokens_B.to(reward_B)
    count = int(group_B.max()) + 1 if group_B.numel() else 0
    return _Groups(reward_B.masked_fill(~counted_B, 0.0), counted_B, group_B, weight_B * counted_B, count)


def _described(values_B: Tensor, groups: _Groups, tied_G: Tensor, like_B: Tensor) -> GroupAdvantages:
    dtype, count_G, nan = _wide(like_B), groups.count_G, float("nan")
    return GroupAdvantages(
        values_B.to(dtype),
        groups.counted_B,
        tied_G,
        groups.mean_G.masked_fill(count_G < 1, nan).to(dtype),
        groups.std_G.masked_fill(count_G < 2, nan).to(dtype),
    )


def _whiten(values: Tensor, weights: Tensor, epsilon: float) -> Tensor:
    """(x - mean) / (std + epsilon) with weighted mean and std, in fp64; 0 where what has weight is all equal."""
    values = values.double()
    total = weights.sum().clamp(min=1e-30)
    mean = (values * weights).sum() / total
    apart = values - mean
    std = ((apart.square() * weights).sum() / total).sqrt()
    # The deviation of equal values is rounding noise; divided by itself it would become advantages of size 1.
    largest = torch.where(weights > 0, values.abs(), 0.0).amax() if values.numel() else std
    return torch.where(std <= TIE * largest, torch.zeros_like(apart), apart / (std + epsilon))


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _require_finite(rewards_B: Tensor) -> None:
    if bool(rewards_B.isinf().any()):
        place = int(rewards_B.isinf().nonzero()[0])
        raise ValueError(f"the reward of response {place} is {float(rewards_B[place])}: a reward is a finite number")


def _needed(values_BL: Tensor | None, kind: str, what: str) -> Tensor:
    if values_BL is None:
        raise ConfigError(f"`{kind}` needs {what}", where="advantages", remedy="give the rollout its numbers")
    return values_BL
