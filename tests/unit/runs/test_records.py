"""The records of a run folder: what is written comes back, and whatever else stands in a file breaks nothing."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from posttrain.diagnostics.alarms import non_finite
from posttrain.intervals import Score
from posttrain.runs import records
from posttrain.runs.records.base import Exact, LogLine, Record, WholeFile, keys_of, optional_key, other_keys
from posttrain.runs.records.evaluation import AnswerLine, Direction, Figure, Meaning, SuiteMeanings, SuiteScores
from posttrain.runs.records.files import RUN_FILES, STAGE_FILES
from posttrain.runs.records.logs import Alarm, HeldOutRow, MetricsLine, WatchedResponse, WatchedRow
from posttrain.runs.records.run import RunRecord, StageEntry
from posttrain.runs.records.sampled import RolloutLine
from posttrain.runs.records.stage import DataCounts, StageRecord
from tools.run_folder_reference import run_folder_reference

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "posttrain"
ODD: list[Any] = [None, True, 7, -1.5, 1e300, "text", [], [[1], {"a": 2}, None], {}, {"value": "x"}, {"a": [1, {}]}]


@dataclass(frozen=True, slots=True)
class Piece(Record):
    text: str
    trained: bool | None


@dataclass(frozen=True, slots=True)
class Everything(Record):
    """One field of each kind."""

    whole: int | None
    number: float | None
    measured: Exact | None
    text: str
    said: str | None
    piece: Piece | None
    pieces: tuple[Piece, ...]
    numbers: tuple[float, ...]
    places: tuple[float | None, ...]
    by_name: Mapping[str, float]
    by_place: Mapping[str, float | None] | None
    anything: Any
    extra: float | None = optional_key()
    others: Mapping[str, Any] = other_keys()


WHOLE = Everything(
    *(3, 0.5, 1e200, "a", None, Piece("b", True), (Piece("c", None),), (1.0, 2.0), (1.0, None)),
    *({"x": 1.0}, {"y": None}, {"z": [1]}),
)


def record_classes() -> Iterator[type[Record]]:
    for module in pkgutil.iter_modules(records.__path__):
        for _, found in inspect.getmembers(import_module(f"{records.__name__}.{module.name}"), inspect.isclass):
            if issubclass(found, Record) and found not in (Record, LogLine, WholeFile):
                yield found


ALL = sorted(set(record_classes()), key=lambda record: record.__name__)


# ---------------------------------------------------------------- how a record is read and written


def test_what_is_written_is_read_back() -> None:
    assert Everything.from_json(json.loads(json.dumps(WHOLE.to_json()))) == WHOLE
    more = dataclasses.replace(WHOLE, extra=2.0, others={"new": {"of": ["a", "later", "version"]}})
    assert Everything.from_json(json.loads(json.dumps(more.to_json()))) == more


def test_a_key_without_a_value_is_null_and_an_optional_one_is_left_out() -> None:
    content = WHOLE.to_json()
    assert content["said"] is None and "extra" not in content and "others" not in content
    assert list(content) == [name for name in keys_of(Everything) if name != "extra"]


def test_what_is_missing_is_none_or_empty() -> None:
    empty = Everything.from_json({})
    assert empty == Everything(None, None, None, "", None, None, (), (), (), {}, None, None)
    assert Everything.from_json([1]) == empty and Everything.parse([1]) is None


def test_items_that_cannot_be_read_are_dropped_unless_their_place_counts() -> None:
    odd = [1, "x", None, 2.0]
    found = Everything.from_json(
        {
            "pieces": [{"text": "a"}, 5],
            "numbers": odd,
            "places": odd,
            "by_name": {"a": 1, "b": "x"},
            "by_place": {"a": "x"},
        }
    )
    assert found.pieces == (Piece("a", None),)
    assert found.numbers == (1.0, 2.0) and found.places == (1.0, None, None, 2.0)
    assert found.by_name == {"a": 1.0} and found.by_place == {"a": None}


def test_only_a_measurement_may_be_larger_than_a_picture_can_show() -> None:
    found = Everything.from_json({"number": 1e200, "measured": 1e200, "whole": 1e200})
    assert (found.number, found.measured, found.whole) == (None, 1e200, None)
    # json reads NaN and Infinity, which no file of ours holds; they are no measurement either.
    assert Everything.from_json(json.loads('{"measured": NaN, "number": Infinity}')).measured is None


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.__name__)
def test_no_content_breaks_a_record(record: type[Record]) -> None:
    """Every key holds each odd value in turn; what is read can be written and read again."""
    for value in ODD:
        for content in ({name: value for name in (*keys_of(record), "unknown")}, value):
            found = record.from_json(content)
            again = json.loads(json.dumps(found.to_json()))
            assert record.from_json(again).to_json() == found.to_json() == record.from_json(found.to_json()).to_json()


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.__name__)
def test_every_record_is_frozen_and_shows_an_instance(record: type[Record]) -> None:
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert f"{record.__name__}(" in (record.__doc__ or "")


def test_every_record_that_names_its_file_stands_in_the_table_under_that_name() -> None:
    for record in ALL:
        if issubclass(record, LogLine | WholeFile):
            assert {**RUN_FILES, **STAGE_FILES}[record.FILE] is record


def test_the_page_lists_every_file_and_key() -> None:
    """After a change that is meant: python -m tools.run_folder_reference > docs/run-folder.md"""
    page = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    assert page == run_folder_reference()
    for name, record in {**RUN_FILES, **STAGE_FILES}.items():
        assert f"### {name}" in page and all(f"| `{key}` |" in page for key in keys_of(record))


# ---------------------------------------------------------------- nothing else knows a key


def raw_writes(path: Path) -> list[str]:
    """Calls that write JSON of their own making: a whole file, or a dict literal as a line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            literal = any(isinstance(part, ast.Dict) for argument in node.args for part in ast.walk(argument))
            if name == "write_json" or (name == "write_jsonl" and literal):
                found.append(str(path.relative_to(PACKAGE)))
    return found


