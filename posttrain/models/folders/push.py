"""What of a folder goes to the hub, and how: chosen file by file, looked through for secrets, and read back there.

    staged = stage_model(Path("runs/mine/dpo/model"), Path("staged"), card)
    push_folder(staged.folder, "ada/mine")

Only files that a loader reads are taken: optimizer states, checkpoints, logs and rows lie elsewhere and stay there, and
so does whatever else somebody put into the folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from posttrain.config.addresses import credential_in
from posttrain.errors import ConfigError, ModelError
from posttrain.models.folders.hub import looks_like_hub_id
from posttrain.models.folders.manifest import LOADER_PATTERNS, MANIFEST, verify_manifest, write_manifest

RepoKind = Literal["model", "dataset"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
"""Files that run code when they are loaded; and so optimizer states come too."""
TAKEN = tuple(pattern for pattern in LOADER_PATTERNS if pattern not in PICKLES)
ROW_SUFFIXES = (".jsonl", ".parquet", ".csv")
TEXT_SUFFIXES = (".json", ".jsonl", ".yaml", ".md", ".jinja", ".txt", ".csv", ".py")
SECRETS: Mapping[str, re.Pattern[str]] = {
    "a token of the hub": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "a key of OpenAI's kind": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a token of GitHub": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    "an access key of AWS": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a token of Slack": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/\S+"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
ADDRESS = re.compile(r"https?://[^\s\"'<>]+")
LONGEST_LINE = 1_000_000
"""Characters of a line that are looked through; a tokenizer's file is one line of some megabytes, and no text."""


@dataclass(frozen=True, slots=True)
class Staged:
    """Staged(Path("staged"), files=("README.md", "config.json", ...), left_out=("optimizer.pt",))"""

    folder: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    """What lies in the folder and is not taken."""

    @property
    def bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)


