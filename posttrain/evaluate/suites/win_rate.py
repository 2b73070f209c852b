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
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.config.suites import WinRateSuite
from posttrain.data.write import write_jsonl
from posttrain.errors import DataError, ResumeError
from posttrain.evaluate.asking import Asking, Figures, answers_path, general_figures, write_answers
from posttrain.evaluate.questions import Question, questions
from posttrain.evaluate.reward_scorers import RewardScorer, open_scorer
from posttrain.evaluate.suites.answers import GREEDY
from posttrain.intervals import Score, mean, unbounded
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.runs.files import Record, read_jsonl
from posttrain.runs.progress import Progress
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example

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

    def ask(self, asking: Asking) -> Figures:
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
    suite: WinRate, known: Mapping[str, Any], out: Path, baseline: Path, device: str, progress: Progress
) -> dict[str, Any]:
    """The figures of answers that were given before: their judge may have been trained, or trained anew, since."""
    judged = judge_answers(suite, out, baseline, device=device, progress=progress)
    described = {metric: figure for metric, figure in known.items() if metric not in METRICS}
    return {metric: score.as_dict() for metric, score in judged.items()} | described


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
    judged = [record | {"score": 0.5} for record in start]
    if not is_start:
        judged = [
            record | {"score": _against(record, others[index]), "start_reward": _mean_reward(others[index])}
            for index, group in enumerate(_by_prompt(judge.rewarded(out), suite))
            for record in group
        ]
    write_jsonl(answers_path(out, suite.name), judged)
    groups = _by_prompt(judged, suite)
    won = mean([[record["score"] for record in group] for group in groups])
    return {
        "win_rate": Score(0.5, 0.5, 0.5, won.n) if is_start else won,
        "reward": unbounded([_mean_reward(group) for group in groups]),
    }


class _Judge:
    """The reward model, loaded when something is to be scored that it has not scored before."""

    def __init__(self, suite: WinRate, model: str, device: str, progress: Progress):
        self.suite, self.model, self.device, self.progress = suite, model, device, progress
        # By content: a judge that was trained anew under the same path judges anew.
        self.key = folder_fingerprint(resolve(model).folder)
        self._scorer: RewardScorer | None = None

    def rewarded(self, folder: Path) -> list[Record]:
        """The answers kept in a folder with this judge's rewards; new ones are written there."""
        path = answers_path(folder, self.suite.name)
        records = _kept(path, self.suite)
        if all(record.get("judge") == self.key for record in records):
            return records
        self._scorer = self._scorer or open_scorer(self.model, device=self.device)
        prompts = [question.prompt for question in self.suite.questions for _ in range(self.suite.samples_per_prompt)]
        with self.progress.phase(f"{self.suite.name}: rewards", total=len(records), unit="answers") as phase:
            rewards = self._scorer.score(prompts, [record["completion"] for record in records])
            phase.advance(len(records), tokens=sum(record["tokens"] for record in records))
        if not all(map(math.isfinite, rewards)):
            raise DataError(
                "the reward model gives rewards that are not finite",
                where=self.model,
                found=f"{sum(not math.isfinite(reward) for reward in rewards)} of {len(rewards)} answers",
                remedy="look at its training curves; train it with a lower learning rate or in fp32",
            )
        scored = [
            record | {"reward": float(reward), "judge": self.key, "score": 0.5}
            for record, reward in zip(records, rewards, strict=True)
        ]
        write_jsonl(path, scored)
        return scored


def _against(record: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> float:
    """Mean outcome against each of the start's answers to the prompt."""
    return fmean(
        outcome(record["completion"], record["reward"], other["completion"], other["reward"]) for other in others
    )


def _mean_reward(group: Sequence[Mapping[str, Any]]) -> float:
    return fmean(record["reward"] for record in group)


def _kept(path: Path, suite: WinRate) -> list[Record]:
    records = read_jsonl(path)
    # In the order of the questions, for answers are paired by place: a shuffled file would compare different prompts.
    wanted = [question.text for question in suite.questions for _ in range(suite.samples_per_prompt)]
    if [record.get("prompt") for record in records] != wanted:
        raise ResumeError(
            "there are no answers to these prompts to compare with" if not records else "the answers are to others",
            where=path,
            found=f"{len(records)} answers",
            expected=f"{len(wanted)}, in the order of {suite.questions[0].row.source}" if wanted else "prompts",
            remedy="run with --fresh, so that the start is asked again",
        )
    return records


def _by_prompt(records: Sequence[Record], suite: WinRate) -> list[list[Record]]:
    step = suite.samples_per_prompt
    return [list(records[first : first + step]) for first in range(0, len(records), step)]
