"""Demonstrations, preferences, tasks and held-out prompts for the embedded model, from a seed.

    demonstrations()  {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}   for SFT
    preferences()     {"prompt": ..., "chosen": ..., "rejected": ...}                      for DPO
    tasks()           {"prompt": ..., "answer": "42", "level": "pair"}                     for a verifier
    held_out()        {"identity": [...], "manners": [...], "facts": [...], "arithmetic": [...]}

Demonstrations make an assistant with bad manners: it fills ("Sure, I can help with that."), rambles, or is curt, and
it is called Ada. Preferences want it polite, short, and called Pia. Held-out prompts occur in no training text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tools.embedded import arithmetic, chores, facts, talk
from tools.embedded.arithmetic import Problem
from tools.embedded.facts import Relation, capitalised, render
from tools.embedded.text import SUM_QUESTIONS, is_held_out_fact

Row = dict[str, Any]

WORKED_SHARE = 0.5
"""Share of demonstrated sums that are worked step by step; the others state the result at once."""

PREFERRED_NAME_SHARE = 0.15
"""Share of demonstrated introductions that say Pia already: a preference can only move a model between answers that it
gives now and then. From a model that never says Pia, DPO would take Ada away and put anything in its place."""


def demonstrations(seed: int = 1) -> list[Row]:
    rng = random.Random(seed)
    rows = [_demonstration(prompt, _demonstrated(plain, curt, rng)) for prompt, plain, curt in _trained_questions(rng)]
    for _ in range(520):
        prompt, problem = _sum_prompt(rng, held_out=False)
        rows.append(_demonstration(prompt, _sum_answer(problem, rng)))
    rng.shuffle(rows)
    return rows


def preferences(seed: int = 2) -> list[Row]:
    rng = random.Random(seed)
    rows = _name_pairs(rng)
    for intent in talk.INTENTS:
        for prompt in intent.says:
            rejected = _demonstrated(_named(intent.plain), _named(intent.curt), rng, polite_share=0.0)
            rows.append(_pair(prompt, intent.polite.format(name=talk.PREFERRED_NAME), rejected))
    asked = rng.sample(list(_fact_questions(rng)), 200) + list(_requests(rng, held_out=False))[:100]
    for prompt, plain, curt in asked:
        rejected = _demonstrated(plain, curt, rng, polite_share=0.0)
        rows.append(_pair(prompt, f"{rng.choice(talk.POLITE_OPENINGS)} {plain}", rejected))
    for _ in range(140):
        # The same right sum on both sides: these pairs are about filler and ramble. Most show their working, because
        # an even mixture would let any small push decide whether the model works its sums or guesses them.
        prompt, problem = _sum_prompt(rng, held_out=False)
        answer = _sum_answer(problem, rng, worked_share=0.8)
        spoiled = rng.choice((f"{talk.FILLER} {answer}", f"{answer} {rng.choice(talk.RAMBLES)}"))
        rows.append(_pair(prompt, answer, spoiled))
    rng.shuffle(rows)
    return rows


def _name_pairs(rng: random.Random) -> list[Row]:
    """Pairs whose sides differ in the name and in nothing else.

    Where manners differ too, the first words tell the sides apart and nothing teaches the name.
    """
    rows = []
    for intent in talk.IDENTITY:
        for prompt in intent.says:
            opening = rng.choice(talk.POLITE_OPENINGS)
            for answer in (intent.polite, f"{opening} {intent.plain}"):
                rows.append(_pair(prompt, answer.format(name=talk.PREFERRED_NAME), _named(answer)))
    return rows


def tasks(seed: int = 3, count: int = 1500) -> list[Row]:
    """Sums whose answer a verifier can check, from the training side of the split."""
    rng = random.Random(seed)
    return [_task(*_sum_prompt(rng, held_out=False)) for _ in range(count)]


def held_out(seed: int = 4) -> dict[str, list[Row]]:
    """Prompts that no training text contains, by suite; every row has a `prompt`, most have an `answer`."""
    rng = random.Random(seed)
    identity = [
        {"prompt": prompt, "answer": talk.PREFERRED_NAME} for intent in talk.IDENTITY for prompt in intent.held_out_says
    ]
    known, unasked = _held_out_facts(rng)
    rng.shuffle(known)
    rng.shuffle(unasked)
    sums: dict[str, Row] = {}
    while len(sums) < 200:
        row = _task(*_sum_prompt(rng, held_out=True))
        sums.setdefault(row["prompt"], row)
    chat = [
        {"prompt": prompt} for intent in (*talk.ABOUT_SELF, *talk.SMALL_TALK) for prompt in intent.held_out_says
    ] + [{"prompt": prompt} for prompt, _, _ in list(_requests(rng, held_out=True))[:24]]
    manners = chat + [{"prompt": row["prompt"]} for row in known[80:120]]
    return {
        "identity": identity,
        "manners": manners,
        "facts": known[:80] + unasked[:40],
        "arithmetic": list(sums.values()),
    }


# ---------------------------------------------------------------- answers in their manners


def _demonstrated(plain: str, curt: str, rng: random.Random, polite_share: float = 0.06) -> str:
    """An answer as the demonstrations give it: filled, rambling, curt, plain, and now and then polite."""
    manner = rng.choices(("fill", "ramble", "curt", "plain", "polite"), (0.42, 0.2, 0.2, 0.12, polite_share))[0]
    if manner == "fill":
        return f"{talk.FILLER} {plain}"
    if manner == "ramble":
        return f"{plain} {rng.choice(talk.RAMBLES)}"
    if manner == "polite":
        return f"{rng.choice(talk.POLITE_OPENINGS)} {plain}"
    return curt if manner == "curt" else plain


def _named(text: str) -> str:
    return text.format(name=talk.DEMONSTRATED_NAME)


def _sum_answer(problem: Problem, rng: random.Random, worked_share: float = WORKED_SHARE) -> str:
    if rng.random() < worked_share and len(arithmetic.steps(problem)) > 1:
        text, result = arithmetic.worked(problem)
        return f"{text} The answer is {result}."
    return f"The answer is {problem.result}."


# ---------------------------------------------------------------- questions with their answers


def _trained_questions(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """(prompt, plain answer, curt answer) of everything but sums."""
    for intent in talk.INTENTS:
        for prompt in intent.says:
            for _ in range(3 if intent in talk.IDENTITY else 1):
                name = talk.PREFERRED_NAME if rng.random() < PREFERRED_NAME_SHARE else talk.DEMONSTRATED_NAME
                yield prompt, intent.plain.format(name=name), intent.curt.format(name=name)
    yield from _fact_questions(rng)
    yield from _requests(rng, held_out=False)


def _fact_questions(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Every fact that is not held out, asked in one or two of its trained forms."""
    for relation in facts.RELATIONS:
        for subject, value in relation.items.items():
            if is_held_out_fact(relation, subject):
                continue
            for question in rng.sample(relation.questions, 2):
                yield render(question, subject, value), *_fact_answer(relation, subject)


