"""Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751): y + up(act(down(y))) after a layer with output y.

`peft` has no such method, so this module adds one to its tables under the name BOTTLENECK: wrapping a model, switching
the adapter off, saving and loading are then `peft`'s own. `register()` makes the name known, in every process that is
to load such a folder; a plain `peft` refuses it by that name. `configs` makes its configuration from a recipe's record.

Deviation from the paper: the layer norms of the model stay frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from posttrain.models.sharding.shards import any_nonzero

PEFT_TYPE = "BOTTLENECK"
PREFIX = "bottleneck_"


@dataclass
class BottleneckConfig(PeftConfig):
    """What adapter_config.json says: {"peft_type": "BOTTLENECK", "size": 64, "activation": "gelu", ...}."""

    size: int = 64
    activation: str = "gelu"
    dropout: float = 0.0
    target_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    """Whole modules that train beside it; `peft` puts the head of a reward model here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer and what its output goes through; `up` starts at zero, so a fresh one changes nothing."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout",)
    if TYPE_CHECKING:  # from BaseTunerLayer, which has no types
        get_base_layer: Any
        set_adapter: Any
        active_adapters: Any
        disable_adapters: Any
        _cast_input_dtype: Any
        _move_adapter_to_device_of_base_layer: Any

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig):
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.activation = ACT2FN[config.activation]
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        base: Any = self.get_base_layer()
        width = base.nf if isinstance(base, Conv1D) else base.out_features
        down, up = nn.Linear(width, config.size), nn.Linear(config.size, width)
        # Near the identity at the start (section 2.1), by `up` alone: with `down` at zero too, act(0) = 0 would keep
        # both weights from ever getting a gradient.
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                # `peft` keeps adapters of a bf16 base in fp32: cast on the way in, and back before the sum, or every
                # layer after this one would compute in fp32.
                inner = self._cast_input_dtype(y, self.bottleneck_down[name].weight.dtype)
                inner = self.bottleneck_down[name](self.bottleneck_dropout[name](inner))
                y = y + self.bottleneck_up[name](self.activation(inner)).to(y.dtype)
        return y

    def is_fresh(self, adapter_name: str) -> bool:
        """Whether it changes nothing, whatever comes in."""
        return adapter_name not in self.bottleneck_up or not any(
            any_nonzero(parameter) for parameter in self.bottleneck_up[adapter_name].parameters()
        )


class BottleneckModel(BaseTuner):
    """A model with bottleneck adapters, as `peft` makes and loads it."""

    prefix = PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's own name for its table of defaults

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **others: Any,
    ) -> None:
        # The second adapter of a model: wrapping the layer again would put one behind the other.
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, (nn.Linear, Conv1D)):
            raise ValueError(f"{current_key} is no linear layer but a {type(target).__name__}")
        layer = BottleneckLayer(target, adapter_name, peft_config)
        # `peft` adds a second adapter beside an active one frozen; a layer made here would train with it unnoticed.
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise ValueError("a bottleneck adapter is not linear and cannot be merged")


def register() -> None:
    """Make BOTTLENECK known to the `peft` of this process."""
    PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = BottleneckConfig
    PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = BottleneckModel
    PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = PREFIX
