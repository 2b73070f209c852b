"""What started from what: stages that go on from another stage are a chain, those that share a start are siblings.

lanes(run)       # start -> sft -> dpo; start -> other
siblings(run)    # [Siblings("embedded", [a, b, c])]: to be compared with each other
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from posttrain.runs.read import RunContents, Stage

START = "start"


@dataclass(frozen=True, slots=True)
class Lane:
    """A line of the picture: Lane("start", "embedded", [0, 1]) is start -> first stage -> second stage."""

    origin: str
    """"start", or the stage that the line branches off from."""
    model: str
    """What the start is called; "" where the line branches off from a stage."""
    places: list[int]
    """Of its stages in `run.stages`."""


@dataclass(frozen=True, slots=True)
class Siblings:
    """Stages that started from one model: Siblings("embedded", [a, b])."""

    origin: str
    stages: list[Stage]


def lanes(run: RunContents) -> list[Lane]:
    """Every stage once, in as few lines as there are ends."""
    before = _before(run)
    found: list[Lane] = []
    for place, parent in enumerate(before):
        # A line goes on with the first stage that follows its last one; a second one begins a line of its own.
        line = next((lane for lane in found if isinstance(parent, int) and lane.places[-1] == parent), None)
        if line is not None:
            line.places.append(place)
        elif isinstance(parent, int):
            found.append(Lane(run.stages[parent].name, "", [place]))
        else:
            found.append(Lane(START, parent, [place]))
    return found


def siblings(run: RunContents) -> list[Siblings]:
    """Groups of two stages and more that started from one model and made the same kind of model of it."""
    groups: dict[tuple[int | str, bool], list[Stage]] = {}
    before = _before(run)
    for stage, parent in zip(run.stages, before, strict=True):
        if _makes_data(stage):
            continue
        # What stands between two policies and makes none hands the policy on.
        while isinstance(parent, int) and _makes_data(run.stages[parent]):
            parent = before[parent]
        # A reward model and a policy of one start have nothing to be compared by.
        groups.setdefault((parent, _scores(stage)), []).append(stage)
    return [
        Siblings(run.stages[parent].name if isinstance(parent, int) else parent or START, stages)
        for (parent, _), stages in groups.items()
        if len(stages) > 1
    ]


def _scores(stage: Stage) -> bool:
    return stage.method == "reward" or stage.reward is not None or stage.steps is not None


def _makes_data(stage: Stage) -> bool:
    return stage.about.output not in (None, "model")


def _before(run: RunContents) -> list[int | str]:
    """For each stage the place of the stage that it started from, or the name of the model."""
    found: list[int | str] = []
    named = _starts_named(run)
    places = {stage.name: place for place, stage in enumerate(run.stages)}
    for place, stage in enumerate(run.stages):
        start = named.get(stage.name)
        if start is not None and places.get(start, place) < place:
            found.append(places[start])
        elif start == START:
            found.append(_model_of(run))
        # A recipe's stages are a chain but for those; one that makes data names no start of its own.
        elif place and (run.recipe is not None or stage.about.start_model is None):
            found.append(place - 1)
        else:
            found.append(_start_of(run, place))
    return found


def _starts_named(run: RunContents) -> dict[str, str]:
    """The stages of a recipe that say what they start from: {"on_random": "start"}."""
    # Most recipes are plain chains, and their page needs no parser.
    if run.recipe is None or not re.search(r"starts_from: (?!null)", run.recipe):
        return {}
    import yaml

    try:
        # Written by this program, but read from a folder that anybody may have edited.
        recipe = yaml.safe_load(run.recipe)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    named = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    return {str(stage.get("name")): str(stage["starts_from"]) for stage in named if stage.get("starts_from")}


def _model_of(run: RunContents) -> str:
    """The model that the recipe starts from, by the first stage that says it; a stage that makes data says none."""
    return next((stage.about.model_name for stage in run.stages if stage.about.model_name), "")


def _start_of(run: RunContents, place: int) -> int | str:
    start = run.stages[place].about.start_model
    if start is None:
        return "" if run.recipe is None else _model_of(run)
    for earlier in range(place - 1, -1, -1):
        other = run.stages[earlier]
        inside = start.path is not None and _is_within(Path(start.path), other.folder)
        # A model in memory keeps the name that it was loaded by; that a stage has trained it since, its weights say.
        if inside or (start.fingerprint is not None and start.fingerprint == other.about.end_weights):
            return earlier
    return start.name or start.path or ""


def _is_within(path: Path, folder: Path) -> bool:
    return any(base in path.parents for base in (folder, folder.absolute(), folder.resolve()))
