"""The best, worst and random completions of an online stage, by step: what `posttrain samples` shows.

    found = samples("runs/mine", steps=[1, 30], best=2)
    for step in found.steps:
        for shown in step.shown:
            print(step.step, shown.label, shown.sample.reward, shown.sample.completion)

One line of the file is in memory at a time; of each step only what is shown is kept. Equal seeds show equal samples.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from posttrain.arguments import checked_flag, checked_list, checked_path, checked_seed, checked_text, checked_whole
from posttrain.errors import ConfigError, SourceError, UnknownKeyError, did_you_mean, nearest
from posttrain.runs.folder import EARLIER
from posttrain.runs.records.run import RunRecord
from posttrain.runs.records.sampled import ExaminationLine, RolloutLine
from posttrain.runs.sample_log import Sample, SampleLog
from posttrain.runs.tolerant import Files

ROLLOUTS = RolloutLine.FILE
EXAMINATIONS = ExaminationLine.FILE
SPREAD = 4
"""Steps that are shown where none is named."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How many of which kind are shown of a step, and ranked by what."""

    best: int = 1
    worst: int = 1
    random: int = 1
    part: str | None = None
    """A part of the reward that ranks in the place of the whole."""
    prompt: str | None = None
    """Only completions whose prompt (or row's name) contains this."""
    seed: int = 0
    """Of the random ones, and of the order among equals."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """ShownSample("best", Sample(...))"""

    label: str
    """best, worst or random."""
    sample: Sample


@dataclass(slots=True)
class StepSamples:
    """What one step shows, and what all of its matching completions say."""

    step: int
    completions: int = 0
    judged: int = 0
    reward: float | None = None
    """Mean over the judged ones, of the part if one was named."""
    truncated: int = 0
    shown: list[ShownSample] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Samples:
    """The answer of `samples`."""

    stage: str
    path: Path
    known: Mapping[int, int]
    """All steps of the file and how many completions each has."""
    steps: list[StepSamples]
    others: tuple[str, ...]
    """Other stages of the run that have such a file."""
    notes: tuple[str, ...]
    """What could not be read."""


def samples(
    run: str | os.PathLike[str],
    *,
    stage: str | None = None,
    steps: Iterable[int] | None = None,
    best: int = 1,
    worst: int = 1,
    random: int = 1,
    prompt: str | None = None,
    part: str | None = None,
    held_out: bool = False,
    seed: int = 0,
) -> Samples:
    """Pick samples of a run folder, or of one stage's folder.

    Args:
        stage: the last stage that sampled, if None.
        steps: a few, spread over the run, if None.
        best, worst, random: how many of each.
        prompt: only completions whose prompt or row's name contains this text.
        part: rank by this part of the reward.
        held_out: answers to held-out tasks, ranked by their score.
        seed: of the random ones, and of the order among equals.

    Raises:
        SourceError: there is no such folder, or nothing was sampled in it.
        UnknownKeyError: no stage, step or part of that name; names what there is.
        ConfigError: nothing is asked for; no prompt contains the text.
    """
    folder = checked_path("run", run, "runs/mine")
    for name, number in (("best", best), ("worst", worst), ("random", random)):
        checked_whole(name, number, least=-(2**32))  # one below 0 is refused with the others
    for name, text in (("stage", stage), ("prompt", prompt), ("part", part)):
        if text is not None:
            checked_text(name, text, "...")
    checked_seed(seed)
    checked_flag("held_out", held_out)
    if steps is not None:
        steps = [checked_whole("steps", step) for step in checked_list("steps", steps, of="steps", example="[1, 30]")]
    choice = Choice(best, worst, random, part, prompt, seed)
    if min(best, worst, random) < 0 or not best + worst + random:
        raise ConfigError(
            "nothing is asked for",
            found=f"best {best}, worst {worst}, random {random}",
            expected="counts from 0 up, at least one of them above 0",
            remedy="leave the three out for one of each",
        )
    path, others = find_log(folder, stage, EXAMINATIONS if held_out else ROLLOUTS)
    log = SampleLog(path)
    _require_some(log)
    chosen = _chosen_steps(log, steps, choice)
    found = [pick(step, log.read([step]), choice) for step in chosen]
    if prompt is not None and not any(step.completions for step in found):
        raise _no_such_prompt(prompt, log, None if steps is None else chosen)
    _require_part(found, log, chosen, choice)
    return Samples(path.parent.name, path, log.steps, found, others, tuple(log.notes))


def _no_such_prompt(prompt: str, log: SampleLog, named: Sequence[int] | None) -> ConfigError:
    """named: the steps that were asked for; None where the whole file was searched."""
    searched = list(log.steps) if named is None else named
    narrowed = "" if named is None else ", or leave --step and --steps out to look through the whole file"
    return ConfigError(
        f"no prompt contains {prompt!r}",
        where=log.path,
        found=f"{sum(log.steps[step] for step in searched):,} completions in steps {numbers_said(searched)}",
        remedy=f"try fewer words{narrowed}",
    )


# ---------------------------------------------------------------- which file


def find_log(run: Path, stage: str | None, name: str) -> tuple[Path, tuple[str, ...]]:
    """The file `name` of a run's stage, or of the stage folder itself; and the other stages that have one.

    Raises:
        SourceError: no folder, or none with such a file.
        UnknownKeyError: the stage has none, or there is no such stage.
    """
    if not run.is_dir():
        raise SourceError("there is no such folder", where=run, **_near_folder(run))
    if stage is None and ((run / name).is_file() or (run / "stage.json").is_file()):
        if not (run / name).is_file():
            raise _nothing_sampled(run, [run.name], name)
        return run / name, ()
    folders = _stage_folders(run)
    having = [folder for folder in folders if (folder / name).is_file()]
    if not having:
        raise _nothing_sampled(run, [folder.name for folder in folders], name)
    if stage is None:
        # The last stage is what the run came to; the others are named, so that nobody takes it for the only one.
        return having[-1] / name, tuple(folder.name for folder in having[:-1])
    match = next((folder for folder in having if folder.name == stage), None)
    if match is None:
        names = [folder.name for folder in having]
        there = any(folder.name == stage for folder in folders)
        raise UnknownKeyError(
            f"stage {stage!r} sampled nothing" if there else f"there is no stage {stage!r}",
            where=run,
            expected=f"one of {', '.join(names)}",
            remedy=f"write `--stage {nearest(stage, names) or names[-1]}`",
        )
    return match / name, tuple(folder.name for folder in having if folder is not match)


def _stage_folders(run: Path) -> list[Path]:
    """In the order in which they ran, as far as run.json says; then by name."""
    about = Files(run).document(run / RunRecord.FILE, RunRecord)
    order = [entry.name for entry in about.stages] if about is not None else []
    folders = [folder for folder in run.iterdir() if folder.is_dir() and folder.name != "start"]
    place = {name: index for index, name in enumerate(order)}

    def when(folder: Path) -> tuple[int, str]:
        # Results that were moved aside come first: the last is what is shown where no stage is named.
        return (-1 if EARLIER.fullmatch(folder.name) else place.get(folder.name, len(place))), folder.name

    return sorted(folders, key=when)


def _near_folder(run: Path) -> dict[str, str]:
    parent = run.parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    near = nearest(run.name, names)
    if near is None and (Path("runs") / run).is_dir():
        near = (Path("runs") / run).as_posix()
        return {"remedy": did_you_mean(near)}
    otherwise = "give a run folder, `runs/<recipe>`, or one of its stages"
    return {"remedy": did_you_mean(near and str(parent / near), otherwise)}


def _nothing_sampled(run: Path, stages: Sequence[str], name: str) -> SourceError:
    what = "no held-out task was asked" if name == EXAMINATIONS else "nothing was sampled here"
    return SourceError(
        what,
        where=run,
        found=f"no {name} in {', '.join(stages) or 'any folder'}",
        expected=f"a stage that learns from its own samples (grpo, ppo, online_dpo, rft ...) and its {name}",
        remedy="give the folder of a run with such a stage"
        + ("; `held_out` and `examine` of the stage ask held-out tasks" if name == EXAMINATIONS else ""),
    )


def _require_some(log: SampleLog) -> None:
    if not log.steps:
        raise SourceError(
            "there is no whole line yet",
            where=log.path,
            found="; ".join(log.notes) or "an empty file",
            remedy="wait until the first step has sampled",
        )


# ---------------------------------------------------------------- which steps


def _chosen_steps(log: SampleLog, wanted: Iterable[int] | None, choice: Choice) -> list[int]:
    known = list(log.steps)
    if wanted is not None:
        asked = sorted(set(wanted))
        missing = [step for step in asked if step not in log.steps]
        if missing or not asked:
            near = min(known, key=lambda step: abs(step - missing[0])) if missing else known[-1]
            raise UnknownKeyError(
                f"there is no step {', '.join(map(str, missing))}" if missing else "no step is named",
                where=log.path,
                expected=f"steps {numbers_said(known)}",
                remedy=f"the nearest is {near}: write `--step {near}`",
            )
        return asked
    if choice.prompt is not None:
        # The whole file is read for it: a prompt may have been asked at any step. Where none has it, all steps stay,
        # so that the caller's error has steps to name.
        known = list(dict.fromkeys(sample.step for sample in log.read() if sample.about(choice.prompt))) or known
    return spread(known, SPREAD)


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly, both ends among them: spread([1, ..., 30], 4) is [1, 11, 20, 30]."""
    if len(steps) <= most:
        return list(steps)
    if most == 1:
        return [steps[-1]]
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def numbers_said(numbers: Sequence[int], most: int = 8) -> str:
    """Ranges: numbers_said([1, 2, 3, 5, 10]) is "1-3, 5, 10"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    said = [f"{low}-{high}" if high > low else str(low) for low, high in ranges]
    return ", ".join(said if len(said) <= most else [*said[: most - 1], "...", said[-1]])


# ---------------------------------------------------------------- which samples


def pick(step: int, found: Iterable[Sample], choice: Choice) -> StepSamples:
    """The best, the worst, and some at random of the rest; a completion is shown once.

    Among equals a draw from the seed decides, so that of a hundred right answers not always the first is shown.
    """
    said = StepSamples(step)
    # Each list keeps enough for all three labels: its first ones may have been shown under another already.
    total = choice.best + choice.worst + choice.random
    best, worst, drawn = _Top(total), _Top(total), _Top(total)
    rewards = 0.0
    for place, sample in enumerate(_matching(found, choice)):
        said.completions += 1
        said.truncated += sample.truncated
        chance = _draw(choice.seed, sample, place)
        value = sample.value(choice.part)
        # Completions that nobody judged have no rank, but they are drawn: they too are what the policy says.
        drawn.add((chance,), sample)
        if value is not None:
            said.judged += 1
            rewards += value
            best.add((value, chance), sample)
            worst.add((-value, chance), sample)
    said.reward = rewards / said.judged if said.judged else None
    taken: list[Sample] = []
    for label, top, wanted in (
        ("best", best, choice.best),
        ("worst", worst, choice.worst),
        ("random", drawn, choice.random),
    ):
        free = [sample for sample in top.kept() if not any(sample is other for other in taken)][:wanted]
        taken += free
        said.shown += [ShownSample(label, sample) for sample in free]
    return said


def _matching(found: Iterable[Sample], choice: Choice) -> Iterator[Sample]:
    return (sample for sample in found if choice.prompt is None or sample.about(choice.prompt))


class _Top:
    """The `size` samples of the largest keys."""

    def __init__(self, size: int):
        self._size = size
        self._heap: list[tuple[tuple[float, ...], int, Sample]] = []
        # Falling, so that of equal keys the earlier sample is larger and stays; it also keeps the heap from comparing
        # samples.
        self._order = count(0, -1)

    def add(self, key: tuple[float, ...], sample: Sample) -> None:
        entry = (key, next(self._order), sample)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def kept(self) -> list[Sample]:
        return [sample for _, _, sample in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def _draw(seed: int, sample: Sample, place: int) -> float:
    """A number in [0, 1) of the seed and the sample's place alone, whatever else is in the file."""
    # A hash and no generator, whose state would depend on what was read before: a step that is asked for alone would
    # show other samples than among several.
    named = f"{seed}/{sample.step}/{sample.row}/{place}"
    return int.from_bytes(hashlib.blake2b(named.encode("utf-8", "replace"), digest_size=8).digest()) / 2**64


def _require_part(found: Sequence[StepSamples], log: SampleLog, steps: Sequence[int], choice: Choice) -> None:
    # A part may abstain from all of a few steps; only a name that no line has is a typing error.
    if choice.part is None or any(step.judged for step in found):
        return
    names = list(dict.fromkeys(name for sample in log.read(steps) for name in sample.parts))
    if choice.part in names:
        return
    near = nearest(choice.part, names)
    raise UnknownKeyError(
        f"no reward has a part {choice.part!r}",
        where=log.path,
        expected=f"one of {', '.join(names)}" if names else "rewards with parts",
        remedy=f"write `--part {near}`" if near else "leave --part out to rank by the whole reward",
    )
