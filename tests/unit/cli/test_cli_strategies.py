"""`posttrain generate --strategy`: from words of the command line to a strategy."""

from __future__ import annotations

import pytest

from posttrain.cli.strategies import require_models_known, strategy_given
from posttrain.config.strategies import BestOfN
from posttrain.errors import ConfigError, PosttrainError, UnknownKeyError


def test_keys_are_set_as_in_a_recipe():
    made = strategy_given("best_of_n", ["n=4", "sampling.top_p=0.9"], "runs/mine/reward/model", {"temperature": 0.5})
    assert made == BestOfN(n=4, scorer="runs/mine/reward/model", sampling={"temperature": 0.5, "top_p": 0.9})


def test_an_assignment_wins_over_an_option():
    made = strategy_given("best_of_n", ["scorer=logprob", "sampling.temperature=0.3"], None, {"temperature": 0.5})
    assert made.sampling.temperature == 0.3


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("n", "this does not set anything"),
        ("=4", "this does not set anything"),
        ("n.=4", "this does not set anything"),
        ("scorer.kind=self", "`scorer` is a value, not a group of keys"),
    ],
)
def test_what_sets_nothing_is_refused(assignment, problem):
    with pytest.raises(ConfigError, match=problem):
        strategy_given("best_of_n", ["scorer=logprob", assignment], None, {})


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(UnknownKeyError, match="did you mean `best_of_n`"):
        strategy_given("best_of_m", [], None, {})


def test_sampling_of_the_command_goes_to_the_strategy_that_draws():
    made = strategy_given("few_shot", ["demonstrations.path=a.jsonl", "then=self_consistency"], None, {"top_p": 0.5})
    assert made.then.sampling.top_p == 0.5

    deeper = [
        "documents=docs",
        "then={kind: few_shot, demonstrations: {path: a.jsonl}, then: {kind: chain_of_thought}}",
    ]
    made = strategy_given("retrieval", deeper, None, {"top_p": 0.5})
    assert made.then.then.sampling.top_p == 0.5
    assert strategy_given("retrieval", ["documents=docs"], None, {"top_p": 0.5}).sampling.top_p == 0.5


@pytest.mark.parametrize(
    ("kind", "assignments", "refusal"),
    [
        ("best_of_n", ["scorer=logprobs"], "did you mean `logprob`"),
        ("best_of_n", ["scorer=nowhere"], "scorer: no model is called 'nowhere'"),
        ("few_shot", ["demonstrations.path=a.jsonl", "then={kind: best_of_n, scorer: nowhere}"], "'nowhere'"),
        ("critique_by", ["critic=nowhere"], "critic: no model is called 'nowhere'"),
    ],
)
def test_a_model_that_is_not_there_is_refused_by_its_name_alone(kind, assignments, refusal):
    with pytest.raises(PosttrainError, match=refusal):
        require_models_known(strategy_given(kind, assignments, None, {}))


@pytest.mark.parametrize("step", ["", "1.5", "true", "[1]"])
def test_a_step_that_is_neither_text_nor_number_is_one_mistake(step):
    with pytest.raises(ConfigError, match="a step ends with a text or after a number of tokens") as refused:
        strategy_given("prm_beam", ["scorer=logprob", f"step={step}"], None, {})
    assert "function-before" not in str(refused.value)


def test_a_slip_of_zeros_is_refused_before_it_fills_the_memory():
    with pytest.raises(ConfigError, match="less than or equal to 100000"):
        strategy_given("self_consistency", ["n=1000000000"], None, {})
