"""`function`: a function of the user's own judges the answers.

    def politeness(prompt, answer, row):                       # one answer: float, bool, or None to abstain
        return "please" in answer

    def agreement(prompts, answers, rows):                     # all answers at once: a list of as many
        ...

It is called as a reward is, so that one function may be both: `prompt` is the conversation, `row` the row as a `Task`
with its `answer` and its other columns under `metadata`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.functions import source_fingerprint
from posttrain.config.suites import FunctionSuite
from posttrain.data.questions import as_task, question
from posttrain.errors import PosttrainError
from posttrain.evaluate.asking import CompletionGroups, Figures, SuiteRun, Texts, general_figures, write_answers
from posttrain.intervals import mean
from posttrain.rewards import Sampled
from posttrain.rewards.imported import imported, require_parameters
from posttrain.rewards.scorer import Asking, Scorer
from posttrain.runs.records.evaluation import Direction, Meaning
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, Task

WHAT = "suite function"
METRICS = {
    "score": Meaning("score", wanted=Direction.UP, primary=True),
    "unwanted_score": Meaning("score", wanted=Direction.DOWN, primary=True),
    "abstained_share": Meaning("not judged", "share", Direction.DOWN),
}


@dataclass(frozen=True, slots=True)
class JudgedByFunction:
    """JudgedByFunction("politeness", tasks, Scorer("my_eval.py:politeness", politeness), "score", sampling)"""

    name: str
    tasks: Sequence[Task]
    judge: Scorer
    metric: str
    sampling: SamplingDistribution
    samples_per_prompt: int = 1

    def ask(self, asking: SuiteRun) -> Figures:
        """Raises RewardError where the function raises, or gives what is no finite number; names it and the row."""
        groups, texts = asking.answers.to(self.name, self.tasks, self.sampling, self.samples_per_prompt)
        scores = self.scores(groups, texts)
        write_answers(asking.out, self.name, [question(task) for task in self.tasks], groups, texts, scores)
        return judged_figures(self.metric, scores) | general_figures(groups, texts)

    def scores(self, groups: CompletionGroups, texts: Texts) -> list[list[float | None]]:
        """One for each answer; None where the function abstained."""
        items = [
            Sampled(task.prompt, text, task, completion.finish, len(completion.ids), group)
            for group, (task, *answers) in enumerate(zip(self.tasks, groups, texts, strict=True))
            for completion, text in zip(*answers, strict=True)
        ]
        given = iter(self.judge.score(items))
        return [[next(given) for _ in answers] for answers in texts]


def judged_figures(metric: str, scores: Sequence[Sequence[float | None]]) -> Figures:
    """The mean over the prompts of what was judged, and the share of the answers that were not.

    Of yes and no it is a share with Wilson's interval, else a mean with the bootstrap's: see `posttrain.intervals`.
    """
    judged = [[score for score in group if score is not None] for group in scores]
    judged = [group for group in judged if group]
    # A function that judged nothing has no mean: the share alone says so, and the table has an empty place.
    figures = {metric: mean(judged)} if judged else {}
    if any(score is None for group in scores for score in group):
        figures["abstained_share"] = mean([[float(score is None) for score in group] for group in scores])
    return figures


def load(settings: FunctionSuite, examples: list[Example], sampling: SamplingDistribution) -> JudgedByFunction:
    """Raises ConfigError for a function that is not there, or that cannot be called with a prompt, an answer and a
    row."""
    metric = "score" if settings.higher_is_better else "unwanted_score"
    try:
        judge = _judge(settings)
    except PosttrainError as error:
        error.where = error.where or f"the suite `{settings.name}`"
        raise
    tasks = [as_task(example) for example in examples]
    return JudgedByFunction(settings.name, tasks, judge, metric, sampling, settings.samples_per_prompt)


def _judge(settings: FunctionSuite) -> Scorer:
    given, address = settings.function, settings.address
    function = imported(given, _folder(settings), what="suite") if isinstance(given, str) else given
    if settings.parameters:
        require_parameters(function, address, settings.parameters, what="suite")
        function = functools.partial(function, **settings.parameters)
    # Now and not at the first answer: a wrong signature would otherwise end the run when all prompts are answered.
    Asking.of(function, address, WHAT)
    return Scorer(address, function, what=WHAT)


def content(settings: FunctionSuite) -> str:
    """The function's source: an edited one is asked again."""
    return source_fingerprint(settings.function, _folder(settings))


def _folder(settings: FunctionSuite) -> Path | None:
    return None if settings.modules is None else Path(settings.modules)
