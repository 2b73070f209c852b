"""A stage's rows: what is left out is listed once, what is held out is told, and margins that lack are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import SFT, Mix, Preference, Reward, TrainingStage
from posttrain.data import read
from posttrain.data.trees import collate
from posttrain.errors import DataError, EmptyDatasetError
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.reading import RowInputs
from posttrain.training.stages.starts import resolve_start
from posttrain.training.stages.table import training_kind
from tests.chat_templates import CHATML
from tests.family_templates import KIMI_K2
from tests.fixtures import byte_tokenizer, tiny_model


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start")
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def demonstrations(path: Path, texts: Iterable[str], *bad: str) -> str:
    rows = [json.dumps({"prompt": f"Say {text}.", "completion": text}) for text in texts]
    path.write_text("\n".join([*rows, *bad]) + "\n")
    return str(path)


def loaded(stage: TrainingStage, start: Path, folder: Path, heard: Heard | None = None, **options: Any) -> RowInputs:
    examples = options.get("examples")
    ctx = StageContext(stage, start, StageFolder(folder / "stage"), 0, heard or Heard(), examples=examples)
    inputs = training_kind(stage).inputs(ctx, resolve_start(stage, start, torch.device("cpu")))
    assert isinstance(inputs, RowInputs)
    return inputs


def dropped(folder: Path) -> list[dict[str, Any]]:
    path = folder / "stage" / "dropped.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---------------------------------------------------------------- what is left out


BAD = '{"prompt": "Say x."}'
LONG = json.dumps({"prompt": "Say it.", "completion": "long " * 40})


def skipping(tmp_path: Path, **options: Any) -> SFT:
    train = demonstrations(tmp_path / "train.jsonl", "abcd", BAD, LONG)
    apart = demonstrations(tmp_path / "apart.jsonl", "efg", BAD, BAD)
    return SFT(
        data={"path": train, "bad_rows": "skip"},
        held_out={"path": apart, "bad_rows": "skip"},
        max_length=80,
        **options,
    )


def test_rows_left_out_of_both_files_are_listed(tmp_path: Path, start: Path) -> None:
    inputs = loaded(skipping(tmp_path), start, tmp_path)
    listed = [(line["split"], line["reason"], Path(line["row"]).name) for line in dropped(tmp_path)]
    assert listed == [
        ("train", "wrong_shape", "train.jsonl, row 5"),
        ("train", "too_long", "train.jsonl, row 6"),
        ("held_out", "wrong_shape", "apart.jsonl, row 4"),
        ("held_out", "wrong_shape", "apart.jsonl, row 5"),
    ]
    assert inputs.counts.dropped == {"wrong_shape": 1, "too_long": 1}
    assert inputs.counts.held_out.dropped == {"wrong_shape": 2}
    assert (inputs.counts.rows, inputs.counts.held_out_rows) == (4, 3)
    assert not list((tmp_path / "stage").glob("rejected_*"))


def test_a_stage_that_goes_on_lists_them_once(tmp_path: Path, start: Path) -> None:
    stage = skipping(tmp_path)
    loaded(stage, start, tmp_path)
    before = dropped(tmp_path)
    loaded(stage, start, tmp_path)
    assert dropped(tmp_path) == before and len(before) == 4


def test_nothing_left_out_leaves_no_file(tmp_path: Path, start: Path) -> None:
    loaded(SFT(data=demonstrations(tmp_path / "train.jsonl", "abcd")), start, tmp_path)
    assert not (tmp_path / "stage" / "dropped.jsonl").exists()


def test_rows_that_python_read_are_listed_too(tmp_path: Path, start: Path) -> None:
    examples = read(demonstrations(tmp_path / "train.jsonl", "abcd", BAD), bad_rows="skip")
    loaded(SFT(), start, tmp_path, examples=examples)
    assert [line["reason"] for line in dropped(tmp_path)] == ["wrong_shape"]


def test_when_every_row_is_bad_the_file_that_the_error_names_is_there(tmp_path: Path, start: Path) -> None:
    path = demonstrations(tmp_path / "train.jsonl", [], BAD)
    with pytest.raises(EmptyDatasetError) as error:
        loaded(SFT(data={"path": path, "bad_rows": "skip"}), start, tmp_path)
    (named,) = (tmp_path / "stage").glob("rejected_*")
    assert str(named) in error.value.remedy


# ---------------------------------------------------------------- what is held out


def test_a_share_too_small_for_one_row_is_said(tmp_path: Path, start: Path) -> None:
    heard, path = Heard(), demonstrations(tmp_path / "train.jsonl", "abcdefgh")
    inputs = loaded(SFT(data=path, held_out=0.1), start, tmp_path, heard)
    assert len(inputs.held_out) == 0
    assert [line for line in heard.lines if "no row is held out (0.1 of 8 rows" in line]
    for share in (0, 0.5):
        quiet = Heard()
        loaded(SFT(data=path, held_out=share), start, tmp_path, quiet)
        assert not [line for line in quiet.lines if "held out" in line]


def test_held_out_rows_that_are_trained_on_are_found(tmp_path: Path, start: Path) -> None:
    train = demonstrations(tmp_path / "train.jsonl", "abcd")
    apart = demonstrations(tmp_path / "apart.jsonl", "xbyc")
    inputs = loaded(SFT(data=train, held_out={"path": apart}), start, tmp_path)
    (check,) = inputs.findings
    assert (check.status, check.evidence["in_training_rows"]) == ("warn", 2)
    assert "2 of them are among the training rows" in check.detail and "apart.jsonl, row 2" in check.detail
    assert inputs.counts.held_out.in_training_rows == 2
    clean = demonstrations(tmp_path / "clean.jsonl", "xyz")
    (check,) = loaded(SFT(data=train, held_out={"path": clean}), start, tmp_path).findings
    assert check.status == "pass"


# ---------------------------------------------------------------- margins


def pairs(path: Path, margins: list[float | None]) -> str:
    rows = [
        {"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No.", **({} if m is None else {"margin": m})}
        for i, m in enumerate(margins)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("margins", "first", "share"),
    [([None] * 3, "row 1", "3 of 3"), ([1.0, 2.0, None, 0.5, None], "row 3", "2 of 5")],
    ids=["none", "mixed"],
)
def test_pairs_without_a_margin_are_refused_where_margins_train(
    tmp_path: Path, start: Path, margins: list[float | None], first: str, share: str
) -> None:
    stage = Preference("odpo", data=pairs(tmp_path / "pairs.jsonl", margins), held_out=0)
    with pytest.raises(DataError) as error:
        loaded(stage, start, tmp_path)
    assert str(error.value.where).endswith(first) and share in error.value.problem
    assert "columns: {margin:" in error.value.remedy and "method: dpo" in error.value.remedy


def test_margins_are_no_matter_where_they_do_not_train(tmp_path: Path, start: Path) -> None:
    path = pairs(tmp_path / "pairs.jsonl", [1.0, None, 2.0])
    inputs = loaded(Preference("dpo", data=path, held_out=0), start, tmp_path)
    margin_P = collate(list(inputs.rows)).margin_P
    assert margin_P is not None and torch.isnan(margin_P).tolist() == [False, True, False]
    whole = pairs(tmp_path / "whole.jsonl", [1.0, 0.5])
    assert len(loaded(Preference("odpo", data=whole, held_out=0), start, tmp_path).rows) == 2


def test_the_margins_of_a_mix_are_looked_for_before_a_model_loads(tmp_path: Path, start: Path) -> None:
    terms = [{"loss": "dpo", "weight": 0.5}, {"loss": "odpo", "weight": 0.5}]
    stage = Mix(losses=terms, data=pairs(tmp_path / "pairs.jsonl", [1.0, None, 2.0]), held_out=0)
    with pytest.raises(DataError, match="`odpo` trains on the annotators' margins, and 1 of 3 pairs") as error:
        loaded(stage, start, tmp_path)
    assert str(error.value.where).endswith("row 2")
    whole = Mix(losses=terms, data=pairs(tmp_path / "whole.jsonl", [1.0, 0.5]), held_out=0)
    assert len(loaded(whole, start, tmp_path).rows) == 2


# ---------------------------------------------------------------- ties


@pytest.mark.parametrize(
    ("stage", "all_pairs"),
    [
        (lambda data: Preference("dpo_pl", data=data, held_out=0), "dpo"),
        (lambda data: Mix(losses=[{"loss": "dpo_pl", "weight": 1.0}], data=data, held_out=0), "dpo"),
        (lambda data: Reward(objective="plackett_luce", data=data, held_out=0), "bradley_terry"),
    ],
    ids=["dpo_pl", "mix", "reward"],
)
def test_lists_with_ties_are_refused_where_one_order_trains(
    tmp_path: Path, start: Path, stage: Any, all_pairs: str
) -> None:
    path = tmp_path / "lists.jsonl"
    rows = [
        {"prompt": f"Say {scores}.", "responses": ["a", "b", "c"], "scores": scores}
        for scores in ([3, 2, 1], [3, 1, 1], [5, 2, 2])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(path), "allow_ties": True}
    with pytest.raises(DataError, match="2 lists have the same score") as error:
        loaded(stage(data), start, tmp_path)
    assert str(error.value.where).endswith("row 2") and "3, 1, 1" in error.value.found
    assert f"`{all_pairs}`" in error.value.remedy
    assert len(loaded(Preference("dpo", data=data, held_out=0), start, tmp_path).rows) == 3


# ---------------------------------------------------------------- columns that nothing reads


def columns_check(tmp_path: Path, start: Path, *rows: dict[str, Any], **data: Any) -> Any:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = loaded(SFT(data={"path": str(path), **data}, learning_rate=1e-3, epochs=1, held_out=0), start, tmp_path)
    check = next((one for one in inputs.findings if one.name == "columns"), None)
    if check is None:
        return None
    assert list(inputs.counts.unused_columns) == check.evidence["unused"]
    return check


def test_columns_that_nothing_reads_are_named(tmp_path: Path, start: Path) -> None:
    row = {"prompt": "a", "completion": "b"}
    assert columns_check(tmp_path, start, row) is None
    named = columns_check(tmp_path, start, {**row, "id": 3, "prompt_id": "x"})
    assert named.status == "pass" and "nothing reads: id, prompt_id" in named.detail
    slip = columns_check(tmp_path, start, {**row, "systm": "Be brief."})
    assert slip.status == "warn" and "`systm` is not read: did you mean `system`?" in slip.remedy
    other = columns_check(tmp_path, start, {**row, "system_prompt": "Be brief."})
    assert "did you mean `system`?" in other.remedy


def test_files_and_keys_that_are_not_read_are_checks(tmp_path: Path, start: Path) -> None:
    chat = [{"role": "user", "content": "a", "time": 1}, {"role": "assistant", "content": "b", "thought": "c"}]
    for name in ("x_train", "x_test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    heard = Heard()
    stage = SFT(data=str(tmp_path / "x_*.jsonl"), learning_rate=1e-3, epochs=1, held_out=0)
    inputs = loaded(stage, start, tmp_path, heard)
    checks = {check.name: check for check in inputs.findings}
    note = "read x_train.jsonl (split 'train'); not read: x_test.jsonl (split 'test')"
    assert checks["files"].detail == note and any(line.endswith(note) for line in heard.lines)
    assert inputs.counts.notes == (note,) and inputs.counts.unread_keys == {"turn.thought": 1, "turn.time": 1}
    assert checks["keys"].status == "warn" and "did you mean `reasoning`?" in str(checks["keys"].remedy)

    both = [str(tmp_path / f"{name}.jsonl") for name in ("x_train", "x_test")]
    mixed = loaded(SFT(data={"path": both}, learning_rate=1e-3, epochs=1, held_out=0), start, tmp_path)
    check = next(check for check in mixed.findings if check.name == "files")
    assert check.status == "warn" and "files of different splits are read together" in check.detail


def test_a_label_under_sft_is_a_warning(tmp_path: Path, start: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    check = columns_check(tmp_path, start, {"messages": chat, "label": False})
    assert check.status == "warn" and "bad responses are imitated" in check.remedy and "kto" in check.remedy


def test_an_input_beside_a_mapped_instruction_is_a_warning(tmp_path: Path, start: Path) -> None:
    row = {"instruction": "Add.", "input": "2, 2", "output": "4"}
    check = columns_check(tmp_path, start, row, columns={"prompt": "instruction", "completion": "output"})
    assert check.status == "warn" and "`prompt` is only the instruction" in check.remedy
    assert columns_check(tmp_path, start, row) is None


# ---------------------------------------------------------------- the proof of every row


def test_the_proof_of_all_rows_counts_splits_and_names_the_first_refused_row(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(KIMI_K2, specials=("<|im_start|>", "<|im_end|>", "<think>", "</think>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    rows = ["<think>a</think>b", "b", "<think>a</think><think>b</think>c", "d", "<think>a</think>e"]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Say {n}.", "completion": row}) + "\n" for n, row in enumerate(rows))
    )
    stage = SFT(data={"path": str(path), "bad_rows": "skip"}, held_out=0)
    (check,) = loaded(stage, tmp_path / "start", tmp_path).proofs
    assert check.status == "warn" and check.evidence["refused"] == 1
    assert "of 4 rows proven" in check.detail and "2 of them as a documented split" in check.detail
    assert "1 refused, first " in check.detail and "rows.jsonl, row 3" in check.detail
    assert check.evidence["findings"] == {"moved_thoughts": 2}
