"""A recipe's numbers do not depend on how many processes computed them: every kind of stage at 1, 2 and 4."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spread import figures, files_of, lines, require_same_figures, require_same_weights, run_on
from tests.unit.spread.recipes import STAGES, SUITES, write_recipe

pytestmark = pytest.mark.long

ROUNDING = 1e-5
"""Relative, in fp32: a sum over ranks is added in another order."""
QUICK = ("grpo", "kto", "ppo")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind of stage, the run folder of one process; filled as it is asked for."""
    return {}


def cases() -> list[object]:
    """Each kind on two processes; on four, which takes a machine longer, all but the quick ones on request."""
    slow = pytest.mark.slow
    return [
        pytest.param(kind, size, marks=() if size == 2 or kind in QUICK else slow) for kind in STAGES for size in (2, 4)
    ]


@pytest.mark.parametrize("kind, size", cases())
def test_a_stage_is_the_same_on_ranks(
    kind: str, size: int, alone: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(f"{kind}-{size}")
    if kind not in alone:
        first = tmp_path_factory.mktemp(f"{kind}-1")
        alone[kind] = run_on(1, write_recipe(first, [STAGES[kind]], []), first / "runs")
    # The same place for both: rows and errors are named by their files.
    recipe = alone[kind].parent.parent / "tiny.yaml"
    one, many = alone[kind], run_on(size, recipe, folder / "runs")
    assert files_of(many) == files_of(one)
    assert figures(one / kind), "nothing was measured"
    require_same_figures(one / kind, many / kind, ROUNDING)
    if (one / kind / "model").exists():
        require_same_weights(one / kind, many / kind, ROUNDING)
    for name in ("rollouts.jsonl", "examinations.jsonl"):
        if (one / kind / name).exists():
            keys = ("step", "row", "ids", "completion", "reward", "score")
            here, there = ([[line.get(key) for key in keys] for line in lines(f / kind / name)] for f in (one, many))
            assert here == there


@pytest.mark.parametrize(
    "kind, shard, replicate", [*((kind, 2, 1) for kind in STAGES), ("dpo", 2, 2), ("reward", 2, 2), ("ppo", 2, 2)]
)
def test_a_model_in_parts_goes_through_a_whole_recipe(
    kind: str, shard: int, replicate: int, alone: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Shared by ranks, a model is loaded, trained, checkpointed, sampled from, exported and asked."""
    folder = tmp_path_factory.mktemp(f"{kind}-{shard}-{replicate}")
    if kind not in alone:
        first = tmp_path_factory.mktemp(f"{kind}-1")
        alone[kind] = run_on(1, write_recipe(first, [STAGES[kind]], []), first / "runs")
    mesh = f"{kind}.compute.mesh={{shard: {shard}, replicate: {replicate}}}"
    recipe = alone[kind].parent.parent / "tiny.yaml"
    one, many = alone[kind], run_on(shard * replicate, recipe, folder / "runs", mesh)
    assert figures(one / kind), "nothing was measured"
    # What samples is a copy, and a probe says after each step how far it is from what trains.
    require_same_figures(one / kind, many / kind, ROUNDING, more=["sync_gap"])
    gaps = [values["sync_gap"] for _, _, values in figures(many / kind) if "sync_gap" in values]
    assert all(gap is not None and gap < 1e-5 for gap in gaps)
    assert bool(gaps) == ("prompts_per_step" in STAGES[kind])
    if (one / kind / "model").exists():
        require_same_weights(one / kind, many / kind, ROUNDING)


def test_a_whole_recipe_with_its_suites_is_the_same(tmp_path: Path) -> None:
    """Answers, a judge that a later stage trains, rows that one stage makes for another; each file once."""
    judged = {"name": "won", "kind": "win_rate", "prompts": "asked.jsonl", "reward_model": {"stage": "reward"}}
    picked = {"method": "select", "data": {"path": "demos.jsonl"}, "steps": [{"kind": "deduplicate"}]}
    trained = {**STAGES["sft"], "starts_from": "start", "data": {"stage": "select"}, "held_out": 0}
    recipe = write_recipe(
        tmp_path,
        [{**STAGES["reward"], "steps": 2}, picked, trained],
        [*SUITES, {**judged, "sampling": {"max_new_tokens": 5, "temperature": 1.0}}],
    )
    one, two = run_on(1, recipe, tmp_path / "1"), run_on(2, recipe, tmp_path / "2")
    assert files_of(one) == files_of(two)
    for stage in ("start", "sft"):
        for suite in ("asked", "own", "won"):
            here, there = (lines(folder / stage / "evaluations" / f"{suite}.jsonl") for folder in (one, two))
            assert [line["completion"] for line in here] == [line["completion"] for line in there]
    assert lines(one / "select" / "data.jsonl") == lines(two / "select" / "data.jsonl")
    require_same_figures(one / "sft", two / "sft", ROUNDING)


def test_a_finished_recipe_is_not_run_again(tmp_path: Path) -> None:
    """By rank 0's word: the others do not look, and do not wait."""
    recipe = write_recipe(tmp_path, [STAGES["grpo"]], [])
    first = run_on(2, recipe, tmp_path / "runs")
    before = (first / "grpo" / "metrics.jsonl").read_bytes()
    assert run_on(4, recipe, tmp_path / "runs") == first
    assert (first / "grpo" / "metrics.jsonl").read_bytes() == before
