"""Finished stages that several run folders of one sweep share: trained once, and linked into the others.

    siblings = Siblings(Path("runs/mine-sweep"))
    with siblings.turn("9f2c41...", say) as turn:           # another process that trains this very stage is waited for
        if (source := siblings.finished("sft", "9f2c41...")) is not None:
            link_stage(source, run.stage("sft"))

A stage is the same where its `quick_identity` is: settings, seed, rows and start weights by their content. Only one
that is done and whose output is there counts, so that nobody starts from half a stage. Files that are never changed
once they are written (weights, encoded rows, the reference's log-probs) are hard links where the disk has these, so
that ten runs hold one model; all else is copied, since a later run may add to its own.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import ConfigError
from posttrain.runs.disk import Lock, lock
from posttrain.runs.files import read_json, write_json
from posttrain.runs.folder import StageFolder, make_folder
from posttrain.runs.owner import owner_tag, remove_dead
from posttrain.runs.records.stage import SharedFrom, StageRecord

SHARED = ".shared"
"""Folder of a sweep: locks by identity, and drafts of links."""
DRAFT = "draft-"
UNCHANGED = ("model", "encoded", "reference")
"""Folders of a stage whose files are written once."""
OWN_ATTEMPT = ("checkpoints", "heartbeat.json", "stalls.txt", "rungs")
"""What belongs to the attempt that trained the stage, and to no result."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Siblings:
    """The run folders beside each other in one folder: Siblings(Path("runs/mine-sweep"))."""

    folder: Path

    @contextmanager
    def turn(self, identity: str, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Hold the identity for one process: who comes second waits, and then finds the first one's result.

        Where the file system has no locks nobody waits: a stage may then be trained twice, to the same end.
        """
        make_folder(self.folder / SHARED)
        with (self.folder / SHARED / f"{identity[:32]}.lock").open("a") as file:
            is_told = False
            while lock(file) is Lock.BUSY:
                if not is_told:
                    say("another run of the sweep trains the same stage; waiting for it")
                    is_told = True
                time.sleep(LOOK_SECONDS)
            yield

    def finished(self, stage: str, identity: str) -> StageFolder | None:
        """A stage of that name and identity that a run has finished; the one that trained it before those that link
        to it."""
        found: list[tuple[bool, StageFolder]] = []
        for path in sorted(self.folder.glob(f"*/{stage}/{StageRecord.FILE}")):
            record = StageRecord.from_json(read_json(path))
            if record.status != "done" or record.quick_identity != identity:
                continue
            # `export: none` keeps no output, and its figures are the result.
            if record.output is not None and not (path.parent / record.output).exists():
                continue
            found.append((record.shared is not None, StageFolder(path.parent)))
        return min(found, key=lambda pair: pair[0])[1] if found else None

    # -- what the start model was asked, which no stage record names

    def start(self, key: str) -> StageFolder | None:
        """The `start/` of a run that was noted under this key."""
        path = self._start_note(key)
        if not path.exists():
            return None
        name = read_json(path).get("run")
        folder = StageFolder(self.folder / str(name) / "start")
        return folder if folder.path.is_dir() else None

    def note_start(self, key: str, run: str) -> None:
        make_folder(self.folder / SHARED)
        write_json(self._start_note(key), {"run": run})

    def _start_note(self, key: str) -> Path:
        return self.folder / SHARED / f"start-{key[:32]}.json"


def link_stage(source: StageFolder, target: StageFolder) -> None:
    """Put a finished stage into another run's folder, whole or not at all; its stage.json says whose it is.

    Raises:
        ConfigError: the target has a stage of that name, or the system refuses to write there.
    """
    record = source.stage()
    shared = record.shared or SharedFrom(source.path.parent.name, record.seconds)
    draft = _drafted(source, target.path)
    StageFolder(draft).write_stage(shared=shared, seconds=None)
    _place(draft, target.path)


def link_start(source: StageFolder, target: StageFolder) -> None:
    """The start model's answers, as `link_stage`; whoever asks next checks that they are to the same questions."""
    _place(_drafted(source, target.path), target.path)


def remove_drafts(folder: Path) -> None:
    """Links that a killed process left unfinished."""
    if (folder / SHARED).is_dir():
        remove_dead(folder / SHARED, DRAFT)


def _drafted(source: StageFolder, target: Path) -> Path:
    """A copy beside the run folders, under a name that no run has; with hard links where the content stays."""
    home = target.parent.parent / SHARED
    make_folder(home)
    draft = home / f"{DRAFT}{owner_tag()}-{target.parent.name}-{target.name}"
    shutil.rmtree(draft, ignore_errors=True)

    def copied(path: str, to: str) -> str:
        inside = Path(path).relative_to(source.path).parts
        if inside[0] in UNCHANGED:
            with suppress(OSError):  # another disk, or one without links: a copy says the same
                os.link(path, to)
                return to
        return str(shutil.copy2(path, to))

    shutil.copytree(
        source.path,
        draft,
        copy_function=copied,
        ignore=lambda folder, names: [
            name for name in names if (Path(folder) == source.path and name in OWN_ATTEMPT) or name.endswith(".tmp")
        ],
    )
    return draft


def _place(draft: Path, target: Path) -> None:
    try:
        os.rename(draft, target)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ConfigError(
            "a finished stage of another run cannot be linked into this one",
            where=target,
            found=error.strerror,
            expected="a name that is free, in a folder that this user may write to",
            remedy="remove the folder, or make the sweep's folder writable",
        ) from None
