"""From a recipe's entry to a reward that can be called: one literal row per kind.

A new kind is a file with its function, its row here, and its record in `posttrain.config.rewards`, which says what a
recipe may write and is read without any of this. Where the record's keys are the function's keywords, the row is
`plain(function)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from posttrain.arguments import checked_path, wrong_argument
from posttrain.errors import PosttrainError
from posttrain.rewards import (
    code,
    gym,
    imported,
    instructions,
    judge,
    language,
    maths,
    model,
    refusal,
    shape,
    text,
)
from posttrain.rewards.building import Build, of_row, options, plain
from posttrain.rewards.rubric import Rubric
from posttrain.rewards.scorer import Asking, Scorer

if TYPE_CHECKING:  # the recipe's records load torch, for the table of objectives among them
    from posttrain.config import rewards as config
    from posttrain.config.rewards import RewardSettings

Spec = Union["RewardSettings", Mapping[str, Any], str]


def resolve(spec: Spec, *, folder: str | Path | None = None) -> Scorer:
    """The reward of a recipe's entry: resolve({"kind": "overlong", "max_length": 512, "buffer": 64}).

    Args:
        folder: where a function's module is looked for first; the recipe's own folder.

    Raises:
        ConfigError, UnknownKeyError: a kind, a key or a value that there is not, a module that cannot be imported.
    """
    from posttrain.config.rewards import RewardList
    from posttrain.config.values import Settings

    if isinstance(spec, str):  # the name of a kind alone
        spec = {"kind": spec}
    if not isinstance(spec, Mapping | Settings):
        raise wrong_argument(
            "spec",
            spec,
            expected="an entry of a recipe's `rewards`, or the name of a kind",
            remedy='write `resolve({"kind": "math"})`; docs/rewards.md shows the kinds',
        )
    if folder is not None:
        folder = checked_path("folder", folder, "recipes")
    entries: Any = [spec]
    settings: Any = RewardList(rewards=entries).rewards[0] if isinstance(spec, Mapping) else spec
    build = REWARDS[settings.kind]
    scorer = build(settings, Path(folder) if folder is not None else None)
    # Asked now and not at the first response: a wrong signature would otherwise end the run after its first rollout.
    Asking.of(scorer.function, scorer.name)
    return scorer


def rubric_of(specs: Iterable[Spec], *, folder: str | Path | None = None) -> Rubric:
    """The rubric of a recipe's list."""
    return Rubric([resolve(spec, folder=folder) for spec in specs])


def require_rewards(specs: Iterable[Spec], *, folder: str | Path | None = None, where: str) -> None:
    """Makes each reward and ends it again: what cannot be made is refused before anything is trained.

    Args:
        where: names the list of a recipe in the error, with the entry's place: "grpo.rewards".

    Raises:
        ConfigError: a function that is not there, or takes other arguments.
        MissingExtraError: a package that a reward needs is not installed.
    """
    for place, spec in enumerate(specs):
        try:
            scorer = resolve(spec, folder=folder)
        except PosttrainError as error:
            error.where = error.where or f"{where}[{place}]"
            raise
        if scorer.close is not None:
            scorer.close()


def _cosine(settings: config.CosineReward, folder: Path | None) -> Scorer:
    inner = resolve(settings.of, folder=folder)
    reshaped = shape.Cosine(inner, **options(settings, "of"))
    return Scorer(settings.label, reshaped, settings.weight, close=inner.close, inner=inner, shared=inner.shared)


REWARDS: Mapping[str, Build] = {
    "math": maths.build,
    "exact": plain(text.exact, text.gold),
    "fuzzy": plain(text.fuzzy, text.gold),
    "regex": of_row(text.regex, "pattern"),
    "json_schema": of_row(text.json_schema, "schema_"),
    "format": plain(text.tags),
    "think_tags": plain(text.think_tags),
    "length": plain(shape.length),
    "overlong": plain(shape.overlong),
    "cosine": _cosine,
    "repetition": plain(shape.repetition),
    "language": plain(language.language),
    "refusal": plain(refusal.refusal),
    "instructions": instructions.build,
    "code": code.build,
    "reasoning_gym": plain(gym.reasoning_gym, gym.gold_of),
    "reward_model": model.build,
    "judge": judge.build,
    "function": imported.build,
}
"""What each kind of a recipe's rewards becomes."""
