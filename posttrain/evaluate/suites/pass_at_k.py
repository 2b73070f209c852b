"""`pass_at_k`: tasks that are answered many times each, and the chance that one of k answers is right.

The estimate and its curve are `posttrain.evaluate.pass_at_k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.suites import PassAtKSuite
from posttrain.data.questions import as_task, question
from posttrain.data.write import write_jsonl
from posttrain.evaluate.asking import Figures, SuiteRun, general_figures
from posttrain.evaluate.pass_at_k import PassCounts, curve, write_counts
from posttrain.evaluate.rightness import Given, Rightness
from posttrain.intervals import mean
from posttrain.rollout.engine import Completion
from posttrain.runs.folder import answers_path
from posttrain.runs.records.evaluation import AnswerLine
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, Task


@dataclass(frozen=True, slots=True)
class PassAtK:
    """PassAtK("sums", tasks, SamplingDistribution(temperature=1.0), Rightness("sums"), samples=64, ks=(1, 8, 64))"""

    name: str
    tasks: Sequence[Task]
    sampling: SamplingDistribution
    right: Rightness
    """What makes an answer right."""
    samples: int = 64
    ks: tuple[int, ...] = (1,)
    """The k whose figures stand in evaluation.json."""

    def ask(self, asking: SuiteRun) -> Figures:
        groups, texts = asking.answers.to(self.name, self.tasks, self.sampling, self.samples)
        return judge_samples(self, groups, texts, asking.out) | general_figures(groups, texts)


def load(settings: PassAtKSuite, examples: list[Example], sampling: SamplingDistribution) -> PassAtK:
    """Raises RowError where the suite would not accept a row's own answer."""
    tasks = [as_task(example) for example in examples]
    modules = None if settings.modules is None else Path(settings.modules)
    right = Rightness(settings.name, settings.rewards, settings.right_from, modules)
    right.require_gold(tasks)
    return PassAtK(settings.name, tasks, sampling, right, settings.samples, settings.k)


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
    given = [
        [Given(text, completion.finish, len(completion.ids)) for completion, text in zip(group, answers, strict=True)]
        for group, answers in zip(groups, texts, strict=True)
    ]
    rewards = suite.right.rewards_of(given, suite.tasks)
    right = [[suite.right.is_right(reward) for reward in group] for group in rewards]
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


def items(suite: PassAtK) -> dict[str, int]:
    """pass@1 is a mean over the prompts, several answers of each counting as one."""
    return {"": len(suite.tasks)}
