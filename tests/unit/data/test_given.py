"""Rows where examples are taken, and dicts where messages are."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset

import posttrain as pt
from posttrain.data.given import as_examples, as_messages
from posttrain.errors import ConfigError, SourceError
from posttrain.runs.progress import PlainProgress
from posttrain.types import Demonstration, Message
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer

ROWS = [{"prompt": f"{n}?", "completion": f"{n}."} for n in range(4)]
TURN = {"role": "user", "content": "2 + 2?"}


def encoder() -> pt.Encoder:
    return pt.Encoder(byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>")))


@pytest.mark.parametrize("form", [list, iter, tuple, pd.DataFrame, Dataset.from_list])
def test_rows_in_every_form_are_encoded_and_audited_as_their_file_is(form: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    pd.DataFrame(ROWS).to_json(path, orient="records", lines=True)
    asked = encoder()
    wanted = [tree.ids.tolist() for tree in (row.branches[0] for row in pt.encode(path, asked, store=tmp_path / "a"))]
    found = pt.encode(form(ROWS), asked, store=tmp_path / "b")
    assert [row.branches[0].ids.tolist() for row in found] == wanted
    held_out = pt.audit(form(ROWS), held_out=form(ROWS), against=form(ROWS), checks=["split_overlap", "contamination"])
    assert len(held_out.corpus) == 4 and held_out.findings


def test_examples_stay_what_they_are() -> None:
    examples = pt.read(ROWS)
    assert as_examples(examples) is examples
    rows = list(examples)
    assert as_examples(rows) is rows and as_examples(iter(rows)) == rows and as_examples([]) == []
    assert isinstance(rows[0], Demonstration)


def test_examples_and_rows_in_one_list_are_refused_with_the_place() -> None:
    with pytest.raises(ConfigError, match=r"item 2 of the examples is none"):
        as_examples([*pt.read(ROWS).head(1), ROWS[0]])


def test_a_conversation_in_its_natural_forms() -> None:
    wanted = (Message("user", "2 + 2?"),)
    for form in ("2 + 2?", TURN, [TURN], [Message("user", "2 + 2?")], iter([{"from": "human", "value": "2 + 2?"}])):
        assert as_messages(form) == wanted
    asked = encoder()
    assert asked.prompt([TURN]) == asked.prompt("2 + 2?") == asked.prompt(wanted)


def test_a_turn_that_is_wrong_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match="turn 2 of the conversation has no 'role'") as caught:
        as_messages([TURN, {"rol": "assistant", "content": "4"}])
    assert caught.value.remedy == "rename `rol` to `role`"
    with pytest.raises(ConfigError, match="has the role 'alien'"):
        as_messages([{"role": "alien", "content": "4"}])


def test_a_store_that_is_not_there_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"store\.json cannot be read"):
        pt.EncodedDataset(tmp_path)


def test_a_long_scan_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[pt.read.__module__], "QUICK_SECONDS", -1.0)
    stream = io.StringIO()
    pt.read([ROWS[0]] * 5000, progress=PlainProgress(stream, every=0.0, stall_after=None))
    assert "reading rows in memory (list)" in stream.getvalue() and "4,096 rows" in stream.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    pt.read([ROWS[0]] * 5000)
    assert not sys.stderr.getvalue(), "a log is not written to for a read"  # type: ignore[attr-defined]
