"""Our merges against mergekit's own, tensor by tensor, with the scaling set alike.

    python3 -m venv .venv-mergekit && .venv-mergekit/bin/pip install torch==2.13.0 mergekit==0.1.5
    python -m benchmarks.mergekit_parity --peer .venv-mergekit/bin/python

mergekit (LGPL) is an oracle in an environment of its own and no dependency. Each case goes to our side as a file of
mergekit's, so its names and defaults are compared, too. Prints one table, and ends with an error if a merge differs by
more than rounding where no reason is known, or agrees where one is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.merge_cases import (
    CASES,
    LAYERS,
    SEEDS,
    SETTINGS,
    SHAPES,
    TENSORS,
    Case,
    draws_of,
    models_of,
    tensors_of,
)
from benchmarks.record import run_module
from posttrain.config.mergekit import from_mergekit
from posttrain.config.yaml_text import dump
from posttrain.models.merging.methods.parameters import resolved
from posttrain.models.merging.methods.table import METHODS, Parts

ALLOWED = 1e-6
"""Of the largest entry of the result: rounding of float32, and half a digit of the sums' order."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference(Case("ties", 3), 1.2e-7): the largest over all tensors, relative to their largest entry."""

    case: Case
    largest: float

    @property
    def as_expected(self) -> bool:
        return (self.largest > ALLOWED) == bool(self.case.expected)


def merged(case: Case, shape: tuple[int, ...], seed: int) -> Tensor:
    """Ours, from the case as a file of mergekit's."""
    base, models = tensors_of(case, shape, seed)
    names = models_of(case)
    listed = [
        {"model": name, "parameters": {key: values[index] for key, values in case.per_model.items()}}
        for index, name in enumerate(names[1:] if case.base else names)
    ]
    document = {"merge_method": case.method, "models": listed, "parameters": dict(case.shared)}
    if case.base:
        document["base_model"] = "base"
    settings = from_mergekit(dump(document), case.label).settings
    given = dict(zip(names, [base, *models] if case.base else models, strict=True))
    per_model, options = resolved(settings, "w", None, 1)
    over = given["base"] if settings.base is not None else None
    tensors = tuple(given[model.model] for model in settings.models)
    return METHODS[settings.kind](Parts("w", over, tensors, per_model, options, draws_of(shape, seed)))


def compare(case: Case, theirs: Sequence[Sequence[float]]) -> Difference:
    places = [(shape, seed) for shape in SHAPES for seed in SEEDS]
    largest = 0.0
    for (shape, seed), other in zip(places, theirs, strict=True):
        ours = merged(case, shape, seed).flatten().double()
        wanted = torch.tensor(other, dtype=torch.float64)
        largest = max(largest, float((ours - wanted).abs().max() / wanted.abs().max()))
    return Difference(case, largest)


def numbers() -> list[float]:
    """What our side makes of each setting, for each tensor and layer."""
    found = []
    for setting in SETTINGS:
        document = {"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"weight": setting}}
        settings = from_mergekit(dump(document), "numbers").settings
        for name in TENSORS:
            for layer in range(LAYERS):
                (own,), _ = resolved(settings, name.format(layer), layer, LAYERS)
                found.append(own["weight"])
    return found


def table(found: Sequence[Difference]) -> str:
    """In Markdown, as docs/merging.md has it."""
    lines = ["| method and settings | largest difference | reason |", "|---|---|---|"]
    for one in found:
        mark = "" if one.as_expected else " **NOT EXPECTED**"
        settings = " ".join(
            [
                one.case.label,
                *(["over a base"] if one.case.base and one.case.method in ("nuslerp", "multislerp") else []),
            ]
        )
        lines.append(f"| `{settings}` | {one.largest:.1e}{mark} | {one.case.expected} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", required=True, help="python of the environment that holds mergekit")
    arguments = parser.parse_args()
    peer = json.loads(run_module(arguments.peer, "benchmarks.peer_merges", []).splitlines()[-1])
    found = [compare(case, theirs) for case, theirs in zip(CASES, peer["merges"], strict=True)]
    print(table(found))
    apart = max(abs(one - other) for one, other in zip(numbers(), peer["numbers"], strict=True))
    print(f"\n{len(peer['numbers'])} numbers of {len(SETTINGS)} settings by layer and filter: {apart:.1e} at most")
    missing = set(peer["methods"]) - {case.method for case in CASES}
    if missing:
        raise SystemExit(f"no case for methods of mergekit's: {', '.join(sorted(missing))}")
    if apart > ALLOWED or not all(one.as_expected for one in found):
        raise SystemExit("a merge differs where no reason is known, or agrees where one is")


if __name__ == "__main__":
    main()
