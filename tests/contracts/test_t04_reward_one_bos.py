"""T04 for reward models: one BOS, and the prompt that training, rollout and evaluation have.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.reward_encode import Rated, RewardEncoder
from posttrain.types import Message, RowRef
from tests.encoding import encoder_of, pair, path_ids
from tests.fixtures import chat


@pytest.mark.parametrize(
    ("template", "settings"), [("BOS_IN_TEMPLATE", {}), ("GEMMA_LIKE", {}), (None, {"template": "raw"})]
)
def test_one_bos(template: str | None, settings: dict[str, str]) -> None:
    encoder = encoder_of(template, settings, add_bos=True)
    reward = RewardEncoder(encoder.tokenizer, EncoderSettings(**settings))  # type: ignore[arg-type]
    question = chat("q")
    trained = reward.comparison(pair(question, "a", "b"))
    (scored,) = reward.rated(Rated(question, ((Message("assistant", "a"),),), RowRef("t.jsonl", 1)))
    assert trained.prompt_ids.tolist() == scored.prompt_ids.tolist() == encoder.prompt(question)
    for path in (path_ids(trained, 0), path_ids(trained, 1), path_ids(scored, 0)):
        assert path.count(encoder.bos_id or -1) == 1
