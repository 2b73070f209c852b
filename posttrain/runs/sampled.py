"""What an online stage sampled, as far as pictures and samples of it go: `read_sampled(folder)`.

    <stage>/  rollouts.jsonl  examinations.jsonl

Of a long run some steps are read, evenly spread, the first and the last among them; of each completion its reward, its
length and its prompt stay in memory, and the texts of what the page shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from posttrain.intervals import Score, average
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.sampled import ExaminationLine
from posttrain.runs.sample_log import Sample, SampleLog
from posttrain.runs.samples import EXAMINATIONS, ROLLOUTS, Choice, StepSamples, pick, spread
from posttrain.runs.tolerant import Files

MOST_STEPS = 60
"""Steps of rollouts that are read; a picture of more bands than this shows no more."""
MOST_EXAMINATIONS = 40
SHOWN_STEPS = 3
"""Early, middle and late."""
SAME_PROMPTS = 4

TaskKey = tuple[str, str]
"""(row, prompt)"""


@dataclass(slots=True)
class StepSpread:
    """All completions of one step, without their texts."""

    step: int
    points: list[tuple[float, float]] = field(default_factory=list)
    """(tokens, reward) of those that have both."""
    rewards: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    groups: dict[TaskKey, list[float]] = field(default_factory=dict)
    """Rewards by prompt."""

    def add(self, sample: Sample) -> None:
        if sample.reward is not None:
            self.rewards.append(sample.reward)
            self.groups.setdefault(sample.group, []).append(sample.reward)
        if sample.tokens is not None:
            self.lengths.append(float(sample.tokens))
        if sample.reward is not None and sample.tokens is not None:
            self.points.append((float(sample.tokens), sample.reward))


@dataclass(slots=True)
class Examined:
    """One examination: the answers' scores by held-out task."""

    step: int
    scores: dict[TaskKey, list[float]] = field(default_factory=dict)

    @property
    def by_task(self) -> dict[TaskKey, float]:
        """Several answers to one task are one observation."""
        return {key: sum(scores) / len(scores) for key, scores in self.scores.items()}

    @property
    def score(self) -> Score:
        """The mean over tasks with its 95 % interval over tasks, as a suite would have it of the same answers."""
        return average(list(self.by_task.values()))


@dataclass(frozen=True, slots=True)
class SamePrompt:
    """One prompt at several steps; None where it was not asked."""

    prompt: str
    answer: str
    row: str
    cells: list[list[Sample] | None]
    """By column: the best and the worst completion, or the one that there is."""


@dataclass(frozen=True, slots=True)
class SampledStage:
    """The files of one stage."""

    steps: int
    """How many there are."""
    completions: int
    spreads: list[StepSpread]
    shown: list[StepSamples]
    """Best, worst and random of an early, a middle and a late step."""
    same: list[SamePrompt]
    """Prompts that were asked early and late, if there are any."""
    same_columns: list[str]
    examined: list[Examined]
    held_out: list[SamePrompt]
    """Held-out tasks at the first, the best and the last examination."""
    held_out_columns: list[str]


def held_out_scores(folder: StageFolder) -> dict[int, Score]:
    """The score of each examination by step; of an examination that nobody judged, none.

    Raises SourceError for a broken line of examinations.jsonl that is not the last.
    """
    examined: dict[int, Examined] = {}
    for line in folder.lines(ExaminationLine):
        # An answer that nobody judged is in no mean: counted as 0 it would make an abstaining reward look like failure.
        if line.score is not None and line.step is not None:
            examination = examined.setdefault(line.step, Examined(line.step))
            examination.scores.setdefault((line.row, line.prompt), []).append(line.score)
    return {step: examination.score for step, examination in sorted(examined.items())}


def read_sampled(files: Files, folder: Path, best_step: int | None) -> SampledStage | None:
    """None for a stage that sampled nothing. What cannot be read becomes a problem of `files`.

    Args:
        best_step: of the best examination, as the stage says.
    """
    rollouts, examinations = SampleLog(folder / ROLLOUTS), SampleLog(folder / EXAMINATIONS)
    if not rollouts.steps and not examinations.steps:
        _note(files, rollouts, examinations)
        return None
    # Only these steps are parsed: a long run's rollouts.jsonl may have gigabytes, and a picture shows so many bands.
    spreads = [_spread(rollouts, step) for step in spread(list(rollouts.steps), MOST_STEPS)]
    shown = [pick(step, rollouts.read([step]), Choice()) for step in spread(list(rollouts.steps), SHOWN_STEPS)]
    same_steps, same = _same_prompts(rollouts, spreads)
    asked = spread(list(examinations.steps), MOST_EXAMINATIONS)
    # The best examination is in the verdict and in a column of the samples; thinning must not lose it.
    if best_step in examinations.steps and best_step not in asked:
        asked = sorted([*asked, best_step])
    examined = [_examined(examinations, step) for step in asked]
    # The stage's own word goes first: it decided which weights were kept, also among equal means.
    best = best_step if best_step in asked else _best(examined)
    columns = sorted({examined[0].step, examined[-1].step, best}) if examined and best is not None else []
    held_out = _held_out(examinations, examined, columns)
    _note(files, rollouts, examinations)
    return SampledStage(
        steps=len(rollouts.steps),
        completions=sum(rollouts.steps.values()),
        spreads=spreads,
        shown=shown,
        same=same,
        same_columns=same_steps,
        examined=examined,
        held_out=held_out,
        held_out_columns=[f"step {step}{', the best' if step == best else ''}" for step in columns],
    )


