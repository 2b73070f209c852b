"""Chains, siblings and earlier results: how they are drawn, told apart and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from posttrain.report.comparison import COLOURS, compared_earlier, compared_siblings
from posttrain.report.lineage import lanes
from posttrain.report.page import render
from posttrain.report.verdict import headline
from posttrain.runs.differences import START_MODEL
from posttrain.runs.read import read_run
from posttrain.runs.samples import find_log

METRICS = [(0, "held_out", 0.7), (1, "train", 0.69), (2, "train", 0.5), (2, "held_out", 0.6)]


def write_stage(folder: Path, start: tuple[str, str, str], config: str = "beta: 0.1\n", **about: Any) -> Path:
    """A finished stage; start: name, path and fingerprint."""
    folder.mkdir(parents=True)
    name, path, fingerprint = start
    record = {
        "name": folder.name,
        "method": "dpo",
        "status": "done",
        "seconds": 2.0,
        "steps": 2,
        "start_model": {"name": name, "path": path, "fingerprint": fingerprint},
        **about,
    }
    (folder / "stage.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(config)
    lines = [
        {"step": s, "split": split, "values": {"loss": value, "reward_margin": value}} for s, split, value in METRICS
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_run(folder: Path, *names: str, recipe: bool = False) -> None:
    stages = [{"name": name, "method": "dpo", "status": "done", "seconds": 2.0} for name in names]
    (folder / "run.json").write_text(json.dumps({"schema": 2, "status": "done", "stages": stages}))
    if recipe:
        (folder / "recipe.yaml").write_text("schema: 1\n")


BASE = ("embedded", "/models/embedded", "f0")


def drawn(folder: Path) -> list[tuple[str, str, list[str]]]:
    run = read_run(folder)
    return [(lane.origin, lane.model, [run.stages[place].name for place in lane.places]) for lane in lanes(run)]


def test_stages_of_one_start_are_siblings(tmp_path: Path) -> None:
    for seed, beta in enumerate((0.05, 0.5, 0.5)):
        # A fresh adapter is drawn by the seed, so that the fingerprints of one start differ.
        start = (*BASE[:2], f"f{seed}")
        write_stage(tmp_path / f"s{seed}", start, f"beta: {beta}\nseed: {seed}\nname: s{seed}\n", seed=seed)
    write_run(tmp_path, "s0", "s1", "s2")
    run = read_run(tmp_path)
    assert drawn(tmp_path) == [("start", "embedded", [name]) for name in ("s0", "s1", "s2")]
    assert headline(run) == "The run finished in 6.0\u00a0s: s0, s1 and s2, each from embedded."
    (table,) = compared_siblings(run)
    assert table.columns == ["s0", "s1", "s2"]
    rows = {row.label: row.cells for row in table.rows}
    assert rows["beta"] == ["0.05", "0.5", "0.5"] and rows["seed"] == ["0", "1", "2"] and "name" not in rows
    assert rows["held-out loss"] == ["0.700 → 0.600"] * 3
    assert [chart.title for chart in table.charts] == ["Loss", "Loss", "Reward margin", "Reward margin"]
    assert [key.label for key in table.charts[0].keys] == ["s0", "s1", "s2"]
    page = render(run)
    assert page.count('class="pipeline"') == 3 and "Compared: 3 stages that started from embedded" in page


def test_a_stage_that_goes_on_from_another_is_a_chain(tmp_path: Path) -> None:
    write_stage(tmp_path / "sft", BASE)
    write_stage(tmp_path / "dpo", ("model", f"{tmp_path}/sft/model", "f1"))
    write_stage(tmp_path / "other", BASE)
    write_stage(tmp_path / "branch", ("model", f"{tmp_path}/sft/model", "f1"))
    write_run(tmp_path, "sft", "dpo", "other", "branch")
    assert drawn(tmp_path) == [
        ("start", "embedded", ["sft", "dpo"]),
        ("start", "embedded", ["other"]),
        ("sft", "", ["branch"]),
    ]
    run = read_run(tmp_path)
    assert headline(run).endswith(": sft, then dpo from embedded; other from embedded; branch from sft.")
    assert [table.columns for table in compared_siblings(run)] == [["sft", "other"], ["dpo", "branch"]]


def test_a_model_that_was_trained_in_place_is_a_chain_by_its_weights(tmp_path: Path) -> None:
    write_stage(tmp_path / "one", BASE, end_weights="f1")
    write_stage(tmp_path / "two", (*BASE[:2], "f1"), end_weights="f2")
    write_run(tmp_path, "one", "two")
    assert drawn(tmp_path) == [("start", "embedded", ["one", "two"])]
    assert compared_siblings(read_run(tmp_path)) == []


def test_a_recipe_is_a_chain_whatever_its_stages_start_from(tmp_path: Path) -> None:
    """A reward model and the policy after it start from one model; the recipe's order is what is to be seen."""
    write_stage(tmp_path / "a", BASE)
    write_stage(tmp_path / "b", BASE)
    write_run(tmp_path, "a", "b", recipe=True)
    assert drawn(tmp_path) == [("start", "embedded", ["a", "b"])]
    assert headline(read_run(tmp_path)).endswith(": a, then b.")


