"""`read`: detection over whole files, counting, skipping, mixed kinds, limits, and what is refused as an argument."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import FORMATS, REASONS, Examples, read, write_jsonl
from posttrain.data.write import JsonlWriter
from posttrain.errors import ConfigError, EmptyDatasetError, RowError, SourceError, UnknownKeyError
from posttrain.types import Comparison, Demonstration, RowRef, Task

PAIR = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
TIE = {**PAIR, "score_chosen": 1, "score_rejected": 1}
SAME = {**PAIR, "rejected": "4"}
CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_reads_twice_counts_and_names_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", *[{**PAIR, "chosen": str(n), "id": n} for n in range(6, 11)])
    pairs = read(path)
    assert (len(pairs), pairs.kind, pairs.format) == (5, Comparison, "preference")
    first, second = list(pairs), list(pairs)
    assert first == second and [example.row for example in first] == [RowRef(str(path), n) for n in range(1, 6)]
    assert (pairs.counts.read, pairs.counts.kept, pairs.counts.skipped) == (5, 5, {})
    assert pairs.counts.unused_columns == {"id"}
    assert "comparisons, format 'preference', 5 rows read, 5 kept" in repr(pairs)
    assert pairs.fingerprint == read(path, scan=False).fingerprint


def test_several_files_are_one_stream_with_their_own_row_numbers(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", PAIR, PAIR), write(tmp_path / "b.jsonl", PAIR)
    refs = [str(example.row) for example in read([b, a])]
    assert refs == [f"{b}, row 1", f"{a}, row 1", f"{a}, row 2"]


def test_reading_without_a_scan_is_lazy(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", PAIR, PAIR, SAME)
    pairs = read(path, scan=False)
    assert "not read yet" in repr(pairs)
    assert len(pairs.head(2)) == 2 and pairs.kind is Comparison
    with pytest.raises(RowError, match="row 3"):
        len(pairs)
    with pytest.raises(RowError, match="row 3"):
        read(path)


def test_skip_counts_by_reason_and_writes_what_was_rejected(tmp_path: Path) -> None:
    bad_line = '{"prompt": "a", '
    path = write(tmp_path / "pairs.jsonl", PAIR, TIE, bad_line + "}", SAME, PAIR, TIE)
    with path.open("ab") as file:
        file.write(b'{"prompt": "caf\xe9"}\n' + bad_line.encode())
    rejected = tmp_path / "out" / "rejected.jsonl"
    pairs = read(path, bad_rows="skip", rejected_path=rejected)
    counts = pairs.counts
    expected = {"tie": 2, "bad_json": 1, "identical_responses": 1, "bad_encoding": 1, "truncated": 1}
    assert (counts.read, counts.kept, counts.skipped) == (8, 2, expected)
    assert counts.read == counts.kept + sum(counts.skipped.values())
    assert str(counts) == (
        "8 rows read, 2 kept, skipped: 1 bad_encoding, 1 bad_json, 1 identical_responses, 2 tie, 1 truncated"
    )
    lines = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [line["reason"] for line in lines] == [
        "tie",
        "bad_json",
        "identical_responses",
        "tie",
        "bad_encoding",
        "truncated",
    ]
    assert lines[0]["content"] == TIE and lines[0]["row"] == f"{path}, row 2" and "both 1" in lines[0]["message"]
    assert lines[1]["content"] == bad_line + "}" and lines[4]["content"] == r'{"prompt": "caf\xe9"}'
    assert list(pairs)[1].row.row == 5
    assert [item.name for item in rejected.parent.iterdir()] == ["rejected.jsonl"]


def test_an_abandoned_pass_leaves_no_half_written_file(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", TIE, PAIR, PAIR)
    rejected = tmp_path / "rejected.jsonl"
    pairs = read(path, bad_rows="skip", rejected_path=rejected, scan=False)
    next(iter(pairs))
    assert [item.name for item in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert len(pairs) == 2 and rejected.exists()


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.sampled_from([PAIR, TIE, SAME, {}, [], "junk", CHAT, {"prompt": None}]), max_size=12))
def test_every_row_read_is_kept_or_counted(rows: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rows")
    path = write(folder / "rows.jsonl", PAIR, *rows)
    rejected = folder / "rejected.jsonl"
    pairs = read(path, bad_rows="skip", rejected_path=rejected)
    counts = pairs.counts
    assert counts.read == len(rows) + 1 == counts.kept + sum(counts.skipped.values())
    assert len(rejected.read_text().splitlines()) == sum(counts.skipped.values())
    assert counts.kept == 1 + rows.count(PAIR) and counts.skipped.get("mixed_kinds", 0) == rows.count(CHAT)


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", SAME, SAME, TIE)
    rejected = tmp_path / "rejected.jsonl"
    with pytest.raises(EmptyDatasetError) as caught:
        read(path, bad_rows="skip", rejected_path=rejected)
    assert "3 rows read, 0 kept, skipped: 2 identical_responses, 1 tie" in str(caught.value)
    assert str(rejected) in str(caught.value) and len(rejected.read_text().splitlines()) == 3
    with pytest.raises(EmptyDatasetError):
        _ = read(path, bad_rows="skip", scan=False).kind


@pytest.mark.parametrize("content", ["\n\n \n", "[]", "[ ]\n"])
def test_a_file_without_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(SourceError, match="holds no rows"):
        read(tmp_path / "rows.json")


def test_an_empty_file_among_others_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", PAIR)
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(SourceError, match=r"b\.jsonl: the file is empty"):
        read(tmp_path)


# ---------------------------------------------------------------- one kind per data set


def test_mixed_kinds_name_both_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "mixed.jsonl", CHAT, CHAT, PAIR)
    with pytest.raises(RowError) as caught:
        read(path)
    text = str(caught.value)
    assert caught.value.reason == "mixed_kinds"
    assert f"{path}, row 3: this row is of another kind than {path}, row 1: comparisons, not demonstrations" in text
    assert "'preference' here, 'chat' there" in text and "or, to read all" not in text


def test_mixed_kinds_across_files(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", PAIR), write(tmp_path / "b.jsonl", CHAT)
    with pytest.raises(RowError, match=r"b\.jsonl, row 1: .* than .*a\.jsonl, row 1"):
        read([a, b])


def test_naming_the_format_is_offered_only_where_it_would_help(tmp_path: Path) -> None:
    path = write(tmp_path / "mixed.jsonl", {"prompt": "a"}, {"prompt": "a", "completion": "b"})
    with pytest.raises(RowError, match=r"to read all as tasks, write `format: prompts`"):
        read(path)
    assert {type(example) for example in read(path, format="prompts")} == {Task}


def test_formats_of_one_kind_may_mix(tmp_path: Path) -> None:
    share = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    examples = read(write(tmp_path / "rows.jsonl", CHAT, share, {"instruction": "a", "output": "b"}))
    assert len(examples) == 3 and examples.format == "chat"


def test_a_row_that_lost_a_key_is_told_from_a_row_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", PAIR, {"prompt": "a", "chosen": "b", "rejectd": "c"})
    with pytest.raises(RowError) as caught:
        read(path)
    assert caught.value.reason == "wrong_shape"
    assert "row 2: the row has no 'rejected', unlike" in str(caught.value)
    assert "rename 'rejectd' to 'rejected' in this row" in caught.value.remedy
    null = write(tmp_path / "null.jsonl", PAIR, {**PAIR, "rejected": None})
    with pytest.raises(RowError, match=r"no 'rejected' \(the value is null\)"):
        read(null)


def test_a_kind_chooses_or_refuses(tmp_path: Path) -> None:
    both = {**CHAT, "prompt": "2 + 2?", "chosen": CHAT["messages"], "rejected": "5"}
    path = write(
        tmp_path / "rows.jsonl", {**both, "rejected": [CHAT["messages"][0], {"role": "assistant", "content": "5"}]}
    )
    assert read(path, kind=Comparison).format == "preference"
    assert read(path, kind=Demonstration).format == "chat"
    pairs = write(tmp_path / "pairs.jsonl", PAIR)
    with pytest.raises(RowError, match=r"these rows are comparisons .*not demonstrations") as caught:
        read(pairs, kind=Demonstration)
    assert "columns: {completion: chosen}" in caught.value.remedy
    read(pairs, kind=Demonstration, format="prompt_completion", columns={"completion": "chosen"})
    with pytest.raises(ConfigError, match="gives comparisons, but demonstrations are needed"):
        read(pairs, kind=Demonstration, format="preference")


# ---------------------------------------------------------------- overrides


def test_columns_are_mapped_ours_to_theirs(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"q": "2 + 2?", "good": "4", "bad": "5", "prompt": "not this"})
    (example,) = read(path, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert isinstance(example, Comparison) and example.prompt[0].content == "2 + 2?"


def test_a_mapped_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"quest": "a", "answer": "b"})
    with pytest.raises(RowError, match="no column `qust`") as caught:
        read(path, columns={"prompt": "qust"})
    assert caught.value.remedy == "did you mean `quest`?" and "'quest', 'answer'" in str(caught.value)


def test_a_named_format_overrides_detection(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "a", "answer": "b", "completion": "c"})
    assert read(path).format == "prompt_completion"
    assert read(path, format="task").kind is Task
    with pytest.raises(RowError, match=r"no 'instruction', 'output'; its keys are those of the format") as caught:
        read(path, format="alpaca")
    assert "write `format: prompt_completion`" in caught.value.remedy


def test_roles_reach_the_rows(tmp_path: Path) -> None:
    turns = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
    path = write(tmp_path / "rows.jsonl", {"conversations": turns})
    with pytest.raises(RowError, match=r"roles: \{human: user, user: user\}"):
        read(path)
    assert len(read(path, roles={"user": "user", "assistant": "assistant"})) == 1


def test_limit_keeps_that_many_and_stops(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", PAIR, TIE, PAIR, PAIR, "not json")
    pairs = read(path, limit=2, bad_rows="skip")
    assert [example.row.row for example in pairs] == [1, 3] and len(pairs) == 2
    assert pairs.counts.read == 3


def test_ties_are_kept_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", TIE)
    with pytest.raises(RowError, match="allow_ties: true"):
        read(path)
    assert len(read(path, allow_ties=True)) == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"format": "shargpt"}, UnknownKeyError, "did you mean `sharegpt`?"),
        ({"columns": {"my_q": "prompt"}}, UnknownKeyError, "turn it round: `columns: {prompt: my_q}`"),
        ({"columns": {"promt": "q"}}, UnknownKeyError, "did you mean `prompt`?"),
        ({"roles": {"bot": "asistant"}}, ConfigError, "roles: {bot: assistant}"),
        ({"bad_rows": "skp"}, ConfigError, "bad_rows: skip"),
        ({"rejected_path": "x.jsonl"}, ConfigError, "bad_rows: skip"),
        ({"limit": 0}, ConfigError, "leave `limit` out"),
        # Values of a type that only Python can give: named errors, not a TypeError from the middle of the reading.
        ({"limit": "3"}, ConfigError, "found:    a string: '3'"),
        ({"limit": True}, ConfigError, "`limit` is True"),
        ({"format": None}, UnknownKeyError, "leave `format` out"),
        ({"columns": ["prompt"]}, ConfigError, "write it as `columns={'prompt': 'my_question'}`"),
        ({"columns": {"prompt": 3}}, ConfigError, "`columns={'prompt': '3'}`"),
        ({"roles": ["bot"]}, ConfigError, "write it as `roles={'bot': 'assistant'}`"),
        ({"kind": "comparison"}, ConfigError, "`from posttrain.types import Comparison`"),
        ({"kind": "demonstrations"}, ConfigError, "`from posttrain.types import Demonstration`"),
        ({"kind": []}, ConfigError, "which is no kind of rows"),
        ({"split": None}, ConfigError, "write it as `split='train'`"),
        ({"allow_ties": "no"}, ConfigError, "True or False"),
        ({"dialogues_in_text": True}, ConfigError, "'refuse' or 'keep'"),
    ],
)
def test_arguments_are_checked_before_any_file(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        read("does-not-exist.jsonl", **options)
    assert words in str(caught.value)


def test_the_line_is_named_where_it_is_not_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n" + json.dumps(PAIR) + "\n\n" + json.dumps(SAME) + "\n")
    with pytest.raises(RowError, match=r"row 2 \(line 5\)"):
        read(path)


# ---------------------------------------------------------------- writing


def test_write_jsonl_round_trip_and_half_surrogates(tmp_path: Path) -> None:
    rows = [{"a": "ä 你 🙂"}, {"a": "\ud83d"}, {"path": tmp_path}]
    path = tmp_path / "new" / "rows.jsonl"
    assert write_jsonl(path, rows) == 3
    assert [json.loads(line) for line in path.read_text().splitlines()] == [rows[0], rows[1], {"path": str(tmp_path)}]
    assert "你" in path.read_text()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [PAIR])
    with pytest.raises(ZeroDivisionError), JsonlWriter(path) as writer:
        writer.write(CHAT)
        _ = 1 / 0
    assert json.loads(path.read_text()) == PAIR and [item.name for item in tmp_path.iterdir()] == ["rows.jsonl"]


def test_reading_json_loads_no_heavy_package(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", PAIR)
    code = (
        "import sys; from posttrain.data import read; read(sys.argv[1]);"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_examples_is_what_read_returns(tmp_path: Path) -> None:
    assert isinstance(read(write(tmp_path / "rows.jsonl", PAIR)), Examples)


def test_the_docs_show_every_format_reason_and_option() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for name, entry in FORMATS.items():
        assert f"**{name}**" in page and f"\n    {entry.example_line}\n" in page, name
    for reason, meaning in REASONS.items():
        assert f"| `{reason}` | {meaning} |" in page
    options = [name for name in inspect.signature(read).parameters if name != "data"]
    assert not [name for name in options if f"| `{name}`" not in page]
