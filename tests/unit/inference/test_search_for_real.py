"""The searches on a real engine and a real process reward model, both tiny: repeatable, counted, causal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.config.strategies import (
    DVTS,
    MCTS,
    GraphOfThoughts,
    ParticleFilter,
    PRMBeam,
    StrategySettings,
    TreeOfThoughts,
)
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError
from posttrain.inference.run import solve_all
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import Node, Solution, recounted
from posttrain.inference.solving import Asked
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders.export import ExportSettings
from posttrain.models.reward.export import _write
from posttrain.models.reward.scoring import RewardModel, load_reward
from posttrain.models.tree.heads import with_head
from posttrain.rollout.engine import FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.types import Feedback, Message, RowRef, Task
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML")
MARK = "e"
PRM = {"kind": "reward_model", "model": "steps"}


def reward_folder(folder: Path, mark: str, aggregate: str = "last") -> RewardModel:
    rule = RewardRule("steps", steps=aggregate, step_mark=mark)  # type: ignore[arg-type]
    model = with_head(tiny_model("llama", vocab=len(TOKENIZER)), init="normal", pad_token_id=TOKENIZER.pad_token_id)
    settings = ExportSettings(merge=True, stop_ids=(), info={})
    _write(model, TOKENIZER, folder, settings, None, rule=rule, encoding=EncoderSettings(), statistics={})
    return load_reward(folder)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return reward_folder(tmp_path_factory.mktemp("steps"), MARK)


def engine_and_encoder() -> tuple[NativeEngine, Encoder]:
    encoder = Encoder(TOKENIZER, EncoderSettings())
    model = tiny_model("llama", vocab=len(TOKENIZER), seed=1)
    with torch.no_grad():
        # Large logits, of either sign, for the mark and the stop token: answers of several steps, some of which end.
        model.lm_head.weight[encoder.tokens.ids(MARK)[0]] *= 6
        model.lm_head.weight[min(encoder.stop_ids)] *= 2
    return NativeEngine(model, decode=encoder.tokens.decode), encoder


def task_of(number: int) -> Task:
    return Task((Message("user", f"{number} + 2?"),), "4", RowRef("prompts", number))


def solved(strategy: StrategySettings, numbers: list[int], model: RewardModel, seed: int = 0) -> list[Solution]:
    engine, encoder = engine_and_encoder()
    with Scorers(models={"steps": model}) as scorers:
        asked = Asked(engine, encoder, scorers, seed=seed)
        return solve_all(asked, [task_of(number) for number in numbers], strategy)


def tree(solution: Solution) -> list[tuple[object, ...]]:
    return [
        (node.kind, node.parents, node.ids, node.note, *map(rounded, (node.facts, node.scores)))
        for node in solution.nodes
    ]


def rounded(values: dict[str, float]) -> dict[str, float]:
    """The engine's log-probs differ in their last digits with what else is in its batch."""
    return {name: round(value, 4) for name, value in values.items()}


