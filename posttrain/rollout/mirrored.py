"""The native engine for a policy that ranks share: it samples from a plain copy, which each sync brings up to date.

engine = MirroredEngine(Mirror(policy.model, kept=True), max_rows=64)     # on every rank
engine.update_weights(policy.model, version)                              # collective
"""

from __future__ import annotations

from typing import Any

from torch import nn

from posttrain.errors import ConfigError
from posttrain.models.sharding.mirror import Mirror
from posttrain.rollout.native import NativeEngine


class MirroredEngine(NativeEngine):
    """See `NativeEngine`, whose other arguments it takes."""

    def __init__(self, mirror: Mirror, **options: Any):
        super().__init__(mirror.model, **options)
        self._mirror = mirror

    def update_weights(self, model: nn.Module, version: int) -> None:
        """Copy the weights as they are now; collective. What was cached under the old ones is forgotten.

        Raises:
            ConfigError: another model than the one that is mirrored.
        """
        if model is not self._mirror.shared:
            raise ConfigError(
                "the engine samples from a copy of the model that it was made for",
                found=f"another {type(model).__name__}",
                remedy="make a new MirroredEngine(Mirror(model, kept=True))",
            )
        self._mirror.refresh()
        self.policy_version = version
