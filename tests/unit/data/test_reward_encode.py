"""Ids of a reward model: the same as everywhere, up to where the template ends; conditions; ends of steps."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.reward_encode import Rated, RewardEncoder
from posttrain.errors import DataError, RowError
from posttrain.losses.reward_rule import RewardRule
from posttrain.types import Comparison, Message, RowRef
from tests.fixtures import byte_tokenizer, chat


def pair(chosen: str, rejected: str, source: str = "pairs.jsonl", **options: Any) -> Comparison:
    responses = ((Message("assistant", chosen),), (Message("assistant", rejected),))
    return Comparison(chat("Hi"), responses, winner=0, row=RowRef(source, 1), **options)


def trained(encoder: Encoder, row: Comparison, branch: int = 0) -> list[str]:
    return [text for text, trains in encoder.decode_marked(encoder.comparison(row), branch) if trains]


def rendered(tokenizer: Any, answer: str) -> list[int]:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    return tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False).input_ids


@pytest.mark.parametrize("template", ["CHATML", "LLAMA3_LIKE", "GEMMA_LIKE", "BOS_IN_TEMPLATE", "MISTRAL_LIKE"])
def test_the_ids_are_those_of_the_rendered_conversation(template: str) -> None:
    """Whoever applies the template and scores the row at its last token scores what was trained."""
    tokenizer = byte_tokenizer(template)
    tree = RewardEncoder(tokenizer).comparison(pair("Hello.", "What."))
    for branch, answer in zip(tree.branches, ("Hello.", "What."), strict=True):
        assert [*tree.prompt_ids.tolist(), *branch.ids.tolist()] == rendered(tokenizer, answer)
        assert branch.loss_mask[-1]


def test_the_tail_leaves_room_and_survives_workers() -> None:
    tokenizer = byte_tokenizer("CHATML")
    whole = len(rendered(tokenizer, "Hello."))
    fits = RewardEncoder(tokenizer, EncoderSettings(max_length=whole))
    assert fits.tail and len(fits.comparison(pair("Hello.", "What.")).branches[0].ids)
    with pytest.raises(RowError):
        RewardEncoder(tokenizer, EncoderSettings(max_length=whole - 1)).comparison(pair("Hello.", "What."))
    again = pickle.loads(pickle.dumps(fits))
    assert (again.version, again.settings, again.tail) == (fits.version, fits.settings, fits.tail)
    assert again.version != Encoder(tokenizer, EncoderSettings(max_length=whole)).version


def test_a_cut_response_has_no_end() -> None:
    tokenizer = byte_tokenizer("CHATML")
    settings = EncoderSettings(max_length=len(rendered(tokenizer, "")) + 3, truncation="per_side_budget")
    tree = RewardEncoder(tokenizer, settings).comparison(pair("A long answer.", "What is this?"))
    assert "<|im_end|>" not in tokenizer.decode(tree.branches[0].ids)


def test_a_condition_stands_in_the_system_message() -> None:
    rule = RewardRule(files=(("kind*",), ("right*",)), conditions=("kindness", "truth"), condition_text="By {name}.")
    encoder = RewardEncoder(byte_tokenizer("CHATML"), rule=rule)
    assert "By kindness." in encoder.tokens.decode(encoder.comparison(pair("a", "b", "kind.jsonl")).prompt_ids)
    assert "By truth." in encoder.tokens.decode(encoder.comparison(pair("a", "b", "x/right-1.jsonl")).prompt_ids)
    with pytest.raises(DataError, match="other"):
        encoder.comparison(pair("a", "b", "other.jsonl"))
    (asked,) = encoder.rated(Rated(chat("Hi", system="Be."), ((Message("assistant", "a"),),), RowRef("x", 1)), "truth")
    assert "Be.\n\nBy truth." in encoder.tokens.decode(asked.prompt_ids)


def test_rows_without_a_system_message_get_the_rules() -> None:
    encoder = RewardEncoder(byte_tokenizer("CHATML"), rule=RewardRule(system="You are a helpful assistant."))
    text = encoder.tokens.decode(encoder.comparison(pair("a", "b")).prompt_ids)
    assert text.count("You are a helpful assistant.") == 1
    own = Comparison(chat("Hi", system="Be brief."), pair("a", "b").responses, 0, RowRef("x", 1))
    assert "helpful" not in encoder.tokens.decode(encoder.comparison(own).prompt_ids)
    (asked,) = encoder.rated(Rated(chat("Hi"), own.responses, RowRef("x", 1)))
    assert encoder.tokens.decode(asked.prompt_ids) == text


@pytest.mark.parametrize(
    ("text", "mark", "steps"),
    [
        ("2 + 2 = 4\n4 + 1 = 5\nSo 5.", "\n", ["2 + 2 = 4\n", "4 + 1 = 5\n", "So 5.<|im_end|>\n"]),
        ("One.\n\n\nTwo.", "\n", ["One.\n\n\n", "Two.<|im_end|>\n"]),
        ("One step only.", "\n", ["One step only.<|im_end|>\n"]),
        ("a ##b## c", "##", ["a ##", "b##", " c<|im_end|>\n"]),
    ],
)
def test_only_the_ends_of_steps_are_scored(text: str, mark: str, steps: list[str]) -> None:
    encoder = RewardEncoder(byte_tokenizer("CHATML"), rule=RewardRule(pooling="steps", step_mark=mark))
    branch = encoder.comparison(pair(text, "x")).branches[0]
    found, start = [], 0
    for place in branch.loss_mask.nonzero()[0]:
        found.append(encoder.tokens.decode(branch.ids[start : place + 1]))
        start = place + 1
    assert "".join(found) == "".join(steps)
    assert len(found) == len(steps) and [f.strip() for f in found] == [s.strip() for s in steps]


def test_rows_without_what_the_objective_needs_are_refused() -> None:
    tokenizer = byte_tokenizer("CHATML")
    with pytest.raises(RowError, match="score for each"):
        RewardEncoder(tokenizer, needs="scores").comparison(pair("a", "b"))
    with pytest.raises(RowError, match="a margin"):
        RewardEncoder(tokenizer, needs="margins").comparison(pair("a", "b"))
    tree = RewardEncoder(tokenizer, needs="scores").comparison(pair("a", "b", scores=(4.0, 1.0)))
    assert tree.scores == (4.0, 1.0)


def test_what_is_scored_keeps_the_order_of_the_file() -> None:
    tokenizer = byte_tokenizer("CHATML")
    row = Rated(chat("Hi"), tuple((Message("assistant", text),) for text in ("b", "a", "c")), RowRef("x", 1))
    (tree,) = RewardEncoder(tokenizer).rated(row)
    assert [tokenizer.decode(b.ids)[0] for b in tree.branches] == ["b", "a", "c"]
    whole = RewardEncoder(tokenizer, rule=RewardRule(whole_row=True)).rated(row)
    assert [[*t.prompt_ids.tolist(), *t.branches[0].ids.tolist()] for t in whole] == [
        rendered(tokenizer, text) for text in ("b", "a", "c")
    ]
    assert all(t.branches[0].loss_mask.sum() == 1 for t in whole)
