"""The parameters of one tensor, from settings that differ between layers and between tensors.

A layer is found by the model's own numbering: the first number among the parts of a tensor's name. Numbers behind the
same words count together (`model.layers.`), so that the towers of a model with several each have a first and a last
layer of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from posttrain.config.merging import MergeSettings
from posttrain.config.varied import Filtered, Varied

FIRST = ("embed", "wte", "wpe")
"""Parts of the names of tensors that come before the first layer; others without a layer come behind the last."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a model, by the names of its tensors: Layers.of(names).place("model.layers.3.mlp.up_proj.weight")
    is (3, 24)."""

    counts: Mapping[str, int]
    """{"model.layers": 24}"""

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        counts: dict[str, int] = {}
        for name in names:
            stack, layer = numbered(name)
            if layer is not None:
                counts[stack] = max(counts.get(stack, 0), layer + 1)
        return cls(counts)

    def place(self, name: str) -> tuple[int | None, int]:
        """The tensor's layer and the number of layers; None and the deepest stack's for tensors outside of layers."""
        stack, layer = numbered(name)
        return (layer, self.counts[stack]) if layer is not None else (None, max(self.counts.values(), default=1))


def numbered(name: str) -> tuple[str, int | None]:
    """What stands before a name's first number, and the number: numbered("model.layers.3.x") == ("model.layers", 3)"""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:index]), int(part)
    return name, None


def parameter_at(value: Varied, tensor: str, layer: int | None, num_layers: int) -> float | None:
    """A parameter's value for one tensor: parameter_at((0.0, 1.0), "model.layers.1.mlp.up_proj.weight", 1, 3) == 0.5

    Args:
        layer: from 0; None for a tensor outside of the layers. Embeddings take the first layer's value, what comes
            behind the layers (last norm, head) the last's. In mergekit all of those take the first.

    Returns:
        None where filters were given and none of them fits.
    """
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value[0], Filtered):
        found = next((item for item in value if isinstance(item, Filtered) and item.fits(tensor)), None)
        return None if found is None else parameter_at(found.value, tensor, layer, num_layers)
    if layer is None:
        depth = 0.0 if any(word in tensor for word in FIRST) else 1.0
    else:
        depth = layer / (num_layers - 1) if num_layers > 1 else 1.0
    numbers = [float(number) for number in value]
    at = depth * (len(numbers) - 1)
    below = min(int(at), len(numbers) - 1)
    above = min(below + 1, len(numbers) - 1)
    return numbers[below] + (at - below) * (numbers[above] - numbers[below])


def resolved(
    settings: MergeSettings, tensor: str, layer: int | None, num_layers: int
) -> tuple[tuple[dict[str, float], ...], dict[str, float | str | bool]]:
    """What `Parts` takes of one tensor: the parameters of each model, and the options of the merge.

    A model's own value counts before the merge's, and that before the method's default.
    """

    def at(value: Varied | bool | str | None, fallback: float | bool | str | None) -> float | bool | str:
        if isinstance(value, (bool, str)):
            return value
        number = None if value is None else parameter_at(value, tensor, layer, num_layers)
        assert number is not None or fallback is not None, f"{tensor}: a needed parameter has no value"
        return fallback if number is None else number  # type: ignore[return-value]

    options = {name: at(settings.common(name), known.default) for name, known in settings.row.options.items()}
    per_model = []
    for index in range(len(settings.models)):
        own: dict[str, float] = {}
        for name, known in settings.row.per_model.items():
            common = at(settings.common(name), known.default)
            own[name] = float(at(settings.of_model(index, name), common))
        per_model.append(own)
    return tuple(per_model), options
