"""Recipes: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.config import (
    DPO,
    PREFERENCES,
    SFT,
    STAGES,
    Correction,
    Data,
    LoRA,
    Preference,
    PreferenceStage,
    Recipe,
    find_recipe,
    load_recipe,
    parse_recipe,
    stage_fingerprint,
    stage_yaml,
    what_changed,
)
from posttrain.config.explain import fields_of
from posttrain.config.find import PACKAGE, RECIPE_FOLDERS
from posttrain.config.online import Online
from posttrain.config.stages import ReferencedStage
from posttrain.config.suites import MatchSuite, PerplexitySuite, Sampling
from posttrain.config.yaml_text import dump, parse
from posttrain.diagnostics.alarms import make_checks
from posttrain.errors import ConfigError, SourceError, UnknownKeyError
from posttrain.losses.feedback import OBJECTIVES
from tools.recipe_reference import recipe_reference

RECIPE = """\
schema: 1
name: mine
model: embedded
evaluate:
  suites:
    - {name: identity, kind: match, prompts: held.jsonl, pattern: "\\\\bPia\\\\b"}
stages:
  - {method: sft, data: sft.jsonl, learning_rate: 1e-5}
  - name: dpo
    method: dpo
    data: pairs.jsonl
    adapter: {rank: 8}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sft.jsonl", "pairs.jsonl", "held.jsonl"):
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def read(folder: Path, text: str = RECIPE, *overrides: str) -> Recipe:
    path = folder / "mine.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


def refused(folder: Path, text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, *overrides)
    return caught.value


def with_stage(**keys: Any) -> str:
    return dump({"schema": 1, "name": "mine", "model": "embedded", "stages": [{"data": "sft.jsonl", **keys}]})


# ---------------------------------------------------------------- what a recipe becomes


def test_a_recipe_is_read(folder: Path) -> None:
    recipe = read(folder)
    sft, dpo = recipe.stages
    assert isinstance(sft, SFT)
    assert isinstance(dpo, PreferenceStage)
    assert (sft.name, sft.learning_rate, sft.epochs) == ("sft", 1e-5, 1.0)
    assert (dpo.parameters, dpo.reference_kind, dpo.adapter) == ({"beta": 0.1}, "auto", LoRA(rank=8))
    assert recipe.folder == Path("runs/mine")
    assert recipe.notes == ()
    assert recipe.stage("dpo") is dpo


def test_paths_are_relative_to_the_recipe(folder: Path) -> None:
    recipe = read(folder)
    assert recipe.stages[0].data == Data(path=(str(folder / "sft.jsonl"),))
    assert recipe.evaluate.suites[0].prompts == str(folder / "held.jsonl")


