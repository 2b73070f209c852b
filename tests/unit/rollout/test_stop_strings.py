"""Stop strings: what is found while decoding only the end of an answer is what decoding all of it would find."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from posttrain.data.tokens import Tokens
from posttrain.errors import ConfigError, EngineError
from posttrain.rollout.engine import Completion, FinishReason, Request
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.text import MARGIN, SPAN, Decode, StopSearch, completion_text
from posttrain.sampling import SamplingDistribution
from tests.fixtures import bpe_tokenizer, byte_tokenizer, tiny_model

LONG = SamplingDistribution(max_new_tokens=40, seed=4)


def oracle(strings: Sequence[str], decode: Decode, answer: Sequence[int]) -> tuple[int, str] | None:
    """(ids sampled, the string), by decoding all of the answer after each id."""
    for end in range(1, len(answer) + 1):
        text = decode(answer[:end])
        hits = [(text.index(string), -len(string), string) for string in strings if string in text]
        if hits:
            return end, min(hits)[2]
    return None


def searched(strings: Sequence[str], decode: Decode, answer: Sequence[int]) -> tuple[int, str] | None:
    search = StopSearch(strings, decode)
    for end in range(1, len(answer) + 1):
        if (found := search.found(answer[:end])) is not None:
            return end, found
    return None


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Blanks are a part of the word behind them, the first of a text is dropped, and what is no piece is spelled by
    bytes, as Llama 2's and Mistral's do."""
    pieces = ["<unk>", "▁a", "▁", "a", "b", "▁bc", "c", "ab", "▁▁", ".", "\n", "▁Q", ":", "Q"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """A blank before each word but the first, which a full stop takes back."""
    pieces = ["[UNK]", "a", "##b", "bc", ".", "##c", "n", "'", "t", "do", "!"]
    tokenizer = Tokenizer(models.WordPiece(vocab={piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def random_ids(tokenizer: PreTrainedTokenizerFast, length: int, rng: random.Random) -> list[int]:
    return [rng.randrange(len(tokenizer)) for _ in range(length)]


def spelled(tokenizer: PreTrainedTokenizerFast, length: int, rng: random.Random) -> list[int]:
    """Characters of one to four bytes, whole but for a wrong byte now and then; many of a kind side by side."""
    vocabulary, alphabet = tokenizer.get_vocab(), _byte_alphabet()
    byte_ids = [vocabulary.get(f"<0x{byte:02X}>", vocabulary.get(alphabet[byte], 0)) for byte in range(256)]
    ids: list[int] = []
    while len(ids) < length:
        character = rng.choice(["é", "🙂", "漢", "a", "b", "🙂", "字"])
        ids += [byte_ids[byte] for byte in character.encode() * rng.choice([1, 1, 2, 9])]
        if rng.random() < 0.05:
            ids.append(byte_ids[rng.randrange(128, 256)])
    return ids


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's: printable bytes are themselves, the others come behind them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return {**{byte: chr(byte) for byte in shown}, **{byte: chr(256 + place) for place, byte in enumerate(others)}}


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_tokenizer,
    "byte-level BPE": bpe_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "wordpiece": wordpiece_tokenizer,
}


@pytest.mark.parametrize(
    ("name", "write"),
    [*((name, random_ids) for name in TOKENIZERS), *((name, spelled) for name in TOKENIZERS if name != "wordpiece")],
)
def test_the_search_finds_what_decoding_everything_finds(
    name: str, write: Callable[[PreTrainedTokenizerFast, int, random.Random], list[int]]
) -> None:
    tokenizer, rng, found = TOKENIZERS[name](), random.Random(name), 0
    decode = Tokens(tokenizer).decode
    for _ in range(100):
        answer = write(tokenizer, rng.choice([5, 60, 200]), rng)
        text = decode(answer)
        strings = tuple(
            text[at : at + rng.choice([1, 2, 3, 7, 20])]
            for at in (rng.randrange(rng.choice([0, len(text) // 2]), len(text)) for _ in range(rng.choice([1, 3])))
        )
        assert searched(strings, decode, answer) == oracle(strings, decode, answer), (strings, answer)
        found += oracle(strings, decode, answer) is not None
    assert found > 60


def test_a_search_decodes_a_bounded_number_of_ids() -> None:
    tokenizer = byte_tokenizer()
    tokens, decoded = Tokens(tokenizer), list[int]()

    def decode(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return tokens.decode(ids)

    answer = tokens.ids("Once upon a time there was a prince. " * 40)
    assert searched(("a princess",), decode, answer) is None
    assert max(decoded) <= 4 * SPAN + MARGIN


def test_a_character_of_many_bytes_between_two_tokens_is_found_when_it_is_whole() -> None:
    tokens = Tokens(byte_tokenizer())
    answer = tokens.ids("é🙂")
    assert len(answer) == 6
    assert searched(("🙂",), tokens.decode, answer) == (6, "🙂")


def test_the_earliest_string_wins_and_of_two_that_begin_there_the_longer() -> None:
    tokenizer = bpe_tokenizer()
    decode = Tokens(tokenizer).decode
    hello = tokenizer.encode("hello")
    assert len(hello) == 1
    assert searched(("lo", "ell", "el"), decode, hello) == (1, "ell")
    assert searched(("el", "ell"), decode, hello) == (1, "ell")


def test_text_is_cut_before_the_first_of_two_in_one_token() -> None:
    tokenizer = bpe_tokenizer()
    completion = Completion(tuple(tokenizer.encode("hello")), (-0.1,), FinishReason.STOP_STRING, stopped_by="l")
    assert completion_text(completion, Tokens(tokenizer).decode) == "he"


def test_text_without_a_stop_string_is_all_of_it_but_the_stop_token() -> None:
    decode = Tokens(byte_tokenizer()).decode
    ids = tuple(Tokens(byte_tokenizer()).ids("ab"))
    assert completion_text(Completion((*ids, 2), (-1.0,) * 3, FinishReason.STOP_TOKEN), decode) == "ab"
    assert completion_text(Completion(ids, (-1.0,) * 2, FinishReason.LENGTH), decode) == "ab"


# ---------------------------------------------------------------- in the engine


TOKENS = Tokens(byte_tokenizer())


def engine_of(**settings: int) -> NativeEngine:
    return NativeEngine(tiny_model(vocab=len(TOKENS.tokenizer)), decode=TOKENS.decode, **settings)


def some_prompts() -> list[list[int]]:
    return [TOKENS.ids(text) for text in ("Hi", "What is it?", "Tell me of the sea, and of ships.", "1 + 1")]


def stops_of(completions: Sequence[Completion]) -> tuple[str, ...]:
    """A string of three characters out of each, not at its end."""
    texts = [TOKENS.decode(one.ids) for one in completions]
    return tuple(text[8:11] for text in texts)


def expected_of(whole: Completion, strings: Sequence[str]) -> Completion:
    found = oracle(strings, TOKENS.decode, whole.ids)
    assert found is not None
    end, string = found
    return Completion(whole.ids[:end], whole.logprobs[:end], FinishReason.STOP_STRING, stopped_by=string)


@pytest.mark.parametrize("settings", [{}, {"max_rows": 2}, {"cache_tokens": 110}], ids=str)
def test_a_completion_ends_with_the_id_that_completes_the_string_and_keeps_all_ids(settings: dict[str, int]) -> None:
    engine, prompts = engine_of(**settings), some_prompts()
    whole = [group[0] for group in engine.generate(prompts, LONG)]
    stopping = replace(LONG, stop=stops_of(whole))
    expected = [expected_of(one, stopping.stop) for one in whole]
    answers = [group[0] for group in engine.generate(prompts, stopping)]
    for answer, wanted in zip(answers, expected, strict=True):
        assert (answer.ids, answer.finish, answer.stopped_by) == (wanted.ids, wanted.finish, wanted.stopped_by)
        assert answer.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
        assert answer.answer_ids == answer.ids
        text = completion_text(answer, TOKENS.decode)
        assert not any(string in text for string in stopping.stop)
        assert TOKENS.decode(answer.ids).startswith(text + str(answer.stopped_by))


def test_requests_and_streams_end_at_it_too() -> None:
    engine, prompts = engine_of(), some_prompts()
    whole = [group[0] for group in engine.generate(prompts, LONG)]
    stopping = replace(LONG, stop=stops_of(whole))

    async def ask() -> list[Completion]:
        return await asyncio.gather(*(engine.generate_one(Request(prompt, stopping)) for prompt in prompts))

    expected = [expected_of(one, stopping.stop) for one in whole]
    answers = asyncio.run(ask())
    assert [(one.ids, one.stopped_by) for one in answers] == [(one.ids, one.stopped_by) for one in expected]
    assert [tuple(engine.stream(prompt, stopping)) for prompt in prompts] == [one.ids for one in expected]


def test_a_string_of_the_prompt_does_not_count() -> None:
    engine, prompt = engine_of(), TOKENS.ids("Q: 1 + 1")
    whole = engine.generate([prompt], LONG)[0][0]
    assert "Q:" not in TOKENS.decode(whole.ids)
    assert engine.generate([prompt], replace(LONG, stop=("Q:", " 1")))[0][0].ids == whole.ids


def test_the_limit_and_a_stop_token_at_the_same_id() -> None:
    """At the limit the string is why it ended; a stop token is no part of the text, so it is why it ended."""
    engine, prompt = engine_of(), some_prompts()[1]
    whole = engine.generate([prompt], LONG)[0][0]
    stopping = replace(LONG, stop=stops_of([whole]))
    end = len(expected_of(whole, stopping.stop).ids)
    assert engine.generate([prompt], replace(stopping, max_new_tokens=end))[0][0].finish is FinishReason.STOP_STRING
    cut = engine.generate([prompt], replace(stopping, max_new_tokens=end - 1))[0][0]
    assert (cut.finish, cut.stopped_by) == (FinishReason.LENGTH, None)
    last = whole.ids[end - 1]
    assert last not in whole.ids[: end - 1]
    token = engine.generate([prompt], replace(stopping, stop_ids=frozenset({last})))[0][0]
    assert (token.finish, token.stopped_by, token.ids) == (FinishReason.STOP_TOKEN, None, whole.ids[:end])


def test_an_engine_without_a_tokenizer_refuses_them() -> None:
    engine = NativeEngine(tiny_model())
    sampling = replace(LONG, stop=("x",))
    with pytest.raises(ConfigError, match=r"decode=encoder\.tokens\.decode"):
        engine.generate([[1, 2]], sampling)
    with pytest.raises(ConfigError, match=r"decode=encoder\.tokens\.decode"):
        asyncio.run(engine.generate_one(Request([1, 2], sampling)))
    assert engine.in_flight == 0


def test_ids_that_cannot_be_decoded_end_their_own_request() -> None:
    def decode(ids: Sequence[int]) -> str:
        raise OverflowError("no such id")

    engine = NativeEngine(tiny_model(), decode=decode)

    async def ask() -> list[Completion | BaseException]:
        requests = [Request([1, 2], LONG), Request([1, 2], replace(LONG, stop=("x",)))]
        return await asyncio.gather(*map(engine.generate_one, requests), return_exceptions=True)

    well, broken = asyncio.run(ask())
    assert isinstance(well, Completion) and len(well.ids) == 40
    assert isinstance(broken, EngineError) and "OverflowError: no such id" in str(broken)


@pytest.mark.parametrize("stop", [("",), ("a", ""), "", (1,), 3])
def test_strings_that_cannot_stop_anything_are_refused(stop: object) -> None:
    with pytest.raises(ConfigError, match="`stop` is out of range"):
        SamplingDistribution(stop=stop)  # type: ignore[arg-type]


def test_a_string_alone_and_a_list_stand_for_the_tuple() -> None:
    assert SamplingDistribution(stop="ab").stop == ("ab",)  # type: ignore[arg-type]
    assert SamplingDistribution(stop=["ab", "c", "ab"]).stop == ("ab", "c")  # type: ignore[arg-type]


def test_they_are_no_part_of_drawing() -> None:
    plain, stopping = SamplingDistribution(), SamplingDistribution(stop=("x",), seed=3)
    assert stopping.is_plain and plain.drawing == stopping.drawing
    logits = torch.randn(2, 9)
    assert torch.equal(plain.log_probs(logits), stopping.log_probs(logits))
