"""One rule for every path: of a recipe beside its file, of an override where the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.config import load_recipe
from posttrain.config.paths import CATALOGUE_NAMES, models_of
from posttrain.errors import ConfigError, ModelError
from posttrain.models.folders.catalogue import CATALOGUE
from posttrain.models.folders.source import require_known

ROWS = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
RECIPE = """
schema: 1
model: m_good
evaluate: {suites: [{kind: match, name: asked, prompts: asked.jsonl, pattern: x},
  {kind: pass_at_k, name: tried, prompts: asked.jsonl, rewards: [{kind: reward_model, model: judge}]},
  {kind: win_rate, name: won, prompts: asked.jsonl, reward_model: judge}]}
stages:
- {method: dpo, data: mine.jsonl, held_out: held.jsonl}
- {method: gkd, data: mine.jsonl, teacher: m_good}
- {method: grpo, data: mine.jsonl, rewards: [{kind: reward_model, model: judge}]}
- {method: correction, data: mine.jsonl, keep: held.jsonl}
"""


def filled(folder: Path) -> Path:
    for name in ("m_good", "judge"):
        (folder / name).mkdir(parents=True)
    for name in ("mine", "held", "asked"):
        (folder / f"{name}.jsonl").write_text(ROWS)
    return folder


@pytest.fixture
def sub(tmp_path: Path) -> Path:
    folder = filled(tmp_path / "sub")
    (folder / "rel.yaml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize("started_from", ["sub", "."])
def test_a_recipe_means_the_same_files_wherever_it_is_started(
    started_from: str, sub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sub.parent / started_from)
    recipe = load_recipe(sub / "rel.yaml")
    preference, distilled, online, corrected = recipe.stages
    assert recipe.model == str(sub / "m_good") == distilled.teacher  # type: ignore[union-attr]
    assert preference.data is not None and preference.data.path == (str(sub / "mine.jsonl"),)
    assert preference.held_out.path == (str(sub / "held.jsonl"),)  # type: ignore[union-attr]
    assert corrected.keep.path == (str(sub / "held.jsonl"),)  # type: ignore[union-attr]
    assert online.rewards[0].model == str(sub / "judge")  # type: ignore[union-attr]
    asked, tried, won = recipe.evaluate.suites
    assert asked.prompts == str(sub / "asked.jsonl")
    assert tried.rewards[0].model == won.reward_model.path == str(sub / "judge")  # type: ignore[union-attr]
    assert dict(models_of(recipe)).keys() == {"model", "gkd.teacher", "evaluate.suites.won.reward_model.path"}


@pytest.mark.parametrize(
    "override",
    [
        "dpo.data=there.jsonl",
        "dpo.data.path=there.jsonl",
        "dpo.data.path=[there.jsonl]",
        "dpo.held_out.path=there.jsonl",
        "correction.keep.path=there.jsonl",
        "evaluate.suites.asked.prompts=there.jsonl",
        "model=there",
        "gkd.teacher=there",
        "grpo.rewards=[{kind: reward_model, model: there}]",
        "evaluate.suites.won.reward_model=there",
    ],
)
def test_an_override_means_files_of_the_working_folder_for_every_key(
    override: str, sub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "there").mkdir(parents=True)
    (here / "there.jsonl").write_text(ROWS)
    monkeypatch.chdir(here)
    dumped = load_recipe(sub / "rel.yaml", [override]).to_yaml()
    assert str(here / "there") in dumped
    monkeypatch.chdir(sub)
    if override.endswith((".jsonl", ".jsonl]")):
        with pytest.raises(ConfigError) as caught:
            load_recipe(sub / "rel.yaml", [override])
        # The override did it, not the recipe's line.
        assert str(caught.value.where) == f"override {override}" and f"a file in {sub}" in str(caught.value)


def test_a_limit_on_the_command_line_does_not_move_the_recipes_file(
    sub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = load_recipe(sub / "rel.yaml", ["dpo.data.limit=3"]).stages[0]
    assert stage.data is not None and stage.data.path == (str(sub / "mine.jsonl"),)


def test_a_folder_that_only_the_command_sees_is_not_used_in_silence(
    sub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    (sub / "rel.yaml").write_text(RECIPE.replace("model: m_good", "model: other", 1))
    with pytest.raises(ConfigError) as caught:
        load_recipe(sub / "rel.yaml")
    assert "`model` names a folder that is where the command runs, not beside the recipe" in str(caught.value)
    assert "write `../elsewhere/other`, or give it on the command line, `model=other`" in str(caught.value)
    assert load_recipe(sub / "rel.yaml", ["model=other"]).model == str(tmp_path / "elsewhere" / "other")


def test_names_of_models_stay_names(sub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sub / "embedded").mkdir()
    monkeypatch.chdir(sub)
    for name in ("embedded", "owner/name"):
        assert load_recipe(sub / "rel.yaml", [f"model={name}"]).model == name
    assert load_recipe(sub / "rel.yaml", ["model=./embedded"]).model == str(sub / "embedded")
    assert set(CATALOGUE_NAMES) == set(CATALOGUE)


ONLINE = """
schema: 1
model: m_good
evaluate: {suites: [{kind: pass_at_k, name: tried, prompts: asked.jsonl, modules: judge, rewards: [{kind: exact}]}]}
stages:
- method: grpo
  data: mine.jsonl
  modules: judge
  rewards: [{kind: exact}]
  encoding: {template: chat.jinja}
  examine: {rewards: [{kind: reward_model, model: judge}]}
  engine: {kind: vllm_served, url: "http://127.0.0.1:8000", weights_folder: synced}
