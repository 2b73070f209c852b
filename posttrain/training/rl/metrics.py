"""What a rollout says about itself, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from posttrain.rewards.form import is_malformed
from posttrain.rewards.refusal import is_refusal
from posttrain.rewards.text import answer_of
from posttrain.training.rl.rollouts import Group, Response, Rollout

NAN = float("nan")


def rollout_metrics(rollout: Rollout, *, rewarded: bool = True) -> dict[str, float]:
    """Means over all completions that were sampled, those of dropped groups included.

    Args:
        rewarded: whether the method learns from rewards; without, those that stand in for them are not shown.
    """
    responses, groups = rollout.responses, rollout.groups
    count = len(responses)
    completions = [response.completion for response in responses]
    tokens = sum(completion.num_sampled for completion in completions)
    surprise = -sum(sum(completion.sampled_logprobs) for completion in completions)
    return {
        **(_rewards(rollout) if rewarded else {}),
        "groups": len(groups),
        "completions": count,
        "truncated_share": sum(response.truncated for response in responses) / count,
        "empty_share": sum(response.empty for response in responses) / count,
        "abstained_share": sum(response.reward is None for response in responses) / count,
        "duplicate_share": _duplicates(groups),
        "refusal_share": sum(is_refusal(answer_of(response.text)) for response in responses) / count,
        "malformed_share": sum(not response.truncated and is_malformed(response.text) for response in responses)
        / count,
        "length_sampled": tokens / count,
        "staleness": sum(rollout.staleness) / count,
        # Tokens are drawn from the policy, so this estimates its entropy without another pass.
        "entropy_sampled": surprise / tokens if tokens else NAN,
    }


def _rewards(rollout: Rollout) -> dict[str, float]:
    rewards = rollout.rewards
    compared = [group for group in rollout.groups if len(group.responses) > 1]  # one completion compares with nothing
    return {
        "reward": _mean(rewards),
        "reward_deviation": pstdev(rewards) if rewards else NAN,
        **_parts(rollout.responses),
        "zero_signal_share": _mean([float(group.tied) for group in compared]),
    }


def _parts(responses: Sequence[Response]) -> dict[str, float]:
    """Each reward's own mean, over the responses that it judged."""
    names = dict.fromkeys(name for response in responses for name in response.scored.parts)
    given = {
        name: [part for response in responses if (part := response.scored.parts.get(name)) is not None]
        for name in names
    }
    return {f"reward/{name}": _mean(values) for name, values in given.items()}


def _duplicates(groups: Sequence[Group]) -> float:
    """Share of completions that another of their group already is, id for id."""
    total = sum(len(group.responses) for group in groups)
    different = sum(len({response.completion.ids for response in group.responses}) for group in groups)
    return 1 - different / total if total else NAN


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else NAN
