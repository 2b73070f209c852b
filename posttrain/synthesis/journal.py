"""Answers on disk as they arrive: a run that is killed and repeated asks nothing twice.

    teacher = Journaled(teacher, folder / ASKED)
    teacher.ask(asks, on_reply)             # what the journal has is given back from there, the rest is asked

A line per answer, handed to the operating system at once, so that `kill -9` loses none; the disk is waited for now and
then. Lines count by the teacher's identity and the question's content: what another model said is no answer of this
one. Questions that were given up have no line, and are asked again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from posttrain.errors import SourceError
from posttrain.runs.files import JsonlLog
from posttrain.runs.layout import ASKED as ASKED
from posttrain.runs.records.logs import AnsweredLine
from posttrain.synthesis.cost import Meter
from posttrain.synthesis.teacher import Ask, OnReply, Reply, Teacher

SYNC_EVERY = 64
"""Answers between two waits for the disk: a power cut loses at most so many, and waiting for each would cost more than
a fast model does."""


class IdentifiedTeacher(Teacher, Protocol):
    """A teacher whose answers can be kept and counted."""

    @property
    def identity(self) -> str:
        """Of what answers: its weights and template, or its address and name. Another one, another answer."""
        ...

    @property
    def spent(self) -> Meter:
        """What its answers cost so far, those of a journal too."""
        ...


class Journaled:
    """A teacher whose answers are kept.

    Args:
        path: grows with each answer.
        earlier: journals of earlier results that were moved aside, read and not written: other filters over the same
            questions cost nothing.

    Raises:
        SourceError: a line of a journal that is not the last is no JSON.
    """

    def __init__(self, teacher: IdentifiedTeacher, path: Path, earlier: Sequence[Path] = ()):
        self.teacher, self.path = teacher, path
        self._places: dict[str, tuple[Path, int]] = {}
        # The newest last: of two answers to one question the newer counts.
        for journal in (*earlier, path):
            self._index(journal)
        self._log: JsonlLog | None = None
        self._unsynced = 0

    @property
    def name(self) -> str:
        return self.teacher.name

    @property
    def identity(self) -> str:
        return self.teacher.identity

    @property
    def spent(self) -> Meter:
        return self.teacher.spent

    def known(self, ask: Ask) -> Reply | None:
        """What was answered before; None where it has to be asked."""
        place = self._places.get(ask.key)
        if place is None:
            return None
        with place[0].open("rb") as file:
            file.seek(place[1])
            return reply_of(json.loads(file.readline())["reply"])

    def ask(self, asks: Sequence[Ask], on_reply: OnReply | None = None) -> list[Reply]:
        """As `Teacher.ask`. Equal questions with equal seeds are asked once."""
        replies: list[Reply | None] = [None] * len(asks)

        def give(index: int, reply: Reply) -> None:
            replies[index] = reply
            if on_reply is not None:
                on_reply(index, reply)

        waiting: dict[str, list[int]] = defaultdict(list)
        for index, ask in enumerate(asks):
            if ask.key not in waiting and (known := self.known(ask)) is not None:
                self.teacher.spent.count(known)
                give(index, known)
            else:
                waiting[ask.key].append(index)
        if waiting:
            first = [indices[0] for indices in waiting.values()]

            def arrived(place: int, reply: Reply) -> None:
                ask = asks[first[place]]
                self._write(ask, reply)
                for index in waiting[ask.key]:
                    give(index, reply)

            try:
                self.teacher.ask([asks[index] for index in first], arrived)
            finally:
                self._sync()
        return [reply if reply is not None else Reply("", error="it was not asked") for reply in replies]

    def close(self) -> None:
        self._sync()
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Journaled:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, ask: Ask, reply: Reply) -> None:
        if reply.error is not None:
            return
        if self._log is None:
            self._log = JsonlLog(self.path)
        at = self.path.stat().st_size
        self._log.append(AnsweredLine(self.teacher.identity, ask.key, asdict(reply)).to_json())
        self._places[ask.key] = (self.path, at)
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        if self._log is not None and self._unsynced:
            self._log.sync()
        self._unsynced = 0

    def _index(self, path: Path) -> None:
        """Where each answer stands: the texts stay on disk, since a stage may ask a hundred thousand questions."""
        if not path.is_file():
            return
        at = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                # What a kill left: the next line that is written replaces it.
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                    teacher, key, _ = entry["teacher"], entry["key"], entry["reply"]["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise SourceError(
                        f"line {number} of the journal is no answer",
                        where=path,
                        found=line[:80].decode(errors="replace"),
                        expected="lines as the stage wrote them",
                        remedy="the file was altered after it was written: delete that line, and its question is "
                        "asked again",
                    ) from error
                if teacher == self.teacher.identity:
                    self._places[key] = (path, at)
                at += len(line)


def reply_of(written: dict[str, Any]) -> Reply:
    """A reply as the journal has it."""
    return Reply(**{**written, "tool_calls": tuple(written.get("tool_calls", ()))})
