"""The suite of kind function: one's own function judges the answers, in a recipe by its address, in Python itself."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import parse_recipe
from posttrain.config.functions import source_fingerprint
from posttrain.config.suites import FunctionSuite, Sampling
from posttrain.errors import ConfigError, PosttrainError, RewardError, UnknownKeyError
from posttrain.evaluate.runner import evaluate_model
from posttrain.evaluate.suites import load_suite
from posttrain.evaluate.suites.function import JudgedByFunction, judged_figures
from posttrain.intervals import mean, share
from posttrain.report.evaluation import final_table
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.runs.files import read_json, read_jsonl
from posttrain.runs.folder import RunFolder
from posttrain.runs.read import read_run
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML")
MODULE = """
import json

def polite(prompt, answer, row):
    return "please" in answer

def agreement(prompts, answers, rows, scale=1.0):
    return [scale * (answer == row.answer) for answer, row in zip(answers, rows, strict=True)]

def level(prompt, answer, row):
    return None if row.metadata["level"] == 2 else row.metadata["level"] / 10

def broken(prompt, answer, row):
    return json.loads(answer)

def endless(prompt, answer, row):
    return float("inf")

def alone(answer):
    return 1.0
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{i}?", "answer": str(i), "level": i}) for i in range(3)]
    path.write_text("\n".join(lines) + "\n")
    (tmp_path / "my_eval.py").write_text(MODULE)
    return path


def settings(rows: Path, function: Any = "my_eval.py:polite", **changes: Any) -> FunctionSuite:
    given = {"kind": "function", "name": "mine", "prompts": str(rows), "function": function}
    return FunctionSuite(**{**given, "modules": str(rows.parent), "sampling": Sampling(max_new_tokens=2), **changes})


def scores_of(suite: FunctionSuite, texts: list[list[str]]) -> list[list[float | None]]:
    loaded = load_suite(suite)
    assert isinstance(loaded, JudgedByFunction)
    groups = [[Completion((5, 2), (-1.0, -0.5), FinishReason.STOP_TOKEN) for _ in answers] for answers in texts]
    return loaded.scores(groups, texts)


def test_the_forms_of_a_function(rows: Path) -> None:
    texts = [["0 please", "0"], ["1", "2"], ["please", "please"]]
    assert scores_of(settings(rows), texts) == [[1, 0], [0, 0], [1, 1]]
    assert scores_of(settings(rows, "my_eval:agreement", parameters={"scale": 0.5}), texts) == [
        [0, 0.5],
        [0.5, 0],
        [0, 0],
    ]
    assert scores_of(settings(rows, lambda prompt, answer, row: len(answer)), texts)[0] == [8, 1]
    assert scores_of(settings(rows, "my_eval.py:level"), [["a"], ["b"], ["c"]]) == [[0.0], [0.1], [None]]


def test_figures_of_yes_and_no_of_numbers_and_of_abstentions() -> None:
    assert judged_figures("score", [[1.0], [0.0], [1.0]]) == {"score": share(2, 3)}  # Wilson's
    numbers = judged_figures("score", [[3.0, 5.0], [7.0]])["score"]
    assert numbers == mean([[3.0, 5.0], [7.0]]) and (numbers.value, numbers.n) == (5.5, 2)
    partly = judged_figures("score", [[2.0, None], [None]])
    assert partly["score"].value == 2.0 and partly["abstained_share"].value == 0.75
    assert list(judged_figures("score", [[None]])) == ["abstained_share"]


def recipe(rows: Path, **changes: Any) -> str:
    suite = {
        "name": "mine",
        "kind": "function",
        "prompts": rows.name,
        "function": "my_eval.py:polite",
        "sampling": {"max_new_tokens": 2},
        **changes,
    }
    stage = {"method": "sft", "data": rows.name}
    return json.dumps(
        {"schema": 1, "name": "r", "model": "embedded", "evaluate": {"suites": [suite]}, "stages": [stage]}
    )


