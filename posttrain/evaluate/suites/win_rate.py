"""`win_rate`: how often a model's answer is preferred to the start's own answer to the same prompt.

    win_rate = mean over prompts of (1 if the answer is preferred, 1/2 for a tie, 0 if the other is)
    lc_win_rate = the same at equal length, see `ratings.length`

By a reward model (the higher reward is preferred), a judge behind an URL (each pair in both orders) or people's votes.

The start's answers are kept when the start is asked, in `start/evaluations/<suite>.jsonl`, and every later model is
compared with exactly these; against itself the start has 1/2. In a recipe the reward model may be a later stage than
the model that is asked. Answers that come before their judge are kept without scores, and judged, not sampled again,
when the judge is there:

    start: asked    sft: asked    reward: trained, then start and sft judged    dpo: asked and judged

Deviation: two answers of the same text are a tie whatever the judge says, for its rewards differ by rounding with the
rows that are scored together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from posttrain.config.suites import ComparingJudge, WinRateSuite
from posttrain.data.questions import Question, questions
from posttrain.data.write import write_jsonl
from posttrain.errors import DataError, ResumeError
from posttrain.evaluate.asking import Figures, SuiteRun, general_figures, write_answers
from posttrain.evaluate.ratings.length import length_controlled, meets_in_length, one_sided_length
from posttrain.evaluate.reward_scorers import open_scorer
from posttrain.evaluate.suites.answers import GREEDY
from posttrain.evaluate.suites.win_rate_files import write_games
from posttrain.evaluate.suites.win_rate_judges import EndpointJudge, Pair, Votes
from posttrain.intervals import Score, average, mean, unbounded
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.parallel.calls import everywhere
from posttrain.runs.folder import answers_path, read_answers
from posttrain.runs.progress import Progress
from posttrain.runs.records.evaluation import AnswerLine, Figure, figures_of
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example, Message

METRICS = ("win_rate", "lc_win_rate", "reward", "order_agreement", "abstained_share")
"""What the judge says; the other figures describe the answers, whoever judges."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """Questions whose answers somebody compares with the start's own: one of `reward_model`, `judge`, `votes`."""

    name: str
    questions: Sequence[Question]
    reward_model: str | None
    """Folder or name of the reward model; None while it has yet to be trained, and where others judge."""
    sampling: SamplingDistribution = GREEDY
    samples_per_prompt: int = 1
    judge: ComparingJudge | None = None
    votes: str | None = None
    """File of people's votes."""

    def ask(self, asking: SuiteRun) -> Figures:
        groups, texts = asking.answers.to(self.name, self.questions, self.sampling, self.samples_per_prompt)
        # The judge scores all answers of a suite in one pass, and may not be trained yet.
        unjudged = [[None] * len(answers) for answers in texts]
        write_answers(asking.out, self.name, self.questions, groups, texts, unjudged)
        judged = judge_answers(self, asking.out, asking.baseline, progress=asking.progress)
        return judged | general_figures(groups, texts)


def load(settings: WinRateSuite, examples: list[Example], sampling: SamplingDistribution) -> WinRate:
    trained = None if settings.reward_model is None else settings.reward_model.path
    asked = questions(examples)
    return WinRate(settings.name, asked, trained, sampling, settings.samples_per_prompt, settings.judge, settings.votes)


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
    """Judge the answers that are kept under `out` against the start's under `baseline`, and write the scores there.

    What this judge has judged before is not judged again. Without a judge there is nothing to say, but that the start
    wins half against itself.

    Returns:
        win_rate and, where lengths overlap, lc_win_rate; of a reward model the answers' mean `reward`, of a judge its
        `order_agreement`, of a judge and of people the `abstained_share` of prompts on which nobody said anything.

    Raises:
        ResumeError: the start was not asked these questions.
        ModelError: the reward model cannot be loaded.
        RewardError: the judge does not answer.
    """
    is_start = out.resolve() == baseline.resolve()
    if suite.judge is not None or suite.votes is not None:
        return compare_answers(suite, out, baseline, progress or Progress())
    # The judge is a later stage of this recipe; `rejudge` comes back when it is trained.
    if suite.reward_model is None:
        return _half(suite) if is_start else {}
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
    won = _half(suite) if is_start else _won(suite, groups, others, judge.progress)
    return won | {"reward": unbounded([_mean_reward(group) for group in groups])}


