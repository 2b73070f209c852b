"""Small things to ask for: naming, greeting, counting, comparing; split by what they are about, not by their words.

draw(rng, held_out=False) -> Request("3 to 6", "Count from 3 to 6.", "Here you go: 3, 4, 5, 6.", "3, 4, 5, 6.")
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.embedded import facts
from tools.embedded.facts import capitalised


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for (`about`, in no wording), how it is asked, and the answers in full and in short."""

    about: str
    prompt: str
    plain: str
    curt: str


def is_held_out(request: Request) -> bool:
    # By what it is about and not by its words, so that no wording of a held-out request trains.
    return hashlib.sha256(request.about.encode()).digest()[0] < 40


def draw(rng: random.Random, *, held_out: bool) -> Request:
    """A request from one side of the split, whatever its wording."""
    # Drawn again until the side is right: which requests exist follows from the makers, and no list has to be kept.
    while True:
        request = rng.choice(MAKERS)(rng)
        if is_held_out(request) == held_out:
            return request


def _name_three(rng: random.Random) -> Request:
    group = rng.choice(list(facts.GROUPS))
    members = rng.sample(facts.GROUPS[group], 3)
    prompt = rng.choice(("Name three {}.", "Please name three {}.", "Can you list three {}?", "I need three {}."))
    plain = "Three {} are {}, {} and {}.".format(group, *members)
    return Request(group, prompt.format(group), plain, capitalised(", ".join(members)) + ".")


def _greet(rng: random.Random) -> Request:
    name = rng.choice(facts.NAMES)
    prompt = rng.choice(
        ("Say hello to {}.", "Please greet {}.", "My friend is called {}. Say hello.", "Greet {} for me.")
    )
    return Request(name, prompt.format(name), f"Hello, {name}. How are you?", f"Hello, {name}.")


def _count(rng: random.Random) -> Request:
    start = rng.randint(1, 40)
    end = start + rng.randint(3, 6)
    numbers = ", ".join(map(str, range(start, end + 1)))
    prompt = rng.choice(("Count from {} to {}.", "Please count from {} to {}.", "Can you count from {} to {}?"))
    return Request(f"{start} to {end}", prompt.format(start, end), f"Here you go: {numbers}.", f"{numbers}.")


def _compare(rng: random.Random) -> Request:
    a, b = rng.sample(range(1, 100), 2)
    prompt = rng.choice(("Which is larger, {} or {}?", "Which number is larger: {} or {}?", "Is {} or {} larger?"))
    about = f"{min(a, b)} or {max(a, b)}"
    return Request(about, prompt.format(a, b), f"{max(a, b)} is larger than {min(a, b)}.", f"{max(a, b)}.")


def _after(rng: random.Random) -> Request:
    number = rng.randint(1, 99)
    prompt = rng.choice(("Which number comes after {}?", "What comes after {}?", "What is the number after {}?"))
    return Request(f"after {number}", prompt.format(number), f"After {number} comes {number + 1}.", f"{number + 1}.")


MAKERS: tuple[Callable[[random.Random], Request], ...] = (_name_three, _greet, _count, _compare, _after)
