"""torch, loaded when the first number is computed.

A recipe's keys, defaults and ranges are rows of the tables of losses. Were torch loaded with them, to refuse a misspelt
key would cost the seconds that loading it takes; so the modules that hold the tables, and those of the functions that
stand in their columns, take `torch` and `F` from here, and `Tensor` for type checkers only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
else:

    class _Later:
        """A module by its name. Each use asks the module anew, so that what a test or a profiler puts there is seen."""

        def __init__(self, name: str):
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    torch, F = _Later("torch"), _Later("torch.nn.functional")

__all__ = ["F", "torch"]
