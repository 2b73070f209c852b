"""Beams, separate trees and particles on trees of steps worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posttrain.config.strategies import DVTS, ParticleFilter, PRMBeam
from posttrain.errors import ConfigError
from posttrain.inference.scorers import ABSTAINED
from posttrain.inference.search.values import copies, softmax, value_of
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import dvts, particle_filter, prm_beam
from tests.inference import StepScorers, run, scripted, tree_script

PRM = {"kind": "reward_model", "model": "scripted"}

TREE = {
    "": ["a|", "b|", "c|", "d."],
    "a|": ["x."],
    "b|": ["e.", "f|"],
    "b|f|": ["g.", "h."],
    "c|": ["y."],
}
SCORES = {"a|": 0.1, "b|": 0.9, "c|": 0.5, "d.": 0.7, "b|e.": 0.6, "b|f|": 0.8, "b|f|g.": 0.3, "b|f|h.": 0.95}


def solving_of(tree=TREE, scores=SCORES, **how):
    return scripted(tree_script(tree), scorers=StepScorers(scores), **how)


def beam(**settings):
    return PRMBeam(**{"n": 4, "width": 2, "step": "|", "scorer": PRM, **settings})


def notes(solution):
    return {node.answer: node.note for node in solution.nodes}


# ---------------------------------------------------------------- beams


def test_the_best_go_on_and_an_ended_answer_takes_its_place_along():
    solving = solving_of()
    found = run(prm_beam.solve(solving, beam()))
    # Of a b c d the best two are b and d; d has ended, so one place is left: b. Of e f that is f, of g h it is h.
    assert [node.answer for node in found.nodes] == ["a|", "b|", "c|", "d.", "b|e.", "b|f|", "b|f|g.", "b|f|h."]
    assert found.answer == "b|f|h." and found.stopped is Stopped.DONE
    assert notes(found) == {
        **dict.fromkeys(("b|", "d.", "b|e.", "b|f|", "b|f|g."), ""),
        **{"a|": "pruned", "c|": "pruned", "b|f|h.": "chosen"},
    }
    assert found.facts == {"finished": 4, "rounds": 3}
    assert [node.answer for node in found.answers] == ["d.", "b|e.", "b|f|g.", "b|f|h."]


def test_the_best_and_not_the_first_finished_answer_is_chosen():
    worse = {**SCORES, "b|f|h.": 0.2, "b|f|g.": 0.1}
    assert run(prm_beam.solve(solving_of(scores=worse), beam())).answer == "d."


def test_tokens_are_recounted_and_each_answer_is_judged_once():
    solving = solving_of()
    found = run(prm_beam.solve(solving, beam()))
    # two bytes each; d, e, g and h have a stop token too
    assert found.spent.sampled == 8 * 2 + 4 == recounted(found.nodes) == solving.asked.engine.sampled
    assert solving.asked.scorers.by_script.asked == [node.answer for node in found.nodes]


def test_steps_continue_the_ids_that_were_sampled():
    found = run(prm_beam.solve(solving_of(), beam()))
    for node in found.nodes:
        for parent in node.parents:
            assert node.before_ids == found.nodes[parent].path_ids


def test_the_last_step_goes_to_the_end():
    tree = {"": ["a|", "b|"], "a|": ["c|"], "a|c|": ["d|"], "a|c|d|": ["e."], "b|": ["z."]}
    scores = {"a|": 0.9, "b|": 0.1, "a|c|d|e.": 0.5}
    found = run(prm_beam.solve(solving_of(tree, scores), beam(n=2, max_steps=2)))
    assert found.answer == "a|c|d|e." and found.nodes[-1].ended and found.facts["rounds"] == 2


def test_lookahead_scores_a_step_by_what_follows_and_keeps_nothing_of_it():
    tree = {"": ["a|", "b|"], "a|": ["bad."], "b|": ["good."]}
    scores = {"a|": 0.9, "b|": 0.1, "a|bad.": 0.0, "b|good.": 1.0}
    assert run(prm_beam.solve(solving_of(tree, scores), beam(n=2))).answer == "a|bad."
    solving = solving_of(tree, scores)
    found = run(prm_beam.solve(solving, beam(n=2, lookahead=1)))
    ahead = [node for node in found.nodes if node.kind == "lookahead"]
    assert [node.answer for node in ahead] == ["a|bad.", "b|good."] and found.answer == "b|good."
    assert found.nodes[found.chosen].kind == "answer" and found.nodes[1].scores == {"reward": 1.0}
    assert all(request.sampling.temperature == 0 for request in solving.asked.engine.requests[2:4])
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled


def test_a_weighted_vote_among_the_finished():
    tree = {"": ["4.", "5.", "so 4.", "6."]}
    scores = {"4.": 0.1, "so 4.": 0.2, "5.": 0.9, "6.": -3.0}
    vote = run(prm_beam.solve(solving_of(tree, scores), beam(choose="weighted", width=1)))
    assert vote.answer == "so 4."
    assert run(prm_beam.solve(solving_of(tree, scores), beam(width=1))).answer == "5."


def test_an_answer_that_was_cut_is_chosen_only_where_none_ended():
    tree = {"": ["ok.", "longer..."]}
    scores = {"ok.": 0.1, "longer": 0.9, "longe": 0.9}
    limited = {"max_new_tokens": 5}
    found = run(prm_beam.solve(solving_of(tree, scores, sampling=limited), beam(n=2)))
    assert found.answer == "ok."
    found = run(prm_beam.solve(solving_of({"": ["longer..."]}, scores, sampling=limited), beam(n=2)))
    assert found.answer == "longe" and not found.nodes[0].ended


def test_when_the_tokens_end_what_was_drawn_is_judged():
    # 2 + 2 + 2 + 3 for the first steps, then e (3 tokens) is the last that can be paid for
    found = run(prm_beam.solve(solving_of(spend={"tokens": 12}), beam()))
    assert found.spent.sampled == 12 and found.stopped is Stopped.TOKENS
    assert found.answer == "d."
    better = {**SCORES, "b|e.": 0.99}
    assert run(prm_beam.solve(solving_of(scores=better, spend={"tokens": 12}), beam())).answer == "b|e."


def test_a_scorer_of_whole_answers_is_refused_before_anything_is_drawn():
    rewards = {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]}
    scorers = StepScorers({}, judges_steps=False)
    for settings in (beam(scorer=rewards), DVTS(n=4, width=2, scorer=rewards), ParticleFilter(n=4, scorer=rewards)):
        with pytest.raises(ConfigError, match="judges finished answers"):
            scorers.check(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 6, "width": 4}, "cannot be shared out"),
        ({"n": 0}, "greater than or equal to 1|at least 1"),
        ({"sampling": {"temperature": 0.0}}, "temperature 0 draws the same answer"),
        ({"step": ""}, "a step has no end"),
        ({"step": 0}, "a step has no end"),
        ({"lookahead": -1}, "0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        beam(**settings)


# ---------------------------------------------------------------- separate trees


def test_each_tree_keeps_its_own_best():
    # The first tree has a and b, the second c and d: a beam would go on with a and b.
    tree = {"": ["a|", "b|", "c|", "d|"], "b|": ["e.", "f."], "d|": ["g.", "h."], "a|": ["x."]}
    scores = {"a|": 0.8, "b|": 0.9, "c|": 0.1, "d|": 0.2, "b|e.": 0.3, "b|f.": 0.4, "d|g.": 0.7, "d|h.": 0.6}
    found = run(dvts.solve(solving_of(tree, scores), DVTS(n=4, width=2, step="|", scorer=PRM)))
    assert [node.answer for node in found.nodes[4:]] == ["b|e.", "b|f.", "d|g.", "d|h."]
    assert found.answer == "d|g." and found.facts["finished"] == 2
    assert notes(found)["a|"] == notes(found)["c|"] == "pruned"


def test_a_tree_that_ended_waits_for_the_others():
    tree = {"": ["a.", "b|"], "b|": ["c|"], "b|c|": ["d."]}
    scores = {"a.": 0.5, "b|": 0.1, "b|c|": 0.1, "b|c|d.": 0.4}
    found = run(dvts.solve(solving_of(tree, scores), DVTS(n=2, width=1, step="|", scorer=PRM)))
    assert found.answer == "a." and found.facts == {"finished": 2, "rounds": 3}


# ---------------------------------------------------------------- particles


def test_copies_of_systematic_resampling_are_their_expectation_rounded():
    weights = softmax([0.3, 1.2, -0.7, 2.0, ABSTAINED])
    totals = np.zeros(5)
    for seed in range(2000):
        drawn = copies(weights, 7, np.random.default_rng(seed))
        assert sum(drawn) == 7
        for count, weight in zip(drawn, weights, strict=True):
            assert math.floor(7 * weight) <= count <= math.ceil(7 * weight)
        totals += drawn
    assert np.abs(totals / 2000 - 7 * np.array(weights)).max() < 0.05


def test_multinomial_resampling_has_the_same_expectation_and_more_variance():
    weights = [0.5, 0.3, 0.2, 0.0]
    of = {
        how: np.array([copies(weights, 10, np.random.default_rng(seed), how) for seed in range(3000)])
        for how in ("systematic", "multinomial")
    }
    for drawn in of.values():
        assert np.abs(drawn.mean(axis=0) - 10 * np.array(weights)).max() < 0.1 and not drawn[:, 3].any()
    # multinomial: n p (1 - p)
    assert np.allclose(of["multinomial"].var(axis=0)[:3], [2.5, 2.1, 1.6], atol=0.2)
    assert of["systematic"].var(axis=0).max() < 0.3


def test_weights():
    assert softmax([0.0, math.log(3)]) == pytest.approx([0.25, 0.75])
    assert softmax([0.0, math.log(9)], 2.0) == pytest.approx([0.25, 0.75])
    assert softmax([ABSTAINED, 1.0]) == [0.0, 1.0] and softmax([ABSTAINED, ABSTAINED]) == [0.5, 0.5]
    assert value_of(0.0, beam().scorer) == 0.5 and value_of(-1e4, beam().scorer) == 0.0
    assert value_of(1e4, beam().scorer) == 1.0 and value_of(ABSTAINED, beam().scorer) == 0.0
    product = beam(scorer={**PRM, "aggregate": "product"}).scorer
    assert value_of(math.log(0.25), product) == 0.25
    assert value_of(10.0, beam(scorer="self").scorer) == 1.0 and value_of(-0.5, beam(scorer="logprob").scorer) < 1


def test_particles_of_no_weight_die_and_copies_go_on_by_draws_of_their_own():
    tree = {"": ["a|", "b|", "c|", "d|"], "b|": ["e.", "f.", "g.", "h."]}
    # b has all the weight: four copies of it
    scores = {"a|": -99.0, "b|": 99.0, "c|": -99.0, "d|": -99.0, "b|e.": 1.0, "b|f.": 3.0, "b|g.": 2.0, "b|h.": 0.0}
    solving = solving_of(tree, scores)
    found = run(particle_filter.solve(solving, ParticleFilter(n=4, step="|", scorer=PRM)))
    assert [node.answer for node in found.nodes[4:]] == ["b|e.", "b|f.", "b|g.", "b|h."]
    assert found.answer == "b|f." and found.nodes[1].facts == {"weight": pytest.approx(1.0), "copies": 4}
    assert found.nodes[0].note == "pruned" and found.nodes[0].facts["copies"] == 0
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled == 4 * 2 + 4 * 3


def test_ended_particles_stay_particles():
    tree = {"": ["a.", "b|"], "b|": ["c.", "d."]}
    scores = {"a.": 99.0, "b|": -99.0, "b|c.": 0.0}
    found = run(particle_filter.solve(solving_of(tree, scores), ParticleFilter(n=2, step="|", scorer=PRM)))
    # both particles are the ended one now, and nothing goes on
    assert found.answer == "a." and len(found.nodes) == 2 and found.nodes[0].facts["copies"] == 2


def test_an_ended_particle_weighs_as_often_as_it_was_drawn():
    # a is drawn three times and b once; then three a weigh as much as b|c, which is of its score
    tree = {"": ["a.", "b|", "z|", "z|"], "b|": ["c|"], "b|c|": ["d."]}
    scores = {"a.": math.log(3), "b|": 0.0, "z|": ABSTAINED, "b|c|": math.log(9), "b|c|d.": 0.0}
    found = run(particle_filter.solve(solving_of(tree, scores), ParticleFilter(n=4, step="|", scorer=PRM)))
    # 3/4 of the first weights, and 3 * 3 of 18 of the second
    assert found.nodes[0].facts["weight"] == pytest.approx(0.5)
    assert found.nodes[4].answer == "b|c|" and found.nodes[4].facts["weight"] == pytest.approx(0.5)


def test_resampling_is_repeated_by_its_seed_and_differs_with_the_prompt():
    def drawn(**how):
        tree = {"": [f"{letter}|" for letter in "abcdefgh"]}
        script = tree_script({**tree, **{f"{letter}|": ["x."] for letter in "abcdefgh"}}, how.get("prompt", "2 + 2?"))
        solving = scripted(script, scorers=StepScorers(lambda answer: float(ord(answer[0]) % 3)), **how)
        settings = ParticleFilter(n=8, step="|", scorer=PRM, resampling="multinomial")
        return [node.answer for node in run(particle_filter.solve(solving, settings)).nodes]

    assert drawn() == drawn()
    assert len({tuple(drawn(prompt=f"{number} + 2?")) for number in range(5)}) > 1


def test_equal_steps_are_one_beam_whose_draws_the_others_share():
    tree = {"": ["a|", "a|", "b|", "c|"], "a|": ["1.", "2.", "3."], "b|": ["4.", "5."]}
    scores = {"a|": 0.9, "b|": 0.5, "c|": 0.1, **{f"a|{n}.": 0.1 * n for n in (1, 2, 3)}, "b|4.": 0.2, "b|5.": 0.4}
    found = run(prm_beam.solve(solving_of(tree, scores), beam()))
    assert [node.answer for node in found.nodes[4:]] == ["a|1.", "a|2.", "b|4.", "b|5."] and found.answer == "b|5."
    # a alone: all four draws go on with it
    found = run(prm_beam.solve(solving_of({"": ["a|"], "a|": ["1.", "2.", "3."]}, scores), beam()))
    assert [node.answer for node in found.nodes[4:]] == ["a|1.", "a|2.", "a|3.", "a|1."]
    assert prm_beam.shares(7, 3) == [3, 2, 2] and prm_beam.shares(0, 0) == []
