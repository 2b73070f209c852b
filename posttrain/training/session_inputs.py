"""What `train` was given, as what a stage takes: each argument accepted in its natural forms or refused by its name.

Everything here happens before a model is loaded or a folder made: what is wrong with a call costs no waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.arguments import described, wrong_argument
from posttrain.config import STAGES, Continue, TrainingStage
from posttrain.data.read import Examples
from posttrain.data.recast import read_as, require_kind
from posttrain.errors import ConfigError, did_you_mean, nearest, unknown
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.folders.source import require_name
from posttrain.rewards.scorer import Scorer
from posttrain.training.objectives import kind_of, objective_of
from posttrain.training.stages.kind import RewardSpec
from posttrain.types import Task

EXAMPLE = 'pt.train(pt.SFT(steps=100), "embedded", "chats.jsonl", out="runs/mine")'


def stage_of(stage: Any) -> TrainingStage:
    """The stage: itself, by its method's name, or from the keys that a recipe would have.

    stage_of("dpo"); stage_of({"method": "dpo", "beta": 0.1}); stage_of(pt.DPO(beta=0.1))

    Raises:
        ConfigError: it is none of these, or a value that the stage does not admit.
        UnknownKeyError: a method or a key that there is not.
    """
    if isinstance(stage, str) and stage in STAGES:
        stage = {"method": stage}
    if isinstance(stage, Mapping):
        options = {str(key): value for key, value in stage.items()}
        method = options.pop("method", None)
        if not isinstance(method, str) or method not in STAGES:
            raise unknown("method", method, STAGES, example='{"method": "dpo", "beta": 0.1}')
        stage = STAGES[method](**options)
    if isinstance(stage, TrainingStage):
        if stage.starts_from is not None:
            raise ConfigError(
                "`starts_from` names a stage of a recipe, and this is none",
                found=f"starts_from={stage.starts_from!r}",
                remedy="leave it out: the second argument of train() is the model that the stage starts from",
            )
        return stage
    raise ConfigError(
        "the first argument of train() is no stage",
        found=described(stage),
        expected="train(stage, model, data, out=FOLDER)",
        example=EXAMPLE,
        remedy=_stage_remedy(stage),
    )


def _stage_remedy(stage: Any) -> str:
    if isinstance(stage, type):
        return f"write `pt.{stage.__name__}(...)`, with brackets"
    if isinstance(stage, str) and stage.endswith((".yaml", ".yml")):
        return f"a recipe is run by `pt.run_recipe(pt.load_recipe({stage!r}))`"
    near = nearest(stage, STAGES, cutoff=0.7) if isinstance(stage, str) else None
    if stage in STAGES.values() or type(stage) in STAGES.values():  # it trains nothing
        return "such a stage is one of a recipe; give one that trains"
    return did_you_mean(near, "give the stage first, then the model and the data")


def require_model(model: Any, stage: TrainingStage) -> None:
    """Refuses what cannot be trained by this stage.

    Raises:
        ConfigError: it is neither loaded nor a name; an adapter is asked for and the model is loaded already.
    """
    if not isinstance(model, LoadedModel):
        require_name(model)
        return
    # A reward model is made of a copy, so that an adapter still finds its place.
    if stage.OUTPUTS == "policy" and stage.adapter is not None and not isinstance(stage.adapter, Continue):
        raise ConfigError(
            "the model is loaded already, so the stage cannot put an adapter on it",
            found=f"adapter: {stage.adapter.kind} in the stage",
            remedy="give the adapter to load(name, adapter=LoRA(...)), or give train() the model's name",
        )


def rewards_of(rewards: Any, stage: TrainingStage) -> tuple[RewardSpec, ...]:
    """Rewards in the forms that a recipe and a program have: functions, names of kinds, and entries `{kind: ...}`.

    Raises:
        ConfigError: it is no list of these, or the stage asks none.
    """
    if isinstance(rewards, str | Mapping | Scorer) or (callable(rewards) and not isinstance(rewards, type)):
        rewards = (rewards,)  # one may stand for a list of one
    if not isinstance(rewards, Sequence) or isinstance(rewards, bytes):
        raise wrong_argument(
            "rewards",
            rewards,
            expected="a list of functions (prompt, completion, task) -> float, names, or entries {'kind': 'math'}",
            remedy='write `rewards=["math"]`, or leave `rewards` out',
        )
    if rewards and kind_of(stage.method) is not Task:
        raise ConfigError(
            f"rewards are given, and {stage.method} asks none",
            found=f"{len(rewards)} reward{'s' if len(rewards) != 1 else ''}",
            expected="a stage that samples, such as pt.GRPO(...)",
            remedy="leave `rewards` out, or choose a method that learns from them (docs/rl.md)",
        )
    return tuple(rewards)


def examples_of(data: Any, stage: TrainingStage) -> Examples | Sequence[Task]:
    """Rows as examples of the kind that the stage takes; tasks that a program has made stay what they are.

    Raises what `read` raises; RowError for examples of another kind.
    """
    kind = kind_of(stage.method)
    if kind is not Task:  # what a reward stage's rows say depends on its objective
        kind = objective_of(stage).kind
    if isinstance(data, Iterator):
        data = list(data)
    if isinstance(data, Examples):
        require_kind(data, kind)
        return data
    if kind is Task and isinstance(data, Sequence) and data and all(isinstance(item, Task) for item in data):
        return data
    return read_as(data, kind)


def held_out_of(held_out: Any, stage: TrainingStage) -> Examples | Sequence[Task]:
    """As `examples_of`. Raises ConfigError for a share, which the stage takes."""
    if isinstance(held_out, int | float):
        raise wrong_argument(
            "held_out",
            held_out,
            expected="rows, in any form that `data` may have",
            remedy="a share of the data is an option of the stage: `pt.SFT(held_out=0.1)`",
        )
    return examples_of(held_out, stage)
