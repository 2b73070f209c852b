"""Several policies judged by several reward models: whose answers does each of them prefer?

A reward model that was trained on the pairs that a policy was trained on likes that policy; another one may not.
Where they disagree, the policy has learned the first one's taste and not a better answer.

    record = cross_scores({"start": [...], "dpo": [...]}, {"reward": rewards, "public": rewards})

Written to a run's folder as cross_scores.json: {"prompts", "policies", "reward_models", "cells", "agreement"}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluate.agreement import agreement
from posttrain.evaluate.reward_scorers import RewardScorer
from posttrain.evaluate.suites.win_rate import outcome
from posttrain.intervals import average, unbounded
from posttrain.runs.files import read_jsonl, write_json
from posttrain.types import Message

CROSS_SCORES = "cross_scores.json"
AnswersByModel = Mapping[str, Sequence[str]]
"""{policy: its answers, one per prompt}; the first policy is the one that the others are compared with."""
RewardsByJudge = Mapping[str, Mapping[str, Sequence[float]]]
"""{reward model: {policy: rewards, one per prompt}}"""


def score_answers(
    prompts: Sequence[Sequence[Message]], answers: AnswersByModel, scorers: Mapping[str, RewardScorer]
) -> dict[str, dict[str, list[float]]]:
    """Every reward model's rewards of every policy's answers."""
    return {
        judge: {policy: list(scorer.score(prompts, texts)) for policy, texts in answers.items()}
        for judge, scorer in scorers.items()
    }


def cross_scores(answers: AnswersByModel, rewards: RewardsByJudge) -> dict[str, Any]:
    """The matrix, ready for JSON.

    Each cell has the rewards, their mean, the win rate against the first policy (ties half, intervals over prompts),
    and the mean in standard deviations of that reward model, for their scales differ. agreement: of each two reward
    models, over all policies' answers; pairs are two policies' answers to one prompt.
    """
    policies = list(answers)
    first = policies[0]
    cells: dict[str, dict[str, Any]] = {}
    for judge, by_policy in rewards.items():
        # Over all policies' answers: standardised within one policy, every policy would have the mean 0.
        everything = np.array([by_policy[policy] for policy in policies], dtype=float)
        centre, spread = float(everything.mean()), float(everything.std())
        cells[judge] = {
            # A constant judge has no spread; dividing by 1 shows zeros instead of NaN.
            policy: _cell(answers, by_policy, policy, first, centre, spread if spread > 0 else 1.0)
            for policy in policies
        }
    return {
        "prompts": len(answers[first]),
        "policies": policies,
        "reward_models": list(rewards),
        "cells": cells,
        "agreement": [
            {"between": [one, two], **agreement(_by_prompt(rewards[one], policies), _by_prompt(rewards[two], policies))}
            for one, two in combinations(rewards, 2)
            if len(policies) > 1
        ],
    }


def _cell(
    answers: AnswersByModel,
    by_policy: Mapping[str, Sequence[float]],
    policy: str,
    first: str,
    centre: float,
    spread: float,
) -> dict[str, Any]:
    rewards = np.asarray(by_policy[policy], dtype=float)
    won = [
        outcome(text, reward, other_text, other)
        for text, reward, other_text, other in zip(
            answers[policy], by_policy[policy], answers[first], by_policy[first], strict=True
        )
    ]
    return {
        "mean": unbounded(rewards).as_dict(),
        "standardised": float((rewards.mean() - centre) / spread),
        "win_rate": average(np.array(won)).as_dict() if policy != first else None,
        "rewards": rewards.tolist(),
    }


def _by_prompt(by_policy: Mapping[str, Sequence[float]], policies: Sequence[str]) -> np.ndarray:
    return np.array([by_policy[policy] for policy in policies], dtype=float).T


# ---------------------------------------------------------------- from the win rates of a run


def cross_scores_of_run(folders: Mapping[str, Path], suites: Mapping[str, str]) -> dict[str, Any] | None:
    """The matrix of what win rate suites have judged already; None if there are not two policies.

    Args:
        folders: {policy: its stage folder}, the start first.
        suites: {suite: its reward model's name}; suites with the same prompts and answers become one matrix' columns,
            the first suite's prompts decide which.
    """
    answers: dict[str, list[str]] = {}
    rewards: dict[str, dict[str, list[float]]] = {}
    for suite, judge in suites.items():
        judged = {name: _judged(folder, suite) for name, folder in folders.items()}
        texts = {name: [record["completion"] for record in records] for name, records in judged.items() if records}
        # Suites with other prompts cannot be columns of one matrix: their rows would be different answers.
        if len(texts) > 1 and (not answers or answers == texts):
            answers = texts
            rewards[judge] = {name: [float(record["reward"]) for record in judged[name]] for name in texts}
    return cross_scores(answers, rewards) if rewards else None


def write_cross_scores(run: Path, record: Mapping[str, Any]) -> Path:
    path = run / CROSS_SCORES
    write_json(path, record)
    return path


def _judged(folder: Path, suite: str) -> list[dict[str, Any]]:
    path = folder / "evaluations" / f"{suite}.jsonl"
    records = read_jsonl(path) if path.exists() else []
    return records if records and all(record.get("reward") is not None for record in records) else []