def test_no_other_part_writes_a_raw_line_of_a_run_folder() -> None:
    parts = ("training", "evaluate", "report", "diagnostics")
    found = [place for part in parts for path in sorted((PACKAGE / part).rglob("*.py")) for place in raw_writes(path)]
    # A record each, in a file that lies in `evaluations`.
    assert found == [
        *("evaluate/pass_at_k.py", "evaluate/runner.py", "evaluate/runner.py"),
        *("evaluate/suites/budget.py", "evaluate/suites/lm_eval.py"),
    ]


@pytest.mark.parametrize("part", ["report", "cli"])
def test_no_reader_of_run_folders_looks_a_key_up_in_raw_json(part: str) -> None:
    for path in sorted((PACKAGE / part).glob("*.py")):
        if path.name == "audit_page.py":  # reads an audit's folder, which is no run's
            continue
        text = path.read_text(encoding="utf-8")
        assert "read_json" not in text and "as_mapping" not in text and "json.loads" not in text, path.name


# ---------------------------------------------------------------- single records


def test_a_figure_is_read_from_a_number_too_and_is_nothing_without_a_value() -> None:
    found = SuiteScores.from_json({"sums": {"match": 0.5, "length": {"value": 7, "n": 3}, "odd": {"low": 1}, "x": "y"}})
    assert found.suites == {"sums": {"match": Figure(0.5), "length": Figure(7.0, n=3)}}
    assert Figure.of(Score(0.5, 0.25, 0.75, 9)).to_json() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 9}


def test_a_judged_response_has_one_side() -> None:
    good = HeldOutRow.from_json({"when": "end", "row": "r", "good": 1.0, "rewards": 0.5})
    bad = HeldOutRow.from_json({"when": "end", "row": "r", "good": 0.0, "rewards": -0.5})
    assert [row.side("rewards", side) for row in (good, bad) for side in ("chosen", "rejected")] == [
        0.5,
        None,
        None,
        -0.5,
    ]
    pair = HeldOutRow("end", "r", {"rewards_chosen": 1.0, "rewards_rejected": 2.0})
    assert [pair.side("rewards", side) for side in ("chosen", "rejected")] == [1.0, 2.0] and not pair.judged