def _half(suite: WinRate) -> Figures:
    """What the start has against itself."""
    half = Score(0.5, 0.5, 0.5, len(suite.questions))
    return {"win_rate": half, "lc_win_rate": half}


def _won(
    suite: WinRate, groups: Sequence[Sequence[AnswerLine]], others: Sequence[Sequence[AnswerLine]], progress: Progress
) -> Figures:
    """Raw, and at equal length where the two meet there, over the prompts on which somebody said something."""
    points, longer, prompts = [], [], []
    for index, (group, start) in enumerate(zip(groups, others, strict=True)):
        for answer in group:
            if answer.score is not None:
                points.append(answer.score)
                longer.append(len(answer.completion) - fmean(len(other.completion) for other in start))
                prompts.append(index)
    scored = [[answer.score for answer in group if answer.score is not None] for group in groups]
    won = {"win_rate": mean([values for values in scored if values])}
    longer_G = np.array(longer)
    if meets_in_length(longer_G):
        return won | {"lc_win_rate": length_controlled(np.array(points), longer_G, np.array(prompts))}
    progress.say(
        f"{suite.name}: of the answers {one_sided_length(longer_G)} than the start's, so that nothing tells the win "
        "rate at equal length"
    )
    return won


# ---------------------------------------------------------------- by a judge, or by people


def compare_answers(suite: WinRate, out: Path, baseline: Path, progress: Progress) -> Figures:
    """The figures of answers that a judge or people compare with the start's, pair by pair.

    Writes evaluations/<suite>.games.jsonl, what was judged, as `posttrain rate` reads it; and of votes
    evaluations/<suite>.ballot.jsonl, the pairs that nobody has voted on.
    """
    start = _kept(baseline, suite)
    judge = _comparing(suite, baseline, progress)
    if out.resolve() == baseline.resolve():
        write_jsonl(answers_path(out, suite.name), (replace(line, score=0.5).to_json() for line in start))
        if isinstance(judge, EndpointJudge) and start:
            judge.try_once(suite.questions[0].text, start[0].completion)
        return _half(suite)
    groups, others = _by_prompt(_kept(out, suite), suite), _by_prompt(start, suite)
    met = [
        (index, place, Pair(question.text, answer.completion, other.completion, question.answer or ""))
        for index, question in enumerate(suite.questions)
        for place, answer in enumerate(groups[index])
        for other in others[index]
    ]
    outcomes = judge.outcomes([pair for *_, pair in met])
    points: dict[tuple[int, int], list[float]] = defaultdict(list)
    for (index, place, _), outcome_of_pair in zip(met, outcomes, strict=True):
        if outcome_of_pair.points is not None:
            points[index, place].append(outcome_of_pair.points)
    judged = [
        [replace(answer, score=fmean(own) if (own := points.get((index, place))) else None) for place, answer in group]
        for index, group in ((index, list(enumerate(group))) for index, group in enumerate(groups))
    ]
    write_jsonl(answers_path(out, suite.name), (answer.to_json() for group in judged for answer in group))
    pairs = [pair for *_, pair in met]
    write_games(out, suite.name, (out.name, baseline.name), pairs, outcomes, is_ballot=suite.votes is not None)
    silent = [float(all(answer.score is None for answer in group)) for group in judged]
    said = {"abstained_share": average(silent)}
    waiting = any(found.points is None for found in outcomes)
    # Equal texts tie unasked: where nobody has judged the others yet, these alone are no win rate.
    asked = [one for (*_, pair), one in zip(met, outcomes, strict=True) if pair.answer != pair.other]
    if waiting and all(one.points is None for one in asked):
        return said
    agreed = defaultdict(list)
    for (index, _, pair), one in zip(met, outcomes, strict=True):
        if one.orders is not None and pair.answer != pair.other:
            agreed[index].append(float(one.orders[0] == one.orders[1]))
    return (
        _won(suite, judged, others, progress)
        | ({"order_agreement": mean(list(agreed.values()))} if agreed else {})
        | said
    )


def _comparing(suite: WinRate, baseline: Path, progress: Progress) -> EndpointJudge | Votes:
    if suite.judge is not None:
        return EndpointJudge(suite.name, suite.judge, baseline, progress)
    assert suite.votes is not None
    return Votes(suite.votes)


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
