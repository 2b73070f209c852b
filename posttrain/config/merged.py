"""What each merge of a recipe is compared with: the models that it was made of, and what these had in common.

parents_of_merges(recipe.stages)     # {"both": ("start", ["maths", "code"])}
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.base import StageSettings
from posttrain.config.lineage import START, started_from
from posttrain.config.merging import Merge


def parents_of_merges(stages: Sequence[StageSettings]) -> dict[str, tuple[str, list[str]]]:
    """For each merge what its models come from, and those of them that are stages."""
    return {stage.name: _parents(stage, stages) for stage in stages if isinstance(stage, Merge)}


def _parents(stage: Merge, stages: Sequence[StageSettings]) -> tuple[str, list[str]]:
    parents = [source.stage for source in stage.merge.models if source.stage not in (None, START)]
    if stage.merge.base is not None and stage.merge.base.stage is not None:
        return stage.merge.base.stage, parents
    # Without a base of its own: what all of them started from, or else the recipe's start, from which all come.
    above = [started_from(stages, one) for one in stages if one.name in parents]
    starts = {START if one is None else one.name for one in above}
    return (starts.pop() if len(starts) == 1 else START), parents
