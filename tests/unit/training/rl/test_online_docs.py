"""docs/online.md says what the online table is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.advantages import ADVANTAGES
from posttrain.losses.corrections import CORRECTIONS, MASKS, PUBLISHED
from posttrain.losses.kl import KL_TERMS
from posttrain.losses.online import ALIASES, ONLINE
from posttrain.losses.surrogates import RATIOS, REDUCTIONS, SURROGATES

PAGE = (Path(__file__).parents[4] / "docs" / "online.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells
    for line in PAGE.splitlines()
    if line.startswith("| `")
    and (cells := [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    and len(cells) == 10
}

PARTS = [*MASKS, *(rule for rules in MASKS.values() for rule in rules), "proximal", *PUBLISHED]
"""What becomes of tokens that another policy sampled."""


COLUMNS = PAGE.split("**Correction**")[1]
RULES = {name: rule for rules in (CORRECTIONS, *MASKS.values()) for name, rule in rules.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_correction_is_documented_as_it_is(name: str) -> None:
    rule, line = RULES[name], next(line for line in COLUMNS.splitlines() if f"| `{name}` |" in line)
    parameters = {key: float(value) for key, value in re.findall(r"(\w+_\w+) ([\d.]+)(?=[ ,])", line)}
    assert parameters == dict(rule.defaults)
    assert set(re.findall(r"arXiv:[\d.]+\d", rule.source)) <= set(re.findall(r"arXiv:[\d.]+\d", line))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_correction_is_documented_as_it_is(name: str) -> None:
    method = PUBLISHED[name]
    written = (
        ", ".join(f"{key}: {value}" for key, value in method.choices.items()),
        ", ".join(f"{key} {value:g}" for key, value in method.parameters.items()),
    )
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    assert tuple(cell.strip() for cell in line.split("|")[2:4]) == written


def test_every_algorithm_has_its_line_and_no_other() -> None:
    assert ROWS.keys() == ONLINE.keys()


@pytest.mark.parametrize("name", ONLINE)
def test_an_algorithm_is_documented_as_it_is(name: str) -> None:
    row, cells = ONLINE[name], ROWS[name]
    assert cells[1:5] == [f"`{part}`" for part in (row.advantage, row.ratio, row.surrogate, row.reduction)]
    place = {"none": "", "loss": f"`{row.kl}` in the loss", "reward": f"`{row.kl}` in the reward"}
    assert cells[5] == place[row.kl_place] and cells[6] == row.groups
    own = {key: value for key, value in row.defaults.items() if key != "entropy_weight"}
    assert cells[7] == ", ".join(f"{key} {value}" for key, value in own.items())
    assert set(re.findall(r"arXiv:[\d.]+\d", row.source)) == set(re.findall(r"arXiv:[\d.]+\d", cells[8]))
    assert cells[9]


@pytest.mark.parametrize(
    "part", [*ADVANTAGES, *RATIOS, *SURROGATES, *REDUCTIONS, *KL_TERMS, *CORRECTIONS, *PARTS, *ALIASES]
)
def test_every_part_is_explained(part: str) -> None:
    assert f"`{part}`" in PAGE.split("## The columns")[1] or (part in ALIASES and f"`{part}`" in PAGE)
