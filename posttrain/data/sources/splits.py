"""Which split a file belongs to, by its name or its folder's and the rules that the hub documents.

split_of(PurePath("data/train-00000-of-00002.parquet"))   # Split("train", "train")
split_of(PurePath("gsm8k_test.jsonl"))                     # Split("test", "test")
split_of(PurePath("train_sft.jsonl"))                      # Split("train_sft", "train")
split_of(PurePath("contest.jsonl"))                        # None: a keyword stands between delimiters
select_files(files, "train", folder, whole_folder=True)          # Selection(files, notes)

The keywords and delimiters are those of `datasets` (data_files.py, SPLIT_KEYWORDS and NON_WORDS_CHARS): a shard's name
before its number first, then the folders, then anywhere in the file's name. Two deviations, both so that no row to be
measured on is trained on: case does not matter, and where one name holds words of several splits it is not of `train`.
A kind behind the keyword (`train_sft` beside `train_gen`) is a split of its own, as it is for shards on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from posttrain.data.refusals import quoted
from posttrain.errors import SourceError

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words that stand for it in names."""
TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
"""Tables as text; beside other files of rows in a folder they are as often its index as its rows."""
SUFFIXES = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".jsonl.gz",
    ".ndjson.gz",
    ".json.gz",
    *TABLE_SUFFIXES,
    ".parquet",
    ".arrow",
    ".ipc",
    ".feather",
)
"""How the name of a file of rows ends."""
_GROUP_OF = {word: group for group, words in KEYWORDS.items() for word in words}
_WORDS = "|".join(sorted(_GROUP_OF, key=len, reverse=True))
_KEYWORD = re.compile(rf"(?:^|(?<=[-._ 0-9]))({_WORDS})(?=[-._ 0-9]|$)")
_BEGINS = re.compile(rf"({_WORDS})(?=[-._ 0-9]|$)(.*)")
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_NUMBERING = re.compile(r"(?:[-._ ]*(?:part|shard|chunk|file|split)?[-._ ]*\d*)*$")
"""What only counts the files of one split: train_part2, train.03."""
_SHOWN_FILES = 6
MIXED_SPLITS = "files of different splits are read together: "
"""How the note begins that things were named side by side which say that they are of different splits."""


