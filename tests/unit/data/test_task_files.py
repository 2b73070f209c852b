"""Tasks from files larger than memory: the same prompts in the same order as from a list, in a bounded space."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from posttrain.config.settings import Data
from posttrain.data.split import split_by_content, split_by_digest
from posttrain.training.rl.tasks import TaskOrder, TaskSet, load_tasks, read_tasks
from posttrain.types import Message, RowRef, Task


class Bytes:
    """Of an encoder, what tasks ask: a prompt's ids."""

    def prompt(self, messages: Any, tools: Any = ()) -> list[int]:
        return list(messages[-1].content.encode())


def row(index: int) -> dict[str, Any]:
    text = f"What is {index} + {index % 7}? " + "Think about it. " * (index % 11)
    return {"prompt": text, "answer": str(index + index % 7), "level": index % 3, "source": "generated"}


def write(path: Path, rows: int) -> Path:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist([row(i) for i in range(rows)]), path)
        return path
    text = "".join(json.dumps(row(index)) + "\n" for index in range(rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def load(path: Path, given: Any = None, *, held_out: float = 0.1, limit: int | None = None) -> TaskSet:
    data = None if given is not None else Data(path=(str(path),), limit=limit)
    return load_tasks(data, held_out, given, Bytes(), folder=path.parent, longest=160, seed=3)  # type: ignore[arg-type]


def listed(tasks: TaskSet) -> list[Any]:
    return [[(p.ids, p.index, p.task.answer, p.task.metadata) for p in side] for side in (tasks.train, tasks.held_out)]


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.jsonl.gz", "tasks.parquet"])
def test_a_file_gives_what_a_list_gives(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, 500)
    ours = load(path)
    rows = [
        Task(
            (Message("user", r["prompt"]),),
            r["answer"],
            RowRef(str(path), i + 1),
            {"level": r["level"], "source": "generated"},
        )
        for i, r in enumerate(map(row, range(500)))
    ]
    theirs = load(path, rows)
    assert listed(ours) == listed(theirs)
    assert ours.counts == theirs.counts and ours.fingerprints == theirs.fingerprints
    long = sum(len(row(index)["prompt"]) > 160 for index in range(500))
    assert ours.counts.dropped == {"too_long": long} and ours.counts.held_out_rows == (500 - long) // 10
    assert ours.train[3].task == theirs.train[3].task  # its row too, for errors
    assert ours.longest == max(len(prompt.ids) for prompt in (*ours.train, *ours.held_out)) <= 160
    assert not [file for file in tmp_path.iterdir() if file != path]  # the store has no name
    asked = [index for step in range(6) for index in TaskOrder(len(ours.train), 70, 6, 1).at(step)]
    assert sorted(asked[: len(ours.train)]) == list(range(len(ours.train)))
    assert [ours.train[i].task.answer for i in asked] == [theirs.train[i].task.answer for i in asked]


def test_a_question_that_is_trained_on_is_not_held_out(tmp_path: Path) -> None:
    """A program that makes tasks gives equal ones different numbers in their metadata."""
    rows = [
        Task((Message("user", f"{n % 20} + 1?"),), str(n % 20 + 1), RowRef("made", n + 1), {"source_index": n})
        for n in range(100)
    ]
    tasks = load(tmp_path / "t", rows, held_out=0.25)
    train, apart = ({prompt.ids for prompt in side} for side in (tasks.train, tasks.held_out))
    assert len(tasks.held_out) == 25 and len(apart) == 5 and not train & apart


def test_views() -> None:
    tasks = [Task((Message("user", str(i)),), str(i), RowRef("t", i + 1)) for i in range(9)]
    train = load(Path("unused/t"), tasks, held_out=0.0).train
    assert [prompt.task.answer for prompt in train[2:5]] == ["2", "3", "4"]
    assert [prompt.index for prompt in train[2:5]] == [0, 1, 2]
    assert train[-1].index == 8 and train[-1].task.answer == "8"
    assert len(train[:0]) == 0 and train[:0].longest == 0
    with pytest.raises(IndexError):
        train[9]


def test_fingerprints_depend_on_content_and_order() -> None:
    def of(*answers: str) -> str:
        rows = [Task((Message("user", "q"),), answer, RowRef("t", 1)) for answer in answers]
        return load(Path("unused/t"), rows, held_out=0.0).fingerprints[0]

    assert of("1", "2") == of("1", "2")
    assert len({of("1", "2"), of("2", "1"), of("1"), of("12")}) == 4


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_digests_split_as_their_hex_does(share: float) -> None:
    """Repeats stay on one side, as they do by content; 60 rows with 40 contents."""
    raw = [hashlib.sha256(str(number % 40).encode()).digest() for number in range(60)]
    digests = np.frombuffer(b"".join(raw), dtype=np.uint8).reshape(-1, 32)
    kept, out = split_by_content([one.hex() for one in raw], share, seed=5)
    found = split_by_digest(digests, share, seed=5)
    assert (found[0].tolist(), found[1].tolist()) == (kept, out)


def test_reading_is_lazy_and_stops_at_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.jsonl", 50)
    tasks = read_tasks(Data(path=(str(path),), limit=3))
    assert isinstance(tasks, Iterator) and len(list(tasks)) == 3
    assert load(path, limit=20).counts.read == 20


def traced(path: Path, as_list: bool) -> tuple[int, int]:
    """(bytes held, bytes at the peak) of loading a file and walking through an order of it."""
    tracemalloc.start()
    try:
        given = list(read_tasks(Data(path=(str(path),)))) if as_list else None
        tasks = load(path, given, held_out=0.05)
        del given
        order = TaskOrder(len(tasks.train), 8, 20, 0)
        assert sum(len(tasks.train[index].ids) for step in range(20) for index in order.at(step)) > 0
        assert len(order.more(3, 1, 8, order.at(3))) == 8
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_memory_is_a_few_bytes_a_task(tmp_path: Path) -> None:
    """What 2,000 more tasks cost: at most 100 bytes each afterwards and 400 at the peak, split and order included; as
    objects each is more than 1,000."""
    few, many = write(tmp_path / "few.jsonl", 500), write(tmp_path / "many.jsonl", 2_500)
    load(few)  # what is imported and cached on the way is not the tasks'
    (held, peak), (more, higher) = traced(few, False), traced(many, False)
    assert (more - held) / 2_000 < 100 and (higher - peak) / 2_000 < 400, (more - held, higher - peak)
    assert (traced(many, True)[0] - traced(few, True)[0]) / 2_000 > 1_000
