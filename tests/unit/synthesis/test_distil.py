"""`distil`: which questions are asked, which answers make a row, what each row says of its origin, what is counted."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import posttrain as pt
from posttrain.config.distil import Distil
from posttrain.data.origin import origin_of
from posttrain.data.read import read
from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.inference.scorers import Scorers
from posttrain.runs.files import read_jsonl
from posttrain.synthesis.cost import Meter
from posttrain.synthesis.distil import Distilled, answer_prompts, asks_of, demonstration
from posttrain.synthesis.journal import ASKED, Journaled
from posttrain.synthesis.teacher import UNASKED, OnReply, Reply
from posttrain.types import Demonstration, Message, RowRef, Task
from tests.synthesis import ScriptedTeacher
from tests.teacher_server import TeacherServer, asked, reply_with


class Identified(ScriptedTeacher):
    identity = "script"

    def __init__(self, script: Any):
        super().__init__(script, name="big")
        self.spent = Meter()

    def ask(self, asks: Any, on_reply: OnReply | None = None) -> list[Reply]:
        replies = super().ask(asks, on_reply)
        for reply in replies:
            self.spent.count(reply)
        return replies


def task(text: str, row: int = 1, **fields: Any) -> Task:
    return Task((Message("user", text),), fields.pop("answer", None), RowRef("prompts.jsonl", row), **fields)


def settings(**options: Any) -> Distil:
    return Distil(**{"teacher": "policy", **options})


def made(
    folder: Path, tasks: list[Task], script: Any, *, scorers: Scorers | None = None, **options: Any
) -> tuple[Distilled, list[dict[str, Any]], Identified]:
    teacher = Identified(script)
    with Journaled(teacher, folder / ASKED) as journaled:
        result = answer_prompts(tasks, journaled, settings(**options), folder, scorers=scorers)
    return result, read_jsonl(folder / "data.jsonl"), teacher


def test_rows_stand_in_the_order_of_the_prompts_with_their_origin(tmp_path: Path) -> None:
    tasks = [task(f"{n} + 1?", n + 1) for n in range(3)]
    result, rows, _ = made(
        tmp_path, tasks, lambda ask: f"{ask.messages[-1].content} is {ask.seed}", answers_per_prompt=2
    )
    assert [row["messages"][0]["content"] for row in rows] == ["0 + 1?"] * 2 + ["1 + 1?"] * 2 + ["2 + 1?"] * 2
    origin = origin_of(rows[3])
    assert origin is not None and origin.maker == "distil" and origin.model == "big"
    assert origin.source == "prompts.jsonl, row 2" and origin.details == {"attempt": 2, "of": 2}
    assert origin.sampling == {"temperature": 0.7, "max_new_tokens": 512}
    assert rows[3]["messages"][1]["content"] == f"1 + 1? is {origin.seed}", "the seed in the origin is the question's"
    assert (result.rows, result.answers, result.prompts, result.without) == (6, 6, 3, 0)
    assert all(isinstance(row, Demonstration) for row in read(tmp_path / "data.jsonl"))


def test_turns_before_the_question_are_kept_and_do_not_train(tmp_path: Path) -> None:
    prompt = (Message("system", "Brief."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "2?"))
    _, (row,), teacher = made(tmp_path, [Task(prompt, None, RowRef("p", 1))], lambda ask: "two")
    assert teacher.asked[0].messages == prompt
    turns = row["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[2]["train"] is False and "train" not in turns[4]


def test_every_reason_is_counted_and_written(tmp_path: Path) -> None:
    replies = {
        "good": Reply("A good answer."),
        "failed": Reply("", error="HTTP 500: broken"),
        "unasked": Reply("", error=UNASKED),
        "empty": Reply("  "),
        "cut": Reply("It goes on and", ended=False),
        "refusal": Reply("I'm sorry, but I can't help with that."),
        "marked": Reply("No.", details={"refusal": "No."}),
        "short": Reply("Yes"),
        "long": Reply("word " * 30),
        "nul": Reply("a good\0 answer"),
    }
    tasks = [task(name, row) for row, name in enumerate(replies, start=1)]
    result, rows, _ = made(
        tmp_path,
        tasks,
        lambda ask: replies[ask.messages[-1].content or ""],
        filters={"least_words": 2, "most_words": 20},
    )
    assert [row["messages"][0]["content"] for row in rows] == ["good"]
    assert result.dropped == Counter(
        failed=1, unasked=1, empty=1, cut=1, refusal=2, too_short=1, too_long=1, bad_character=1
    )
    dropped = read_jsonl(tmp_path / "dropped.jsonl")
    assert [line["reason"] for line in dropped].count("refusal") == 2 and len(dropped) == len(tasks) - 1
    assert "HTTP 500: broken" in dropped[0]["message"] and dropped[0]["row"] == "prompts.jsonl, row 2"
    assert {line["content"]["completion"] for line in dropped if line["reason"] == "cut"} == {"It goes on and"}
    yields = read_jsonl(tmp_path / "yields.jsonl")
    assert [line["rows"] for line in yields] == [1] + [0] * 9 and result.without == 9
    assert yields[4]["skipped"] == {"cut": 1}


def test_filters_can_be_switched_off(tmp_path: Path) -> None:
    replies = iter([Reply("It goes on and", ended=False), Reply("I cannot help with that.")])
    result, _, _ = made(
        tmp_path, [task("a"), task("b")], lambda ask: next(replies), filters={"ended": False, "refusals": "keep"}
    )
    assert result.rows == 2 and not result.dropped


def test_an_answer_of_the_same_words_is_kept_once_for_a_prompt(tmp_path: Path) -> None:
    tasks = [task("a", 1), task("b", 2), task("a", 3)]
    result, rows, _ = made(tmp_path, tasks, lambda ask: "the  same " if ask.seed % 2 else "the same")
    assert [row["messages"][0]["content"] for row in rows] == ["a", "b"]
    assert result.dropped == Counter(duplicate=1)
    both, _, _ = made(tmp_path / "both", tasks, lambda ask: "the same", filters={"duplicates": "keep"})
    assert both.rows == 3


GERMAN = {"language": "german"}


def test_languages(tmp_path: Path) -> None:
    german = "Das ist nicht der Hund, den wir mit dem Ball auf der Wiese und in dem Haus gesehen haben."
    english = "This is not the dog that we have seen with the ball in the garden and in the house of them."
    tasks = [task(german, 1), task(english, 2), task("4?", 3)]
    said = {german: english, english: english, "4?": "4"}
    same, _, _ = made(tmp_path, tasks, lambda ask: said[ask.messages[-1].content or ""], filters={"language": "same"})
    assert same.dropped == Counter(language=1) and same.rows == 2
    named, _, _ = made(tmp_path / "named", tasks, lambda ask: said[ask.messages[-1].content or ""], filters=GERMAN)
    assert named.dropped == Counter(language=2) and named.rows == 1, "a number alone is of no language"
    with pytest.raises(ConfigError, match="the language `Germn` is not known"):
        made(tmp_path / "unknown", tasks, lambda ask: "", filters={"language": "Germn"})


def test_thoughts_are_dropped_kept_or_put_inside() -> None:
    reply = Reply("4.", reasoning="2 and 2")
    last = {
        how: demonstration(task("2 + 2?"), reply, settings(reasoning=how)).messages[-1]
        for how in ("drop", "keep", "inside")
    }
    assert (last["drop"].content, last["drop"].reasoning) == ("4.", None)
    assert (last["keep"].content, last["keep"].reasoning) == ("4.", "2 and 2")
    assert (last["inside"].content, last["inside"].reasoning) == ("<think>\n2 and 2\n</think>\n\n4.", None)
    without = demonstration(task("2 + 2?"), Reply("4."), settings(reasoning="inside")).messages[-1]
    assert without.content == "4."


def test_tool_calls_become_a_turn_without_content() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turn = demonstration(task("2 + 2?"), Reply("", tool_calls=(call,)), settings()).messages[-1]
    assert turn.content is None and turn.tool_calls == (call,)


@pytest.mark.parametrize("keep", [False, True])
def test_a_system_message_is_for_prompts_that_have_none(tmp_path: Path, keep: bool) -> None:
    own = Task((Message("system", "Mine."), Message("user", "b")), None, RowRef("p", 2))
    _, rows, teacher = made(tmp_path, [task("a"), own], lambda ask: "fine", system="Think.", keep_system=keep)
    assert [ask.messages[0].content for ask in teacher.asked] == ["Think.", "Mine."]
    assert [row["messages"][0]["content"] for row in rows] == ["Think." if keep else "a", "Mine."]
    assert rows[0]["origin"]["details"] == {"system": "Think."} and "details" not in rows[1]["origin"]


def test_questions_do_not_depend_on_the_rows_around_them() -> None:
    def seeds(*texts: str) -> dict[str, list[int]]:
        seen: Counter[str] = Counter()
        found: dict[str, list[int]] = {}
        for text in texts:
            found.setdefault(text, []).extend(
                ask.seed for ask in asks_of(task(text), settings(answers_per_prompt=2), 0, seen)
            )
        return found

    assert seeds("a", "b") == seeds("b", "a")
    assert len({seed for own in seeds("a", "b", "a").values() for seed in own}) == 6, (
        "equal prompts and attempts get answers of their own"
    )
    assert seeds("a", "a")["a"][:2] == seeds("a")["a"]
    assert asks_of(task("a"), settings(), 1, Counter())[0].seed != asks_of(task("a"), settings(), 0, Counter())[0].seed


LENGTH = {"kind": "rewards", "rewards": [{"kind": "exact"}]}


def test_scores_are_written_and_those_below_the_least_make_no_row(tmp_path: Path) -> None:
    tasks = [task("2 + 2?", 1, answer="4"), task("3 + 3?", 2, answer="6"), task("who?", 3)]
    said = {"2 + 2?": "4", "3 + 3?": "5", "who?": "me"}
    with Scorers() as scorers:
        result, rows, _ = made(
            tmp_path,
            tasks,
            lambda ask: said[ask.messages[-1].content or ""],
            scorers=scorers,
            filters={"scorer": LENGTH, "least_score": 1.0},
        )
    assert [row["origin"]["scores"] for row in rows] == [{"rewards": 1.0}]
    assert result.dropped == Counter(low_score=1, not_judged=1)
    assert [line["best"] for line in read_jsonl(tmp_path / "yields.jsonl")] == [1.0, 0.0, None]


def test_without_a_least_score_the_score_is_only_written(tmp_path: Path) -> None:
    with Scorers() as scorers:
        result, rows, _ = made(
            tmp_path, [task("3 + 3?", answer="6")], lambda ask: "5", scorers=scorers, filters={"scorer": LENGTH}
        )
    assert result.rows == 1 and rows[0]["origin"]["scores"] == {"rewards": 0.0}


def test_where_nothing_can_be_kept_the_error_says_why(tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match="no row came out") as caught:
        made(tmp_path, [task("a"), task("b")], lambda ask: Reply("", ended=False))
    assert "2 answers: the answer was cut" in str(caught.value)
    assert not (tmp_path / "data.jsonl").exists() and (tmp_path / ASKED).exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"filters": {"least_score": 1.0}}, "nobody scores them"),
        ({"filters": {"scorer": "logprob"}}, "of a search"),
        ({"filters": {"least_words": 5, "most_words": 2}}, "as short as"),
        ({"answers_per_prompt": 2, "sampling": {"temperature": 0}}, "the same answer each time"),
        ({"keep_system": True}, "no system message to keep"),
        ({"reasoning": "some"}, "reasoning"),
        ({"filters": {"endded": True}}, "filters.endded"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        settings(**options)


def test_a_teacher_is_needed() -> None:
    with pytest.raises(ConfigError, match="`teacher` is missing"):
        Distil()


# ---------------------------------------------------------------- from Python, against a server


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer() as server:
        yield server


def test_from_python(server: TeacherServer, tmp_path: Path) -> None:
    teacher = {"url": server.url, "model": "big", "price": {"prompt": 1.0, "completion": 2.0}}
    first = pt.distil(["2 + 2?", "3 + 3?"], teacher, out=tmp_path / "out", progress=False)
    assert (first.rows, first.spent.cost) == (2, pytest.approx(40e-6)) and first.path == tmp_path / "out" / "data.jsonl"
    again = pt.distil(["2 + 2?", "3 + 3?", "4 + 4?"], teacher, out=tmp_path / "out", progress=False)
    assert again.rows == 3 and sorted(server.questions) == ["2 + 2?", "3 + 3?", "4 + 4?"]
    rows = [row.messages[-1].content for row in read(first.path) if isinstance(row, Demonstration)]
    assert rows == [f"answer to {n} + {n}?" for n in (2, 3, 4)]
    with pytest.raises(ConfigError, match="first argument"):
        pt.distil("2?", teacher, out=tmp_path, data="x.jsonl", progress=False)


def test_a_spent_limit_keeps_the_rows_and_says_so(server: TeacherServer, tmp_path: Path) -> None:
    teacher = {"url": server.url, "model": "big", "most_tokens": 30, "concurrency": 1}
    result = pt.distil([str(n) for n in range(6)], teacher, out=tmp_path, progress=False)
    assert (result.rows, result.dropped[UNASKED], len(server.seen)) == (2, 4, 2)
    assert result.figures["stopped_by"] == "`most_tokens: 30` is spent (30 tokens)"
    more = pt.distil([str(n) for n in range(6)], {**teacher, "most_tokens": 60}, out=tmp_path, progress=False)
    assert more.rows == 4 and server.questions == ["0", "1", "2", "3"]


def test_the_key_stands_in_no_file_and_no_error(
    server: TeacherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")

    def answer(body: dict[str, Any]) -> Any:
        if asked(body) == "b":
            return 400, {"error": "no: sk-very-secret"}
        return 200, reply_with("fine")

    server.answer = answer
    teacher = {"url": server.url, "model": "big", "key_env": "TEACHER_KEY", "retries": 0}
    result = pt.distil(["a", "b"], teacher, out=tmp_path, progress=False)
    assert server.seen[0][0]["Authorization"] == "Bearer sk-very-secret" and result.dropped == Counter(failed=1)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"no: ***" in written and b"sk-very-secret" not in written


def test_multi_turn_prompts_of_a_file_are_asked_without_their_last_answer(
    server: TeacherServer, tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "2 + 2?"), ("assistant", "5")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    pt.distil(path, {"url": server.url, "model": "big"}, out=tmp_path / "out", progress=False)
    (_, body) = server.seen[0]
    assert [turn["content"] for turn in body["messages"]] == ["Hi", "Hello", "2 + 2?"]


def test_a_judge_is_asked_about_the_answers_to_several_prompts_side_by_side(tmp_path: Path) -> None:
    """One by one, each request would wait for the one before: the barrier lets none go before three are there."""
    together = threading.Barrier(3, timeout=10)

    class Judging:
        def score(self, items: Any) -> list[Any]:
            calls.append([item.group for item in items])

            def mark(item: Any) -> float:
                together.wait()
                return float(item.completion == "4")

            with ThreadPoolExecutor(3) as pool:
                return [SimpleNamespace(total=total) for total in pool.map(mark, items)]

        def close(self) -> None: ...

    calls: list[list[int]] = []
    filters = {"scorer": LENGTH, "least_score": 1.0}
    with Scorers() as scorers:
        wanted = settings(filters=filters).filters.scorer
        assert wanted is not None
        scorers.grader(wanted).rubric = Judging()  # type: ignore[attr-defined]
        result, rows, _ = made(
            tmp_path,
            [task(f"{i} + 1?", i, answer="4") for i in (1, 2, 3)],
            lambda ask: "4" if ask.messages[-1].content == "3 + 1?" else "5",
            scorers=scorers,
            filters=filters,
        )
    assert calls == [[0, 1, 2]] and result.dropped == Counter(low_score=2)
    assert [row["origin"]["source"] for row in rows] == ["prompts.jsonl, row 3"]
