"""The import layers of the package, read from its source: nothing is imported, every file counts.

types outputs errors sampling intervals <- losses advantages diagnostics runs <- data config <- models
    <- rollout rewards auditing environments <- evaluate curation inference serve <- training <- cli

`report` and `board` read run folders only, and nothing imports them but what writes a page at its end.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "posttrain"

LAYERS = {
    "types": 0,
    "outputs": 0,
    "errors": 0,
    "sampling": 0,
    "intervals": 0,
    "embedded": 0,
    "losses": 1,
    "advantages": 1,
    "diagnostics": 1,
    "runs": 1,
    "data": 2,
    "config": 2,
    "report": 2,
    "models": 3,
    "rollout": 4,
    "rewards": 4,
    "auditing": 4,
    "environments": 4,
    "evaluate": 5,
    "curation": 5,
    "inference": 5,
    "serve": 5,
    "training": 6,
    "cli": 7,
    "board": 7,
    "__main__": 7,
}
"""Every part of the package and its layer; a part imports its own layer and those below, never one above."""

FOLDER_READERS = {
    "report": {"types", "outputs", "errors", "intervals", "diagnostics", "runs"},
    "board": {"types", "outputs", "errors", "intervals", "diagnostics", "runs", "report"},
}
"""Parts that read run folders and files only."""

PAGE_WRITERS = ("auditing.run", "board", "cli", "training.pipeline", "training.session")
"""Modules that may import `report` or `board`: commands, and what writes a page when its work is done."""

ONLY_ON_REQUEST = {"vllm", "ray", "deepspeed", "flash_attn", "flashinfer", "triton", "bitsandbytes", "gguf", "datasets"}
"""Engines, CUDA-only packages and optional extras: a plain machine imports the package without them."""

NEVER_AT_IMPORT = {
    "posttrain.cli.app": {"torch", "transformers", "peft", "datasets", "numpy", "pydantic"},
    "posttrain.report": {"torch", "transformers", "peft", "datasets", "pydantic"},
    "posttrain.config": {"transformers", "peft", "datasets"},
    "posttrain.data": {"torch", "transformers", "peft", "datasets"},
}
"""What loading a part must not load, directly or through what it imports."""


class Imports(ast.NodeVisitor):
    """All imports of one module: (dotted name, whether it happens when the module is loaded, for types only)."""

    def __init__(self, module: str, is_package: bool):
        self.package = module if is_package else module.rpartition(".")[0]
        self.found: list[tuple[str, bool, bool]] = []
        self.depth = 0
        self.for_types = False

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            before, self.for_types = self.for_types, True
            for statement in node.body:
                self.visit(statement)
            self.for_types = before
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        parts = self.package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        source = ".".join(part for part in (base, node.module) if part)
        self._add(source)
        for alias in node.names:
            self._add(f"{source}.{alias.name}", attribute=True)

    def _add(self, name: str, attribute: bool = False) -> None:
        if not attribute or name.split(".")[0] == "posttrain":
            self.found.append((name, self.depth == 0 and not self.for_types, self.for_types))


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of the package: {"posttrain.data.read": .../read.py, "posttrain.data": .../__init__.py}."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path) -> list[tuple[str, bool, bool]]:
    visitor = Imports(module, path.name == "__init__.py")
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.found


def part_of(module: str) -> str | None:
    """posttrain.data.read -> data; None for the package itself."""
    words = module.split(".")
    return words[1] if len(words) > 1 else None


def violations(known: dict[str, Path]) -> Iterator[str]:
    """Imports that go up a layer, or that a folder reader may not have."""
    for module, path in known.items():
        part = part_of(module)
        if part is None:  # the package's own lazy table names everything and imports nothing
            continue
        for name, _, _ in imports_of(module, path):
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
        for name, at_import, _ in imports_of(module, known[module]):
            top = name.split(".")[0]
            if at_import and top == "posttrain":
                waiting.append(name)
            elif at_import and top not in sys.stdlib_module_names:
                outside.setdefault(top, module)
    return outside


def test_every_part_has_a_layer() -> None:
    parts = {part for module in modules() if (part := part_of(module)) is not None}
    assert parts <= LAYERS.keys(), f"give a layer to {sorted(parts - LAYERS.keys())}, in LAYERS of this file"


def test_no_import_goes_up() -> None:
    assert list(violations(modules())) == []


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
        early = {name.split(".")[0] for name, at_import, _ in imports_of(module, path) if at_import}
        assert not early & ONLY_ON_REQUEST, f"{module} imports {early & ONLY_ON_REQUEST} when it is loaded"


def test_the_package_itself_imports_nothing() -> None:
    path = PACKAGE / "__init__.py"
    early = [name for name, at_import, _ in imports_of("posttrain", path) if at_import] if path.exists() else []
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
