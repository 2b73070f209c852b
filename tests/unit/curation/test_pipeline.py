"""A selection as a whole: nothing is lost, the twin is honest, equal seeds give equal bytes, a kill costs one step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import posttrain as pt
from posttrain.curation import pipeline
from posttrain.curation.pipeline import select
from posttrain.curation.stored import StoredSteps
from posttrain.errors import ConfigError, EmptyDatasetError, UnknownKeyError
from posttrain.runs.files import read_json, read_jsonl
from posttrain.runs.records.selection import RejectedRow, SelectionManifest
from posttrain.types import Demonstration, Message, RowRef
from tests.fixtures import byte_tokenizer, tiny_model

LEAK = "In which year did the small harbour town of Velm open its first public library to readers?"
STEPS: list[dict[str, Any]] = [
    {"kind": "score", "score": {"kind": "column", "column": "quality"}, "keep": {"least": 1}},
    {"kind": "deduplicate"},
    {"kind": "budget", "rows": 6},
]


def rows(count: int = 20) -> list[dict[str, Any]]:
    made = [{"prompt": f"Question {n}?", "completion": f"Answer {n}.", "quality": n % 7} for n in range(count)]
    return [*made, {**made[5], "copy": True}]


def written(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


# ---------------------------------------------------------------- nothing is lost


def test_every_row_is_kept_or_rejected_with_a_reason(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", rows())
    path.write_text(path.read_text() + '{"prompt": "no answer"}\n{broken\n')
    picked = select(pt.read(path, bad_rows="skip"), steps=STEPS, out=tmp_path / "picked")
    kept = read_jsonl(tmp_path / "picked" / "data.jsonl")
    rejected = [RejectedRow.from_json(line) for line in read_jsonl(tmp_path / "picked" / "rejected.jsonl")]
    manifest = SelectionManifest.from_json(read_json(tmp_path / "picked" / "manifest.json"))

    assert (manifest.read, manifest.kept, manifest.rejected) == (23, len(kept), len(rejected))
    assert len(kept) + len(rejected) == 23 and len(kept) == len(picked.kept) == 6
    assert [row for row in rows() if row in kept] == kept, "unchanged, and in the order of the input"
    # 0, 7 and 14 have quality 0; row 20 repeats row 5; the two last lines cannot be read
    assert {one.row.rpartition(" ")[2] for one in rejected if one.step == "read"} == {"22", "23"}
    assert [one.row.rpartition(" ")[2] for one in rejected if one.reason == "below"] == ["1", "8", "15"]
    (copy,) = [one for one in rejected if one.step == "deduplicate"]
    assert copy.nearest == f"{path}, row 6" and copy.content == rows()[20] and copy.scores == {"quality": 5.0}
    first = manifest.steps[0]
    assert (first.rows_in, first.rows_out, first.removed) == (21, 18, {"below": 3})
    assert first.scores["quality"].least == 0 and first.scores["quality"].kept_mean == pytest.approx(62 / 18)
    for step in manifest.steps:
        assert step.rows_in == (step.rows_out or 0) + sum(step.removed.values())


def test_from_python_without_a_folder() -> None:
    picked = pt.select(rows(), steps=STEPS, progress=False)
    assert isinstance(picked, pt.Selection) and picked.out is None
    assert picked.kept[-1]["quality"] >= 5 and len(picked.kept[:2]) == 2
    assert len(list(picked.rejected)) + len(picked.kept) == 21
    assert len(pt.read(picked.kept)) == 6, "what is kept is rows like any others"
    assert "21 demonstrations read, 6 kept" in str(picked) and "11 over_budget" in str(picked)


def test_records_are_selected_too() -> None:
    asked = [
        Demonstration((Message("user", f"Q{n}"), Message("assistant", f"A{n % 3}")), RowRef("mine", n))
        for n in range(5)
    ]
    picked = select(asked, steps=[{"kind": "deduplicate", "of": "answer"}])
    assert [row["messages"][0]["content"] for row in picked.kept] == ["Q0", "Q1", "Q2"]


def test_the_best_first() -> None:
    picked = select(rows(), steps=STEPS, order="choice")
    qualities = [row["quality"] for row in picked.kept]
    assert qualities == sorted(qualities, reverse=True)


def test_the_kept_set_does_not_depend_on_the_order_of_the_rows() -> None:
    def chosen(content: list[dict[str, Any]]) -> set[str]:
        return {row["prompt"] for row in select(content, steps=STEPS, seed=3).kept}

    mixed = [rows()[n] for n in np.random.default_rng(0).permutation(21)]
    assert chosen(rows()) == chosen(mixed)


# ---------------------------------------------------------------- the twin


def leaking() -> list[dict[str, Any]]:
    return [*rows(), *({"prompt": f"{LEAK} Hint {n}.", "completion": "1874."} for n in range(20))]


def test_the_twin_holds_no_leak_and_is_as_large(tmp_path: Path) -> None:
    tests = written(tmp_path / "tests.jsonl", [{"question": LEAK, "answer": "1874"}])
    steps = [{"kind": "decontaminate", "against": str(tests)}, *STEPS]
    for seed in range(5):
        picked = select(leaking() + [{**row, "quality": 1} for row in leaking()[21:]], steps=steps[:1], seed=seed)
        assert len(picked.twin) == len(picked.kept) == 21
        picked = select([{**row, "quality": row.get("quality", 6)} for row in leaking()], steps=steps, seed=seed)
        assert len(picked.twin) == 6 and not any(LEAK in row["prompt"] for row in picked.twin)


def test_the_twin_is_drawn_from_what_later_steps_remove(tmp_path: Path) -> None:
    drawn = {row["prompt"] for seed in range(30) for row in select(rows(), steps=STEPS, seed=seed).twin}
    assert {"Question 0?", "Question 7?", "Question 14?"} <= drawn, "rows that the score removes are in the twin"
    counts = np.zeros(21)
    for seed in range(300):
        counts[select(rows(), steps=STEPS, seed=seed).twins[0].rows] += 1
    # Each row in 6 of 21 draws: 86 of 300, with a standard deviation of 8.
    assert counts.sum() == 1800 and counts.min() > 50 and counts.max() < 122


def test_copies_of_a_row_are_drawn_each_for_itself() -> None:
    """As one block, a row that stands there fifty times would be in the twin fifty times or not at all."""
    once = [{"prompt": f"Question {n}?", "completion": "Yes."} for n in range(100)]
    content = [*once, *[row for row in once[:2] for _ in range(50)]]
    steps = [{"kind": "budget", "rows": 50}]
    copies = [sum(row in once[:2] for row in select(content, steps=steps, seed=seed).twin) for seed in range(30)]
    # 102 of 200 rows, 50 drawn: 25.5 in the mean with a deviation of 3.1; as blocks 0, some 26 or 50.
    assert min(copies) > 15 and max(copies) < 36, copies
    mixed = [content[n] for n in np.random.default_rng(0).permutation(200)]
    assert sorted(map(str, select(mixed, steps=steps).twin)) == sorted(map(str, select(content, steps=steps).twin))


def test_a_twin_of_as_many_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("CHATML")
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    content = [{"prompt": "Q", "completion": "x" * (n + 1)} for n in range(60)]
    steps = [
        {"kind": "score", "score": "length"},
        {"kind": "score", "score": {"kind": "length", "name": "chars", "unit": "characters"}, "keep": {"top": 0.2}},
    ]
    picked = select(content, steps=steps, out=tmp_path / "picked", tokenizer=tmp_path / "model", token_twin=True)
    assert len(picked.kept) == 12
    twin = picked.twins[1]
    # 12 rows of 49 to 60 characters and one of the prompt; a random row has 31.5 tokens on average
    assert twin.selected_tokens == sum(range(49, 61)) + 12
    assert twin.tokens is not None and twin.selected_tokens - 61 < twin.tokens <= twin.selected_tokens
    assert len(read_jsonl(tmp_path / "picked" / "random_tokens.jsonl")) == len(twin.rows) > 15
    select(content, steps=steps, out=tmp_path / "picked")
    assert not (tmp_path / "picked" / "random_tokens.jsonl").exists(), "it is no twin of this selection"


def test_a_budget_in_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("CHATML")
    tiny_model("llama", vocab=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    content = [{"prompt": "Q", "completion": "x" * 9, "n": n} for n in range(6)]
    steps = [
        {"kind": "score", "score": {"kind": "column", "column": "n"}},
        {"kind": "budget", "tokens": 35, "by": "n"},
    ]
    assert [row["n"] for row in select(content, steps=steps, tokenizer=tmp_path / "model").kept] == [3, 4, 5]


# ---------------------------------------------------------------- the same again


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        select(rows(), steps=STEPS, out=tmp_path / name, seed=5)
    for file in ("data.jsonl", "rejected.jsonl", "random.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_only_what_changed_is_computed_again(tmp_path: Path) -> None:
    def computed(steps: list[dict[str, Any]], content: list[dict[str, Any]] | None = None) -> list[bool]:
        picked = select(content or rows(), steps=steps, out=tmp_path / "picked")
        return [not result.computed_before for result in picked.steps]

    assert computed(STEPS) == [True, True, True]
    once = (tmp_path / "picked" / "rejected.jsonl").read_bytes()
    assert computed(STEPS) == [False, False, False]
    assert (tmp_path / "picked" / "rejected.jsonl").read_bytes() == once
    assert computed([*STEPS[:2], {"kind": "budget", "rows": 3}]) == [False, False, True]
    assert len(list((tmp_path / "picked" / ".steps").iterdir())) == 3, "results of other settings do not pile up"
    assert computed(STEPS, [{**row, "new": 1} for row in rows()]) == [True, True, True]


def test_an_evaluation_set_that_changed_is_looked_for_again(tmp_path: Path) -> None:
    tests = written(tmp_path / "tests.jsonl", [{"question": "Something that no row of the data asks at all?"}])
    steps = [{"kind": "decontaminate", "against": str(tests)}]
    assert len(select(leaking(), steps=steps, out=tmp_path / "picked").kept) == 41
    written(tests, [{"question": LEAK}])
    assert len(select(leaking(), steps=steps, out=tmp_path / "picked").kept) == 21


def test_a_torn_result_is_computed_again(tmp_path: Path) -> None:
    select(rows(), steps=STEPS, out=tmp_path / "picked")
    for path in (tmp_path / "picked" / ".steps").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert len(select(rows(), steps=STEPS, out=tmp_path / "picked").kept) == 6


SLOW = """
import sys, time
from posttrain.config.select import Budget
from posttrain.curation.pipeline import select
from posttrain.curation.steps import table
whole = table.STEPS[Budget]
def slow(settings, pool, tools):
    print("budget", flush=True)
    time.sleep(float(sys.argv[3]))
    return whole(settings, pool, tools)