"""


@pytest.mark.parametrize("started_from", ["sub", "."])
def test_so_do_the_files_that_an_online_stage_names(
    started_from: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub = filled(tmp_path / "sub")
    (sub / "chat.jinja").write_text("{{ messages }}")
    (sub / "rel.yaml").write_text(ONLINE)
    monkeypatch.chdir(sub.parent / started_from)
    recipe = load_recipe(sub / "rel.yaml")
    stage: Any = recipe.stages[0]
    assert stage.modules == str(sub / "judge") and stage.encoding.template == str(sub / "chat.jinja")
    assert stage.examine.rewards[0].model == str(sub / "judge")
    assert stage.engine.weights_folder == str(sub / "synced"), "which the run makes"
    suite: Any = recipe.evaluate.suites[0]
    assert suite.modules == str(sub / "judge")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules", "there"),
        ("encoding.template", "there.jinja"),
        ("engine.weights_folder", "there"),
        ("examine.rewards", "[{kind: reward_model, model: there}]"),
    ],
)
def test_so_do_overrides_of_them(key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sub, here = filled(tmp_path / "sub"), tmp_path / "here"
    (sub / "chat.jinja").write_text("{{ messages }}")
    (sub / "rel.yaml").write_text(ONLINE)
    (here / "there").mkdir(parents=True)
    (here / "there.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(here)
    assert str(here / "there") in load_recipe(sub / "rel.yaml", [f"grpo.{key}={value}"]).to_yaml()
    if key != "engine.weights_folder":
        monkeypatch.chdir(sub)
        with pytest.raises(ConfigError, match="there"):
            load_recipe(sub / "rel.yaml", [f"grpo.{key}={value.replace('there', './there')}"])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("''", "the name of the data is empty"),
        ("'https://me:hush@host/rows.jsonl?sig=hush'", "rows are not read from an address"),
        ("gone.jsonl", "the link leads to no file"),
    ],
)
def test_a_name_that_can_be_no_file_is_said_to_be_none(tmp_path: Path, written: str, said: str) -> None:
    """`''` was the recipe's own folder, with all the rows in it; an address was looked for as a folder."""
    (tmp_path / "other.jsonl").write_text(ROWS)
    (tmp_path / "gone.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "mine.yaml").write_text(f"schema: 1\nmodel: embedded\nstages:\n- {{method: dpo, data: {written}}}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "`dpo.data` names no file" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_an_empty_model_is_not_the_folder_of_the_recipe(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "mine.yaml").write_text("schema: 1\nmodel: ''\nstages:\n- {method: dpo, data: mine.jsonl}\n")
    (_, model), *_ = models_of(load_recipe(tmp_path / "mine.yaml"))
    with pytest.raises(ModelError, match="no model is called ''"):
        require_known(model, where="`model`")


def test_a_page_of_the_hub_is_answered_with_its_id_and_without_its_credential() -> None:
    with pytest.raises(ModelError) as caught:
        require_known("https://me:hush@huggingface.co/Qwen/Qwen2.5-0.5B/tree/main")
    assert "`Qwen/Qwen2.5-0.5B`" in caught.value.remedy
    assert "hush" not in str(caught.value)
