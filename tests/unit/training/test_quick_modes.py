"""`preflight: fast | off` and `export: none`: quicker, said, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config import parse_recipe
from posttrain.errors import ConfigError
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.logs import HeldOutRow
from posttrain.runs.records.preflight import PreflightRecord
from posttrain.training.checks import of_rows
from tests.online import early_letters, lines, save_start, tasks_of

PAIRS = [{"prompt": f"{i}?", "chosen": f"{i} it is.", "rejected": "No."} for i in range(8)]
SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "rows_per_step": 4, "steps": 2, "held_out": 2 / 8, "export": "none"}


def trained(start: Path, out: Path, **options: Any) -> tuple[str, PreflightRecord]:
    """(fingerprint of the weights after training, what the preflight wrote)."""
    policy = pt.load(start)
    pt.train(pt.DPO(**SETTINGS, **options), policy, PAIRS, out=out)
    record = RunFolder(out).stage("dpo").document(PreflightRecord)
    assert record is not None
    return weights_fingerprint(policy.model), record


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return save_start(tmp_path / "start")


def test_no_mode_changes_a_weight_and_each_but_full_says_what_it_left_out(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, record = trained(start, tmp_path / "full")
    assert {"repeat", "leak", "identity", "gradient"} <= {check.name for check in record.checks}
    assert "mode" not in {check.name for check in record.checks}

    def too_dear(*_: Any) -> Any:
        raise AssertionError("a quick preflight compares no passes")

    for name in ("check_repeat", "check_leak", "check_identity"):
        monkeypatch.setattr(of_rows.preflight, name, too_dear)
    monkeypatch.setattr(of_rows, "working_memory", too_dear)
    fast, record = trained(start, tmp_path / "fast", preflight="fast")
    said = next(check for check in record.checks if check.name == "mode")
    assert fast == whole and "no leak between branches" in said.detail and said.remedy
    assert {"gradient", "data"} <= {check.name for check in record.checks}

    monkeypatch.setattr(of_rows.preflight, "choose_path", too_dear)
    monkeypatch.setattr(of_rows.gradient, "check_gradient", too_dear)
    off, record = trained(start, tmp_path / "off", preflight="off")
    said = next(check for check in record.checks if check.name == "mode")
    assert off == whole and said.status == "warn" and "preflight: off" in said.detail
    assert "data" not in {check.name for check in record.checks}


@pytest.mark.parametrize("mode", ["fast", "off"])
def test_a_stage_that_samples_has_the_modes_too(start: Path, tmp_path: Path, mode: str) -> None:
    stage = pt.GRPO(
        steps=1,
        prompts_per_step=2,
        completions_per_prompt=2,
        sampling={"max_new_tokens": 4},
        held_out=0,
        preflight=mode,
        export="none",
    )
    pt.train(stage, str(start), tasks_of(6), rewards=[early_letters], out=tmp_path / "run")
    record = RunFolder(tmp_path / "run").stage("grpo").document(PreflightRecord)
    assert record is not None
    names = {check.name for check in record.checks}
    assert "mode" in names and "leak" not in names and ("gradient" in names) == (mode == "fast")


def test_without_an_export_there_is_no_model_folder_and_no_promise_of_one(start: Path, tmp_path: Path) -> None:
    run = pt.train(pt.DPO(**SETTINGS, preflight="off"), str(start), PAIRS, out=tmp_path / "run")
    stage = RunFolder(run.folder).stage("dpo")
    assert not stage.model.exists() and stage.stage().status == "done" and stage.stage().output is None
    with pytest.raises(ConfigError, match="no model") as refused:
        run.model  # noqa: B018
    assert "export" in str(refused.value)


# ---------------------------------------------------------------- quick experiments from Python


def test_held_out_rows_of_a_program_are_measured_and_never_trained(start: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "run", {**SETTINGS, "held_out": 0.5, "preflight": "off"}
    run = pt.train({"method": "dpo", **options}, str(start), PAIRS[:6], held_out=PAIRS[6:], out=out)
    counts = RunFolder(out).stage("dpo").stage().data
    assert counts is not None and (counts.rows, counts.held_out_rows) == (6, 2), "the stage's own share is not drawn"
    assert list(run.metrics("held_out").step) == [0, 2]
    assert len(RunFolder(out).stage("dpo").lines(HeldOutRow)) == 4  # each row at both ends
    swapped = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAIRS[6:]]
    run = pt.train(pt.DPO(**options), str(start), PAIRS[:6], held_out=swapped, out=out)
    kept = RunFolder(out).earlier()
    assert [folder.name for folder in kept] == ["dpo.1"], "other held-out rows are another result"
    before, after = (folder.metrics("held_out")[-1].values for folder in (kept[0], RunFolder(out).stage("dpo")))
    assert before["reward_margin"] == pytest.approx(-after["reward_margin"], abs=1e-6)
    assert kept[0].metrics("train")[0].values["loss"] == run.metrics("train").loss[0]


def test_rewards_by_name_from_python(start: Path, tmp_path: Path) -> None:
    options = {"steps": 1, "prompts_per_step": 2, "completions_per_prompt": 2, "sampling": {"max_new_tokens": 4}}
    stage = {"method": "grpo", **options, "held_out": 0, "preflight": "off", "export": "none"}
    rewards = ["exact", {"kind": "length", "target": 3, "tolerance": 4, "unit": "characters"}, early_letters]
    pt.train(stage, str(start), tasks_of(6), rewards=rewards, out=tmp_path / "run")
    written = lines(tmp_path / "run" / "grpo", "rollouts.jsonl")
    assert len(written) == 4 and all(set(line["parts"]) == {"exact", "length", "early_letters"} for line in written)
    for line in written:
        assert line["parts"]["length"] == pytest.approx(max(0.0, 1 - abs(len(line["completion"]) - 3) / 4))
        assert line["reward"] == pytest.approx(sum(line["parts"].values()))


RECIPE = """
name: quick
model: embedded
stages:
  - {name: first, method: sft, data: rows.jsonl, export: none}
"""


def test_a_recipe_refuses_to_go_on_from_a_stage_that_writes_no_model(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert not parse_recipe(RECIPE, folder=tmp_path).stages[0].export.save  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="`first` writes no model, and `second` comes after it"):
        parse_recipe(RECIPE + "  - {name: second, method: sft, data: rows.jsonl}\n", folder=tmp_path)
