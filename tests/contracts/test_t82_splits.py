"""T82: no row of a test or validation split trains without a word (marin#2381, OpenRLHF#367, EasyR1#74).

What stands for which split is what `datasets` says: the table here was made of its own patterns.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import datasets
import pytest
from datasets.data_files import SPLIT_KEYWORDS

import posttrain as pt
from posttrain.data.sources.splits import KEYWORDS, split_of
from posttrain.errors import SourceError


def put(folder: Path, *names: str) -> Path:
    """Files of one row each, whose prompt is the file's name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps({"prompt": name, "completion": "a"}) + "\n").encode()
        path.write_bytes(gzip.compress(line) if name.endswith(".gz") else line)
    return folder


def read_names(data: Any, **options: Any) -> list[str]:
    return sorted(example.messages[0].content for example in pt.read(data, **options))  # type: ignore[union-attr]


LAYOUTS: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("train.jsonl",), ("test.jsonl",)),
    (("gsm8k_train.jsonl",), ("gsm8k_test.jsonl",)),
    (("x.train.jsonl",), ("x.test.jsonl", "x.dev.jsonl")),
    (("math-train-v2.jsonl",), ("math-eval-v2.jsonl", "math-val-v2.jsonl")),
    (("my training rows.jsonl",), ("my testing rows.jsonl",)),
    (("TRAIN.jsonl",), ("Test.jsonl",)),
    (("train.jsonl",), ("train_test.jsonl", "eval-train.jsonl")),
    (("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"), ("data/test-00000-of-00001.jsonl",)),
    (("train/a.jsonl", "train/b.jsonl"), ("test/a.jsonl", "validation/a.jsonl")),
    (("v1/train/a.jsonl",), ("v1/test/a.jsonl",)),
    (("training/train.jsonl",), ("training/test.jsonl",)),
    (("train-00000.jsonl.gz", "train-00001.jsonl.gz"), ("dev-00000.jsonl.gz",)),
    (("train1.jsonl", "train2.jsonl"), ("test1.jsonl",)),
    (("train_part1.jsonl", "train_part2.jsonl"), ("evaluation.jsonl",)),
]


@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
@pytest.mark.parametrize("how", ["folder", "pattern"])
def test_no_test_row_trains_and_a_note_says_what_was_read(layout: int, how: str, tmp_path: Path) -> None:
    train, others = LAYOUTS[layout]
    put(tmp_path, *train, *others)
    if how == "pattern":
        put(tmp_path.parent / "elsewhere", "other.jsonl")
    ending = "*.jsonl.gz" if train[0].endswith("gz") else "*.jsonl"
    examples = pt.read(tmp_path if how == "folder" else str(tmp_path / "**" / ending))
    assert sorted(example.messages[0].content for example in examples) == sorted(train)  # type: ignore[union-attr]
    (note,) = examples.counts.notes
    read, _, left = note.partition("; not read: ")
    assert all(name in read for name in train) and all(name in left for name in others)
    assert note in str(examples.counts)


def test_other_splits_are_read_when_they_are_named(tmp_path: Path) -> None:
    put(tmp_path, "data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl", "data/test.jsonl")
    assert read_names(tmp_path, split="validation") == ["data/validation-00000-of-00001.jsonl"]
    assert read_names(tmp_path, split="dev") == ["data/validation-00000-of-00001.jsonl"]
    assert read_names(str(tmp_path / "**/*.jsonl"), split="test") == ["data/test.jsonl"]
    with pytest.raises(SourceError, match="no split 'holdout'") as caught:
        pt.read(tmp_path, split="holdout")
    assert "`split: train`" in caught.value.remedy


def test_kinds_of_a_split_are_named_and_never_mixed(tmp_path: Path) -> None:
    """The layout of UltraChat: train_sft and train_gen are splits of their own."""
    names = [f"data/{split}-00000-of-00001.jsonl" for split in ("train_sft", "train_gen", "test_sft", "test_gen")]
    put(tmp_path, *names)
    assert read_names(tmp_path, split="train_sft") == names[:1]
    assert read_names(str(tmp_path / "data/*"), split="test_gen") == names[3:]
    for data in (tmp_path, str(tmp_path / "data" / "*.jsonl")):
        with pytest.raises(SourceError, match="may be one of several splits") as caught:
            pt.read(data)
        advised = caught.value.remedy.split("`split: ")[1].split("`")[0]
        assert read_names(data, split=advised) == [f"data/{advised}-00000-of-00001.jsonl"]
    put(tmp_path / "one", "train_sft.jsonl", "test_sft.jsonl")
    assert read_names(tmp_path / "one") == ["train_sft.jsonl"]
    put(tmp_path / "two", "train.jsonl", "train_gen.jsonl", "test.jsonl")
    assert read_names(tmp_path / "two") == ["train.jsonl"]


