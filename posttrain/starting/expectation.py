"""How long it will take: the model's size, the tokens that train, and a matrix product that is timed on this machine.

An estimate for one line of a recipe, within a factor of two or so where the machine has nothing else to do. Rules of
thumb, not measurements of the run: 2 operations per weight and token forward, 4 backward (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1), of which an adapter leaves out those of the weights' own gradients.
"""

from __future__ import annotations

import json
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from posttrain.models.folders.catalogue import CATALOGUE, folder_of, is_here
from posttrain.models.folders.hub import looks_like_hub_id
from posttrain.starting.choices import TINY

EFFICIENCY = 0.5
"""Of the matrix product's speed that a training step reaches on a CPU: SmolLM2-135M on rows of 50 tokens."""
SIZE = 768
"""Of the matrices whose product is timed: about the width of a small model."""
AROUND = 60.0
"""Seconds of a run beside its steps: loading, checks, saving, reading back, the report."""
ANSWER_SECONDS = 0.5
"""Per sampled answer of a suite and per hundred million parameters; answers are made one token at a time."""
SIZES = {"K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True, slots=True)
class Model:
    """ModelFacts of a start: Model("smollm2-135m-instruct", here=True, parameters=134_515_008)."""

    name: str
    """As the recipe says it."""
    is_here: bool
    """Whether it can be loaded without fetching anything."""
    in_catalogue: bool
    parameters: int | None
    """None where neither its files nor its name say it."""

    @property
    def is_tiny(self) -> bool:
        return self.parameters is not None and self.parameters < TINY


def model_of(name: str) -> Model:
    """
    Raises:
        ModelError: no model has this name, and no folder.
    """
    if name in CATALOGUE:
        here = is_here(name)
        size = _parameters_in(folder_of(name)) if here else _parameters_said(CATALOGUE[name].parameters)
        return Model(name, here, True, size)
    path = Path(name).expanduser()
    if path.exists():
        return Model(str(path.resolve()), True, False, _parameters_in(path) if path.is_dir() else None)
    if not looks_like_hub_id(name):
        from posttrain.models.folders.source import resolve  # loads torch, which a right name does without

        resolve(name)  # raises, with the nearest name
    return Model(name, False, False, _parameters_said(name))


def _parameters_in(folder: Path) -> int | None:
    """From the headers of the weight files: no weight is read, and no torch."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for dimension in tensor["shape"]:
                    size *= dimension
                total += size
    return total or None


def _parameters_said(text: str) -> int | None:
    """ "Qwen/Qwen2.5-0.5B-Instruct" -> 500_000_000; "135 million" -> 135_000_000."""
    found = re.search(r"(\d+(?:\.\d+)?)\s?(million|[BMK])(?![a-z])", text, re.IGNORECASE)
    if found is None:
        return None
    return int(float(found[1]) * SIZES[found[2][0].upper()])


def operations_per_second() -> float:
    """Of one large product in float32, the best of a few: about 30 ms."""
    import numpy as np

    one = np.ones((SIZE, SIZE), dtype=np.float32)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best


def minutes(model: Model, tokens: float, answers: int, *, adapter: bool, speed: float) -> float | None:
    """Of training on so many tokens, with the run's suites; None where the size of the model is not known.

    Args:
        tokens: all that go through the model in training, over all epochs.
        answers: that its suites sample, before and after.
        speed: operations a second of a matrix product.
    """
    if model.parameters is None:
        return None
    per_token = (4 if adapter else 6) * model.parameters
    training = tokens * per_token / (EFFICIENCY * speed)
    return (AROUND + training + answers * ANSWER_SECONDS * model.parameters / 1e8) / 60


def in_words(value: float | None) -> str:
    """in_words(4.2) -> "about 4 minutes"; "" where it is not known."""
    if value is None:
        return ""
    if value < 1.5:
        return "a minute or two"
    if value < 90:
        return f"about {_round(value)} minutes"
    hours = value / 60
    return f"about {_round(hours)} hours" if hours < 48 else f"about {_round(hours / 24)} days"


def _round(value: float) -> int:
    """Two digits at most: more would promise a precision that is not there."""
    return round(value) if value < 20 else 5 * round(value / 5) if value < 100 else 10 * round(value / 10)
