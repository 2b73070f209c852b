"""The suite `budget` as a recipe has it: its strategies, their curves, and what names a stage or a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.config import load_recipe, parse_recipe
from posttrain.config.budget import BudgetSuite
from posttrain.config.nested import files_within, models_within, scorers_of, with_scorers
from posttrain.config.paths import models_of
from posttrain.config.strategies import STRATEGY_KINDS
from posttrain.errors import ConfigError

BEST = {"kind": "best_of_n", "n": 4, "scorer": "logprob", "name": "best"}


def suite(**settings) -> BudgetSuite:
    return BudgetSuite(**{"kind": "budget", "name": "spent", "prompts": "sums.jsonl", "samples": 8, **settings})


def test_the_points_are_powers_of_two_unless_given() -> None:
    assert suite().n == (1, 2, 4, 8)
    assert suite(samples=12).n == (1, 2, 4, 8, 12)
    assert suite(n=[8, 2, 2]).n == (2, 8)


def test_a_strategy_without_sampling_draws_as_the_suite() -> None:
    own = {**BEST, "name": "own", "sampling": {"temperature": 0.5}}
    found = suite(strategies=[BEST, own], sampling={"temperature": 0.9, "max_new_tokens": 40})
    first, second = (run.settings.sampling for run in found.runs())
    assert (first.temperature, first.max_new_tokens, second.temperature) == (0.9, 40, 0.5)


def test_a_curve_is_a_run_for_each_value() -> None:
    found = suite(strategies=[BEST], at={"best": {"n": [1, 2]}}, sampling={"max_new_tokens": 40})
    assert [(run.label, run.curve, run.settings.n) for run in found.runs()] == [
        ("best-1", "best", 1),
        ("best-2", "best", 2),
    ]
    assert all(run.settings.sampling.max_new_tokens == 40 for run in found.runs())
    limited = suite(strategies=[BEST], at={"best": {"spend.tokens": [50]}})
    assert [run.settings.spend.tokens for run in limited.runs()] == [50]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"at": {"bets": {"n": [1]}}, "strategies": [BEST]}, "the strategy `bets` is not known"),
        ({"at": {"best": {"n": [1], "choose": ["best"]}}, "strategies": [BEST]}, "over the values of one key"),
        ({"at": {"best": {"n": []}}, "strategies": [BEST]}, "over the values of one key"),
        ({"at": {"best": {"m": [1]}}, "strategies": [BEST]}, "`m` is not a key"),
        ({"at": {"best": {"n": [0]}}, "strategies": [BEST]}, "`n` has a wrong value"),
        ({"at": {"best": {"n": [2, 2]}}, "strategies": [BEST]}, "are named `best-2`"),
        ({"strategies": [BEST, BEST]}, "two strategies are named `best`"),
        ({"n": [9]}, "no choice is made among more answers than are drawn"),
        ({"n": [0]}, "n is below 1"),
        ({"sampling": {"temperature": 0}}, "temperature 0 draws the same answer each time"),
        ({"scorers": {"a b": "logprob"}}, "a b"),
        ({"samples": 1}, "samples"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(settings, problem) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        suite(**settings)
    assert caught.value.remedy


# ---------------------------------------------------------------- in a recipe


RECIPE = """
schema: 1
name: mine
model: embedded
evaluate:
  suites:
    - {name: spent, kind: budget, prompts: sums.jsonl, samples: 4, scorers: {judge: {stage: %s}},
       strategies: [{kind: best_of_n, n: 2, scorer: {stage: %s}}]}
stages:
  - {method: sft, data: sums.jsonl}
  - {method: reward, data: pairs.jsonl}
"""


def recipe_of(tmp_path: Path, scorer: str = "reward", inner: str = "reward"):
    (tmp_path / "sums.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "mine.yaml").write_text(RECIPE % (scorer, inner))
    return load_recipe(tmp_path / "mine.yaml")


def test_a_recipe_reads_back_as_it_was_written(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    again = parse_recipe(recipe.to_yaml())
    assert again.evaluate == recipe.evaluate
    assert [run.label for run in again.evaluate.suites[0].runs()] == ["best_of_n"]


@pytest.mark.parametrize(
    ("names", "key", "problem"),
    [
        (("sft", "reward"), "scorers.judge.stage", "no stage named `sft` trains a reward model"),
        (("reward", "prm"), "scorer.stage", "no stage named `prm` trains a reward model"),
    ],
)
def test_a_scorer_names_a_stage_that_trains_a_reward_model(tmp_path: Path, names, key, problem) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        recipe_of(tmp_path, *names)
    assert key in str(caught.value) and "one of reward" in str(caught.value)


def test_paths_of_scorers_are_relative_to_the_recipe(tmp_path: Path) -> None:
    for name in ("judge", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "sums.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    (tmp_path / "own.yaml").write_text(
        """
schema: 1
model: embedded
evaluate:
  suites:
    - {name: spent, kind: budget, prompts: sums.jsonl, scorers: {judge: judge, rule: {kind: rewards, rewards:
       [{kind: reward_model, model: other}]}}, strategies: [{kind: best_of_n, scorer: {model: judge}}],
       answers: {kind: function, function: "mine.py:final"}}
