"""Models from the hub: the local cache first, and a hub that cannot be reached is said within seconds."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError

WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
IN_FOLDERS = ["*/*"]
"""Other formats and training states lie in subfolders of a repository; the model itself lies at its top."""
PATIENCE = 8.0
"""Seconds for the first answer, name look-up included."""

Say = Callable[[str], None]


def looks_like_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def download(hub_id: str, *, folder: Path | None = None, say: Say | None = None) -> Path:
    """The model's files, from the hub's local cache if they are there; into `folder` if one is given.

    Raises:
        ModelError: the hub does not answer, or has no such model for this user.
    """
    from huggingface_hub import snapshot_download

    if cached := _cached(hub_id):
        return cached if folder is None else _copy(cached, folder)
    files = list_files(hub_id)
    patterns = WANTED if any(name.endswith(".safetensors") for name in files) else [*WANTED, "*.bin"]
    if say:
        say(f"downloading {hub_id} from the hub")
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=IN_FOLDERS, local_dir=folder))
    except Exception as error:
        raise _unreachable(hub_id, f"{type(error).__name__}: {error}") from error


def list_files(hub_id: str) -> list[str]:
    """The names of a repository's files; the one question that shows whether the hub answers at all."""
    from huggingface_hub import HfApi

    def ask() -> list[str]:
        siblings = HfApi().model_info(hub_id, timeout=PATIENCE / 2).siblings or []
        return [sibling.rfilename for sibling in siblings]

    answer: dict[str, Any] = {}

    def work() -> None:
        try:
            answer["files"] = ask()
        except Exception as error:
            answer["error"] = error

    # A thread, because a name look-up that hangs obeys no timeout of the client's.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if "files" not in answer:
        error = answer.get("error")
        raise _unreachable(hub_id, f"{type(error).__name__}: {error}" if error else f"no answer in {PATIENCE:.0f} s")
    return answer["files"]


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    whole = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    return folder if whole and (folder / "config.json").is_file() else None


def _copy(cached: Path, folder: Path) -> Path:
    """The files themselves: the hub's cache holds links."""
    for path in cached.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in [*WANTED, "*.bin"]):
            shutil.copyfile(path, folder / path.name)
    return folder


def _unreachable(hub_id: str, found: str) -> ModelError:
    return ModelError(
        "the model could not be taken from the hub",
        where=hub_id,
        found=found.splitlines()[0],
        remedy="check the name and the connection, or give a local folder; `posttrain models list` shows the models "
        "that need no hub",
    )
