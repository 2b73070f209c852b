"""What a proof reads of a model: its settings, its layers, and two doors that give numbers to compare.

Below `exact.py`, `parity.py` and `paths.py`, which compare one path of such a model with another; `model.py` builds on
all of them, and makes of this the model that runs on token trees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.models.sharding.mesh import Sharding
from posttrain.models.tree.attention import TreeCalls
from posttrain.types import Batch, Wants

Route = Literal["tree", "padded", "rows"]
"""A way to compute the same values: the flat tree, padded rows, or each row alone; see `model.py`."""


class ProvableModel(nn.Module, ABC):
    """A model of `transformers`, or a `peft` model around one, whose paths can be compared.

    Args: as of `posttrain.models.tree.model.TreeModel`.
    """

    compares: ClassVar[str] = "log-probs"
    """What `compared` returns, in words."""
    reads_ahead_is_wrong: bool = True
    """Whether a token's value must not depend on later ones; a judge of whole responses may read as it likes."""

    def __init__(
        self,
        model: nn.Module,
        *,
        autocast: torch.dtype | None = None,
        dropout: bool = False,
        sharding: Sharding | None = None,
    ):
        super().__init__()
        self.sharding = sharding
        """How the weights are spread over ranks; None: they are all here."""
        self.model = model
        self.autocast = autocast
        self.dropout = dropout
        self.unfused = False
        """Run norms and gates as the model does also without autocast, as a proof of what runs under it has to."""
        self.backend: str | None = None
        """Of the tree's attention; None is the fastest that agrees with `segments` here (`probe_backend`)."""
        self.is_sharded = sharding is not None
        """Whether its weights lie in parts on several processes, so that every pass is collective: all of them make
        equally many, in the same order."""
        self.calls: TreeCalls | None = None
        """What the layers asked of the tree in the last forward."""

    @property
    def transformer(self) -> Any:
        """The model of `transformers`, with the adapter's layers in it if there is an adapter."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    @abstractmethod
    def path(self) -> Route:
        """That most rows take, as far as is known."""

    @abstractmethod
    def settle(self) -> None:
        """See `TreeModel`."""

    def trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def compared(self, batch: Batch, path: Route | None = None) -> tuple[Tensor, Tensor]:
        """What the checks before step 1 compare: one number per place that a loss sees, and the branch of each."""
        return self(batch, Wants(probe="compared"), path=path)

    def row_outputs(self, batch: Batch) -> Tensor:
        """What the model gives at each place of a batch's only row, on a path that every model has: [L, D] of states,
        [L, V] of logits."""
        return self(batch, Wants(probe="row_outputs"))