def test_folders_of_online_stages_are_relative_to_the_recipe(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weights folder need not be there; modules and a teacher must."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (folder / "mine").mkdir()
    online = {"method": "gkd", "teacher": "./mine", "modules": "mine"}
    online["engine"] = {"kind": "vllm_served", "url": "http://127.0.0.1:1", "weights_folder": "shared/weights"}
    stage: Any = read(folder, with_stage(**online)).stages[0]
    assert stage.engine.weights_folder == str(folder / "shared" / "weights")
    assert stage.modules == stage.teacher == str(folder / "mine")
    plain: Any = read(folder, with_stage(method="gkd", teacher="embedded")).stages[0]
    assert (plain.teacher, plain.modules, plain.engine.kind) == ("embedded", str(folder), "native")
    moved: Any = read(folder, with_stage(**online), "gkd.engine.weights_folder=w").stages[0]
    assert moved.engine.weights_folder == str(Path("w").resolve())
    shown = str(refused(folder, with_stage(**{**online, "modules": "no/modules", "teacher": "./nobody"})))
    assert "no/modules" in shown and "./nobody" in shown and "2 mistakes" in shown


def test_the_written_recipe_is_the_same_recipe(folder: Path) -> None:
    recipe = read(folder)
    text = recipe.to_yaml()
    assert parse_recipe(text) == recipe
    assert "clip_norm: 1.0" in text  # defaults are written out
    assert "schema: 1" in text


def test_the_name_is_the_files_and_a_missing_schema_is_said(folder: Path) -> None:
    text = RECIPE.replace("schema: 1\nname: mine\n", "")
    recipe = read(folder, text)
    assert recipe.name == "mine"
    (note,) = recipe.notes
    assert "schema 1" in note


def test_the_same_stage_from_python_and_yaml(folder: Path) -> None:
    from_yaml = read(folder, with_stage(method="simpo", beta=2.5, gamma=0.5, optimizer={"clip_norm": None})).stages[0]
    from_python = Preference("simpo", beta=2.5, gamma=0.5, optimizer={"clip_norm": None}, data=folder / "x")
    assert from_python.changed(data=str(folder / "sft.jsonl")) == from_yaml


def test_stages_cannot_be_changed_in_place() -> None:
    with pytest.raises(Exception, match="frozen"):
        SFT().learning_rate = 1.0  # type: ignore[misc]


def test_a_changed_stage_is_validated() -> None:
    assert DPO(beta=0.2).changed(epochs=2).parameters == {"beta": 0.2}
    with pytest.raises(UnknownKeyError, match="learning_rte"):
        DPO().changed(learning_rte=1)


# ---------------------------------------------------------------- one method per row of the table


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_row_is_a_stage_with_its_own_parameters(method: str) -> None:
    stage, row = Preference(method), OBJECTIVES[method]
    assert stage.parameters == dict(row.defaults)
    assert isinstance(stage, ReferencedStage) == row.needs_reference
    every = {key for other in OBJECTIVES.values() for key in other.defaults}
    assert every & fields_of(type(stage)).keys() == row.defaults.keys()


def test_a_parameter_of_another_row_names_its_owners() -> None:
    with pytest.raises(UnknownKeyError) as caught:
        Preference("orpo", beta=0.1)
    owners = [name for name, row in OBJECTIVES.items() if "beta" in row.defaults]
    for owner in owners:
        assert re.search(rf"\b{owner}\b", caught.value.problem)
    assert "orpo" in caught.value.problem


def test_a_reference_is_refused_where_none_is_needed() -> None:
    with pytest.raises(UnknownKeyError, match="reference"):
        Preference("simpo", reference={"kind": "live"})
    assert Preference("simpo").reference_kind is None


def test_unknown_methods_name_the_nearest(folder: Path) -> None:
    with pytest.raises(UnknownKeyError, match="simpo"):
        Preference("simp")
    error = refused(folder, with_stage(method="simp"))
    assert isinstance(error, UnknownKeyError)
    assert "simpo" in error.remedy


@pytest.mark.parametrize(
    ("options", "rate"), [({}, 5e-7), ({"adapter": {}}, 5e-6), ({"adapter": {}, "learning_rate": 1e-4}, 1e-4)]
)
def test_the_learning_rate_is_ten_times_as_high_with_an_adapter(options: dict[str, Any], rate: float) -> None:
    assert DPO(**options).learning_rate == rate


def test_default_rates_of_methods() -> None:
    assert SFT().learning_rate == 2e-5
    assert SFT(adapter=LoRA()).learning_rate == 2e-4
    assert Preference("simpo").learning_rate == 6e-7
    assert Preference("orpo").learning_rate == 5e-6


def test_steps_take_the_place_of_epochs() -> None:
    stage = SFT(steps=10)
    assert (stage.steps, stage.epochs) == (10, None)
    with pytest.raises(ConfigError, match="when to stop"):
        SFT(steps=10, epochs=2)


# ---------------------------------------------------------------- refusals, in words


def test_several_mistakes_are_shown_together_with_their_lines(folder: Path) -> None:
    text = RECIPE.replace("learning_rate: 1e-5", "lr: 1").replace("rank: 8", "rnk: 8")
    error = refused(folder, text)
    assert isinstance(error, UnknownKeyError)  # every mistake is an unknown key
    shown = str(error)
    assert "2 mistakes" in shown
    assert "mine.yaml, line 8: `sft.lr` is not a key" in shown
    assert "write `learning_rate`" in shown
    assert "mine.yaml, line 12: `dpo.adapter.rnk` is not a key" in shown
    assert "did you mean `rank`?" in shown


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"method": "sft", "epochs": True}, "a number is needed"),
        ({"method": "sft", "rows_per_step": 0}, "greater than or equal to 1"),
        ({"method": "sft", "rows_per_step": 2.5}, "a whole number"),
        ({"method": "sft", "learning_rate": "fast"}, "a number"),
        ({"method": "sft", "learning_rate": float("nan")}, "finite"),
        ({"method": "dpo", "beta": 0}, "greater than 0"),
        ({"method": "sft", "schedule": {"kind": "cosin"}}, "kind: cosine"),
        ({"method": "sft", "rank": 8}, "`adapter.rank`"),
        ({"method": "sft", "gradient_accumulation_steps": 8}, "rows of a whole step"),
        ({"method": "sft", "held_out": 1.0}, "less than 1"),
        ({"method": "sft", "held_out": {"pth": "x"}}, "`path`"),
        ({"method": "sft", "optimizer": {"betas": [0.9]}}, "betas.1` is missing"),
        ({"method": "sft", "optimizer": {"betas": [0.9, 1.5]}}, "0 <= beta < 1"),
        ({"method": "sft", "compute": {"tokens_per_microbatch": "many"}}, "neither `auto` nor"),
        ({"method": "sft", "compute": {"device": "gpu"}}, "cuda:1"),
        ({"method": "sft", "data": {"path": "sft.jsonl", "format": "sharegtp"}}, "sharegpt"),
        ({"method": "sft", "data": {}}, "give one of the three"),
        ({"method": "sft", "alarms": {"off": ["displacment"]}}, "is not known"),
        ({"method": "sft", "name": "start"}, "a folder of its own"),
        ({"method": "sft", "name": "a/b"}, "Letters, digits"),
        ({"method": "sft", "name": "seed"}, "key of that name"),
        ({"method": "sft", "encoding": {"train_on": "asistant_only"}}, "train_on: assistant_only"),
        ({"method": "correction", "samples_per_prompt": 4, "sampling": {"temperature": 0}}, "the same answer"),
        ({"method": "sft", "adapter": 8}, "a group of keys"),
        ({"method": "sft", "adapter": "lorra"}, "did you mean `lora`"),
        ({"method": "sft", "export": {"merge": "maybe"}}, "neither `auto` nor true or false"),
    ],
)
def test_wrong_values_say_what_is_wanted(folder: Path, keys: dict[str, Any], words: str) -> None:
    error = refused(folder, with_stage(**keys))
    assert words in str(error)
    assert "mine.yaml, line" in str(error)
    assert error.remedy


