"""Recipes: their keys, how they are read, and what errors say about them.

schema.py base.py stages.py sampled.py online.py   the keys of a recipe and of its stages; one record per method
settings.py adapters.py reward_model.py rewards.py engines.py curriculum.py suites.py   their groups, one record each
load.py find.py yaml_text.py overrides.py paths.py  a file and the command line to a Recipe
chain.py                                    what each stage starts from, as far as adapters go
values.py fields.py meanings.py explain.py  kinds of value, and errors in the reader's words
custom.py functions.py                      functions of a user's own, as objectives and by their addresses
merge_methods.py merging.py merge_weights.py mergekit.py    merging: methods, the stage, and files of mergekit's
fingerprint.py                              what a stage's result depends on

docs/recipes.md is written from the records themselves.

Names are imported when they are first used: a recipe that is not there is refused without building its records.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.config.adapters import (
        ADAPTERS,
        IA3,
        OFT,
        AdaLoRA,
        AdapterSettings,
        Bottleneck,
        Continue,
        LoRA,
        PrefixTuning,
        PromptTuning,
        PTuning,
        QLoRA,
    )
    from posttrain.config.custom import CustomStage, Objective
    from posttrain.config.find import find_recipe
    from posttrain.config.fingerprint import stage_fingerprint, what_changed
    from posttrain.config.load import load_recipe, parse_recipe
    from posttrain.config.merging import Merge, MergeSettings, merge_settings
    from posttrain.config.online import GRPO, PPO, Online, OnlineStage
    from posttrain.config.schema import Recipe, data_of, stage_yaml
    from posttrain.config.settings import Data
    from posttrain.config.stages import (
        DPO,
        PREFERENCES,
        SFT,
        STAGES,
        ConditionalSFT,
        Correction,
        Mix,
        Preference,
        PreferenceStage,
        Reward,
        StageSettings,
        TrainingStage,
    )
    from posttrain.config.suites import Evaluation, Sampling

_HOMES = {
    "adapters": (
        "ADAPTERS",
        "IA3",
        "OFT",
        "AdaLoRA",
        "AdapterSettings",
        "Bottleneck",
        "Continue",
        "LoRA",
        "PrefixTuning",
        "PromptTuning",
        "PTuning",
        "QLoRA",
    ),
    "custom": (
        "CustomStage",
        "Objective",
    ),
    "fingerprint": (
        "stage_fingerprint",
        "what_changed",
    ),
    "load": (
        "load_recipe",
        "parse_recipe",
    ),
    "merging": (
        "Merge",
        "MergeSettings",
        "merge_settings",
    ),
    "online": (
        "GRPO",
        "PPO",
        "Online",
        "OnlineStage",
    ),
    "find": ("find_recipe",),
    "schema": (
        "Recipe",
        "data_of",
        "stage_yaml",
    ),
    "settings": ("Data",),
    "stages": (
        "DPO",
        "PREFERENCES",
        "SFT",
        "STAGES",
        "ConditionalSFT",
        "Correction",
        "Mix",
        "Preference",
        "PreferenceStage",
        "Reward",
        "StageSettings",
        "TrainingStage",
    ),
    "suites": (
        "Evaluation",
        "Sampling",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ADAPTERS",
    "DPO",
    "GRPO",
    "IA3",
    "OFT",
    "PPO",
    "PREFERENCES",
    "SFT",
    "STAGES",
    "AdaLoRA",
    "AdapterSettings",
    "Bottleneck",
    "ConditionalSFT",
    "Continue",
    "Correction",
    "CustomStage",
    "Data",
    "Evaluation",
    "LoRA",
    "Merge",
    "MergeSettings",
    "Mix",
    "Objective",
    "Online",
    "OnlineStage",
    "PTuning",
    "Preference",
    "PreferenceStage",
    "PrefixTuning",
    "PromptTuning",
    "QLoRA",
    "Recipe",
    "Reward",
    "Sampling",
    "StageSettings",
    "TrainingStage",
    "data_of",
    "find_recipe",
    "load_recipe",
    "merge_settings",
    "parse_recipe",
    "stage_fingerprint",
    "stage_yaml",
    "what_changed",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"posttrain.config.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
