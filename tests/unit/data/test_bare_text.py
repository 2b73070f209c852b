"""Bare text: the ids are the tokenizer's and eos, every token trains once, and chat templates refuse it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain.auditing.fix import as_row
from posttrain.data.encode import Encoder
from posttrain.data.questions import as_task
from posttrain.data.truncate import Side, split_text
from posttrain.errors import EncodingError, RowError
from posttrain.types import Demonstration
from tests.encoding import encoder_of, path_ids

TEXT = "The fjord is deep and cold.  Nobody swims.\n"


def raw(**settings: Any) -> Encoder:
    return encoder_of(None, {"template": "raw", **settings})


def example_of(text: str = TEXT) -> Demonstration:
    (example,) = pt.read([{"text": text}])
    assert isinstance(example, Demonstration) and example.is_text
    return example


def test_the_ids_are_those_of_the_tokenizer_and_eos_and_all_but_the_first_train() -> None:
    encoder = raw()
    (tree,) = encoder.demonstration(example_of())
    assert path_ids(tree) == [*encoder.tokenizer(TEXT)["input_ids"], encoder.tokens.eos_id]
    assert tree.branches[0].loss_mask.tolist() == [False, *[True] * (len(path_ids(tree)) - 1)]
    assert encoder.example(example_of()).stop_tokens == (1,)


@pytest.mark.parametrize("train_on", ["assistant_only", "last_assistant", "completion_only", "all"])
def test_what_trains_does_not_depend_on_turns(train_on: str) -> None:
    (tree,) = raw(train_on=train_on).demonstration(example_of())
    (wanted,) = raw().demonstration(example_of())
    assert tree.key == wanted.key


def test_eos_need_not_train() -> None:
    (tree,) = raw(stop_token="ignore").demonstration(example_of())
    assert tree.branches[0].loss_mask.tolist()[-1] is False or path_ids(tree)[-1] != raw().tokens.eos_id


def test_a_chat_template_refuses_it_by_name() -> None:
    for encoder in (encoder_of(), encoder_of(None, {"template": "chatml"})):
        with pytest.raises(EncodingError, match="bare text") as caught:
            encoder.example(example_of())
        assert "encoding: {template: raw}" in caught.value.remedy and "row 1" in str(caught.value)


def test_a_longer_text_is_dropped_or_split_and_counted() -> None:
    dropped = raw(max_length=16).example(example_of())
    assert not dropped.trees and dropped.dropped[0].reason == "too_long"
    whole = raw().demonstration(example_of())[0]
    split = raw(max_length=16, truncation="split").example(example_of())
    assert split.truncated == ("text_split",) and not split.dropped
    assert all(len(path_ids(tree)) <= 16 for tree in split.trees)
    # Each piece begins with the last token of the one before, which does not train there.
    ids = path_ids(split.trees[0])
    for tree in split.trees[1:]:
        assert path_ids(tree)[0] == ids[-1] and not tree.branches[0].loss_mask[0]
        ids += path_ids(tree)[1:]
    assert ids == path_ids(whole)
    assert sum(tree.num_trained for tree in split.trees) == whole.num_trained
    assert sum(split.stop_tokens) == 1


def test_a_conversation_under_split_is_dropped_as_by_default() -> None:
    (row,) = pt.read([{"prompt": "a" * 30, "completion": "b"}])
    (drop,) = raw(max_length=16, truncation="split").example(row).dropped
    assert drop.reason == "too_long"


@given(st.integers(1, 60), st.integers(2, 20), st.booleans())
def test_every_token_that_trains_does_so_in_one_piece(length: int, most: int, stop: bool) -> None:
    side = Side(list(range(length)), [False, *[True] * (length - 2), stop][:length], (length - 1,) if stop else ())
    pieces = split_text(side, most)
    assert all(len(piece.ids) <= most for piece in pieces)
    trained = [number for piece in pieces for number, trains in zip(piece.ids, piece.mask, strict=True) if trains]
    assert trained == [number for number, trains in zip(side.ids, side.mask, strict=True) if trains]
    stops = [piece.ids[at] for piece in pieces for at in piece.stops]
    assert stops == [at for at in side.stops if length > 1 or len(pieces) == 1]


def test_the_same_texts_in_every_file_give_the_same_ids(tmp_path: Path) -> None:
    import pandas as pd

    rows = [{"text": TEXT}, {"text": 'One, "two"\nthree; four'}]
    frame = pd.DataFrame(rows)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv.gz", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet")
    encoder = raw()
    wanted = [path_ids(encoder.demonstration(row)[0]) for row in pt.read(rows)]  # type: ignore[arg-type]
    for data in (frame, *(tmp_path / f"t.{end}" for end in ("jsonl", "csv", "tsv.gz", "parquet"))):
        assert [path_ids(encoder.demonstration(row)[0]) for row in pt.read(data)] == wanted  # type: ignore[arg-type]


def test_it_is_no_question_and_goes_back_into_a_row() -> None:
    with pytest.raises(RowError, match="asks nothing"):
        as_task(example_of())
    assert as_row(example_of()) == {"text": TEXT}
    assert list(pt.read([as_row(example_of())])) == list(pt.read([{"text": TEXT}]))
