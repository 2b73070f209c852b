"""Strategies of whole answers on a real engine: repeated by their seed beside others, and every token counted."""

from __future__ import annotations

import pytest
import torch

from posttrain.config.strategies import PREFIX_TOKENS, STRATEGY_KINDS, strategy_of
from posttrain.config.strategies.base import StepStrategy
from posttrain.inference.drawing import ENDED_EARLY
from posttrain.inference.run import solve_all
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.solving import Asked
from posttrain.rollout.native import NativeEngine
from posttrain.types import Message, RowRef, Task
from tests.encoding import encoder_of
from tests.fixtures import tiny_model

SHORT = {"max_new_tokens": 12}
SPACES = {"kind": "function", "function": "tests.unit.inference.test_whole_answers_for_real:first_letter"}
"""A random model says nothing of sense: answers are one where their first characters are of one kind."""
STRATEGIES = {
    "best_of_n": {"n": 3, "scorer": "logprob", "sampling": SHORT},
    "self_consistency": {"n": 6, "answers": SPACES, "sampling": SHORT},
    "early_stopping_consistency": {"n": 6, "window": 2, "answers": SPACES, "sampling": SHORT},
    "adaptive_consistency": {"n": 6, "threshold": 0.7, "answers": SPACES, "sampling": SHORT},
    "deepconf": {"n": 6, "warmup": 2, "keep": 0.5, "group": 3, "consensus": None, "answers": SPACES, "sampling": SHORT},
    "likeliest_answer": {"beams": 3, "sampling": SHORT},
}
PROMPTS = ("2 + 2?", "Who are you?", "2 + 2?", "A longer question, which has more tokens than the others.")


def first_letter(text):
    return "yes" if text[:1].isascii() and text[:1].isalnum() else "no"


class Counting(NativeEngine):
    """Counts what it gives out."""

    sampled = 0

    async def generate_one(self, request):
        completion = await super().generate_one(request)
        self.sampled += len(completion.ids)
        return completion


@pytest.fixture(scope="module")
def model():
    encoder = encoder_of()
    return encoder, tiny_model("llama", vocab=len(encoder.tokenizer), dtype=torch.float64)


def solutions(model, kind, prompts, at_once=4, seed=0):
    encoder, weights = model
    engine = Counting(weights, decode=encoder.tokens.decode, prefix_tokens=PREFIX_TOKENS)
    tasks = [Task((Message("user", text),), None, RowRef("prompts", at)) for at, text in enumerate(prompts, 1)]
    with Scorers() as scorers:
        strategy = strategy_of({"kind": kind, **STRATEGIES[kind]})
        found = solve_all(Asked(engine, encoder, scorers, seed), tasks, strategy, at_once=at_once)
    assert engine.sampled == sum(one.spent.sampled for one in found) == sum(recounted(one.nodes) for one in found)
    return found


def written(solution):
    """All that is to be repeated, without times."""
    nodes = [(node.kind, node.parents, node.before_ids, node.ids, node.note, node.answer) for node in solution.nodes]
    return solution.answer, solution.chosen, solution.stopped, nodes


@pytest.mark.parametrize("kind", [*STRATEGIES])
def test_solutions_are_repeated_alone_and_beside_others(model, kind):
    together = [written(one) for one in solutions(model, kind, PROMPTS)]
    assert together == [written(one) for one in solutions(model, kind, PROMPTS, at_once=1)]
    assert [written(one) for one in solutions(model, kind, PROMPTS[1:2])] == together[1:2]
    draws = kind != "likeliest_answer"
    # an equal prompt gets draws of its own, and another seed others
    assert (together[0] != together[2]) is draws
    assert (together != [written(one) for one in solutions(model, kind, PROMPTS, seed=1)]) is draws


def test_stopping_early_saves_tokens_and_keeps_the_draws(model):
    whole = solutions(model, "self_consistency", PROMPTS)
    for kind in ("early_stopping_consistency", "adaptive_consistency", "deepconf"):
        stopped = solutions(model, kind, PROMPTS)
        for one, plain in zip(stopped, whole, strict=True):
            for node, other in zip(one.nodes, plain.nodes, strict=False):
                # the same draw, or its beginning
                assert other.ids[: len(node.ids)] == node.ids
                assert len(node.ids) == len(other.ids) or node.note == ENDED_EARLY
        assert sum(one.spent.sampled for one in stopped) < sum(one.spent.sampled for one in whole)
        if kind == "deepconf":
            assert any(node.note == ENDED_EARLY for one in stopped for node in one.nodes)
        else:
            assert any(one.stopped is Stopped.AGREED for one in stopped)


@pytest.mark.parametrize("kind", [*STRATEGIES])
@pytest.mark.parametrize("limit", ["tokens", "seconds"])
def test_spending_has_an_end(model, kind, limit):
    encoder, weights = model
    engine = Counting(weights, decode=encoder.tokens.decode, prefix_tokens=PREFIX_TOKENS)
    task = Task((Message("user", "2 + 2?"),), None, RowRef("prompts", 1))
    settings = {**STRATEGIES[kind], "sampling": {"max_new_tokens": 200}}
    spend = {"tokens": 20} if limit == "tokens" else {"seconds": 0.02}
    with Scorers() as scorers:
        strategy = strategy_of({"kind": kind, **settings, "spend": spend})
        (found,) = solve_all(Asked(engine, encoder, scorers), [task], strategy)
    assert engine.sampled == found.spent.sampled == recounted(found.nodes)
    assert found.stopped is Stopped(limit)
    assert found.spent.sampled == 20 if limit == "tokens" else found.spent.seconds < 5


def test_every_strategy_of_whole_answers_is_here():
    own = {kind for kind, settings in STRATEGY_KINDS.items() if settings.__module__.endswith("strategies.sampling")}
    assert own == set(STRATEGIES) and not any(issubclass(STRATEGY_KINDS[kind], StepStrategy) for kind in own)
