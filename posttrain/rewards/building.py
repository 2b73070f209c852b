"""From a recipe's entry to a scorer, for the kinds whose function takes the entry's own keys.

A kind with more to do has a `build` of its own beside its function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.rewards.scorer import RewardFunction, Scorer

if TYPE_CHECKING:  # the recipe's records load torch, for the table of objectives among them
    from posttrain.config.rewards import RewardSettings

Build = Callable[[Any, Path | None], Scorer]
"""(the entry, the folder of the recipe) -> its scorer."""

_SHARED = {"kind", "weight", "name"}


def options(settings: RewardSettings, *without: str) -> dict[str, Any]:
    """The keys of an entry that are its kind's own, without those named."""
    names = set(type(settings).model_fields) - _SHARED - set(without)
    return {name: vars(settings)[name] for name in names}


def plain(function: RewardFunction, gold: Callable[..., str | None] | None = None) -> Build:
    """A row for a function whose keywords are the settings' own keys."""

    def build(settings: RewardSettings, folder: Path | None) -> Scorer:
        given = {name.rstrip("_"): value for name, value in options(settings).items()}
        kept = functools.partial(gold, **{k: v for k, v in given.items() if k == "tag"}) if gold else None
        return Scorer(settings.label, functools.partial(function, **given), settings.weight, kept)

    return build


def of_row(function: RewardFunction, key: str) -> Build:
    """As above; it verifies rows only where each row says itself what is wanted."""

    def build(settings: RewardSettings, folder: Path | None) -> Scorer:
        made = plain(function)(settings, folder)
        if vars(settings)[key] is not None:
            return made
        name = key.rstrip("_")
        return Scorer(
            made.name,
            made.function,
            made.weight,
            lambda task: task.answer if name in task.metadata else None,
            needs=f"column `{name}`",
        )

    return build


def beside(text: str, folder: Path | None, *, must_exist: bool = False) -> str | Path:
    """A path of a recipe is relative to its file; a name that is no path stays a name."""
    path = (folder or Path()) / Path(text).expanduser()
    return text if must_exist and not path.exists() else path
