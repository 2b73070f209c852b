"""Credit assignment by hand: every rule's numbers, who counts, and where rewards stand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.advantages import (
    ADVANTAGES,
    GROUP_RULES,
    Rollout,
    advantages,
    gae,
    group_advantages,
    last_sampled,
    reward_tensor,
    rewards_to_come,
    soft_overlong,
    token_rewards,
    whitened,
)
from posttrain.errors import ConfigError, UnknownKeyError

T, F = True, False
NAN = float("nan")


def of(
    kind: str, rewards: list[float], groups: list[int] | None = None, tokens: list[int] | None = None
) -> list[float]:
    group_B = torch.tensor(groups or [0] * len(rewards))
    tokens_B = None if tokens is None else torch.tensor(tokens)
    rewards_B = torch.tensor(rewards, dtype=torch.float64)
    return group_advantages(kind, rewards_B, group_B, tokens_B=tokens_B, epsilon=0.0).values_B.tolist()


def test_group_std_is_the_samples() -> None:
    # mean 0.5, squares 0.25 + 0 + 0.25 over n - 1 = 2: std 0.5
    assert of("group_std", [1.0, 0.5, 0.0]) == pytest.approx([1.0, 0.0, -1.0])
    # mean 0.5, std sqrt(0.5)
    assert of("group_std", [1.0, 0.0]) == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])
    # groups on their own, in any order
    assert of("group_std", [1.0, 10.0, 0.0, 30.0], [0, 1, 0, 1]) == pytest.approx(
        [math.sqrt(0.5), -math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(0.5)]
    )


def test_group_centre_and_leave_one_out() -> None:
    assert of("group_centre", [1.0, 0.5, 0.0]) == pytest.approx([0.5, 0.0, -0.5])
    assert of("leave_one_out", [4.0, 1.0, 1.0]) == pytest.approx([4 - 1, 1 - 2.5, 1 - 2.5])


def test_maxrl_divides_by_the_pass_rate() -> None:
    assert of("maxrl", [1.0, 0.0, 0.0, 0.0]) == pytest.approx([3.0, -1.0, -1.0, -1.0])
    assert of("maxrl", [0.0, 0.0]) == [0.0, 0.0]
    with pytest.raises(ConfigError, match="right \\(1\\) or wrong \\(0\\)"):
        of("maxrl", [0.5, 0.0])


def test_group_centre_batch_std() -> None:
    # centred: 0.5, -0.5, 1, -1; mean 0, mean square 0.625
    std = math.sqrt(0.625)
    assert of("group_centre_batch_std", [1.0, 0.0, 2.0, 0.0], [0, 0, 1, 1]) == pytest.approx(
        [0.5 / std, -0.5 / std, 1 / std, -1 / std]
    )
    # weighted by tokens 3, 1, 0, 0: mean 0.25, variance (3 * 0.0625 + 0.5625) / 4 = 0.1875
    std = math.sqrt(0.1875)
    assert of("group_centre_batch_std", [1.0, 0.0, 2.0, 0.0], [0, 0, 1, 1], [3, 1, 0, 0])[:2] == pytest.approx(
        [0.25 / std, -0.75 / std]
    )


def test_what_is_known_of_the_groups() -> None:
    rewards_B = reward_tensor([1, 0, 0.7, 0.7, None, 1, None, None])
    found = group_advantages("group_std", rewards_B, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert found.zero_signal_G.tolist() == [F, T, T, T]
    torch.testing.assert_close(found.mean_G, torch.tensor([0.5, 0.7, 1.0, NAN], dtype=torch.float64), equal_nan=True)
    torch.testing.assert_close(
        found.std_G, torch.tensor([math.sqrt(0.5), 0.0, NAN, NAN], dtype=torch.float64), equal_nan=True
    )


def test_a_group_of_one_is_refused_where_a_rule_compares() -> None:
    for kind in GROUP_RULES:
        with pytest.raises(ConfigError, match="at least 2"):
            of(kind, [1.0, 0.0, 1.0], [0, 0, 1])


def test_abstained_rewards_are_in_no_mean() -> None:
    rewards = [1.0, NAN, 0.0, NAN]
    assert of("group_std", rewards)[::2] == pytest.approx(of("group_std", [1.0, 0.0]))
    for kind in GROUP_RULES:
        values = of(kind, rewards)
        assert values[1] == values[3] == 0.0
        assert values[::2] == pytest.approx(of(kind, [1.0, 0.0]))
    found = group_advantages("group_std", torch.tensor(rewards), torch.zeros(4, dtype=torch.long))
    assert found.counted_B.tolist() == [T, F, T, F]
    assert found.mean_G.item() == 0.5


def test_fewer_than_two_rewards_are_no_signal() -> None:
    for kind in GROUP_RULES:
        found = group_advantages(kind, torch.tensor([NAN, 1.0, NAN, NAN]), torch.tensor([0, 0, 1, 1]))
        assert found.values_B.tolist() == [0.0] * 4
        assert found.zero_signal_G.tolist() == [T, T]
        assert found.mean_G.tolist() == [1.0, pytest.approx(NAN, nan_ok=True)]
        assert found.std_G.isnan().all()


def test_rewards_that_were_not_given() -> None:
    found = reward_tensor([1, None, NAN, 0.5], aborted=[F, F, F, T])
    assert found.isnan().tolist() == [F, T, T, T]
    with pytest.raises(ValueError, match="response 1 is -inf"):
        reward_tensor([1, -math.inf])


@pytest.mark.parametrize("kind", GROUP_RULES)
def test_the_order_of_responses_is_nothing_and_fp32_stays_fp32(kind: str) -> None:
    rewards_B = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    group_B = torch.tensor([0, 0, 0, 1, 1, 1])
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    straight = group_advantages(kind, rewards_B, group_B).values_B
    assert straight.dtype == torch.float32
    torch.testing.assert_close(group_advantages(kind, rewards_B[order], group_B[order]).values_B, straight[order])


def test_large_rewards_keep_their_digits() -> None:
    """1e6 + {0, 1} in fp32: the mean's rounding must not decide."""
    rewards_B = torch.tensor([1e4, 1e4 + 1, 1e4, 1e4 + 1])
    found = group_advantages("group_centre", rewards_B, torch.zeros(4, dtype=torch.long))
    assert found.values_B.tolist() == [-0.5, 0.5, -0.5, 0.5]


