"""Monte Carlo tree search: the first simulations by hand, sums, convergence to the best leaf, and its last choice."""

from __future__ import annotations

import itertools
import random

import pytest

from posttrain.config.strategies import MCTS
from posttrain.errors import ConfigError
from posttrain.inference.search.tree import State, back_up, descend, uct
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import mcts
from tests.inference import StepScorers, run, scripted, tree_script

# Rewards count as they are, so that values are the scores.
PLAIN = {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]}
TREE = {"": ["A|", "B|"], "A|": ["1.", "2."], "B|": ["1.", "2."]}
VALUES = {"A|": 0.6, "B|": 0.5, "A|1.": 0.9, "A|2.": 0.1, "B|1.": 0.5, "B|2.": 0.4}


def solve(simulations, tree=TREE, values=VALUES, how=None, judges_steps=True, **settings):
    solving = scripted(tree_script(tree), scorers=StepScorers(values, judges_steps), **(how or {}))
    given = {"width": 2, "step": "|", "scorer": PLAIN, "exploration": 1.0, "value": "state", **settings}
    found = run(mcts.solve(solving, MCTS(simulations=simulations, **given)))
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled
    return found


def visits(found):
    return {node.answer: node.facts["visits"] for node in found.nodes if node.facts}


# By hand, with UCT = W / N + sqrt(ln N_parent / N):
#   1  the prompt is expanded to A B; A is 0.6              2  B was never visited: 0.5
#   3  A 0.6 + 0.833 > B 0.5 + 0.833; expanded, A1 is 0.9: A has 1.5 of 2
#   4  A 0.75 + 0.741 < B 0.5 + 1.048; expanded, B1 is 0.5: B has 1.0 of 2
#   5  A 0.75 + 0.833 > B 0.5 + 0.833; A2 was never visited, 0.1: A has 1.6 of 3
#   6  A 0.533 + 0.733 < B 0.5 + 0.897; B2 0.4: B has 1.4 of 3
#   7  A 0.533 + 0.773 > B 0.467 + 0.773; A1 0.9 + 1.048 > A2 0.1 + 1.048: A has 2.5 of 4
BY_HAND = [
    {"A|": (1, 0.6)},
    {"A|": (1, 0.6), "B|": (1, 0.5)},
    {"A|": (2, 0.75), "B|": (1, 0.5), "A|1.": (1, 0.9)},
    {"A|": (2, 0.75), "B|": (2, 0.5), "A|1.": (1, 0.9), "B|1.": (1, 0.5)},
    {"A|": (3, 1.6 / 3), "B|": (2, 0.5), "A|1.": (1, 0.9), "A|2.": (1, 0.1), "B|1.": (1, 0.5)},
    {"A|": (3, 1.6 / 3), "B|": (3, 1.4 / 3), "A|1.": (1, 0.9), "A|2.": (1, 0.1), "B|1.": (1, 0.5), "B|2.": (1, 0.4)},
    {"A|": (4, 0.625), "B|": (3, 1.4 / 3), "A|1.": (2, 0.9), "A|2.": (1, 0.1), "B|1.": (1, 0.5), "B|2.": (1, 0.4)},
]


@pytest.mark.parametrize("simulations", range(1, 8))
def test_the_first_simulations_as_by_hand(simulations):
    found = solve(simulations)
    facts = {node.answer: (node.facts["visits"], node.facts["value"]) for node in found.nodes if node.facts}
    wanted = BY_HAND[simulations - 1]
    assert facts.keys() == wanted.keys()
    for answer, (count, mean) in wanted.items():
        assert facts[answer] == (count, pytest.approx(mean)), answer
    assert found.facts["simulations"] == simulations


def test_nothing_is_drawn_or_judged_twice():
    few, many = solve(6), solve(60)
    assert few.spent.sampled == many.spent.sampled == 2 * 2 + 4 * 3
    solving = scripted(tree_script(TREE), scorers=StepScorers(VALUES))
    run(mcts.solve(solving, MCTS(simulations=60, width=2, step="|", scorer=PLAIN, value="state")))
    assert sorted(solving.asked.scorers.by_script.asked) == sorted(VALUES)


def test_the_chosen_answer():
    assert solve(7).answer == "A|1." and solve(7, choose="visited").answer == "A|1."
    # A looks better and is visited more, while the best leaf stands below B.
    values = {"A|": 0.9, "B|": 0.1, "A|1.": 0.7, "A|2.": 0.7, "B|1.": 0.8, "B|2.": 0.0}
    assert solve(40, values=values).answer == "B|1."
    assert solve(40, values=values, choose="visited").answer == "A|1."
    assert solve(40, values=values, choose="value").answer == "A|1."


def test_an_open_state_is_written_to_its_end():
    tree = {"": ["A|", "B|"], "A|": ["b|"], "A|b|": ["c."], "B|": ["d."]}
    for choose in ("completed", "visited", "value"):
        found = solve(1, tree=tree, values={"A|": 0.6, "B|": 0.5}, choose=choose)
        assert found.answer == "A|b|c." and found.nodes[-1].ended and found.nodes[-1].note == "chosen"


def random_tree(seed, depth=3, width=3):
    stream = random.Random(seed)
    tree, values = {}, {}
    for length in range(depth):
        for path in itertools.product("abc"[:width], repeat=length):
            so_far = "".join(f"{letter}|" for letter in path)
            end = "." if length == depth - 1 else "|"
            tree[so_far] = [f"{letter}{end}" for letter in "abc"[:width]]
            values |= {so_far + step: stream.random() for step in tree[so_far]}
    return tree, values


