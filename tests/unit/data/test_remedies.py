"""What an error advises is followed as it is written: maps are applied, commands are run, and the rows then read."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import posttrain as pt
from posttrain.data.formats.advice import answer_path, reading_of
from posttrain.data.formats.table import KIND_NAMES
from posttrain.data.unread import unread_columns
from posttrain.errors import DataError, PosttrainError, RowError, SourceError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Task

U, A = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}


def refused(data: Any, error: type[PosttrainError] = DataError, **options: Any) -> PosttrainError:
    with pytest.raises(error) as caught:
        pt.read(data, **options)
    return caught.value


def advised(error: PosttrainError) -> dict[str, Any]:
    """The options that a remedy names: "`format: alpaca, columns: {output: response}`" -> a dict for `read`."""
    found = re.search(r"`((?:format|columns|roles|split|path): .*?)`", error.remedy)
    assert found is not None, error.remedy
    options: dict[str, Any] = yaml.safe_load("{" + found[1] + "}")
    return options


def run(error: PosttrainError, folder: Path) -> Path:
    """Runs the first command of a remedy as a shell would, and returns the file that it wrote."""
    (command, *_) = [
        part for part in error.remedy.split("`")[1::2] if part.split()[0] in ("python", "jq", "cp", "iconv", "sed")
    ]
    before = set(folder.iterdir())
    line = command.replace("python -c", f"{shlex.quote(sys.executable)} -c", 1)
    subprocess.run(["bash", "-c", line], cwd=folder, check=True, capture_output=True)
    new = set(folder.iterdir()) - before
    return new.pop() if new else folder / "rows.jsonl"


# ---------------------------------------------------------------- maps of columns

MAPS: list[tuple[dict[str, Any], Any, str]] = [
    ({"instruction": "Who?", "context": "Ann came.", "response": "Ann.", "category": "qa"}, Demonstration, "Ann came."),
    ({"question": "Who?", "context": "Ann came.", "answer": "Ann"}, Demonstration, "Ann came."),
    (
        {
            "id": "1",
            "title": "x",
            "question": "Who?",
            "context": "Ann came.",
            "answers": {"text": ["Ann"], "answer_start": [0]},
        },
        Demonstration,
        "Ann came.",
    ),
    ({"query": "Who?", "reply": "Ann.", "system_prompt": "Be brief."}, Demonstration, "Be brief."),
    ({"system_prompt": "Be brief.", "question": "Who?", "response": "Ann."}, Demonstration, "Be brief."),
    ({"input": "Who?", "output": "Ann."}, Demonstration, "Who?"),
    ({"problem": "2 + 2?", "solution": "It is 4.", "answer": "4"}, Task, "2 + 2?"),
    ({"problem": "2 + 2?", "solution": "It is 4."}, Demonstration, "It is 4."),
    ({"messages": [U], "ground_truth": "4", "dataset": "gsm8k"}, Task, "2 + 2?"),
    ({"dialog": [U, A]}, Demonstration, "4"),
    ({"text": json.dumps([U, A])}, Demonstration, "4"),
    ({"content": "The fjord is deep."}, Demonstration, "The fjord is deep."),
    ({"question": "2 + 2?", "response_j": "4", "response_k": "5"}, Comparison, "4"),
    ({"query": "2 + 2?", "preferred": "4", "dispreferred": "5"}, Comparison, "4"),
    ({"prompt": "2 + 2?", "response": "4", "thumbs_up": True}, Feedback, "4"),
    ({"prompt": "2 + 2?", "candidates": ["4", "5"], "ratings": [9, 2]}, Comparison, "4"),
    ({"meta": {"q": "x"}, "item": {"prompt": "2 + 2?", "completion": "4"}}, Demonstration, "2 + 2?"),
    ({"qa.prompt": "2 + 2?", "qa.reply": "4", "Prompt": "2 + 2?", "Reply": "4"}, Demonstration, "4"),
]


def words_of(example: Example) -> str:
    if isinstance(example, Demonstration):
        return " ".join(message.content or "" for message in example.messages)
    prompt = " ".join(message.content or "" for message in example.prompt)
    if isinstance(example, Comparison):
        return f"{prompt} {example.responses[example.winner][-1].content}"
    return f"{prompt} {example.response[-1].content}" if isinstance(example, Feedback) else prompt


@pytest.mark.parametrize("number", range(len(MAPS)))
def test_a_map_that_is_proposed_reads_and_keeps_what_the_row_says(number: int) -> None:
    row, kind, words = MAPS[number]
    error = refused([row], RowError, kind=kind)
    options = advised(error)
    (example,) = pt.read([row], kind=kind, **options)
    assert words in words_of(example)
    used = {theirs.partition(".")[0] for theirs in options["columns"].values()}
    for column, value in row.items():
        said = (
            f"{column!r}" in error.remedy or column in used or column in ("prompt", "question", "answer", "instruction")
        )
        assert said or not value, f"{column} is lost without a word: {error.remedy}"


@pytest.mark.parametrize(
    "row",
    [
        {"conversation": ["Hi", "Hello."], "id": 3},
        {"question_id": 81, "turns": ["Compose a post.", "Rewrite it."]},
        {"prompt": "2 + 2?", "responses": ["4", "5"], "rank": [1, 2]},
        {"prompt": "2 + 2?", "responses": ["5", "4"], "rankings": [2, 1]},
        {"prompt": "2 + 2?", "responses": ["4", "5"], "rankings": [1, 0]},
        {"prompt": "2 + 2?", "response_1": "4", "response_2": "5", "overall_responses": 2},
        {"prompt": "2 + 2?", "response_0": "4", "response_1": "5", "better_response_id": 0},
        {"prompt": "2 + 2?", "response_1": "4", "response_2": "5", "preference": 1},
        {"conversation_a": [U, A], "conversation_b": [U, {**A, "content": "5"}], "won": "model_a"},
        {"text": "Fine.", "label": 1},
        {"0": {"1": "x"}},
        {"tokens": [1, 2], "labels": [0, 1]},
        {"a": 1, "b": "x"},
    ],
)
@pytest.mark.parametrize("kind", [None, Demonstration, Comparison])
def test_nothing_is_proposed_that_was_not_tried(row: dict[str, Any], kind: Any) -> None:
    """Lists of strings are no turns, a number is no question, and which response is better is never guessed."""
    found = reading_of(row, [kind] if kind else list(KIND_NAMES))
    if found is not None:
        (example,) = pt.read([row], format=found.entry.name, columns=dict(found.columns))
        assert not isinstance(example, Comparison)
        return
    error = refused([row], RowError, kind=kind)
    assert not re.search(r"columns: \{[^}]*: (?!YOUR_COLUMN)", error.remedy), error.remedy


def test_a_prompt_that_nobody_answers_reads_as_the_task_that_is_proposed() -> None:
    for row in ({"messages": [U]}, {"messages": [U], "ground_truth": "4"}):
        error = refused([row], RowError)
        assert error.reason == "unanswered_turn"  # type: ignore[attr-defined]
        (task,) = pt.read([row], **advised(error))
        assert isinstance(task, Task) and task.answer == row.get("ground_truth")


def test_roles_that_are_proposed_read() -> None:
    for turns in (
        [{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"from": "user", "value": "a"}, {"from": "gpt", "value": "b"}],
        [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ],
        [{"role": "user", "content": "a"}, {"role": "model", "content": "b"}],
    ):
        error = refused([{"messages": turns}], RowError)
        assert len(pt.read([{"messages": turns}], **advised(error))) == 1
    written = [U, {"role": "assistant", "content": "<call>add</call>"}, {"role": "tool", "content": "4"}, A]
    assert len(pt.read([{"messages": written}], **advised(refused([{"messages": written}], RowError)))) == 1


def test_a_nested_column_that_is_misspelt_is_named() -> None:
    row = {"prompt": "2 + 2?", "reward_model": json.dumps({"ground_truth": "4"})}
    error = refused([row], RowError, columns={"answer": "reward_model.ground_trouth"})
    guess = error.remedy.split("`")[1]
    (task,) = pt.read([row], columns={"answer": guess})
    assert isinstance(task, Task) and task.answer == "4" and "reward_model" in task.metadata


def test_the_answer_of_a_task_is_found_inside_its_columns() -> None:
    row = {"id": "1", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}}
    (task,) = pt.read([row])
    assert isinstance(task, Task) and task.answer is None
    (again,) = pt.read([row], columns={"answer": str(answer_path(task.metadata))})
    assert isinstance(again, Task) and again.answer == "Ann"


def test_a_task_without_its_context_is_noted() -> None:
    row = {"question": "Who came?", "context": "Ann came.", "answer": "Ann"}
    (note,) = pt.read([row]).counts.notes
    assert note.startswith("`context` is kept as metadata")
    assert not pt.read([{**row, "question": "Ann came. Who came?"}]).counts.notes


# ---------------------------------------------------------------- files that are no rows

PRETTY = {"messages": [U, A], "tools": [{"name": "add"}]}
FILES: dict[str, tuple[str, str, list[str]]] = {
    "one pretty-printed row": ("rows.json", json.dumps(PRETTY, indent=2), ["2 + 2?"]),
    "several pretty-printed rows": (
        "rows.json",
        json.dumps(PRETTY, indent=2) + "\n" + json.dumps(PRETTY, indent=2),
        ["2 + 2?"] * 2,
    ),
    "rows in a wrapper": ("rows.json", json.dumps({"version": 1, "data": [PRETTY] * 2}, indent=2), ["2 + 2?"] * 2),
    "a wrapper on one line": ("rows.json", json.dumps({"version": 1, "my rows": [PRETTY] * 2}), ["2 + 2?"] * 2),
    "a wrapper larger than what is looked at": (
        "rows.json",
        json.dumps({"data": [{"prompt": "2 + 2?", "completion": "4" * 99}] * 900}, indent=2),
        ["2 + 2?"] * 900,
    ),
    "columns in place of rows": ("rows.json", json.dumps({"prompt": ["a", "b"], "completion": ["c", "d"]}), ["a", "b"]),
    "pandas' own layout": ("rows.json", json.dumps({"prompt": {"0": "a"}, "completion": {"0": "c"}}), ["a"]),
    "rows under their numbers": (
        "rows.json",
        json.dumps({"0": {"prompt": "a", "completion": "b"}, "1": {"prompt": "c", "completion": "d"}}),
        ["a", "c"],
    ),
    "prose": (
        "rows.txt",
        "Yes, it was cold, and dark.\n\nThen, at last, they came.\n",
        ["Yes, it was cold, and dark.", "Then, at last, they came."],
    ),
    "lists of turns": ("rows.jsonl", json.dumps([U, A]) + "\n" + json.dumps([U, A]) + "\n", ["2 + 2?"] * 2),
    "python's notation": ("rows.json", "{\n'a': 1}", []),
}


@pytest.mark.parametrize("name", FILES)
def test_a_command_that_is_proposed_converts_the_file(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "with blank"
    folder.mkdir()
    file, content, prompts = FILES[name]
    (folder / ("in." + file)).write_text(content)
    error = refused(folder / ("in." + file))
    if not prompts:
        assert "`python" not in error.remedy
        return
    examples = pt.read(run(error, folder))
    asked = [example.messages[0].content for example in examples]  # type: ignore[union-attr]
    assert asked == prompts


@pytest.mark.parametrize(
    "text", ["Yes, it was cold, and dark, and late.\nThen, at last, they came, all.\n", "a, b\n", "One line.\n"]
)
def test_prose_with_commas_is_no_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(text)
    error = refused(tmp_path / "wiki.txt", SourceError)
    assert "plain text" in error.problem and "read_csv" not in error.remedy


def test_bare_text_that_is_a_dialogue_is_told_so() -> None:
    error = refused([{"text": "### Human: Hi### Assistant: Hello."}], kind=Demonstration)
    assert "in the form of '### Human:'" in error.problem and '"messages"' in error.remedy
    error = refused([{"text": json.dumps([U, A])}], kind=Demonstration)
    assert "holds the turns of a conversation" in error.problem
    assert len(pt.read([{"text": json.dumps([U, A])}], **advised(error))) == 1


def test_text_beside_other_columns_is_read_where_it_is_named() -> None:
    row = {"body": "The fjord is deep.", "label": 3}
    error = refused([row], kind=Demonstration)
    examples = pt.read([row], **advised(error))
    assert examples.format == "text" and examples.counts.unused_columns == {"label"}


def test_a_file_named_twice_is_copied_to_count_double(tmp_path: Path) -> None:
    path = tmp_path / "a b.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    error = refused([path, path])
    assert "weight" not in error.remedy
    assert len(pt.read([path, run(error, tmp_path)])) == 2


def test_other_commands_of_damaged_files_work(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "a", "completion": "é"}, ensure_ascii=False)
    path = tmp_path / "old rows.jsonl"
    for content, count in (
        ((row + "\n").encode("cp1252"), 1),
        (row.encode("utf-16"), 1),
        (f"{row}\n{row[:20]}".encode(), 1),
        (f"{row} {row}\n".encode(), 2),
    ):
        path.write_bytes(content)
        made = run(refused(path), tmp_path)
        assert len(pt.read(made if made.exists() else path)) == count
        made.unlink(missing_ok=True)


def test_a_pickle_is_named(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame([{"messages": [U, A]}])
    frame.to_pickle(tmp_path / "rows.pkl")
    error = refused(tmp_path / "rows.pkl", SourceError)
    assert "a Python pickle" in error.problem
    assert len(pt.read(run(error, tmp_path))) == len(pt.read(frame)) == 1


def test_a_context_that_a_map_loses_is_doubted_with_a_map_that_keeps_it() -> None:
    row = {"q": "Who came?", "context": "Ann came.", "a": "Ann"}
    mapped = {"prompt": "q", "completion": "a"}
    examples = pt.read([row], columns=mapped)
    (doubt,) = unread_columns(examples.counts.unused_columns, examples.format, mapped).doubts
    assert "`context` is not read" in doubt
    (again,) = pt.read([row], **yaml.safe_load("{" + doubt.split("with `")[1].split("`")[0] + "}"))
    assert words_of(again) == "Who came?\nAnn came. Ann"
