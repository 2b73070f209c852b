"""Many prompts side by side: as if each had been alone."""

from __future__ import annotations

import asyncio

import pytest
import torch

from posttrain.config.strategies import BestOfN
from posttrain.data.encode import Encoder
from posttrain.errors import ConfigError, DataError, EmptyDatasetError, ModelError, UnknownKeyError
from posttrain.inference.run import solve, solve_all, tasks_of
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import recounted
from posttrain.inference.solving import Asked
from posttrain.rollout.native import NativeEngine
from posttrain.types import Message
from tests.fixtures import byte_tokenizer, tiny_model

PROMPTS = ["2 + 2?", "3 + 3?", "2 + 2?", "Who are you?"]
STRATEGY = BestOfN(n=3, scorer="logprob", sampling={"max_new_tokens": 6})


@pytest.fixture(scope="module")
def encoder():
    return Encoder(byte_tokenizer(template="CHATML"))


@pytest.fixture(scope="module")
def model(encoder):
    return tiny_model("llama", vocab=len(encoder.tokenizer), dtype=torch.float64)


def asked(model, encoder, seed=0):
    return Asked(NativeEngine(model, decode=encoder.tokens.decode), encoder, Scorers(), seed)


def test_prompts_do_not_disturb_each_other(model, encoder):
    together = solve_all(asked(model, encoder), tasks_of(PROMPTS), STRATEGY)
    for prompt, found in zip(PROMPTS[:2], together, strict=False):
        (alone,) = solve_all(asked(model, encoder), tasks_of(prompt), STRATEGY)
        assert [node.ids for node in alone.nodes] == [node.ids for node in found.nodes]
        assert alone.chosen == found.chosen


def test_equal_prompts_have_draws_of_their_own(model, encoder):
    together = solve_all(asked(model, encoder), tasks_of(PROMPTS), STRATEGY)
    assert [node.ids for node in together[0].nodes] != [node.ids for node in together[2].nodes]


def test_the_seed_repeats_and_another_one_differs(model, encoder):
    draws = [
        [
            node.ids
            for found in solve_all(asked(model, encoder, seed), tasks_of(PROMPTS), STRATEGY)
            for node in found.nodes
        ]
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_one_at_a_time_is_the_same(model, encoder):
    free = solve_all(asked(model, encoder), tasks_of(PROMPTS), STRATEGY)
    narrow = solve_all(asked(model, encoder), tasks_of(PROMPTS), STRATEGY, at_once=1)
    assert [[n.ids for n in a.nodes] for a in free] == [[n.ids for n in a.nodes] for a in narrow]


def test_every_token_is_counted(model, encoder):
    for found in solve_all(asked(model, encoder), tasks_of(PROMPTS), STRATEGY):
        assert found.spent.sampled == recounted(found.nodes) and found.spent.requests == 3


def test_it_works_where_a_loop_runs_already(model, encoder):
    async def notebook():
        return solve_all(asked(model, encoder), tasks_of("2 + 2?"), STRATEGY)

    assert len(asyncio.run(notebook())) == 1


TURNS = [{"role": role, "content": text} for role, text in (("user", "a?"), ("assistant", "1"), ("user", "b?"))]


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        ("2 + 2?", ["2 + 2?"]),
        (["a?", "b?"], ["a?", "b?"]),
        ([{"prompt": "a?", "answer": "1"}], ["a?"]),
        ([{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "1"}]}], ["a?"]),
        (TURNS, ["b?"]),
        ([TURNS, [Message("user", "c?")]], ["b?", "c?"]),
        ((Message("user", "c?"),), ["c?"]),
        ([[{"from": "human", "value": "d?"}]], ["d?"]),
    ],
)
def test_prompts_in_their_natural_forms(prompts, texts):
    assert [task.prompt[-1].content for task in tasks_of(prompts)] == texts


@pytest.mark.parametrize(
    ("prompts", "error"), [([], EmptyDatasetError), (["a?", " "], EmptyDatasetError), ("none.jsonl", DataError)]
)
def test_prompts_that_are_none_are_refused(prompts, error):
    with pytest.raises(error):
        tasks_of(prompts)


def test_a_strategy_by_name_or_entry_and_what_is_none():
    with pytest.raises(UnknownKeyError, match="best_of_n"):
        solve("embedded", "2 + 2?", "best_of_m")
    with pytest.raises(ConfigError, match="strategy"):
        solve("embedded", "2 + 2?", 16)


def test_a_reward_model_does_not_answer(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError):
        solve(tmp_path, "2 + 2?", STRATEGY)


def test_nodes_stand_in_the_order_of_the_calls_not_of_their_ends():
    from tests.inference import run, scripted

    solving = scripted({"2 + 2?": ["a", "b", "c"]})
    slow = asyncio.Event()
    engine = solving.asked.engine
    first = engine.generate_one

    async def generate_one(request):
        if request.completion == 0:
            await slow.wait()
        else:
            slow.set()
        return await first(request)

    engine.generate_one = generate_one

    async def both():
        one, two = await asyncio.gather(solving.sample(1), solving.sample(2))
        (value,) = await solving.ask(solving.task.prompt, kind="value", about=one)
        return solving.solution(two[0]), one[0], value

    found, one, value = run(both())
    assert [node.text for node in found.nodes[:3]] == ["a", "b", "c"] and found.chosen == 1
    assert found.nodes[value.number] is value and value.parents == (one.number,) == (0,)


def test_a_stage_as_scorer_is_known_in_a_recipe_alone(model, encoder):
    with pytest.raises(ConfigError, match="a stage is known in its recipe alone"):
        solve_all(asked(model, encoder), tasks_of("2 + 2?"), BestOfN(n=2, scorer={"stage": "reward"}))
