"""A run folder as records: what its text may not do to its reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.runs.read import Stage, read_run
from tests.fake_run import Plan, write_fake_run


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = write_fake_run(tmp_path_factory.mktemp("runs") / "run", Plan(steps=2, pairs=2, prompts=2))
    first = read_run(folder).stages[0]
    for name in ("model", "inner/model", "../outside"):
        (first.folder / name).mkdir(parents=True, exist_ok=True)
    return first


def with_output(stage: Stage, output: str | None) -> Path | None:
    return replace(stage, about=replace(stage.about, output=output)).model_folder


@pytest.mark.parametrize(("output", "found"), [(None, "model"), ("model", "model"), ("inner/model", "inner/model")])
def test_a_stage_s_model_is_a_folder_inside_the_stage_s(stage: Stage, output: str | None, found: str) -> None:
    assert with_output(stage, output) == stage.folder / found


@pytest.mark.parametrize("output", ["../outside", "model/../../outside", ".", "..", "nowhere", "/tmp"])
def test_an_output_that_leads_elsewhere_is_no_model(stage: Stage, output: str) -> None:
    assert with_output(stage, output) is None


def test_a_model_folder_that_is_linked_is_still_the_stage_s(stage: Stage) -> None:
    (stage.folder / "linked").symlink_to(stage.folder.parent / "outside", target_is_directory=True)
    assert with_output(stage, "linked") == stage.folder / "linked"
