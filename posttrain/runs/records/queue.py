"""Groups that an asynchronous rollout has sampled and that have not trained yet: a file each, `queue/<ask>.json`.

A run that was killed goes on with them. A group's file is gone once it has trained and no checkpoint is left from
which it would train again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.runs.records.base import Exact, Record


@dataclass(frozen=True, slots=True)
class QueuedCompletion(Record):
    """One completion of a group.

    QueuedCompletion(ids=(552, 6), logprobs=(-1.5, -0.2), trains=(True, True), finish="stop_token", stopped_by=None,
                     versions=(6, 7), text="4", score=1.0, parts={"math": 1.0}, reward=1.0)
    """

    ids: tuple[int, ...]
    logprobs: tuple[Exact | None, ...]
    """The engine's, in nats; null at ids that it did not sample."""
    trains: tuple[bool, ...]
    """Which of `ids` the policy sampled."""
    finish: str
    """stop_token, stop_string, length, empty or aborted."""
    stopped_by: str | None
    """The stop string that ended it."""
    versions: tuple[int, ...]
    """The oldest and the newest weights that sampled it: how many steps they had taken."""
    text: str
    score: Exact | None
    """The weighted sum of the rewards; None where nobody judged it."""
    parts: Mapping[str, Exact | None]
    """Of the rewards, before their weights, and of an overlong penalty."""
    reward: Exact | None
    """What trains: the score, and the overlong penalty."""


@dataclass(frozen=True, slots=True)
class QueuedGroup(Record):
    """A prompt and its completions, whole and scored.

    QueuedGroup(run="5c1f09aa", number=41, block=5, round=0, place=1, task=12, occurrence=0, row="tasks.jsonl, row 13",
                prompt_ids=(1, 4, 27), completions=(QueuedCompletion(...), ...))
    """

    run: str
    """Which run asked it: files of another one are not read."""
    number: int | None
    """How many prompts the run had asked before it."""
    block: int | None
    """The step whose tasks it is one of; with `round` and `place` the file's name."""
    round: int | None
    """0: one of the block's own; above: asked in the place of a group without a signal."""
    place: int | None
    task: int | None
    """Index among the stage's tasks."""
    occurrence: int | None
    """How many equal prompts of its block stand before it."""
    row: str
    prompt_ids: tuple[int, ...]
    completions: tuple[QueuedCompletion, ...]
