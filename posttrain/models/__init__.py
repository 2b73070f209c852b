"""Models: loading, adapters, log-probs, the reference, and saving.

Names are imported when they are first used, so that listing the catalogue loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.models.adapters import LoRA as LoRA
    from posttrain.models.adapters import add_adapter as add_adapter
    from posttrain.models.adapters import is_fresh as is_fresh
    from posttrain.models.adapters import trainable_parameters as trainable_parameters
    from posttrain.models.catalogue import CATALOGUE as CATALOGUE
    from posttrain.models.catalogue import listings as listings
    from posttrain.models.catalogue import pull as pull
    from posttrain.models.combine import merge_adapters as merge_adapters
    from posttrain.models.export import ExportSettings as ExportSettings
    from posttrain.models.export import begin_save as begin_save
    from posttrain.models.export import save_model as save_model
    from posttrain.models.fingerprint import weights_fingerprint as weights_fingerprint
    from posttrain.models.loading import LoadedModel as LoadedModel
    from posttrain.models.loading import ModelSource as ModelSource
    from posttrain.models.loading import load as load
    from posttrain.models.loading import resolve as resolve
    from posttrain.models.logprobs import Policy as Policy
    from posttrain.models.manifest import verify_manifest as verify_manifest

_HOMES = {
    "adapters": ("LoRA", "add_adapter", "is_fresh", "trainable_parameters"),
    "catalogue": ("CATALOGUE", "listings", "pull"),
    "combine": ("merge_adapters",),
    "export": ("ExportSettings", "begin_save", "save_model"),
    "fingerprint": ("weights_fingerprint",),
    "loading": ("LoadedModel", "ModelSource", "load", "resolve"),
    "logprobs": ("Policy",),
    "manifest": ("verify_manifest",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"posttrain.models.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
