"""Model cards: every figure is the records' own, what is not known is said so, and no path of the machine is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.errors import SourceError, UnknownKeyError
from posttrain.report.card import Base, model_card, short_card, without_places
from posttrain.report.card_files import outside_files
from posttrain.report.dataset_card import RowFile, dataset_card
from posttrain.report.digest import digest
from tests.fake_run import Plan, write_fake_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_fake_run(tmp_path_factory.mktemp("runs") / "mine", Plan(steps=24, pairs=16, prompts=8))
    record = json.loads((folder / "dpo" / "stage.json").read_text())
    record["start_model"] = {"name": str(folder / "sft/model"), "path": str(folder / "sft/model"), "fingerprint": "77"}
    record["seed"] = 3
    (folder / "dpo" / "stage.json").write_text(json.dumps(record))
    (folder / "recipe.yaml").write_text("model: /home/ada/models/base\nstages:\n- {data: ~/secret/pairs.jsonl}\n")
    return folder


BASE = Base("embedded", hub="ada/base", license="Apache-2.0")


def front(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_the_figures_are_those_of_the_records(run: Path) -> None:
    card = model_card(run, "dpo", name="ada/mine", base=BASE)
    table = digest(run).table
    for row in table.rows:
        for cell in row.cells:
            if cell is not None:
                assert cell.value in card
    assert re.search(r"\| identity, match \| 0\.0 % .* \| 8 \| better \|", card.replace("\u202f", " "))
    alarms = {json.loads(line)["name"] for line in (run / "dpo" / "alarms.jsonl").read_text().splitlines()}
    assert alarms and all(name in card for name in alarms)
    assert "Seed 3" in card and "torch 2.13.0" in card
    assert model_card(run, "dpo", name="ada/mine", base=BASE) == card


def test_what_it_says_of_itself_and_what_it_does_not_know(run: Path) -> None:
    card = model_card(run, "dpo", name="ada/mine", base=BASE)
    said = front(card)
    assert said["base_model"] == "ada/base" and said["base_model_relation"] == "finetune" and "license" not in said
    assert said["tags"] == ["posttrain", "sft", "dpo"]  # the stages that this model went through, and no other
    assert "License of this model: none was chosen" in card and "Licenses of the rows: not recorded" in card
    assert "One run of one seed" in card
    chosen = model_card(run, "dpo", name="ada/mine", license='a "b": c', adapter={"peft_type": "LORA", "r": 12})
    assert front(chosen)["license"] == 'a "b": c' and front(chosen)["library_name"] == "peft"
    assert "base_model" not in front(chosen) and "not recorded; look at its own page" in chosen


def test_an_earlier_stage_has_the_card_of_its_own_chain(run: Path) -> None:
    card = model_card(run, "sft", name="ada/mine", base=BASE)
    assert front(card)["tags"] == ["posttrain", "sft"] and "| start | sft |" in card.replace("suite, metric ", "")
    assert "dpo" not in card.split("## How to reproduce")[0]
    with pytest.raises(UnknownKeyError, match="did you mean `dpo`"):
        model_card(run, "dop", name="ada/mine")
    with pytest.raises(SourceError):
        model_card(run.parent, "dpo", name="ada/mine")


def test_no_path_of_the_machine_stands_in_a_card(run: Path) -> None:
    card = model_card(run, "dpo", name="ada/mine", base=BASE)
    assert "/home" not in card and "secret" not in card and str(run.parent) not in card
    assert "model: base" in card and "pairs.jsonl" in card
    for text, shown in (
        ("see /home/ada/a.jsonl, row 3", "see a.jsonl, row 3"),
        ("~/data/x.jsonl", "x.jsonl"),
        ("https://huggingface.co/ada/base", "https://huggingface.co/ada/base"),
        ("data/x.jsonl and a/b/c", "data/x.jsonl and a/b/c"),
        ("12/34 tokens/s, and/or", "12/34 tokens/s, and/or"),
    ):
        assert without_places(text) == shown


def test_texts_of_a_run_break_no_table(run: Path) -> None:
    import shutil

    other = run.parent / "broken"
    shutil.copytree(run, other)
    record = json.loads((other / "dpo" / "stage.json").read_text())
    (other / "dpo" / "stage.json").write_text(json.dumps({**record, "warnings": ["a | b\n# no heading"]}))
    card = model_card(other, "dpo", name="ada/mine")
    assert "\n# no heading" not in card and "a \\| b # no heading." in card


def test_a_model_without_a_run_says_that_nothing_is_known(tmp_path: Path) -> None:
    card = short_card(tmp_path, name="ada/mine", base="ada/base")
    assert "is not recorded" in card and front(card)["base_model"] == "ada/base" and "## Evaluation" not in card


def test_a_card_of_rows_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "data.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n\n')
    assert RowFile.of(path).rows == 2 and RowFile.of(path).keys == {"prompt": 2, "completion": 1}
    card = dataset_card([path], name="ada/rows", license="cc-by-4.0")
    assert "2 rows of prompt, completion (1)" in card and front(card)["license"] == "cc-by-4.0"
    assert "Not recorded: the file lies in no stage's folder" in card
    (path.parent / "stage.json").write_text(json.dumps({"method": "distil", "status": "done"}))
    (path.parent / "config.yaml").write_text("teacher: /opt/models/teacher\n")
    card = dataset_card([path], name="ada/rows")
    assert "By the stage `stage` (distil, done)" in card and "teacher: teacher" in card


def test_who_follows_the_card_has_the_recipe_and_knows_its_files(tmp_path: Path, run: Path) -> None:
    """Two files of one name stay two; a function's file, a file that is gone and one that was written to are told."""
    import os
    import shutil
    from hashlib import sha256

    for name in ("a/pairs.jsonl", "b/pairs.jsonl", "letters.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    os.utime(tmp_path / "b/pairs.jsonl")
    recipe = {
        "model": str(tmp_path / "base"),
        "stages": [
            {"data": {"path": [f"{tmp_path}/a/pairs.jsonl", f"{tmp_path}/b/pairs.jsonl", f"{tmp_path}/gone.jsonl"]}},
            {"rewards": [{"function": f"{tmp_path}/letters.py:vowels"}], "note": "a/b and https://x.org/a/b.jsonl"},
            {"data": {"path": [f"{tmp_path}/chats/*.jsonl.gz"]}},
        ],
    }
    text = yaml.safe_dump(recipe, width=1000)
    files = outside_files(text, started="2026-01-01T00:00:00+00:00")
    assert {file.name: (file.sha256, file.changed) for file in files} == {
        "a/pairs.jsonl": (sha256(b"a/pairs.jsonl").hexdigest(), False),
        "b/pairs.jsonl": (sha256(b"b/pairs.jsonl").hexdigest(), True),
        "gone.jsonl": (None, False),
        "letters.py": (sha256(b"letters.py").hexdigest(), False),
        "chats/*.jsonl.gz": (None, False),
    }
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "recipe.yaml").write_text(text)
    base = Base("base", hub="ada/base", model="ada/base")
    card = model_card(other, "dpo", name="ada/mine", base=base, files=files)
    assert str(tmp_path) not in card and "`posttrain run recipe.yaml model=ada/base`" in card
    assert f"- `a/pairs.jsonl`: sha256 `{sha256(b'a/pairs.jsonl').hexdigest()}`\n" in card
    assert "`gone.jsonl`: was not there" in card and "`chats/*.jsonl.gz`: all files of this pattern" in card
    assert card.count("written to after the training began") == 1
    shown = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert shown["stages"][0]["data"]["path"] == ["a/pairs.jsonl", "b/pairs.jsonl", "gone.jsonl"]
    assert shown["stages"][1]["rewards"][0]["function"] == "letters.py:vowels"
    assert shown["stages"][2]["data"]["path"] == ["chats/*.jsonl.gz"]


