"""Which stages of a recipe show what a selection is worth: one trained on it, its sibling on the selection's twin.

    - {name: picked, method: select, data: chat.jsonl, steps: [...]}
    - {name: on_picked, method: sft, data: {stage: picked}}
    - {name: on_random, method: sft, data: {stage: picked, rows: random}, starts_from: start}

    twin_pairs(recipe.stages)    # [TwinPair("picked", "random", "on_picked", "on_random", differs=(), unlike=None)]

Found by what the stages read and start from, whatever the recipe and its stages are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config.base import StageSettings
from posttrain.config.lineage import START, started_from
from posttrain.config.schema import data_of
from posttrain.config.select import Select
from posttrain.runs.differences import Difference, setting_differences


@dataclass(frozen=True, slots=True)
class TwinPair:
    """TwinPair("picked", "random", "on_picked", "on_random", differs=("`epochs` 3 -> 1",), unlike=None)"""

    selection: str
    rows: str
    """The twin's: random or random_tokens."""
    selected: str
    """The stage that trained on the selection."""
    twin: str
    differs: tuple[str, ...]
    """Settings in which the two differ beside their rows: the selection is then not all that is compared."""
    unlike: str | None
    """Why the two cannot be compared at all: they started from different models."""


def twin_pairs(stages: Sequence[StageSettings]) -> list[TwinPair]:
    """Every stage on a twin, with the stage on the selection that is most like it; one without such has no pair."""
    selections = {stage.name for stage in stages if isinstance(stage, Select)}
    policies = [stage for stage in stages if stage.OUTPUTS == "policy"]
    found = []
    for twin in policies:
        read = {(part.stage, part.rows) for data in data_of(twin).values() for part in data.parts if part.rows}
        # Rows of two twins at once belong to no single selection.
        if len(read) != 1:
            continue
        ((selection, rows),) = read
        alike = [
            stage for stage in policies if stage.method == twin.method and _selected(stage) == _selected(twin, rows)
        ]
        if selection not in selections or not alike:
            continue
        starts = {stage.name: _start(stages, stage) for stage in [*alike, twin]}
        # The nearest: with several stages on the selection, one that differs in the rate alone is no fair opponent.
        alike.sort(key=lambda stage: (starts[stage.name] != starts[twin.name], len(_differences(stage, twin))))
        selected = alike[0]
        unlike = None
        if starts[selected.name] != starts[twin.name]:
            unlike = (
                f"{selected.name} starts from {starts[selected.name]}, {twin.name} from {starts[twin.name]}: "
                f"give the later one `starts_from: {starts[min((selected, twin), key=stages.index).name]}`"
            )
        differs = tuple(str(difference) for difference in _differences(selected, twin))
        found.append(TwinPair(str(selection), str(rows), selected.name, twin.name, differs, unlike))
    return found


def _selected(stage: StageSettings, rows: str | None = None) -> dict[str, list[Any]]:
    """Where a stage's rows come from by key of its data, a twin's rows named as the selection's."""
    return {
        key: [(part.path, part.stage, None if part.rows == rows else part.rows) for part in data.parts]
        for key, data in data_of(stage).items()
    }


def _start(stages: Sequence[StageSettings], stage: StageSettings) -> str:
    above = started_from(stages, stage)
    return START if above is None else above.name


def _differences(selected: StageSettings, twin: StageSettings) -> list[Difference]:
    """What has an effect on the weights, but for which rows of the selection are read."""
    return setting_differences(*(_without_rows(stage.model_dump(mode="json")) for stage in (selected, twin)))


def _without_rows(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {key: _without_rows(value) for key, value in settings.items() if key != "rows"}
    return [_without_rows(value) for value in settings] if isinstance(settings, list) else settings
