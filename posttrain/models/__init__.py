"""Models: loading, adapters, log-probs, the reference, and saving.

folders/ and adapters/ bring a model in and out, tree/ computes log-probs over token trees, reward/ scores with a head;
training, rollouts and evaluation meet a model only through these.

Names are imported when they are first used, so that listing the catalogue loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.models.adapters.combine import merge_adapters as merge_adapters
    from posttrain.models.adapters.kinds import LoRA as LoRA
    from posttrain.models.adapters.kinds import add_adapter as add_adapter
    from posttrain.models.adapters.kinds import is_fresh as is_fresh
    from posttrain.models.adapters.kinds import trainable_parameters as trainable_parameters
    from posttrain.models.folders.catalogue import CATALOGUE as CATALOGUE
    from posttrain.models.folders.catalogue import listings as listings
    from posttrain.models.folders.catalogue import pull as pull
    from posttrain.models.folders.export import ExportSettings as ExportSettings
    from posttrain.models.folders.export import begin_save as begin_save
    from posttrain.models.folders.export import save_model as save_model
    from posttrain.models.folders.fingerprint import weights_fingerprint as weights_fingerprint
    from posttrain.models.folders.loading import LoadedModel as LoadedModel
    from posttrain.models.folders.loading import load as load
    from posttrain.models.folders.manifest import verify_manifest as verify_manifest
    from posttrain.models.folders.source import ModelSource as ModelSource
    from posttrain.models.folders.source import require_known as require_known
    from posttrain.models.folders.source import resolve as resolve
    from posttrain.models.tree.logprobs import Policy as Policy

_HOMES = {
    "adapters.kinds": ("LoRA", "add_adapter", "is_fresh", "trainable_parameters"),
    "folders.catalogue": ("CATALOGUE", "listings", "pull"),
    "adapters.combine": ("merge_adapters",),
    "folders.export": ("ExportSettings", "begin_save", "save_model"),
    "folders.fingerprint": ("weights_fingerprint",),
    "folders.loading": ("LoadedModel", "load"),
    "tree.logprobs": ("Policy",),
    "folders.manifest": ("verify_manifest",),
    "folders.source": ("ModelSource", "require_known", "resolve"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"posttrain.models.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