def test_what_is_named_exactly_is_read(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "test.jsonl", "test/a.jsonl", "test/b.jsonl")
    assert read_names(tmp_path / "test.jsonl") == ["test.jsonl"]
    assert not pt.read(tmp_path / "test.jsonl").counts.notes
    assert read_names(tmp_path / "test") == ["test/a.jsonl", "test/b.jsonl"]
    assert read_names(str(tmp_path / "test" / "*.jsonl")) == ["test/a.jsonl", "test/b.jsonl"]
    assert read_names(str(tmp_path / "te*.jsonl")) == ["test.jsonl"]
    both = pt.read([tmp_path / "train.jsonl", tmp_path / "test.jsonl"])
    assert len(both) == 2
    assert both.counts.notes == [
        "files of different splits are read together: train.jsonl (split 'train'), test.jsonl (split 'test')"
    ]


def test_files_without_a_split_beside_others(tmp_path: Path) -> None:
    put(tmp_path, "rows.jsonl", "rows_test.jsonl")
    with pytest.raises(SourceError, match="named after a split, others are not") as caught:
        pt.read(tmp_path)
    advised = caught.value.remedy.split("`path: [")[1].split("]")[0].split(", ")
    assert read_names(advised) == ["rows.jsonl"]
    assert read_names(str(tmp_path / "*.jsonl")) == ["rows.jsonl"]
    assert "not read: rows_test.jsonl" in pt.read(str(tmp_path / "*.jsonl")).counts.notes[0]


@pytest.mark.parametrize(
    "name", ["contest", "latest", "trainer", "constraints", "devices", "valued", "evaluator", "detrain"]
)
def test_words_that_hold_a_keyword_are_no_split(name: str, tmp_path: Path) -> None:
    put(tmp_path, f"{name}.jsonl", f"a_{name}.jsonl")
    assert split_of(PurePath(f"{name}.jsonl")) is None and len(read_names(tmp_path)) == 2


def test_a_clone_with_several_data_sets_is_asked_for_one(tmp_path: Path) -> None:
    put(
        tmp_path,
        *[f"{name}/{split}-00000-of-00001.jsonl" for name in ("main", "socratic") for split in ("train", "test")],
    )
    with pytest.raises(SourceError, match="several folders") as caught:
        pt.read(tmp_path)
    assert read_names(caught.value.remedy.split("`")[1]) == ["main/train-00000-of-00001.jsonl"]
    pattern = caught.value.remedy.split("a pattern, `")[1].split("`")[0]
    assert read_names(pattern) == ["main/train-00000-of-00001.jsonl", "socratic/train-00000-of-00001.jsonl"]


def test_saved_data_sets_and_dictionaries_of_them(tmp_path: Path) -> None:
    datasets.disable_progress_bars()

    def rows(name: str) -> datasets.Dataset:
        return datasets.Dataset.from_list([{"prompt": name, "completion": "a"}])

    kinds = datasets.DatasetDict({name: rows(name) for name in ("test_sft", "train_sft")})
    kinds.save_to_disk(tmp_path / "saved")
    assert read_names(tmp_path / "saved") == read_names(kinds) == ["train_sft"]
    assert read_names(kinds, split="test_sft") == ["test_sft"]
    more = datasets.DatasetDict({**kinds, "train_gen": rows("train_gen")})
    with pytest.raises(SourceError, match="may be one of several splits"):
        pt.read(more)
    with pytest.raises(SourceError, match="name the saved data set"):
        pt.read(tmp_path)


def test_a_folder_beside_a_file_of_another_split_is_said(tmp_path: Path) -> None:
    put(tmp_path, "a/train.jsonl", "a/test.jsonl", "b/test.jsonl", "c/train.jsonl")
    for first in (tmp_path / "a", str(tmp_path / "a" / "train*.jsonl")):
        notes = pt.read([first, tmp_path / "b" / "test.jsonl"]).counts.notes
        assert any(note.startswith("files of different splits are read together") for note in notes)
    notes = pt.read([tmp_path / "a", tmp_path / "c" / "train.jsonl"]).counts.notes
    assert not any("different splits" in note for note in notes)


def patterns() -> Iterable[tuple[str, str]]:
    for split, words in SPLIT_KEYWORDS.items():
        for word in words:
            for name in (
                "{}.jsonl",
                "x_{}.jsonl",
                "x-{}-y.jsonl",
                "{}.part.jsonl",
                "{} 1.jsonl",
                "0{}0.jsonl",
                "{}/a.jsonl",
            ):
                yield str(split), name.format(word)


def test_the_keywords_are_those_of_datasets() -> None:
    assert {str(split): tuple(words) for split, words in SPLIT_KEYWORDS.items()} == dict(KEYWORDS)
    for split, name in patterns():
        found = split_of(PurePath(name))
        assert found is not None and found.group == split, name


def test_files_in_folders_below_are_named_when_they_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("train/a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "q", "completion": "a"}\n')
    examples = pt.read(tmp_path)
    assert len(examples) == 1
    assert any("not read, in folders below it: 'train/a.jsonl'" in note for note in examples.counts.notes)
