"""Other tools' files as recipes: hand-worked numbers, and no key that vanishes."""

from __future__ import annotations

import ast
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from posttrain.config.explain import fields_of, records_in
from posttrain.config.other_tools import OTHER_TOOLS
from posttrain.config.schema import Recipe
from posttrain.config.stages import STAGES
from posttrain.config.yaml_text import parse
from posttrain.converting import Converted, convert
from posttrain.converting.axolotl_keys import AXOLOTL
from posttrain.converting.convert import REQUIRED
from posttrain.converting.draft import Draft
from posttrain.converting.entry import Entry, Goes, Joint
from posttrain.converting.llamafactory_keys import LLAMAFACTORY
from posttrain.converting.openrlhf_keys import OLD_NAMES, OPENRLHF
from posttrain.converting.trl_keys import TRL
from posttrain.errors import ConfigError, SourceError, UnknownKeyError
from tests.unit.converting import cases

TABLES: dict[str, dict[str, Entry]] = {
    "axolotl": AXOLOTL,
    "llamafactory": LLAMAFACTORY,
    "trl": TRL,
    "openrlhf": OPENRLHF,
}
BASES: dict[str, dict[str, Any]] = {
    "axolotl": cases.AX,
    "llamafactory": cases.LF,
    "trl": {**cases.HF, "assistant_only_loss": True},
}


def converted(folder: Path, document: dict[str, Any], tool: str, processes: int = 1, **options: Any) -> Converted:
    path = folder / "file.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return convert(path, tool=tool, processes=processes, out=folder / "out.yaml", **options)


def value_at(recipe: dict[str, Any], key: str) -> Any:
    """The value of a stage's key, or of the recipe's ("/model"); None where it is not written."""
    node: Any = recipe if key.startswith("/") else recipe["stages"][0]
    for word in key.lstrip("/").split("."):
        node = node.get(word) if isinstance(node, dict) else None
    return node


def held(found: Converted, wanted: dict[str, Any], missed: tuple[str, ...], about: str) -> None:
    recipe = parse(found.text, about).value
    Recipe.model_validate(recipe)
    for key, value in wanted.items():
        assert value_at(recipe, key) == value, f"{about}: {key} is {value_at(recipe, key)}, not {value}\n{found.text}"
    assert sorted({entry.key for entry in found.missed}) == sorted(missed), f"{about}\n{found.text}"
    for entry in found.missed:
        assert entry.why and entry.remedy


@pytest.mark.parametrize("tool", ["axolotl", "llamafactory", "trl"])
def test_hand_worked_files(tool: str, tmp_path: Path) -> None:
    for about, document, processes, wanted, missed in getattr(cases, tool.upper()):
        held(converted(tmp_path, document, tool, processes), wanted, missed, about)


def test_hand_worked_scripts(tmp_path: Path) -> None:
    for about, trainer, options, wanted, missed in cases.OPENRLHF:
        path = tmp_path / "train.sh"
        lines = options.replace(" --", " \\\n   --")
        path.write_text(cases.SCRIPT.format(trainer=trainer, options=lines), encoding="utf-8")
        found = convert(path)
        held(found, wanted, missed, about)
        # A key is its owner's: neither the recipe nor a list of what was read repeats it.
        assert "k3y-0f-s0mebody" not in found.text + repr(found.missed) + repr(found.assumed)


@pytest.mark.parametrize("tool", list(BASES))
def test_no_key_vanishes(tool: str, tmp_path: Path) -> None:
    """Every key of the table, with a value of no sense at all, is said, idle or missed."""
    names = [key for key in TABLES[tool] if "." not in key and "[" not in key and key not in BASES[tool]]
    for value in (None, 1, True):
        for start in range(0, len(names), 60):
            part = names[start : start + 60]
            document = {**BASES[tool], **dict.fromkeys(part, value)}
            # What decides the method decides what else is read: each by itself, below.
            for key in ("rl", "reward_model", "process_reward_model", "stage", "rewards"):
                document.pop(key, None)
            document.update({"stage": "sft"} if tool == "llamafactory" else {})
            found = converted(tmp_path, document, tool, method="sft" if tool == "trl" else None)
            ended = {*found.said, *found.idle, *(entry.key for entry in found.missed)}
            assert {key for key in document if key in part} <= ended, value


def test_a_joint_key_that_nobody_reads_is_listed() -> None:
    rows: dict[str, Entry] = {"asked": Joint("rows_per_step"), "other": Joint("kl_beta"), "empty": Joint("steps")}
    draft = Draft("Axolotl", "sft", {"asked": 3, "other": 3, "empty": None}, rows)
    draft.translate()
    draft.finish()
    assert [entry.key for entry in draft.missed] == ["asked"]
    assert draft.idle == {"other": "`method: sft` has no `kl_beta`", "empty": "not set"}


def test_every_place_of_the_tables_is_a_key_of_recipes() -> None:
    for tool, rows in TABLES.items():
        for name, entry in rows.items():
            if not isinstance(entry, Goes | Joint):
                continue
            records: list[type[BaseModel]] = [Recipe] if entry.key.startswith("/") else list(STAGES.values())
            for word in entry.key.lstrip("/").split("."):
                fields = [fields_of(record)[word] for record in records if word in fields_of(record)]
                assert fields, f"{tool}: {name} goes to {entry.key}, and no record has {word}"
                records = list(itertools.chain.from_iterable(records_in(field.annotation) for field in fields))


