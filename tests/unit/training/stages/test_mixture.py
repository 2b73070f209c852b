"""A stage on several sources: what is read and held out of each, figures by source, and a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import DPO, SFT, Reward, TrainingStage, load_recipe
from posttrain.config.settings import Data
from posttrain.data.mixed_rows import MixedRows
from posttrain.data.trees import packed
from posttrain.errors import ConfigError, DataError
from posttrain.outputs import Mean, Total
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.training.mixed_order import MixedOrder, PooledOrder
from posttrain.training.pipeline import _with_data, run_recipe
from posttrain.training.session import train
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.mixing import order_of
from posttrain.training.stages.reading import RowInputs
from posttrain.training.stages.starts import resolve_start
from posttrain.training.stages.table import training_kind
from posttrain.training.step import accumulate, measure
from posttrain.types import TokenTree
from tests.fixtures import random_trees
from tests.training import VOCAB, work_of
from tests.unit.training.stages.test_inputs import Heard, demonstrations, dropped, loaded, start

__all__ = ["start"]  # the fixture


def words(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def two(tmp_path: Path, *, maths: Iterable[str] = (), chat: Iterable[str] = (), **options: Any) -> Data:
    first = demonstrations(tmp_path / "maths.jsonl", maths or words("m", 40))
    second = demonstrations(tmp_path / "chat.jsonl", chat or words("c", 20))
    return Data(sources=[{"path": first, **options}, {"path": second}], mixing="proportional")


def sources_of(inputs: RowInputs) -> dict[str, Any]:
    assert inputs.counts.sources is not None
    return {source.name: source for source in inputs.counts.sources}


# ---------------------------------------------------------------- what is read


def test_every_source_is_read_split_and_counted(tmp_path: Path, start: Path) -> None:
    inputs = loaded(SFT(data=two(tmp_path), held_out=0.1, rows_per_step=6, epochs=2), start, tmp_path)
    assert isinstance(inputs.rows, MixedRows) and isinstance(inputs.held_out, MixedRows)
    assert {tree.part for tree in inputs.rows} == {"maths", "chat"}
    assert [tree.part for tree in inputs.held_out] == ["maths"] * 4 + ["chat"] * 2
    found = sources_of(inputs)
    assert [(one.kept, one.rows, one.held_out_rows, one.taken) for one in found.values()] == [
        (40, 36, 4, 72),
        (20, 18, 2, 36),
    ]
    assert (inputs.counts.kept, inputs.counts.rows, inputs.counts.held_out_rows) == (60, 54, 6)
    assert inputs.counts.tokens == sum(one.tokens for one in found.values())
    check = next(check for check in inputs.findings if check.name == "sources")
    assert check.status == "pass" and "maths: 36 rows" in check.detail and "66.7% of the run, 2 epochs" in check.detail


def test_a_row_of_two_sources_is_not_held_out_in_one_and_trained_in_the_other(tmp_path: Path, start: Path) -> None:
    data = two(tmp_path, maths=words("m", 20) + words("s", 30), chat=words("s", 30) + words("c", 10))
    inputs = loaded(SFT(data=data, held_out=0.2), start, tmp_path)
    trained, measured = {tree.key for tree in inputs.rows}, {tree.key for tree in inputs.held_out}
    assert measured and not trained & measured
    parts = [{tree.key for tree in inputs.held_out if tree.part == name} for name in ("maths", "chat")]
    assert parts[0] & parts[1], "a shared row is held out in both"


def test_rows_that_cannot_be_read_are_listed_for_every_source(tmp_path: Path, start: Path) -> None:
    bad = '{"prompt": "Say x."}'
    first = demonstrations(tmp_path / "a.jsonl", words("m", 5), bad)
    second = demonstrations(tmp_path / "b.jsonl", words("c", 5), bad, bad)
    data = Data(sources=[{"path": first}, {"path": second}], bad_rows="skip")
    inputs = loaded(SFT(data=data, held_out=0), start, tmp_path)
    assert [row["row"] for row in dropped(tmp_path)] == [f"{first}, row 6", f"{second}, row 6", f"{second}, row 7"]
    assert inputs.counts.dropped and sum(inputs.counts.dropped.values()) == 3
    assert sorted(path.name for path in (tmp_path / "stage").glob("*.jsonl")) == ["dropped.jsonl"]


def test_another_mixture_encodes_nothing_anew(tmp_path: Path, start: Path) -> None:
    heard = Heard()
    loaded(SFT(data=two(tmp_path)), start, tmp_path, heard)
    assert not any("used the encoded rows" in line for line in heard.lines)
    loaded(SFT(data=two(tmp_path, repeat=3)), start, tmp_path, heard)
    assert sum("used the encoded rows" in line for line in heard.lines) == 2


def test_the_fingerprint_is_of_the_content_by_name(tmp_path: Path, start: Path) -> None:
    one = loaded(SFT(data=two(tmp_path)), start, tmp_path).fingerprints
    assert loaded(SFT(data=two(tmp_path, repeat=3)), start, tmp_path).fingerprints == one
    assert loaded(SFT(data=two(tmp_path, chat=words("d", 20))), start, tmp_path).fingerprints != one


def test_a_held_out_file_is_measured_whole(tmp_path: Path, start: Path) -> None:
    apart = demonstrations(tmp_path / "apart.jsonl", words("h", 7))
    inputs = loaded(SFT(data=two(tmp_path), held_out=apart), start, tmp_path)
    assert len(inputs.held_out) == 7 and [one.held_out_rows for one in sources_of(inputs).values()] == [None, None]
    named = Data(sources=[{"path": apart, "name": "maths"}])
    inputs = loaded(SFT(data=two(tmp_path), held_out=named), start, tmp_path)
    assert {tree.part for tree in inputs.held_out} == {"maths"}
    assert [one.held_out_rows for one in sources_of(inputs).values()] == [7, 0]


def test_a_row_that_is_trained_on_is_found_in_a_held_out_source(tmp_path: Path, start: Path) -> None:
    apart = demonstrations(tmp_path / "apart.jsonl", ["m1", "new", "c3"])
    inputs = loaded(SFT(data=two(tmp_path), held_out=apart), start, tmp_path)
    check = next(check for check in inputs.findings if check.name == "held_out")
    assert check.status == "warn" and check.evidence["in_training_rows"] == 2


def pairs(path: Path, prefix: str, count: int) -> str:
    rows = [
        {"prompt": f"{prefix}{i}?", "chosen": f"good {prefix}{i}", "rejected": f"bad {prefix}{i} {'x' * (i % 5)}"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_pair_that_contradicts_another_is_found_in_another_source(tmp_path: Path, start: Path) -> None:
    first = pairs(tmp_path / "a.jsonl", "p", 30)
    rows = [json.loads(line) for line in Path(first).read_text().splitlines()]
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turned))
    data = {"sources": [{"path": first}, {"path": str(tmp_path / "b.jsonl")}]}
    with pytest.raises(DataError, match="audit"):
        loaded(DPO(data=data), start, tmp_path)


def test_pairs_and_reward_rows_are_mixed_as_demonstrations(tmp_path: Path, start: Path) -> None:
    items = [
        {"path": pairs(tmp_path / "a.jsonl", "p", 20), "weight": 3},
        {"path": pairs(tmp_path / "b.jsonl", "q", 20), "weight": 1},
    ]
    for stage in (DPO(data={"sources": items}, rows_per_step=8), Reward(data={"sources": items}, rows_per_step=8)):
        inputs = loaded(stage, start, tmp_path)
        order = order_of(stage, inputs.rows, 0)
        parts = [inputs.rows[index].part for index in order.at(0)]
        assert (parts.count("a"), parts.count("b")) == (6, 2)
    # A reward model is measured by category, and without a column of categories by source.
    assert set(inputs.categories.values()) == {"a", "b"}


# ---------------------------------------------------------------- the order


def test_temperature_evens_the_shares_out(tmp_path: Path, start: Path) -> None:
    """Rows 36 and 4 after T = 2: shares 6 and 2."""
    first = demonstrations(tmp_path / "a.jsonl", words("m", 36))
    second = demonstrations(tmp_path / "b.jsonl", words("c", 4))
    data = Data(sources=[{"path": first}, {"path": second}], temperature=2)
    stage = SFT(data=data, held_out=0, rows_per_step=8, steps=40)
    inputs = loaded(stage, start, tmp_path)
    order = order_of(stage, inputs.rows, 0)
    assert isinstance(order, MixedOrder) and order.taken == {"a": 240, "b": 80}
    check = next(check for check in inputs.findings if check.name == "sources")
    assert check.status == "warn" and "`b` is gone through 20 times" in str(check.remedy)


def test_without_shares_the_order_is_that_of_a_list_of_files(tmp_path: Path, start: Path) -> None:
    mixture = two(tmp_path).model_copy(update={"mixing": "auto"})
    apart = SFT(data=mixture, held_out=0, rows_per_step=7)
    listed = SFT(data=[str(tmp_path / "maths.jsonl"), str(tmp_path / "chat.jsonl")], held_out=0, rows_per_step=7)
    mixed, plain = loaded(apart, start, tmp_path), loaded(listed, start, tmp_path / "plain")
    one, other = order_of(apart, mixed.rows, 3), order_of(listed, plain.rows, 3)
    assert isinstance(one, PooledOrder) and one.steps == other.steps
    for step in range(one.steps):
        assert [mixed.rows[i].key for i in one.at(step)] == [plain.rows[i].key for i in other.at(step)]


def test_a_source_that_the_run_hardly_comes_to_is_told(tmp_path: Path, start: Path) -> None:
    first = demonstrations(tmp_path / "a.jsonl", words("m", 300))
    second = demonstrations(tmp_path / "b.jsonl", words("c", 10))
    items = [{"path": first, "weight": 1}, {"path": second, "weight": 9}]
    inputs = loaded(SFT(data={"sources": items}, held_out=0, rows_per_step=5, steps=2), start, tmp_path)
    check = next(check for check in inputs.findings if check.name == "sources")
    assert check.status == "warn" and "comes to 0.33% of the rows of `a`" in str(check.remedy)


def test_a_source_that_begins_after_the_run_is_refused(tmp_path: Path, start: Path) -> None:
    data = {"sources": [two(tmp_path).sources[0], {**two(tmp_path).sources[1].model_dump(), "begin": 50}]}
    with pytest.raises(ConfigError, match="`chat` is never on") as caught:
        loaded(SFT(data=data, steps=20), start, tmp_path)
    assert "in a run of 20 steps" in str(caught.value)


# ---------------------------------------------------------------- figures by source


def of_sources(trees: Iterable[TokenTree]) -> list[TokenTree]:
    return [replace(tree, part="b" if place % 3 == 0 else "a") for place, tree in enumerate(trees)]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_figures_of_a_source_are_those_of_its_rows_alone(method: str) -> None:
    work = work_of(method)
    trees = of_sources(work.rows)
    given = (work.policy, work.reference, work.algorithm)
    whole = measure(*given, trees, 60).metrics
    for part in ("a", "b"):
        own = [replace(tree, part=None) for tree in trees if tree.part == part]
        alone = measure(*given, own, 10_000).metrics
        for name in ("loss", "reward_accuracy", "reward_margin"):
            if name in alone:
                one, other = whole[f"{name}/{part}"], alone[name]
                assert isinstance(one, Mean) and isinstance(other, Mean)
                assert float(one.count) == float(other.count)
                assert float(one.sum) == pytest.approx(float(other.sum), rel=1e-5, abs=1e-5)
        assert whole[f"rows/{part}"] == Total(len(own))
    assert whole["loss"].value == pytest.approx(
        sum(float(whole[f"loss/{part}"].sum) for part in "ab") / float(whole["loss"].count)  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
def test_naming_the_sources_changes_no_gradient(method: str) -> None:
    def gradients(named: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        work = work_of(method)
        trees = of_sources(work.rows) if named else work.rows
        accumulate(work.policy, work.reference, work.algorithm, trees, 60, step=0)
        return {name: p.grad for name, p in work.policy.model.named_parameters() if p.grad is not None}

    plain, named = gradients(False), gradients(True)
    assert plain.keys() == named.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, named[name], atol=1e-5, rtol=1e-4), name


def test_a_micro_batch_is_of_one_source_and_trees_without_one_are_packed_as_ever() -> None:
    trees = random_trees(20, vocab=VOCAB, seed=1, branches=1)
    named = of_sources(trees)
    micros = packed(named, 60)
    assert sorted(index for micro in micros for index in micro) == list(range(20))
    assert all(len({named[index].part for index in micro}) == 1 for micro in micros)
    assert packed([replace(tree, part="a") for tree in trees], 60) == packed(trees, 60)


# ---------------------------------------------------------------- a run


def stage_of(tmp_path: Path, **options: Any) -> TrainingStage:
    data = two(tmp_path)
    chat = {**data.sources[1].model_dump(), "weight": 1, "begin": 2}
    sources = [{**data.sources[0].model_dump(), "weight": 2, "until": "75%"}, chat]
    settings = {"held_out": 0.1, "rows_per_step": 6, "steps": 12, "checkpoint": {"every_steps": 3}, **options}
    return SFT(data={"sources": sources}, preflight="off", export="none", log={"held_out_every": 4}, **settings)


SPLITS = ("train", "held_out")


def lines(folder: Path) -> list[tuple[int | None, str | None, dict[str, float]]]:
    return lines_of(folder / "sft")


def lines_of(folder: Path) -> list[tuple[int | None, str | None, dict[str, float]]]:
    timed = ("tokens_per_second",)
    return [
        (line.step, line.split, {name: value for name, value in line.values.items() if name not in timed})
        for line in StageFolder(folder).metrics()
    ]


def test_a_run_with_a_curriculum_that_is_stopped_goes_on_bit_for_bit(tmp_path: Path, start: Path) -> None:
    stage = stage_of(tmp_path)
    whole = train(stage, str(start), None, out=tmp_path / "whole", progress=False)

    def stop(report: Any) -> None:
        if report.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stage, str(start), None, out=tmp_path / "parts", progress=False, on_step=stop)
    assert StageFolder(tmp_path / "parts" / "sft").stage().status == "interrupted"
    again = train(stage, str(start), None, out=tmp_path / "parts", progress=False)
    assert lines(again.folder) == lines(whole.folder)
    rows = {step: values for step, split, values in lines(whole.folder) if split == "train"}
    assert rows[1]["rows/maths"] == 6 and "rows/chat" not in rows[1]
    assert (rows[3]["rows/maths"], rows[3]["rows/chat"]) == (4, 2)
    assert rows[10]["rows/chat"] == 6 and "loss/maths" not in rows[10]
    measured = [values for _, split, values in lines(whole.folder) if split == "held_out"]
    assert all({"loss/maths", "loss/chat"} <= values.keys() for values in measured)


def test_data_of_a_program(tmp_path: Path, start: Path) -> None:
    stage = SFT(steps=1, rows_per_step=4, preflight="off", export="none")
    run = train(stage, str(start), two(tmp_path), out=tmp_path / "run", progress=False)
    record = StageFolder(run.folder / "sft").stage()
    assert record.data is not None and record.data.sources is not None
    assert [source.name for source in record.data.sources] == ["maths", "chat"]
    assert record.contents is not None and {"data.maths", "data.chat"} <= record.contents.keys()
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Loss by source" in page and "Sources of the mixture" in page and "Rows of a step by source" in page
    assert "held-out loss/maths" in str(run.summary())
    with pytest.raises(ConfigError, match="names the stage `made`"):
        train(stage, str(start), Data(sources=[{"stage": "made"}]), out=tmp_path / "run", progress=False)


RECIPE = """schema: 1
model: {start}
out: {out}
stages:
  - method: sft
    data: {{sources: [{{path: {maths}, weight: {weight}}}, {{path: {chat}, weight: 1}}]}}
    steps: 2
    rows_per_step: 4
    preflight: off
    export: none
