"""What a key of another tool becomes: the rows of the tables, one table a tool.

    "lora_r":             Goes("adapter.rank")
    "micro_batch_size":   Joint("rows_per_step", "x gradient_accumulation_steps x processes")
    "wandb_project":      Idle("figures are in `metrics.jsonl` and `report.html`")
    "neftune_noise_alpha": Cannot("no noise is added to embeddings", "leave it out")

Whoever reads a table knows what `posttrain convert` does, and docs/migrating.md is made of the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Reader = Callable[[Any], Any]
"""A value of the other tool -> the value here. Raises ValueError, in words for a person, where there is none."""


@dataclass(frozen=True, slots=True)
class Goes:
    """Goes("adapter.rank"): the value stands at this key of the stage; "/seed" is a key of the recipe itself."""

    key: str
    read: Reader | None = None
    """None: as it is."""
    remark: str = ""
    """What differs, for the page and the comment beside the key."""


@dataclass(frozen=True, slots=True)
class Joint:
    """Joint("rows_per_step", "x ..."): read together with other keys, by a function of the tool."""

    key: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle("rows are never padded"): nothing has to be written, and nothing that trains is lost."""

    because: str


@dataclass(frozen=True, slots=True)
class Cannot:
    """Cannot("no noise is added to embeddings", "..."): what it does is not done here."""

    why: str
    remedy: str
    off: tuple[Any, ...] = ()
    """Values, beside null, false and nothing at all, at which nothing is lost."""


Entry = Goes | Joint | Idle | Cannot


def empty(value: Any) -> bool:
    """Whether a value says that its key is not set. 0 is a value: a KL of weight 0 is not the default's."""
    return value is None or value is False or (isinstance(value, str | list | dict | tuple) and value in UNSET)


UNSET: tuple[Any, ...] = ("", "none", "None", [], {}, ())


def table(rows: Mapping[Entry, str]) -> dict[str, Entry]:
    """{Goes("adapter.rank"): "lora_r lora_rank"} -> {"lora_r": Goes(...), "lora_rank": Goes(...)}

    Raises:
        KeyError: a key has two rows.
    """
    result: dict[str, Entry] = {}
    for entry, names in rows.items():
        for name in names.split():
            if name in result:
                raise KeyError(f"{name} stands in two rows")
            result[name] = entry
    return result


# ---------------------------------------------------------------- readers that several tables share


def truth(value: Any) -> bool:
    """`true`, "True", 1 and their opposites, as command lines and YAML write them."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    found = words.get(str(value).lower())
    if found is None:
        raise ValueError(f"neither true nor false: {value}")
    return found


def number(value: Any) -> float:
    """YAML 1.1 reads `5e-5` as a text, and command lines have nothing else."""
    if isinstance(value, bool):
        raise ValueError(f"not a number: {value}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"not a number: {value}") from None


def whole(value: Any) -> int:
    found = number(value)
    if found != int(found):
        raise ValueError(f"not a whole number: {value}")
    return int(found)


def positive(value: Any) -> int:
    found = whole(value)
    if found < 1:
        raise ValueError(f"below 1: {value}")
    return found


def text(value: Any) -> str:
    return str(value)