def with_earlier(folder: Path) -> Path:
    replaced = {"when": "2026-03-02T08:00:00+00:00", "because": ["`beta` 0.1 -> 0.5"]}
    figures = {"identity": {"match": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    for name, beta, more in (("dpo.1", 0.1, {"replaced": replaced}), ("dpo", 0.5, {})):
        stage = write_stage(folder / name, BASE, f"beta: {beta}\n", contents={"data": f"{name}-hash"}, **more)
        (stage / "evaluation.json").write_text(json.dumps(figures))
    write_run(folder, "dpo", recipe=True)
    return folder


def test_earlier_results_stand_beside_the_present_one_and_are_no_stages(tmp_path: Path) -> None:
    run = read_run(with_earlier(tmp_path))
    assert [stage.name for stage in run.stages] == ["dpo"] and [stage.name for stage in run.earlier] == ["dpo.1"]
    (table,) = compared_earlier(run)
    assert table.columns == ["dpo.1", "dpo (now)"]
    assert table.said == "dpo.1 was replaced on 2026-03-02 08:00 UTC: beta 0.1 -> 0.5"
    rows = {row.label: row.cells for row in table.rows}
    assert rows["beta"] == ["0.1", "0.5"] and rows["data, content"] == ["dpo.1-ha", "dpo-hash"]
    assert rows["identity: share that matches"] == ["50.0\u202f% (40.0 to 60.0\u202f%)"] * 2
    page = render(run)
    assert "Earlier results in this folder" in page and "Side by side" not in page


def test_without_run_json_an_earlier_result_is_none_of_the_stages(tmp_path: Path) -> None:
    with_earlier(tmp_path)
    (tmp_path / "run.json").unlink()
    assert [stage.name for stage in read_run(tmp_path).stages] == ["dpo"]


def test_an_earlier_config_that_is_torn_keeps_no_report_from_being_written(tmp_path: Path) -> None:
    with_earlier(tmp_path)
    for text in ("a: [", "- 1\n", "a: &a [*a]\nb: " + "[" * 50, "[" * 600):
        (tmp_path / "dpo.1" / "config.yaml").write_text(text)
        assert "Earlier results in this folder" in render(read_run(tmp_path))


def test_samples_are_those_of_the_present_result(tmp_path: Path) -> None:
    with_earlier(tmp_path)
    for name in ("dpo", "dpo.1"):
        (tmp_path / name / "rollouts.jsonl").write_text("")
    path, others = find_log(tmp_path, None, "rollouts.jsonl")
    assert path.parent.name == "dpo" and others == ("dpo.1",)
    assert find_log(tmp_path, "dpo.1", "rollouts.jsonl")[0].parent.name == "dpo.1"


# ---------------------------------------------------------------- what is compared, and what is not


def compared(folder: Path) -> dict[str, list[str]]:
    """The rows of the one comparison of siblings."""
    (table,) = compared_siblings(read_run(folder))
    return {row.label: row.cells for row in table.rows}


def test_a_reward_model_and_a_policy_of_one_start_are_not_compared(tmp_path: Path) -> None:
    write_stage(tmp_path / "dpo", BASE)
    write_stage(tmp_path / "judge", BASE, method="reward")
    write_run(tmp_path, "dpo", "judge")
    assert compared_siblings(read_run(tmp_path)) == []


def test_a_stage_that_names_no_start_goes_on_from_the_one_before_it(tmp_path: Path) -> None:
    write_stage(tmp_path / "sft", BASE)
    write_stage(tmp_path / "pairs", BASE, start_model=None, method="correction")
    write_run(tmp_path, "sft", "pairs")
    assert drawn(tmp_path) == [("start", "embedded", ["sft", "pairs"])]


def test_contents_that_are_the_same_are_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        # The hash of one start differs by the fresh adapter alone.
        contents = {"data": "d", "held_out": f"held-{name}", START_MODEL: f"start-{name}"}
        write_stage(tmp_path / name, BASE, contents=contents)
    write_run(tmp_path, "a", "b")
    rows = compared(tmp_path)
    assert rows["held_out, content"] == ["held-a", "held-b"]
    assert not {"data, content", "start model, weights"} & rows.keys()
    assert "seed" not in rows, "a row of which nothing is known"


def test_the_start_of_an_earlier_result_is_compared(tmp_path: Path) -> None:
    for name, weights in (("dpo.1", "before"), ("dpo", "after")):
        write_stage(tmp_path / name, BASE, contents={START_MODEL: weights})
    write_run(tmp_path, "dpo", recipe=True)
    (table,) = compared_earlier(read_run(tmp_path))
    assert {row.label: row.cells for row in table.rows}["start model, weights"] == ["before", "after"]
    assert table.said == "dpo.1: why it was replaced is not known"


def test_an_earlier_result_of_a_stage_that_is_gone_stands_alone(tmp_path: Path) -> None:
    with_earlier(tmp_path)
    shutil.rmtree(tmp_path / "dpo")
    write_run(tmp_path, "other", recipe=True)
    (table,) = compared_earlier(read_run(tmp_path))
    assert table.columns == ["dpo.1"] and "Earlier results in this folder" in render(read_run(tmp_path))


def test_status_score_and_suites_have_their_rows(tmp_path: Path) -> None:
    moments = {"step": 0, "value": 0.25, "low": 0.2, "high": 0.3, "n": 60}
    score = dict.fromkeys(("start", "best", "last", "kept"), moments)
    write_stage(tmp_path / "a", BASE, held_out_score=score)
    write_stage(tmp_path / "b", BASE, status="failed")
    figures = {"identity": {"match": {"value": 0.5}, "length": {"value": 12.0}}}
    (tmp_path / "a" / "evaluation.json").write_text(json.dumps(figures))
    write_run(tmp_path, "a", "b")
    rows = compared(tmp_path)
    assert rows["status"] == ["done", "failed"]
    assert rows["held-out score, start → saved"] == ["0.250 (0.200 to 0.300) → 0.250 (0.200 to 0.300)", "–"]
    assert rows["identity: share that matches"][1] == "–" and not any("length" in label for label in rows)


def test_no_more_curves_are_drawn_than_there_are_colours(tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(10)]
    for name in names:
        write_stage(tmp_path / name, BASE)
    write_run(tmp_path, *names)
    (table,) = compared_siblings(read_run(tmp_path))
    assert table.columns == names and len(table.charts[0].keys) == len(COLOURS)


BRANCHES = """
schema: 1
stages:
- {name: picked, starts_from: null}
- {name: chosen}
- {name: twin, starts_from: start}
- {name: dpo, starts_from: chosen}
"""


def test_stages_of_a_recipe_branch_off_where_they_say(tmp_path: Path) -> None:
    write_stage(tmp_path / "picked", BASE, start_model=None, method="select", output="data.jsonl")
    for name, start in (("chosen", BASE), ("twin", BASE), ("dpo", ("chosen/model", "moved/since/model", "f1"))):
        write_stage(tmp_path / name, start, output="model")
    write_run(tmp_path, "picked", "chosen", "twin", "dpo", recipe=True)
    (tmp_path / "recipe.yaml").write_text(BRANCHES)
    assert drawn(tmp_path) == [("start", "embedded", ["picked", "chosen", "dpo"]), ("start", "embedded", ["twin"])]
    # The selection stands between the start and `chosen`, and makes no model that could be compared.
    assert [table.columns for table in compared_siblings(read_run(tmp_path))] == [["chosen", "twin"]]


def test_a_recipe_that_somebody_broke_is_a_chain(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_stage(tmp_path / name, BASE)
    write_run(tmp_path, "a", "b", recipe=True)
    for text in ("stages: [{name: b, starts_from: start", "[starts_from: x]", "stages: 7 # starts_from: x", "- 1\n: :"):
        (tmp_path / "recipe.yaml").write_text(text)
        assert drawn(tmp_path) == [("start", "embedded", ["a", "b"])]
