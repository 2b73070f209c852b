"""T10: a template that rewrites history.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from posttrain.types import Demonstration, RowRef
from tests.encoding import contexts, encoder_of, shown, trained_runs
from tests.fixtures import chat


def test_history_that_is_rewritten() -> None:
    encoder = encoder_of("THINK_DROPPED")
    messages = chat("q1", "<think>t1</think>a1", "q2", "<think>t2</think>a2")
    encoded = encoder.example(Demonstration(messages, RowRef("t.jsonl", 1)))
    assert [trained_runs(encoder, tree) for tree in encoded.trees] == [
        ["<think>t1</think>a1<|im_end|>"],
        ["<think>t2</think>a2<|im_end|>"],
    ]
    assert [contexts(tree) for tree in encoded.trees] == [
        [encoder.prompt(messages[:1])],
        [encoder.prompt(messages[:3])],
    ]
    assert "t1" not in shown(encoder, encoded.trees[1])
    assert encoded.findings == ("split_turns",)


def test_history_that_is_left_alone_is_one_sequence() -> None:
    encoder = encoder_of("THINK_DROPPED")
    messages = chat("q1", "a1", "q2", "<think>t2</think>a2")
    (tree,) = encoder.demonstration(Demonstration(messages, RowRef("t.jsonl", 1)))
    assert contexts(tree) == [encoder.prompt(messages[:1]), encoder.prompt(messages[:3])]
