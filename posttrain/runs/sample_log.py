"""What an online stage sampled, read back from rollouts.jsonl and examinations.jsonl without holding either in memory.

    log = SampleLog(Path("runs/mine/grpo/rollouts.jsonl"))
    log.steps                               # {1: 128, 2: 128, ...}: completions by step
    for sample in log.read([1, 30]): ...    # Sample(step=1, prompt="2 + 2?", completion="4", reward=1.0, ...)

A first pass looks at the beginning of each line alone and remembers where every step stands, so that reading a few
steps parses only their lines, and memory grows with the number of steps. A running job's last line may be torn: it is
dropped, and `log.notes` says so. Standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.runs.records.sampled import ExaminationLine, RolloutLine
from posttrain.runs.tolerant import json_object

STEP_FIRST = re.compile(rb'\s*\{\s*"step"\s*:\s*(\d+)\s*[,}]')
"""How the lines begin that posttrain writes; of any other the whole line is parsed."""


@dataclass(frozen=True, slots=True)
class SampledRatio:
    """Trainer's over sampler's probability of the sampled tokens: SampledRatio(mean=1.0003, largest=1.02)."""

    mean: float
    largest: float
    """The one furthest from 1, up or down."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion as the file has it; what it lacks is None, or "".

    Sample(step=3, version=2, row="tasks.jsonl, row 7", number=0, prompt="What is 2 + 2?", answer="4",
           completion="2 + 2 = 4", finish="stop_token", reward=1.0, parts={"math": 1.0}, tokens=9, trained=True,
           advantage=0.7, logprob=-0.2, ratio=None)
    """

    step: int
    version: int | None
    """Of the weights that sampled: how many steps they had taken."""
    row: str
    number: int | None
    """Its place in its prompt's group."""
    prompt: str
    answer: str
    """What the task says is right."""
    completion: str
    finish: str
    reward: float | None
    """What trained; of a held-out answer its score."""
    parts: Mapping[str, float | None]
    tokens: int | None
    trained: bool | None
    advantage: float | None
    """Mean over its tokens."""
    logprob: float | None
    """The sampler's, mean over its tokens, in nats."""
    ratio: SampledRatio | None
    """Where the trainer computed the log-probs anew."""

    @classmethod
    def of_rollout(cls, line: RolloutLine) -> Sample:
        return cls(
            step=line.step or 0,
            version=line.version,
            row=line.row,
            number=line.number,
            prompt=line.prompt,
            answer=line.answer or "",
            completion=line.completion,
            finish=line.finish,
            reward=line.reward,
            parts=line.parts,
            # Counted from the ids: the completion's text need not split into the tokens that were sampled.
            tokens=None if line.ids is None else len(line.ids),
            trained=None if line.mask is None else any(line.mask),
            advantage=_mean(line.columns.get("advantages", ())),
            logprob=_mean(line.sampler_logprobs),
            ratio=_ratio(line.sampler_logprobs, line.columns.get("old_logprobs", ())),
        )

    @classmethod
    def of_examination(cls, line: ExaminationLine) -> Sample:
        return cls(
            step=line.step or 0,
            version=None,
            row=line.row,
            number=None,
            prompt=line.prompt,
            answer=line.answer or "",
            completion=line.completion,
            finish=line.finish,
            # The judge of held-out answers takes the place of the reward, so that both are ranked and drawn alike.
            reward=line.score,
            parts=line.parts,
            tokens=line.tokens,
            trained=None,
            advantage=None,
            logprob=None,
            ratio=None,
        )

    @property
    def truncated(self) -> bool:
        return self.finish == "length"

    @property
    def group(self) -> tuple[str, str]:
        """What completions of one prompt have in common."""
        return self.row, self.prompt

    def value(self, part: str | None) -> float | None:
        """A part of the reward, or the whole of it."""
        return self.reward if part is None else self.parts.get(part)

    def about(self, text: str) -> bool:
        """Whether the prompt or the row's name contains a text, in capitals or not."""
        wanted = text.casefold()
        return wanted in self.prompt.casefold() or wanted in self.row.casefold()


