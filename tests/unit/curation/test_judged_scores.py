"""judge, deita and instag: against a server whose replies are written here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import posttrain as pt
from posttrain.config.model_scores import DEITAScore, InsTagScore, JudgeScore
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.curation.scores.judged import (
    NO_ANSWER,
    NO_MARK,
    NO_TAGS,
    deita_score,
    instag_score,
    judge_score,
    tags_of,
)
from posttrain.data.read import read
from posttrain.errors import ConfigError
from posttrain.types import Task
from tests.unit.rewards.test_rewards_judge import Server

ROWS = [
    {"prompt": "Add 2 and 2.", "completion": "4 [[10]]"},
    {"prompt": "Say hi in French, as JSON.", "completion": "Salut."},
    {"prompt": "What now?", "completion": "Nothing."},
]
MARKS = {"Add": "Right.\n[[8]]", "French": "[[1]] would be harsh\n[[5.5]]", "What now": "I like it, [[9]], really."}
TAGS = {"Add": '["arithmetic", "Arithmetic "]', "French": 'Tags:\n["translation", "json output"]', "What now": "none"}


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def pool(rows: list[dict[str, Any]] = ROWS, **options: Any) -> Pool:
    return Pool.of(Rows(read(rows, scan=False, **options)))


def by_prompt(replies: dict[str, str]) -> Any:
    def answer(body: dict[str, Any]) -> tuple[int, str]:
        question = body["messages"][1]["content"]
        return 200, next(reply for part, reply in replies.items() if part in question)

    return answer


def test_marks_by_hand(server: Server) -> None:
    server.answer = by_prompt(MARKS)
    found = judge_score(JudgeScore(kind="judge", url=server.url, model="m", standard="brevity"), pool(), Tools())
    assert found.score_R[:2].tolist() == pytest.approx([8, 5.5])
    assert np.isnan(found.score_R[2]) and found.missing == {2: NO_MARK}
    assert all("brevity" in body["messages"][0]["content"] for _, _, body in server.seen)


def test_deita_is_the_product_of_two_marks(server: Server) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, str]:
        asked, question = (message["content"] for message in body["messages"])
        mark = "[[3]]" if "demanding" in asked else "[[7]]"
        return 200, "no mark" if "What now" in question and "demanding" in asked else mark

    server.answer = answer
    found = deita_score(DEITAScore(kind="deita", url=server.url, model="m"), pool(), Tools())
    assert found.score_R[:2].tolist() == pytest.approx([21, 21]) and found.missing == {2: NO_MARK}


def test_tags_are_counted_by_their_letters(server: Server) -> None:
    server.answer = by_prompt(TAGS)
    found = instag_score(InsTagScore(kind="instag", url=server.url, model="m"), pool(), Tools())
    assert found.score_R[:2].tolist() == [1, 2] and found.missing == {2: NO_TAGS}
    assert tags_of('["a", 3]') is None and tags_of("[]") == set()


def test_what_was_answered_is_not_asked_again(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-key-of-mine")
    server.answer = by_prompt(MARKS)
    settings = JudgeScore(kind="judge", url=server.url, model="m", key_env="MY_KEY")
    first = judge_score(settings, pool(), Tools(cache=tmp_path)).score_R
    asked = len(server.seen)
    again = judge_score(settings, pool([*ROWS[::-1], ROWS[0]]), Tools(cache=tmp_path)).score_R
    assert again[1:].tolist() == [first[1], first[0], first[0]] and len(server.seen) == asked == 3
    assert server.seen[0][1]["Authorization"] == "Bearer secret-key-of-mine"
    assert not any(b"secret-key" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_selection_says_why_rows_have_no_mark(server: Server, tmp_path: Path) -> None:
    server.answer = by_prompt(MARKS)
    score = {"kind": "judge", "url": server.url, "model": "m"}
    step = {"kind": "score", "score": score, "keep": {"least": 6, "unscored": "drop"}}
    picked = pt.select(ROWS, steps=[step], out=tmp_path / "picked", progress=False)
    reasons = {(row.reason, row.message) for row in picked.rejected}
    assert reasons == {
        ("unscored", f"has no score `judge`: {NO_MARK}"),
        ("below", "`judge` is 5.5, at least 6 is wanted"),
    }
    assert f"no score `judge`: 1 rows: {NO_MARK}" in picked.steps[0].taken.notes


def test_a_task_has_no_answer_to_judge(server: Server) -> None:
    tasks = pool([{"prompt": "2 + 2?", "answer": "4"}], kind=Task)
    found = judge_score(JudgeScore(kind="judge", url=server.url, model="m"), tasks, Tools())
    assert found.missing == {0: NO_ANSWER} and not server.seen


def test_a_wrong_key_and_a_key_in_the_address_are_refused(server: Server) -> None:
    server.answer = lambda body: (401, "no")
    with pytest.raises(ConfigError):
        judge_score(JudgeScore(kind="judge", url=server.url, model="m"), pool(), Tools())
    with pytest.raises(ConfigError):
        JudgeScore(kind="judge", url="https://me:secret@example.org/v1", model="m")
