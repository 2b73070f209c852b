"""What a selection is worth against its random twin: planted gains, losses and nulls, and the words for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.twins import TwinPair
from posttrain.errors import ConfigError, DataError
from posttrain.evaluate.pass_at_k import PassCounts, write_counts
from posttrain.evaluate.seeds_of_twins import pool_seeds
from posttrain.evaluate.twins import compare_twins, write_twins
from posttrain.intervals import over_seeds
from posttrain.report.page import render
from posttrain.report.verdict import verdict_of
from posttrain.runs.folder import RunFolder
from posttrain.runs.read import read_run
from posttrain.runs.records.evaluation import Figure, SuiteScores
from posttrain.runs.records.selection import SelectionManifest

PAIR = TwinPair("picked", "random", "chosen", "drawn", differs=(), unlike=None)
RIGHT, WRONG = 1.0, 0.0


def plant(run: Path, stage: str, scores: Sequence[float], metric: str = "accuracy", seed: int = 0) -> None:
    """A finished stage whose suite `sums` was asked one prompt a score."""
    folder = run / stage
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").write_text(json.dumps({"name": stage, "method": "sft", "status": "done", "seed": seed}))
    value = sum(scores) / len(scores)
    figures = {"sums": {metric: Figure(value, 0.0, 1.0, len(scores)), "length": Figure(4.0)}}
    RunFolder(run).stage(stage).write(SuiteScores(figures))
    lines = [
        {"prompt": f"{i} + 1?", "completion": "7", "answer": "7", "score": score, "tokens": 1, "finish": "stop_token"}
        for i, score in enumerate(scores)
    ]
    (folder / "evaluations" / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def manifest(run: Path, rows: int = 10, shared: int = 2) -> None:
    (run / "picked").mkdir(parents=True, exist_ok=True)
    twin = {"file": "random.jsonl", "rows": rows, "shared": shared, "drawn_from": 100}
    record = SelectionManifest.from_json({"kind": "demonstrations", "read": 100, "kept": rows, "twins": [twin]})
    RunFolder(run).stage("picked").write(record)


def planted(run: Path, chosen: Sequence[float], drawn: Sequence[float], **more: Any) -> RunFolder:
    plant(run, "chosen", chosen, **more)
    plant(run, "drawn", drawn, **more)
    manifest(run)
    stages = [{"name": name, "method": "sft", "status": "done"} for name in ("chosen", "drawn")]
    (run / "run.json").write_text(json.dumps({"schema": 2, "status": "done", "stages": stages}))
    write_twins(RunFolder(run), [PAIR])
    return RunFolder(run)


def said(run: RunFolder) -> tuple[str, str]:
    (comparison,) = run.twin_comparisons()
    (figure,) = comparison.figures
    return figure.verdict, figure.said


def some(right: int, of: int = 100) -> list[float]:
    return [RIGHT] * right + [WRONG] * (of - right)


def test_a_gain_is_said_with_its_interval(tmp_path: Path) -> None:
    run = planted(tmp_path, some(60), some(40))
    verdict, text = said(run)
    assert verdict == "gain"
    assert text == "sums (accuracy): chosen beats its random twin drawn by 20 points [13, 28], 100 prompts"
    (comparison,) = run.twin_comparisons()
    assert comparison.said == (
        "chosen against drawn: of 1 measures 1 gained by the selection, 0 lost, 0 not told from chance."
    )
    assert (comparison.selected_rows, comparison.twin_rows, comparison.shared) == (10, 10, 2)


def test_a_loss_is_said_as_one(tmp_path: Path) -> None:
    verdict, text = said(planted(tmp_path, some(40), some(60)))
    assert verdict == "loss"
    assert text == "sums (accuracy): chosen loses to its random twin drawn by 20 points [13, 28], 100 prompts"


def test_a_difference_that_chance_makes_is_called_that(tmp_path: Path) -> None:
    """30 prompts rose and 27 fell, of 100."""
    rose, fell, same = [RIGHT] * 30, [WRONG] * 27, [RIGHT] * 43
    verdict, text = said(planted(tmp_path / "up", rose + fell + same, [1 - x for x in rose + fell] + same))
    assert verdict == "chance" and "beats its random twin drawn by 3 points [\u221211, 17], 100 prompts" in text
    assert "the gain may be chance; were it as large, about 2," in text and text.endswith("prompts would show it")
    verdict, text = said(planted(tmp_path / "down", [1 - x for x in rose + fell] + same, rose + fell + same))
    assert verdict == "chance" and "loses to its random twin drawn by 3 points" in text and "loss may be chance" in text


def test_four_prompts_that_rose_are_no_proof(tmp_path: Path) -> None:
    """Their bootstrap interval leaves out 0, but signs alone do this one time in eight."""
    run = planted(tmp_path, some(44), some(40))
    (figure,) = run.twin_comparisons()[0].figures
    assert figure.difference is not None and figure.difference.low and figure.difference.low > 0 and figure.p == 0.125
    assert figure.verdict == "chance" and "the gain may be chance" in figure.said


def test_the_same_scores_are_the_same(tmp_path: Path) -> None:
    assert said(planted(tmp_path, some(40), some(40))) == (
        "same",
        "sums (accuracy): chosen and its random twin drawn score the same on every prompt, 100 prompts",
    )


def test_where_less_is_better_a_fall_is_the_gain(tmp_path: Path) -> None:
    verdict, text = said(planted(tmp_path, some(40), some(60), metric="unwanted_match"))
    assert verdict == "gain" and "chosen beats its random twin drawn by 20 points [13, 28]" in text


def test_a_figure_without_scores_of_prompts_has_no_verdict(tmp_path: Path) -> None:
    run = planted(tmp_path, some(60), some(40))
    (run.stage("drawn").path / "evaluations" / "sums.jsonl").unlink()
    write_twins(run, [PAIR])
    verdict, text = said(run)
    assert verdict == "unknown" and text.endswith("were not kept, so chance cannot be ruled out")


def test_pass_at_k_is_paired_by_the_right_answers_to_each_prompt(tmp_path: Path) -> None:
    run = planted(tmp_path, some(0, 40), some(0, 40))
    names = tuple(f"{i} + 1?" for i in range(40))
    for stage, correct, value in (("chosen", [4] * 40, 1.0), ("drawn", [0] * 20 + [4] * 20, 0.5)):
        write_counts(run.stage(stage).path, PassCounts("sums", 4, names, names, tuple(correct)))
        run.stage(stage).write(SuiteScores({"sums": {"pass_at_4": Figure(value)}}))
    write_twins(run, [PAIR])
    verdict, text = said(run)
    assert verdict == "gain" and "by 50 points [35, 65], 40 prompts" in text and text.startswith("sums (pass@4)")


def test_what_makes_a_comparison_weak_is_said(tmp_path: Path) -> None:
    run = planted(tmp_path, some(60), some(40))
    manifest(run.path, rows=10, shared=8)
    (weak,) = compare_twins(run, [replace(PAIR, differs=("`epochs` 3 -> 1",))])
    assert "not the selection's doing alone: `epochs` 3 -> 1" in weak.said
    assert "8 of the twin's 10 rows are in the selection, too" in weak.said
    (not_at_all,) = compare_twins(run, [replace(PAIR, unlike="chosen starts from start, drawn from chosen: ...")])
    assert not_at_all.figures == () and "not compared, for chosen starts from start" in not_at_all.said


def test_no_verdict_before_both_are_done_and_none_of_another_recipe(tmp_path: Path) -> None:
    run = planted(tmp_path, some(60), some(40))
    (run.stage("drawn").path / "stage.json").write_text('{"name": "drawn", "status": "running"}')
    assert compare_twins(run, [PAIR]) == []
    write_twins(run, [])
    assert not (run.path / "twins.json").exists() and run.twin_comparisons() == ()


def test_suites_that_asked_one_of_the_two_are_said(tmp_path: Path) -> None:
    run = planted(tmp_path, some(60), some(40))
    (run.stage("chosen").path / "evaluation.json").unlink()
    (comparison,) = compare_twins(run, [PAIR])
    assert "no suite asked both; `evaluate: {every_stage: true}` asks every stage" in comparison.said


# ---------------------------------------------------------------- the page and the verdict


def test_page_and_verdict_have_the_words(tmp_path: Path) -> None:
    run = planted(tmp_path, some(60), some(40))
    page = render(read_run(run.path))
    assert 'id="twins"' in page and "10 rows that picked chose, against 10 rows drawn at random; 2 are in both" in page
    assert "+20.0 points" in page and "+13.0 to +28.0 points" in page
    found = {finding.text: finding.kind for finding in verdict_of(run.path).found}
    assert found["sums (accuracy): chosen beats its random twin drawn by 20 points [13, 28], 100 prompts."] == "good"
    write_twins(planted(tmp_path / "null", some(40), some(44)), [PAIR])
    kinds = {finding.kind for finding in verdict_of(tmp_path / "null").found if "random twin" in finding.text}
    assert kinds == {"plain"}


@pytest.mark.parametrize("text", ['{"comparisons": [{"figures": [3, {"verdict": "odd"}]}, 7]}', "{", "[]"])
def test_a_torn_record_breaks_no_page(tmp_path: Path, text: str) -> None:
    run = planted(tmp_path, some(60), some(40))
    (run.path / "twins.json").write_text(text)
    assert "</html>" in render(read_run(run.path))


# ---------------------------------------------------------------- several seeds


def seeds(tmp_path: Path, *chosen: list[float], drawn: list[float]) -> list[Path]:
    folders = [tmp_path / f"s{seed}" for seed in range(len(chosen))]
    for seed, own in enumerate(chosen):
        planted(folders[seed], own, drawn, seed=seed)
    return folders


def test_seeds_that_agree_are_a_gain(tmp_path: Path) -> None:
    (pooled,) = pool_seeds(seeds(tmp_path, some(60), some(58), some(62), drawn=some(40)))
    assert pooled.verdict == "gain" and pooled.by_seed == pytest.approx({0: 0.2, 1: 0.18, 2: 0.22})
    assert pooled.said.startswith("sums (accuracy), 3 seeds: chosen beats its random twin drawn by 20 points [")
    assert pooled.said.endswith("100 prompts; by seed +20, +18, +22 points")


def test_one_lucky_seed_of_three_is_not(tmp_path: Path) -> None:
    """By its own prompts the first seed is a clear gain; the two others are none."""
    folders = seeds(tmp_path, some(60), some(40), some(40), drawn=some(40))
    assert said(RunFolder(folders[0]))[0] == "gain"
    (pooled,) = pool_seeds(folders)
    assert pooled.verdict == "chance" and pooled.difference.low == 0


def test_the_pooled_interval_draws_seeds_and_prompts() -> None:
    import numpy as np

    same = over_seeds(np.ones((3, 10)))
    assert (same.value, same.low, same.high, same.n) == (1.0, 1.0, 1.0, 10)
    # Three seeds of 0, 0 and 3, all prompts alike: all of one seed is drawn one time in 27, so 0 to 3 is between them.
    apart = over_seeds(np.array([[0.0] * 10, [0.0] * 10, [3.0] * 10]))
    assert (apart.value, apart.low, apart.high) == (1.0, 0.0, 3.0)


def test_runs_that_cannot_be_pooled_are_refused(tmp_path: Path) -> None:
    folders = seeds(tmp_path, some(60), some(58), some(62), drawn=some(40))
    with pytest.raises(ConfigError, match="too few runs"):
        pool_seeds(folders[:2])
    with pytest.raises(ConfigError, match="have the seed 0"):
        pool_seeds([*folders, folders[0]])
    (folders[1] / "twins.json").unlink()
    with pytest.raises(ConfigError, match="compares no selection"):
        pool_seeds(folders)
    planted(folders[1], some(60, 80), some(40, 80), seed=1)
    with pytest.raises(DataError, match="did not answer the same prompts"):
        pool_seeds(folders)