def test_errors_that_follow_from_others_are_not_shown(folder: Path) -> None:
    """Defaults that depend on a wrong value, and a list that misses its wrong item, are not mistakes of their own."""
    assert "mistakes" not in str(refused(folder, with_stage(method="sft", adapter={"rank": -1})))
    assert "mistakes" not in str(refused(folder, with_stage(method="nonsense")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the recipe is empty"),
        ("# nothing\n", "the recipe is empty"),
        ("- method: sft\n", "a list"),
        ("just words\n", "just words"),
        ("model: embedded\n\tstages: []\n", "a tab"),
        ("model: [embedded\n", "not YAML"),
        ("model: a\nname: b\nmodel: c\n", "`model` is written twice"),
        ("model: !!python/object:os.system x\n", "is not used in recipes"),
        ("model: &a [*a]\n", "an alias holds itself"),
        (RECIPE.replace("schema: 1", "schema: 2"), "newer posttrain"),
        (RECIPE.replace("model: embedded\n", ""), "`model` is missing"),
        ("model: embedded\nstages: []\n", "at least one item"),
        (RECIPE.replace("  - name: dpo\n    method: dpo", "  - name: sft\n    method: dpo"), "two stages are named"),
        (RECIPE.replace("data: pairs.jsonl", "data: {stage: sft}"), "no earlier stage named `sft` writes data"),
        (RECIPE.replace("data: pairs.jsonl", "epochs: 1"), "has no data"),
        (RECIPE.replace("kind: match", "kind: mtach"), "did you mean `match`?"),
        (RECIPE.replace(r"\\bPia\\b", "("), "not a regular expression"),
    ],
)
def test_files_that_are_no_recipe(folder: Path, text: str, words: str) -> None:
    assert words in str(refused(folder, text))


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: \xe9".encode("latin-1"))
    with pytest.raises(SourceError, match="UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    with pytest.raises(SourceError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_a_later_stage_reads_what_an_earlier_one_wrote(folder: Path) -> None:
    text = """\
model: embedded
stages:
  - {name: pairs, method: correction, data: sft.jsonl}
  - {method: dpo, data: {stage: pairs}}
"""
    recipe = read(folder, text)
    assert isinstance(recipe.stages[0], Correction)
    assert recipe.stages[1].data == Data(stage="pairs")


# ---------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("010", 10),
        ("0x1f", 31),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("[1, two, 3.0]", [1, "two", 3.0]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_values_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse(text, "test").value
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan() -> None:
    assert parse("-.inf", "test").value == float("-inf")
    assert str(parse(".NaN", "test").value) == "nan"


def test_words_for_truth_are_truth_where_it_is_wanted(folder: Path) -> None:
    recipe = read(folder, with_stage(method="sft").replace("method: sft", "method: sft\n  export: {merge: no}"))
    assert recipe.stages[0].export.merge is False  # type: ignore[attr-defined]


def test_aliases_and_merges() -> None:
    text = "base: &b {x: 1, y: 2}\na: {<<: *b, y: 3}\nb: *b\n"
    assert parse(text, "t").value == {"base": {"x": 1, "y": 2}, "a": {"x": 1, "y": 3}, "b": {"x": 1, "y": 2}}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60)
@given(json_values)
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert parse(dump(value), "test").value == value


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("dpo.beta=0.2", ("stages", 1, "beta"), 0.2),
        ("dpo.learning_rate=1e-6", ("stages", 1, "learning_rate"), 1e-6),
        ("sft.compute.precision=fp32", ("stages", 0, "compute", "precision"), "fp32"),
        ("stages.dpo.beta=0.3", ("stages", 1, "beta"), 0.3),
        ("stages.0.epochs=2", ("stages", 0, "epochs"), 2.0),
        ("dpo.adapter.alpha=16", ("stages", 1, "adapter", "alpha"), 16.0),
        ("dpo.adapter=null", ("stages", 1, "adapter"), None),
        ("sft.data.limit=5", ("stages", 0, "data", "limit"), 5),
        ("evaluate.suites.identity.sampling.top_k=5", ("evaluate", "suites", 0, "sampling", "top_k"), 5),
        ("sft.optimizer.betas=[0.8, 0.9]", ("stages", 0, "optimizer", "betas"), (0.8, 0.9)),
    ],
)
def test_overrides_win(folder: Path, override: str, path: tuple[Any, ...], value: object) -> None:
    node: Any = read(folder, RECIPE, override)
    for step in path:
        node = node[step] if isinstance(step, int) else getattr(node, step)
    assert node == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dop.beta=1", "did you mean `dpo`?"),
        ("sedd=1", "did you mean `seed`?"),
        ("dpo.bta=1", "did you mean `beta`?"),
        ("dpo.beta", "key=value"),
        ("=3", "key=value"),
        ("dpo..beta=3", "key=value"),
        ("seed.x=1", "override seed.x=1"),
        ("model.x=1", "not a group of keys"),
        ("evaluate.suites.idenity.pattern=x", "did you mean `identity`?"),
        ("dpo.beta=-1", "override dpo.beta=-1"),
        ("sft.data=sft.jsnl", "override sft.data=sft.jsnl"),
        ("seed=[", "override seed=["),
    ],
)
def test_wrong_overrides_say_so(folder: Path, override: str, words: str) -> None:
    assert words in str(refused(folder, RECIPE, override))


