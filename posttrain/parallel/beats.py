"""The sign of life of a rank: what it does, and for how long nothing in it has moved.

A rank has moved when its `Progress` did (a step, a micro-batch, a row, another activity) or when it has entered another
collective operation. A thread that only beats says nothing of that: it beats while its program waits for ever.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

import psutil
import torch.distributed as dist

from posttrain.parallel.failure import machine_tag
from posttrain.parallel.world import sent_by_main
from posttrain.runs.progress import Progress

STACK_FRAMES = 14
STILL_SECONDS = 3.0
"""Where nothing has moved for this long, the beat says where the program is: reading a stack costs a little."""
_COLLECTIVES = os.path.join("torch", "distributed") + os.sep


@dataclass(frozen=True, slots=True)
class Beat:
    """Beat(count=17, pid=4711, born=1.7e9, host="node1", machine="node1 pid:[4026531836]", phase="`update`, at 3 of 8
    steps of sft: training", still=0.2, collectives=118, is_waiting=False, stack="", has_left=False)"""

    count: int
    pid: int
    born: float
    """When the process began, by its machine's clock: process numbers are used again."""
    host: str
    machine: str
    phase: str
    still: float
    """Seconds since anything moved."""
    collectives: int
    """Operations of the default process group that were begun."""
    is_waiting: bool
    """Whether the main thread is inside torch.distributed."""
    stack: str
    """Of the main thread, where it has been still for a while."""
    has_left: bool

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Beat:
        return cls(**json.loads(text))


class Pulse:
    """Takes this process's beats: Pulse().take() -> Beat."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic, collectives: Callable[[], int] | None = None):
        self.progress: Progress | None = None
        self._now = now
        self._count_collectives = begun_collectives if collectives is None else collectives
        self._collectives = 0
        self._moved = now()
        self._born = psutil.Process().create_time()
        self._machine = machine_tag()
        self._count = 0

    def take(self) -> Beat:
        now = self._now()
        if (begun := self._count_collectives()) != self._collectives:
            self._collectives, self._moved = begun, now
        still, phase = now - self._moved, "starting"
        if self.progress is not None:
            standing = self.progress.standing()
            still, phase = min(still, standing.silence), standing.words
        self._count += 1
        frame = _main_frame()
        return Beat(
            count=self._count,
            pid=os.getpid(),
            born=self._born,
            host=platform.node(),
            machine=self._machine,
            phase=phase,
            still=round(still, 3),
            collectives=begun,
            is_waiting=_is_in_collective(frame),
            stack=_text_of(frame) if still >= STILL_SECONDS else "",
            has_left=False,
        )

    def left_at(self, error: BaseException) -> str | None:
        """What was under way when the error arose; by now all phases have been left."""
        return None if self.progress is None else self.progress.left_at(error)

    def last(self) -> Beat:
        """The one that says that this rank is through."""
        return replace(self.take(), has_left=True)


def begun_collectives() -> int:
    """How many operations the default process group has begun; the groups of a mesh have counts of their own, and what
    runs in them shows as progress of the step."""
    if not (dist.is_initialized() and dist.group.WORLD is not None):
        return 0
    group: Any = dist.group.WORLD  # torch's stubs do not know the method
    return int(group._get_sequence_number_for_group())


def _main_frame() -> FrameType | None:
    ident = threading.main_thread().ident
    return None if ident is None else sys._current_frames().get(ident)


def _is_in_collective(frame: FrameType | None) -> bool:
    while frame is not None:
        # Or for rank 0's next word, in the store: a wait of ours that has no end of its own.
        if _COLLECTIVES in frame.f_code.co_filename or frame.f_code is sent_by_main.__code__:
            return True
        frame = frame.f_back
    return False


def _text_of(frame: FrameType | None) -> str:
    return "" if frame is None else "".join(traceback.format_stack(frame)[-STACK_FRAMES:]).rstrip()
