"""Where rows come from: files, globs, folders, `datasets` folders and hub ids, each a `Source` of numbered rows.

What a file holds is told from its content, not its name. Sources are opened when they are iterated and can be
iterated again; nothing is held in memory but the row in hand and a buffer.
"""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from posttrain.data.columnar import arrow_rows, parquet_rows
from posttrain.data.hub import HUB_ID, HubSource
from posttrain.data.json_rows import Numbered, json_rows
from posttrain.data.refusals import quoted
from posttrain.data.shipped import PACKAGE_SCHEME, shipped_file
from posttrain.errors import ConfigError, SourceError

SUFFIXES = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".jsonl.gz",
    ".ndjson.gz",
    ".json.gz",
    ".parquet",
    ".arrow",
    ".ipc",
    ".feather",
)
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "posttrain_manifest.json"}
_SPLITS = {"train": "train", "test": "test", "eval": "test", "validation": "validation", "valid": "validation"} | {
    "val": "validation",
    "dev": "validation",
}
_BUFFER = 1 << 20


class Source(Protocol):
    """Rows under one name."""

    @property
    def name(self) -> str: ...

    def rows(self) -> Iterator[Numbered]:
        """Numbered rows from the beginning. Raises SourceError for what cannot be read at all."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 of the content."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """One file: FileSource(Path("pairs.jsonl"))."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def rows(self) -> Iterator[Numbered]:
        try:
            yield from self._rows()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(
                "the compressed file is cut off or damaged",
                where=self.name,
                found=str(error),
                expected="a whole gzip file",
                remedy="fetch or write it again (`gzip -t` checks it)",
            ) from error
        except OSError as error:
            raise _unreadable(self.name, error) from error

    def _rows(self) -> Iterator[Numbered]:
        with io.BufferedReader(io.FileIO(self.path), _BUFFER) as file:
            head = file.peek(8)[:8]
            if not head:
                raise _empty(self.name, "the file is empty (0 bytes)")
            if head[:4] == b"PAR1":
                yield from parquet_rows(self.path, self.name)
            elif head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
                yield from arrow_rows(self.path, self.name)
            elif head[:2] == b"\x1f\x8b":
                with io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER) as unpacked:
                    yield from json_rows(unpacked, self.name)
            else:
                yield from json_rows(file, self.name)

    def fingerprint(self) -> str:
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(self.name, error) from error


@dataclass(frozen=True, slots=True)
class SavedDataset:
    """A folder written by `datasets.Dataset.save_to_disk`: its Arrow files in the order that `state.json` gives."""

    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)

    def files(self) -> tuple[Path, ...]:
        try:
            state = json.loads((self.folder / "state.json").read_text())
            names = [entry["filename"] for entry in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged_dataset(self.name, f"state.json: {error}") from error
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise _damaged_dataset(self.name, "rows that are selected by an index file, as very old versions saved")
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            raise _damaged_dataset(self.name, f"state.json names {quoted(missing)}, which is not there")
        return tuple(self.folder / name for name in names)

    def rows(self) -> Iterator[Numbered]:
        before = row = 0
        for path in self.files():
            for row, value, note in arrow_rows(path, str(path)):
                yield before + row, value, note
            before += row
            row = 0

    def fingerprint(self) -> str:
        return combined_fingerprint([FileSource(path) for path in self.files()])


def combined_fingerprint(sources: Sequence[Source]) -> str:
    """One hash of several sources in their order; that of one source is the source's own."""
    if len(sources) == 1:
        return sources[0].fingerprint()
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.fingerprint().encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- what the user named


def open_sources(data: str | Path | Sequence[str | Path], split: str = "train") -> tuple[Source, ...]:
    """The sources that a path, glob, folder, hub id, or a list of these stands for; nothing is read yet.

    `split` chooses in folders whose files or parts are named after splits, and on the hub.
    Raises SourceError for what is not there, ConfigError for an empty list.
    """
    items = [data] if isinstance(data, str | Path) else list(data)
    if not items:
        raise ConfigError("no data is named", remedy="give a path, a glob, a folder, a hub id, or a list of these")
    found = [source for item in items for source in _sources_of(item, split)]
    names = [source.name for source in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(
            f"{quoted(twice)} is named more than once",
            found=quoted(str(item) for item in items),
            expected="each file once: its rows would count double",
            remedy="name it once; to weight a data set, mix it with a weight instead",
        )
    return tuple(found)


def _sources_of(item: str | Path, split: str) -> Sequence[Source]:
    text = str(item)
    if text.startswith(PACKAGE_SCHEME):
        return [FileSource(shipped_file(text))]
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder_sources(path, split)
    if path.exists():
        return [FileSource(path)]
    if re.search(r"[*?\[]", text):
        return _glob_sources(text)
    hub = HUB_ID.fullmatch(text) if isinstance(item, str) else None
    if hub and not text.endswith(SUFFIXES) and (text.startswith("hub:") or not path.parent.exists()):
        return [HubSource(hub["id"], hub["config"], hub["revision"], split)]
    raise _not_found(text, path)


def _glob_sources(pattern: str) -> Sequence[Source]:
    paths = sorted(Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True))
    files = [path for path in paths if path.is_file()]
    if not files:
        raise SourceError(
            f"no file matches the pattern {pattern!r}",
            where=pattern,
            found="folders only" if paths else "nothing",
            expected="at least one file",
            remedy=f"check the pattern with `ls {pattern}`; `**` reaches into subfolders",
        )
    return [FileSource(path) for path in files]


def _folder_sources(folder: Path, split: str) -> Sequence[Source]:
    if (folder / "dataset_dict.json").exists():
        parts = sorted(part.name for part in folder.iterdir() if (part / "state.json").exists())
        return [SavedDataset(folder / _chosen_split(parts, split, str(folder)))]
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        return [SavedDataset(folder)]
    names = [path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES) and path.is_file()]
    files = [path for path in names if path.name not in _NOT_DATA and path.name[0] not in "._"]
    if not files:
        deeper = [path for path in folder.rglob("*") if path.name.endswith(SUFFIXES)]
        where = f"; there are some deeper, as {str(deeper[0])!r}" if deeper else ""
        raise SourceError(
            "the folder holds no data files",
            where=str(folder),
            found=quoted(sorted(path.name for path in folder.iterdir())[:8]) + where,
            expected=f"files that end in one of {quoted(SUFFIXES)}, or a saved `datasets` folder",
            remedy=f"name the folder that holds them, or a pattern such as '{folder}/**/*{deeper[0].suffix}'"
            if deeper
            else "check the path",
        )
    return [FileSource(path) for path in _files_of_split(files, split, str(folder))]


