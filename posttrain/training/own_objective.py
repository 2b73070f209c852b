"""The function that a stage of `method: custom_*` names: imported anew in every process, and checked before anything
else is done.

load_objective(stage)       # ObjectiveFunction(hinge_squared, "pairwise", reference=True), {"beta": 0.2}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.config.base import StageSettings
from posttrain.config.custom import OF_KIND, CustomStage, require_declared
from posttrain.config.settings import ReferenceSettings
from posttrain.errors import ConfigError, PosttrainError
from posttrain.losses.custom import ObjectiveFunction
from posttrain.rewards.imported import imported


def load_objective(stage: CustomStage) -> tuple[ObjectiveFunction, dict[str, Any]]:
    """The declared function and all of its parameters.

    Raises:
        ConfigError: it is not there, not declared, declared for other rows than the method's, or settings that it does
            not use.
    """
    where = f"{stage.name}.objective"
    given = stage.objective
    try:
        folder = None if stage.modules is None else Path(stage.modules)
        found = imported(given, folder, what="objective", key="objective") if isinstance(given, str) else given
    except PosttrainError as error:
        error.where = error.where or where
        raise
    declared = require_declared(found, where, stage.address)
    if not isinstance(stage, OF_KIND[declared.kind]):
        wanted = OF_KIND[declared.kind].model_fields["method"].default
        raise ConfigError(
            f"`{stage.address}` is declared as an objective of {declared.kind}, and `{stage.method}` takes another",
            where=where,
            found=f'kind="{declared.kind}"',
            remedy=f"write `method: {wanted}`",
        )
    if not declared.reference and stage.reference != ReferenceSettings():
        raise ConfigError(
            f"`{stage.address}` compares the policy with nothing, so `reference` is without effect",
            where=f"{stage.name}.reference",
            found=f"reference: {{kind: {stage.reference.kind}}}",
            remedy="remove `reference`, or declare the function with `reference=True`",
        )
    return declared, declared.resolve(stage.parameters, where=f"{stage.name}.parameters")


def require_objective(stage: StageSettings) -> None:
    """A stage's own objective, imported now: one that is not there would end the run hours later, at its stage.

    Raises:
        ConfigError: see `load_objective`; nothing of other methods.
    """
    if isinstance(stage, CustomStage):
        load_objective(stage)
