"""`pass_at_k`: tasks that are answered many times each, and the chance that one of k answers is right.

The estimate and its curve are `posttrain.evaluate.pass_at_k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.rewards import RewardSettings
from posttrain.config.suites import PassAtKSuite
from posttrain.data.questions import as_task, question
from posttrain.data.write import write_jsonl
from posttrain.errors import RowError
from posttrain.evaluate.asking import Figures, SuiteRun, general_figures
from posttrain.evaluate.pass_at_k import PassCounts, curve, write_counts
from posttrain.evaluate.questions import require_gold
from posttrain.evaluate.suites.number import NEEDS, last_number_equals
from posttrain.intervals import mean
from posttrain.rewards import Sampled, gold_check, rubric_of
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.runs.folder import answers_path
from posttrain.runs.records.evaluation import AnswerLine
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, Task


@dataclass(frozen=True, slots=True)
class PassAtK:
    """PassAtK("sums", tasks, SamplingDistribution(temperature=1.0), samples=64, ks=(1, 8, 64))"""

    name: str
    tasks: Sequence[Task]
    sampling: SamplingDistribution
    samples: int = 64
    ks: tuple[int, ...] = (1,)
    """The k whose figures stand in evaluation.json."""
    rewards: tuple[RewardSettings, ...] = ()
    """Their sum says whether an answer is right; none: its last number is the task's answer."""
    right_from: float = 1.0
    modules: Path | None = None
    """Where reward functions are looked for first."""

    def ask(self, asking: SuiteRun) -> Figures:
        groups, texts = asking.answers.to(self.name, self.tasks, self.sampling, self.samples)
        return judge_samples(self, groups, texts, asking.out) | general_figures(groups, texts)


def load(settings: PassAtKSuite, examples: list[Example], sampling: SamplingDistribution) -> PassAtK:
    """Raises RowError where the suite would not accept a row's own answer."""
    tasks = [as_task(example) for example in examples]
    modules = None if settings.modules is None else Path(settings.modules)
    if not settings.rewards:
        require_gold([question(task) for task in tasks], last_number_equals, NEEDS)
    else:
        with rubric_of(settings.rewards, folder=modules) as rubric:
            # A row that no answer could satisfy lowers pass@k for every model, and hides how far a policy reaches.
            failures = gold_check(tasks, rubric.scorers)
        if failures:
            raise RowError(
                f"the suite `{settings.name}` would not accept the own answers of {len(failures)} of {len(tasks)} rows",
                reason="bad_label",
                where=failures[0].row,
                found=str(failures[0]),
                remedy="correct the answers of these rows or remove them, or choose another reward",
            )
    return PassAtK(
        settings.name,
        tasks,
        sampling,
        settings.samples,
        settings.k,
        settings.rewards,
        settings.right_from,
        modules,
    )


def judge_samples(
    suite: PassAtK, groups: Sequence[Sequence[Completion]], texts: Sequence[Sequence[str]], out: Path
) -> Figures:
    """Score every answer; write evaluations/<suite>.jsonl and evaluations/<suite>.counts.json.

    An answer that no reward judged, or that was aborted, is not right.

    Args:
        groups, texts: `suite.samples` answers of each task, in the tasks' order.

    Returns:
        pass_at_<k> for each of the suite's k, and `abstained_share` where some answers were not judged.

    Raises:
        RewardError: a reward failed.
    """
    # Judged by the training's own rewards, so that pass@k and the reward curve measure the same thing.
    rewards = _rewards(suite, groups, texts)
    right = [[reward is not None and reward >= suite.right_from for reward in group] for group in rewards]
    asked = [question(task) for task in suite.tasks]
    records = [
        AnswerLine(
            prompt=task_question.text,
            completion=text,
            answer=task_question.answer,
            score=float(correct),
            tokens=len(completion.answer_ids),
            finish=str(completion.finish),
            reward=reward,
        )
        for task_question, *answers in zip(asked, groups, texts, right, rewards, strict=True)
        for completion, text, correct, reward in zip(*answers, strict=True)
    ]
    write_jsonl(answers_path(out, suite.name), (record.to_json() for record in records))
    counts = PassCounts(
        suite.name,
        suite.samples,
        tuple(str(task_question.row) for task_question in asked),
        tuple(task_question.text for task_question in asked),
        tuple(sum(group) for group in right),
    )
    write_counts(out, counts)
    figures = {f"pass_at_{k}": score for k, score in curve(counts, suite.ks)}
    if any(reward is None for group in rewards for reward in group):
        figures["abstained_share"] = mean([[float(reward is None) for reward in group] for group in rewards])
    return figures


def _rewards(
    suite: PassAtK, groups: Sequence[Sequence[Completion]], texts: Sequence[Sequence[str]]
) -> list[list[float | None]]:
    """What each answer earns; None where nobody judged it."""
    if not suite.rewards:
        return [
            [last_number_equals(text, question(task)) for text in answers]
            for task, answers in zip(suite.tasks, texts, strict=True)
        ]
    items: list[Sampled] = []
    places: list[tuple[int, int]] = []
    rewards: list[list[Any]] = [[None] * len(group) for group in groups]
    for number, (task, group, answers) in enumerate(zip(suite.tasks, groups, texts, strict=True)):
        for place, (completion, text) in enumerate(zip(group, answers, strict=True)):
            # An aborted answer was cut by the engine, not by the model; it counts as not right and is never judged.
            if completion.finish is not FinishReason.ABORTED:
                items.append(Sampled(task.prompt, text, task, completion.finish, len(completion.ids), number))
                places.append((number, place))
    with rubric_of(suite.rewards, folder=suite.modules) as rubric:
        for (number, place), scored in zip(places, rubric.score(items), strict=True):
            rewards[number][place] = scored.total
    return rewards