@dataclass(slots=True)
class _Place:
    """The bytes in which a step's lines lie."""

    first: int
    end: int
    lines: int = 0


@dataclass(slots=True)
class SampleLog:
    """One file of samples; see the module's docstring.

    A file that is not there has no steps.
    """

    path: Path
    notes: list[str] = field(default_factory=list)
    """What could not be read."""
    _places: dict[int, _Place] = field(default_factory=dict)
    _broken: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self._index()

    @property
    def steps(self) -> dict[int, int]:
        """Lines by step, in the order of the steps."""
        return {step: self._places[step].lines for step in sorted(self._places)}

    def read(self, steps: Iterable[int] | None = None) -> Iterator[Sample]:
        """The samples of these steps (of all, if None), step by step, in the file's order."""
        of_held_out_tasks = self.path.name == ExaminationLine.FILE
        for step in sorted(set(self._places if steps is None else steps) & set(self._places)):
            for content in self._contents(step):
                if of_held_out_tasks:
                    yield Sample.of_examination(ExaminationLine.from_json(content))
                else:
                    yield Sample.of_rollout(RolloutLine.from_json(content))

    # ------------------------------------------------------------ lines

    def _index(self) -> None:
        at = 0
        with self.path.open("rb") as lines:
            for line in lines:
                begin, at = at, at + len(line)
                if not line.strip():
                    continue
                # Without its newline a line may still be whole (an editor cut it off); only what is no JSON is torn.
                if not line.endswith(b"\n") and json_object(line) is None:
                    self.notes.append("the last line is torn (the run is writing it, or was killed) and was dropped")
                    continue
                step = _step_of(line)
                if step is None:
                    self._note_broken(begin)
                    continue
                # A span, not a list of offsets: memory grows with the steps. Lines of other steps within it are passed
                # over when it is read.
                place = self._places.setdefault(step, _Place(begin, at))
                place.end, place.lines = at, place.lines + 1

    def _contents(self, step: int) -> Iterator[dict[str, Any]]:
        place = self._places[step]
        with self.path.open("rb") as file:
            file.seek(place.first)
            at = place.first
            # Up to where the file stood when it was indexed: a run that is still writing must not change the counts
            # that are on the page already.
            while at < place.end and (line := file.readline()):
                begin, at = at, at + len(line)
                if not line.strip() or _step_of(line) != step:
                    continue
                content = json_object(line)
                if content is None:
                    self._note_broken(begin)
                else:
                    yield content

    def _note_broken(self, begin: int) -> None:
        """Counted once, however often the line is read; the note says how many by now."""
        if begin in self._broken:
            return
        self._broken.add(begin)
        lines = len(self._broken)
        are, were = ("s are", "were") if lines > 1 else (" is", "was")
        said = f"{lines} line{are} no readable JSON and {were} dropped"
        self.notes[:] = [note for note in self.notes if "no readable JSON" not in note] + [said]


def _ratio(sampler: Sequence[float | None], trainer: Sequence[float | None]) -> SampledRatio | None:
    # Paired by place alone; of different lengths nobody knows which token a number belongs to.
    if len(sampler) != len(trainer):
        return None
    pairs = zip(trainer, sampler, strict=True)
    gaps = [own - other for own, other in pairs if own is not None and other is not None]
    if not gaps:
        return None
    # Cut at 80 as in the losses: math.exp raises beyond 709, and long before that one token is the whole mean.
    ratios = [math.exp(min(gap, 80.0)) for gap in gaps]
    # The largest by its log: 1/100 is as far from 1 as 100 is.
    return SampledRatio(math.fsum(ratios) / len(ratios), math.exp(min(max(gaps, key=abs), 80.0)))


def _step_of(line: bytes) -> int | None:
    match = STEP_FIRST.match(line)
    if match:
        return int(match[1])
    content = json_object(line)
    return RolloutLine.from_json(content).step if content is not None else None


def short_row(row: str) -> str:
    """Without the folders: short_row("/data/mine/pairs.jsonl, row 3") is "pairs.jsonl, row 3"."""
    return re.sub(r"^.*[/\\](?=[^/\\]+, row \d+$)", "", row)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
