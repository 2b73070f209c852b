"""Rewards as functions: how they are called, what they may answer, how they add up, and what an entry becomes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from posttrain.errors import (
    ConfigError,
    EncodingError,
    MissingExtraError,
    ModelError,
    PosttrainError,
    RewardError,
    UnknownKeyError,
)
from posttrain.rewards import Rubric, Sampled, Scored, Scorer, gold_check, resolve, rubric_of
from posttrain.rewards.imported import imported
from posttrain.rewards.registry import REWARDS
from posttrain.rollout.engine import FinishReason
from posttrain.types import Message, RowRef, Task

PROMPT = (Message("user", "2 + 2?"),)


def task(row: int, answer: str | None = "4", **metadata: Any) -> Task:
    return Task(PROMPT, answer, RowRef("sums.jsonl", row), metadata)


def sampled(completion: str, row: int = 1, *, tokens: int = 3, group: int = 0, **metadata: Any) -> Sampled:
    return Sampled(PROMPT, completion, task(row, **metadata), FinishReason.STOP_TOKEN, tokens, group)


ITEMS = [sampled("4", 1, group=0), sampled("five", 2, group=0), sampled("four!", 3, group=1)]


def scores(function: Callable[..., Any], items: list[Sampled] | None = None) -> list[float | None]:
    return Scorer("mine", function).score(ITEMS if items is None else items)


# ---------------------------------------------------------------- how they are called


def test_a_function_of_one_response() -> None:
    def mine(prompt: Any, completion: str, task: Task) -> float | None:
        assert prompt == PROMPT
        return None if task.row.row == 3 else len(completion)

    assert scores(mine) == [1.0, 4.0, None]


def test_a_function_of_all_responses_sees_their_groups() -> None:
    def mine(prompts: Any, completions: Any, tasks: Any, groups: list[int], tokens: list[int]) -> list[float]:
        assert tokens == [3, 3, 3]
        longest = {g: max(len(c) for c, h in zip(completions, groups, strict=True) if h == g) for g in groups}
        return [len(c) / longest[g] for c, g in zip(completions, groups, strict=True)]

    assert scores(mine) == [0.25, 1.0, 1.0]


def test_functions_may_be_async() -> None:
    running, most = 0, 0

    async def one(prompt: Any, completion: str, task: Task, tokens: int) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return tokens

    async def many(prompts: Any, completions: Any, tasks: Any) -> np.ndarray:
        return np.arange(len(completions))

    assert scores(one) == [3.0, 3.0, 3.0]
    assert most == 3, "they wait one after the other"
    assert scores(many) == [0.0, 1.0, 2.0]

    async def within_a_loop() -> list[float | None]:
        return scores(one)

    assert asyncio.run(within_a_loop()) == [3.0, 3.0, 3.0]


def test_no_responses_no_call() -> None:
    assert scores(lambda prompt, completion, task: 1 / 0, []) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda completion: 1.0,
        lambda prompt, completion: 1.0,
        lambda prompt, completion, task, needed: 1.0,
        lambda prompt, completion, task, *, groups: 1.0,
        lambda completion, prompt, task: 1.0,
        lambda completions, prompts, tasks: [1.0] * 3,
    ],
)
def test_a_function_that_cannot_be_called_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="`mine` cannot be called with a prompt"):
        scores(function)


# ---------------------------------------------------------------- what they may answer


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "1", "0.5", [1.0], (), {}, object(), b"1", np.float32("nan"), 1j, np.ones(2)]
)
def test_what_is_no_number_names_the_function_and_the_row(value: Any) -> None:
    with pytest.raises(RewardError) as caught:
        scores(lambda prompt, completion, task: value if task.row.row == 2 else 0.0)
    assert "`mine`" in str(caught.value) and "sums.jsonl, row 2" in str(caught.value)
    assert "'five'" in str(caught.value)


@pytest.mark.parametrize("value", [1, True, np.float64(1), np.int64(1), np.bool_(True)])
def test_what_is_a_number(value: Any) -> None:
    assert scores(lambda prompt, completion, task: value) == [1.0] * 3


@pytest.mark.parametrize(
    "values", [[1.0], [1.0] * 4, [], None, 1.0, "123", b"123", [[1.0, 2.0, 3.0]], {0, 1, 2}, {0: 1.0, 1: 0.0, 2: 1.0}]
)
def test_a_wrong_number_of_values(values: Any) -> None:
    with pytest.raises(RewardError) as caught:
        scores(lambda prompts, completions, tasks: values)
    assert "`mine`" in str(caught.value) and "sums.jsonl, row 1 to sums.jsonl, row 3" in str(caught.value)
    assert "a list of 3 numbers" in str(caught.value)


def test_an_exception_names_the_function_and_the_row() -> None:
    def mine(prompt: Any, completion: str, task: Task) -> float:
        return float(completion)

    async def later(prompt: Any, completion: str, task: Task) -> float:
        return float(completion)

    def many(prompts: Any, completions: Any, tasks: Any) -> list[float]:
        raise KeyError("x")

    for function in (mine, later):
        with pytest.raises(RewardError, match="raised ValueError") as caught:
            scores(function)
        assert "row 2" in str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)

    def lazily(prompts: Any, completions: Any, tasks: Any) -> Iterator[float]:
        yield 1.0
        raise KeyError("x")

    with pytest.raises(RewardError, match="raised KeyError"):
        scores(lazily)
    with pytest.raises(RewardError, match="raised KeyError"):
        scores(many)


def test_a_function_that_exits_does_not_end_the_command_in_silence(tmp_path: Path) -> None:
    def leaves(prompt: Any, completion: str, task: Task) -> float:
        sys.exit(0)

    async def later(prompt: Any, completion: str, task: Task) -> float:
        sys.exit(0)

    def many(prompts: Any, completions: Any, tasks: Any) -> list[float]:
        sys.exit(0)

    for function in (leaves, later, many):
        with pytest.raises(RewardError, match="raised SystemExit"):
            scores(function)
    # A script that ends itself, of which a recipe names a function.
    (tmp_path / "script.py").write_text("import sys\ndef polite(prompt, completion, task): return 1.0\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"cannot be imported") as caught:
        imported("script.py:polite", tmp_path)
    assert "SystemExit" in str(caught.value) and "line 3" in str(caught.value)


@pytest.mark.parametrize("kind", [ModelError, MissingExtraError, ConfigError, EncodingError])
def test_our_own_errors_keep_their_problem_and_their_remedy(kind: type[PosttrainError]) -> None:
    def fail() -> NoReturn:
        raise kind("there is no such model", remedy="name a folder")

    def mine(prompt: Any, completion: str, task: Task) -> float:
        fail()

    async def later(prompt: Any, completion: str, task: Task) -> float:
        fail()

    def many(prompts: Any, completions: Any, tasks: Any) -> list[float]:
        fail()

    for function in (mine, later, many):
        with pytest.raises(kind) as caught:
            scores(function)
        shown = str(caught.value)
        assert "sums.jsonl, row 1" in shown and "there is no such model" in shown and "name a folder" in shown
        assert "mend the function" not in shown


def test_their_own_place_is_kept() -> None:
    def mine(prompt: Any, completion: str, task: Task) -> float:
        raise ModelError("there is no such model", where="models/judge", remedy="name a folder")

    with pytest.raises(ModelError) as caught:
        scores(mine)
    assert caught.value.where == "models/judge"


def test_a_model_that_is_not_there_ends_the_gold_check() -> None:
    def mine(prompt: Any, completion: str, task: Task) -> float:
        raise ModelError("there is no such model", remedy="name a folder")

    with pytest.raises(ModelError, match="no such model"):
        gold_check([task(1, "4"), task(2, "5")], [Scorer("mine", mine, gold=lambda task: task.answer)])


# ---------------------------------------------------------------- several


def test_a_rubric_adds_weighted_parts() -> None:
    right = Scorer("right", lambda prompt, completion, task: float(completion == "4"), 2.0)
    brief = Scorer("brief", lambda prompt, completion, task: None if completion == "five" else 0.5, -1.0)
    logged = Scorer("logged", lambda prompt, completion, task: 7.0, 0.0)
    with Rubric([right, brief, logged]) as rubric:
        assert rubric.score(ITEMS) == [
            Scored(1.5, {"right": 1.0, "brief": 0.5, "logged": 7.0}),
            Scored(0.0, {"right": 0.0, "brief": None, "logged": 7.0}),
            Scored(-0.5, {"right": 0.0, "brief": 0.5, "logged": 7.0}),
        ]


def test_nobody_judged() -> None:
    assert Rubric([Scorer("none", lambda prompt, completion, task: None)]).score(ITEMS[:1]) == [
        Scored(None, {"none": None})
    ]


def test_rubrics_are_checked() -> None:
    one = Scorer("a", lambda prompt, completion, task: 1.0)
    with pytest.raises(ConfigError, match="two rewards are named `a`"):
        Rubric([one, one])
    with pytest.raises(ConfigError, match="there is no reward"):
        Rubric([])


def test_closing_a_rubric_closes_its_rewards() -> None:
    closed: list[str] = []
    with Rubric([Scorer("a", lambda prompt, completion, task: 1.0, close=lambda: closed.append("a"))]):
        assert closed == []
    assert closed == ["a"]


# ---------------------------------------------------------------- the gold check


def test_the_gold_check_lists_rows_that_no_model_can_get_right() -> None:
    rows = [task(1, "4"), task(2, "no number here, and no end"), task(3, None), task(4, "5")]

    def strict(prompt: Any, completion: str, task: Task) -> float | None:
        return float(completion.isdigit())

    failures = gold_check(rows, [Scorer("strict", strict, gold=lambda task: task.answer), resolve({"kind": "exact"})])
    assert [(failure.row.row, failure.reward, failure.score) for failure in failures] == [(2, "strict", 0.0)]
    assert str(failures[0]).startswith("sums.jsonl, row 2: the reward `strict` gives 0 to the row's own answer 'no num")


def test_the_gold_check_survives_rows_that_break_a_reward() -> None:
    def fragile(prompt: Any, completion: str, task: Task) -> float | None:
        return None if completion == "6" else 1.0 / (int(completion) != 5)

    rows = [task(1, "4"), task(2, "5"), task(3, "6")]
    failures = gold_check(rows, [Scorer("fragile", fragile, gold=lambda task: task.answer)])
    assert [(failure.row.row, failure.score, failure.why) for failure in failures] == [
        (2, None, "the reward `fragile` raised ZeroDivisionError"),
        (3, None, ""),
    ]
    assert "abstains from" in str(failures[1])


def test_the_gold_check_looks_through_a_reshaped_verifier() -> None:
    spec = {"kind": "cosine", "of": {"kind": "function", "function": f"{__name__}:four", "verifies": True}}
    failures = gold_check([task(1), task(2, "5")], [resolve({**spec, "max_length": 10})])
    assert [(failure.row.row, failure.reward) for failure in failures] == [(2, "four")]


@pytest.mark.parametrize("kind", ["math", "exact", "fuzzy", "regex", "json_schema", "code", "reasoning_gym"])
def test_verifiers_have_a_gold_answer(kind: str) -> None:
    assert resolve({"kind": kind}).gold is not None


@pytest.mark.parametrize("tag", [None, "answer"])
def test_text_verifiers_accept_their_own_answers(tag: str | None) -> None:
    rows = [task(1, "4"), task(2, "  Paris\n is\tit "), task(3, "a < b & c")]
    assert gold_check(rows, [resolve({"kind": kind, "tag": tag}) for kind in ("exact", "fuzzy")]) == []


# ---------------------------------------------------------------- from a recipe


def test_every_kind_of_the_recipe_becomes_a_reward() -> None:
    needed: dict[str, dict[str, Any]] = {
        "length": {"target": 10, "tolerance": 5},
        "overlong": {"max_length": 100, "buffer": 20},
        "cosine": {"of": {"kind": "exact"}, "max_length": 10},
        "reward_model": {"model": "nowhere"},
        "judge": {"url": "http://localhost:1/v1", "model": "x"},
        "function": {"function": "math:dist", "name": "f"},
    }
    for kind in REWARDS:
        if kind == "function":
            continue
        scorer = resolve({"kind": kind, "weight": 0.5, **needed.get(kind, {})})
        assert (scorer.name, scorer.weight) == (kind, 0.5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "mathh"}, ["mathh", "did you mean `math`"]),
        ({"kind": "math", "require_box": True}, ["require_box", "did you mean `require_boxed`"]),
        ({"kind": "exact", "at_least": 1}, ["at_least", "fuzzy has it"]),
        ({"kind": "overlong", "max_length": 10}, ["`rewards.overlong.buffer` is missing"]),
        ({"kind": "overlong", "max_length": 10, "buffer": 20}, ["the buffer is longer"]),
        ({"kind": "regex", "pattern": "("}, ["not a regular expression"]),
        ({"kind": "language", "language": "xx"}, ["`xx` is not known"]),
        ({"kind": "function", "function": "nothing"}, ["module:function"]),
        ({"kind": "math", "weight": float("nan")}, ["weight"]),
        ({"weight": 1.0}, ["kind"]),
    ],
)
def test_a_wrong_entry_is_refused(spec: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(spec)
    if "did you mean" in words[-1]:
        assert isinstance(caught.value, UnknownKeyError)
    for word in words:
        assert word.replace("rewards.overlong.", "") in str(caught.value).replace("rewards.0.", ""), str(caught.value)


def test_a_function_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def polite(prompt, completion, task, *, word='please'):\n    return float(word in completion)\n"
    )
    spec = {"kind": "function", "function": "mine:polite", "parameters": {"word": "four"}, "weight": 3}
    with rubric_of([spec], folder=tmp_path) as rubric:
        assert [scored.total for scored in rubric.score(ITEMS)] == [0.0, 0.0, 3.0]
        assert rubric.score(ITEMS)[0].parts == {"polite": 0.0}


def test_a_function_that_verifies() -> None:
    spec = {"kind": "function", "function": f"{__name__}:four", "verifies": True}
    assert [failure.row.row for failure in gold_check([task(1), task(2, "5")], [resolve(spec)])] == [2]


def four(prompt: Any, completion: str, task: Task) -> float:
    return float(completion == "4")


@pytest.mark.parametrize(
    ("address", "word"),
    [("no_such_module:f", "ModuleNotFoundError"), ("math:no_such", "has no `no_such`"), ("math:pi", "is no function")],
)
def test_a_function_that_is_not_there(address: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        resolve({"kind": "function", "function": address})


def test_a_broken_module_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(ConfigError, match="SyntaxError"):
        resolve({"kind": "function", "function": "broken:f"}, folder=tmp_path)


def test_an_exception_names_the_line_of_the_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import statistics\n\n\ndef mean(values):\n    return statistics.mean(values)\n\n\n"
        "def bad(prompt, completion, task):\n    return mean([])\n"
    )
    scorer = resolve({"kind": "function", "function": "mine:bad"}, folder=tmp_path)
    with pytest.raises(RewardError) as caught:
        scorer.score([Sampled((Message("user", "?"),), "4", Task((Message("user", "?"),), "4", RowRef("t", 1)))])
    assert f"{tmp_path / 'mine.py'}:5, in mean" in str(caught.value.found)  # not the line within `statistics`


def test_the_signature_of_trl_is_told_what_lacks() -> None:
    def of_trl(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        return [0.0 for _ in completions]

    def short(completion: str) -> float:
        return 0.0

    def more(prompt: Any, completion: str, task: Task, level: int) -> float:
        return 0.0

    for function, words in ((of_trl, "what lacks is `tasks`"), (short, "`task`, in this order"), (more, "a default")):
        with pytest.raises(ConfigError) as caught:
            Scorer("mine", function).score([Sampled((), "4", Task((), "4", RowRef("t", 1)))])
        assert words in caught.value.remedy


def test_a_function_that_the_module_lacks_is_told_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "mine2.py").write_text("def polite(prompt, completion, task):\n    return 1.0\n")
    with pytest.raises(ConfigError) as caught:
        resolve({"kind": "function", "function": "mine2:polit"}, folder=tmp_path)
    assert "its functions are polite" in str(caught.value.found) and "mine2:polite" in caught.value.remedy
