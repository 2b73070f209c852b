"""The import layers of the package, read from its source: nothing is imported, every file counts.

types outputs errors arguments sampling intervals <- losses advantages diagnostics runs <- data config <- models
    <- rollout rewards auditing environments <- evaluate curation inference serve <- training <- cli

`report` and `board` read run folders only, and nothing imports them but what writes a page at its end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.imports import (
    FOLDER_READERS,
    LAYERS,
    PACKAGE,
    circles,
    imports_of,
    module_graph,
    modules,
    part_graph,
    part_of,
)

PAGE_WRITERS = (
    *("auditing.run", "board", "cli", "sweeps.page", "training.pipeline", "training.session"),
    *("training.run_result", "training.tracking.notify"),
)
"""Modules that may import `report` or `board`: commands, what writes a page when its work is done, and what shows a run
in a notebook or a message."""

ONLY_ON_REQUEST = {
    "vllm",
    "ray",
    "optuna",
    "deepspeed",
    "flash_attn",
    "flashinfer",
    "triton",
    "bitsandbytes",
    "gguf",
    "datasets",
}
"""Engines, CUDA-only packages and optional extras: a plain machine imports the package without them."""

NEVER_AT_IMPORT = {
    "posttrain.cli.app": {"torch", "transformers", "peft", "datasets", "numpy", "pydantic"},
    "posttrain.report": {"torch", "transformers", "peft", "datasets", "pydantic"},
    "posttrain.config": {"transformers", "peft", "datasets"},
    "posttrain.data": {"torch", "transformers", "peft", "datasets"},
}
"""What loading a part must not load, directly or through what it imports."""


def violations(known: dict[str, Path]) -> Iterator[str]:
    """Imports that go up a layer, or that a folder reader may not have."""
    for module, path in known.items():
        part = part_of(module)
        if part is None:  # the package's own lazy table names everything and imports nothing
            continue
        for name in [name for item in imports_of(module, path) for name in item.dotted()]:
            other = part_of(name) if name.split(".")[0] == "posttrain" else None
            if other is None or other == part or other not in LAYERS:
                continue
            if LAYERS[other] > LAYERS[part]:
                yield f"{module} (layer {LAYERS[part]}) imports {name} (layer {LAYERS[other]})"
            writes_pages = module.removeprefix("posttrain.").startswith(PAGE_WRITERS)
            if other in FOLDER_READERS and part not in FOLDER_READERS and not writes_pages:
                yield f"{module} imports {name}, which only {', '.join(PAGE_WRITERS)} may"
            if part in FOLDER_READERS and other not in FOLDER_READERS[part]:
                yield f"{module} reads folders only, and imports {name}"


def loaded_with(start: str, known: dict[str, Path]) -> dict[str, str]:
    """Other packages that loading `start` loads, each with the module that asks for it."""
    outside: dict[str, str] = {}
    waiting, seen = [start], set[str]()
    while waiting:
        module = waiting.pop()
        if module in seen or module not in known:
            continue
        seen.add(module)
        parent = module.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        for item in imports_of(module, known[module]):
            top = item.source.split(".")[0]
            if item.when_loaded and top == "posttrain":
                waiting.extend(item.dotted())
            elif item.when_loaded and top not in sys.stdlib_module_names:
                outside.setdefault(top, module)
    return outside


def test_every_part_has_a_layer() -> None:
    parts = {part for module in modules() if (part := part_of(module)) is not None}
    assert parts <= LAYERS.keys(), f"give a layer to {sorted(parts - LAYERS.keys())}, in LAYERS of tools/imports.py"


def test_no_import_goes_up() -> None:
    assert list(violations(modules())) == []


def test_no_part_imports_in_a_circle() -> None:
    assert circles(part_graph(modules())) == []


def test_no_module_imports_in_a_circle() -> None:
    """Imports inside functions and those for annotations count: they hide a circle from the interpreter, not from a
    reader, for whom neither file can be read without the other."""
    assert circles(module_graph(modules())) == []


def test_losses_need_nothing_but_torch() -> None:
    known = modules()
    for module in [name for name in known if part_of(name) == "losses"]:
        assert loaded_with(module, known).keys() <= {"torch"}, loaded_with(module, known)


def test_diagnostics_and_the_nouns_need_the_standard_library_only() -> None:
    known = modules()
    for module in [name for name in known if part_of(name) in ("diagnostics", "runs", "types", "outputs", "errors")]:
        assert loaded_with(module, known) == {}, module


@pytest.mark.parametrize("start", NEVER_AT_IMPORT)
def test_light_parts_load_light(start: str) -> None:
    heavy = {name: by for name, by in loaded_with(start, modules()).items() if name in NEVER_AT_IMPORT[start]}
    if start == "posttrain.config":  # torch comes with the table of objectives, and nothing heavier
        heavy.pop("torch", None)
    assert heavy == {}


def test_engines_and_extras_are_loaded_on_request() -> None:
    for module, path in modules().items():
        early = {item.source.split(".")[0] for item in imports_of(module, path) if item.when_loaded}
        assert not early & ONLY_ON_REQUEST, f"{module} imports {early & ONLY_ON_REQUEST} when it is loaded"


def test_the_package_itself_imports_nothing() -> None:
    path = PACKAGE / "__init__.py"
    early = [item.source for item in imports_of("posttrain", path) if item.when_loaded] if path.exists() else []
    assert [name for name in early if name.split(".")[0] not in sys.stdlib_module_names] == []


# ---------------------------------------------------------------- the test itself can fail


def plant(folder: Path, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        path = folder / "posttrain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return modules(folder / "posttrain")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("losses/sft.py", "from posttrain.training.loop import Loop"),
        ("losses/sft.py", "def f():\n    import posttrain.models.folders.loading"),
        ("data/read.py", "from ..cli import app"),
        ("data/read.py", "from posttrain import training"),
        ("models/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from posttrain.evaluate import x"),
        ("report/page.py", "from posttrain.models.folders.loading import load"),
        ("rewards/text.py", "from posttrain.report import write_report"),
        ("runs/read.py", "from posttrain.data.read import read"),
        ("data/read.py", "from posttrain.models.folders.loading import load"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    assert len(list(violations(plant(tmp_path, {file: text})))) >= 1


def test_downward_imports_are_free(tmp_path: Path) -> None:
    known = plant(tmp_path, {"training/loop.py": "from posttrain.losses import sft\nfrom posttrain.types import Batch"})
    assert list(violations(known)) == []


def test_what_is_loaded_is_followed_through_packages(tmp_path: Path) -> None:
    known = plant(
        tmp_path,
        {
            "cli/app.py": "from posttrain.data.read import read",
            "data/__init__.py": "import numpy",
            "data/read.py": "def f():\n    import torch\n",
            "data/encode.py": "import transformers",
        },
    )
    assert loaded_with("posttrain.cli.app", known) == {"numpy": "posttrain.data"}


@pytest.mark.parametrize(
    "back",
    [
        "from posttrain.models.b import B",
        "from posttrain.models import b",
        "def f():\n    import posttrain.models.b",
        "from . import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from posttrain.models.b import B",
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, back: str) -> None:
    files = {
        "models/a.py": back,
        "models/b.py": "from posttrain.models.c import C",
        "models/c.py": "import posttrain.models.a",
    }
    names = [f"posttrain.models.{name}" for name in "abc"]
    assert circles(module_graph(plant(tmp_path, files))) == [names]
    assert circles(module_graph(modules(tmp_path / "posttrain"), types=False)) == ([] if "TYPE" in back else [names])


def test_a_circle_of_parts_is_found(tmp_path: Path) -> None:
    """No module of it imports in a circle: rollout.a -> rewards.a, rewards.b -> rollout.b."""
    known = plant(
        tmp_path,
        {
            "rollout/a.py": "from posttrain.rewards.a import A",
            "rollout/b.py": "",
            "rewards/a.py": "",
            "rewards/b.py": "from posttrain.rollout.b import B",
        },
    )
    assert circles(module_graph(known)) == []
    assert circles(part_graph(known)) == [["rewards", "rollout"]]


def test_a_package_that_re_exports_its_modules_is_no_circle(tmp_path: Path) -> None:
    files = {
        "data/__init__.py": "from posttrain.data.a import A",
        "data/a.py": "from posttrain.data import b",
        "data/b.py": "",
    }
    assert circles(module_graph(plant(tmp_path, files))) == []
