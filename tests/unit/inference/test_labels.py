"""Labels of steps from trees of tries, by hand."""

from __future__ import annotations

import pytest

from posttrain.config.strategies import MCTS, PRMBeam
from posttrain.errors import ConfigError
from posttrain.inference.labels import by_score, step_labels
from posttrain.inference.strategies import mcts, prm_beam
from tests.inference import StepScorers, run, scripted, tree_script

PLAIN = {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]}
TREE = {"": ["a|", "b|"], "a|": ["c|", "4."], "a|c|": ["4.", "5."], "b|": ["5.", "6."]}


def is_four(node):
    return node.answer.endswith("4.")


def tree_of(simulations=40, tree=TREE, **settings):
    solving = scripted(tree_script(tree), scorers=StepScorers(lambda answer: float("4." in answer)))
    given = {"width": 2, "step": "|", "scorer": PLAIN, "value": "state", "exploration": 5.0, **settings}
    return run(mcts.solve(solving, MCTS(simulations=simulations, **given)))


def labelled(rows):
    return {"|".join(row.steps): row.labels for row in rows}


def test_shares_of_right_answers_after_each_step():
    found = tree_of()
    # after a: a|4. a|c|4. a|c|5., of which two are right; after a|c: one of two; after b: none of two
    assert labelled(step_labels(found, is_four, mark="|")) == {
        "a|4.": (2 / 3, 1.0),
        "a|c|4.": (2 / 3, 0.5, 1.0),
        "a|c|5.": (2 / 3, 0.5, 0.0),
        "b|5.": (0.0, 0.0),
        "b|6.": (0.0, 0.0),
    }


def test_hard_labels_say_whether_any_is_right():
    rows = labelled(step_labels(tree_of(), is_four, mark="|", kind="hard"))
    assert rows["a|c|5."] == (1.0, 1.0, 0.0) and rows["b|5."] == (0.0, 0.0)


def test_a_step_trains_once():
    rows = labelled(step_labels(tree_of(), is_four, mark="|", once=True))
    assert sum(labels[0] == 2 / 3 for labels in rows.values()) == 1
    assert sum(len(labels) == 3 and labels[1] == 0.5 for labels in rows.values()) == 1
    assert all(labels[-1] is not None for labels in rows.values())


def test_too_few_tries_give_no_label():
    rows = labelled(step_labels(tree_of(), is_four, mark="|", least=3))
    assert rows["a|c|4."] == (2 / 3, None, 1.0) and rows["b|5."] == (None, 0.0)


def test_answers_that_nobody_can_judge_do_not_count():
    rows = labelled(step_labels(tree_of(), lambda node: None if "5" in node.answer else is_four(node), mark="|"))
    assert rows["a|c|4."] == (1.0, 1.0, 1.0) and rows["a|c|5."] == (1.0, 1.0, None) and rows["b|5."] == (0.0, None)


def test_steps_within_a_rollout_have_no_label_but_the_last():
    solving = scripted(tree_script({"": ["a|"], "a|": ["b|"], "a|b|": ["4."]}),
                       scorers=StepScorers(lambda answer: 1.0, judges_steps=False))  # fmt: skip
    found = run(mcts.solve(solving, MCTS(simulations=1, step="|", scorer=PLAIN)))
    (row,) = step_labels(found, is_four, mark="|")
    assert (row.steps, row.labels) == (("a", "b", "4."), (1.0, None, 1.0))
    assert row.prompt == found.task.prompt and row.row == found.task.row


def test_beams_have_labels_too_and_lookahead_counts_for_none():
    solving = scripted(tree_script(TREE), scorers=StepScorers(lambda answer: float(len(answer))))
    found = run(prm_beam.solve(solving, PRMBeam(n=2, width=1, step="|", scorer="logprob", lookahead=1)))
    assert any(node.kind == "lookahead" for node in found.nodes)
    # the first draw after each step was the lookahead's
    assert labelled(step_labels(found, is_four, mark="|")) == {"a|4.": (1.0, 1.0), "b|6.": (0.0, 0.0)}


def test_steps_of_a_number_of_tokens_are_labelled_where_they_end_with_a_mark():
    # steps of three bytes: "a|b", "c|4", "."
    solving = scripted({"2 + 2?": ["a|bc|4."], "2 + 2?\na|b": ["c|4."], "2 + 2?\na|bc|4": ["."]},
                       scorers=StepScorers(lambda answer: 0.0))  # fmt: skip
    found = run(prm_beam.solve(solving, PRMBeam(n=1, width=1, step=3, scorer="logprob")))
    (row,) = step_labels(found, is_four, mark="|")
    assert (row.steps, row.labels) == (("a", "bc", "4."), (None, None, 1.0))


@pytest.mark.parametrize("wrong", [{"mark": ""}, {"kind": "middle"}, {"least": 0}])
def test_wrong_arguments(wrong):
    with pytest.raises(ConfigError):
        step_labels(tree_of(1), is_four, **wrong)


def test_answers_that_were_drawn_and_never_judged_do_not_count():
    # one simulation below a: of a|c| and a|4. only the first was judged, and then written to its end
    found = tree_of(3)
    assert [node.answer for node in found.nodes if node.kind == "answer" and not node.scores] == ["a|4.", "a|c|4."]
    assert step_labels(found, by_score("rewards"), mark="|") == []
    assert labelled(step_labels(tree_of(), by_score("rewards", above=0.5), mark="|"))["a|4."] == (2 / 3, 1.0)


def test_draws_that_agree_count_in_the_shares_and_are_one_row():
    # after a: 4. three times, 5. once
    found = tree_of(tree={"": ["a|"], "a|": ["4.", "4.", "5.", "4."]}, width=4)
    assert [node.note for node in found.nodes if node.text == "4."] == ["chosen", "said before", "said before"]
    rows = step_labels(found, by_score(), mark="|")
    assert [(row.steps, row.labels) for row in rows] == [(("a", "4."), (0.75, 1.0)), (("a", "5."), (0.75, 0.0))]
