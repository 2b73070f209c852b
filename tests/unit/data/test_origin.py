"""The column `origin`: what a made row says of itself."""

from __future__ import annotations

import posttrain as pt
from posttrain.data.origin import Origin, origin_of, with_origin

ROW = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}


def test_an_origin_is_read_back_as_it_was_written():
    origin = Origin("distil", model="m", source="a.jsonl, row 3", seed=0, scores={"math": 0.0})
    row = with_origin(ROW, origin)
    assert row["origin"] == {
        "maker": "distil",
        "model": "m",
        "source": "a.jsonl, row 3",
        "seed": 0,
        "scores": {"math": 0.0},
    }
    assert origin_of(row) == origin


def test_another_tools_column_of_that_name_is_no_origin():
    assert origin_of({**ROW, "origin": "a web page"}) is None
    assert origin_of({**ROW, "origin": {"url": "x"}}) is None
    assert origin_of(ROW) is None


def test_no_format_calls_an_origin_unread():
    examples = pt.read([with_origin(ROW, Origin("distil")), {**ROW, "more": 1}], progress=False)
    assert examples.counts.unused_columns == {"more"}


def test_rows_come_with_their_examples_all_columns_included():
    examples = pt.read([{**ROW, "more": 1}, {**ROW, "more": 2}], progress=False)
    pairs = list(examples.with_rows())
    assert [row["more"] for _, row in pairs] == [1, 2]
    assert [example for example, _ in pairs] == list(examples)
    assert examples.counts.kept == 2