def _files_of_split(files: Sequence[Path], split: str, folder: str) -> Sequence[Path]:
    """The files of one split where their names say so (train.jsonl, test-00000-of-00002.parquet); else all."""
    by_split: dict[str | None, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path.name), []).append(path)
    if set(by_split) == {None}:
        return files
    if None in by_split:
        raise SourceError(
            "some files of the folder are named after a split, others are not",
            where=folder,
            found=quoted(path.name for path in files[:8]),
            expected="only names such as train.jsonl and test.jsonl, or none of these",
            remedy="name the files to read instead of the folder",
        )
    wanted = _SPLITS.get(split, split)
    return by_split[_chosen_split(sorted(str(name) for name in by_split), wanted, folder)]


def _split_of(name: str) -> str | None:
    word = re.split(r"[^a-z]", name.lower(), maxsplit=1)[0]
    return _SPLITS.get(word)


def _chosen_split(splits: Sequence[str], split: str, folder: str) -> str:
    if split in splits:
        return split
    raise SourceError(
        f"there is no split {split!r}",
        where=folder,
        found=f"the splits {quoted(splits)}",
        expected="the name of one of them",
        remedy=f"choose one, for example `split: {splits[0]}`" if splits else "check the folder",
    )


# ---------------------------------------------------------------- refusals


def _not_found(text: str, path: Path) -> SourceError:
    parent = path.parent
    beside = sorted(item.name for item in parent.iterdir()) if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    if close:
        remedy = f"did you mean {str(parent / close[0])!r}?"
    elif not parent.is_dir():
        remedy = f"the folder {str(parent)!r} does not exist either (seen from {str(Path.cwd())!r}): check the path"
    else:
        data = [name for name in beside if name.endswith(SUFFIXES)]
        remedy = f"check the path (seen from {str(Path.cwd())!r})"
        remedy += f"; data files there: {quoted(data[:6])}" if data else ""
    return SourceError(
        "there is no such file or folder",
        where=text,
        found="nothing under this name",
        expected="a file, a folder, a pattern such as 'data/*.jsonl', or a hub id such as 'owner/name'",
        remedy=remedy,
    )


def _empty(name: str, problem: str) -> SourceError:
    return SourceError(
        problem,
        where=name,
        found="no rows",
        expected="at least one row",
        remedy="write the file again, or leave it out",
    )


def no_rows(name: str) -> SourceError:
    return _empty(name, "the source holds no rows")


def _unreadable(name: str, error: OSError) -> SourceError:
    return SourceError(
        "the file cannot be read",
        where=name,
        found=error.strerror or str(error),
        expected="a file that this user may read",
        remedy="check the path and its permissions (`ls -l`)",
    )


def _damaged_dataset(name: str, found: str) -> SourceError:
    return SourceError(
        "the saved dataset cannot be read",
        where=name,
        found=found,
        expected="a folder as `Dataset.save_to_disk` writes it",
        remedy="save it again with a current version of `datasets`",
    )
