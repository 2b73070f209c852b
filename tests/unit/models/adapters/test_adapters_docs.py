"""docs/adapters.md: one line per kind, with figures that are those of the code."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

import posttrain
from posttrain.config.adapters import ADAPTERS, LoRA
from posttrain.models.adapters.kinds import add_adapter, trainable_parameters
from posttrain.models.folders.loading import load

PAGE = (Path(__file__).parents[4] / "docs" / "adapters.md").read_text(encoding="utf-8")


def rows() -> dict[str, list[str]]:
    """The table's cells by kind: {"ia3": ["`IA3`", "few rows ...", "0.17%", "tree", "yes"]}."""
    table = PAGE.split("| kind |")[1].split("\n\n")[0].splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {cells[0].strip("`").replace("`", ""): cells[1:] for cells in found}


def test_every_kind_has_its_line() -> None:
    kinds = {name.split(",")[0] for name in rows()}
    assert kinds == set(ADAPTERS) - {"continue"}
    for name, cells in rows().items():
        record = ADAPTERS[name.split(",")[0]]
        assert getattr(posttrain, cells[0].strip("`")) is record
        assert cells[3] == ("padded" if record.VIRTUAL else "tree")
        assert cells[4].startswith("yes" if record.MERGES else "no")


def test_the_shares_are_those_of_the_embedded_model() -> None:
    embedded = load("embedded").model
    assert f"{embedded.num_parameters():,} parameters" in PAGE
    for name, cells in rows().items():
        if name == "qlora":
            continue
        options = {"dora": "dora" in name, "rslora": "rslora" in name}
        record = LoRA(**options) if name.startswith("lora") else ADAPTERS[name]()
        count = trainable_parameters(add_adapter(copy.deepcopy(embedded), record))
        assert cells[2] == f"{count.trainable / count.total:.2%}", name


@pytest.mark.parametrize(
    "name", ["LoRA", "QLoRA", "AdaLoRA", "IA3", "OFT", "Bottleneck", "PrefixTuning", "PromptTuning"]
)
def test_the_records_are_public(name: str) -> None:
    assert name in posttrain.__all__ and getattr(posttrain, name)().kind in ADAPTERS
