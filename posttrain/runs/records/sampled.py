"""What a stage that samples writes: every completion that it was trained on, and every held-out answer.

    rollouts.jsonl      RolloutLine      one completion
    examinations.jsonl  ExaminationLine  one answer to a held-out task

`step` stands first in both, so that a reader can find a step's lines without parsing the others (`SampleLog`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.runs.records.base import LogLine, optional_key, other_keys


@dataclass(frozen=True, slots=True)
class RolloutLine(LogLine):
    """One completion, token by token.

    RolloutLine(step=3, version=2, versions=(2, 2), row="tasks.jsonl, row 7", prompt="What is 2 + 2?", answer="4",
                completion="2 + 2 = 4", number=0, finish="stop_token", reward=1.0, parts={"math": 1.0},
                prompt_ids=(1, 4, 27), ids=(552, 286, 6), mask=(True, True, True),
                sampler_logprobs=(-1.5, -0.1, -0.2), columns={"old_logprobs": (-1.5, -0.1, -0.2),
                "advantages": (0.54, 0.54, 0.54)}, staleness=0)
    """

    FILE = "rollouts.jsonl"

    step: int | None
    version: int | None
    """Of the weights that train on it: how many steps they had taken."""
    versions: tuple[int, ...] | None
    """Of the weights that sampled it: the oldest and the newest; an engine that goes on while weights move has two."""
    row: str
    prompt: str
    """The last turn; `prompt_ids` has all of it."""
    answer: str | None
    """What the task says is right."""
    completion: str
    number: int | None
    """Its place in its prompt's group."""
    finish: str
    """stop_token, stop_string, length, empty or aborted."""
    reward: float | None
    """None where nobody judged it."""
    parts: Mapping[str, float | None]
    """The reward's, before their weights; None where one abstained."""
    prompt_ids: tuple[int, ...] | None
    ids: tuple[int, ...] | None
    mask: tuple[bool | None, ...] | None
    """Which of `ids` train."""
    sampler_logprobs: tuple[float | None, ...]
    """The engine's, in nats; null at ids that it did not sample."""
    columns: Mapping[str, tuple[float | None, ...]] = other_keys()
    """A number for each of `ids`: old_logprobs, reference_logprobs, advantages, values, ..."""
    staleness: int | None = optional_key()
    """Steps between the oldest weights that sampled it and those that train on it."""


@dataclass(frozen=True, slots=True)
class ExaminationLine(LogLine):
    """One answer to a held-out task.

    ExaminationLine(step=0, row="tasks.jsonl, row 10", prompt="67 plus 32 = ?", answer="99", completion="99.",
                    finish="stop_token", tokens=4, score=1.0, parts={"math": 1.0})
    """

    FILE = "examinations.jsonl"

    step: int | None
    row: str
    prompt: str
    answer: str | None
    completion: str
    finish: str
    tokens: int | None
    score: float | None
    parts: Mapping[str, float | None]