# ---------------------------------------------------------------- rewards per token


def test_the_score_stands_on_the_last_sampled_token() -> None:
    mask_BL = torch.tensor([[T, T, F], [T, F, T], [F, F, F]])
    assert last_sampled(mask_BL).tolist() == [1, 2, 0]
    found = token_rewards(torch.tensor([2.0, 3.0, 9.0]), mask_BL)
    assert found.tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]


def test_a_kl_is_charged_to_every_sampled_token() -> None:
    mask_BL = torch.tensor([[T, T, F], [T, F, T]])
    kl_BL = torch.tensor([[0.1, 0.2, NAN], [0.3, NAN, -0.1]])
    found = token_rewards(torch.tensor([2.0, 3.0]), mask_BL, kl_BL, kl_beta=0.5)
    torch.testing.assert_close(found, torch.tensor([[-0.05, 1.9, 0.0], [-0.15, 0.0, 3.05]]))


def test_a_response_that_trains_needs_its_score() -> None:
    with pytest.raises(ValueError, match="leave it out"):
        token_rewards(torch.tensor([NAN]), torch.tensor([[T, F]]))
    assert token_rewards(torch.tensor([NAN]), torch.tensor([[F, F]])).tolist() == [[0.0, 0.0]]


def test_soft_overlong_by_hand() -> None:
    # DAPO: 20,480 tokens at most, the last 4,096 of them the buffer
    lengths = torch.tensor([100, 16384, 17408, 20480, 30000])
    assert soft_overlong(lengths, 20480, 4096).tolist() == [0.0, 0.0, -0.25, -1.0, -1.0]
    for buffer in (0, 20481):
        with pytest.raises(ConfigError, match="does not fit"):
            soft_overlong(lengths, 20480, buffer)


# ---------------------------------------------------------------- token rules