def test_a_recipe_names_a_file_beside_it(rows: Path) -> None:
    (suite,) = parse_recipe(recipe(rows), folder=rows.parent).evaluate.suites
    assert isinstance(suite, FunctionSuite)
    assert suite.modules == str(rows.parent)
    assert scores_of(suite, [["please"], ["no"], ["no"]]) == [[1], [0], [0]]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"function": "my_evil.py:polite"}, ConfigError, ["my_evil.py", "did you mean `my_eval.py`?"]),
        ({"function": "my_eval.py:polit"}, UnknownKeyError, ["did you mean `my_eval.py:polite`?"]),
        ({"function": "my_eval.py"}, ConfigError, ["function"]),
        ({"parameters": {"scael": 2}, "function": "my_eval.py:agreement"}, UnknownKeyError, ["did you mean `scale`?"]),
        ({"function": "my_eval.py:alone"}, ConfigError, ["the suite function `my_eval.py:alone`", "prompt"]),
    ],
)
def test_what_is_refused_before_a_prompt_is_asked(
    rows: Path, changes: dict[str, Any], error: type[PosttrainError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        load_suite(settings(rows, **changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", ["raised JSONDecodeError", "row 2", "in broken"]),
        ("endless", ["no finite number", "row 1"]),
    ],
)
def test_a_fault_of_the_function_names_it_and_the_row(rows: Path, name: str, words: list[str]) -> None:
    with pytest.raises(RewardError) as caught:
        scores_of(settings(rows, f"my_eval.py:{name}"), [["1"], ["x"], ["2"]])
    assert all(word in str(caught.value) for word in [f"the suite function `my_eval.py:{name}`", *words])


def test_a_module_that_cannot_be_imported_names_its_line(rows: Path) -> None:
    (rows.parent / "bad.py").write_text("x = 1\nundefined\n")
    with pytest.raises(ConfigError, match=r"NameError: .* \(line 2\)"):
        load_suite(settings(rows, "bad.py:f"))


def test_the_table_of_a_run_has_the_change_over_the_same_prompts(rows: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_run(name="run", status="done", stages=())
    suite = settings(rows, lambda prompt, answer, row: float(len(answer.encode())), higher_is_better=False, goal=40)
    for folder, seed in ((run.start, 0), (run.stage("sft"), 1)):
        folder.path.mkdir(parents=True)
        evaluate_model(
            tiny_model(vocab=len(TOKENIZER), seed=seed),
            [suite],
            folder,
            baseline=run.start.path,
            tokenizer=TOKENIZER,
        )
    run.stage("sft").write_stage(name="sft", method="sft", status="done")
    row = final_table(read_run(run.path)).rows[0]
    assert (row.suite, row.metric, row.meaning.wanted.name) == ("mine", "unwanted_score", "DOWN")
    assert row.meaning.goal == 40
    lines = read_jsonl(run.start.path / "evaluations" / "mine.jsonl")
    assert [line["score"] for line in lines] == [len(line["completion"].encode()) for line in lines]


def test_an_edited_function_is_asked_again_and_the_same_is_not(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    out = RunFolder(tmp_path / "run").start
    out.path.mkdir(parents=True)
    model = tiny_model(vocab=len(TOKENIZER))

    def ask() -> float:
        figures = evaluate_model(model, [settings(rows)], out, baseline=out.path, tokenizer=TOKENIZER)
        return figures["mine"]["score"].value

    assert ask() == 0
    written = (out.path / "evaluations" / "mine.jsonl").stat().st_mtime_ns
    assert ask() == 0 and (out.path / "evaluations" / "mine.jsonl").stat().st_mtime_ns == written
    # As long, and saved within the same second: what Python's own cache of modules would take for the old one.
    (rows.parent / "my_eval.py").write_text(MODULE.replace('"please" in answer', '"pl" not in answer'))
    assert ask() == 1
    assert read_json(out.path / "evaluations" / "metrics.json")["mine"]["score"]["title"] == "score"


def test_the_fingerprint_of_a_function_from_python(tmp_path: Path) -> None:
    def judge(limit: float) -> Any:
        return lambda prompt, answer, row: len(answer) < limit

    assert source_fingerprint(judge(1), None) == source_fingerprint(judge(1), None)
    assert source_fingerprint(judge(1), None) != source_fingerprint(judge(2), None)
    assert source_fingerprint(math.sqrt, None) == source_fingerprint(math.sqrt, None)
