"""T04: one BOS, the same in training, preferences, rollout and evaluation.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from posttrain.types import Comparison, Demonstration, Feedback, Message, RowRef
from tests.encoding import encoder_of, pair, path_ids
from tests.fixtures import chat


@pytest.mark.parametrize(
    ("template", "settings"), [("BOS_IN_TEMPLATE", {}), ("GEMMA_LIKE", {}), (None, {"template": "raw"})]
)
def test_one_bos(template: str | None, settings: dict[str, str]) -> None:
    encoder = encoder_of(template, settings, add_bos=True)
    question, row = chat("q"), RowRef("t.jsonl", 1)
    answer = (Message("assistant", "a"),)
    sft = encoder.demonstration(Demonstration((*question, *answer), row))[0]
    preference = encoder.comparison(pair(question, "a", "b"))
    reward = encoder.comparison(Comparison(question, (answer, (Message("assistant", "c"),)), 0, row))
    kto = encoder.feedback(Feedback(question, answer, True, row))
    rollout = evaluation = encoder.prompt(question)
    prompts = [tree.prompt_ids.tolist() for tree in (sft, preference, reward, kto)]
    assert all(prompt == rollout == evaluation for prompt in prompts)
    paths = [path_ids(sft), path_ids(preference, 0), path_ids(preference, 1), path_ids(reward), path_ids(kto), rollout]
    assert [path.count(encoder.bos_id or -1) for path in paths] == [1] * 6
