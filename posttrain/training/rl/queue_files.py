"""Groups on disk between the end of their sampling and their training: `<stage>/queue/<ask>.json`.

Written whole when a group has been scored, so that a kill at any moment leaves it there or not at all. Which of them a
resumed run may train on is a matter of versions: weights of steps after its checkpoint are gone, and what they sampled
belongs to no policy that there is.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from posttrain.errors import SourceError
from posttrain.rewards.rubric import Scored
from posttrain.rollout.engine import Completion, FinishReason, Versions
from posttrain.runs.files import plain, read_json, write_text
from posttrain.runs.records.queue import QueuedCompletion, QueuedGroup
from posttrain.training.rl.asks import Ask
from posttrain.training.rl.rollouts import Group, Prompt, Response

FOLDER = "queue"
CHECKPOINT = "step-"


class QueueFiles:
    """The folder of one stage's queue.

    Args:
        stage: the stage's folder.
        checkpoints: where its checkpoints are, by whose names it is known which of them a run may go on from.
        run: whose groups they are.
    """

    def __init__(self, stage: Path, checkpoints: Path, run: str):
        self.path, self._checkpoints, self.run = stage / FOLDER, checkpoints, run
        self._trained: list[tuple[str, int, int]] = []
        """(key, newest version, step that trained on it) of groups that a checkpoint would train on again."""

    def write(self, ask: Ask, group: Group) -> None:
        record = QueuedGroup(
            self.run,
            ask.number,
            ask.block,
            ask.round,
            ask.place,
            ask.task,
            ask.occurrence,
            str(group.prompt.task.row),
            tuple(group.prompt.ids),
            tuple(map(_queued, group.responses)),
        )
        content = plain(record.to_json(), ask.key)
        # On one line: indented, each of a thousand ids would have one of its own.
        write_text(self._file(ask.key), json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")

    def read(self) -> tuple[dict[str, QueuedGroup], list[str]]:
        """This run's groups by the key of their ask, and the names of files that are none."""
        found: dict[str, QueuedGroup] = {}
        strange = []
        for file in sorted(self.path.glob("*.json")):
            try:
                record = QueuedGroup.from_json(read_json(file))
            except SourceError:  # not JSON: edited, or of a disk that lost it
                strange.append(file.name)
                continue
            if record.run == self.run and _is_whole(record):
                found[file.stem] = record
            else:
                strange.append(file.name)
        return found, strange

    def remove(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)

    def clear(self) -> int:
        """Remove all of them; how many there were."""
        files = list(self.path.glob("*.json"))
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    def trained(self, key: str, newest: int, step: int) -> None:
        """A group has trained in `step`, or was dropped before it: its file goes with the last checkpoint that needs
        it."""
        self._trained.append((key, newest, step))

    def sweep(self) -> None:
        """Remove the files that no checkpoint needs: one taken between a group's sampling and its training does."""
        if not self._trained:
            return
        steps = [int(path.name.removeprefix(CHECKPOINT)) for path in self._checkpoints.glob(f"{CHECKPOINT}[0-9]*")]
        needed = [any(newest <= step <= at for step in steps) for _, newest, at in self._trained]
        for (key, _, _), keep in zip(self._trained, needed, strict=True):
            if not keep:
                self.remove(key)
        self._trained = [one for one, keep in zip(self._trained, needed, strict=True) if keep]

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.json"


def forget_queue(stage: Path) -> None:
    """Of a stage whose last step is taken and saved: no checkpoint of it is gone on from."""
    shutil.rmtree(stage / FOLDER, ignore_errors=True)


# ---------------------------------------------------------------- to records and back


def newest_version(group: Group | QueuedGroup) -> int:
    """Of the weights that sampled any token of it."""
    if isinstance(group, Group):
        return max(response.completion.versions.newest for response in group.responses)
    return max(completion.versions[1] for completion in group.completions)


def group_of(record: QueuedGroup, prompt: Prompt) -> Group | None:
    """The group again; None where the task is another one than was asked."""
    if record.prompt_ids != tuple(prompt.ids):
        return None
    return Group(prompt, tuple(map(_response, record.completions)))


def _queued(response: Response) -> QueuedCompletion:
    completion = response.completion
    return QueuedCompletion(
        completion.ids,
        tuple(
            value if sampled else None for value, sampled in zip(completion.logprobs, completion.trains, strict=True)
        ),
        completion.trains,
        str(completion.finish),
        completion.stopped_by,
        tuple(completion.versions),
        response.text,
        response.scored.total,
        response.scored.parts,
        response.reward,
    )


def _response(record: QueuedCompletion) -> Response:
    completion = Completion(
        record.ids,
        tuple(math.nan if value is None else value for value in record.logprobs),
        FinishReason(record.finish),
        Versions(*record.versions),
        record.trains,
        record.stopped_by,
    )
    return Response(completion, record.text, Scored(record.score, dict(record.parts)), record.reward)


def _is_whole(record: QueuedGroup) -> bool:
    """Whether nothing is missing that training needs: reading is lenient, and a lost number would shift the others."""
    return bool(record.completions) and all(
        len(one.ids) == len(one.logprobs) == len(one.trains)
        and len(one.versions) == 2
        and one.finish in set(FinishReason)
        and _sampled_everywhere(one.logprobs, one.trains)
        for one in record.completions
    )


def _sampled_everywhere(logprobs: Sequence[float | None], trains: Sequence[bool]) -> bool:
    return all(value is not None for value, sampled in zip(logprobs, trains, strict=True) if sampled)
