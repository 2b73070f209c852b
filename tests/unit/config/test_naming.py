"""Names of runs that carry settings: `mine-{dpo.beta}-{seed}`."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config import load_recipe
from posttrain.errors import ConfigError, UnknownKeyError

RECIPE = """
schema: 1
name: NAME
model: embedded
seed: 007
evaluate:
  suites:
    - {name: identity, kind: match, prompts: rows.jsonl, pattern: Pia}
stages:
  - {method: sft, data: rows.jsonl, learning_rate: 5e-6}
  - {name: dpo, method: dpo, data: rows.jsonl, beta: 0.50, adapter: {rank: 8}}
"""


def name_of(folder: Path, template: str, *overrides: str) -> str:
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "mine.yaml").write_text(RECIPE.replace("NAME", template))
    return load_recipe(folder / "mine.yaml", overrides).name


@pytest.mark.parametrize(
    ("template", "overrides", "name"),
    [
        ("mine-{dpo.beta}-{seed}", (), "mine-0.50-007"),
        ("mine-{dpo.beta}-{seed}", ("dpo.beta=0.2", "seed=3"), "mine-0.2-3"),
        ("a{sft.learning_rate}", (), "a5e-6"),
        ("a{sft.learning_rate}", ("sft.learning_rate=1.0e-5",), "a1.0e-5"),
        ("a{sft.learning_rate}", ("sft.learning_rate=1e-5", "sft.learning_rate=2e-5"), "a2e-5"),
        ("a{dpo.adapter.rank}", ("dpo.adapter={kind: lora, rank: 4}",), "a4"),
        ("a{dpo.adapter.rank}", ("dpo.adapter={kind: lora}",), "a16"),  # the file's 8 went with the group
        ("a{dpo.adapter.rank}", ("dpo.adapter={kind: lora, rank: 4}", "dpo.adapter.rank=6"), "a6"),
        ("a-{evaluate.suites.identity.pattern}", ("evaluate.suites.identity.pattern=(Pia)",), "a-Pia"),
        ("a-{sft.held_out}-{split_seed}-{dpo.export.merge}", (), "a-0.05-0-auto"),  # defaults
        ("a-{sft.steps}", (), "a-none"),
        ("a-{model}", ("model=ada/small model",), "a-ada-small-model"),
        ("a-{evaluate.suites.identity.kind}", (), "a-match"),
        ("b{seed}", ("name='c-{seed}'", "seed=1"), "c-1"),
        ("plain", (), "plain"),
    ],
)
def test_keys_in_braces_are_filled_in_as_typed(
    tmp_path: Path, template: str, overrides: tuple[str, ...], name: str
) -> None:
    assert name_of(tmp_path, template, *overrides) == name


@pytest.mark.parametrize(
    ("template", "problem", "remedy"),
    [
        ("a-{dpo.betta}", "`{dpo.betta}` in the recipe's name is no key of it: there is no `betta`", "beta"),
        ("a-{dpoo.beta}", "there is no `dpoo`", "dpo"),
        ("a-{seeed}", "there is no `seeed`", "seed"),
        ("a-{name}", "there is no `name`", ""),
    ],
)
def test_a_key_that_is_not_there_is_named(tmp_path: Path, template: str, problem: str, remedy: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        name_of(tmp_path, template)
    assert problem in caught.value.problem and remedy in caught.value.remedy
    assert str(caught.value.where).endswith("mine.yaml, line 3") and caught.value.found == template


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("a-{dpo.adapter}", "`{dpo.adapter}` in the recipe's name is no single value"),
        ("a-{evaluate.suites}", "is no single value"),
        ("a-{seed", "`name` gives no name for a folder"),
        ("a b-{seed}", "`name` gives no name for a folder"),
    ],
)
def test_what_gives_no_folder_is_refused(tmp_path: Path, template: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        name_of(tmp_path, template)
    assert problem in caught.value.problem and str(caught.value.where).endswith("mine.yaml, line 3")
    with pytest.raises(ConfigError) as caught:
        name_of(tmp_path, "fine", f"name={template}")
    assert caught.value.where == f"override name={template}"


@pytest.mark.parametrize("group", ["dpo.adapter", "dpo.data", "dpo.schedule"])
def test_the_key_that_is_proposed_for_a_group_gives_a_name(tmp_path: Path, group: str) -> None:
    with pytest.raises(ConfigError, match="is no single value") as caught:
        name_of(tmp_path, f"a-{{{group}}}")
    proposed = caught.value.remedy.split("`")[1]
    assert proposed.startswith(f"{{{group}.")
    assert name_of(tmp_path, f"a-{proposed}").startswith("a-")


def test_the_written_recipe_has_the_name_that_the_run_has(tmp_path: Path) -> None:
    name_of(tmp_path, "mine-{seed}")
    assert "name: mine-007\n" in load_recipe(tmp_path / "mine.yaml").to_yaml()
