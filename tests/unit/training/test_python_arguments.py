"""Arguments of a wrong type or in a wrong place, from Python: a named error with a remedy, before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.errors import ConfigError, NonFiniteError, nearest_file
from posttrain.rewards import resolve
from posttrain.training.session_inputs import rewards_of, stage_of
from posttrain.training.stages.sampling_inputs import rubric_of_stage

ROWS = [{"prompt": "2 + 2?", "completion": "4"}]


def refused(call: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("stage", "words"),
    [("embedded", "give the stage first"), (pt.SFT, "write `pt.SFT(...)`, with brackets"), (None, "no stage")],
)
def test_train_wants_a_stage_first(stage: Any, words: str, tmp_path: Path) -> None:
    assert words in refused(lambda: pt.train(stage, "embedded", ROWS, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_rewards_of_a_stage_that_asks_none_are_not_ignored(tmp_path: Path) -> None:
    said = refused(lambda: pt.train(pt.SFT(steps=1), "embedded", ROWS, rewards=[len], out=tmp_path / "run"))
    assert "sft asks none" in said and "leave `rewards` out" in said


def test_what_is_no_reward_is_refused_before_the_model_is_loaded() -> None:
    """It would else raise when the first completion is scored, after the preflight."""
    stage = pt.GRPO(prompts_per_step=2, completions_per_prompt=2)
    assert "`rewards=['math']`" in refused(lambda: rubric_of_stage(stage, [3]))  # type: ignore[list-item]
    assert "did you mean `math`?" in refused(lambda: rubric_of_stage(stage, ["maths"]))
    assert "(prompt, completion, task)" in refused(lambda: rubric_of_stage(stage, [lambda text: 1.0]))


@pytest.mark.parametrize("stage", ["sft", {"method": "sft", "name": "mine", "steps": 3}, pt.SFT(steps=3)])
def test_a_stage_in_each_of_its_forms(stage: Any) -> None:
    made = stage_of(stage)
    assert type(made) is pt.SFT and made.name == ("mine" if isinstance(stage, dict) else "sft")
    assert stage == "sft" or made.steps == 3


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("sftt", "did you mean `sft`?"),
        ({"method": "sftt"}, "did you mean `sft`?"),
        ({"steps": 3}, '{"method": "dpo", "beta": 0.1}'),
        ({"method": "sft", "stepps": 3}, "steps"),
        ({"method": "correction"}, "give one that trains"),
        ("correction", "give one that trains"),
        ("mine.yaml", "pt.run_recipe(pt.load_recipe('mine.yaml'))"),
    ],
    ids=str,
)
def test_a_stage_that_is_none_is_answered(stage: Any, words: str) -> None:
    assert words in refused(lambda: stage_of(stage))


def test_one_reward_stands_for_a_list_of_one() -> None:
    stage = pt.GRPO(prompts_per_step=2, completions_per_prompt=2)
    for reward in ("math", {"kind": "math"}, polite, resolve("math")):
        assert rewards_of(reward, stage) == rewards_of([reward], stage) == (reward,)
    assert rewards_of((), stage) == () == rewards_of((), pt.SFT())
    for odd in (3, b"math", str, None):
        assert 'write `rewards=["math"]`' in refused(lambda odd=odd: rewards_of(odd, stage))


def test_a_share_is_no_held_out_rows(tmp_path: Path) -> None:
    said = refused(lambda: pt.train("sft", "embedded", ROWS, held_out=0.1, out=tmp_path / "run"))
    assert "`pt.SFT(held_out=0.1)`" in said and not (tmp_path / "run").exists()


def test_load_encoder_and_audit_say_what_they_take() -> None:
    assert "write `adapter=pt.LoRA(rank=16)`" in refused(lambda: pt.load("embedded", adapter="lora"))  # type: ignore[arg-type]
    assert "pt.Encoder(loaded.tokenizer" in refused(lambda: pt.Encoder("embedded"))
    assert "`pt.load_reward(PATH)`" in refused(lambda: pt.RewardModel("runs/mine"))  # type: ignore[arg-type]
    assert "`pt.Policy(loaded.model)`" in refused(lambda: pt.Policy("embedded"))  # type: ignore[arg-type]


def polite(prompt: Any, completion: str, task: Any, *, word: str = "please") -> float:
    return float(word in completion)


def anything(prompt: Any, completion: str, task: Any, **options: Any) -> float:
    return 1.0


def test_a_parameter_that_the_function_does_not_have() -> None:
    entry = {"kind": "function", "function": f"{__name__}:polite", "parameters": {"wrod": "thanks"}}
    assert "has no parameter `wrod`" in refused(lambda: resolve(entry))
    assert "did you mean `word`?" in refused(lambda: resolve(entry))
    resolve(entry | {"function": f"{__name__}:anything"})  # takes any keyword


def test_the_nearest_file_ends_as_the_missing_one_does() -> None:
    assert nearest_file("chat.jsonl", ["chats.csv", "chats.jsonl", "chats.tsv"]) == "chats.jsonl"
    assert nearest_file("chat.jsonl", ["chats.csv"]) == "chats.csv"
    assert nearest_file("nofile.jsonl", ["bare.jsonl", "pairs.jsonl"]) is None, "endings make unlike names look alike"


def test_rows_of_one_file_are_named_with_one_path() -> None:
    rows = ["a/b.jsonl, row 3", "a/b.jsonl, row 7", "c.jsonl, row 1", "memory"]
    error = NonFiniteError("loss is not finite", remedy="look", tensors=["loss"], rows=rows)
    assert str(error).startswith("a/b.jsonl, rows 3, 7; c.jsonl, row 1; memory: loss is not finite")
