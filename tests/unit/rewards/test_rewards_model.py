"""A trained reward model as a reward: what it says is what the model says, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.data.encode import EncoderSettings
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.reward.folders import RewardFolder
from posttrain.models.reward.scoring import RewardModel
from posttrain.models.tree.heads import with_head
from posttrain.rewards import Sampled
from posttrain.rewards.model import RatingModel
from posttrain.rewards.scorer import Scorer
from posttrain.rollout.engine import FinishReason
from posttrain.types import Comparison, Feedback, Message, RowRef, Task
from tests.fixtures import byte_tokenizer, tiny_model


class Fake:
    """Scores a response by its length and its prompt's; keeps the rows it was given."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def score_rows(self, rows: Iterable[Any], *, head: str | None, normalised: bool) -> Iterator[Any]:
        for row in rows:
            self.rows.append(row)
            responses = row.responses if isinstance(row, Comparison) else (row.response,)
            base = len(row.prompt[0].content) * 100
            yield SimpleNamespace(rewards=tuple(base + len(response[0].content) for response in responses))


def item(prompt: str, text: str, group: int) -> Sampled:
    messages = (Message("user", prompt),)
    return Sampled(messages, text, Task(messages, None, RowRef("p.jsonl", group + 1)), group=group)


ROWS = [item("x", "a", 0), item("xy", "aaaa", 1), item("x", "aa", 0), item("x", "", 0)]


@pytest.fixture
def fake() -> Fake:
    return Fake()


def made(fake: Fake, **options: float) -> Scorer:
    reward = RatingModel("nowhere", **options)  # type: ignore[arg-type]
    reward._model = fake  # type: ignore[assignment]
    return Scorer("rm", reward)


def test_each_response_gets_its_own_number(fake: Fake) -> None:
    assert made(fake).score(ROWS) == [101.0, 204.0, 102.0, 100.0]
    assert [type(row) for row in fake.rows] == [Comparison, Feedback], "one row per prompt"


def test_the_number_is_scaled(fake: Fake) -> None:
    assert made(fake, scale=0.01, shift=-1.0).score(ROWS)[:2] == pytest.approx([0.01, 1.04])


def test_a_prompt_with_tool_calls(fake: Fake) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": [1]}}}
    prompt = (Message("user", "x"), Message("assistant", None, tool_calls=(call,)))
    rows = [Sampled(prompt, text, Task(prompt, None, RowRef("p", 1))) for text in ("a", "aa")]
    assert made(fake).score(rows) == [101.0, 102.0]
    assert len(fake.rows) == 1


def test_an_answer_that_was_cut_is_not_scored_as_a_finished_one(fake: Fake) -> None:
    rows = [replace(ROWS[0], finish=FinishReason.LENGTH), ROWS[2], replace(ROWS[3], finish=FinishReason.LENGTH)]
    made(fake).score(rows)
    assert [response[0].complete for response in fake.rows[0].responses] == [False, True, True]


def test_the_model_reads_no_stop_token_where_none_was_sampled() -> None:
    tokenizer = byte_tokenizer("CHATML")
    model = with_head(tiny_model("llama", vocab=len(tokenizer)), init="normal")
    loaded: Any = SimpleNamespace(model=model, tokenizer=tokenizer)
    reward = RatingModel("nowhere")
    reward._model = RewardModel(RewardFolder(loaded, RewardRule(), EncoderSettings()))
    whole, cut = Scorer("rm", reward).score([ROWS[1], replace(ROWS[1], finish=FinishReason.LENGTH)])
    encoder = reward.model.encoder
    ids = [*encoder.prompt(ROWS[1].prompt), *encoder.tokens.ids("aaaa")]
    with torch.no_grad():
        at_text = float(model.score(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]))
    assert cut == pytest.approx(at_text, abs=1e-5)
    assert whole != pytest.approx(at_text, abs=1e-3)
