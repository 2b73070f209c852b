"""A pass@k suite: which of the sampled answers are right, and what is written and said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data.write import write_jsonl
from posttrain.evaluate.pass_at_k import PassCounts, curve, write_counts
from posttrain.evaluate.suites import PassAtKSuite, last_number_equals, question
from posttrain.intervals import Score, mean
from posttrain.rewards import Sampled, rubric_of
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.runs.folder import answers_path
from posttrain.runs.records.evaluation import AnswerLine


def judge_samples(
    suite: PassAtKSuite, groups: Sequence[Sequence[Completion]], texts: Sequence[Sequence[str]], out: Path
) -> dict[str, Score]:
    """Score every answer; write evaluations/<suite>.jsonl and evaluations/<suite>.counts.json.

    An answer that no reward judged, or that was aborted, is not right.

    Args:
        groups, texts: `suite.samples` answers of each task, in the tasks' order.

    Returns:
        pass_at_<k> for each of the suite's k, and `abstained_share` where some answers were not judged.

    Raises:
        RewardError: a reward failed.
    """
    rewards = _rewards(suite, groups, texts)
    right = [[reward is not None and reward >= suite.right_from for reward in group] for group in rewards]
    asked = [question(task) for task in suite.tasks]
    records = [
        AnswerLine(
            prompt=one.text,
            completion=text,
            answer=one.answer,
            score=float(correct),
            tokens=len(completion.answer_ids),
            finish=str(completion.finish),
            reward=reward,
        )
        for one, *answers in zip(asked, groups, texts, right, rewards, strict=True)
        for completion, text, correct, reward in zip(*answers, strict=True)
    ]
    write_jsonl(answers_path(out, suite.name), (record.to_json() for record in records))
    counts = PassCounts(
        suite.name,
        suite.samples,
        tuple(str(one.row) for one in asked),
        tuple(one.text for one in asked),
        tuple(sum(group) for group in right),
    )
    write_counts(out, counts)
    figures = {f"pass_at_{k}": found for k, found in curve(counts, suite.ks)}
    if any(reward is None for group in rewards for reward in group):
        figures["abstained_share"] = mean([[float(reward is None) for reward in group] for group in rewards])
    return figures


def _rewards(
    suite: PassAtKSuite, groups: Sequence[Sequence[Completion]], texts: Sequence[Sequence[str]]
) -> list[list[float | None]]:
    """What each answer earns; None where nobody judged it."""
    if not suite.rewards:
        return [
            [last_number_equals(text, question(task)) for text in answers]
            for task, answers in zip(suite.tasks, texts, strict=True)
        ]
    items: list[Sampled] = []
    places: list[tuple[int, int]] = []
    found: list[list[Any]] = [[None] * len(group) for group in groups]
    for number, (task, group, answers) in enumerate(zip(suite.tasks, groups, texts, strict=True)):
        for place, (completion, text) in enumerate(zip(group, answers, strict=True)):
            if completion.finish is not FinishReason.ABORTED:
                items.append(Sampled(task.prompt, text, task, completion.finish, len(completion.ids), number))
                places.append((number, place))
    with rubric_of(suite.rewards, folder=suite.modules) as rubric:
        for (number, place), scored in zip(places, rubric.score(items), strict=True):
            found[number][place] = scored.total
    return found
