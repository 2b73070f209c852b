"""Chain of thought: what the model is asked, and the vote over several chains."""

from __future__ import annotations

import pytest

from posttrain.config.strategies import ChainOfThought
from posttrain.errors import ConfigError, RowError
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import chain_of_thought
from posttrain.types import Message
from tests.inference import run, scripted

ASKED = "2 + 2?\nLet's think step by step."
DEMONSTRATIONS = (
    '{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "One and one. So 2."}]}\n'
    '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "Given away: 4."}]}\n'
    '{"messages": [{"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "Three twice. So 6."}]}\n'
)


@pytest.fixture
def shots(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(DEMONSTRATIONS)
    return str(path)


def shown(solving):
    """The conversation of the first request, as (role, text)."""
    return [(turn.role, turn.content) for turn in solving.nodes[0].messages]


def test_the_sentence_follows_the_question():
    solving = scripted({ASKED: ["2 and 2 are 4"]})
    found = run(chain_of_thought.solve(solving, ChainOfThought()))
    assert found.answer == "2 and 2 are 4" and found.task.prompt == (Message("user", "2 + 2?"),)
    assert found.spent.sampled == 14 == recounted(found.nodes) == solving.asked.engine.sampled


def test_an_instruction_of_ones_own_may_stand_in_the_system_turn():
    solving = scripted({"2 + 2?": ["4"]})
    run(chain_of_thought.solve(solving, ChainOfThought(instruction="Reason first.", place="system")))
    assert shown(solving) == [("system", "Reason first."), ("user", "2 + 2?")]


def test_an_instruction_stands_behind_a_system_turn_that_is_there():
    solving = scripted({"2 + 2?": ["4"]})
    solving.prompt = (Message("system", "Be kind."), *solving.prompt)
    run(chain_of_thought.solve(solving, ChainOfThought(place="system")))
    assert shown(solving)[0] == ("system", "Be kind.\n\nLet's think step by step.")


def test_most_chains_win_and_of_equal_ones_the_earlier():
    solving = scripted({ASKED: ["so 5", "so 4", "no idea", "2+2 is 4", "5"]})
    found = run(chain_of_thought.solve(solving, ChainOfThought(votes=4)))
    assert found.answer == "so 4" and found.facts == {"votes": 2, "answers": 4}
    tied = run(chain_of_thought.solve(scripted({ASKED: ["so 5", "so 4", "4", "5"]}), ChainOfThought(votes=4)))
    assert tied.answer == "so 5"


def test_fewer_chains_than_asked_for_still_vote():
    solving = scripted({ASKED: ["so 4", "so 4", "so 5"]}, sampling={"max_new_tokens": 5}, spend={"tokens": 12})
    found = run(chain_of_thought.solve(solving, ChainOfThought(votes=3)))
    assert found.answer == "so 4" and found.stopped is Stopped.TOKENS and found.facts["answers"] == 2


def test_demonstrations_stand_before_the_question_without_the_asked_one(shots):
    solving = scripted({"2 + 2?": ["4"]})
    settings = ChainOfThought(demonstrations={"path": shots, "count": 2, "seed": 1})
    found = run(chain_of_thought.solve(solving, settings))
    turns = shown(solving)
    assert found.facts["demonstrations"] == 2 and turns[-1] == ("user", "2 + 2?")
    assert sorted(turns[:4:2]) == [("user", "1 + 1?"), ("user", "3 + 3?")]
    assert all("Given away" not in (text or "") for _, text in turns)


def test_an_instruction_and_demonstrations_go_together(shots):
    solving = scripted({ASKED: ["4"]})
    settings = ChainOfThought(demonstrations=shots, instruction="Let's think step by step.")
    with pytest.raises(ConfigError, match="fewer demonstrations"):
        run(chain_of_thought.solve(solving, settings))
    settings = ChainOfThought(demonstrations={"path": shots, "count": 3}, instruction="Let's think step by step.")
    assert run(chain_of_thought.solve(solving, settings)).facts["demonstrations"] == 2


def test_a_row_without_an_answer_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "3 + 3?"}\n')
    with pytest.raises(RowError, match="no answer to show") as error:
        run(chain_of_thought.solve(scripted({}), ChainOfThought(demonstrations={"path": str(path), "count": 1})))
    assert str(error.value.where).endswith("row 2")


def test_a_prompt_without_a_user_is_refused():
    solving = scripted({})
    solving.prompt = (Message("system", "Say something."),)
    with pytest.raises(ConfigError, match="the prompt has none"):
        run(chain_of_thought.solve(solving, ChainOfThought()))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"votes": 0}, "votes"),
        ({"votes": 2, "sampling": {"temperature": 0.0}}, "draws the same answer each time"),
        ({"instruction": " "}, "the text is empty"),
        ({"demonstrations": {"path": "a.jsonl", "diversity": 0.1}}, "has no part"),
        ({"demonstrations": {"path": "a.jsonl", "choose": "nearest", "seed": 1}}, "has no part"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        ChainOfThought(**settings)


def test_answers_that_end_on_nothing_have_no_vote():
    found = run(chain_of_thought.solve(scripted({ASKED: ["no idea", "who knows", "4"]}), ChainOfThought(votes=3)))
    assert found.answer == "4" and found.facts == {"votes": 1, "answers": 3}
    found = run(chain_of_thought.solve(scripted({ASKED: ["no idea", "who knows"]}), ChainOfThought(votes=2)))
    assert found.answer == "no idea" and found.facts["votes"] == 0
