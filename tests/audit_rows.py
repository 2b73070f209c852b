"""Rows for the tests of the audit: clean ones that no check may complain about, and a few ways to plant a fault."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from posttrain.types import Comparison, Demonstration, Feedback, Message, RowRef

_SUBJECTS = [
    "the baker",
    "a young teacher",
    "our neighbour",
    "the old bridge",
    "this recipe",
    "the committee",
    "a small garden",
    "the report",
    "my cousin",
    "the river",
    "an honest answer",
    "the machine",
    "every student",
    "the museum",
    "that painting",
    "the storm",
    "a good plan",
    "the doctor",
    "the village",
    "her letter",
    "the engine",
    "his theory",
    "the orchestra",
    "a quiet library",
    "the market",
    "the harvest",
    "a wooden boat",
]
_VERBS = [
    "shows",
    "explains",
    "carries",
    "needs",
    "follows",
    "changes",
    "protects",
    "measures",
    "describes",
    "supports",
    "repairs",
    "remembers",
    "improves",
    "costs",
    "avoids",
    "reaches",
    "collects",
    "opens",
    "builds",
    "delays",
    "replaces",
    "teaches",
    "divides",
    "mentions",
    "surprises",
    "helps",
    "feeds",
]
_OBJECTS = [
    "the main idea of the lesson",
    "a part of the roof",
    "three kinds of bread",
    "the way to the station",
    "what you asked for",
    "the price of a ticket",
    "more light in the morning",
    "a list of simple rules",
    "the colour of the leaves",
    "an early start",
    "the second half of the year",
    "the people in the valley",
    "a warm place for the night",
    "the answer to this question",
    "some water and a little salt",
    "the shape of the coast",
    "a copy of the contract",
    "the sound of the bells",
    "enough time to rest",
]
_LINKS = ["and", "but", "because", "while", "so that", "although", "before", "after", "when", "if"]
_OPENINGS = [
    "",
    "Today ",
    "Often ",
    "In short, ",
    "Here ",
    "For most people ",
    "At first ",
    "By then ",
    "As a rule ",
    "In the end ",
]

Responses = tuple[str, str]


def sentence(random_: random.Random) -> str:
    words = (
        random_.choice(_OPENINGS) + f"{random_.choice(_SUBJECTS)} {random_.choice(_VERBS)} {random_.choice(_OBJECTS)}"
    )
    while random_.random() < 0.45:
        link, subject = random_.choice(_LINKS), random_.choice(_SUBJECTS)
        words += f" {link} {subject} {random_.choice(_VERBS)} {random_.choice(_OBJECTS)}"
    return words[0].upper() + words[1:] + "."


def text(random_: random.Random) -> str:
    return " ".join(sentence(random_) for _ in range(random_.randint(1, 4)))


def question(random_: random.Random) -> str:
    return f"What is it that {random_.choice(_SUBJECTS)} {random_.choice(_VERBS)}, and why? {sentence(random_)}"


def pair(prompt: str, chosen: str, rejected: str, row: int, **more: object) -> Comparison:
    return Comparison(
        (Message("user", prompt),),
        ((Message("assistant", chosen),), (Message("assistant", rejected),)),
        winner=0,
        row=RowRef("pairs.jsonl", row),
        **more,  # type: ignore[arg-type]
    )


def clean_pairs(count: int = 400, seed: int = 0) -> list[Comparison]:
    """Both sides from one distribution: nothing but chance tells them apart."""
    random_ = random.Random(seed)
    return [pair(question(random_), text(random_), text(random_), row) for row in range(1, count + 1)]


def clean_lists(count: int = 200, seed: int = 1) -> list[Comparison]:
    random_ = random.Random(seed)
    found = []
    for row in range(1, count + 1):
        responses = tuple((Message("assistant", text(random_)),) for _ in range(4))
        order = random_.sample(range(4), 4)
        found.append(
            Comparison(
                (Message("user", question(random_)),), responses, order[0], RowRef("lists.jsonl", row), tuple(order)
            )
        )
    return found


def clean_feedback(count: int = 400, seed: int = 2) -> list[Feedback]:
    random_ = random.Random(seed)
    return [
        Feedback(
            (Message("user", question(random_)),),
            (Message("assistant", text(random_)),),
            row % 2 == 0,
            RowRef("kto.jsonl", row),
        )
        for row in range(1, count + 1)
    ]


def clean_demonstrations(count: int = 300, seed: int = 3) -> list[Demonstration]:
    random_ = random.Random(seed)
    return [
        Demonstration(
            (Message("user", question(random_)), Message("assistant", text(random_))), RowRef("sft.jsonl", row)
        )
        for row in range(1, count + 1)
    ]


def changed(
    pairs: Sequence[Comparison], share: float, change: Callable[[str, str], Responses], seed: int = 7
) -> list[Comparison]:
    """The pairs, a share of them with other responses: change(chosen, rejected) -> (chosen, rejected)."""
    random_ = random.Random(seed)
    return [with_responses(one, change(*texts(one))) if random_.random() < share else one for one in pairs]


def with_responses(one: Comparison, responses: Responses) -> Comparison:
    return replace(one, responses=tuple((Message("assistant", response),) for response in responses))


def texts(one: Comparison) -> Responses:
    chosen, rejected = (response[0].content or "" for response in one.responses)
    return chosen, rejected


def renumbered(rows: Sequence[Comparison]) -> list[Comparison]:
    return [replace(one, row=RowRef("pairs.jsonl", number)) for number, one in enumerate(rows, 1)]
