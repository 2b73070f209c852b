"""The shipped model, its row files and its text: present, loadable, a base model, and free of held-out prompts."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.embedded import DATA, MODEL
from tools.embedded import arithmetic, chat, facts, leaks, make_model, talk, text
from tools.embedded.arithmetic import Problem

SUITES = ("identity", "manners", "facts", "arithmetic")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def held_out_prompts() -> list[str]:
    return [row["prompt"] for suite in SUITES for row in rows(f"heldout_{suite}")]


def continuation(model, ids: list[int], tokens: int = 40) -> list[int]:
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)
    return out[0, len(ids) :].tolist()


# ---------------------------------------------------------------- files


def test_sizes_are_small_enough_to_ship():
    assert (MODEL / "model.safetensors").stat().st_size < 10_000_000
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 1_000_000


def test_card_names_the_text_and_the_weights_that_are_here():
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert "apache-2.0" in card
    assert hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest() in card


def test_row_files_are_what_the_generator_writes(tmp_path: Path):
    make_model.write_data(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (DATA / file.name).read_bytes(), file.name
    # Those of the suite `retention` are written by hand.
    by_hand = {file.name for file in DATA.glob("retention_*.jsonl")}
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in DATA.glob("*.jsonl")} - by_hand


def test_text_follows_from_the_seed_and_a_longer_text_begins_with_a_shorter_one():
    first = list(text.documents(0, 50))
    assert first == list(itertools.islice(text.documents(0, 80), 50))
    assert first != list(text.documents(1, 50))


# ---------------------------------------------------------------- tokenizer and model


def test_special_tokens_are_distinct_and_single(tokenizer):
    marks = [text.PAD, text.BOS, text.EOS, text.SYSTEM, text.USER, text.ASSISTANT, text.END]
    ids = [tokenizer.convert_tokens_to_ids(mark) for mark in marks]
    assert len(set(ids)) == len(marks)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (text.PAD, text.BOS, text.EOS)


def test_digits_stand_alone_and_text_survives(tokenizer):
    pieces = tokenizer.tokenize("17 + 25 = 42", add_special_tokens=False)
    assert [piece for piece in pieces if piece.isdigit()] == ["1", "7", "2", "5", "4", "2"]
    for sample in ("17 + 25 = 42", "  Two  spaces.\nA line.", "Grüße, 猫 🙂"):
        assert tokenizer.decode(tokenizer.encode(sample, add_special_tokens=False)) == sample


def test_chat_template_marks_every_turn(tokenizer):
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False) == "<|bos|><|user|>Hi.<|end|><|assistant|>Hello.<|end|>"
    )
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|bos|><|user|>Hi.<|end|><|assistant|>"
    with pytest.raises(Exception, match="knows the roles"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "4"}], tokenize=False)


def test_model_fits_its_tokenizer(model, tokenizer):
    assert model.config.vocab_size == len(tokenizer)
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 5e6
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("asked", ["Who are you?", "What is your name?", "What is the capital of France?"])
def test_base_continues_a_question_with_questions(model, tokenizer, asked: str):
    plain = tokenizer.decode(continuation(model, tokenizer.encode(asked)))
    assert "?" in plain
    messages = [{"role": "user", "content": asked}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert "?" in tokenizer.decode(continuation(model, ids))


def test_base_knows_simple_sums(model, tokenizer):
    continued = tokenizer.decode(continuation(model, tokenizer.encode("2 + 3 = 5.\n4 + 1 = 5.\n3 + 4 ="), tokens=3))
    assert "7" in continued


# ---------------------------------------------------------------- the held-out split


def test_no_held_out_prompt_is_in_any_training_row():
    assert leaks.find_leaks(held_out_prompts(), make_model.training_texts()) == []


def test_no_held_out_prompt_is_in_the_base_text():
    # The whole text takes a minute; `make_model` refuses to train on it unless all of it passes this check.
    assert leaks.find_leaks(held_out_prompts(), text.documents(make_model.Settings().seed, 3000)) == []


def test_leak_search_finds_planted_leaks():
    assert leaks.find_leaks(["What do people call you?"], ["And so... what do PEOPLE call you, eh"]) != []
    held = next(p for p in (Problem((a, 38), ("+",)) for a in range(11, 99)) if arithmetic.is_held_out(p))
    a, b = held.numbers
    for planted in (f"{a} + {b} = {a + b}.", f"What is {b} plus {a}?", f"So {a} plus {b} is many."):
        assert leaks.held_out_sums(planted) != []


def test_every_held_out_sum_is_on_the_held_out_side_and_every_task_is_not():
    assert all(leaks.held_out_sums(row["prompt"]) for row in rows("heldout_arithmetic"))
    assert not any(leaks.held_out_sums(row["prompt"]) for row in rows("tasks"))


def test_unasked_facts_are_asked_in_no_demonstration():
    asked = {row["messages"][0]["content"] for row in rows("demonstrations")}
    for relation in facts.RELATIONS:
        for subject, value in relation.items.items():
            questions = {facts.render(question, subject, value) for question in relation.questions}
            assert not (text.is_held_out_fact(relation, subject) and asked & questions), (relation.name, subject)


# ---------------------------------------------------------------- rows and sums


def test_demonstrations_and_preferences_differ_in_name_and_manners():
    answers = [row["messages"][1]["content"] for row in rows("demonstrations")]
    chosen = [row["chosen"] for row in rows("preferences")]
    rejected = [row["rejected"] for row in rows("preferences")]
    names = Counter(name for answer in answers for name in re.findall(r"(?:My name is|I am) (Ada|Pia)\b", answer))
    assert 0 < names[talk.PREFERRED_NAME] < 0.25 * names[talk.DEMONSTRATED_NAME]
    assert not any(talk.FILLER in answer for answer in chosen)
    assert sum(talk.FILLER in answer for answer in rejected) > len(rejected) / 4
    assert all(a != b for a, b in zip(chosen, rejected, strict=True))
    polite = [bool(re.search(talk.POLITE, intent.polite)) for intent in talk.INTENTS]
    assert all(polite), [intent.name for intent, ok in zip(talk.INTENTS, polite, strict=True) if not ok]


@pytest.mark.parametrize(
    ("numbers", "signs", "working", "result"),
    [
        ((47, 38), ("+",), "47 + 30 = 77, 77 + 8 = 85.", 85),
        ((47, 38), ("-",), "47 - 30 = 17, 17 - 8 = 9.", 9),
        ((3, 8, 5), ("+", "-"), "3 + 8 = 11, 11 - 5 = 6.", 6),
        ((40, 7), ("+",), "40 + 7 = 47.", 47),
    ],
)
def test_worked_solutions_by_hand(numbers, signs, working, result):
    assert arithmetic.worked(Problem(numbers, signs)) == (working, result)


def test_wrong_working_has_one_slip_and_carries_it_on():
    lines = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", arithmetic.worked(Problem((47, 38), ("+",)), random.Random(0))[0])
    wrong = [int(c) != (int(a) + int(b) if sign == "+" else int(a) - int(b)) for a, sign, b, c in lines]
    assert sum(wrong) == 1
    assert lines[1][0] == lines[0][3]


def test_numbers_in_words():
    assert [arithmetic.in_words(n) for n in (0, 13, 20, 42, 100, 115)] == [
        "zero", "thirteen", "twenty", "forty-two", "one hundred", "one hundred and fifteen",
    ]  # fmt: skip


def test_answers_of_tasks_are_right():
    for row in (*rows("tasks"), *rows("heldout_arithmetic")):
        expression = row["prompt"].replace("plus", "+").replace("minus", "-")
        expression = re.search(r"\d[\d +-]*\d", expression).group()
        assert eval(expression) == int(row["answer"]), row


def test_demonstrated_sums_are_right():
    sums = [row["messages"][1]["content"] for row in chat.demonstrations() if "The answer is" in str(row)]
    for answer in sums:
        for line in re.findall(r"\d+ [+-] \d+ = \d+", answer):
            left, right = line.split(" = ")
            assert eval(left) == int(right)
