"""What `data: {sources: [...]}` may say: names, shares, curricula, and which of them contradict each other.

The records are `Data` and `Source` of `posttrain.config.settings`, which imports this module; here they are `Any`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from posttrain.config.values import is_changed, refuse

Mixing = Literal["concatenate", "proportional", "weights", "temperature"]

_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
READS = ("path", "stage", "limit", "skip")
"""Keys that say which rows, so that they belong to a source and not to the group around it."""
TURNS = ("weight", "epochs", "repeat", "begin", "until")
"""Keys of a source that say when its rows come: without an effect on rows that are all measured."""


def _step_or_share(value: Any) -> Any:
    """Whole numbers are steps and texts are shares: of `1` and `1.0` nobody would know which was meant."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (found := _PERCENT.fullmatch(value.strip())) and float(found[1]) <= 100:
        return f"{float(found[1]):g}%"
    raise refuse(
        "this is neither a step nor a share of the run",
        found=value,
        expected="a whole number of steps, or a share from 0% to 100%",
        remedy="write a number of steps such as 100, or a share of the run such as `50%`",
    )


Moment = Annotated[int | str, BeforeValidator(_step_or_share)]
"""A point of the run: after so many steps, or after such a share of them."""


def step_of(moment: int | str, steps: int) -> int:
    """The step, counted from 0, that begins there: step_of("50%", 94) is 47."""
    return moment if isinstance(moment, int) else round(float(moment.rstrip("%")) / 100 * steps)


def source_name(source: Mapping[str, Any]) -> str:
    """What a source is called that has no name: its stage, or its file without the ending."""
    named = source.get("stage") or next(iter(source.get("path") or ()), "source")
    # Of `maths/*.jsonl` the file's part says nothing, and two such sources would have one name.
    for last in reversed(str(named).rstrip("/").split("/")):
        stem = PurePosixPath(last.partition(":")[2] or last).stem
        if name := _NAME.sub("-", stem).strip("-."):
            return name
    return "source"


def spread_keys(value: Any, shared: tuple[str, ...]) -> Any:
    """The group with its reading keys written into every source that does not say its own: one `columns` for all."""
    if not isinstance(value, Mapping) or not isinstance(value.get("sources"), list | tuple):
        return value
    own = {key: value[key] for key in shared if key in value}

    def of(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {**own, **item}
        # A record from Python keeps its values; it cannot say which of them were meant to be shared.
        return {**own, "path": item} if isinstance(item, str | os.PathLike | list | tuple) else item

    return {**value, "sources": [of(item) for item in value["sources"]]}


def check_mixture(data: Any) -> None:
    """Refuses what contradicts itself, for `Data`'s validator."""
    for key in READS:
        if is_changed(data, key):
            raise refuse(
                f"`{key}` belongs to one of the `sources`",
                path=(key,),
                remedy=f"write it into a source: `sources: [{{path: a.jsonl, {key}: ...}}]`"
                if key in ("limit", "skip")
                else "list it as a source, or leave `sources` out",
            )
    names = [source.name for source in data.sources]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise refuse(
                f"two sources are named `{name}`",
                path=("sources", place, "name"),
                remedy=f"give this one another name: `name: {name}-{place + 1}`",
            )
    weighted = [source.weight is not None for source in data.sources]
    _check_shares(data, weighted)
    for place, source in enumerate(data.sources):
        _check_curriculum(source, place)
        for key in ("epochs", "begin", "until"):
            if data.mixes_by == "concatenate" and is_changed(source, key):
                shown = "from" if key == "begin" else key
                raise refuse(
                    f"`{shown}` needs turns, and `mixing: concatenate` shuffles all rows as one pool",
                    path=("sources", place, shown),
                    remedy="write `mixing: proportional`, which keeps every source's share in each step",
                )
    if data.epoch != "total" and (data.mixes_by == "concatenate" or any(map(_is_timed, data.sources))):
        raise refuse(
            f"`epoch: {data.epoch}` is not known of a pool, of a curriculum, or of sources that are used up",
            path=("epoch",),
            remedy="leave `epoch` out, or give the stage `steps`",
        )


def _check_shares(data: Any, weighted: list[bool]) -> None:
    if any(weighted) and data.mixing not in ("auto", "weights"):
        raise refuse(
            f"a source has a `weight`, and `mixing: {data.mixing}` takes shares from elsewhere",
            path=("sources", weighted.index(True), "weight"),
            remedy="keep one of the two",
        )
    if any(weighted) and data.temperature is not None:
        raise refuse(
            "`temperature` makes shares of the sources' sizes, and a source has a `weight`",
            path=("temperature",),
            remedy="keep one of the two",
        )
    if (any(weighted) or data.mixing == "weights") and not all(weighted):
        raise refuse(
            f"the source `{data.sources[weighted.index(False)].name}` has no `weight`",
            path=("sources", weighted.index(False)),
            expected="a weight for every source: which share of the rows of a step is its",
            remedy="add `weight: 1`, or take the weights out of the others",
        )
    if data.temperature is not None and data.mixing not in ("auto", "temperature"):
        raise refuse(
            f"`temperature` has no effect with `mixing: {data.mixing}`", path=("temperature",), remedy="remove it"
        )
    if data.mixing == "temperature" and data.temperature is None:
        raise refuse(
            "`mixing: temperature` needs a temperature",
            path=("mixing",),
            remedy="add `temperature: 2`: 1 is proportional to the rows, and the higher, the more even",
        )


def _check_curriculum(source: Any, place: int) -> None:
    begin, until = source.begin, source.until
    if until is not None and isinstance(begin, int) == isinstance(until, int) and _number(begin) >= _number(until):
        raise refuse(
            f"the source `{source.name}` is never on",
            path=("sources", place, "until"),
            found=f"from: {begin}, until: {until}",
            remedy="write a later `until`, or remove the source",
        )
    if until is not None and _number(until) == 0:
        raise refuse(
            f"the source `{source.name}` is never on",
            path=("sources", place, "until"),
            found=f"until: {until}",
            remedy="write a later `until`, or remove the source",
        )


def check_measured(data: Any) -> None:
    """For `held_out`: all its rows are measured, so nothing can say how often, or when."""
    for place, source in enumerate(data.sources):
        for key in TURNS:
            if is_changed(source, key):
                shown = "from" if key == "begin" else key
                raise refuse(
                    f"held-out rows are all measured, so `{shown}` has no effect",
                    path=("held_out", "sources", place, shown),
                    remedy="remove it",
                )
    for key in ("mixing", "temperature", "epoch"):
        if data.sources and is_changed(data, key):
            raise refuse(
                f"held-out rows are all measured, so `{key}` has no effect", path=("held_out", key), remedy="remove it"
            )


def _is_timed(source: Any) -> bool:
    return any(is_changed(source, key) for key in ("epochs", "begin", "until"))


def _number(moment: int | str) -> float:
    return float(str(moment).rstrip("%"))
