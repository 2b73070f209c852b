"""Layers: losses need torch and nothing else, diagnostics not even that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import posttrain.losses

LOSSES = Path(posttrain.losses.__file__).parent
TABLES = ("pairwise", "feedback", "online", "reward", "reward_rule")
PROBE = """
import importlib, json, sys
loaded = []
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded.append(sorted(sys.modules))
print(json.dumps(loaded))
"""
HEAVY = {"transformers", "peft", "datasets", "tokenizers", "accelerate", "safetensors", "pydantic", "typer", "rich"}


def _loaded_after(*modules: str) -> list[set[str]]:
    """What a fresh process has loaded after each of these imports."""
    done = subprocess.run([sys.executable, "-c", PROBE, *modules], capture_output=True, text=True, check=True)
    return [set(names) for names in json.loads(done.stdout)]


def _packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_losses_need_torch_and_the_nouns_and_the_table_of_algorithms_no_more() -> None:
    modules = [f"posttrain.losses.{path.stem}" for path in sorted(LOSSES.glob("*.py")) if path.stem != "__init__"]
    *_, losses, algorithms = _loaded_after("posttrain.losses", *modules, "posttrain.training.objectives")
    assert "torch" in losses
    assert not _packages(algorithms) & HEAVY
    own = {name for name in losses if name.startswith("posttrain.") and not name.startswith("posttrain.losses")}
    assert own == {f"posttrain.{name}" for name in ("types", "outputs", "errors", "arguments", "lazy_torch")}


def test_the_tables_of_losses_load_no_torch() -> None:
    """Else a typo in a recipe waits for it: the keys and defaults of a recipe are rows of these tables."""
    *_, tables = _loaded_after("posttrain.losses", *(f"posttrain.losses.{name}" for name in TABLES), "posttrain.config")
    assert not _packages(tables) & {"torch", "numpy", "transformers", "peft", "datasets"}


def test_diagnostics_need_not_even_torch() -> None:
    *_, loaded = _loaded_after("posttrain.diagnostics.metrics", "posttrain.diagnostics.alarms")
    assert not _packages(loaded) & {"torch", "numpy", *HEAVY}