def _note(files: Files, *logs: SampleLog) -> None:
    for log in logs:
        for note in log.notes:
            files.note(log.path, note)


def _spread(log: SampleLog, step: int) -> StepSpread:
    step_spread = StepSpread(step)
    for sample in log.read([step]):
        step_spread.add(sample)
    return step_spread


def _examined(log: SampleLog, step: int) -> Examined:
    examination = Examined(step)
    # An answer that nobody judged is no answer of score 0; see `held_out_scores`.
    for sample in log.read([step]):
        if sample.reward is not None:
            examination.scores.setdefault(sample.group, []).append(sample.reward)
    return examination


def _best(examined: list[Examined]) -> int | None:
    """The step of the best mean score, the later of two equal ones, as the stage itself judges."""
    means = [(sum(flat) / len(flat), examination.step) for examination in examined if (flat := _flat(examination))]
    return max(means)[1] if means else None


def _flat(examination: Examined) -> list[float]:
    return [score for scores in examination.scores.values() for score in scores]


# ---------------------------------------------------------------- the same prompt at several steps


def _same_prompts(log: SampleLog, spreads: list[StepSpread]) -> tuple[list[str], list[SamePrompt]]:
    """Prompts that early and late steps share, those first whose mean reward moved most."""
    if len(spreads) < 2:
        return [], []
    third = max(1, len(spreads) // 3)
    # Backwards, for the last one wins: of the early steps the earliest, of the late ones the latest, as far apart as
    # there are.
    early, late = _latest(spreads[:third][::-1]), _latest(spreads[-third:])
    middle = _latest(spreads[third:-third])
    both = [key for key in early if key in late]
    # Prompts whose reward stood still show nothing of what training did, whichever way it went.
    moved = sorted(both, key=lambda key: -abs(late[key][1] - early[key][1]))[:SAME_PROMPTS]
    found = []
    for key in moved:
        steps = [early[key][0], middle[key][0] if key in middle else None, late[key][0]]
        found.append(_at_steps(log, key, steps))
    return (["early", "middle", "late"], found) if found else ([], [])


def _latest(spreads: list[StepSpread]) -> dict[TaskKey, tuple[int, float]]:
    """By prompt the last of these steps that asked it, and its mean reward there."""
    return {
        key: (at_step.step, sum(rewards) / len(rewards))
        for at_step in spreads
        for key, rewards in at_step.groups.items()
    }


def _at_steps(log: SampleLog, key: TaskKey, steps: list[int | None]) -> SamePrompt:
    cells = [None if step is None else _ends(log, key, step) for step in steps]
    some = next(cell[0] for cell in cells if cell)
    return SamePrompt(some.prompt, some.answer, some.row, cells)


def _ends(log: SampleLog, key: TaskKey, step: int) -> list[Sample] | None:
    found = pick(
        step, (sample for sample in log.read([step]) if sample.group == key), Choice(best=1, worst=1, random=0)
    )
    kept = [shown.sample for shown in found.shown]
    # Two completions of one reward say no more than one of them.
    return (kept[:1] if len(kept) == 2 and kept[0].reward == kept[1].reward else kept) or None


MOST_HELD_OUT = {"gained": 5, "lost": 4, "never": 3, "kept": 2}


def _held_out(log: SampleLog, examined: list[Examined], columns: list[int]) -> list[SamePrompt]:
    """Tasks that were gained, lost, never and always solved between the first and the last of these examinations."""
    if len(columns) < 2:
        return []
    by_step = {examination.step: examination.by_task for examination in examined}
    first, last = by_step[columns[0]], by_step[columns[-1]]
    # What counts as solved is the best score that was seen: a judge's scale need not end at 1.
    top = max([*first.values(), *last.values()], default=0.0)
    kinds: dict[str, list[TaskKey]] = {kind: [] for kind in MOST_HELD_OUT}
    for key in first:
        if key in last:
            kinds[_moved(first[key], last[key], top)].append(key)
    wanted = [key for kind, keys in kinds.items() for key in keys[: MOST_HELD_OUT[kind]]]
    firsts: dict[int, dict[TaskKey, Sample]] = {}
    for step in columns:
        own = firsts.setdefault(step, {})
        for sample in log.read([step]):
            # The first answer to each task, whatever its score: the best of several would be luck.
            if sample.group in wanted:
                own.setdefault(sample.group, sample)
    found = []
    for key in wanted:
        cells = [[own[key]] if key in own else None for own in firsts.values()]
        some = next(cell[0] for cell in cells if cell)
        found.append(SamePrompt(some.prompt, some.answer, some.row, cells))
    return found


def _moved(first: float, last: float, top: float) -> str:
    if first != last:
        return "gained" if last > first else "lost"
    return "kept" if last >= top else "never"
