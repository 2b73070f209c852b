"""What an online stage sampled, read back from rollouts.jsonl and examinations.jsonl without holding either in memory.

    log = SampleLog(Path("runs/mine/grpo/rollouts.jsonl"))
    log.steps                            # {1: 128, 2: 128, ...}: completions by step
    for one in log.read([1, 30]): ...    # Sample(step=1, prompt="2 + 2?", completion="4", reward=1.0, ...)

A first pass looks at the beginning of each line alone and remembers where every step stands, so that reading a few
steps parses only their lines, and memory grows with the number of steps. A running job's last line may be torn: it is
left out, and `log.notes` says so. Standard library only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP_FIRST = re.compile(rb'\s*\{\s*"step"\s*:\s*(\d+)\s*[,}]')
"""How the lines begin that posttrain writes; of any other the whole line is parsed."""
LARGEST = 1e100
"""Beyond every type that a model computes in but float64; NaN is not below it either."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Trainer's over sampler's probability of the sampled tokens: Ratio(mean=1.0003, largest=1.02)."""

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
    parts: dict[str, float | None]
    tokens: int | None
    trained: bool | None
    advantage: float | None
    """Mean over its tokens."""
    logprob: float | None
    """The sampler's, mean over its tokens, in nats."""
    ratio: Ratio | None
    """Where the trainer computed the log-probs anew."""

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
        for step in sorted(set(self._places if steps is None else steps) & set(self._places)):
            for record in self._records(step):
                yield sample_of(record)

    # ------------------------------------------------------------ lines

    def _index(self) -> None:
        at = 0
        with self.path.open("rb") as lines:
            for line in lines:
                begin, at = at, at + len(line)
                if not line.strip():
                    continue
                if not line.endswith(b"\n") and _object(line) is None:
                    self.notes.append("the last line is torn (the run is writing it, or was killed) and was left out")
                    continue
                step = _step_of(line)
                if step is None:
                    self._note_broken(begin)
                    continue
                place = self._places.setdefault(step, _Place(begin, at))
                place.end, place.lines = at, place.lines + 1

    def _records(self, step: int) -> Iterator[dict[str, Any]]:
        place = self._places[step]
        with self.path.open("rb") as file:
            file.seek(place.first)
            at = place.first
            while at < place.end and (line := file.readline()):
                begin, at = at, at + len(line)
                if not line.strip() or _step_of(line) != step:
                    continue
                record = _object(line)
                if record is None:
                    self._note_broken(begin)
                else:
                    yield record

    def _note_broken(self, begin: int) -> None:
        """Counted once, however often the line is read; the note says how many by now."""
        if begin in self._broken:
            return
        self._broken.add(begin)
        lines = len(self._broken)
        are, were = ("s are", "were") if lines > 1 else (" is", "was")
        said = f"{lines} line{are} no readable JSON and {were} left out"
        self.notes[:] = [note for note in self.notes if "no readable JSON" not in note] + [said]


def sample_of(record: Mapping[str, Any]) -> Sample:
    """A line of rollouts.jsonl or examinations.jsonl; values of another type than theirs count as missing."""
    sampler = _numbers(record.get("sampler_logprobs"))
    ids = record.get("ids")
    mask = record.get("mask")
    parts = record.get("parts")
    return Sample(
        step=_whole(record.get("step")) or 0,
        version=_whole(record.get("version")),
        row=_text(record.get("row")),
        number=_whole(record.get("number")),
        prompt=_text(record.get("prompt")),
        answer=_text(record.get("answer")),
        completion=_text(record.get("completion")),
        finish=_text(record.get("finish")),
        reward=_number(record.get("reward", record.get("score"))),
        parts={str(name): _number(part) for name, part in parts.items()} if isinstance(parts, dict) else {},
        tokens=len(ids) if isinstance(ids, list) else _whole(record.get("tokens")),
        trained=any(mask) if isinstance(mask, list) else None,
        advantage=_mean(_numbers(record.get("advantages"))),
        logprob=_mean(sampler),
        ratio=_ratio(sampler, _numbers(record.get("old_logprobs"))),
    )


def _ratio(sampler: list[float | None], trainer: list[float | None]) -> Ratio | None:
    if len(sampler) != len(trainer):
        return None
    pairs = zip(trainer, sampler, strict=True)
    gaps = [own - other for own, other in pairs if own is not None and other is not None]
    if not gaps:
        return None
    ratios = [math.exp(min(gap, 80.0)) for gap in gaps]
    return Ratio(math.fsum(ratios) / len(ratios), math.exp(min(max(gaps, key=abs), 80.0)))


def _step_of(line: bytes) -> int | None:
    match = STEP_FIRST.match(line)
    if match:
        return int(match[1])
    record = _object(line)
    return _whole(record.get("step")) if record is not None else None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def short_row(row: str) -> str:
    """Without the folders: short_row("/data/mine/pairs.jsonl, row 3") is "pairs.jsonl, row 3"."""
    return re.sub(r"^.*[/\\](?=[^/\\]+, row \d+$)", "", row)


# ---------------------------------------------------------------- values of the type that is needed, or nothing


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if abs(converted) <= LARGEST else None


def _whole(value: object) -> int | None:
    found = _number(value)
    return int(found) if found is not None and found == int(found) else None


def _numbers(value: object) -> list[float | None]:
    return [_number(item) for item in value] if isinstance(value, list) else []


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
