"""Recipes: their keys, how they are read, and what errors say about them.

schema.py settings.py stages.py suites.py   the keys; one record per group, per stage method, per suite kind
load.py yaml_text.py overrides.py paths.py  a file and the command line to a Recipe
explain.py values.py                        errors in the reader's words
fingerprint.py                              what a stage's result depends on
document.py                                 docs/recipes.md, from the records themselves
"""

from posttrain.config.fingerprint import stage_fingerprint, what_changed
from posttrain.config.load import load_recipe, parse_recipe
from posttrain.config.paths import find_recipe
from posttrain.config.schema import Recipe, data_of, stage_yaml
from posttrain.config.settings import Data, LoRA
from posttrain.config.stages import (
    DPO,
    PREFERENCES,
    SFT,
    STAGES,
    Correction,
    Preference,
    PreferenceStage,
    StageSettings,
    TrainingStage,
)
from posttrain.config.suites import Evaluation, Sampling

__all__ = [
    "DPO",
    "PREFERENCES",
    "SFT",
    "STAGES",
    "Correction",
    "Data",
    "Evaluation",
    "LoRA",
    "Preference",
    "PreferenceStage",
    "Recipe",
    "Sampling",
    "StageSettings",
    "TrainingStage",
    "data_of",
    "find_recipe",
    "load_recipe",
    "parse_recipe",
    "stage_fingerprint",
    "stage_yaml",
    "what_changed",
]
