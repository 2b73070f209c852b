"""Text of ids that come one by one: final, whole, and the same as the text that is made at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.serve.served import Detokenizer
from posttrain.serve.text_stream import CONTEXT, UNFINISHED, WINDOW, TextStream
from tests.fixtures import byte_tokenizer

MERGES = (("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo"), ("Ã", "©"), ("Ġ", "he"), ("c", "Ã"))
"""Tokens that hold half of an é, and one that holds a letter and half of an é."""
DECODE = Detokenizer(byte_tokenizer(merges=MERGES))
FIRST = len(byte_tokenizer().all_special_ids)
NUMBERS = st.integers(0, 3 + 256 + len(MERGES) - 1)


def written(ids: Sequence[int], stop: Sequence[str], keep: bool = False) -> tuple[list[str], str | None]:
    """The pieces of a stream, ended as an engine ends it: with the id that completes a stop string."""
    stream, pieces = TextStream(DECODE, stop, keep_stop=keep), []
    for at, number in enumerate(ids):
        pieces.append(stream.push(number))
        text = DECODE(ids[: at + 1])
        found = [(text.find(s), -len(s), s) for s in stop if s in text]
        if found:
            stopped = min(found)[2]
            return [*pieces, stream.finish(stopped)], stopped
    return [*pieces, stream.finish()], None


@given(st.lists(NUMBERS, max_size=3 * WINDOW))
def test_the_pieces_are_the_text_whatever_the_ids(ids: list[int]) -> None:
    pieces, _ = written(ids, ())
    assert "".join(pieces) == DECODE(ids)


TEXTS = st.text(st.sampled_from("heloé €\n😀"), max_size=60)


@given(TEXTS, st.lists(st.text(st.sampled_from("heloé\n"), min_size=1, max_size=4), max_size=3), st.booleans())
def test_a_stop_string_cuts_the_text_and_none_of_it_is_given_before(text: str, stop: list[str], keep: bool) -> None:
    # Bytes one by one: the most hostile split there is.
    ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    decode = Detokenizer(byte_tokenizer())
    stream, pieces, stopped = TextStream(decode, stop, keep_stop=keep), [], None
    for at, number in enumerate(ids):
        pieces.append(stream.push(number))
        so_far = decode(ids[: at + 1])
        found = sorted((so_far.find(s), -len(s), s) for s in stop if s in so_far)
        if found:
            stopped = found[0][2]
            break
    given_before = "".join(pieces)
    pieces.append(stream.finish(stopped))
    whole = decode(ids[: at + 1]) if ids else ""
    expected = whole if stopped is None else whole[: whole.find(stopped) + (len(stopped) if keep else 0)]
    assert "".join(pieces) == expected
    # Nothing was given that had to be taken back.
    assert (whole if stopped is None else whole[: whole.find(stopped)]).startswith(given_before)
    assert UNFINISHED not in "".join(pieces)


def test_half_a_character_waits_for_its_other_half() -> None:
    ids = byte_tokenizer()("a€b", add_special_tokens=False)["input_ids"]
    stream = TextStream(Detokenizer(byte_tokenizer()))
    assert [stream.push(number) for number in ids] == ["a", "", "", "€", "b"]


def test_what_may_begin_a_stop_string_waits() -> None:
    ids = byte_tokenizer()("a\n b", add_special_tokens=False)["input_ids"]
    stream = TextStream(Detokenizer(byte_tokenizer()), ["\n\n"])
    assert [stream.push(number) for number in ids] == ["a", "", "\n ", "b"]


def test_a_long_answer_decodes_a_few_ids_for_each_new_one() -> None:
    asked = []

    def decode(ids: Sequence[int]) -> str:
        asked.append(len(ids))
        return DECODE(ids)

    stream = TextStream(decode)
    text = "".join([stream.push(FIRST + 65 + number % 26) for number in range(400)]) + stream.finish()
    assert len(text) == 400
    assert max(asked) <= WINDOW + CONTEXT + 2


@pytest.mark.parametrize("keep", [False, True])
def test_a_stop_string_within_a_token(keep: bool) -> None:
    """`hello` is one token; the stop string ends in its midst."""
    hello = byte_tokenizer(merges=MERGES)("hello", add_special_tokens=False)["input_ids"]
    assert len(hello) == 1
    pieces, stopped = written(hello, ["el"], keep)
    assert ("".join(pieces), stopped) == ("hel" if keep else "h", "el")


@given(st.lists(st.sampled_from([" a", "b", " ", " ", "cd"]), max_size=4 * WINDOW), st.booleans())
def test_a_tokenizer_that_drops_blanks_at_the_beginning_keeps_all_others(pieces: list[str], all_blanks: bool) -> None:
    """SentencePiece: a window of ids by itself would lose the blank before its first word."""
    # Blanks alone, as long as the context of a window: only comparing shows that it cannot begin there.
    pieces = ["x", *pieces, *[" "] * 20, "y", *["z"] * WINDOW]

    def decode(ids: Sequence[int]) -> str:
        text = "".join(pieces[number] for number in ids)
        return text.lstrip(" ") if all_blanks else text.removeprefix(" ")

    stream = TextStream(decode)
    assert "".join([stream.push(number) for number in range(len(pieces))]) + stream.finish() == decode(
        range(len(pieces))
    )


def test_a_window_never_begins_within_a_character() -> None:
    text = "é€😀" * 20
    ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(Detokenizer(byte_tokenizer()))
    assert "".join([stream.push(number) for number in ids]) + stream.finish() == text


def test_a_text_that_is_held_back_for_long_is_not_forgotten() -> None:
    """Longer than a window: it may be the beginning of a stop string until its last letter."""
    stop, text = "a" * 90, "a" * 89 + "b"
    stream = TextStream(DECODE, [stop])
    ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert [piece for piece in map(stream.push, ids) if piece] == [text]