def one(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_gae_by_hand() -> None:
    # gamma 0.9, lambda 0.5; V = 1, 2, 3; r = 0, 0, 1
    # delta = 0.9 * 2 - 1 = 0.8, 0.9 * 3 - 2 = 0.7, 1 - 3 = -2
    # A_2 = -2, A_1 = 0.7 - 0.45 * 2 = -0.2, A_0 = 0.8 - 0.45 * 0.2 = 0.71
    found, returns = gae(one([0, 0, 1]), one([1, 2, 3]), torch.tensor([[T, T, T]]), 0.9, 0.5)
    torch.testing.assert_close(found, one([0.71, -0.2, -2.0]))
    torch.testing.assert_close(returns, one([1.71, 1.8, 1.0]))


def test_gae_steps_over_what_was_not_sampled() -> None:
    holes, _ = gae(one([0, NAN, 0, 1]), one([1, 1e9, 2, 3]), torch.tensor([[T, F, T, T]]), 0.9, 0.5)
    torch.testing.assert_close(holes, one([0.71, 0.0, -0.2, -2.0]))


def test_gae_with_lambda_1_is_return_minus_value() -> None:
    rewards, values = one([0.5, -0.2, 1.0]), one([0.3, 0.1, 0.9])
    mask = torch.tensor([[T, T, T]])
    found, returns = gae(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(returns, one([1.3, 0.8, 1.0]))
    torch.testing.assert_close(found, returns - values)
    torch.testing.assert_close(rewards_to_come(rewards, mask), returns)


def test_whitening_by_hand() -> None:
    mask_BL = torch.tensor([[T, T], [T, F]])
    found = whitened(torch.tensor([[1.0, 2.0], [3.0, NAN]], dtype=torch.float64), mask_BL, epsilon=0.0)
    step = math.sqrt(1.5)
    torch.testing.assert_close(found, torch.tensor([[-step, 0.0], [step, 0.0]], dtype=torch.float64))
    halved = whitened(torch.tensor([[1.0, 2.0], [3.0, NAN]], dtype=torch.float64), mask_BL, epsilon=1 / step)
    torch.testing.assert_close(halved, torch.tensor([[-step / 2, 0.0], [step / 2, 0.0]], dtype=torch.float64))
    assert whitened(torch.full((2, 2), 0.3), mask_BL).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert whitened(torch.full((2, 2), NAN), torch.zeros(2, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


# ---------------------------------------------------------------- a whole rollout


MASK = torch.tensor([[T, T, F], [T, T, T]])
SCORED = Rollout(torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0, 0]), MASK)


def test_a_group_rule_gives_every_token_its_responses_number() -> None:
    found = advantages("leave_one_out", SCORED)
    assert found.values_BL.tolist() == [[1.0, 1.0, 0.0], [-1.0, -1.0, -1.0]]
    assert found.groups.zero_signal_G.tolist() == [F]
    assert found.returns_BL is None


def test_a_kl_in_a_group_rules_reward_is_the_responses_sum() -> None:
    kl_BL = torch.tensor([[0.1, 0.3, NAN], [0.1, 0.1, 0.0]], dtype=torch.float64)
    rollout = Rollout(SCORED.rewards_B, SCORED.group_B, MASK, kl_BL)
    # 1 - 0.5 * 0.4 = 0.8 and 0 - 0.5 * 0.2 = -0.1: apart by 0.9
    found = advantages("leave_one_out", rollout, kl_beta=0.5)
    torch.testing.assert_close(found.groups.values_B, torch.tensor([0.9, -0.9], dtype=torch.float64))
    # Equal rewards still have the KL's gradient; the group's own figures are those of the rewards.
    tied = Rollout(torch.ones(2, dtype=torch.float64), SCORED.group_B, MASK, kl_BL)
    found = advantages("leave_one_out", tied, kl_beta=0.5)
    torch.testing.assert_close(found.groups.values_B, torch.tensor([-0.1, 0.1], dtype=torch.float64))
    assert found.groups.zero_signal_G.tolist() == [T] and found.groups.mean_G.tolist() == [1.0]


def test_batch_whiten_is_over_tokens() -> None:
    # Without a KL every token has its response's score to come: 1, 1, 0, 0, 0; mean 0.4, variance 0.24
    found = advantages("batch_whiten", SCORED, epsilon=0.0).values_BL
    up, down = 0.6 / math.sqrt(0.24), -0.4 / math.sqrt(0.24)
    torch.testing.assert_close(found, torch.tensor([[up, up, 0], [down, down, down]], dtype=torch.float64))


def test_gae_of_a_rollout_is_whitened_and_its_returns_are_not() -> None:
    values_BL = torch.tensor([[0.5, 0.5, NAN], [0.5, 0.5, 0.5]], dtype=torch.float64)
    rollout = Rollout(SCORED.rewards_B, SCORED.group_B, MASK, values_BL=values_BL)
    found = advantages("gae", rollout, lam=1.0, epsilon=0.0)
    assert found.returns_BL is not None
    assert found.returns_BL.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    # advantages 0.5, 0.5, -0.5, -0.5, -0.5: mean -0.1, variance 0.24
    up, down = 0.6 / math.sqrt(0.24), -0.4 / math.sqrt(0.24)
    torch.testing.assert_close(found.values_BL, torch.tensor([[up, up, 0], [down, down, down]], dtype=torch.float64))
    with pytest.raises(ConfigError, match="needs a value model"):
        advantages("gae", SCORED)


def test_a_teachers_log_ratio_is_the_advantage() -> None:
    ratio_BL = torch.tensor([[0.5, -0.5, NAN], [0.1, 0.2, 0.3]])
    rollout = Rollout(torch.full((2,), NAN), SCORED.group_B, MASK, teacher_ratio_BL=ratio_BL)
    torch.testing.assert_close(advantages("teacher", rollout).values_BL, ratio_BL.masked_fill(~MASK, 0.0))
    with pytest.raises(ConfigError, match="needs a teacher"):
        advantages("teacher", SCORED)


def test_an_empty_response_counts_for_the_others() -> None:
    mask_BL = torch.tensor([[T, T], [F, F]])
    found = advantages("leave_one_out", Rollout(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), mask_BL))
    assert found.values_BL.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert found.groups.values_B.tolist() == [1.0, -1.0]


def test_responses_that_are_all_empty_have_rewards_and_places_of_their_shape() -> None:
    nothing_BL = torch.zeros(3, 0, dtype=torch.bool)
    assert token_rewards(torch.tensor([1.0, 2.0, NAN]), nothing_BL).shape == (3, 0)
    assert last_sampled(nothing_BL).tolist() == [0, 0, 0]
    rollout = Rollout(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 0]), nothing_BL)
    for kind in ("group_std", "leave_one_out", "batch_whiten"):
        assert advantages(kind, rollout).values_BL.shape == (3, 0)


