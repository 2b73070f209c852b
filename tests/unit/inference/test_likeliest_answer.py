"""Beam search by log-prob: against every answer that there is, and against `transformers`."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from posttrain.config.strategies import LikeliestAnswer
from posttrain.config.strategies.base import Spending
from posttrain.errors import ConfigError
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.solving import Asked, Solving
from posttrain.inference.strategies import likeliest_answer
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from posttrain.types import Message, RowRef, Task
from tests.encoding import encoder_of
from tests.fixtures import tiny_model
from tests.inference import run, scripted

LONGEST = 4
PENALTIES = [(1.0, "tokens"), (0.0, "tokens"), (-1.0, "tokens"), (2.5, "tokens"), (0.6, "gnmt")]


class Vocabulary:
    """Three tokens, "a", "b" and the stop token, with log-probs by what stands before, at random from a seed."""

    def __init__(self, seed: int):
        self.encoder = scripted({}).asked.encoder
        self.stop = min(self.encoder.stop_ids)
        self.ids = [*self.encoder.tokens.ids("ab"), self.stop]
        self.seed = seed

    def logprobs(self, said: str) -> list[float]:
        weights = [random.Random(f"{self.seed} {said} {number}").random() ** 3 for number in self.ids]
        return [math.log(weight / sum(weights)) for weight in weights]

    def top(self, before, ids):
        _, _, said = before.partition("\n")
        return sorted(zip(self.ids, self.logprobs(said), strict=True), key=lambda pair: -pair[1])

    def answers(self):
        """All answers with their log-probs: those that end within LONGEST tokens, and those that are cut there."""
        for length in range(1, LONGEST + 1):
            for said in itertools.product("ab", repeat=length - 1):
                before = sum(self.logprobs("".join(said[:at]))["ab".index(said[at])] for at in range(length - 1))
                last = self.logprobs("".join(said))
                yield (*said, "."), before + last[2]
                if length == LONGEST:
                    yield from (((*said, letter), before + last["ab".index(letter)]) for letter in "ab")


def searched(vocabulary, beams, penalty=1.0, length="tokens", **options):
    sampling = {"max_new_tokens": LONGEST, **options.pop("sampling", {})}
    solving = scripted(lambda before, draw: "a", top=vocabulary.top, sampling=sampling, **options)
    settings = LikeliestAnswer(beams=beams, length_penalty=penalty, length=length)
    found = run(likeliest_answer.solve(solving, settings))
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled == found.spent.requests
    return found


def score(answer, logprob, penalty, length):
    return logprob / (len(answer) if length == "tokens" else (5 + len(answer)) / 6) ** penalty


@pytest.mark.parametrize(("penalty", "length"), PENALTIES)
def test_with_enough_beams_it_is_the_best_of_all_answers(penalty, length):
    for seed in range(6):
        vocabulary = Vocabulary(seed)
        everything = list(vocabulary.answers())
        assert sum(math.exp(logprob) for _, logprob in everything) == pytest.approx(1)
        best, logprob = max(everything, key=lambda pair: score(*pair, penalty, length))
        found = searched(vocabulary, 3 ** (LONGEST - 1), penalty, length)
        chosen = found.nodes[found.chosen]
        assert found.answer == "".join(best).removesuffix(".") and chosen.ended is (best[-1] == ".")
        assert found.facts["logprob"] == chosen.scores["logprob"] == pytest.approx(logprob)
        assert found.facts["score"] == pytest.approx(score(best, logprob, penalty, length))
        assert found.facts["tokens"] == len(best) == len(chosen.path_ids) and chosen.ids == ()


def test_one_beam_without_a_length_penalty_takes_the_likeliest_token_each_time():
    for seed in range(20):
        vocabulary, said = Vocabulary(seed), ""
        while len(said) < LONGEST and (number := vocabulary.top(f"2 + 2?\n{said}", ())[0][0]) != vocabulary.stop:
            said += vocabulary.encoder.tokens.decode([number])
        assert searched(vocabulary, 1, 0.0).answer == said


def test_more_beams_find_what_is_likely_behind_an_unlikely_token():
    # "b" is less likely than "a", and what follows it is certain
    class Two(Vocabulary):
        def logprobs(self, said):
            table = {"": (0.6, 0.4, 1e-9), "b": (1e-9, 1e-9, 1.0), "a": (0.5, 0.1, 0.4)}
            return [math.log(value) for value in table.get(said, (0.3, 0.3, 0.4))]

    # for the sum: 0.6 * 0.4 = 0.24 against 0.4 * 1
    assert searched(Two(0), 1, 0.0).answer != "b" and searched(Two(0), 2, 0.0).answer == "b"


def test_it_stops_as_soon_as_nothing_can_be_better():
    class Certain(Vocabulary):
        def logprobs(self, said):
            return [math.log(value) for value in (0.05, 0.05, 0.9)]

    found = searched(Certain(0), 2, 0.0)
    # the first step ends the best answer; a beginning of 0.05 cannot come to 0.9 any more
    assert found.answer == "" and found.spent.requests == 1 and found.stopped is Stopped.DONE


def test_it_goes_on_where_a_longer_answer_may_yet_be_better():
    class Slow(Vocabulary):
        def logprobs(self, said):
            table = {"": (0.2, 0.1, 0.7), "aaa": (1e-9, 1e-9, 1.0)}
            return [math.log(value) for value in table.get(said, (1.0, 1e-9, 1e-9))]

    # log 0.7 = -0.36 for the empty answer; log 0.2 is -1.6, over 4 tokens -0.40, over 4 ** 2 -0.10
    assert searched(Slow(0), 2, 1.0).answer == "" and searched(Slow(0), 2, 2.0).answer == "aaa"

    class Short(Vocabulary):
        def logprobs(self, said):
            return [math.log(value) for value in ((1e-9, 1e-9, 1.0) if said else (0.6, 0.1, 0.3))]

    # times its length: log 0.3 = -1.2 for the empty answer, 2 log 0.6 = -1.0 for "a", which 4 tokens would make -2.0
    assert searched(Short(0), 2, -1.0).answer == "a"


def test_a_limit_of_tokens_gives_the_best_until_then():
    class Endless(Vocabulary):
        def logprobs(self, said):
            return [math.log(value) for value in (0.5, 0.4, 0.1)]

    vocabulary = Endless(0)
    # one request for the first token, then two for each: the second of the third token is not paid
    limited = searched(vocabulary, 2, spend={"tokens": 4})
    assert limited.stopped is Stopped.TOKENS and limited.spent.sampled == 4
    # nothing has ended among the two likeliest; the likeliest beginning of two tokens is what there is
    assert limited.answer == "aa" and limited.facts["logprob"] == pytest.approx(2 * math.log(0.5))
    assert searched(vocabulary, 2).answer == "aaaa"
    nothing = searched(vocabulary, 3, spend={"seconds": 1e-9})
    assert (nothing.answer, nothing.chosen, nothing.stopped) == ("", None, Stopped.SECONDS)


def native(stops: int, context: int = 512):
    """A tiny model in fp64 whose first `stops` ids, and its own stop token, end an answer."""
    encoder = encoder_of()
    model = tiny_model("llama", vocab=len(encoder.tokenizer), dtype=torch.float64, max_position_embeddings=context)
    engine = NativeEngine(model, decode=encoder.tokens.decode)
    task = Task((Message("user", "2 + 2?"),), None, RowRef("prompts", 1))
    solving = Solving(
        Asked(engine, encoder, Scorers()), task, SamplingDistribution(max_new_tokens=10), Spending(), "test"
    )
    letters = encoder.tokens.ids("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")[:stops]
    solving.sampling = replace(solving.sampling, stop_ids=encoder.stop_ids | set(letters))
    return model, solving


@pytest.mark.parametrize("stops", [0, 40])
@pytest.mark.parametrize(("beams", "penalty"), [(1, 0.0), (3, 1.0), (4, 0.0), (2, -1.5), (5, 2.0)])
def test_transformers_finds_the_same(stops, beams, penalty):
    model, solving = native(stops)
    found = run(likeliest_answer.solve(solving, LikeliestAnswer(beams=beams, length_penalty=penalty)))
    prompt = list(solving.prompt_ids(solving.task.prompt))
    theirs = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams,
        do_sample=False,
        length_penalty=penalty,
        early_stopping="never",
        max_new_tokens=10,
        eos_token_id=sorted(solving.sampling.stop_ids),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = theirs.sequences[0, len(prompt) :].tolist()
    assert list(found.nodes[found.chosen].path_ids) == ids
    if beams > 1:  # greedy search of `transformers` gives no score
        assert found.facts["score"] == pytest.approx(float(theirs.sequences_scores[0]), rel=1e-6)  # theirs are fp32


def test_it_ends_at_the_models_last_position():
    _, solving = native(0)
    prompt = len(solving.prompt_ids(solving.task.prompt))
    _, solving = native(0, context=prompt + 3)
    found = run(likeliest_answer.solve(solving, LikeliestAnswer(beams=2)))
    assert found.facts["tokens"] == 3 and not found.nodes[found.chosen].ended


def test_what_a_strategy_put_before_the_question_takes_room_from_the_answer():
    _, solving = native(0)
    shown = (Message("system", "Answer with a number."), *solving.task.prompt)
    _, solving = native(0, context=len(solving.prompt_ids(shown)) + 3)
    solving.prompt = shown
    assert run(likeliest_answer.solve(solving, LikeliestAnswer(beams=2))).facts["tokens"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "`beams` has a wrong value"),
        ({"length": "words"}, "`length`"),
        ({"sampling": {"temperature": 0.7}}, "`temperature` has no meaning"),
        ({"sampling": {"top_p": 0.9}}, "`top_p` has no meaning"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        LikeliestAnswer(**settings)
    assert refusal.value.remedy


def test_the_length_alone_may_be_set():
    assert LikeliestAnswer(sampling={"max_new_tokens": 7, "temperature": 0}).sampling.max_new_tokens == 7
