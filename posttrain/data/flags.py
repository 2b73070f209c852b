"""Flags in a turn that say whether it trains, under the names that the tools give them; read by `messages.py`.

train_flag({"role": "assistant", "content": "4", "loss": False}, "assistant", "turn 2 of 'messages'")    # False
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from posttrain.data.noted import KeyNotes, is_filled
from posttrain.data.refusals import named_type, refuse, shown

FLAGS: Mapping[str, bool] = {
    "train": True,  # ours; also Axolotl
    "training": True,  # Axolotl's `message_field_training`
    "trainable": True,
    "train_on_turn": True,
    "loss": True,  # ms-swift, XTuner
    "loss_scale": True,  # ms-swift
    "loss_weight": True,  # LLaMA-Factory
    "loss_mask": True,  # verl
    "weight": True,  # OpenAI, Mistral
    "mask": False,  # a masked turn does not train
    "masked": False,  # torchtune
}
"""Key in a turn -> whether a yes there means that the turn trains."""
SPANS = ("train_detail", "training_detail")
"""Axolotl's marks of parts of a turn, which cannot be honoured: one turn trains as a whole."""
_YES, _NO = ("true", "1", "1.0"), ("false", "0", "0.0")


def train_flag(turn: Mapping[str, Any], role: str, place: str, noted: KeyNotes | None = None) -> bool | None:
    """What the turn says of itself: True trains it, False does not, None leaves it to the rule of the run.

    A no counts in every turn. A yes makes a turn of another role train only under our own name, `train: true`: the
    tools whose names the others are do not train such turns, though their files say yes there.

    Raises:
        RowError: a value between yes and no, or two flags that contradict each other.
    """
    for key in SPANS:
        if is_filled(turn.get(key)):
            raise _partial_turn(key, turn[key], place)
    trains_by_key: dict[str, bool] = {}
    for key in turn:
        if key in FLAGS and (answer := _parse_flag(turn[key], key, place)) is not None:
            trains_by_key[key] = answer is FLAGS[key]

    if not trains_by_key:
        return None
    if len(set(trains_by_key.values())) > 1:
        raise refuse(
            "bad_flag",
            f"the flags of {place} contradict one another",
            found=", ".join(
                f"`{key}`: {shown(turn[key])} ({'trains' if yes else 'does not train'})"
                for key, yes in trains_by_key.items()
            ),
            expected="one flag, or several that say the same",
            remedy="leave one of them: `train: true` or `train: false` is enough",
        )

    trains = next(iter(trains_by_key.values()))
    if trains and role != "assistant" and "train" not in trains_by_key:
        if noted is not None:
            for key in trains_by_key:
                noted.key("turn", f"{key} (a yes in a turn of the {role})")
        return None
    return trains


def refuse_part_flag(part: Mapping[str, Any], place: str) -> None:
    """Refuses a part of a content that says of itself that it must not train: it would train with the turn.

    Raises:
        RowError: one of the flags in the part says no, or says neither yes nor no.
    """
    for key in part:
        if key in FLAGS and (answer := _parse_flag(part[key], key, place)) is not None and answer is not FLAGS[key]:
            raise _partial_turn(key, part[key], place, where="a part of a turn")


def _parse_flag(value: Any, key: str, place: str) -> bool | None:
    """True for yes, False for no, None for an empty value."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _YES or word in _NO:
            return word in _YES
        if not word:
            return None
    elif isinstance(value, int | float):
        if value in (0, 1):
            return bool(value)
        if math.isnan(value):
            return None
    is_number = isinstance(value, int | float)
    raise refuse(
        "bad_flag",
        f"`{key}` in {place} is {shown(value)}",
        found=named_type(value),
        expected="true or false, 0 or 1: whether this turn trains"
        + ("; a turn trains in full or not at all, there is no weight between" if is_number else ""),
        remedy="write true or false, or leave the key out to follow the rule of the run; if it measures something "
        "else, give it another name",
    )


def _partial_turn(key: str, value: Any, place: str, where: str = "parts of the turn") -> Exception:
    return refuse(
        "bad_flag",
        f"`{key}` in {place} marks {where}, but a turn trains in full or not at all",
        found=shown(value),
        expected="one flag for the whole turn: `train: true` or `train: false`",
        remedy=f"remove `{key}`, or cut the turn's row before the part that must not train; known flags are "
        f"{', '.join(f'`{flag}`' for flag in FLAGS)}",
    )
