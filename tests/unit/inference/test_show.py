"""The tree of what was tried, as people see it."""

from __future__ import annotations

from posttrain.config.strategies import BestOfN
from posttrain.inference.show import tree_lines
from posttrain.inference.strategies import best_of_n
from tests.inference import run, scripted


def test_every_node_has_a_line_below_its_parent():
    script = {"2 + 2?": ["4", "no\nidea"]}

    def said(before: str, number: int) -> str:
        return script[before][number] if before in script else "Mark: 7"

    found = run(best_of_n.solve(scripted(said), BestOfN(n=2, scorer="self")))
    assert tree_lines(found) == [
        "question: 2 + 2?",
        '├─ 0  answer  self 7  2 tokens  "4"   <- chosen',
        '│  └─ 2  value  8 tokens  "Mark: 7"',
        '└─ 1  answer  self 7  8 tokens  "no\\nidea"',
        '   └─ 3  value  8 tokens  "Mark: 7"',
        "test: done, 4 draws, 26 tokens, answers 2, abstained 0",
    ]


def test_long_texts_are_cut_to_the_width_and_say_so():
    found = run(best_of_n.solve(scripted({"2 + 2?": ["4" * 190]}), BestOfN(n=1, scorer="logprob")))
    lines = tree_lines(found, width=80)
    assert all(len(line) <= 80 for line in lines[:2])
    assert '4..."' in lines[1]


def test_what_a_strategy_says_in_words_stands_below_and_whole():
    solving = scripted({"2 + 2?": ["4"]})
    solving.notes.append("in the prompt: " + "a" * 200)
    assert tree_lines(run(best_of_n.solve(solving, BestOfN(n=1, scorer="logprob"))))[-1] == f"  {solving.notes[0]}"


def test_the_chosen_one_is_marked_once():
    found = run(best_of_n.solve(scripted({"2 + 2?": ["4", "5"]}), BestOfN(n=2, scorer="logprob")))
    found.nodes[found.chosen].note = "chosen"
    assert [line.count("chosen") for line in tree_lines(found)[1:3]] == [1, 0]