SHORT = {"sampling": {"max_new_tokens": 24, "temperature": 1.0}}
STRATEGIES: dict[str, StrategySettings] = {
    "prm_beam": PRMBeam(n=4, width=2, step=MARK, max_steps=4, scorer=PRM, **SHORT),
    "lookahead": PRMBeam(
        n=4, width=2, step=MARK, max_steps=3, lookahead=1, scorer={**PRM, "aggregate": "min"}, **SHORT
    ),
    "dvts": DVTS(n=4, width=2, step=MARK, max_steps=4, scorer={**PRM, "aggregate": "mean"}, choose="weighted", **SHORT),
    "particle_filter": ParticleFilter(n=4, step=MARK, max_steps=4, scorer={**PRM, "aggregate": "product"}, **SHORT),
    "mcts": MCTS(simulations=6, width=2, step=MARK, max_depth=3, scorer=PRM, **SHORT),
    "mcts by rollouts": MCTS(simulations=6, width=2, step=4, max_depth=3, scorer="logprob", value="rollout", **SHORT),
    "tree_of_thoughts": TreeOfThoughts(k=2, keep=2, step=4, max_steps=2, judgements=2, judge_tokens=6, **SHORT),
    "depth": TreeOfThoughts(
        k=2, step="sentence", search="depth", judge="scorer", scorer="logprob", floor=-99.0, **SHORT
    ),
    "graph_of_thoughts": GraphOfThoughts(generate=2, keep=2, merges=2, scorer="self", **SHORT),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_solutions_are_repeated_alone_and_beside_others_and_their_tokens_recounted(
    name: str, steps: RewardModel
) -> None:
    strategy = STRATEGIES[name]
    beside = solved(strategy, [1, 2, 3], steps)
    (alone,) = solved(strategy, [2], steps)
    assert tree(alone) == tree(beside[1]) and alone.answer == beside[1].answer
    assert alone.spent.sampled == recounted(alone.nodes) == sum(len(node.ids) for node in alone.nodes) > 0
    (other,) = solved(strategy, [2], steps, seed=1)
    assert tree(other) != tree(alone)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_limit_of_tokens_is_kept_exactly(name: str, steps: RewardModel) -> None:
    strategy = STRATEGIES[name].changed(spend={"tokens": 30})
    beside = solved(strategy, [1, 2], steps)
    (alone,) = solved(strategy, [2], steps)
    assert all(solution.spent.sampled <= 30 for solution in beside) and tree(alone) == tree(beside[1])
    assert alone.chosen is not None


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_seconds_are_a_bound_too(name: str, steps: RewardModel) -> None:
    (found,) = solved(STRATEGIES[name].changed(spend={"seconds": 1e-9}), [2], steps)
    assert found.spent.sampled == 0 and found.answer == ""


# ---------------------------------------------------------------- steps and their scores


def scores_of(model: RewardModel, text: str, complete: bool) -> tuple[float, ...]:
    row = Feedback((Message("user", "2 + 2?"),), (Message("assistant", text, complete=complete),), True, RowRef("x", 1))
    ((rating,),) = [list(model.score_rows([row]))]
    assert rating.steps is not None
    return rating.steps[0]


@pytest.mark.parametrize("mark", ["e", "\n", "\n\n", " | "])
def test_scores_of_a_part_are_the_first_scores_of_the_whole(mark: str, tmp_path: Path) -> None:
    model = reward_folder(tmp_path, mark)
    pieces = ["a b", "c", "ü 🙂", "d"]
    whole = scores_of(model, mark.join(pieces), complete=True)
    assert len(whole) == 4
    for count in (1, 2, 3):
        part = scores_of(model, mark.join(pieces[:count]) + mark, complete=False)
        assert part == pytest.approx(whole[:count], abs=1e-5)


@pytest.mark.parametrize("complete", [True, False])
def test_a_response_that_ends_with_the_mark_has_as_many_scores_as_steps(complete: bool, steps: RewardModel) -> None:
    part = scores_of(steps, "aebe", complete=False)
    assert len(part) == 2
    assert scores_of(steps, "aebe", complete=complete) == pytest.approx(part, abs=1e-5)
    assert len(scores_of(steps, "aebe ", complete=complete)) == 2
    # one score stays where there is no step at all
    assert len(scores_of(steps, "e", complete=complete)) == len(scores_of(steps, "ae", complete=complete)) == 1


def test_nodes_have_a_score_for_each_step_of_their_answer(steps: RewardModel) -> None:
    longest = 0
    for found in solved(STRATEGIES["prm_beam"], [1, 2, 3, 4], steps):
        for node in found.nodes:
            # What follows the last mark is a step if it says anything; an answer has one score at least.
            steps_of = node.answer.count(MARK) + bool(node.answer.rpartition(MARK)[2].strip())
            assert len(node.step_scores) == max(1, steps_of), node.answer
            assert node.scores["reward"] == node.step_scores[-1]
            longest = max(longest, steps_of)
            for parent in node.parents:
                before = found.nodes[parent].step_scores
                assert node.step_scores[: len(before)] == pytest.approx(before, abs=1e-5)
    assert longest > 2


@pytest.mark.parametrize("name", ["prm_beam", "dvts", "particle_filter", "mcts"])
def test_other_steps_than_the_reward_models_are_refused_before_anything_is_drawn(name: str, steps: RewardModel) -> None:
    engine, encoder = engine_and_encoder()
    with Scorers(models={"steps": steps}) as scorers, pytest.raises(ConfigError, match="different steps") as refused:
        solve_all(Asked(engine, encoder, scorers), [task_of(1)], STRATEGIES[name].changed(step="\n"))
    # What is found is a newline. Single quotes would hold a backslash and an n for YAML, in which steps are written.
    assert 'step: "\\n"' in refused.value.found and 'step: "e"' in refused.value.remedy


def test_a_tree_search_by_rollouts_may_part_answers_as_it_likes(steps: RewardModel) -> None:
    strategy = MCTS(simulations=2, width=2, step=4, scorer=PRM, value="rollout", **SHORT)
    (found,) = solved(strategy, [2], steps)
    assert found.answer and any(node.finish is FinishReason.LENGTH for node in found.nodes)


def test_a_piece_of_a_node_has_no_tokens() -> None:
    node = Node(3, "proposal", (1,), (), (1, 2), (), (5, 6), (-0.5, -0.5), FinishReason.STOP_TOKEN, "1. a", "1. a")
    part = node.part(7, "thought", "a", "x\na")
    assert (part.number, part.parents, part.ids, part.text, part.answer) == (7, (3,), (), "a", "x\na")
    assert recounted([node, part]) == 2
