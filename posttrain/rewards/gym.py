"""The tasks of reasoning-gym, each made by a program from a seed and scored by the task's own rule.

tasks("chain_sum", size=100, seed=0, max_terms=3)       # Task examples
tasks_of("reasoning_gym:chain_sum?size=100&seed=0&max_terms=3")
tasks_of("reasoning_gym:chain_sum?size=100&seed=0&max_terms=2&distinct=true")   # no question twice
"""

from __future__ import annotations

import base64
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from posttrain.errors import ConfigError, unknown
from posttrain.rewards import bounded
from posttrain.rewards.text import answer_of, gold, missing
from posttrain.types import Message, RowRef, Task

SOURCE = "reasoning_gym:"
SECONDS = 1.0
"""Of computing for one answer: some rules integrate, or run a program of the row's."""


def tasks(name: str, size: int = 1000, seed: int = 0, distinct: bool = False, **config: Any) -> list[Task]:
    """Tasks by the name that reasoning-gym gives them; the same arguments give the same tasks.

    Args:
        distinct: of tasks that ask the same, only the first: fewer than `size` where a program repeats itself.
        config: what the task's own settings are called there, such as `max_terms`.

    Raises:
        UnknownKeyError: no task, or no setting of it, has this name.
        MissingExtraError: reasoning-gym is not installed.
    """
    # As text with sorted keys, which the cache can hash: equal settings are one data set.
    dataset = _dataset(name, json.dumps({"size": size, "seed": seed, **config}, sort_keys=True))
    source = f"{SOURCE}{name}"
    kept: dict[str | int, tuple[int, Mapping[str, Any]]] = {}
    for index, entry in enumerate(dataset):
        kept.setdefault(entry["question"] if distinct else index, (index, entry))
    return [
        Task(
            (Message("user", entry["question"]),),
            None if entry["answer"] is None else str(entry["answer"]),
            RowRef(source, index + 1),
            # The entry itself goes with the row: the task's rule scores against it, without the data set that it came
            # from.
            {"reasoning_gym": {"name": name, "config": config, "entry": dict(entry)}},
        )
        for index, entry in kept.values()
    ]


def tasks_of(source: str) -> list[Task]:
    """Tasks by an address: reasoning_gym:NAME?size=100&seed=0&SETTING=VALUE; values are JSON where they can be."""
    name, _, query = source.removeprefix(SOURCE).partition("?")
    given: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            given[key] = json.loads(text)
        except ValueError:
            given[key] = text
    return tasks(name, **given)


def reasoning_gym(
    prompt: Sequence[Message], completion: str, task: Task, *, tag: str | None = None, partial: bool = False
) -> float | None:
    """The task's own score of the answer; abstains on rows that are not reasoning-gym's.

    Args:
        tag: the answer stands in this tag; None: it is all that follows the thoughts.
        partial: keep scores between 0 and 1, which some tasks give for an answer that only contains the right one;
            otherwise anything below 1 is 0.
    """
    given = task.metadata.get("reasoning_gym")
    if given is None:
        return None
    settings = json.dumps({"size": 1, "seed": 0, **given["config"]}, sort_keys=True)
    _dataset(given["name"], settings)  # here as well, so that a task that there is not is named
    entry = base64.b64encode(pickle.dumps(given["entry"])).decode()
    question = {
        "name": given["name"],
        "settings": settings,
        "entry": entry,
        "answer": answer_of(completion, tag) or None,
    }
    rule = f"the rule of `{given['name']}`"
    try:
        # In a process: several rules compute what the answer says ("9**9**9" of a countdown), and few expect nonsense.
        reply = bounded.Allowance(SECONDS).ask("gym", "reasoning_gym.factory", **question)
    except bounded.TooSlowError as error:
        bounded.say_zero("reasoning_gym", task, f"{rule}: {error}", completion)
        return 0.0
    if isinstance(reply, dict):
        # Some rules raise on any answer of another form than theirs, so that this is no warning.
        bounded.say_zero("reasoning_gym", task, f"{rule}: {reply['raised']}", completion, level=logging.INFO)
        return 0.0
    score = float(reply)
    # A part of the score goes to a long answer that only contains the right one: a policy learns to write these.
    return score if partial or score >= 1 else 0.0


def gold_of(task: Task, tag: str | None = None) -> str | None:
    return gold(task, tag) if "reasoning_gym" in task.metadata else None


@lru_cache(maxsize=64)
def _dataset(name: str, settings: str) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise missing("reasoning-gym", "reasoning_gym") from None
    given: Mapping[str, Any] = json.loads(settings)
    if name not in DATASETS:
        raise unknown(
            "task",
            name,
            DATASETS,
            problem=f"reasoning-gym has no task `{name}`",
            expected=f"one of its {len(DATASETS)} tasks",
            otherwise="its documentation lists them",
        )
    known = list(DATASETS[name][1].__dataclass_fields__)
    for key in given:
        if key not in known:
            problem = f"the reasoning-gym task `{name}` has no setting `{key}`"
            raise unknown("setting", key, known, problem=problem, otherwise="remove it")
    try:
        return create_dataset(name, **given)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reasoning-gym refuses these settings of {name!r}",
            found=f"{dict(given)} ({error})",
            remedy="correct them; its documentation says what each means",
        ) from None
