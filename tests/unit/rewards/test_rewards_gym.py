"""reasoning-gym: tasks by name, scored by their own rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.rewards import Sampled, gold_check, resolve
from posttrain.rewards.gym import tasks, tasks_of
from posttrain.types import Message, RowRef, Task


def test_tasks_by_name() -> None:
    rows = tasks("chain_sum", size=3, seed=1, max_terms=2)
    assert [row.row for row in rows] == [RowRef("reasoning_gym:chain_sum", n) for n in (1, 2, 3)]
    assert rows[0].prompt[0].content is not None and "arithmetic problem" in rows[0].prompt[0].content
    assert rows == tasks_of("reasoning_gym:chain_sum?size=3&seed=1&max_terms=2")
    assert rows != tasks("chain_sum", size=3, seed=2, max_terms=2)
    assert all(row.answer is not None and int(row.answer) is not None for row in rows)


def test_distinct_leaves_out_questions_that_came_before() -> None:
    address = "reasoning_gym:chain_sum?size=40&max_terms=2&min_digits=1&max_digits=1"
    every, once = tasks_of(address), tasks_of(f"{address}&distinct=true")
    asked = [row.prompt[0].content for row in every]
    assert len(set(asked)) < len(asked) == 40
    assert [row.prompt[0].content for row in once] == list(dict.fromkeys(asked))
    assert all(row in every for row in once)


def test_they_are_scored() -> None:
    row = tasks("chain_sum", size=1)[0]
    scorer = resolve({"kind": "reasoning_gym"})
    tagged = resolve({"kind": "reasoning_gym", "tag": "answer"})
    assert row.answer is not None

    def score(text: str, with_tag: bool = False) -> float | None:
        return (tagged if with_tag else scorer).score([Sampled(row.prompt, text, row)])[0]

    assert score(row.answer) == 1
    assert score(f"<think>hm</think>\n{row.answer}") == 1
    assert score(f"It is <answer>{row.answer}</answer>", True) == 1
    assert score(str(int(row.answer) + 1)) == 0
    assert score("") == 0
    assert score(row.answer, True) == 0
    other = Task((Message("user", "?"),), "4", RowRef("x", 1))
    assert scorer.score([Sampled(other.prompt, "4", other)]) == [None]


def test_part_of_a_score_is_kept_only_on_request() -> None:
    row = tasks("leg_counting", size=1)[0]
    text = f"The answer is {row.answer}"
    whole, part = (resolve({"kind": "reasoning_gym", "partial": partial}) for partial in (False, True))
    assert whole.score([Sampled(row.prompt, text, row)])[0] == 0
    value = part.score([Sampled(row.prompt, text, row)])[0]
    assert value is not None and 0 < value < 1


def test_every_task_of_a_sample_accepts_its_own_answer() -> None:
    names = ["chain_sum", "leg_counting", "spell_backward", "countdown", "simple_equations", "number_sorting"]
    rows = [row for name in names for row in tasks(name, size=3)]
    for tag in (None, "answer"):
        assert gold_check(rows, [resolve({"kind": "reasoning_gym", "tag": tag})]) == []


def test_names_are_checked() -> None:
    with pytest.raises(UnknownKeyError, match="did you mean `chain_sum`"):
        tasks("chain_sums")
    with pytest.raises(UnknownKeyError, match="did you mean `max_terms`"):
        tasks("chain_sum", max_term=3)
    with pytest.raises(ConfigError, match="refuses these settings"):
        tasks("chain_sum", min_terms=9, max_terms=2)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("prime_factorization", "three times five"),  # int() of it
        ("countdown", "9**9**9"),  # which the rule computes
        ("game_of_life", '{"a": 1}'),
        ("coin_flip", "1" * 4000),
    ],
)
def test_an_answer_that_the_rule_cannot_bear_is_wrong(name: str, answer: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    row = tasks(name, size=1)[0]
    scorer = resolve({"kind": "reasoning_gym"})
    assert scorer.score([Sampled(row.prompt, answer, row)]) == [0.0]
    assert f"row 1: reasoning_gym: the rule of `{name}`: " in caplog.text and "counts as 0" in caplog.text
    assert row.answer is not None and scorer.score([Sampled(row.prompt, row.answer, row)]) == [1.0], (
        "the next is judged"
    )


def test_an_answer_that_is_a_program_does_nothing_to_files_or_processes(tmp_path: Path) -> None:
    row = tasks("countdown", size=1)[0]  # whose rule evaluates the answer as Python
    scorer = resolve({"kind": "reasoning_gym"})
    made, written, started = tmp_path / "made", tmp_path / "written", tmp_path / "started"
    for answer in (
        f"__import__('os').mkdir('{made}')",
        f"open('{written}', 'w').write('x')",
        f"__import__('os').system('touch {started}')",
        f"__import__('subprocess').run(['touch', '{started}'])",
        "__import__('socket').create_connection(('127.0.0.1', 9))",
        """print('{"value": 1.0}')""",
        "__import__('os').write(1, b'{\"value\": 1.0}')",
        "exit()",
    ):
        assert scorer.score([Sampled(row.prompt, answer, row)]) == [0.0], answer
    assert list(tmp_path.iterdir()) == []
    assert row.answer is not None and scorer.score([Sampled(row.prompt, row.answer, row)]) == [1.0]