def test_columns_of_a_rollout_lie_beside_its_keys() -> None:
    line = RolloutLine(
        *(
            3,
            2,
            (2, 2),
            "r",
            "p",
            None,
            "c",
            0,
            "length",
            None,
            {"math": None},
            (1,),
            (2, 3),
            (True, False),
            (-1.5, -0.5),
        ),
        columns={"advantages": (0.5, 0.25)},
    )
    content = line.to_json()
    assert content["advantages"] == [0.5, 0.25] and next(iter(content)) == "step"
    assert RolloutLine.from_json(content) == line


def test_a_watched_response_shows_its_reward_or_its_log_prob() -> None:
    row = WatchedRow.from_json(
        {"step": 1, "responses": [{"role": "chosen", "logprob": -2}, {"reward": 1, "logprob": -2}]}
    )
    assert [response.shown for response in row.responses] == [-2.0, 1.0]
    assert WatchedResponse("a", "b").shown is None


def test_a_metric_whose_direction_is_not_known_has_no_meaning() -> None:
    polite = {"title": "politeness", "unit": "share", "wanted": "higher is better", "limit": None, "primary": True}
    found = SuiteMeanings.from_json({"tone": {"polite": polite, "odd": {**polite, "wanted": ["up"]}, "bare": {}}})
    assert found.suites == {"tone": {"polite": Meaning("politeness", "share", Direction.UP, primary=True)}}
    assert found.to_json() == {"tone": {"polite": polite}}


def test_cut_rows_are_counted_by_reason_or_in_one_number() -> None:
    by_reason, number = DataCounts.from_json({"truncated": {"end": 3}}), DataCounts.from_json({"truncated": 3})
    assert (by_reason.truncated_by_reason, by_reason.truncated_answers) == ({"end": 3}, None)
    assert (number.truncated_by_reason, number.truncated_answers) == ({}, 3)
    assert [counts.to_json()["truncated"] for counts in (by_reason, number)] == [{"end": 3}, 3]


def test_an_alarm_is_the_line_that_is_written() -> None:
    """What the watcher raises goes to the file as it is, and an odd severity counts as a warning."""
    alarm = non_finite(3, ["loss"], ["a.jsonl, row 1"], last_good_checkpoint="checkpoints/step-00000001")
    assert Alarm.from_json(alarm.to_json()) == alarm
    assert set(alarm.to_json()) == set(keys_of(Alarm))
    assert Alarm.from_json({"severity": "grave"}).severity == "warning"


def test_answers_name_a_judge_only_if_there_was_one() -> None:
    plain = AnswerLine("p", "c", None, 1.0, 3, "length")
    assert list(plain.to_json()) == ["prompt", "completion", "answer", "score", "tokens", "finish"]
    judged = dataclasses.replace(plain, reward=0.5, judge="9f", start_reward=0.25)
    assert AnswerLine.from_json(judged.to_json()) == judged


def test_a_newer_versions_keys_survive_a_rewrite() -> None:
    content = {"schema": 3, "stages": [{"name": "sft", "status": "done", "grade": "A"}], "planet": "Mars"}
    found = RunRecord.from_json(content)
    assert found.newer and isinstance(found.stages[0], StageEntry)
    again = found.to_json()
    assert again["planet"] == "Mars" and again["stages"][0]["grade"] == "A"
    assert not RunRecord.from_json({"schema": 1}).newer and not RunRecord.from_json({}).newer
    assert StageRecord.from_json({"planet": "Mars"}).to_json()["planet"] == "Mars"


def test_a_step_that_is_no_whole_number_is_no_step() -> None:
    assert [MetricsLine.from_json({"step": step}).step for step in (3, 3.0, 3.5, "3", True)] == [3, 3, None, None, None]