def test_groups_are_reckoned_in_fp64() -> None:
    """Rewards far from 0 that differ little: in fp32 the mean alone is off by more than what sets them apart."""
    rewards_B = torch.tensor([20000.0, 20000.5, 20001.0, 20003.7], dtype=torch.float32)
    exact_B = rewards_B.double() - rewards_B.double().mean()
    found = group_advantages("group_centre", rewards_B, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(found.values_B.double(), exact_B, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_counts_as_equal_is_a_millionth_of_the_rewards(sign: int) -> None:
    """Above it a spread is a signal: 1.5e-6 of the largest is told apart, half a millionth is not."""
    rewards_B = sign * torch.tensor([3.0, 3.0 * (1 + 1.5e-6), 3.0, 3.0 * (1 + 0.5e-6)], dtype=torch.float64)
    found = group_advantages("group_centre", rewards_B, torch.tensor([0, 0, 1, 1]))
    assert [value != 0 for value in found.values_B.tolist()] == [True, True, False, False]


def test_no_response_at_all_has_no_group() -> None:
    found = advantages(
        "group_std", Rollout(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4, dtype=torch.bool))
    )
    assert found.values_BL.shape == (0, 4) and found.groups.values_B.shape == (0,)


def test_the_default_of_lambda_is_the_papers() -> None:
    """0.95, Ouyang et al. 2022; at 1 the estimate would be the plain return."""
    values_BL = torch.tensor([[0.5, 0.2, 0.1]])
    rollout = Rollout(torch.tensor([1.0]), torch.tensor([0]), torch.ones(1, 3, dtype=torch.bool), values_BL=values_BL)
    assert torch.equal(advantages("gae", rollout).values_BL, advantages("gae", rollout, lam=0.95).values_BL)
    assert torch.equal(advantages("gae", rollout).values_BL, advantages("gae", rollout, gamma=1.0).values_BL)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownKeyError, match="group_std"):
        advantages("group_sdt", SCORED)
    with pytest.raises(UnknownKeyError):
        group_advantages("gae", SCORED.rewards_B, SCORED.group_B)
    assert len(set(ADVANTAGES)) == len(ADVANTAGES)