def stage_model(folder: Path, target: Path, card: str, *, base: str | None = None) -> Staged:
    """Copy what is to be pushed of a model folder, with its card; the folder itself stays as it is.

    Args:
        target: a new or an empty folder.
        base: hub id of the base of an adapter, in the place of a path of this machine.

    Raises:
        ModelError: the folder is not what was saved, holds no safetensors, or is an adapter on a path of this machine.
        ConfigError: a file holds a secret.
    """
    manifest = verify_manifest(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    taken = [name for name in names if any(fnmatch(name, pattern) for pattern in TAKEN)]
    if not any(name.endswith((".safetensors", ".gguf")) for name in taken):
        raise ModelError(
            "there are no weights in this folder that may be pushed",
            where=folder,
            found=", ".join(names[:8]) or "an empty folder",
            expected="*.safetensors or *.gguf",
            remedy="give a stage's `model/`, or what `posttrain export` wrote",
        )
    _make_empty(target)
    for name in taken:
        shutil.copyfile(folder / name, target / name)
    if (folder / "Modelfile").is_file():
        shutil.copyfile(folder / "Modelfile", target / "Modelfile")
    _without_machine_paths(target, folder, base)
    (target / "README.md").write_text(card, encoding="utf-8")
    if manifest is not None:
        kept = ("kind", "weights_fingerprint", "read_back", "dtype")
        write_manifest(target, {key: manifest[key] for key in kept if key in manifest})
    refuse_secrets(target)
    left = [name for name in names if name not in (*taken, MANIFEST, "README.md", "Modelfile")]
    left += [f"{path.name}/" for path in folder.iterdir() if path.is_dir()]
    return Staged(target, _files(target), tuple(sorted(left)))


def stage_rows(paths: Iterable[Path], target: Path, card: str) -> Staged:
    """Copy files of rows, with their card: `data/<name>`.

    Raises:
        ModelError: a file is none of rows.
        ConfigError: a row holds a secret; its file and line are named.
    """
    _make_empty(target)
    (target / "data").mkdir()
    for path in paths:
        if path.suffix not in ROW_SUFFIXES or not path.is_file():
            raise ModelError(
                "this is no file of rows",
                where=path,
                expected=f"a file that ends in {', '.join(ROW_SUFFIXES)}",
                remedy="give the file itself, such as runs/mine/distil/data.jsonl",
            )
        shutil.copyfile(path, target / "data" / path.name)
    (target / "README.md").write_text(card, encoding="utf-8")
    refuse_secrets(target)
    return Staged(target, _files(target), ())


def _make_empty(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(
            "something else is there", where=target, remedy="give a folder that is not there yet, or remove this one"
        )
    target.mkdir(parents=True, exist_ok=True)


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _without_machine_paths(target: Path, folder: Path, base: str | None) -> None:
    """An adapter's base becomes a name that others have; a path in config.json is taken out."""
    path = target / "adapter_config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        named = base or str(config.get("base_model_name_or_path") or "")
        # A relative path looks like a hub id: one that is there is a folder.
        if not looks_like_hub_id(named) or (base is None and Path(named).exists()):
            raise ModelError(
                "the adapter's base is a folder of this machine, which nobody else has",
                where=folder,
                found="a path in adapter_config.json",
                expected="a hub id",
                remedy="say which model it is (`--base owner/name`), or push the whole: `posttrain export --to merged`",
            )
        config["base_model_name_or_path"] = named
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path = target / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def refuse_secrets(folder: Path) -> None:
    """
    Raises:
        ConfigError: a text file holds what looks like a key or a password; the file and the line, not the secret.
    """
    for name in _files(folder):
        path = folder / name
        # A vocabulary holds everything that looks like anything.
        if path.suffix not in TEXT_SUFFIXES or fnmatch(path.name, "tokenizer*.json"):
            continue
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if (kind := _secret_in(line[:LONGEST_LINE])) is not None:
                    raise ConfigError(
                        f"this holds {kind}, which would be published",
                        where=f"{name}, line {number}",
                        remedy="take it out where it comes from, and withdraw it if others may have seen it",
                    )


def _secret_in(line: str) -> str | None:
    found = next((kind for kind, pattern in SECRETS.items() if pattern.search(line)), None)
    if found is not None:
        return found
    addresses = ADDRESS.findall(line)
    return "an address with a password or key" if any(credential_in(one) for one in addresses) else None


# ---------------------------------------------------------------- to the hub


@dataclass(frozen=True, slots=True)
class Pushed:
    """Pushed("https://huggingface.co/ada/mine", private=True, files=9, bytes=8_312_004)"""

    url: str
    private: bool
    files: int
    bytes: int

    def __str__(self) -> str:
        seen = "private" if self.private else "public"
        return (
            f"pushed {self.files} files ({self.bytes / 1e6:,.1f} MB) to {self.url} ({seen}): read back by their sizes"
        )


def require_repository(name: str) -> None:
    """Raises ConfigError if it is no owner/name."""
    if not looks_like_hub_id(name) or len(name) > 96:
        raise ConfigError(
            "this is no name of a repository", found=name, expected="owner/name, such as ada/mine", remedy="correct it"
        )


def push_folder(staged: Staged, name: str, *, kind: RepoKind = "model", public: bool = False) -> Pushed:
    """Upload a staged folder; a repository that is not there is made, private unless `public`.

    The token is that of `hf auth login`, or HF_TOKEN.

    Raises:
        ConfigError: nobody is logged in, or the repository is public and `public` was not said.
        ModelError: the hub refuses it, or holds other files afterwards.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConfigError(
            "nobody is logged in at the hub", remedy="run `hf auth login`, or export HF_TOKEN; then push again"
        )
    api = HfApi()
    try:
        url = str(api.create_repo(name, private=not public, exist_ok=True, repo_type=kind))
        about = api.repo_info(name, repo_type=kind)
    except Exception as error:  # the boundary: other people's client and server
        raise _failed(name, error) from error
    # Looked at before anything is uploaded: `exist_ok` leaves a repository as public as it was.
    if not about.private and not public:
        raise ConfigError(
            "the repository is public, and nothing was pushed",
            where=name,
            expected="a private repository, or `--public`",
            remedy="write `--public` if all the world may have it, or choose another name",
        )
    try:
        message = "posttrain push"
        api.upload_folder(folder_path=staged.folder, repo_id=name, repo_type=kind, commit_message=message)
        there = api.repo_info(name, repo_type=kind, files_metadata=True)
    except Exception as error:
        raise _failed(name, error) from error
    _compare(staged, name, {file.rfilename: file.size for file in there.siblings or []})
    return Pushed(url, bool(about.private), len(staged.files), staged.bytes)


def _compare(staged: Staged, name: str, sizes: Mapping[str, Any]) -> None:
    ours = {file: (staged.folder / file).stat().st_size for file in staged.files}
    wrong = [file for file, size in ours.items() if sizes.get(file) != size]
    if wrong:
        raise ModelError(
            "the hub holds other files than were pushed",
            where=name,
            found=f"{wrong[0]} of {sizes.get(wrong[0])} bytes" + (f", and {len(wrong) - 1} more" if wrong[1:] else ""),
            expected=f"{ours[wrong[0]]:,} bytes",
            remedy="push again",
        )


def _failed(name: str, error: Exception) -> ModelError:
    lines = str(error).strip().splitlines()
    return ModelError(
        "the hub did not take it",
        where=name,
        found=f"{type(error).__name__}: {lines[0] if lines else 'no message'}",
        remedy="check the name, the connection, and whether the token may write there (`hf auth whoami`)",
    )
