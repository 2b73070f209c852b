"""`win_rate`, by a reward model: how often it prefers a model's answer to the start's own answer to the same prompt.

    win_rate = mean over prompts of (1 if the answer's reward is higher, 1/2 if equal, 0 if lower)

The start's answers are kept when the start is asked, in `start/evaluations/<suite>.jsonl`, and every later model is
compared with exactly these; against itself the start has 1/2. In a recipe the judge may be a later stage than the
model that is asked. Answers that come before their judge are kept without scores, and judged, not sampled again, when
the judge is there:

    start: asked    sft: asked    reward: trained, then start and sft judged    dpo: asked and judged

Deviation: two answers of the same text are a tie whatever the judge says, for its rewards differ by rounding with the
rows that are scored together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from posttrain.config.suites import WinRateSuite
from posttrain.data.questions import Question, questions
from posttrain.data.write import write_jsonl
from posttrain.errors import DataError, ResumeError
from posttrain.evaluate.asking import Figures, SuiteRun, general_figures, write_answers
from posttrain.evaluate.reward_scorers import open_scorer
from posttrain.evaluate.suites.answers import GREEDY
from posttrain.intervals import Score, mean, unbounded
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.parallel.calls import everywhere
from posttrain.runs.folder import answers_path, read_answers
from posttrain.runs.progress import Progress
from posttrain.runs.records.evaluation import AnswerLine, Figure, figures_of
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, Message

METRICS = ("win_rate", "reward")
"""What the judge says; the other figures describe the answers, whoever judges."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """Questions whose answers a reward model compares with the start's own."""

    name: str
    questions: Sequence[Question]
    reward_model: str | None
    """Folder or name of the judge; None while it has yet to be trained."""
    sampling: SamplingDistribution = GREEDY
    samples_per_prompt: int = 1

    def ask(self, asking: SuiteRun) -> Figures:
        groups, texts = asking.answers.to(self.name, self.questions, self.sampling, self.samples_per_prompt)
        # The judge scores all answers of a suite in one pass, and may not be trained yet.
        unjudged = [[None] * len(answers) for answers in texts]
        write_answers(asking.out, self.name, self.questions, groups, texts, unjudged)
        judged = judge_answers(self, asking.out, asking.baseline, progress=asking.progress)
        return judged | general_figures(groups, texts)


def load(settings: WinRateSuite, examples: list[Example], sampling: SamplingDistribution) -> WinRate:
    judge = settings.reward_model.path
    return WinRate(settings.name, questions(examples), judge, sampling, settings.samples_per_prompt)


def rejudge(
    suite: WinRate, known: Mapping[str, Figure], out: Path, baseline: Path, device: str, progress: Progress
) -> dict[str, Figure]:
    """The figures of answers that were given before: their judge may have been trained, or trained anew, since."""
    judged = judge_answers(suite, out, baseline, device=device, progress=progress)
    described = {metric: figure for metric, figure in known.items() if metric not in METRICS}
    return figures_of(judged) | described


def outcome(text: str, reward: float, other_text: str, other_reward: float) -> float:
    """1 for the higher reward, 1/2 for equal rewards or the same text, else 0."""
    if text == other_text or reward == other_reward:
        return 0.5
    return float(reward > other_reward)


def judge_answers(
    suite: WinRate, out: Path, baseline: Path, *, device: str = "auto", progress: Progress | None = None
) -> Figures:
    """Judge the answers that are kept under `out` against the start's under `baseline`, and write their rewards there.

    What this judge has scored before is not scored again. Without a judge there is nothing to say, but that the start
    wins half against itself.

    Returns:
        win_rate, and the answers' mean `reward`.

    Raises:
        ResumeError: the start was not asked these questions.
        ModelError: the judge cannot be loaded.
    """
    is_start = out.resolve() == baseline.resolve()
    # The judge is a later stage of this recipe; `rejudge` comes back when it is trained.
    if suite.reward_model is None:
        return {"win_rate": Score(0.5, 0.5, 0.5, len(suite.questions))} if is_start else {}
    judge = _Judge(suite, suite.reward_model, device, progress or Progress())
    start = judge.rewarded(baseline)
    others = _by_prompt(start, suite)
    # Against itself every answer ties; scoring it would only show rounding.
    judged = [replace(answer, score=0.5) for answer in start]
    if not is_start:
        judged = [
            replace(answer, score=_against(answer, others[index]), start_reward=_mean_reward(others[index]))
            for index, group in enumerate(_by_prompt(judge.rewarded(out), suite))
            for answer in group
        ]
    write_jsonl(answers_path(out, suite.name), (answer.to_json() for answer in judged))
    groups = _by_prompt(judged, suite)
    won = mean([[_scored(answer) for answer in group] for group in groups])
    return {
        "win_rate": Score(0.5, 0.5, 0.5, won.n) if is_start else won,
        "reward": unbounded([_mean_reward(group) for group in groups]),
    }


