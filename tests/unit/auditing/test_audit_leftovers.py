"""What conversions leave in texts: planted in rows of every kind, clean rows silent, and the rows mended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.auditing import AuditFinding, audit
from posttrain.auditing.leftovers import has_entities, is_dialogue, is_turns, null_line, repeated_length, unescaped
from posttrain.auditing.marks import SURE_NULL_WORDS
from posttrain.auditing.mend import MENDED, mend
from posttrain.data import read
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, Task
from tests.audit_rows import clean_demonstrations, clean_feedback, clean_lists, clean_pairs

CHECKS = ["repeated_prompt", "null_words", "stored_turns", "html_entities"]


def clean_tasks(count: int = 100) -> list[Task]:
    return [Task(one.prompt, "42", RowRef("tasks.jsonl", n)) for n, one in enumerate(clean_pairs(count), 1)]


KINDS: dict[str, list[Any]] = {
    "pairs": clean_pairs(100),
    "lists": clean_lists(100),
    "feedback": clean_feedback(100),
    "demonstrations": clean_demonstrations(100),
    "tasks": clean_tasks(),
}


def found(rows: Sequence[Example], check: str) -> list[AuditFinding]:
    return list(audit(list(rows), checks=[check]))


def with_texts(example: Any, prompt: Callable[[str], str], response: Callable[[str, str], str]) -> Any:
    """A row with another prompt, and other responses made of (prompt, response)."""
    if isinstance(example, Demonstration):
        asked, said = (message.content or "" for message in example.messages)
        return replace(
            example, messages=(Message("user", prompt(asked)), Message("assistant", response(prompt(asked), said)))
        )
    asked = prompt(example.prompt[-1].content or "")
    turn = (Message("user", asked),)
    if isinstance(example, Task):
        return replace(example, prompt=turn)
    if isinstance(example, Feedback):
        said = example.response[0].content or ""
        return replace(example, prompt=turn, response=(Message("assistant", response(asked, said)),))
    said_all = [(Message("assistant", response(asked, r[0].content or "")),) for r in example.responses]
    return replace(example, prompt=turn, responses=tuple(said_all))


def same(text: str) -> str:
    return text


def kept(prompt: str, response: str) -> str:
    return response


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", KINDS)
def test_clean_rows_are_silent(kind: str, check: str) -> None:
    assert found(KINDS[kind], check) == []


# ---------------------------------------------------------------- the prompt once more


@pytest.mark.parametrize("kind", ["pairs", "lists", "feedback", "demonstrations"])
@pytest.mark.parametrize("between", [" ", "\n\n", "\nAssistant: "])
def test_a_prompt_in_every_response_is_an_error(kind: str, between: str) -> None:
    rows = [with_texts(one, same, lambda prompt, said: f"{prompt}{between}{said}") for one in KINDS[kind][:40]]
    (finding,) = found(rows, "repeated_prompt")
    assert finding.severity == "error" and len(finding.rows) == 40 and finding.share == 1
    if kind == "pairs":
        assert finding.evidence["chosen_share"] == finding.evidence["rejected_share"] == 1


def test_few_repetitions_are_a_note_and_some_a_warning() -> None:
    def repeating(count: int) -> list[Any]:
        rows = [with_texts(one, same, lambda prompt, said: f"{prompt} {said}") for one in KINDS["pairs"][:count]]
        return [*rows, *KINDS["pairs"][count:]]

    assert found(repeating(2), "repeated_prompt")[0].severity == "note"
    (finding,) = found(repeating(30), "repeated_prompt")
    assert finding.severity == "warning" and {ref.row for ref in finding.rows} == set(range(1, 31))


def test_only_the_last_turn_counts_and_an_order_to_repeat_does_not() -> None:
    turns = (Message("system", "Be kind."), Message("user", "Hello there, friend."), Message("assistant", "Hi."))
    rows = [
        replace(one, prompt=(*turns, *one.prompt), responses=tuple(
            (Message("assistant", f"{one.prompt[-1].content}\n{r[0].content}"),) for r in one.responses
        ))
        for one in KINDS["pairs"]
    ]  # fmt: skip
    assert found(rows, "repeated_prompt")[0].severity == "error"
    asked = [
        with_texts(one, lambda p: f"Repeat this word for word: {p}", lambda p, r: f"{p} {r}") for one in KINDS["pairs"]
    ]
    assert found(asked, "repeated_prompt") == []


@pytest.mark.parametrize(
    ("turn", "response", "length"),
    [
        ("What is a cat?", "What is a cat? An animal.", 14),
        ("What is a cat?", "  What is a cat?\nAn animal.", 16),
        ("What is a cat?", "User: What is a cat?\nAssistant: An animal.", 20),
        ("What is a cat", "What is a category?", 0),
        ("Hi", "Hi there", 0),
        ("What is a cat?", "A cat is an animal.", 0),
    ],
)
def test_how_much_repeats(turn: str, response: str, length: int) -> None:
    assert repeated_length(turn, response) == length


# ---------------------------------------------------------------- nothing, as a word


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "undefined", "<NA>"])
@pytest.mark.parametrize("form", ["{word}", "Sort the list.\n{word}"])
def test_prompts_that_are_or_end_in_a_null_word(kind: str, word: str, form: str) -> None:
    rows = [
        with_texts(one, lambda _: form.format(word=word), kept) if n < 10 else one for n, one in enumerate(KINDS[kind])
    ]
    (finding,) = found(rows, "null_words")
    assert finding.severity == "warning" and len(finding.rows) == 10 and finding.evidence["what"] == "input"


@pytest.mark.parametrize("kind", ["pairs", "feedback", "demonstrations"])
def test_answers_that_are_a_null_word(kind: str) -> None:
    rows = [with_texts(one, same, lambda p, r: "nan") if n < 7 else one for n, one in enumerate(KINDS[kind])]
    (finding,) = found(rows, "null_words")
    assert finding.evidence["what"] == "answer" and len(finding.rows) == 7
    one_none = [with_texts(one, same, lambda p, r: "None") if n < 1 else one for n, one in enumerate(KINDS[kind])]
    assert found(one_none, "null_words") == [], "one of them is an answer"


def test_tasks_whose_answer_is_nan() -> None:
    rows = [replace(one, answer="nan") if n < 5 else one for n, one in enumerate(KINDS["tasks"])]
    assert len(found(rows, "null_words")[0].rows) == 5


@pytest.mark.parametrize("word", sorted(SURE_NULL_WORDS))
def test_tasks_know_the_same_null_words_as_responses(word: str) -> None:
    """One table: what no person answers with is nothing as a response and as the answer of a task."""
    rows: list[Example] = [*clean_tasks(40), Task((Message("user", "2 + 2?"),), f" {word} ", RowRef("tasks.jsonl", 41))]
    assert [ref.row for ref in found(rows, "null_words")[0].rows] == [41]
    pairs = [replace(row, responses=(row.responses[0], (Message("assistant", word),))) for row in clean_pairs(40)]
    assert len(found(pairs, "null_words")[0].rows) == 40


def test_code_and_sentences_that_end_in_the_word_are_no_null() -> None:
    assert null_line("Which of these is not JSON: undefined, or null") == ""
    rows = list(KINDS["pairs"])
    rows[0] = with_texts(rows[0], lambda _: "What does this print?\n\nprint(f())\ndef f():\n    pass\nNone", kept)
    assert found(rows, "null_words") == []


# ---------------------------------------------------------------- turns as text

TURNS = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [json.dumps, str, lambda turns: json.dumps({"messages": turns}, indent=1)])
def test_turns_stored_as_text(kind: str, write: Callable[[Any], str]) -> None:
    rows = [with_texts(one, lambda _: write(TURNS), kept) if n < 3 else one for n, one in enumerate(KINDS[kind])]
    (finding,) = found(rows, "stored_turns")
    assert finding.severity == "warning" and len(finding.rows) == 3 and finding.evidence["kind"] == "json"
    everywhere = [with_texts(one, lambda _: write(TURNS), kept) for one in KINDS[kind]]
    assert found(everywhere, "stored_turns")[0].severity == "error"


def test_turns_stored_in_a_response() -> None:
    rows = [
        with_texts(one, same, lambda p, r: json.dumps(TURNS)) if n < 3 else one for n, one in enumerate(KINDS["pairs"])
    ]
    assert len(found(rows, "stored_turns")[0].rows) == 3


@pytest.mark.parametrize(
    "text",
    [
        '[{"from": "human", "value": "Hi"}]',
        "[{'role': 'user', 'content': 'it''s'}]",
        '{"role": "user", "content": "x"}',
    ],
)
def test_what_is_a_list_of_turns(text: str) -> None:
    assert is_turns(text)


@pytest.mark.parametrize(
    "text",
    ['[{"name": "Ada"}]', '{"role": "admin"}', "[1, 2]", '[{"role": "user", "content": "x"', "A list: [{'a': 1}]"],
)
def test_what_is_none(text: str) -> None:
    assert not is_turns(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "form",
    ["Human: {0}\nAssistant:", "### Human: {0}\n### Assistant:", "<|im_start|>user\n{0}\n<|im_start|>assistant\n"],
)
def test_prompts_that_are_transcripts(kind: str, form: str) -> None:
    rows = [with_texts(one, form.format, kept) for one in KINDS[kind]]
    (finding,) = found(rows, "stored_turns")
    assert finding.severity == "warning" and finding.evidence["kind"] == "transcript"
    assert not is_dialogue("The user said hello to the assistant: hi."), "names in prose are no speakers"


# ---------------------------------------------------------------- HTML entities


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entity", ["&lt;", "&amp;", "&#39;", "&quot;", "&nbsp;", "&#x27;"])
def test_entities_in_prose(kind: str, entity: str) -> None:
    rows = [with_texts(one, lambda p: f"{p} {entity}s", kept) if n < 6 else one for n, one in enumerate(KINDS[kind])]
    (finding,) = found(rows, "html_entities")
    assert finding.severity == "warning" and len(finding.rows) == 6 and finding.evidence["found"] == [entity]


def test_entities_in_responses() -> None:
    rows = [
        with_texts(one, same, lambda p, r: f"{r} 2 &lt; 3") if n < 6 else one for n, one in enumerate(KINDS["pairs"])
    ]
    assert len(found(rows, "html_entities")[0].rows) == 6


@pytest.mark.parametrize(
    "text",
    [
        "```\nif (a &lt; b)\n```",
        "Write `&amp;` for it.",
        "<p>Tom &amp; Ann</p>",
        "In HTML, &lt; stands for <.",
        "Escape it as &quot;.",
        "AT&T; R&D and &c; a && b;",
        "x &lt b",
    ],
)
def test_code_and_markup_may_hold_entities(text: str) -> None:
    assert not has_entities(text)


def test_a_question_about_markup_may_be_answered_with_entities() -> None:
    rows = [with_texts(one, lambda p: f"{p} Answer in HTML.", lambda p, r: f"{r} &lt;") for one in KINDS["pairs"]]
    assert found(rows, "html_entities") == []


def test_entities_are_turned_back_outside_of_code() -> None:
    assert unescaped("2 &amp;lt; 3 &#39;x&#39; `&lt;`") == "2 < 3 'x' `&lt;`"


# ---------------------------------------------------------------- mending


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_fix_takes_the_prompt_off_every_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": p, "chosen": f"{p}\n\nYes, number {n}.", "rejected": f"{p} No, number {n}.", "note": p}
        for n in range(40)
        for p in [f"Is the number {n} a good one?"]
    ]
    fixed = audit(read(write_rows(tmp_path / "pairs.jsonl", rows), bad_rows="skip"), checks=CHECKS).fix(
        tmp_path / "c.jsonl"
    )
    assert fixed.kept == 40 and fixed.mended == {"repeated_prompt": 40} and fixed.dropped == {}
    clean = [json.loads(line) for line in fixed.path.read_text().splitlines()]
    assert clean[3] == {**rows[3], "chosen": "Yes, number 3.", "rejected": "No, number 3."}
    log = [json.loads(line) for line in fixed.log.read_text().splitlines()]
    assert {entry["action"] for entry in log} == {"mended"} and "mended: 40 by repeated_prompt" in str(fixed)
    assert list(audit(read(fixed.path), checks=CHECKS)) == []


def test_fix_mends_entities_and_inputs_and_drops_what_says_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": f"Say {n} in words.", "input": "", "output": f"Here it is: number {n}."} for n in range(40)
    ]
    rows[1]["input"] = "nan"
    rows[2]["output"] = "Tom &amp; Ann said &#39;two&#39;."
    rows[3]["output"] = "nan"
    # In the dialects of `messages` a list of turns is refused when the row is read; this one is nobody's.
    rows[4]["instruction"] = json.dumps(
        [{"speaker": "Ann", "text": "Is 2 a prime?"}, {"speaker": "Tom", "text": "Yes."}]
    )
    rows[5]["instruction"] = json.dumps(TURNS)
    path = write_rows(tmp_path / "alpaca.jsonl", rows)
    fixed = audit(read(path, bad_rows="skip"), checks=CHECKS).fix(tmp_path / "clean.jsonl")
    clean = [json.loads(line) for line in fixed.path.read_text().splitlines()]
    assert fixed.mended == {"null_words": 1, "html_entities": 1}
    assert clean[1] == {**rows[1], "input": ""} and clean[2]["output"] == "Tom & Ann said 'two'."
    assert fixed.kept == 37 and fixed.dropped == {"null_words": 1, "stored_turns": 1, "refused_rows": 1}


def test_a_row_is_dropped_for_one_fault_whatever_else_is_mended_in_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": f"Say {n} in words.", "input": "", "output": f"Here it is: number {n}."} for n in range(40)
    ]
    rows[1] |= {"instruction": "What do Tom &amp; Ann say?", "output": "nan"}
    path = write_rows(tmp_path / "alpaca.jsonl", rows)
    fixed = audit(read(path, bad_rows="skip"), checks=CHECKS).fix(tmp_path / "clean.jsonl")
    assert fixed.kept == 39 and fixed.dropped == {"null_words": 1} and fixed.mended == {}


def test_mending_finds_texts_however_deep_and_changes_nothing_else() -> None:
    row = {"messages": [{"role": "user", "content": "Is 2 a prime?"}, {"content": "Is 2 a prime? Yes."}], "n": 1.5}
    assert mend(row, MENDED, turn="Is 2 a prime?") == {
        "messages": [{"role": "user", "content": "Is 2 a prime?"}, {"content": "Yes."}],
        "n": 1.5,
    }
    assert mend({"a": "Is 2 a prime?"}, MENDED, turn="Is 2 a prime?") == {"a": "Is 2 a prime?"}


def test_hostile_texts_take_no_time() -> None:
    texts = ["&" * 9_999, "<p" * 9_999, "```" * 5_001, "\n" * 9_999, "[{" * 9_999, "user" * 5_000, " " * 9_999]
    texts.append("Is 2 a prime number?" + "\n" * 40_000 + "x")

    def all_of(text: str) -> Any:
        return with_texts(KINDS["pairs"][0], lambda _: text, lambda p, r: text)

    pairs = [all_of(text) for text in texts]
    started = time.process_time()
    audit(pairs, checks=CHECKS)
    assert time.process_time() - started < 2
    assert all(isinstance(one, Comparison) for one in pairs)
