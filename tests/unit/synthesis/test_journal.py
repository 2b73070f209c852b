"""The journal of answers: what was answered is not asked again, also after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.errors import EngineError, SourceError
from posttrain.synthesis.cost import Meter
from posttrain.synthesis.journal import ASKED, Journaled, reply_of
from posttrain.synthesis.teacher import Ask, Drawing, OnReply, Reply
from posttrain.types import Message
from tests.synthesis import ScriptedTeacher
from tests.teacher_server import TeacherServer, asked


class Identified(ScriptedTeacher):
    def __init__(self, script: object, identity: str = "one"):
        super().__init__(script)  # type: ignore[arg-type]
        self.identity, self.spent = identity, Meter()

    def ask(self, asks: list[Ask], on_reply: OnReply | None = None) -> list[Reply]:  # type: ignore[override]
        replies = super().ask(asks, on_reply)
        for reply in replies:
            self.spent.count(reply)
        return replies


def question(text: str, seed: int = 0) -> Ask:
    return Ask((Message("user", text),), seed=seed)


def said(ask: Ask) -> Reply:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    return Reply(f"ä {ask.messages[-1].content}", "thought", True, 3, 2, tool_calls=(call,), details={"finish": "stop"})


def test_what_was_answered_is_given_back_and_not_asked(tmp_path: Path) -> None:
    path = tmp_path / ASKED
    first, second = Identified(said), Identified(said)
    with Journaled(first, path) as teacher:
        before = teacher.ask([question("1"), question("2")])
    with Journaled(second, path) as teacher:
        arrived: dict[int, Reply] = {}
        after = teacher.ask([question("2"), question("3"), question("1")], arrived.__setitem__)
    assert [ask.messages[0].content for ask in second.asked] == ["3"]
    assert after == [before[1], said(question("3")), before[0]]
    assert [arrived[index] for index in range(3)] == after
    assert second.spent.prompt_tokens == 9, "a budget counts what a journal has"


@pytest.mark.parametrize(
    "other",
    [
        replace(question("1"), seed=1),
        replace(question("1"), drawing=Drawing(temperature=0)),
        question("2"),
        replace(question("1"), tools=({"type": "function"},)),
    ],
)
def test_another_question_is_asked(tmp_path: Path, other: Ask) -> None:
    with Journaled(Identified(said), tmp_path / ASKED) as teacher:
        teacher.ask([question("1")])
        assert teacher.known(question("1")) is not None and teacher.known(other) is None


def test_another_teachers_answers_are_not_this_ones(tmp_path: Path) -> None:
    with Journaled(Identified(said), tmp_path / ASKED) as teacher:
        teacher.ask([question("1")])
    other = Identified(said, "two")
    with Journaled(other, tmp_path / ASKED) as teacher:
        teacher.ask([question("1")])
    assert len(other.asked) == 1


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    script = Identified(said)
    with Journaled(script, tmp_path / ASKED) as teacher:
        replies = teacher.ask([question("1"), question("1"), question("1", 1)])
    assert len(script.asked) == 2 and replies[0] == replies[1]


def test_what_was_given_up_is_asked_again(tmp_path: Path) -> None:
    with Journaled(Identified(lambda ask: Reply("", error="HTTP 500")), tmp_path / ASKED) as teacher:
        assert teacher.ask([question("1")])[0].error == "HTTP 500"
    script = Identified(said)
    with Journaled(script, tmp_path / ASKED) as teacher:
        assert teacher.ask([question("1")])[0].error is None
    assert len(script.asked) == 1


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    def script(ask: Ask) -> Reply:
        if ask.messages[0].content == "3":
            raise EngineError("gone", remedy="start it")
        return said(ask)

    with Journaled(Identified(script), tmp_path / ASKED) as teacher, pytest.raises(EngineError):
        teacher.ask([question(str(n)) for n in range(6)])
    with Journaled(Identified(said), tmp_path / ASKED) as teacher:
        assert [teacher.known(question(str(n))) is not None for n in range(4)] == [True] * 3 + [False]


def test_a_torn_last_line_is_asked_again_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / ASKED
    with Journaled(Identified(said), path) as teacher:
        teacher.ask([question("1"), question("2")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    script = Identified(said)
    with Journaled(script, path) as teacher:
        teacher.ask([question("1"), question("2")])
    assert [ask.messages[0].content for ask in script.asked] == ["2"]
    assert path.read_bytes() == whole


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / ASKED
    with Journaled(Identified(said), path) as teacher:
        teacher.ask([question("1"), question("2")])
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("nonsense\n" + lines[1], encoding="utf-8")
    with pytest.raises(SourceError, match="line 1 of the journal"):
        Journaled(Identified(said), path)


def test_journals_of_earlier_results_are_read_and_not_written(tmp_path: Path) -> None:
    old, new = tmp_path / "distil.1" / ASKED, tmp_path / "distil" / ASKED
    with Journaled(Identified(said), old) as teacher:
        teacher.ask([question("1")])
    before = old.read_bytes()
    script = Identified(said)
    with Journaled(script, new, earlier=[old]) as teacher:
        teacher.ask([question("1"), question("2")])
    assert len(script.asked) == 1 and old.read_bytes() == before
    assert len(new.read_text(encoding="utf-8").splitlines()) == 1


def test_a_reply_is_read_as_it_was_written(tmp_path: Path) -> None:
    with Journaled(Identified(said), tmp_path / ASKED) as teacher:
        teacher.ask([question("1")])
    line = json.loads((tmp_path / ASKED).read_text(encoding="utf-8"))
    assert reply_of(line["reply"]) == said(question("1"))


PROGRAM = """
import sys
from pathlib import Path
from posttrain.config.teacher import EndpointTeacher
from posttrain.synthesis.teacher import Ask
from posttrain.synthesis.teachers import teacher_of
from posttrain.types import Message

settings = EndpointTeacher(url=sys.argv[1], model="big", concurrency=1)
with teacher_of(settings, journal=Path(sys.argv[2])) as teacher:
    replies = teacher.ask([Ask((Message("user", str(n)),)) for n in range(30)])
assert [reply.text for reply in replies] == [f"answer to {n}" for n in range(30)]
"""


def test_a_run_that_is_killed_asks_nothing_twice(tmp_path: Path) -> None:
    def answer(body: dict[str, object]) -> str:
        time.sleep(0.02)
        return f"answer to {asked(body)}"

    with TeacherServer(answer) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, str(tmp_path / ASKED)]
        first = subprocess.Popen(command)
        while len(server.seen) < 10 and first.poll() is None:
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        first.wait()
        answered = (tmp_path / ASKED).read_bytes().count(b"\n")
        assert 5 <= answered < 30
        subprocess.run(command, check=True, timeout=120)
        counts = Counter(server.questions)
    # The one that was under way when the kill came had no answer here.
    assert set(counts) == {str(n) for n in range(30)}
    assert sum(count > 1 for count in counts.values()) <= 1 and sum(counts.values()) <= 31
