"""Where rows come from: files, globs, folders, `datasets` folders and hub ids, each a `DataSource` of numbered rows.

What a file holds is read from its content, not its name. Sources are opened when they are iterated and can be
iterated again; nothing is held in memory but the row in hand and a buffer.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from posttrain.data.padding import unpadded
from posttrain.data.refusals import quoted
from posttrain.data.sources.columnar import arrow_rows
from posttrain.data.sources.delimited import text_rows
from posttrain.data.sources.hub import HUB_ID, HubSource
from posttrain.data.sources.json_rows import LONGEST_ROW, MEGABYTE
from posttrain.data.sources.memory import data_items, memory_source
from posttrain.data.sources.not_found import not_found, unlike_a_path
from posttrain.data.sources.patterns import (
    is_meant_as_file,
    is_open_pipe,
    matching,
    require_distinct,
    require_regular,
    require_whole_links,
)
from posttrain.data.sources.readers import HEAD, reader_of
from posttrain.data.sources.shipped import PACKAGE_SCHEME, shipped_file
from posttrain.data.sources.source import DataSource, Numbered
from posttrain.data.sources.splits import (
    SUFFIXES,
    TABLE_SUFFIXES,
    Split,
    choose_split,
    mixed_note,
    select_files,
    split_of,
)
from posttrain.errors import SourceError

_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "posttrain_manifest.json"}
_MAGIC = re.compile(r"[*?\[]")
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileSource:
    """One file: FileSource(Path("pairs.jsonl"))."""

    path: Path
    longest_row: int = LONGEST_ROW
    """Bytes of a row of JSON; a longer one is refused before it is in memory."""

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
            raise _unreadable_file(self.name, error) from error
        except MemoryError as error:
            raise _beyond_memory(self.name) from error

    def _rows(self) -> Iterator[Numbered]:
        with io.BufferedReader(io.FileIO(self.path), _BUFFER_BYTES) as file:
            head = file.peek(HEAD)[:HEAD]  # magic numbers: `rows.json` may be Parquet, and `rows` gzip
        if not head:
            raise _empty_source(self.name, "the file is empty (0 bytes)")
        if (reader := reader_of(head)) is not None:
            yield from reader.rows(self.path, self.name)
        else:
            # JSON may have been through Arrow; Parquet and Arrow know their own padding by their types.
            yield from unpadded(self._text(), self._text)

    def _text(self) -> Iterator[Numbered]:
        with io.BufferedReader(io.FileIO(self.path), _BUFFER_BYTES) as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                with io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER_BYTES) as unpacked:
                    yield from text_rows(unpacked, self.name, self.longest_row)
            else:
                yield from text_rows(file, self.name, self.longest_row)

    def fingerprint(self) -> str:
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable_file(self.name, error) from error


@dataclass(frozen=True, slots=True)
class PipeSource:
    """What a pipe gave, `<(zcat rows.gz)` in a shell: it can be read once only, and rows are read several times."""

    name: str
    content: bytes = field(repr=False)
    longest_row: int = LONGEST_ROW

    def rows(self) -> Iterator[Numbered]:
        if not self.content:
            raise _empty_source(self.name, "the pipe is empty (0 bytes)")
        yield from unpadded(self._text(), self._text)

    def _text(self) -> Iterator[Numbered]:
        with io.BufferedReader(io.BytesIO(self.content), _BUFFER_BYTES) as file:
            yield from text_rows(file, self.name, self.longest_row)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


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
        # The Arrow files then hold more rows, in another order, than the data set that was saved.
        if state.get("_indices_files") or state.get("_indices_data_files"):
            raise _damaged_dataset(self.name, "rows that are selected by an index file, as very old versions saved")
        missing = [name for name in names if not (self.folder / name).exists()]
        if missing:
            raise _damaged_dataset(self.name, f"state.json names {quoted(missing)}, which is not there")
        return tuple(self.folder / name for name in names)

    def rows(self) -> Iterator[Numbered]:
        # Numbered through all shards, as the data set itself counts its rows.
        before = row = 0
        for path in self.files():
            for row, value, note in arrow_rows(path, str(path)):
                yield before + row, value, note
            before += row
            row = 0

    def fingerprint(self) -> str:
        return combined_fingerprint([FileSource(path) for path in self.files()])


def combined_fingerprint(sources: Sequence[DataSource]) -> str:
    """One hash of several sources in their order; that of one source is the source's own."""
    return combine_fingerprints([source.fingerprint() for source in sources])