def test_an_adapter_s_command_is_one_that_vllm_takes(run: Path) -> None:
    lora = {"peft_type": "LORA", "r": 12}
    card = model_card(run, "dpo", name="ada/mine", base=BASE, adapter=lora)
    assert "`vllm serve ada/base --enable-lora --max-lora-rank 16 --lora-modules mine=ada/mine`" in card
    card = model_card(run, "dpo", name="ada/mine", base=BASE, adapter={**lora, "use_dora": True})
    assert "vllm serve" not in card and "vLLM serves no DoRA" in card


def test_the_license_of_the_catalogue_s_model_is_not_that_of_another(run: Path) -> None:
    from posttrain.cli.pushing import Asked, _base

    record = json.loads((run / "sft" / "stage.json").read_text())
    (run / "sft" / "stage.json").write_text(
        json.dumps({**record, "start_model": {"name": "smollm2-135m-instruct", "path": "/c", "fingerprint": "1"}})
    )
    own = _base(Asked(run, "ada/mine", None, None, None, None), run)
    named = _base(Asked(run, "ada/mine", None, "ada/other", None, None), run)
    assert own is not None and named is not None
    assert (own.hub, own.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0")
    assert own.origin is not None and "Q4_1, dequantised" in own.origin  # what was trained is not the hub's own weights
    assert (named.hub, named.license) == ("ada/other", None)
