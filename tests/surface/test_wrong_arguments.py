"""Every public function and class, each parameter with values of the wrong type: it works, or says what it wants.

Nothing else may come out: no AttributeError from inside, no TypeError that names another function, no OSError. The one
exception is Python's own complaint about the call itself, a missing or unknown argument.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.auditing import evaluation_set
from posttrain.config import find_recipe, parse_recipe
from posttrain.data.encode import Encoder
from posttrain.errors import PosttrainError
from posttrain.evaluate.cross_scoring import cross_scores, score_answers
from posttrain.evaluate.reward_scorers import open_scorer
from posttrain.models import load as load_model
from posttrain.rewards import Rubric, resolve
from posttrain.runs.folder import RunFolder
from posttrain.training.run_result import Run
from tests.chat_templates import CHATML
from tests.fake_run import write_fake_run
from tests.fixtures import byte_tokenizer

ROWS = [{"prompt": "2 + 2?", "completion": "4"}]
WRONG: list[Any] = [
    None,
    3,
    -1,
    1.5,
    True,
    "x",
    "",
    b"x",
    [],
    {},
    [3],
    [None],
    {"a": 1},
    object(),
    pt.LoRA,
    Path("not/there.jsonl"),
    lambda *values: 0,
]
"""None, numbers, texts, collections of nothing and of the wrong things, a class for an instance, a path to nowhere."""


def encoder() -> Encoder:
    return Encoder(byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>")))


def right_arguments(folder: Path) -> dict[str, dict[str, Any]]:
    """Arguments with which each function works, or fails for a reason of its own: nothing here loads a model."""
    return {
        "Encoder": {"tokenizer": encoder().tokenizer},
        "EncodedDataset": {"folder": "nowhere"},
        "PosttrainError": {"problem": "a", "remedy": "b"},
        "Run": {"folder": "nowhere", "stage": "sft", "steps": 3},
        "audit": {"examples": ROWS, "progress": False},
        "encode": {"examples": ROWS, "encoder": encoder(), "store": folder / "store"},
        "load": {"name_or_path": "nowhere", "progress": False},
        "load_recipe": {"path": "nowhere.yaml"},
        "load_reward": {"name_or_path": "nowhere"},
        "rate": {"games": [{"prompt": "1", "model_a": "x", "model_b": "y", "winner": "x"}]},
        "read": {"data": ROWS},
        "samples": {"run": "nowhere"},
        "train": {
            "stage": pt.SFT(steps=1),
            "model": "nowhere",
            "data": ROWS,
            "out": folder / "run",
            "progress": False,
        },
        "write_report": {"run_dir": "nowhere"},
    }


def parameters_of(function: Callable[..., Any]) -> list[str]:
    if isinstance(function, type) and hasattr(function, "model_fields"):
        return list(function.model_fields)
    known = inspect.signature(function).parameters.values()
    return [
        parameter.name for parameter in known if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def bare_error(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """What came out that is no error of ours, with its place; None where the call works or is refused in our words."""
    try:
        function(**arguments)
    except PosttrainError as error:
        assert error.remedy and str(error)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        # A single frame below this one: Python could not even begin the call.
        if isinstance(error, TypeError) and len(frames) == 1:
            return None
        return f"{type(error).__name__}: {error} ({frames[-1].filename}:{frames[-1].lineno})"
    return None


def bare_errors(name: str, function: Callable[..., Any], right: dict[str, Any]) -> Iterator[str]:
    for parameter in parameters_of(function):
        for wrong in WRONG:
            if (found := bare_error(function, right | {parameter: wrong})) is not None:
                yield f"{name}({parameter}={wrong!r}): {found}"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", sorted(pt.__all__))
def test_a_wrong_argument_is_refused_by_name(name: str, tmp_path: Path) -> None:
    right = right_arguments(tmp_path).get(name, {})
    assert list(bare_errors(name, getattr(pt, name), right)) == []


@pytest.mark.parametrize("method", ["prompt", "demonstration", "comparison", "feedback", "example"])
def test_the_ways_into_an_encoder(method: str) -> None:
    messages: Any = [{"role": "user", "content": "2 + 2?"}]
    right = {"messages": messages} if method == "prompt" else {}
    assert list(bare_errors(method, getattr(encoder(), method), right)) == []


@pytest.mark.parametrize("method", ["metrics", "lines", "plot", "load"])
def test_a_run_that_is_there(method: str, tmp_path: Path) -> None:
    run = Run.open(write_fake_run(tmp_path / "fake"), "dpo")
    assert list(bare_errors(method, getattr(run, method), {})) == []
    assert list(bare_errors("Run.open", Run.open, {"folder": tmp_path / "fake"})) == []


PARTS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "models.load": (load_model, {"name_or_path": "nowhere"}),
    "rewards.resolve": (resolve, {"spec": {"kind": "math"}}),
    "rewards.Rubric": (Rubric, {}),
    "config.find_recipe": (find_recipe, {"name": "nowhere"}),
    "config.parse_recipe": (parse_recipe, {"text": "a: 1"}),
    "auditing.evaluation_set": (evaluation_set, {}),
    "evaluate.cross_scores": (
        cross_scores,
        {"answers": {"start": ["4"], "dpo": ["5"]}, "rewards": {"judge": {"start": [0.5], "dpo": [0.1]}}},
    ),
    "evaluate.score_answers": (score_answers, {"prompts": ["2 + 2?"], "answers": {"start": ["4"]}, "scorers": {}}),
    "evaluate.open_scorer": (open_scorer, {"model": "nowhere"}),
    "runs.RunFolder": (RunFolder, {"path": "nowhere"}),
}
"""What the pages of docs/ import beside the names of the package."""


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_the_package_that_the_docs_name(name: str) -> None:
    function, right = PARTS[name]
    assert list(bare_errors(name, function, right)) == []
