"""Models from the hub: the local cache first, and a hub that cannot be reached is an error within seconds.

`source.resolve` takes a name here that is neither in the catalogue nor a path; `catalogue.pull` asks here first.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
SUBFOLDERS = ["*/*"]
"""Other formats and training states lie in subfolders of a repository; the model itself lies at its top."""
TIMEOUT_SECONDS = 8.0
"""For the first answer, name look-up included."""

Say = Callable[[str], None]


def looks_like_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def download(hub_id: str, *, folder: Path | None = None, say: Say | None = None) -> Path:
    """The model's files, from the hub's local cache if they are there; into `folder` if one is given.

    Raises:
        ModelError: the hub does not answer, or has no such model for this user.
    """
    from huggingface_hub import snapshot_download

    # No question to the hub where the files are here: a run that worked yesterday works without a network today.
    if cached := _cached(hub_id):
        return cached if folder is None else _copy(cached, folder)

    files = list_files(hub_id)
    # *.bin only where there is nothing else: it is pickle, and many repositories hold both formats of the same weights.
    patterns = MODEL_FILES if any(name.endswith(".safetensors") for name in files) else [*MODEL_FILES, "*.bin"]
    if say:
        say(f"downloading {hub_id} from the hub")
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=SUBFOLDERS, local_dir=folder))
    except Exception as error:
        raise _unreachable(hub_id, f"{type(error).__name__}: {error}") from error


def list_files(hub_id: str) -> list[str]:
    """The names of a repository's files; the one question that shows whether the hub answers at all."""
    from huggingface_hub import HfApi

    answer: dict[str, Any] = {}

    def work() -> None:
        try:
            siblings = HfApi().model_info(hub_id, timeout=TIMEOUT_SECONDS / 2).siblings or []
            answer["files"] = [sibling.rfilename for sibling in siblings]
        except Exception as error:  # raised below, in the thread that asked
            answer["error"] = error

    # A thread, because a name look-up that hangs obeys no timeout of the client's.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    if "files" not in answer:
        error = answer.get("error")
        found = f"{type(error).__name__}: {error}" if error else f"no answer in {TIMEOUT_SECONDS:.0f} s"
        raise _unreachable(hub_id, found)
    return answer["files"]


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    # The cache also holds what other programs took of a repository: a tokenizer alone is no model.
    whole = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    return folder if whole and (folder / "config.json").is_file() else None


def _copy(cached: Path, folder: Path) -> Path:
    """The files themselves: the hub's cache holds links."""
    for path in cached.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in [*MODEL_FILES, "*.bin"]):
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