@dataclass(frozen=True, slots=True)
class Split:
    """Split("train_sft", "train")."""

    name: str
    """As `split:` names it; a keyword alone is written as the hub writes it: dev.jsonl is of "validation"."""
    group: str | None
    """One of KEYWORDS; None for shards whose name is no keyword, such as a language."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The files that were chosen, and what a user should know about it."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def split_of(path: PurePath) -> Split | None:
    """The split that a path (relative to the folder that was named) names, or None if it names none."""
    name = path.name.lower()
    # The longest suffix: "train.jsonl.gz" is of "train", not of "train.jsonl".
    stem = name.removesuffix(next((end for end in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(end)), ""))
    shard = _SHARD.match(stem)
    if shard is not None and (of_shard := _split_named(shard[1])) is not None:
        return of_shard
    splits = [split for part in (*path.parts[:-1], stem) if (split := _split_named(part.lower())) is not None]
    if splits:
        # training/test.jsonl is no training file, whatever the folder: furthest from training wins.
        group = furthest_from_training(split.group for split in splits)
        return next(split for split in reversed(splits) if split.group == group)
    return Split(shard[1], None) if shard is not None else None


def _split_named(name: str) -> Split | None:
    """The split that one part of a path is named after."""
    groups = {_GROUP_OF[word] for word in _KEYWORD.findall(name)}
    if not groups:
        return None
    if len(groups) > 1:
        group = furthest_from_training(groups)
        return Split(group, group)
    begun = _BEGINS.match(name)
    (group,) = groups
    kind = _NUMBERING.sub("", begun[2]).strip("-._ ") if begun is not None else ""
    return Split(f"{group}_{kind}" if kind else group, group)


def furthest_from_training(groups: Iterable[str | None]) -> str:
    """Where names say several things, rows that may be measured on must not train."""
    named = set(groups)
    return next(group for group in ("test", "validation", "train") if group in named)


# ---------------------------------------------------------------- choosing


def choose_split(splits: Iterable[Split], wanted: str, where: str) -> frozenset[str]:
    """The names of the splits that `wanted` means: itself, or the only one of its group.

    choose_split({train_sft, test_sft}, "train", ...) -> {"train_sft"}

    Raises:
        SourceError: there is none, or there are several kinds of it, which are never mixed without a word.
    """
    split_by_name = {split.name: split for split in splits}
    names = sorted(split_by_name, key=lambda name: (split_by_name[name].group != "train", name))
    # By its own name first, then as files of it are named here: dev_sft -> validation_sft.
    named = _split_named(wanted.lower())
    for name in (wanted, named.name if named is not None else wanted):
        if name in split_by_name:
            return frozenset({name})
    group = _GROUP_OF.get(wanted.lower())
    kinds = [name for name in names if group is not None and split_by_name[name].group == group]
    # train_sft alone is what `train` means; beside train_gen it is a guess, and guesses are refused.
    if len(kinds) == 1:
        return frozenset(kinds)
    several = f", several of which are of {wanted!r}" if kinds else ""
    raise SourceError(
        f"there is no split {wanted!r}" if not kinds else f"{wanted!r} may be one of several splits here",
        where=where,
        found=f"the splits {quoted(sorted(names))}{several}",
        expected="the name of one of them",
        remedy=f"choose one, for example `split: {(kinds or names)[0]}`"
        + ("; to read several of them, name their files in a list" if kinds else ""),
    )


def select_files(files: Sequence[Path], wanted: str, base: Path, *, whole_folder: bool) -> Selection:
    """The files of one split where their names say so, else all of them.

    Args:
        base: a folder, or the fixed part of a pattern; names are read and shown relative to it.
        whole_folder: nobody said which of them to read, so that files without a split among others are refused; a
            pattern names them.

    Raises:
        SourceError: the split is not there; some files say their split and others do not.
    """
    of_file = {path: split_of(_relative(path, base)) for path in files}
    named = {split for split in of_file.values() if split is not None}
    groups = {split.group for split in named}
    if groups <= {None}:
        return _unnamed_groups(of_file, named, wanted, str(base))
    without_split = [path for path, split in of_file.items() if split is None]
    if without_split and whole_folder:
        raise _some_without(of_file, wanted, base)
    keyword = _GROUP_OF.get(wanted.lower())
    if not whole_folder and not without_split and len(groups) == 1 and (keyword in groups or keyword == "train"):
        # A pattern that matches files of one split alone was written for them, whatever the split.
        is_one_split = len({split.name for split in named}) == 1 and keyword in groups
        return Selection(tuple(files), () if is_one_split else (_selection_note(of_file, files, base),))
    # Files without a word for a split beside a test file: they are what trains.
    if without_split and keyword == "train" and "train" not in groups:
        chosen_names: set[str | None] = {None}
    else:
        chosen_names = {*choose_split(named, wanted, str(base)), *([None] if without_split else [])}
    chosen = tuple(path for path, split in of_file.items() if (split.name if split else None) in chosen_names)
    if len(chosen) == len(files) and len(chosen_names) == 1:
        return Selection(chosen)
    return Selection(chosen, (_selection_note(of_file, chosen, base),))


def _unnamed_groups(of_file: Mapping[Path, Split | None], named: set[Split], wanted: str, where: str) -> Selection:
    """Files of no known split: all of them, or the shards of the one that is asked for."""
    if wanted == "train" or not named:
        return Selection(tuple(of_file))
    names = choose_split(named, wanted, where)
    return Selection(tuple(path for path, split in of_file.items() if split is not None and split.name in names))


def mixed_note(files: Sequence[Path]) -> str | None:
    """What to say where files of different splits, named side by side by the user, are read together."""
    if len(files) < 2:
        return None
    # Relative to what they share, so that a word in the path above ("/data/test_runs/...") names no split.
    parents = [path.absolute().parent for path in files]
    base = parents[0]
    while any(base not in (parent, *parent.parents) for parent in parents):
        base = base.parent
    of_file = {path: split_of(_relative(path, base)) for path in files}
    groups = {split.group for split in of_file.values() if split is not None and split.group is not None}
    if len(groups) < 2:
        return None
    return MIXED_SPLITS + _files_by_split(files, of_file, base)


def _selection_note(of_file: Mapping[Path, Split | None], chosen: Sequence[Path], base: Path) -> str:
    not_read = [path for path in of_file if path not in set(chosen)]
    note = f"read {_files_by_split(chosen, of_file, base)}"
    return f"{note}; not read: {_files_by_split(not_read, of_file, base)}" if not_read else note


def _files_by_split(files: Sequence[Path], of_file: Mapping[Path, Split | None], base: Path) -> str:
    """data/train-0.jsonl, data/train-1.jsonl (split 'train'), notes.jsonl (no split)."""
    by_split: dict[str, list[str]] = {}
    for path in files:
        split = of_file[path]
        by_split.setdefault(f"split {split.name!r}" if split else "no split", []).append(str(_relative(path, base)))
    parts = []
    for split_name, names in by_split.items():
        more = f" and {len(names) - _SHOWN_FILES} more" if len(names) > _SHOWN_FILES else ""
        parts.append(f"{', '.join(names[:_SHOWN_FILES])}{more} ({split_name})")
    return ", ".join(parts)


def _relative(path: Path, base: Path) -> PurePath:
    try:
        return path.absolute().relative_to(base.absolute())
    except ValueError:  # a pattern that goes up: "../x/*.jsonl"
        return PurePath(path.name)


def _some_without(of_file: Mapping[Path, Split | None], wanted: str, base: Path) -> SourceError:
    named = _split_named(wanted.lower())
    group = named.group if named is not None else None
    keep = [path for path, split in of_file.items() if split is None or split.group == group]
    listed = ", ".join(str(path) for path in keep)
    return SourceError(
        "some files of the folder are named after a split, others are not",
        where=str(base),
        found=_files_by_split(list(of_file), of_file, base),
        expected="only names such as train.jsonl and test.jsonl, or none of these",
        remedy=f"name the files to read instead of the folder: `path: [{listed}]`"
        if len(keep) <= _SHOWN_FILES
        else "name the files to read, or a pattern that matches them alone, instead of the folder",
    )