vars(table)["STEPS"][Budget] = slow
picked = select(sys.argv[1], steps=[{"kind": "deduplicate"}, {"kind": "budget", "rows": 3}], out=sys.argv[2])
print([result.computed_before for result in picked.steps])
"""


def test_a_kill_costs_the_step_under_way(tmp_path: Path) -> None:
    path, out = written(tmp_path / "rows.jsonl", rows()), tmp_path / "picked"
    arguments = [sys.executable, "-c", SLOW, str(path), str(out)]
    with subprocess.Popen([*arguments, "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "budget\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "data.jsonl").exists()
    began = time.monotonic()
    again = subprocess.run([*arguments, "0"], capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == "[True, False]" and time.monotonic() - began < 60
    assert len(read_jsonl(out / "data.jsonl")) == 3


# ---------------------------------------------------------------- refusals


def test_nothing_left_names_the_step_and_a_row() -> None:
    with pytest.raises(EmptyDatasetError) as caught:
        select(
            rows(), steps=[{"kind": "score", "score": {"kind": "column", "column": "quality"}, "keep": {"least": 9}}]
        )
    assert "`score quality`" in str(caught.value) and "21 rows: below" in str(caught.value)
    assert "`quality` is 0, at least 9 is wanted" in str(caught.value)


def test_a_selection_is_not_written_over_its_rows(tmp_path: Path) -> None:
    select(rows(), steps=STEPS, out=tmp_path)
    before = (tmp_path / "data.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="over its own rows"):
        select(str(tmp_path / "data.jsonl"), steps=STEPS, out=tmp_path)
    assert (tmp_path / "data.jsonl").read_bytes() == before


def test_wrong_arguments() -> None:
    with pytest.raises(UnknownKeyError, match="deduplicate"):
        select(rows(), steps=[{"kind": "dedupe"}])
    with pytest.raises(ConfigError, match="steps"):
        select(rows(), steps={"kind": "deduplicate"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="labelled steps"):
        select([{"prompt": "Q", "completions": ["a"], "labels": [True]}], steps=[{"kind": "deduplicate"}])


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    stored = StoredSteps(None)
    stored.keep_only(["a"])
    assert stored.load("a") is None and pipeline.seed_of(0, "twin") != pipeline.seed_of(0, "token twin")


def test_rejected_rows_are_a_sequence(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", rows())
    path.write_text("{broken\n" + path.read_text() + "{broken\n")
    picked = select(pt.read(path, bad_rows="skip", scan=False), steps=STEPS, out=tmp_path / "picked")
    listed = list(picked.rejected)
    assert len(picked.rejected) == len(listed) == 17
    assert [picked.rejected[place] for place in range(17)] == listed == picked.rejected[:]
    assert [one.step for one in listed[:3]] == ["read", "read", "score quality"] and picked.rejected[-1] == listed[-1]
    with pytest.raises(IndexError):
        picked.rejected[17]
    assert repr(picked.kept) == "<6 rows; view[0] reads the first>"
