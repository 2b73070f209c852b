"""A stage's prompts: those of files lie on disk, so that a task file may be larger than memory.

store = PromptFile(folder)                 # or PromptList(), for tasks that a program holds anyway
store.add(task, ids)                       # encoded once
train = Prompts(store, places)             # a sequence of Prompt, each made when it is asked for

Of a prompt on disk, memory holds 80 bytes: where it is, how long it is, and hashes of its content and its question.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from posttrain.training.rl.rollouts import Prompt
from posttrain.types import Task

DIGEST = 32


class PromptStore(ABC):
    """Tasks with the ids of their prompts, in the order in which they were added."""

    def __init__(self) -> None:
        self._lengths = array("q")
        self._digests = bytearray()
        self._questions = bytearray()

    def add(self, task: Task, ids: Sequence[int]) -> None:
        self._keep(task, ids)
        self._lengths.append(len(ids))
        self._digests += _content(task, ids)
        self._questions += hashlib.sha256(repr(tuple(ids)).encode()).digest()

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt."""
        return np.array(self._lengths, dtype=np.int64)

    @property
    def digests(self) -> np.ndarray:
        """What each task is, answer and metadata included: [tasks, 32] bytes."""
        return np.frombuffer(bytes(self._digests), dtype=np.uint8).reshape(-1, DIGEST)

    @property
    def questions(self) -> np.ndarray:
        """What each task asks, whatever its answer and metadata, which may be a mere number: [tasks, 32] bytes.

        A question that is trained on is no held-out one, so a split goes by this.
        """
        return np.frombuffer(bytes(self._questions), dtype=np.uint8).reshape(-1, DIGEST)

    @abstractmethod
    def prompt(self, place: int, index: int) -> Prompt:
        """The prompt that was added as number `place`, as number `index` of a stage's tasks."""

    @abstractmethod
    def _keep(self, task: Task, ids: Sequence[int]) -> None: ...


class PromptList(PromptStore):
    """In memory: a program's own tasks, whatever their metadata holds."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[Task, tuple[int, ...]]] = []

    def prompt(self, place: int, index: int) -> Prompt:
        return Prompt(*self._kept[place], index)

    def _keep(self, task: Task, ids: Sequence[int]) -> None:
        self._kept.append((task, tuple(ids)))


class PromptFile(PromptStore):
    """On disk, in a file without a name that is gone when the run is: rows are read and encoded anew by a resumed one.

    Args:
        folder: where there is room for it; the system's temporary folder may be memory.
    """

    def __init__(self, folder: Path):
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it is open for as long as the prompts are
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # The file has no name that another process could open: its content travels.
        with self._lock:
            self._file.seek(0)
            content = self._file.read()
        return _prompt_file, (self._folder, content, self._ends, self._lengths, self._digests, self._questions)

    def prompt(self, place: int, index: int) -> Prompt:
        start, end = self._ends[place], self._ends[place + 1]
        # Seek and read are two calls on one position, and rewards of several threads may ask for their task.
        with self._lock:
            self._file.seek(start)
            record = self._file.read(end - start)
        task, ids = pickle.loads(record)  # nobody but this process has ever been able to write it
        return Prompt(task, tuple(np.frombuffer(ids, dtype=np.int32).tolist()), index)

    def _keep(self, task: Task, ids: Sequence[int]) -> None:
        # Four bytes an id, and no list of Python integers until somebody asks for it.
        record = pickle.dumps((task, np.asarray(ids, dtype=np.int32).tobytes()), protocol=pickle.HIGHEST_PROTOCOL)
        self._file.write(record)
        self._ends.append(self._ends[-1] + len(record))


def _prompt_file(folder: Path, content: bytes, ends: Any, lengths: Any, digests: Any, questions: Any) -> PromptFile:
    """The store on another rank, which has a file of its own."""
    store = PromptFile(folder)
    store._file.write(content)
    store._ends, store._lengths, store._digests, store._questions = ends, lengths, digests, questions
    return store


class Prompts(Sequence[Prompt]):
    """Some of a store's prompts, numbered anew from 0.

    Prompts(store, places)[3] is a Prompt; a slice is a view.
    """

    def __init__(self, store: PromptStore, places: np.ndarray):
        self._store, self._places = store, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> Prompts: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Prompts(self._store, self._places[index])
        return self._store.prompt(int(self._places[index]), index % len(self) if len(self) else 0)

    @property
    def longest(self) -> int:
        """Tokens of the longest one; 0 of none."""
        return int(self._store.lengths[self._places].max(initial=0))

    @property
    def tokens(self) -> int:
        return int(self._store.lengths[self._places].sum())

    @property
    def fingerprint(self) -> str:
        """Of all their contents in this order."""
        whole = hashlib.sha256()
        digests = self._store.digests
        for number, place in enumerate(self._places.tolist()):
            whole.update((b"\n" if number else b"") + digests[place].tobytes().hex().encode())
        return whole.hexdigest()


def _content(task: Task, ids: Sequence[int]) -> bytes:
    metadata = json.dumps(task.metadata, sort_keys=True, default=repr)
    return hashlib.sha256("\n".join([repr(tuple(ids)), str(task.answer), metadata]).encode()).digest()
