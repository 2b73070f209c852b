"""Files that survive a crash: atomic JSON and text, and logs that only grow.

Whole files are written to a temporary name and renamed, so a reader sees the old file or the new one. A process
killed in the middle of a log line leaves a torn last line, which readers pass over and the next writer cuts off.
Numbers that are not finite are written as null: JSON has no NaN, and a reader of another language would refuse
the file. Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import SourceError
from posttrain.runs.disk import require_replaceable, set_mode, sync_folder, writing
from posttrain.runs.owner import owner_tag

Content = dict[str, Any]
"""A JSON object as it stands in a file; `posttrain.runs.records` says what its keys mean."""


# ---------------------------------------------------------------- JSON, atomically


def plain(value: Any, where: str = "value") -> Any:
    """`value` as JSON can hold it: NaN and infinities become None, paths text, tuples and sets lists.

    Raises TypeError, with the key's path, for anything else (a tensor, say): a log of reprs could not be read back.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        # json writes NaN as a bare word, which is no JSON: browsers and other languages would refuse the whole line.
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        # Sets have no order of their own: unsorted, the same run would write another file each time.
        return sorted(plain(item, where) for item in value)
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a run folder cannot hold; turn it into a number or text"
    )


def write_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old content or the new, never half of it.

    Raises:
        SourceError: the system refuses it (a full disk, no right to write there).
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """`write_text`, of what is encoded already."""
    with writing(path):
        _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within one file system. The name says whose it is, so that the
    # next run can remove the draft of a writer that was killed.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{owner_tag()}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            # Before the rename: the name could else reach the disk before the content, and a power cut would leave an
            # empty file.
            os.fsync(file.fileno())
        set_mode(temporary, 0o644)  # mkstemp makes it private; a run folder is meant to be shared
        os.replace(temporary, path)
    # Ctrl-C too, which is no Exception: the draft would stay in the folder for good.
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value, path.name), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises SourceError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            "there is no such file", where=path, remedy="give the folder of a run, the one that holds run.json"
        ) from None
    except ValueError as error:
        raise SourceError(
            "the file is not JSON", where=path, found=str(error), remedy="delete it and run the recipe again"
        ) from error


# ---------------------------------------------------------------- append-only logs


class JsonlLog:
    """A file that only grows, one JSON object a line.

    `durable="process"` hands each line to the operating system, so `kill -9` loses none; `durable="machine"` also
    waits for the disk, for rare lines that must survive a power cut (alarms). `sync()` does that once for all lines
    so far; a checkpoint calls it, so that the log is never behind the weights.
    """

    def __init__(self, path: Path, durable: Literal["process", "machine"] = "process"):
        self.path = path
        self.durable = durable
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(path)
            # Unbuffered: a line that still lies in this process is lost with it at `kill -9`.
            self._file = path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(plain(record, self.path.name), ensure_ascii=False, allow_nan=False) + "\n"
        left = memoryview(text.encode())
        with writing(self.path):
            # A disk that is nearly full takes a part and says so only when it is asked for the rest.
            while left:
                left = left[self._file.write(left) :]
        if self.durable == "machine":
            self.sync()

    def sync(self) -> None:
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_jsonl(path: Path) -> list[Content]:
    """All whole lines; [] if the file is missing. A torn last line is passed over.

    Raises SourceError for a broken line that is not the last: something else than a killed run wrote there.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    torn = lines.pop()  # what follows the last newline: nothing, or a line whose writer was killed
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            # A crash tears the last line only; one in the middle is damage of another kind, and a curve with a hole
            # that nobody mentions would be worse than an error.
            raise SourceError(
                f"line {number} is not JSON",
                where=path,
                found=line[:80].decode(errors="replace"),
                remedy="the file was altered after it was written; delete that line",
            ) from error
    if torn.strip():
        try:  # a file that was edited by hand may lack the last newline and still be whole
            records.append(json.loads(torn))
        except ValueError:
            return records
    return records


def _cut_torn_line(path: Path) -> None:
    """Without this, the next line would be glued to the torn one and both would be lost."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("rb+") as file:
            # A whole line that lacks only its newline goes too: it is from after the last checkpoint, which syncs the
            # logs first, so a resumed run writes it again.
            file.truncate(content.rfind(b"\n") + 1)


def keep_lines(path: Path, wanted: Callable[[Content], bool]) -> None:
    """Rewrite a log with the lines that are `wanted`."""
    if path.exists():
        kept = [json.dumps(record, ensure_ascii=False) + "\n" for record in read_jsonl(path) if wanted(record)]
        write_text(path, "".join(kept))