@pytest.mark.parametrize("seed", range(8))
def test_visits_converge_to_the_best_leaf(seed):
    """Against the maximum over all leaves, by enumeration."""
    tree, values = random_tree(seed)
    leaves = {answer: value for answer, value in values.items() if answer.endswith(".")}
    # UCT needs about 1 / gap^2 visits to tell two leaves apart.
    values[max(leaves, key=leaves.__getitem__)] += 0.15
    found = solve(3000, tree=tree, values=values, width=3, choose="visited", exploration=0.7)
    assert found.answer == max(leaves, key=leaves.__getitem__)
    assert sum(count for answer, count in visits(found).items() if answer.count("|") == 1) == 3000


@pytest.mark.parametrize("seed", range(4))
def test_visits_and_values_add_up(seed):
    tree, values = random_tree(seed)
    found = solve(100, tree=tree, values=values, width=3)
    for node in found.nodes:
        below = [child for child in found.nodes if child.parents == (node.number,) and child.facts]
        if not node.facts or not below:
            continue
        total = node.facts["visits"] * node.facts["value"]
        # a state's own value once, and what its children had
        assert node.facts["visits"] == 1 + sum(child.facts["visits"] for child in below)
        own = values[node.answer]
        assert total == pytest.approx(own + sum(child.facts["visits"] * child.facts["value"] for child in below))


def test_no_state_is_deeper_than_it_may_be():
    tree = {"": ["A|", "B|"], "A|": ["c|", "d|"], "B|": ["c|", "d|"]}
    tree |= {state: ["e."] for state in ("A|c|", "A|d|", "B|c|", "B|d|")}
    found = solve(30, tree=tree, values=lambda answer: 0.5, max_depth=2)
    assert all(node.ended for node in found.nodes if node.parents) and found.answer == "A|c|e."


def test_siblings_are_added_as_visits_grow():
    root = State(None, visits=9)
    settings = {"widening": 0.5, "width": 1}
    tree = {"": ["A|", "B|", "C|", "D|"], **{f"{one}|": ["."] for one in "ABCD"}}
    counts = []
    for simulations in (1, 2, 4, 5, 9, 10):
        found = solve(simulations, tree=tree, values=lambda answer: 0.5, **settings)
        counts.append(sum(not node.parents for node in found.nodes))
    # one at first; a second when the prompt has 4 visits, a third when it has 9
    assert counts == [1, 1, 1, 2, 2, 3]
    assert uct(State(None, root), 1.0) == float("inf")


def test_descent_stops_where_there_is_room():
    root = State(None)
    assert descend(root, 1.0, lambda state: 2) is root
    root.children, root.drawn = [State(None, root), State(None, root)], 2
    back_up(root.children[0], 1.0)
    assert descend(root, 1.0, lambda state: 2) is root.children[1]
    assert descend(root, 1.0, lambda state: 3) is root
    assert (root.visits, root.total) == (1, 1.0)


# ---------------------------------------------------------------- values of rollouts


def test_a_scorer_of_whole_answers_values_states_by_rollouts():
    found = solve(2, judges_steps=False, value="auto", values={"A|1.": 0.9, "B|1.": 0.5})
    assert [(node.kind, node.answer) for node in found.nodes] == [
        ("step", "A|"),
        ("step", "B|"),
        ("answer", "A|1."),
        ("answer", "B|1."),
    ]
    assert found.nodes[0].facts == {"visits": 1, "value": 0.9} and found.answer == "A|1."


def test_the_mean_of_several_rollouts():
    values = {"A|1.": 0.9, "A|2.": 0.1}
    found = solve(1, judges_steps=False, value="rollout", rollouts=2, values=values)
    assert found.nodes[0].facts["value"] == pytest.approx(0.5) and found.answer == "A|1."


def test_the_best_rollout_below_the_chosen_state():
    values = {"A|1.": 0.2, "A|2.": 0.9, "B|1.": 0.5, "B|2.": 0.5}
    found = solve(1, judges_steps=False, value="rollout", rollouts=2, values=values, choose="visited")
    assert found.answer == "A|2." and len(found.nodes) == 4


def test_a_limit_of_tokens():
    # two steps of two tokens, then the first rollout of three
    found = solve(
        9, judges_steps=False, value="rollout", values={"A|1.": 0.9, "A|2.": 0.1}, how={"spend": {"tokens": 8}}
    )
    assert found.stopped is Stopped.TOKENS and found.spent.sampled == 8 and found.answer == "A|1."


def test_settings():
    for wrong in ({"simulations": 0}, {"width": 0}, {"exploration": -1.0}, {"widening": 1.0}, {"max_depth": 0}):
        with pytest.raises(ConfigError):
            MCTS(scorer=PLAIN, **wrong)
    with pytest.raises(ConfigError, match="temperature 0"):
        MCTS(scorer=PLAIN, sampling={"temperature": 0.0})
    state = MCTS(scorer=PLAIN, value="state")
    with pytest.raises(ConfigError, match="judges finished answers"):
        StepScorers({}, judges_steps=False).check(state)
    StepScorers({}, judges_steps=False).check(MCTS(scorer=PLAIN))


def test_equal_next_steps_are_one_state_and_a_state_that_only_repeats_is_gone_through():
    tree = {"": ["A|", "A|", "A|"], "A|": ["1.", "1."]}
    found = solve(3, tree=tree, values={"A|": 0.5, "A|1.": 0.9}, width=2)
    assert [node.note for node in found.nodes] == ["", "said before", "chosen", "said before"]
    assert visits(found) == {"A|": 3, "A|1.": 2}
    # with room for a third at the fourth visit, which says the same again
    found = solve(6, tree=tree, values={"A|": 0.5, "A|1.": 0.9}, width=1, widening=0.5)
    assert visits(found) == {"A|": 6, "A|1.": 5}