stages: [{method: sft, data: sums.jsonl}]
"""
    )
    recipe = load_recipe(tmp_path / "own.yaml")
    (found,) = recipe.evaluate.suites
    assert found.scorers["judge"].model == found.strategies[0].scorer.model == str(tmp_path / "judge")
    assert found.scorers["rule"].rewards[0].model == str(tmp_path / "other")
    assert found.scorers["rule"].modules == found.answers.modules == found.modules == str(tmp_path)
    assert ("evaluate.suites.spent.scorers.rule.rewards.0.model", str(tmp_path / "other")) in list(models_of(recipe))
    assert len(list(models_within(found))) == 3


def test_scorers_are_found_and_changed_wherever_they_stand() -> None:
    found = suite(scorers={"a": {"stage": "x"}}, strategies=[{**BEST, "scorer": {"stage": "y"}}])
    assert [path for path, _ in scorers_of(found)] == [("scorers", "a"), ("strategies", 0, "scorer")]
    trained = with_scorers(found, lambda one: one.model_copy(update={"model": f"/{one.stage}", "stage": None}))
    assert [scorer.model for _, scorer in scorers_of(trained)] == ["/x", "/y"]
    assert trained.n == found.n and [scorer.stage for _, scorer in scorers_of(found)] == ["x", "y"]


# ---------------------------------------------------------------- every strategy of the table


NEEDS: dict[str, dict] = {
    "budget_forcing": {"waits": 1},
    "critique_by": {"critic": "embedded"},
    "few_shot": {"demonstrations": "sums.jsonl", "then": {"kind": "best_of_n", "n": 2, "scorer": "logprob"}},
    "retrieval": {"documents": "docs", "then": "chain_of_thought"},
}
"""What a kind needs beside a scorer."""


def entry_of(kind: str) -> dict:
    record = STRATEGY_KINDS[kind]
    needed = "scorer" in record.model_fields and record.model_fields["scorer"].is_required()
    scorer = {"scorer": "logprob"} if needed else {}
    return {"kind": kind, **scorer, **NEEDS.get(kind, {})}


@pytest.mark.parametrize("kind", STRATEGY_KINDS)
def test_every_strategy_draws_as_the_suite_and_reads_back(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sums.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    (tmp_path / "docs").mkdir()
    entry = entry_of(kind)
    recipe = parse_recipe(
        json.dumps(
            {
                "schema": 1,
                "name": "mine",
                "model": "embedded",
                "evaluate": {
                    "suites": [
                        {
                            "name": "spent",
                            "kind": "budget",
                            "prompts": "sums.jsonl",
                            "strategies": [entry],
                            "sampling": {"temperature": 0.9, "max_new_tokens": 600},
                        }
                    ]
                },
                "stages": [{"method": "search", "data": "sums.jsonl", "strategy": entry}],
            }
        ),
        folder=tmp_path,
    )
    (found,) = recipe.evaluate.suites
    (run,) = found.runs()
    assert run.settings.parts[-1].sampling.max_new_tokens == 600
    assert run.settings.parts[-1].sampling.temperature in (0.9, 0.0)  # one that draws nothing has none
    again = parse_recipe(recipe.to_yaml())
    assert again.evaluate == recipe.evaluate and again.stages == recipe.stages
    named = {path[-1]: name for path, name in files_within(found)}
    assert named == {
        "few_shot": {"path": str(tmp_path / "sums.jsonl")},
        "retrieval": {"documents": str(tmp_path / "docs")},
    }.get(kind, {})


def test_a_strategy_that_cannot_draw_as_the_suite_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot draw as the suite does") as caught:
        suite(strategies=[{"kind": "budget_forcing", "max_thinking_tokens": 256}], sampling={"max_new_tokens": 100})
    assert "max_thinking_tokens: 256" in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize(
    ("scorers", "said"),
    [
        ({"judge": {"kind": "logprobb"}}, "did you mean `logprob`?"),
        ({"judge": {"stag": "x"}}, "`scorers.judge.stag` is not a key"),
        ({"judge": {"stag": "x"}}, "did you mean `stage`?"),
        ({"judge": {"kind": "rewards"}}, "`scorers.judge.rewards` is missing"),
    ],
)
def test_mistakes_in_a_named_scorer_are_named(scorers, said) -> None:
    # A scorer's name is no field: its keys were taken for those of the suite.
    with pytest.raises(ConfigError) as caught:
        suite(scorers=scorers)
    assert said in str(caught.value)


def test_the_models_that_are_asked_are_those_of_the_recipe(tmp_path: Path) -> None:
    recipe_of(tmp_path)
    text = (tmp_path / "mine.yaml").read_text().replace("samples: 4,", "samples: 4, models: MODELS,")
    (tmp_path / "mine.yaml").write_text(text.replace("MODELS", "sft"))
    assert load_recipe(tmp_path / "mine.yaml").evaluate.suites[0].models == ("sft",)
    for name in ("sftt", "reward"):
        (tmp_path / "mine.yaml").write_text(text.replace("MODELS", f"[start, {name}]"))
        with pytest.raises(ConfigError, match=f"no model of this recipe is called `{name}`") as caught:
            load_recipe(tmp_path / "mine.yaml")
        assert "models" in str(caught.value) and "start, sft" in str(caught.value)