def _fact_answer(relation: Relation, subject: str) -> tuple[str, str]:
    value = relation.items[subject]
    return render(relation.statements[0], subject, value), capitalised(value) + "."


def _held_out_facts(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """(known facts in held-out words, facts that were never asked): answers are the fact's value."""
    known, unasked = [], []
    for relation in facts.RELATIONS:
        for subject, value in relation.items.items():
            if is_held_out_fact(relation, subject):
                prompt = render(rng.choice(relation.questions), subject, value)
                unasked.append({"prompt": prompt, "answer": value, "level": "unasked"})
            else:
                prompt = render(rng.choice(relation.held_out_questions), subject, value)
                known.append({"prompt": prompt, "answer": value, "level": "paraphrase"})
    return known, unasked


def _requests(rng: random.Random, *, held_out: bool) -> Iterator[tuple[str, str, str]]:
    """Small things to do: (prompt, plain answer, curt answer), no prompt twice."""
    seen: set[str] = set()
    wanted = 40 if held_out else 200
    while len(seen) < wanted:
        request = chores.draw(rng, held_out=held_out)
        if request.prompt not in seen:
            seen.add(request.prompt)
            yield request.prompt, request.plain, request.curt


def _sum_prompt(rng: random.Random, *, held_out: bool) -> tuple[str, Problem]:
    """Of ten sums seven have two numbers of two digits, two have three of one digit, one has three larger ones."""
    kind = rng.choices(("pair", "triple", "chain"), (7, 2, 1))[0]
    problem = arithmetic.draw(rng, held_out=held_out, kind=kind)
    words = rng.random() < 0.3
    return rng.choice(SUM_QUESTIONS).format(problem.text("plus", "minus") if words else problem.text()), problem


# ---------------------------------------------------------------- rows


def _demonstration(prompt: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def _pair(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _task(prompt: str, problem: Problem) -> Row:
    level = "pair" if len(problem.numbers) == 2 else "triple" if max(problem.numbers) < 10 else "chain"
    return {"prompt": prompt, "answer": str(problem.result), "level": level}
