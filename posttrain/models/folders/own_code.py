"""Python files that a model folder names as its own classes (`auto_map`): refused, unless the user says `run`.

    with folder_code("run"):                          # a recipe's `model_code: run`, `--model-code run`, `pt.load`
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=code_runs(folder))

Every call that reads a folder passes `trust_remote_code`. Left out, `transformers` asks on standard input whether to
run them, and `yes | posttrain run recipe.yaml` would run whatever a downloaded folder holds.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args

from posttrain.errors import ModelError, unknown

ModelCode = Literal["refuse", "run"]
"""What becomes of the Python files of a model folder."""

ALLOWING = (
    '`model_code: run` at the top of a recipe, `--model-code run` for a command, `pt.load(..., model_code="run")`'
)

# A context and no argument of the thirty functions between a recipe and its loads: one that forgot to hand it on would
# refuse in the middle of a run. A thread that is started within begins with the default, so it refuses too.
_CODE: ContextVar[ModelCode] = ContextVar("posttrain_model_code", default="refuse")

_NAMING = ("config.json", "tokenizer_config.json")
_RUN_MODULES = "transformers_modules"
"""The package under which `transformers` imports the code of folders."""


@contextmanager
def folder_code(choice: ModelCode | None) -> Iterator[None]:
    """Within, folders' own code is run or refused as `choice` says; None leaves it as it is outside.

    Raises:
        UnknownKeyError: it is neither `refuse` nor `run`.
    """
    if choice is None:
        yield
        return
    # Not by truth: True, "yes" or a typing mistake must not run anything.
    if choice not in get_args(ModelCode):
        raise unknown("model_code", str(choice), get_args(ModelCode))
    token = _CODE.set(choice)
    try:
        yield
    finally:
        _CODE.reset(token)


def code_runs(folder: Path) -> bool:
    """Whether this folder's own code may be run now: what every `trust_remote_code` is given.

    Raises:
        ModelError: it may, and the folder names code of another repository. That is not among the files that were
            read, hashed and allowed, and may be another one tomorrow.
    """
    if _CODE.get() != "run":
        return False
    elsewhere = [file for file in own_code(folder) if "--" in file]
    if elsewhere:
        raise ModelError(
            "the folder names Python code of another repository, which is not run",
            where=folder,
            found=", ".join(elsewhere),
            expected="files of the folder itself",
            remedy="copy these files into the folder, and write `auto_map` without what stands before `--`",
        )
    return True


def own_code(folder: Path) -> list[str]:
    """The files that the folder's settings name: ["modeling_mine.py (AutoModelForCausalLM, in config.json)"]."""
    named = []
    for name in _NAMING:
        try:
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # reading the model says what is wrong with it
        classes = settings.get("auto_map") if isinstance(settings, dict) else None
        for kind, target in (classes if isinstance(classes, dict) else {}).items():
            targets = target if isinstance(target, list) else [target]
            # "repository--module.Class": the part before the dashes is where the code would be fetched from.
            named += [f"{str(item).rpartition('.')[0]}.py ({kind}, in {name})" for item in targets if item]
    return named


def remedy_of(folder: Path, otherwise: str) -> str:
    """What to do about a folder that could not be read: without code of its own, `otherwise`."""
    files = own_code(folder)
    if not files:
        return otherwise
    if _CODE.get() == "run":
        return f"{otherwise}. The folder's own Python was run, and may be what fails: {', '.join(files)}"
    return (
        f"the folder brings Python of its own, {', '.join(files)}, which would run with your rights and is not run: "
        "take a version of transformers that has the architecture itself, or a folder converted to one that it has; "
        f"or read these files, and allow them if you trust them ({ALLOWING})"
    )


def notice_of(folder: Path) -> list[str]:
    """One line that says which code was run, or none."""
    files = own_code(folder) if _CODE.get() == "run" else []
    return [f"ran the folder's own Python with your rights (model_code: run): {', '.join(files)}"] if files else []


def ran_own_code(*objects: Any) -> bool:
    """Whether one of these (a model, a tokenizer) is of a class that a folder brought.

    What is in memory says it, and not the context: whoever reads a save back runs what made the model, and nothing
    that was allowed for another one.
    """
    return any(_brought(type(item)) or _brought(type(getattr(item, "config", None))) for item in objects)


def _brought(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == _RUN_MODULES


def class_fingerprint(model: Any) -> list[str]:
    """Hashes of the Python files that a model's class came from, if a folder brought it: equal weights under other
    code compute something else, and nothing that was cached for the one may be read for the other."""
    if not _brought(type(model)):
        return []
    file = sys.modules[type(model).__module__].__file__
    return _hashes(Path(str(file)).parent)


def code_fingerprint(folder: Path) -> list[str]:
    """Hashes of the folder's Python files, if its own code would be run now; without such code, or refused, none."""
    return _hashes(folder) if _CODE.get() == "run" and own_code(folder) else []


def _hashes(folder: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
    return [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
