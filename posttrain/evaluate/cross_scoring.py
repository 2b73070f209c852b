"""Several policies judged by several reward models: whose answers does each of them prefer?

A reward model that was trained on the pairs that a policy was trained on likes that policy; another one may not.
Where they disagree, the policy has learned the first one's taste and not a better answer.

    record = cross_scores({"start": [...], "dpo": [...]}, {"reward": rewards, "public": rewards})

Written to a run's folder as cross_scores.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.arguments import checked_list, wrong_argument
from posttrain.data.given import Conversation, as_messages
from posttrain.errors import ConfigError
from posttrain.evaluate.agreement import agreement
from posttrain.evaluate.reward_scorers import RewardScorer
from posttrain.evaluate.suites.win_rate import outcome
from posttrain.intervals import average, unbounded
from posttrain.runs.folder import RunFolder, read_answers
from posttrain.runs.records.evaluation import AnswerLine, Figure
from posttrain.runs.records.reward import CrossAgreement, CrossCell, CrossScores

AnswersByModel = Mapping[str, Sequence[str]]
"""{policy: its answers, one per prompt}; the first policy is the one that the others are compared with."""
RewardsByJudge = Mapping[str, Mapping[str, Sequence[float]]]
"""{reward model: {policy: rewards, one per prompt}}"""


def score_answers(
    prompts: Sequence[Conversation], answers: AnswersByModel, scorers: Mapping[str, RewardScorer]
) -> dict[str, dict[str, list[float]]]:
    """Every reward model's rewards of every policy's answers.

    Args:
        prompts: conversations, each a user's text or a list of turns.

    Raises:
        ConfigError: an argument is no list of these, or a policy has another number of answers than there are prompts.
    """
    asked = [as_messages(prompt) for prompt in checked_list("prompts", prompts, of="prompts", example='["2 + 2?"]')]
    _require_answers(answers, len(asked))
    example = "{'reward': open_scorer('runs/mine/reward/model')}"
    _require_mapping("scorers", scorers, example)
    for judge, scorer in scorers.items():
        if not callable(getattr(scorer, "score", None)):  # anybody's object with this method is a scorer
            raise wrong_argument(
                f"scorers[{judge!r}]", scorer, expected="what open_scorer gives", remedy=f"write `scorers={example}`"
            )
    return {
        judge: {policy: list(scorer.score(asked, texts)) for policy, texts in answers.items()}
        for judge, scorer in scorers.items()
    }


def cross_scores(answers: AnswersByModel, rewards: RewardsByJudge) -> CrossScores:
    """The matrix.

    Each cell has the rewards, their mean, the win rate against the first policy (ties half, intervals over prompts),
    and the mean in standard deviations of that reward model, for their scales differ. agreement: of each two reward
    models, over all policies' answers; pairs are two policies' answers to one prompt.

    Raises:
        ConfigError: an argument is no such mapping, or some answers have no reward.
    """
    _require_answers(answers)
    _require_rewards(answers, rewards)
    policies = list(answers)
    first = policies[0]
    cells: dict[str, dict[str, CrossCell]] = {}
    for judge, by_policy in rewards.items():
        # Over all policies' answers: standardised within one policy, every policy would have the mean 0.
        everything = np.array([by_policy[policy] for policy in policies], dtype=float)
        centre, spread = float(everything.mean()), float(everything.std())
        cells[judge] = {
            # A constant judge has no spread; dividing by 1 shows zeros instead of NaN.
            policy: _cell(answers, by_policy, policy, first, centre, spread if spread > 0 else 1.0)
            for policy in policies
        }
    agreed = []
    for judges in combinations(rewards, 2) if len(policies) > 1 else ():
        found = agreement(*(_by_prompt(rewards[judge], policies) for judge in judges))
        agreed.append(CrossAgreement(judges, found.same_order, found.spearman, found.kendall))
    return CrossScores(len(answers[first]), tuple(policies), tuple(rewards), cells, tuple(agreed))


def _require_mapping(name: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping) or not value:
        raise wrong_argument(
            name, value, expected="a mapping by name, of one or more", remedy=f"write `{name}={example}`"
        )


def _require_answers(answers: Any, prompts: int | None = None) -> None:
    """One list of texts for each policy, all as long as the prompts are many."""
    _require_mapping("answers", answers, "{'start': ['4', '5'], 'dpo': ['four', 'five']}")
    counts = {}
    for policy, texts in answers.items():
        listed = checked_list(f"answers[{policy!r}]", texts, of="texts", example="['4', '5']")
        if odd := [text for text in listed if not isinstance(text, str)]:
            raise wrong_argument(f"answers[{policy!r}]", odd[0], expected="texts", remedy="give each answer's text")
        counts[policy] = len(listed)
    first = next(iter(counts)) if prompts is None else "prompts"
    wanted = counts[first] if prompts is None else prompts
    for policy, count in counts.items():
        if count != wanted:
            raise ConfigError(
                f"`{policy}` has {count:,} answers, and there are {wanted:,} of `{first}`",
                where=f"answers[{policy!r}]",
                remedy="give one answer for each prompt, in the prompts' order",
            )


def _require_rewards(answers: AnswersByModel, rewards: Any) -> None:
    """Rewards of each reward model, for every answer of every policy."""
    _require_mapping("rewards", rewards, "{'reward': {'start': [0.1, 0.2], 'dpo': [0.4, 0.3]}}")
    for judge, by_policy in rewards.items():
        for policy, texts in answers.items():
            given = by_policy.get(policy) if isinstance(by_policy, Mapping) else None
            if not isinstance(given, Sequence) or len(given) != len(texts):
                raise wrong_argument(
                    f"rewards[{judge!r}][{policy!r}]",
                    given,
                    expected=f"a list of {len(texts):,} numbers, one for each answer",
                    remedy="pass what score_answers(prompts, answers, scorers) gives",
                )


def _cell(
    answers: AnswersByModel,
    by_policy: Mapping[str, Sequence[float]],
    policy: str,
    first: str,
    centre: float,
    spread: float,
) -> CrossCell:
    rewards = np.asarray(by_policy[policy], dtype=float)
    won = [
        outcome(text, reward, other_text, other)
        for text, reward, other_text, other in zip(
            answers[policy], by_policy[policy], answers[first], by_policy[first], strict=True
        )
    ]
    return CrossCell(
        mean=Figure.of(unbounded(rewards)),
        standardised=float((rewards.mean() - centre) / spread),
        win_rate=Figure.of(average(np.array(won))) if policy != first else None,
        rewards=tuple(rewards.tolist()),
    )


def _by_prompt(by_policy: Mapping[str, Sequence[float]], policies: Sequence[str]) -> np.ndarray:
    return np.array([by_policy[policy] for policy in policies], dtype=float).T


# ---------------------------------------------------------------- from the win rates of a run


def cross_scores_of_run(folders: Mapping[str, Path], suites: Mapping[str, str]) -> CrossScores | None:
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
        texts = {name: [answer.completion for answer in answers] for name, answers in judged.items() if answers}
        # Suites with other prompts cannot be columns of one matrix: their rows would be different answers.
        if len(texts) > 1 and (not answers or answers == texts):
            answers = texts
            rewards[judge] = {name: [answer.reward or 0.0 for answer in judged[name]] for name in texts}
    return cross_scores(answers, rewards) if rewards else None


def write_cross_scores(run: Path, record: CrossScores) -> Path:
    RunFolder(run).write(record)
    return run / record.FILE


def _judged(folder: Path, suite: str) -> list[AnswerLine]:
    """The answers of a suite, if every one of them has its reward."""
    answers = read_answers(folder, suite)
    return answers if all(answer.reward is not None for answer in answers) else []