def test_paths_in_overrides_are_relative_to_the_command(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mine.jsonl").write_text("{}\n")
    monkeypatch.chdir(elsewhere)
    recipe = read(folder, RECIPE, "sft.data=mine.jsonl")
    assert recipe.stages[0].data == Data(path=(str(elsewhere / "mine.jsonl"),))


# ---------------------------------------------------------------- files


def test_missing_files_are_all_named_with_the_nearest(folder: Path) -> None:
    text = RECIPE.replace("sft.jsonl", "sfft.jsonl").replace("held.jsonl", "data/held.jsonl")
    text = text.replace("model: embedded", "model: ./no-model")
    shown = str(refused(folder, text))
    assert "3 mistakes" in shown
    assert "did you mean `sft.jsonl`?" in shown
    assert "there is no folder" in shown
    assert "./no-model" in shown


def test_patterns_folders_and_hub_ids_are_data(folder: Path) -> None:
    (folder / "parts").mkdir()
    recipe = read(folder, with_stage(method="sft", data=["s*.jsonl", "parts", "org/name:default"]))
    assert recipe.stages[0].data is not None
    assert recipe.stages[0].data.path == (str(folder / "s*.jsonl"), str(folder / "parts"), "org/name:default")
    (note,) = recipe.notes
    assert "hub" in note
    assert "at least one file like this" in str(refused(folder, with_stage(method="sft", data="*.parquet")))


def test_data_of_the_package(folder: Path) -> None:
    error = refused(folder, with_stage(method="sft", data="package://nonsense.jsonl"))
    assert "package://nonsense.jsonl" in str(error)


def test_recipes_are_found_by_file_and_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = folder / "shipped"
    shipped.mkdir()
    (shipped / "identity.yaml").write_text("x")
    monkeypatch.setattr("posttrain.config.find.RECIPE_FOLDERS", (shipped,))
    assert find_recipe("identity") == shipped / "identity.yaml"
    assert find_recipe(str(shipped / "identity.yaml")) == shipped / "identity.yaml"
    with pytest.raises(SourceError, match="did you mean `identity`"):
        find_recipe("identiy")


def test_a_shipped_recipe_named_by_a_path_is_suggested_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        find_recipe("recipes/identity.yaml")
    assert caught.value.remedy == "did you mean `identity`?"
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(SourceError) as beside:
        find_recipe("./mime.yaml")
    assert beside.value.remedy == "did you mean `./mine.yaml`?"


@pytest.mark.parametrize("name", [path.stem for folder in RECIPE_FOLDERS for path in sorted(folder.glob("*.yaml"))])
def test_shipped_recipes_are_right(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    assert recipe.name == name
    assert recipe.notes == ()


def test_the_quickstart_comes_with_the_package() -> None:
    """Whoever installs a wheel has no checkout beside the package."""
    assert find_recipe("quickstart").is_relative_to(PACKAGE)


# ---------------------------------------------------------------- suites


def test_sampling_is_explicit_and_greedy_by_default() -> None:
    assert Sampling() == Sampling(temperature=0.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    suite = MatchSuite(name="a", kind="match", prompts="p", pattern="x")
    assert suite.sampling.temperature == 0
    with pytest.raises(ConfigError, match="the same answer"):
        MatchSuite(name="a", kind="match", prompts="p", pattern="x", samples_per_prompt=2)


def test_one_stop_string_stands_for_the_list_and_an_empty_one_is_refused() -> None:
    assert Sampling().stop == ()
    assert Sampling(stop="Q:").stop == ("Q:",)
    assert Sampling(stop=["\n\n", "Q:"]).stop == ("\n\n", "Q:")
    for wrong in ("", ["a", ""], 3):
        with pytest.raises(ConfigError, match="stop"):
            Sampling(stop=wrong)


def test_an_option_exists_only_where_it_is_used() -> None:
    with pytest.raises(UnknownKeyError, match="match has it"):
        PerplexitySuite(name="a", kind="perplexity", prompts="p", pattern="x")


# ---------------------------------------------------------------- fingerprints


def fingerprint(stage: Any, **changes: Any) -> str:
    return stage_fingerprint(stage, **{"data": ["d"], "start_model": "m", "seed": 0, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3},
        {"beta": 0.2},
        {"held_out": 0.1},
        {"data": {"path": "a.jsonl", "limit": 3}},
        {"compute": {"precision": "bf16"}},
        {"export": {"merge": False}},
        {"adapter": {"rank": 2}},
    ],
)
def test_what_a_result_depends_on_changes_its_fingerprint(change: Mapping[str, Any]) -> None:
    stage = DPO(data="a.jsonl")
    assert fingerprint(stage) != fingerprint(stage.changed(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"data": "elsewhere/b.jsonl"},
        {"log": {"samples_every": 1}},
        {"checkpoint": {"every_steps": 1}},
        {"alarms": {"on_critical": "stop"}},
        {"compute": {"tokens_per_microbatch": 128, "logprobs": "padded", "activation_checkpointing": True}},
        {"compute": {"offload_activations": True}},
    ],
)
def test_what_has_no_effect_leaves_the_fingerprint(change: Mapping[str, Any]) -> None:
    stage = DPO(data="a.jsonl")
    assert fingerprint(stage) == fingerprint(stage.changed(**change))


def test_a_key_that_is_younger_than_the_hash_changes_it_where_it_says_something() -> None:
    """`stop`, of the stage's sampling and its examinations': the hashes are those of a run before there was one."""
    online = Online("rft", data="d.jsonl", least_reward=0.1, examine={"sampling": {"temperature": 0.0}})
    correction = Correction(data="d.jsonl")
    assert fingerprint(online).startswith("c4893be5dc01ad9e")
    assert fingerprint(correction).startswith("9c675a89b6c00eee")
    others = [
        online.changed(sampling={"stop": "Q:"}),
        online.changed(examine={"sampling": {"temperature": 0.0, "stop": "Q:"}}),
    ]
    assert len({fingerprint(stage) for stage in (online, *others)}) == 3
    assert fingerprint(correction) != fingerprint(correction.changed(sampling={"temperature": 0.7, "stop": "Q:"}))


def test_inputs_count_by_content() -> None:
    stage = SFT()
    others = [fingerprint(stage, data=["e"]), fingerprint(stage, start_model="n"), fingerprint(stage, seed=1)]
    assert len({fingerprint(stage), *others}) == 4


def test_a_template_file_counts_by_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jinja", tmp_path / "two.jinja"
    one.write_text("a")
    two.write_text("a")
    stages = [SFT(encoding={"template": str(path)}) for path in (one, two)]
    assert fingerprint(stages[0]) == fingerprint(stages[1])
    two.write_text("b")
    assert fingerprint(stages[0]) != fingerprint(stages[1])


def test_what_changed_names_the_keys() -> None:
    before = parse(dump(DPO(data="a").model_dump(mode="json")), "t").value
    after = DPO(data="a", beta=0.3, optimizer={"clip_norm": None}, log={"samples_every": 1}, name="x")
    assert [str(one) for one in what_changed(before, after)] == [
        "`beta` 0.1 -> 0.3",
        "`optimizer.clip_norm` 1.0 -> none",
    ]


def test_what_changed_names_the_seeds_where_both_are_known() -> None:
    stage = DPO(data="a")
    before = parse(stage_yaml(stage, seed=0, split_seed=0), "t").value
    assert [str(one) for one in what_changed(before, stage, seed=3, split_seed=0)] == ["`seed` 0 -> 3"]
    # Of an older version, which wrote none.
    assert what_changed(parse(stage_yaml(stage), "t").value, stage, seed=3, split_seed=0) == []


def test_the_split_seed_is_part_of_what_a_share_is_drawn_from() -> None:
    stage = SFT(held_out=0.1)
    assert fingerprint(stage, split_seed=1) != fingerprint(stage, split_seed=2)
    # As stages of older versions, which drew the split from the seed: they stay done.
    assert fingerprint(stage, seed=3, split_seed=3) == fingerprint(stage, seed=3)
    for whole in (SFT(held_out=0), SFT(held_out={"path": "b.jsonl"})):
        assert fingerprint(whole, split_seed=1) == fingerprint(whole, split_seed=2)


# ---------------------------------------------------------------- the page


def test_the_page_is_current() -> None:
    """After a change that is meant: python -m tools.recipe_reference > docs/recipes.md"""
    page = Path(__file__).parents[3] / "docs" / "recipes.md"
    assert page.read_text(encoding="utf-8") == recipe_reference()


def test_every_key_has_a_word_of_explanation() -> None:
    from posttrain.config.explain import records_in
    from posttrain.config.meanings import meaning_of

    waiting: list[Any] = [Recipe, *STAGES.values(), *PREFERENCES.values()]
    seen = set()
    while waiting:
        record = waiting.pop()
        if record in seen:
            continue
        seen.add(record)
        for name, option in fields_of(record).items():
            assert meaning_of(record, name), f"{record.__name__}.{name}"
            waiting += list(records_in(option.annotation))
    assert len(seen) > 25


# ---------------------------------------------------------------- thresholds of alarms


def test_thresholds_of_alarms_have_a_key(folder: Path) -> None:
    recipe = read(folder, RECIPE, "dpo.alarms.thresholds.gradient_spike.factor=20", "dpo.alarms.off=[length_drift]")
    alarms = recipe.stages[1].alarms
    assert alarms.changes == {"gradient_spike": {"factor": 20.0}, "length_drift": "off"}
    checks = {check.name: check for check in make_checks(alarms.changes)}
    assert checks["gradient_spike"].factor == 20.0 and "length_drift" not in checks
    assert parse_recipe(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("alarms", "words"),
    [
        ({"thresholds": {"gradient_spik": {"factor": 20}}}, "did you mean `gradient_spike`?"),
        ({"thresholds": {"gradient_spike": {"factr": 20}}}, "did you mean `factor`?"),
        ({"thresholds": {"gradient_spike": {"factor": -1}}}, "a number above 0"),
        ({"thresholds": {"gradient_spike": {"least_steps": 2.5}}}, "a whole number"),
        ({"thresholds": {"gradient_spike": {"factor": "much"}}}, "a number"),
        ({"thresholds": {"gradient_spike": 20}}, "a group of keys"),
        ({"off": "gradient_spike", "thresholds": {"gradient_spike": {"factor": 2}}}, "no effect"),
    ],
)
def test_wrong_thresholds_are_refused_by_name(folder: Path, alarms: dict[str, Any], words: str) -> None:
    error = refused(folder, with_stage(method="sft", alarms=alarms))
    assert words in str(error) and "sft.alarms.thresholds" in str(error)


def test_a_recipe_that_was_read_is_the_one_that_python_makes() -> None:
    text = """{name: mine, model: embedded, stages: [
        {method: sft, data: package://demonstrations.jsonl}, {method: dpo, data: package://preferences.jsonl}]}"""
    read = parse_recipe(text)
    assert type(read) is Recipe and {"name", "model", "stages"} <= read.model_fields_set
    made = Recipe(**{name: getattr(read, name) for name in read.model_fields_set})
    assert made.model_dump() == read.model_dump() and made.to_yaml() == read.to_yaml()
    assert [type(stage) for stage in read.stages] == [STAGES["sft"], STAGES["dpo"]]


def test_the_meaning_of_a_key_is_the_text_under_its_field() -> None:
    from posttrain.config.meanings import meaning_of

    assert str(meaning_of(Recipe, "schema")) == "Version of these keys."  # by the name that a recipe writes
    assert meaning_of(PREFERENCES["dpo"], "epochs") == meaning_of(STAGES["sft"], "epochs")  # inherited by both
    assert meaning_of(PREFERENCES["dpo"], "beta")  # described by its table
