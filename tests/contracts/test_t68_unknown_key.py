"""T68: a key that no option has is an error with the nearest valid name, wherever the key is written.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.config import DPO, SFT, LoRA, Preference, load_recipe
from posttrain.errors import UnknownKeyError

RECIPE = "model: embedded\nstages:\n  - method: dpo\n    data: pairs.jsonl\n"


def load(folder: Path, text: str, *overrides: str) -> None:
    (folder / "pairs.jsonl").write_text("{}\n")
    (folder / "r.yaml").write_text(text)
    load_recipe(folder / "r.yaml", overrides)


WAYS: dict[str, Callable[[Path], object]] = {
    "in a stage": lambda folder: load(folder, RECIPE + "    max_promt_length: 512\n"),
    "in an override": lambda folder: load(folder, RECIPE, "dpo.max_promt_length=512"),
    "from Python": lambda folder: DPO(max_promt_length=512),
    "from Python, of another method": lambda folder: Preference("simpo", max_promt_length=512),
    "from Python, of SFT": lambda folder: SFT(max_promt_length=512),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("way", WAYS)
def test_the_mistyped_key_and_the_nearest_are_named(tmp_path: Path, way: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        WAYS[way](tmp_path)
    assert "max_promt_length" in str(caught.value)
    assert "`max_length`" in caught.value.remedy


NESTED = {
    "optimizer.clip_nrom": "`clip_norm`",
    "adapter.rnk": "`rank`",
    "schedule.warmup_ration": "`warmup_ratio`",
    "reference.knid": "`kind`",
    "data.formt": "`format`",
    "compute.precison": "`precision`",
}


@pytest.mark.parametrize(("key", "nearest"), NESTED.items())
def test_keys_of_groups_too(tmp_path: Path, key: str, nearest: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        load(tmp_path, RECIPE, f"dpo.{key}=1")
    assert nearest in caught.value.remedy


@pytest.mark.parametrize(("key", "nearest"), [("sedd", "seed"), ("modle", "model"), ("stagse", "stages")])
def test_keys_of_the_recipe_too(tmp_path: Path, key: str, nearest: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        load(tmp_path, f"{key}: 1\n{RECIPE}")
    assert f"`{nearest}`" in caught.value.remedy


def test_a_key_of_another_method_names_the_methods_that_have_it() -> None:
    with pytest.raises(UnknownKeyError) as caught:
        DPO(gamma=1.0)
    assert "simpo" in caught.value.problem


def test_no_record_drops_a_key() -> None:
    with pytest.raises(UnknownKeyError, match="rank"):
        LoRA(rnak=8)  # type: ignore[call-arg]


def test_the_command_line_ends_with_2_and_the_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE + "    max_promt_length: 512\n")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "r.yaml")])
    assert result.exit_code == 2
    assert "line 5" in result.stderr
    assert "max_length" in result.stderr
