"""All kinds of stage. A new one is a file like `correction.py` and a row here, beside the record of its settings and
the row of its `method` in `posttrain.config.stages.STAGES`: recipes are read without loading a model library, so what a
recipe may say stands a layer below what carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.config import Correction, Reward, StageSettings, TrainingStage
from posttrain.config.base import RowStage
from posttrain.config.best_of import BestOf
from posttrain.config.distil import Distil
from posttrain.config.merging import Merge
from posttrain.config.online import SamplingStage
from posttrain.config.pairs import Pairs
from posttrain.config.prompts import NewPrompts
from posttrain.config.search import Search
from posttrain.config.select import Select
from posttrain.config.stages import DistilSFT
from posttrain.training.stages.best_of import BEST_OF
from posttrain.training.stages.correction import CORRECTION
from posttrain.training.stages.distil import DISTIL
from posttrain.training.stages.kind import StageKind, TrainingKind, row_of_type
from posttrain.training.stages.merge import MERGE
from posttrain.training.stages.pairs import PAIRS
from posttrain.training.stages.prompts import PROMPTS
from posttrain.training.stages.reward import REWARD
from posttrain.training.stages.rows import ROWS
from posttrain.training.stages.sampling import SAMPLING
from posttrain.training.stages.search import SEARCH
from posttrain.training.stages.select import SELECT
from posttrain.training.stages.soft_targets import SOFT_TARGETS

KINDS: Mapping[type[StageSettings], StageKind] = {
    RowStage: ROWS,
    DistilSFT: SOFT_TARGETS,
    Reward: REWARD,
    SamplingStage: SAMPLING,
    Correction: CORRECTION,
    Search: SEARCH,
    Merge: MERGE,
    Select: SELECT,
    Distil: DISTIL,
    BestOf: BEST_OF,
    Pairs: PAIRS,
    NewPrompts: PROMPTS,
}
"""The kind of each type of settings, for all types that derive from it; the nearest row counts."""


def kind_of_stage(stage: StageSettings) -> StageKind:
    """kind_of_stage(DPO()) is ROWS, kind_of_stage(Reward()) is REWARD."""
    return row_of_type(KINDS, stage)


def training_kind(stage: TrainingStage) -> TrainingKind[Any, Any, Any]:
    """The same, for settings that are known to train."""
    kind = kind_of_stage(stage)
    assert isinstance(kind, TrainingKind), f"{type(stage).__name__} trains, and its row in KINDS does not"
    return kind
