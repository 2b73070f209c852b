"""A selection's settings from a file of their own, and from the command line.

settings = load_select("select.yaml", ["deduplicate near=0.9"], budget=1000)
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.config.explain import Places, explain
from posttrain.config.paths import resolve_within
from posttrain.config.select import STEP_KINDS, SelectSettings
from posttrain.config.yaml_text import parse, put_value, split_assignment
from posttrain.errors import ConfigError, unknown
from posttrain.text_file import read_text

EXAMPLE = "steps: [{kind: deduplicate}, {kind: budget, rows: 1000}]"


def load_select(
    path: Path | None, steps: Sequence[str] = (), budget: int | None = None, **options: Any
) -> SelectSettings:
    """The settings of a file, of steps as they are typed, and a budget; at least one of the three.

    Args:
        path: YAML with the keys of `SelectSettings`; its paths are relative to it.
        steps: "KIND KEY=VALUE ...", after those of the file; a budget of the file stays the last.
        budget: rows; in the place of the size that the file's budget has.
        options: values of other keys, that win over the file's; None is none.

    Raises:
        SourceError: the file cannot be read.
        ConfigError, UnknownKeyError: a mistake, with its line or its option.
    """
    values: dict[str, Any] = {} if path is None else _of_file(path).model_dump(exclude_unset=True)
    found = [*values.pop("steps", ()), *(step_of(text) for text in steps)]
    sized = [step for step in found if step["kind"] == "budget"]
    others = [step for step in found if step["kind"] != "budget"]
    if budget is not None:
        # What the budget goes by stays: only how much is asked for is typed.
        base = {key: value for key, value in (sized or [{}])[-1].items() if key not in ("rows", "share", "tokens")}
        sized = [{**base, "kind": "budget", "rows": budget}]
    if not others and not sized:
        raise ConfigError(
            "nothing says how rows are chosen",
            expected="a file of steps, a step, or a budget",
            example='posttrain select chat.jsonl --out picked --step "score score=form keep.least=1" --budget 1000',
            remedy="give --recipe FILE, --step or --budget",
        )
    given = {key: value for key, value in options.items() if value is not None}
    return SelectSettings(**{**values, **given, "steps": [*others, *sized]})


def step_of(text: str) -> dict[str, Any]:
    """A step as it is typed: step_of("score score.kind=length keep.top=0.2").

    Raises:
        ConfigError: there is no kind, or a word that sets nothing.
        UnknownKeyError: no such kind.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            "the step's quotation marks do not pair up", where="--step", found=f"{text}  ({error})", remedy="close them"
        ) from None
    kind = words[0] if words else ""
    if kind not in STEP_KINDS:
        raise unknown("step", kind, STEP_KINDS, where=f"--step {text!r}", example='--step "deduplicate near=0.9"')
    step: dict[str, Any] = {"kind": kind}
    for word in words[1:]:
        keys, value = split_assignment(word, f"--step {text!r}", example='--step "deduplicate near=0.9"', whose=kind)
        put_value(step, keys, value, option="--step", written=f"{kind} {word}")
    try:
        STEP_KINDS[kind].model_validate(step)
    except ValidationError as error:
        # Here, where it is known which of several steps was typed wrongly; `steps.0` is nothing that anybody wrote.
        raise explain(error, STEP_KINDS[kind], step, Places(f"--step {text!r}")) from None
    return step


def _of_file(path: Path) -> SelectSettings:
    document = parse(read_text(path, "the file of steps"), str(path))
    raw = document.value
    if not isinstance(raw, dict):
        raise ConfigError(
            "a file of steps is a group of keys",
            where=path,
            found="nothing" if raw is None else "a list" if isinstance(raw, list) else repr(raw),
            expected=", ".join(SelectSettings.model_fields),
            example=EXAMPLE,
            remedy="write `steps:` at the left margin, and the steps below it",
        )
    places = Places(str(path), document.lines)
    if "stages" in raw:
        raise ConfigError(
            "this is a recipe with stages, and no file of steps",
            where=places.of(("stages",)),
            expected=f"the keys {', '.join(SelectSettings.model_fields)} alone",
            example=EXAMPLE,
            remedy=f"run it: posttrain run {path}; or give a file with the stage's `steps:` alone",
        )
    try:
        settings = SelectSettings.model_validate(raw)
    except ValidationError as error:
        raise explain(error, SelectSettings, raw, places) from None
    return resolve_within(settings, raw, path.resolve().parent, places)