def combine_fingerprints(fingerprints: Sequence[str]) -> str:
    """`combined_fingerprint` of sources whose own are known already."""
    # So that one file has the same fingerprint whether it is named alone or found in a folder.
    if len(fingerprints) == 1:
        return fingerprints[0]
    digest = hashlib.sha256()
    for fingerprint in fingerprints:
        digest.update(fingerprint.encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- what the user named


@dataclass(frozen=True, slots=True)
class ResolvedSources:
    """What the user named, resolved: the sources, and what should be said of the choice of files."""

    sources: tuple[DataSource, ...]
    notes: tuple[str, ...] = ()


LONGEST_PIPE = 1 << 30
"""Bytes that are read from a pipe, all of which stay in memory."""


def open_sources(data: Any, split: str = "train") -> tuple[DataSource, ...]:
    """The sources of `resolve_sources` alone."""
    return resolve_sources(data, split).sources


def resolve_sources(data: Any, split: str = "train", longest_row: int = LONGEST_ROW) -> ResolvedSources:
    """The sources that a path, glob, folder, hub id, rows in memory, or a list of these stands for; nothing is read.

    `split` chooses in folders and patterns whose files or parts are named after splits, and on the hub; `longest_row`
    is in bytes. Raises SourceError for what is not there, for one file under two names and for pipes and devices,
    ConfigError for an empty list and for what is neither path nor rows.
    """
    items = data_items(data)
    sources: list[DataSource] = []
    notes: list[str] = []
    for item in items:
        resolved = _resolve_item(item, split)
        sources += resolved.sources
        notes += resolved.notes
    # Within one item the rules of splits have chosen; only what the user names beside it can be of another split.
    places = [place for source in sources if (place := _path_of(source)) is not None]
    if len(items) > 1 and (mixed := mixed_note(places)) is not None:
        notes.append(mixed)
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        copy = Path(twice[0]).with_name(f"again-{Path(twice[0]).name}")
        raise SourceError(
            f"{quoted(twice)} is named more than once",
            found=quoted(str(item) for item in items),
            expected="each file once: its rows would count double",
            remedy="name it once; where its rows are to count double, copy the file "
            f"(`cp {shlex.quote(twice[0])} {shlex.quote(str(copy))}`) and name both",
        )
    require_distinct(place for source in sources if (place := _path_of(source)) is not None)
    bounded = (
        replace(source, longest_row=longest_row) if isinstance(source, FileSource | PipeSource) else source
        for source in sources
    )
    return ResolvedSources(tuple(bounded), tuple(notes))


def _path_of(source: DataSource) -> Path | None:
    """The path of a source; None for rows in memory and on the hub, where the split was chosen by name."""
    if isinstance(source, FileSource):
        return source.path
    return source.folder if isinstance(source, SavedDataset) else None


def _resolve_item(item: Any, split: str) -> ResolvedSources:
    """The sources of one item."""
    if not isinstance(item, str | Path):
        return ResolvedSources((memory_source(item, split),))
    text = str(item)
    if text.startswith(PACKAGE_SCHEME):
        return ResolvedSources((FileSource(shipped_file(text)),))
    # What exists wins over what could be a pattern or a hub id: a folder may be called `a[1]`, or `owner/name`.
    path = Path(text).expanduser()
    if (refusal := unlike_a_path(text, path)) is not None:
        raise refusal
    if path.is_dir():
        return _folder_sources(path, split)
    if is_open_pipe(path):
        return ResolvedSources((PipeSource(text, _piped(path)),))
    if path.exists():
        require_regular(path)
        return ResolvedSources((FileSource(path),))
    if _MAGIC.search(text):
        return _glob_sources(text, split)
    # A misspelt path looks like a hub id: only without a file's ending, and not inside a folder that exists.
    hub = HUB_ID.fullmatch(text) if isinstance(item, str) else None
    if hub and not text.endswith(SUFFIXES) and (text.startswith("hub:") or not path.parent.exists()):
        return ResolvedSources((HubSource(hub["id"], hub["config"], hub["revision"], split),))
    raise not_found(text, path)


def _piped(path: Path) -> bytes:
    with path.open("rb") as pipe:
        content = pipe.read(LONGEST_PIPE + 1)
    if len(content) > LONGEST_PIPE:
        raise SourceError(
            f"the pipe gives more than {LONGEST_PIPE // MEGABYTE:,} MB, which would have to stay in memory",
            where=path,
            expected="rows that fit, or a file",
            remedy="write what it gives to a file and name that: `COMMAND > rows.jsonl`",
        )
    return content


def _glob_sources(pattern: str, split: str) -> ResolvedSources:
    whole = str(Path(pattern).expanduser())
    paths = matching(whole)
    files = [path for path in paths if is_meant_as_file(path)]
    if not files:
        raise SourceError(
            f"no file matches the pattern {pattern!r}",
            where=pattern,
            found="folders only" if paths else "nothing",
            expected="at least one file",
            remedy=f"check the pattern with `ls {pattern}`; `**` reaches into subfolders",
        )
    base = Path(*[part for part in itertools.takewhile(lambda part: not _MAGIC.search(part), Path(whole).parts)])
    return _files_of_split(files, split, base, whole_folder=False)


def _files_of_split(
    files: Sequence[Path], split: str, base: Path, *, whole_folder: bool, notes: tuple[str, ...] = ()
) -> ResolvedSources:
    selection = select_files(files, split, base, whole_folder=whole_folder)
    require_whole_links(selection.files)
    return ResolvedSources(tuple(FileSource(path) for path in selection.files), (*selection.notes, *notes))


def _folder_sources(folder: Path, split: str) -> ResolvedSources:
    if (folder / "dataset_dict.json").exists():
        parts = sorted(part.name for part in folder.iterdir() if (part / "state.json").exists())
        known = [split_of(PurePath(part, "x")) or Split(part, None) for part in parts]
        # A part's own name counts here, not what it is short for: it is how `datasets` names it.
        exact = [Split(part, known_as.group) for part, known_as in zip(parts, known, strict=True)]
        (name,) = choose_split(exact, split, str(folder))
        return ResolvedSources((SavedDataset(folder / name),))
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        return ResolvedSources((SavedDataset(folder),))

    files, beside = _without_tables(_data_files(folder.iterdir()))
    if files:
        resolved = _files_of_split(files, split, folder, whole_folder=True, notes=beside)
        # The files beside us were meant; those in folders below are named in a note, since they may be forgotten.
        below = _data_files(path for path in folder.glob("*/*") if not _is_hidden(path.relative_to(folder)))
        if not below:
            return resolved
        names = [str(path.relative_to(folder)) for path in below]
        note = f"the files of {folder} itself are read; not read, in folders below it: {quoted(names, 6)}"
        return ResolvedSources(resolved.sources, (*resolved.notes, note))

    # Nothing in the folder itself: a clone of a hub repository has its files one level down, in `data/`.
    files_below = [path for path in folder.rglob("*") if not _is_hidden(path.relative_to(folder))]
    saved = sorted({path.parent for path in files_below if path.name in ("dataset_dict.json", "state.json")})
    files, beside = _without_tables(_data_files(files_below))
    if saved or not files:
        raise SourceError(
            "the folder holds no data files",
            where=str(folder),
            found=quoted(sorted(path.name for path in folder.iterdir())[:8]),
            expected=f"files that end in one of {quoted(SUFFIXES)}, or a saved `datasets` folder",
            remedy=f"name the saved data set inside it, `{saved[0]}`" if saved else "check the path",
        )

    resolved = _files_of_split(files, split, folder, whole_folder=True, notes=beside)
    _refuse_several_folders(resolved, folder)
    return resolved


def _without_tables(files: list[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """The files of a folder without the tables that lie beside other files of rows, and a note that names them."""
    tables = [path for path in files if path.name.endswith(TABLE_SUFFIXES)]
    others = [path for path in files if path not in tables]
    # `metadata.csv` beside `train.jsonl` is an index: read as rows, it would end the reading or, worse, would not.
    if not tables or not others:
        return files, ()
    names = quoted([path.name for path in tables], 6)
    return others, (f"tables beside other files of rows are not read: {names} (name them to read them)",)


def _data_files(paths: Iterable[Path]) -> list[Path]:
    # Sorted, since the order in which a file system lists a folder differs between machines, and rows follow it.
    named = [path for path in sorted(paths) if path.name.endswith(SUFFIXES) and path.name not in _NOT_DATA]
    return [path for path in named if path.name[0] not in "._" and is_meant_as_file(path)]


def _is_hidden(relative: PurePath) -> bool:
    return any(part.startswith((".", "__")) for part in relative.parts)


def _refuse_several_folders(resolved: ResolvedSources, folder: Path) -> None:
    """One folder below the named one is a clone's `data`; several may be several data sets (configurations)."""
    places: dict[PurePath, Path] = {}
    for source in resolved.sources:
        parent = Path(source.name).parent
        parts = [part for part in parent.relative_to(folder).parts if split_of(PurePath(part, "x")) is None]
        places.setdefault(PurePath(*parts), parent)
    if len(places) < 2:
        return
    below = [str(folder / place) for place in places]
    endings = sorted({Path(source.name).suffix for source in resolved.sources})
    raise SourceError(
        "the data files of the folder lie in several folders, which may be different data sets",
        where=str(folder),
        found=quoted(below, 8),
        expected="data files in the folder itself, or in one folder inside it",
        remedy=f"name one of them, for example `{below[0]}`; "
        f"to read them all, name a pattern, `{folder}/**/*{endings[0]}`",
    )


# ---------------------------------------------------------------- refusals


def _empty_source(name: str, problem: str) -> SourceError:
    return SourceError(
        problem,
        where=name,
        found="no rows",
        expected="at least one row",
        remedy="write the file again, or leave it out",
    )


def no_rows(name: str) -> SourceError:
    return _empty_source(name, "the source holds no rows")


def _unreadable_file(name: str, error: OSError) -> SourceError:
    return SourceError(
        "the file cannot be read",
        where=name,
        found=error.strerror or str(error),
        expected="a file that this user may read",
        remedy="check the path and its permissions (`ls -l`)",
    )


def _beyond_memory(name: str) -> SourceError:
    return SourceError(
        "reading the file takes more memory than there is",
        where=name,
        expected="rows that fit into memory one at a time",
        remedy="lower `longest_row_mb`, so that the row is named; write Parquet of very large row groups anew with "
        "smaller ones",
    )


def _damaged_dataset(name: str, found: str) -> SourceError:
    return SourceError(
        "the saved dataset cannot be read",
        where=name,
        found=found,
        expected="a folder as `Dataset.save_to_disk` writes it",
        remedy="save it again with a current version of `datasets`",
    )
