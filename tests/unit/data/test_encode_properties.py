"""Random conversations through every template and two tokenizers: what must hold for all of them."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.encode import Encoder, EncoderSettings
from posttrain.errors import TemplateError
from posttrain.types import Comparison, Demonstration, Feedback, Message, RowRef
from tests.encoding import contexts, path_ids, trained_runs
from tests.fixtures import TEMPLATES, bpe_tokenizer, byte_tokenizer

MERGES = [tuple(pair.split()) for pair in ("Ċ Ċ", "Ġ a", "a b", "Ġa b", "ab a", "Ċ Ġ", ": Ġ", "< |", "> Ċ", "> a")]
TRIMMING = {"NO_SYSTEM", "GEMMA_LIKE", "LLAMA3_LIKE"}
LEADING_SPACE = {"MISTRAL_LIKE", "NO_TERMINATOR"}
OPENS_THINK = {"THINK_PREFILL", "THINK_PREFILL_VERBATIM"}
NO_SYSTEM_ROLE = {"NO_SYSTEM", "MISTRAL_LIKE"}

texts = st.text(alphabet="ab \n:<|>é☃{%'", min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
REF = RowRef("random.jsonl", 1)


@cache
def encoder(template: str, bpe: bool, **options: object) -> Encoder:
    tokenizer = bpe_tokenizer(MERGES, template) if bpe else byte_tokenizer(template)
    return Encoder(tokenizer, EncoderSettings(**options))  # type: ignore[arg-type]


def answers(template: str, contents: list[str]) -> list[str]:
    """What each turn must train on."""
    stop = encoder(template, False).template.stops[0].text
    shown = [text.strip() if template in TRIMMING else text for text in contents]
    return [(" " if template in LEADING_SPACE else "") + text + stop for text in shown]


@st.composite
def conversations(draw: st.DrawFn, template: str) -> tuple[Message, ...]:
    turns = draw(st.integers(1, 3))
    messages = []
    if template not in NO_SYSTEM_ROLE and draw(st.booleans()):
        messages.append(Message("system", draw(texts)))
    for _ in range(turns):
        messages.append(Message("user", draw(texts)))
        answer = draw(texts)
        messages.append(
            Message("assistant", f"{answer}</think>\n\n{draw(texts)}" if template in OPENS_THINK else answer)
        )
    return tuple(messages)


@pytest.mark.parametrize("bpe", [False, True], ids=["bytes", "bpe"])
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=12)
@given(data=st.data())
def test_answers_train_in_the_contexts_that_inference_builds(template: str, bpe: bool, data: st.DataObject) -> None:
    """The heart of the encoder: supervised text == answers and terminators; contexts == Encoder.prompt, id for id."""
    messages = data.draw(conversations(template))
    enc = encoder(template, bpe)
    trees = enc.demonstration(Demonstration(messages, REF))
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    assert [run for tree in trees for run in trained_runs(enc, tree)] == answers(
        template, [messages[index].content or "" for index in turns]
    )
    assert [ids for tree in trees for ids in contexts(tree)] == [enc.prompt(messages[:index]) for index in turns]
    for tree in trees:
        assert tree.branches[0].loss_mask[-1] and int(tree.branches[0].ids[-1]) in enc.stop_ids


@pytest.mark.parametrize("template", ["CHATML", "LLAMA3_LIKE", "MISTRAL_LIKE", "NO_TERMINATOR", "GEMMA_LIKE"])
@settings(max_examples=15)
@given(data=st.data())
def test_every_kind_of_row_shares_its_prompt(template: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(template))[:-1]
    good, bad = data.draw(texts), data.draw(texts)
    if good.strip() == bad.strip():
        return
    enc = encoder(template, True)
    sides = ((Message("assistant", good),), (Message("assistant", bad),))
    tree = enc.comparison(Comparison(messages, sides, 0, REF))
    liked = enc.feedback(Feedback(messages, sides[0], True, REF))
    shown = enc.demonstration(Demonstration((*messages, Message("assistant", good, train=True)), REF))[-1]
    prompt = enc.prompt(messages)
    assert tree.prompt_ids.tolist() == liked.prompt_ids.tolist() == prompt
    assert path_ids(tree, 0) == path_ids(liked) == path_ids(shown)
    assert trained_runs(enc, tree, 0) + trained_runs(enc, tree, 1) == answers(template, [good, bad])
    assert all(branch.loss_mask.all() for branch in tree.branches)


@pytest.mark.parametrize("template", ["CHATML", "BOS_IN_TEMPLATE", "LLAMA3_LIKE"])
@settings(max_examples=15)
@given(data=st.data())
def test_no_path_is_longer_than_the_limit_and_nothing_vanishes(template: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(template))
    policy = data.draw(st.sampled_from(["drop", "keep_prompt_end", "cut_response", "per_side_budget"]))
    enc = encoder(template, False, max_length=data.draw(st.integers(2, 90)), truncation=policy)
    whole = encoder(template, False).demonstration(Demonstration(messages, REF))[0]
    encoded = enc.example(Demonstration(messages, REF))
    assert len(encoded.trees) + len(encoded.dropped) == 1
    for tree in encoded.trees:
        assert tree.num_tokens <= (enc.settings.max_length or 0) and tree.num_trained > 0
        if tree.key == whole.key:
            assert encoded.truncated == ()
        elif policy == "keep_prompt_end":
            assert encoded.truncated == ("prompt_cut",)
            assert tree.branches[0].ids.tolist() == whole.branches[0].ids.tolist()
        else:
            assert encoded.truncated == ("response_cut",)
            assert path_ids(whole)[: tree.num_tokens] == path_ids(tree)


@settings(max_examples=30)
@given(thoughts=st.lists(texts, min_size=2, max_size=3), visible=texts)
def test_rewritten_history_splits_or_agrees(thoughts: list[str], visible: str) -> None:
    enc = encoder("THINK_DROPPED", True)
    messages: list[Message] = []
    for thought in thoughts:
        messages += [Message("user", "q"), Message("assistant", f"<think>{thought}</think>{visible}")]
    trees = enc.demonstration(Demonstration(tuple(messages), REF))
    assert len(trees) == len(thoughts)
    for turn, tree in enumerate(trees):
        assert tree.prompt_ids.tolist() == enc.prompt(messages[: 2 * turn + 1])
        assert trained_runs(enc, tree) == [f"<think>{thoughts[turn]}</think>{visible}<|im_end|>"]


@settings(max_examples=20)
@given(thought=texts, answer=texts)
def test_an_answer_to_an_opened_think_must_close_it(thought: str, answer: str) -> None:
    for template in OPENS_THINK:
        enc = encoder(template, False)
        row = Demonstration((Message("user", "q"), Message("assistant", f"<think>\n{thought}</think>{answer}")), REF)
        (tree,) = enc.demonstration(row)
        text = "".join(piece for piece, _ in enc.decode_marked(tree))
        assert text.count("<think>") == text.count("</think>") == 1
        with pytest.raises(TemplateError):
            enc.demonstration(Demonstration((Message("user", "q"), Message("assistant", answer)), REF))
