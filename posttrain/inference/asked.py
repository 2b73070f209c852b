"""Who is asked, for all prompts alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from posttrain.config.strategies.base import AnswerEquality
from posttrain.data.encode import Encoder
from posttrain.inference.answers import Equality
from posttrain.inference.scorers import Scorers
from posttrain.rollout.engine import Engine

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Asked:
    """A model, its scorers, and what strategies keep for all prompts: Asked(engine, encoder, scorers, seed=0)."""

    engine: Engine
    encoder: Encoder
    scorers: Scorers
    seed: int = 0
    folder: Path | None = None
    """Of the recipe: where functions are looked for that it names."""
    _made: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What a strategy needs for all prompts, made for the first: an index, demonstrations, another model."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def located(self, path: str) -> str:
        """A file or folder that the strategy names: beside the recipe if it is there, else as it stands."""
        beside = None if self.folder is None else self.folder / Path(path).expanduser()
        return str(beside) if beside is not None and beside.exists() else path

    def equality(self, settings: AnswerEquality) -> Equality:
        """When two answers are one."""
        return Equality(settings, self.folder)
