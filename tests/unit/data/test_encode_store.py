"""The store: the same trees back, used again when nothing changed, made again when torn, and no memory of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posttrain.data.blocks import EncodeCounts, encode_block
from posttrain.data.dataset import EncodedDataset, StoreWriter, TornStoreError
from posttrain.data.encode import Encoder
from posttrain.data.store import encode
from posttrain.errors import EmptyDatasetError, PromptMismatchError, TemplateError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, TokenTree
from tests.encoding import encoder_of, pair, same
from tests.fixtures import CHATML, CHATML_TOKENS, chat


def rows_of(count: int, source: str = "a.jsonl") -> list[Example]:
    """Demonstrations of several lengths, and every fifth row a pair with a margin."""
    rows: list[Example] = []
    for number in range(1, count + 1):
        if number % 5 == 0:
            rows.append(
                replace(pair(chat(f"pair {number}"), "yes" * (number % 7 + 1), "no", number), margin=number / 4)
            )
        else:
            turns = chat(f"question {number}", "answer " * (number % 4 + 1), "more?", f"more {number}")
            rows.append(Demonstration(turns, RowRef(source, number)))
    return rows


def equal(left: TokenTree, right: TokenTree) -> bool:
    return (
        left.prompt_ids.tolist() == right.prompt_ids.tolist()
        and all(map(same, left.branches, right.branches))
        and (left.key, left.row, left.margin) == (right.key, right.row, right.margin)
        and (left.label, left.scores) == (right.label, right.scores)
    )


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoder_of()


def test_the_store_gives_back_what_the_encoder_made(encoder: Encoder, tmp_path: Path) -> None:
    rows = rows_of(600)
    dataset = encode(rows, encoder, store=tmp_path)
    expected = [tree for row in rows for tree in encoder.example(row).trees]
    assert len(dataset) == len(expected) == 600
    assert all(equal(found, tree) for found, tree in zip(dataset, expected, strict=True))
    assert equal(dataset[-1], expected[-1])
    assert dataset.num_tokens.tolist() == [tree.num_tokens for tree in expected]
    assert dataset.num_trained.tolist() == [tree.num_trained for tree in expected]
    for beyond in (600, -601):
        with pytest.raises(IndexError):
            dataset[beyond]


def test_labels_and_scores_come_back(encoder: Encoder, tmp_path: Path) -> None:
    question, answers = chat("q"), [(Message("assistant", text),) for text in ("a", "bb", "ccc")]
    scores = (1.0, 4.0, 2.0)
    rows: list[Example] = [
        Feedback(question, answers[0], True, RowRef("k.jsonl", 1)),
        Comparison(question, tuple(answers), 1, RowRef("k.jsonl", 2), ranking=(1, 2, 0), scores=scores),
        Feedback(question, answers[1], False, RowRef("k.jsonl", 3)),
        pair(question, "yes", "no", 4),
    ]
    dataset = encode(rows, encoder, store=tmp_path)
    assert [tree.label for tree in dataset] == [True, None, False, None]
    assert [tree.scores for tree in dataset] == [None, (4.0, 2.0, 1.0), None, None]
    assert [tree.scores for tree in dataset[[1, 0]]] == [(4.0, 2.0, 1.0), None]
    assert all(equal(found, encoder.example(row).trees[0]) for found, row in zip(dataset, rows, strict=True))


def test_counts_add_up(encoder: Encoder, tmp_path: Path) -> None:
    counts = encode(rows_of(20), encoder, store=tmp_path).counts
    assert (counts.read, counts.kept, counts.split, counts.dropped) == (20, 20, 0, {})
    assert counts.stop_tokens == 20 * 2
    assert counts.stop_share == counts.stop_tokens / counts.trained_tokens
    assert counts.as_dict()["supervised_share"] == counts.trained_tokens / counts.tokens
    assert np.isnan(EncodeCounts().stop_share) and EncodeCounts().as_dict()["stop_share"] is None


def test_dropped_rows_are_listed_and_nothing_is_lost(tmp_path: Path) -> None:
    encoder = encoder_of("NO_TERMINATOR", {"max_length": 80})
    rows = [Demonstration(chat("q", "a", "q" * (10 * n), "b"), RowRef("s.jsonl", n)) for n in range(1, 9)]
    rows.append(Demonstration((Message("user", "alone"),), RowRef("s.jsonl", 9)))
    dataset = encode(rows, encoder, store=tmp_path)
    counts = dataset.counts
    assert counts.read + counts.split == counts.kept + sum(counts.dropped.values())
    assert (counts.read, counts.split, counts.dropped) == (9, 8, {"too_long": 5, "nothing_to_train": 1})
    assert counts.findings == {"split_turns": 8} and dataset.found["split_turns"][0] == "s.jsonl, row 1"
    dropped = list(dataset.dropped())
    assert [record["reason"] for record in dropped] == ["too_long"] * 5 + ["nothing_to_train"]
    assert dropped[-1]["row"] == "s.jsonl, row 9" and dropped[-1]["content"] == "user: alone"
    assert "max_length is 80" in dropped[0]["message"]


def test_views(encoder: Encoder, tmp_path: Path) -> None:
    dataset = encode(rows_of(30), encoder, store=tmp_path)
    view = dataset[[7, 4, 4]]
    assert [tree.row.row for tree in view] == [8, 5, 5]
    assert view.counts.kept == 3 and view.counts.tokens == sum(tree.num_tokens for tree in view)
    assert view.keys == [tree.key for tree in view]
    assert view.counts.stop_tokens == 6 and view.counts.trained_tokens == sum(tree.num_trained for tree in view)
    assert [tree.row.row for tree in view[[1, 0]]] == [5, 8]
    assert [tree.row.row for tree in dataset[-2:]] == [29, 30]
    assert dataset[np.array([3])].fingerprint == dataset[3:4].fingerprint != dataset[4:5].fingerprint
    assert len(dataset[[]]) == 0
    copy = pickle.loads(pickle.dumps(view))
    assert copy.fingerprint == view.fingerprint and equal(copy[0], view[0])


def test_an_unchanged_store_is_used_again_and_says_so(encoder: Encoder, tmp_path: Path) -> None:
    first = encode(rows_of(10), encoder, store=tmp_path)
    done: list[int] = []
    second = encode(rows_of(10), encoder, store=tmp_path, progress=done.append)
    assert second.reused and not first.reused and done == [10]
    assert "again (10 trees)" in second.notes[-1]
    assert second.folder == first.folder and second.counts == first.counts


def test_any_change_makes_another_store(encoder: Encoder, tmp_path: Path) -> None:
    rows = rows_of(10)
    folders = {
        encode(rows, encoder, store=tmp_path).folder,
        encode(rows[:9], encoder, store=tmp_path).folder,
        encode(list(reversed(rows)), encoder, store=tmp_path).folder,
        encode(rows_of(10, source="b.jsonl"), encoder, store=tmp_path).folder,
        encode(rows, encoder_of("CHATML", {"max_length": 500}), store=tmp_path).folder,
        encode(rows, encoder, store=tmp_path, bad_rows="skip").folder,
    }
    assert len(folders) == 6


def test_the_fingerprint_goes_by_content_alone(encoder: Encoder, tmp_path: Path) -> None:
    rows = rows_of(10)
    here = encode(rows, encoder, store=tmp_path / "here").fingerprint
    assert encode(rows_of(10, source="moved/b.jsonl"), encoder, store=tmp_path / "there").fingerprint == here
    assert encode(rows[:9], encoder, store=tmp_path / "here").fingerprint != here


@pytest.mark.parametrize("fault", ["short", "altered", "missing", "no meta"])
def test_a_torn_store_is_made_again(encoder: Encoder, tmp_path: Path, fault: str) -> None:
    first = encode(rows_of(10), encoder, store=tmp_path)
    ids = first.folder / "ids.bin"
    content = ids.read_bytes()
    if fault == "short":
        ids.write_bytes(content[:-4])
    elif fault == "altered":
        ids.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif fault == "missing":
        ids.unlink()
    else:
        (first.folder / "store.json").write_text("{")
    with pytest.raises(TornStoreError):
        EncodedDataset(first.folder)
    second = encode(rows_of(10), encoder, store=tmp_path)
    assert not second.reused and "damaged" in second.notes[-1]
    assert ids.read_bytes() == content and EncodedDataset(first.folder).fingerprint == second.fingerprint


def test_a_stopped_encoding_leaves_nothing_behind(tmp_path: Path) -> None:
    encoder = encoder_of("NO_SYSTEM")
    rows = [*rows_of(4), Demonstration(chat("q", "a", system="s"), RowRef("a.jsonl", 5))]
    with pytest.raises(TemplateError, match="System role not supported") as caught:
        encode(rows, encoder, store=tmp_path)
    assert str(caught.value.where) == "a.jsonl, row 5"
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_can_be_skipped_with_a_count(tmp_path: Path) -> None:
    counting = encoder_of("{{ messages | length }}" + CHATML, specials=CHATML_TOKENS)
    rows: list[Example] = [pair(chat("q"), "a", "b")]
    with pytest.raises(PromptMismatchError):
        encode(rows, counting, store=tmp_path)
    with pytest.raises(EmptyDatasetError, match="all 1 rows were dropped"):
        encode(rows, counting, store=tmp_path, bad_rows="skip")
    encoder = encoder_of("NO_SYSTEM", {"special_tokens_in_text": "refuse"})
    rows = [*rows_of(4), Demonstration(chat("q", "a", system="s"), RowRef("a.jsonl", 5)), pair(chat("</s>"), "a", "b")]
    dataset = encode(rows, encoder, store=tmp_path, bad_rows="skip")
    assert dataset.counts.dropped == {"template": 1, "special_tokens": 1} and dataset.counts.kept == 4


def test_no_rows_and_no_rows_left(tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(EmptyDatasetError, match="there are no rows"):
        encode([], encoder, store=tmp_path)
    with pytest.raises(EmptyDatasetError) as caught:
        encode(rows_of(3), encoder_of("CHATML", {"max_length": 5}), store=tmp_path)
    assert "3 too_long" in str(caught.value.found) and "max_length above 5" in caught.value.remedy


def test_a_generator_may_be_given(encoder: Encoder, tmp_path: Path) -> None:
    encode(rows_of(10), encoder, store=tmp_path)
    assert encode(iter(rows_of(10)), encoder, store=tmp_path).reused
    assert len(encode(iter(rows_of(11)), encoder, store=tmp_path)) == 11


def test_several_workers_write_the_same_bytes(encoder: Encoder, tmp_path: Path) -> None:
    rows = rows_of(900)
    alone, together = list[int](), list[int]()
    one = encode(rows, encoder, store=tmp_path / "one", workers=1, progress=alone.append)
    two = encode(rows, encoder, store=tmp_path / "two", workers=2, progress=together.append)
    assert alone == together and sum(alone) == 900
    assert one.folder.name == two.folder.name
    for file in sorted(path.name for path in one.folder.iterdir()):
        assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes(), file


def test_a_workers_refusal_is_the_one_of_one_core(tmp_path: Path) -> None:
    encoder = encoder_of("NO_SYSTEM")
    rows = rows_of(600)
    for bad in (300, 550):
        rows[bad] = Demonstration(chat("q", "a", system="s"), RowRef("a.jsonl", bad + 1))
    texts = []
    for workers in (1, 2):
        with pytest.raises(TemplateError) as caught:
            encode(rows, encoder, store=tmp_path, workers=workers)
        texts.append(str(caught.value))
    assert texts[0] == texts[1] and "row 301" in texts[0]


def test_a_tokenizer_that_cannot_travel_is_encoded_here(tmp_path: Path) -> None:
    encoder = encoder_of()
    encoder.tokenizer.helper = lambda text: text  # no pickle takes a lambda
    dataset = encode(rows_of(10), encoder, store=tmp_path, workers=2)
    assert "on one core" in dataset.notes[-1] and len(dataset) == 10


MEMORY_LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from posttrain.data.dataset import EncodedDataset
limit = 24 * 1024 * 1024 + int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
dataset = EncodedDataset(Path(sys.argv[1]))
total = trees = 0
for start in range(0, len(dataset), 64):
    for tree in dataset[start : start + 64]:
        total += int(tree.branches[0].ids.sum(dtype=np.int64))
        trees += 1
try:
    np.ones(dataset.counts.tokens, np.int32)
    print("the limit does not bite")
except MemoryError:
    print(trees, total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of this kind are Linux's")
def test_a_store_larger_than_the_memory_is_read(encoder: Encoder, tmp_path: Path) -> None:
    """48 MB of ids under a limit of 24 MB of memory beyond the interpreter's own."""
    block = encode_block(encoder, rows_of(1), "stop")
    branch = 12_000
    big = dict(block.arrays)
    prompt = int(big["segments"][0])
    big["ids"] = np.ones(prompt + branch, np.int32)
    big["mask"] = np.ones(prompt + branch, bool)
    big["segments"] = np.array([prompt, branch])
    huge = replace(block, arrays=big, counts=replace(block.counts, tokens=prompt + branch))
    writer = StoreWriter(tmp_path)
    for _ in range(1000):
        writer.append(huge)
    folder = writer.finish(tmp_path / "encoded-huge", {})
    assert (folder / "ids.bin").stat().st_size > 48e6
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_LIMITED, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert result.stdout.split() == ["1000", str(1000 * branch)], result.stdout + result.stderr
