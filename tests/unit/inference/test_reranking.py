"""Best-of-n by every kind of scorer, each against scores that are computed without it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posttrain.config.strategies import BestOfN
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import recounted
from posttrain.inference.strategies import best_of_n
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.folders.source import ModelSource
from posttrain.models.reward.folders import RewardFolder, start_reward
from posttrain.models.reward.scoring import RewardModel
from posttrain.types import Message
from tests.fixtures import byte_tokenizer, tiny_model
from tests.inference import run, scripted
from tests.unit.rewards.test_rewards_judge import Server, longer_wins

DRAWS = ("one,two,three", "one, four", "5", "one,two,three and more", "0.5, 1/2")


def reward_model(rule: RewardRule) -> RewardModel:
    """A tiny one with a random head."""
    tokenizer = byte_tokenizer(template="CHATML", eos="<|im_end|>", pad_is_eos=True)
    model = tiny_model("llama", vocab=len(tokenizer) + 3)
    loaded = LoadedModel(model, tokenizer, ModelSource("tiny", "folder", Path("tiny"), "model"), "", None)
    started = start_reward(loaded, rule, init="normal", stop_ids=[tokenizer.eos_token_id])
    return RewardModel(RewardFolder(started, rule, EncoderSettings()))


def logits(model: RewardModel, answer: str) -> tuple[list[float], list[str]]:
    """The head's output at each token of an answer, and the tokens' texts: one plain forward of the whole text."""
    encoder = model.encoder
    prompt = encoder.prompt((Message("user", "2 + 2?"),))
    # CHATML ends a turn with a stop token and a line break, where reward models are trained to score.
    ids = [*prompt, *encoder.tokens.ids(answer), *encoder.stop_ids, *encoder.tokens.ids("\n")]
    inner = model.folder.loaded.model
    with torch.no_grad():
        hidden = inner.model(torch.tensor([ids])).last_hidden_state
        values = inner.score(hidden)[0, len(prompt) :, 0].tolist()
    return values, [*answer, "", "\n"]


def solved(scorer, draws=DRAWS, model=None, **options):
    with Scorers(models={} if model is None else {"mine": model}) as scorers:
        solving = scripted({"2 + 2?": list(draws)}, scorers=scorers, **options)
        found = run(best_of_n.solve(solving, BestOfN(n=len(draws), scorer=scorer)))
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled
    return found


def chosen_by(scores):
    return max(range(len(scores)), key=lambda place: scores[place])


def test_an_outcome_model_scores_where_the_answer_ends():
    model = reward_model(RewardRule())
    expected = [logits(model, answer)[0][-1] for answer in DRAWS]
    found = solved({"model": "mine"}, model=model)
    assert [node.scores["reward"] for node in found.nodes] == pytest.approx(expected, abs=1e-4)
    assert found.chosen == chosen_by(expected)
    assert found.spent.scored >= sum(len(answer) for answer in DRAWS)


@pytest.mark.parametrize("pooling", ["last", "steps"])
def test_answers_that_are_all_the_same_have_the_same_score(pooling):
    model = reward_model(RewardRule(pooling=pooling, step_mark="," if pooling == "steps" else ""))
    values, _ = logits(model, "4")
    found = solved({"model": "mine"}, ["4", "4", "4"], model=model)
    assert [node.scores["reward"] for node in found.nodes] == pytest.approx([values[-1]] * 3, abs=1e-4)
    assert found.chosen == 0


AGGREGATES = {
    "last": lambda steps: steps[-1],
    "min": min,
    "mean": lambda steps: sum(steps) / len(steps),
    "product": lambda steps: sum(-math.log1p(math.exp(-step)) for step in steps),
}


@pytest.mark.parametrize("how", [*AGGREGATES])
def test_a_process_model_scores_each_step_and_the_choice_is_by_their_aggregate(how):
    model = reward_model(RewardRule(pooling="steps", step_mark=","))
    steps = []
    for answer in DRAWS:
        values, texts = logits(model, answer)
        steps.append([value for value, text in zip(values, texts, strict=True) if text == ","] + [values[-1]])
    found = solved({"model": "mine", "aggregate": how}, model=model)
    for node, own in zip(found.nodes, steps, strict=True):
        assert node.step_scores == pytest.approx(own, abs=1e-4)
    expected = [AGGREGATES[how](own) for own in steps]
    assert [node.scores["reward"] for node in found.nodes] == pytest.approx(expected, abs=1e-4)
    assert found.chosen == chosen_by(expected)


def test_an_outcome_model_has_no_steps_to_aggregate():
    with Scorers(models={"mine": reward_model(RewardRule())}) as scorers:
        with pytest.raises(ConfigError, match="this reward model scores whole answers") as refusal:
            scorers.check(BestOfN(scorer={"model": "mine", "aggregate": "min"}))
        assert "leave `aggregate` out" in str(refusal.value)


@pytest.mark.parametrize(("per_token", "chosen"), [(True, 1), (False, 2)])
def test_the_models_own_log_prob(per_token, chosen):
    # each token -0.5 but commas, -0.1: the mean is highest with many commas, the sum with few tokens
    scorer = {"kind": "logprob", "per_token": per_token}
    solving = scripted({"2 + 2?": ["one, two", ",,,,,,,", "5"]}, raw_logprobs=True)
    (comma,) = solving.asked.encoder.tokens.ids(",")
    solving.asked.engine.logprob = lambda number: -0.1 if number == comma else -0.5
    found = run(best_of_n.solve(solving, BestOfN(n=3, scorer=scorer)))
    sums = [-0.5 * 8 - 0.1, -0.1 * 7 - 0.5, -0.5 * 2]
    expected = [value / length for value, length in zip(sums, (9, 8, 2), strict=True)] if per_token else sums
    assert [node.scores["logprob"] for node in found.nodes] == pytest.approx(expected)
    assert found.chosen == chosen


def test_the_models_own_marks_are_counted_and_averaged():
    def script(before, draw):
        if "mark" not in before:
            return ["4", "five"][draw]
        return ["7", "10/10, perfect"][draw] if "five" in before else ["9", "nothing"][draw]

    solving = scripted(script)
    found = run(best_of_n.solve(solving, BestOfN(n=2, scorer={"kind": "self", "marks": 2})))
    # 10 stands before "/10", which is no mark of its own; "nothing" is no mark at all
    assert [node.scores["self"] for node in found.nodes[:2]] == [9.0, 8.5] and found.answer == "4"
    assert [(node.kind, node.parents) for node in found.nodes[2:]] == [("value", (0,))] * 2 + [("value", (1,))] * 2
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled


def test_the_model_marks_an_answer_to_a_conversation_that_it_can_read():
    """Who said what, the call that a result belongs to, and the system turn where system turns stand."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "to": "\u00fc"}}}
    turns = (
        Message("system", "Be short."),
        Message("user", "Sum?"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "5"),
        Message("user", "And now?"),
    )
    solving = scripted(lambda before, draw: "7")
    solving.task = replace(solving.task, prompt=turns)
    found = run(best_of_n.solve(solving, BestOfN(n=1, scorer="self")))
    (mark,) = [node for node in found.nodes if node.kind == "value"]
    assert mark.messages[0] == turns[0] and len(mark.messages) == 2
    quoted = 'user: Sum?\nassistant: add({"a": 2, "to": "\u00fc"})\ntool: 5\nuser: And now?'
    assert quoted in mark.messages[1].content and "Be short." not in mark.messages[1].content


def test_rewards_of_the_recipe():
    rewards = [{"kind": "math"}, {"kind": "function", "function": "tests.inference:length_of", "weight": -0.01}]
    found = solved({"kind": "rewards", "rewards": rewards}, ["5", "It is 4.", "4"], answer="4")
    assert [node.scores["rewards"] for node in found.nodes] == pytest.approx([-0.01, 1 - 0.08, 1 - 0.01])
    assert found.answer == "4"


def test_a_judge_compares_the_answers_with_each_other():
    server = Server()
    try:
        server.answer = lambda body: (200, longer_wins(body))
        judge = {"kind": "judge", "url": server.url, "model": "j"}
        found = solved({"kind": "rewards", "rewards": [judge]}, ["4", "four", "It is four."])
    finally:
        server.close()
    assert [node.scores["rewards"] for node in found.nodes] == [0.0, 0.5, 1.0]
    assert found.answer == "It is four." and len(server.seen) == 6
