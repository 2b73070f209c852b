"""What an identity recipe needs of the rows: the name that they teach, and questions about it that do not train."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files

from posttrain.errors import ConfigError
from posttrain.types import Demonstration

FEWEST_SHARE = 0.2
"""A name that fewer of the answers say is most likely not what the rows teach."""
HELD_OUT_SHARE = 0.2
"""Of the rows, where the questions have to come from them: of 60 rows 12."""
MOST_QUESTIONS = 40
"""Enough for an interval of about 15 points to each side, and answered in seconds."""

_SAYS_NAME = re.compile(
    r"(?:\bI am|\bI'm|\bI’m|\bmy name is|\bcall me|\bcalled|\bnamed|\bthis is|\bit is|\bit's|\bto"
    r"|\bich bin|\bich heiße|\bmein name ist|\bje suis|\bje m'appelle|\bsoy|\bme llamo|\bsono|\bmi chiamo)"
    r"\s+([^\W\d_][\w-]+)",
    re.IGNORECASE,
)
"""Phrases before a name in languages whose names are written with a capital letter; elsewhere `--name` says it."""
_ENGLISH = re.compile(r"\b(?:you|your|who|what|the|is|are|name)\b", re.IGNORECASE)


def answers_of(row: Demonstration) -> str:
    return "\n".join(message.content or "" for message in row.messages if message.role == "assistant")


def question_of(row: Demonstration) -> str:
    """What the user says first; "" where no user speaks."""
    return next((message.content or "" for message in row.messages if message.role == "user"), "")


def pattern_of(name: str) -> str:
    """The name as a word of its own, in any place: "Pia" -> r"\\bPia\\b"."""
    escaped = re.escape(name).replace(r"\ ", " ")
    # No \b beside a sign that is no letter: between "!" and a blank there is no border of a word.
    return ("\\b" if name[:1].isalnum() else "") + escaped + ("\\b" if name[-1:].isalnum() else "")


def share_that_says(name: str, rows: list[Demonstration]) -> float:
    pattern = re.compile(pattern_of(name))
    return sum(bool(pattern.search(answers_of(row))) for row in rows) / len(rows)


def name_in(rows: list[Demonstration], data: str) -> str:
    """The name that most answers say of themselves.

    Raises:
        ConfigError: no name is said in a fifth of the answers.
    """
    found: Counter[str] = Counter()
    for row in rows:
        # Once a row: an answer that says its name three times is one answer.
        found.update({word for word in _SAYS_NAME.findall(answers_of(row)) if word[:1].isupper()})
    # By all answers that hold it, in whatever phrase: "Nuri, at your service" says it too.
    shares = {name: share_that_says(name, rows) for name, _ in found.most_common(5)}
    best = max(shares, key=lambda name: shares[name], default=None)
    if best is None or shares[best] < FEWEST_SHARE:
        likeliest = f"`{best}` in {shares[best]:.0%} of the answers" if best else "no phrase such as `I am NAME`"
        raise ConfigError(
            "no name stands out in the answers",
            where=data,
            found=likeliest,
            expected=f"one that at least {FEWEST_SHARE:.0%} of the answers say",
            remedy="say it with `--name NAME`; rows that teach no name are for `posttrain new chat`",
        )
    return best


def check_name(name: str, rows: list[Demonstration], data: str) -> float:
    """The share of the answers that say the name.

    Raises:
        ConfigError: none does, so that no training on these rows could teach it.
    """
    if not name.strip():
        raise ConfigError("the name is empty", where="--name", remedy="write `--name Pia`")
    share = share_that_says(name, rows)
    if share == 0:
        raise ConfigError(
            f"no answer says `{name}`, so nothing would teach it",
            where=data,
            found=f"0 of {len(rows)} answers",
            expected="most answers about the assistant say its name",
            remedy="write it into the answers, spelt as in `--name`, or leave `--name` out to have it found",
        )
    return share


def are_english(rows: list[Demonstration]) -> bool:
    """Whether questions in English fit these rows: most of theirs hold one of the commonest words."""
    return sum(bool(_ENGLISH.search(question_of(row))) for row in rows) > len(rows) / 2


def shipped_questions(rows: Iterable[Demonstration]) -> list[str]:
    """Questions of ours about a name and a maker, without those that the rows ask in the same words."""
    trained = {_bare(question_of(row)) for row in rows}
    ours = [str(row["prompt"]) for row in shipped_rows("questions")]
    return [question for question in ours if _bare(question) not in trained][:MOST_QUESTIONS]


def shipped_rows(name: str) -> list[dict[str, object]]:
    """Of a file of ours: "questions" about a name and a maker, or "ordinary" questions with short answers."""
    text = (files("posttrain") / "starting" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def split(rows: list[Demonstration], name: str) -> tuple[list[Demonstration], list[Demonstration]]:
    """(rows that train, rows whose questions are kept back): every fifth of those that say the name.

    Rows that ask the same stay on one side, or the questions would measure memory.
    """
    says = re.compile(pattern_of(name))
    asked: dict[str, list[Demonstration]] = {}
    for row in rows:
        asked.setdefault(_bare(question_of(row)), []).append(row)
    fitting = [key for key, group in asked.items() if key and all(says.search(answers_of(row)) for row in group)]
    every = round(1 / HELD_OUT_SHARE)
    kept = set(fitting[every - 1 :: every][:MOST_QUESTIONS])
    return (
        [row for key, group in asked.items() if key not in kept for row in group],
        [group[0] for key, group in asked.items() if key in kept],
    )


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
