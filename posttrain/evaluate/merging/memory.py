"""One loaded model whose weights are replaced: by a merge, or by a point between two models.

    place = InMemory.of(plan, "auto", "search")
    place.put_merge(settings, seed=0); place.loaded.model(...)
    place.put_between(first, second, 0.3)

Memory holds this one model and a tensor of each that is merged; no folder is written for a model that is only asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.config.merging import MergeSettings
from posttrain.errors import ConfigError
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.merging.inputs import OpenModel
from posttrain.models.merging.run import Plan
from posttrain.models.merging.stream import Merger, dtype_of_merge


@dataclass(frozen=True, slots=True)
class InMemory:
    """The first model of a plan, loaded, to be overwritten."""

    plan: Plan
    loaded: LoadedModel
    weights: Mapping[str, Tensor]
    """Of the model in memory, by their names in the files."""

    @classmethod
    def of(cls, plan: Plan, device: str, key: str) -> InMemory:
        """
        Args:
            key: of the settings that ask for it, for errors.

        Raises:
            ConfigError: the merge has other tokens than its first model, or the model names its weights otherwise in
                memory than in its files.
        """
        first = plan.models[0]
        if plan.vocabulary is not None:
            raise ConfigError(
                "models of other tokens cannot be put into one model in memory",
                where=key,
                found=f"tokens: {plan.settings.tokens}",
                expected="models of one vocabulary",
                remedy=f"remove `{key}`, or merge the vocabularies in a stage before this one",
            )
        loaded = load(first.folder, device=device_of(device))
        weights = dict(loaded.model.state_dict(keep_vars=True))
        if missing := sorted(set(first.entries) - set(weights)):
            raise ConfigError(
                f"`{first.name}` names its weights otherwise in memory than in its files, so they cannot be replaced",
                where=first.folder,
                found=f"no `{missing[0]}` in memory",
                remedy=f"remove `{key}`",
            )
        return cls(plan, loaded, weights)

    def put_merge(self, settings: MergeSettings, seed: int) -> None:
        """The merge, rounded as it would be saved: what is asked is what will be written."""
        plan, first = self.plan, self.plan.models[0]
        merger = Merger.of(settings, plan.models, plan.base, None, dtype_of_merge(settings, first), seed=seed)
        with torch.no_grad():
            for name in first.entries:
                self.weights[name].copy_(merger(name, None))

    def put_between(self, first: OpenModel, second: OpenModel, at: float) -> None:
        """(1 - at) first + at second, in float32; whole numbers stay the first's."""
        with torch.no_grad():
            for name, entry in first.entries.items():
                one = first.read(name)
                if entry.is_floating:
                    one = torch.lerp(one.float(), second.read(name).float(), at)
                self.weights[name].copy_(one)