"""


def test_a_recipe_knows_its_sources_again(tmp_path: Path, start: Path) -> None:
    """Run twice it runs once; another weight, or another content of one source, is another stage, and is named."""
    two(tmp_path)

    def run(weight: int) -> list[str]:
        paths = {"maths": tmp_path / "maths.jsonl", "chat": tmp_path / "chat.jsonl"}
        (tmp_path / "mine.yaml").write_text(RECIPE.format(start=start, out=tmp_path, weight=weight, **paths))
        heard = Heard()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("posttrain.training.pipeline.showing", lambda *_, **__: nullcontext(heard))
            run_recipe(load_recipe(tmp_path / "mine.yaml"))
        return heard.lines

    run(2)
    assert any("done before" in line for line in run(2))
    assert any("`data.sources`" in line and "it runs again" in line for line in run(3))
    demonstrations(tmp_path / "chat.jsonl", words("other", 20))
    assert any("`data.chat` has other content" in line for line in run(3))


def test_sources_that_earlier_stages_write_are_found(tmp_path: Path) -> None:
    stage = _with_data(SFT(data={"sources": [{"stage": "made"}, {"path": "rows.jsonl"}]}), RunFolder(tmp_path))
    assert stage.data is not None
    assert [part.path for part in stage.data.parts] == [(str(tmp_path / "made" / "data.jsonl"),), ("rows.jsonl",)]
    assert [(source.name, source.stage) for source in stage.data.sources] == [("made", None), ("rows", None)]


def test_the_first_rows_are_of_every_source(tmp_path: Path, start: Path) -> None:
    shown: list[str] = []
    stage = SFT(data=two(tmp_path))
    ctx = StageContext(
        stage,
        str(start),
        StageFolder(tmp_path / "stage"),
        0,
        Heard(),
        show_first=lambda name, rows: shown.extend(str(row.row) for row in rows),
    )
    inputs = training_kind(stage).inputs(ctx, resolve_start(stage, str(start), torch.device("cpu")))
    assert any("maths" in row for row in shown) and any("chat" in row for row in shown)
    assert inputs.rows.spread(4) == [0, inputs.rows.offsets[1], 1, inputs.rows.offsets[1] + 1]


@pytest.mark.parametrize("method", ["dpo", "kto", "reward"])
def test_every_kind_of_row_trains_from_a_mixture(method: str, tmp_path: Path, start: Path) -> None:
    items = [
        {"path": pairs(tmp_path / "a.jsonl", "p", 20), "weight": 1},
        {"path": pairs(tmp_path / "b.jsonl", "q", 20), "weight": 1, "until": 2},
    ]
    # The audit of pairs has enough to say of such rows; it is another test's.
    options = {} if method == "kto" else {"audit": {"on_error": "off"}}
    stage = {"method": method, "data": {"sources": items}, "steps": 3, "rows_per_step": 4, "held_out": 0.2, **options}
    run = train({**stage, "preflight": "off", "export": "none"}, str(start), None, out=tmp_path / "run", progress=False)
    by_split = {split: [values for _, one, values in lines_of(run.folder / method) if one == split] for split in SPLITS}
    assert all({"loss/a", "loss/b"} <= values.keys() for values in by_split["held_out"])
    assert [values.get("rows/b") for values in by_split["train"]] == [2, 2, None]