class _Judge:
    """The reward model, loaded when something is to be scored that it has not scored before; on every rank of a job."""

    def __init__(self, suite: WinRate, model: str, device: str, progress: Progress):
        self.suite, self.model, self.device, self.progress = suite, model, device, progress
        # By content: a judge that was trained anew under the same path judges anew.
        self.key = folder_fingerprint(resolve(model).folder)

    def rewarded(self, folder: Path) -> list[AnswerLine]:
        """The answers kept in a folder with this judge's rewards; new ones are written there."""
        path = answers_path(folder, self.suite.name)
        answers = _kept(folder, self.suite)
        if all(answer.judge == self.key for answer in answers):
            return answers
        prompts = [question.prompt for question in self.suite.questions for _ in range(self.suite.samples_per_prompt)]
        with self.progress.phase(f"{self.suite.name}: rewards", total=len(answers), unit="answers") as phase:
            rewards = everywhere(_rewards, self.model, self.device, prompts, [answer.completion for answer in answers])
            phase.advance(len(answers), tokens=sum(answer.tokens or 0 for answer in answers))
        if not all(map(math.isfinite, rewards)):
            raise DataError(
                "the reward model gives rewards that are not finite",
                where=self.model,
                found=f"{sum(not math.isfinite(reward) for reward in rewards)} of {len(rewards)} answers",
                remedy="look at its training curves; train it with a lower learning rate or in fp32",
            )
        scored = [
            replace(answer, reward=float(reward), judge=self.key, score=0.5)
            for answer, reward in zip(answers, rewards, strict=True)
        ]
        write_jsonl(path, (answer.to_json() for answer in scored))
        return scored


def _rewards(model: str, device: str, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
    """Every rank loads the judge, and scores its share."""
    return open_scorer(model, device=device).score(prompts, answers)


def _against(answer: AnswerLine, others: Sequence[AnswerLine]) -> float:
    """Mean outcome against each of the start's answers to the prompt."""
    return fmean(outcome(answer.completion, _reward(answer), other.completion, _reward(other)) for other in others)


def _reward(answer: AnswerLine) -> float:
    assert answer.reward is not None  # `rewarded` has judged every answer by now
    return answer.reward


def _scored(answer: AnswerLine) -> float:
    assert answer.score is not None
    return answer.score


def _mean_reward(group: Sequence[AnswerLine]) -> float:
    return fmean(_reward(answer) for answer in group)


def _kept(folder: Path, suite: WinRate) -> list[AnswerLine]:
    answers = read_answers(folder, suite.name)
    # In the order of the questions, for answers are paired by place: a shuffled file would compare different prompts.
    wanted = [question.text for question in suite.questions for _ in range(suite.samples_per_prompt)]
    if [answer.prompt for answer in answers] != wanted:
        raise ResumeError(
            "there are no answers to these prompts to compare with" if not answers else "the answers are to others",
            where=answers_path(folder, suite.name),
            found=f"{len(answers)} answers",
            expected=f"{len(wanted)}, in the order of {suite.questions[0].row.source}" if wanted else "prompts",
            remedy="run with --fresh, so that the start is asked again",
        )
    return answers


def _by_prompt(answers: Sequence[AnswerLine], suite: WinRate) -> list[list[AnswerLine]]:
    step = suite.samples_per_prompt
    return [list(answers[first : first + step]) for first in range(0, len(answers), step)]
