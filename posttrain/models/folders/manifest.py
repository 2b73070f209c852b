"""What lies in a saved folder: every file with its size and sha256, so that a torn or altered one is refused by name.

A folder is written under a temporary name and renamed when it is complete, so a folder that bears its final name is
whole, or somebody changed it afterwards; the manifest tells the second case from the first. `export` and `catalogue`
write through here, `source.resolve` verifies.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psutil

from posttrain.errors import ExportError, ModelError
from posttrain.models.folders.own_code import code_fingerprint

MANIFEST = "posttrain_manifest.json"
SCHEMA = 1

LOADER_PATTERNS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.gguf",
    "*.jinja",
    "posttrain_reward.json",
    "posttrain_speech.json",
)
"""Files that a loader reads: one of these that the manifest does not list changes what is loaded. Notes and other
files may be added freely."""

HASHED_SUFFIXES = (".safetensors", ".json", ".jinja", ".gguf", ".bin", ".model")
"""Of the files that decide what a model computes and how it is asked."""


def write_manifest(folder: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Hash all files of `folder` and write its manifest: {"schema", "created", "files": {name: {...}}, **info}."""
    manifest = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **info,
        "files": {name: _size_and_hash(folder / name) for name in _names(folder)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that has one.

    Raises:
        ModelError: the manifest itself is torn, or written by a later version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["schema"] == SCHEMA and isinstance(manifest["files"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the manifest is torn or altered", where=path, found=error, remedy="save or copy the folder again"
        ) from error
    if not known:
        raise ModelError(
            "the manifest has another layout",
            where=path,
            found=f"schema {manifest['schema']}",
            expected=f"schema {SCHEMA}",
            remedy="use the version of posttrain that wrote it",
        )
    return manifest


def verify_manifest(folder: Path) -> dict[str, Any] | None:
    """Compare a folder with its manifest; None for a folder without one, which is not ours to judge.

    Raises:
        ModelError: a file is missing, has another size or content, or was added where a loader would read it.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    faults = [fault for name, entry in manifest["files"].items() if (fault := _fault(folder / name, entry))]
    # A chat_template.jinja dropped into a folder wins over the template of tokenizer_config.json: no listed file has
    # changed, and every prompt has.
    faults += [
        f"{name} was added"
        for name in _names(folder)
        if name not in manifest["files"] and any(fnmatch(name, pattern) for pattern in LOADER_PATTERNS)
    ]
    if faults:
        raise ModelError(
            "the folder is not what was saved",
            where=folder,
            found="; ".join(faults),
            expected=f"the files listed in {MANIFEST}",
            remedy=f"copy or save the folder again; if the change is meant, delete {MANIFEST}",
        )
    return manifest


def folder_fingerprint(folder: Path) -> str:
    """sha256 (hex) of a model folder's content, without loading it: from the manifest, or from the files themselves."""
    # By content, not by path or time: a stage is run again when its model changed, not when the model was copied.
    manifest = read_manifest(folder)
    if manifest is not None:
        hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    else:
        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in HASHED_SUFFIXES]
        hashes = {path.name: sha256_of(path) for path in paths}
    # Where the folder's own code is run, it decides too what is computed, and refused code changes nothing.
    if code := code_fingerprint(folder):
        hashes["model_code"] = " ".join(code)
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def temporary_folder(folder: Path) -> Path:
    """A new, empty folder beside `folder`; what dead processes left there for the same target is put right."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if _previous(folder).is_dir() and not folder.exists():
        os.replace(_previous(folder), folder)  # killed between the two renames of `publish`
    # Only of processes that are gone: another one may be saving under the same name right now.
    for stale in folder.parent.glob(f".{folder.name}.saving-*"):
        process = stale.name.split("-")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.parent / f".{folder.name}.saving-{os.getpid()}-{secrets.token_hex(4)}"
    temporary.mkdir()
    return temporary


def publish(temporary: Path, folder: Path) -> None:
    """Rename a complete folder to its final name, replacing an earlier save of ours.

    Raises:
        ExportError: something lies there that posttrain did not write.
    """
    refuse_foreign(folder)
    mode = (temporary / MANIFEST).stat().st_mode
    for name in _names(temporary):
        (temporary / name).chmod(mode)  # safetensors writes files that only their owner may read
    if not folder.is_dir():
        os.replace(temporary, folder)
        return

    # No system renames over a folder that is not empty, so two renames; killed between them, the earlier save is whole
    # under its other name, from where `temporary_folder` brings it back and `source` says where it is.
    previous = _previous(folder)
    shutil.rmtree(previous, ignore_errors=True)
    os.replace(folder, previous)
    os.replace(temporary, folder)
    shutil.rmtree(previous)


def refuse_foreign(folder: Path) -> None:
    """A save replaces an empty folder or an earlier save, never anything else."""
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / MANIFEST).is_file()):
        return
    if folder.exists():
        raise ExportError(
            "something else is there",
            where=folder,
            found="a folder that posttrain did not write" if folder.is_dir() else "a file",
            remedy="save to another folder, or move this one away",
        )


def _previous(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"


def _names(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def _size_and_hash(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _fault(path: Path, entry: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size  # before the hash: a cut file of many gigabytes is refused at once
    if size != entry["bytes"]:
        return f"{path.name} has {size:,} bytes instead of {entry['bytes']:,}"
    return None if sha256_of(path) == entry["sha256"] else f"{path.name} has another content"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
