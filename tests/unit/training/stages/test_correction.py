"""Pairs from a model's own answers: what becomes a pair, what does not, and that training can read the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.data import read
from posttrain.data.encode import Encoder
from posttrain.errors import EmptyDatasetError, RowError
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution
from posttrain.training.stages.correction_pairs import Answering, correction_pairs
from posttrain.types import Comparison, Demonstration, Message, RowRef, Task
from tests.fixtures import byte_tokenizer, chat, demonstration, tiny_model

ENCODER = Encoder(byte_tokenizer("CHATML"))
SAMPLING = SamplingDistribution(temperature=1.0, max_new_tokens=40)
STOP = ENCODER.template.stops[0].id


class Scripted:
    """An engine that answers what the test says, and remembers what it was asked."""

    policy_version = 0

    def __init__(self, *groups: Sequence[tuple[str, FinishReason]]):
        self.groups = groups
        self.prompts: list[list[int]] = []
        self.sampling: SamplingDistribution | None = None

    def generate(self, prompts, sampling, *, completions_per_prompt=1, on_finish=None):  # type: ignore[no-untyped-def]
        self.prompts, self.sampling = [list(prompt) for prompt in prompts], sampling
        return [[self._completion(text, finish) for text, finish in group] for group in self.groups]

    def _completion(self, text: str, finish: FinishReason) -> Completion:
        ids = tuple(ENCODER.tokens.ids(text))
        ids = (*ids, STOP) if finish in (FinishReason.STOP_TOKEN, FinishReason.EMPTY) else ids
        return Completion(ids, (-1.0,) * len(ids), finish)


ENDED, CUT = FinishReason.STOP_TOKEN, FinishReason.LENGTH


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_own_answers_are_rejected_and_the_wanted_one_is_chosen(tmp_path: Path) -> None:
    rows = [
        demonstration("Who?", "I am Pia.", system="Be kind.", row=1),
        Task(chat("You?"), "Pia.", RowRef("t.jsonl", 2)),
    ]
    engine = Scripted([("I am Bot.", ENDED), ("I am a lan", CUT)], [("Bot", ENDED), ("Rob", ENDED)])
    counts = correction_pairs(
        rows, Answering(ENCODER, engine, SAMPLING, samples_per_prompt=2), out=tmp_path / "data.jsonl"
    )
    assert engine.prompts == [ENCODER.prompt(chat("Who?", system="Be kind.")), ENCODER.prompt(chat("You?"))]
    assert engine.sampling is not None
    assert engine.sampling.stop_ids == ENCODER.stop_ids
    written = lines(tmp_path / "data.jsonl")
    assert written[0] == {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}],
        "chosen": [{"role": "assistant", "content": "I am Pia."}],
        "rejected": [{"role": "assistant", "content": "I am Bot."}],
        "finish": "stop_token",
        "truncated": False,
        "row": "test.jsonl, row 1",
    }
    assert (written[1]["finish"], written[1]["truncated"]) == ("length", True)
    assert written[1]["rejected"] == [{"role": "assistant", "content": "I am a lan", "complete": False}]
    assert (counts.prompts, counts.answers, counts.pairs, counts.truncated, counts.skipped) == (2, 4, 4, 1, {})
    assert str(counts) == "4 pairs from 2 prompts, 1 with a cut rejected answer"


def test_training_reads_the_file(tmp_path: Path) -> None:
    rows = [demonstration("Who?", "I am Pia.", row=1)]
    correction_pairs(rows, Answering(ENCODER, Scripted([("Bot.", ENDED)]), SAMPLING), out=tmp_path / "data.jsonl")
    pairs = list(read(tmp_path / "data.jsonl", kind=Comparison))
    assert pairs[0].prompt == chat("Who?")
    assert pairs[0].responses == ((Message("assistant", "I am Pia."),), (Message("assistant", "Bot."),))
    tree = ENCODER.comparison(pairs[0])
    assert tree.branches[1].ids.tolist() == [*ENCODER.tokens.ids("Bot."), STOP]


def test_a_cut_answer_trains_without_a_stop_token(tmp_path: Path) -> None:
    rows = [demonstration("Who?", "I am Pia.", row=1)]
    correction_pairs(rows, Answering(ENCODER, Scripted([("I am a lan", CUT)]), SAMPLING), out=tmp_path / "data.jsonl")
    (pair,) = read(tmp_path / "data.jsonl", kind=Comparison)
    chosen, rejected = ENCODER.comparison(pair).branches
    assert chosen.ids.tolist() == [*ENCODER.tokens.ids("I am Pia."), STOP]
    assert rejected.ids.tolist() == ENCODER.tokens.ids("I am a lan")


def test_an_answer_is_paired_without_the_stop_string_that_ended_it(tmp_path: Path) -> None:
    """It is whole: the model was stopped where it was to stop."""

    class Stopped(Scripted):
        def _completion(self, text: str, finish: FinishReason) -> Completion:
            return replace(super()._completion(text, finish), finish=finish, stopped_by="\n\n")

    engine = Stopped([("Bot.\n\n", FinishReason.STOP_STRING)])
    rows = [demonstration("Who?", "I am Pia.", row=1)]
    sampling = replace(SAMPLING, stop=("\n\n",))
    counts = correction_pairs(rows, Answering(ENCODER, engine, sampling), out=tmp_path / "data.jsonl")
    (pair,) = lines(tmp_path / "data.jsonl")
    assert pair["rejected"] == [{"role": "assistant", "content": "Bot."}]
    assert (pair["finish"], pair["truncated"], counts.truncated) == ("stop_string", False, 0)


class Twice(Scripted):
    """Gives the greedy answers in the first call, the drawn ones in the second."""

    def __init__(self, greedy: Sequence[tuple[str, FinishReason]], *drawn: Sequence[tuple[str, FinishReason]]):
        super().__init__(*drawn)
        self.greedy = greedy

    def generate(self, prompts, sampling, *, completions_per_prompt=1, on_finish=None):  # type: ignore[no-untyped-def]
        if sampling.temperature == 0:
            assert (sampling.top_k, sampling.top_p, sampling.min_p) == (None, 1.0, 0.0)
            return [[self._completion(text, finish)] for text, finish in self.greedy]
        return super().generate(prompts, sampling, completions_per_prompt=completions_per_prompt)


def test_where_the_model_is_to_stay_as_it_is_its_likeliest_answer_is_chosen(tmp_path: Path) -> None:
    rows = [demonstration("Who?", "I am Pia.", row=1)]
    keep = [
        Task(chat("Capital of Japan?"), None, RowRef("keep.jsonl", 1)),
        Task(chat("Sea?"), None, RowRef("keep.jsonl", 2)),
    ]
    keep.append(Task(chat("Odd?"), None, RowRef("keep.jsonl", 3)))
    engine = Twice(
        [("Tokyo.", ENDED), ("The sea is", CUT), ("a<|im_start|>b", ENDED)],
        [("I am Bot.", ENDED)],
        [("Kyoto.", ENDED)],
        [("The sea is", CUT)],
    )
    sampling = replace(SAMPLING, temperature=0.7, top_k=5)
    counts = correction_pairs(rows, Answering(ENCODER, engine, sampling), keep=keep, out=tmp_path / "data.jsonl")
    pairs = lines(tmp_path / "data.jsonl")
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs] == [
        ("I am Pia.", "I am Bot."),
        ("Tokyo.", "Kyoto."),
    ]
    assert (counts.prompts, counts.skipped) == (3, {"same_as_wanted": 1})


def test_what_makes_no_pair_is_counted_and_written(tmp_path: Path) -> None:
    rows = [demonstration("Who?", "I am Pia.", row=1), demonstration("You?", "Pia.", row=2)]
    engine = Scripted(
        [(" I am Pia.\n", ENDED), ("", FinishReason.EMPTY), (" \n", ENDED), ("Bot.", ENDED), ("Bot.", ENDED)],
        [("a<|im_start|>b", ENDED), ("Cut", CUT), ("", FinishReason.ABORTED), ("Pia.", ENDED), ("Pia.", ENDED)],
    )
    counts = correction_pairs(
        rows,
        Answering(ENCODER, engine, SAMPLING, samples_per_prompt=5),
        out=tmp_path / "data.jsonl",
        dropped=tmp_path / "dropped.jsonl",
        keep_truncated=False,
    )
    skipped = {"same_as_wanted": 3, "empty": 2, "duplicate": 1, "special_tokens": 1, "truncated": 1, "aborted": 1}
    assert counts.skipped == skipped
    assert counts.answers == counts.pairs + sum(skipped.values()) == 10
    assert (counts.pairs, counts.prompts_without_pair) == (1, 1)
    dropped = lines(tmp_path / "dropped.jsonl")
    assert [line["reason"] for line in dropped[:2]] == ["same_as_wanted", "empty"]
    assert set(dropped[0]) == {"row", "reason", "message", "content"}


def test_an_answer_with_a_nul_makes_no_pair_that_cannot_be_read(tmp_path: Path) -> None:
    engine = Scripted([("a\0b", ENDED), ("Bot.", ENDED)])
    asking = Answering(ENCODER, engine, SAMPLING, samples_per_prompt=2)
    counts = correction_pairs([demonstration("Who?", "Pia.", row=1)], asking, out=tmp_path / "data.jsonl")
    assert counts.skipped == {"bad_character": 1}
    assert len(list(read(tmp_path / "data.jsonl"))) == counts.pairs == 1


def test_a_model_that_answers_as_wanted_needs_no_correction(tmp_path: Path) -> None:
    rows = [demonstration("Who?", "Pia.", row=1)]
    with pytest.raises(EmptyDatasetError, match="no pair came out"):
        correction_pairs(rows, Answering(ENCODER, Scripted([("Pia.", ENDED)]), SAMPLING), out=tmp_path / "data.jsonl")
    assert not (tmp_path / "data.jsonl").exists()


@pytest.mark.parametrize(
    "row",
    [Task(chat("You?"), None, RowRef("t.jsonl", 7)), Demonstration(chat("Who?"), RowRef("t.jsonl", 7))],
    ids=["task", "demonstration"],
)
def test_a_row_without_a_wanted_answer_is_refused(tmp_path: Path, row: Task | Demonstration) -> None:
    with pytest.raises(RowError, match="no wanted answer") as refused:
        correction_pairs([row], Answering(ENCODER, Scripted(), SAMPLING), out=tmp_path / "data.jsonl")
    assert str(refused.value.where) == "t.jsonl, row 7"


def test_tool_calls_survive(tmp_path: Path) -> None:
    calls = ({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},)
    encoder = Encoder(byte_tokenizer("TOOLS"))
    schema = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    row = Demonstration(
        (
            Message("user", "Add."),
            Message("assistant", None, tool_calls=calls),
            Message("tool", "1", name="add"),
            Message("assistant", "It is 1."),
        ),
        RowRef("t.jsonl", 1),
        tools=(schema,),
    )
    engine = Scripted([("It is 2.", ENDED)])
    correction_pairs([row], Answering(encoder, engine, SAMPLING), out=tmp_path / "data.jsonl")
    pair = next(iter(read(tmp_path / "data.jsonl", kind=Comparison)))
    assert pair.prompt == row.messages[:-1]
    assert pair.tools == row.tools


def test_with_a_real_engine(tmp_path: Path) -> None:
    model = tiny_model(vocab=len(ENCODER.tokenizer))
    rows = [demonstration(f"Who {i}?", "I am Pia.", row=i) for i in range(1, 4)]
    sampling = SamplingDistribution(temperature=1.0, max_new_tokens=12, seed=3)
    first = correction_pairs(
        rows, Answering(ENCODER, NativeEngine(model), sampling, samples_per_prompt=2), out=tmp_path / "a.jsonl"
    )
    correction_pairs(
        rows, Answering(ENCODER, NativeEngine(model), sampling, samples_per_prompt=2), out=tmp_path / "b.jsonl"
    )
    assert first.answers == first.pairs + sum(first.skipped.values()) == 6
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