def test_the_tables_say_what_the_errors_say() -> None:
    """A key that a recipe's error translates goes to the same place here."""
    for name, meant in OTHER_TOOLS.items():
        place = meant.partition(",")[0]
        for tool, rows in TABLES.items():
            entry = rows.get(name)
            if isinstance(entry, Goes) and place not in ("method", "data", "model"):
                assert entry.key.lstrip("/").split(".")[0] == place.split(".")[0], f"{tool}: {name}"


def test_no_row_of_a_table_hides_another() -> None:
    """Two equal keys of one literal: Python keeps the last, and the names of the first would be gone."""
    for path in Path("posttrain/converting").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                keys = [ast.unparse(key) for key in node.keys if key is not None]
                assert len(keys) == len(set(keys)), f"{path}: {[key for key in keys if keys.count(key) > 1]}"


def test_old_names_lead_to_rows() -> None:
    for names in OLD_NAMES.values():
        assert [name for name in names.values() if name not in OPENRLHF] == []


def test_a_foreign_text_stays_a_comment_or_a_value(tmp_path: Path) -> None:
    hostile = "x\nstages: []\n\x1b[2J # '\""
    document = {**cases.AX, "base_model": hostile, "neftune_noise_alpha": hostile, hostile: hostile}
    found = converted(tmp_path, document, "axolotl")
    assert "\x1b" not in "".join(line for line in found.text.splitlines() if line.startswith("#"))
    assert parse(found.text, "hostile").value["model"] == hostile


def test_what_posttrain_refuses_is_listed_and_the_rest_stays(tmp_path: Path) -> None:
    found = converted(tmp_path, {**cases.AX, "learning_rate": -1, "sequence_len": 0, "lora_r": 8}, "axolotl")
    assert {"learning_rate", "sequence_len"} <= {entry.key for entry in found.missed}
    assert "learning_rate" not in parse(found.text, "").value["stages"][0]
    assert set(REQUIRED) >= {"data", "/model"}


def test_files_that_are_there_are_named_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "file.yaml").write_text(
        yaml.safe_dump(
            {**cases.AX, "datasets": [{"path": "json", "data_files": "rows.jsonl", "type": "chat_template"}]}
        ),
        encoding="utf-8",
    )
    found = convert(tmp_path / "file.yaml", out=tmp_path / "deep" / "out.yaml")
    assert parse(found.text, "").value["stages"][0]["data"] == "../rows.jsonl"


def test_data_sets_of_llamafactory_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "person", "assistant_tag": "model"}
    columns = {"prompt": "q", "chosen": "a", "rejected": "b"}
    info = {
        "talk": {"file_name": "talk.json", "formatting": "sharegpt", "columns": {"messages": "turns"}, "tags": tags},
        "pairs": {"hf_hub_url": "org/pairs", "ranking": True, "columns": columns},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    found = converted(tmp_path, {**cases.LF, "dataset": "talk", "max_samples": 50}, "llamafactory")
    assert parse(found.text, "").value["stages"][0]["data"] == {
        "path": "data/talk.json",
        "columns": {"messages": "turns"},
        "roles": {"person": "user", "model": "assistant"},
        "limit": 50,
    }
    found = converted(tmp_path, {**cases.LF, "stage": "dpo", "dataset": ["pairs"]}, "llamafactory")
    assert value_at(parse(found.text, "").value, "data.columns") == {"instruction": "q", "chosen": "a", "rejected": "b"}


def test_whose_file_it_is(tmp_path: Path) -> None:
    path = tmp_path / "dpo_config.json"
    path.write_text(json.dumps({"per_device_train_batch_size": 2, "beta": 0.2}), encoding="utf-8")
    found = convert(path)
    assert found.tool == "TRL" and "method: dpo" in found.text
    # A program passes model and rows to TRL's config: the recipe says that they are missing.
    assert {"model_name_or_path", "dataset_name"} <= {entry.key for entry in found.missed}
    refusals = {
        "stages: [{method: sft}]": "a recipe of posttrain already",
        "merge_method: ties": "mergekit",
        "- a": "no training configuration",
        "colour: red": "no training configuration",
        "model_name_or_path: x\ntemplate: y\ninfer_backend: hf": "talks to a model",
        "model_name_or_path: x\nexport_dir: y": "merges an adapter",
        "model: x\nmodel_class: llm\ntrain_dataset: y": "version 1",
        "model_name_or_path: x\nlearning_rate: 1e-4": "nothing in this file says what TRL trains",
    }
    for text, words in refusals.items():
        (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=words) as caught:
            convert(tmp_path / "f.yaml")
        assert caught.value.remedy
    with pytest.raises(SourceError):
        convert(tmp_path / "nowhere.yaml")
    with pytest.raises((ConfigError, UnknownKeyError), match="tool"):
        convert(path, tool="axolotll")
    (tmp_path / "f.sh").write_text("python -m openrlhf.cli.train_knowledge_distillation --a 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="no method for"):
        convert(tmp_path / "f.sh")
