"""The table of a sweep from figures that are known: means, intervals, pairs by seed, the best and its optimism."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from posttrain.intervals import of_the_best, over_runs, student_quantile
from posttrain.runs.files import write_json
from posttrain.runs.folder import RunFolder, StageFolder, answers_path
from posttrain.runs.records.evaluation import AnswerLine, Figure, SuiteScores
from posttrain.runs.records.run import StageEntry
from posttrain.sweeps.figures import By
from posttrain.sweeps.page import write_page
from posttrain.sweeps.record import DONE, FAILED, PAUSED, SweepRecord, SweepRun
from posttrain.sweeps.results import Measured, Results, results
from posttrain.sweeps.table import text_of


def write_run(sweep: Path, name: str, scores: list[float], drift: float = 0.01) -> None:
    """A finished run whose suite `sums` gave these scores, a prompt each."""
    run = RunFolder(sweep / name)
    stage = StageFolder(run.path / "dpo")
    run.path.mkdir(parents=True)
    run.write_run(name=name, status="done", stages=())
    stage.path.mkdir()
    stage.write_stage(name="dpo", status="done")
    mean = sum(scores) / len(scores)
    stage.write(
        SuiteScores({"sums": {"accuracy": Figure(mean), "length": Figure(3.0)}, "old": {"drift": Figure(drift)}})
    )
    path = answers_path(stage.path, "sums")
    path.parent.mkdir()
    lines = [AnswerLine(f"{i}?", "4", "4", score, 1, "stop_token").to_json() for i, score in enumerate(scores)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(run.path / "summary.json", {"start": {"sums.accuracy": 0.0}, "dpo": {"sums.accuracy": mean}})
    run.write_run(stages=(StageEntry("dpo", "dpo", "done", 1.0),))


def made(
    sweep: Path, scores: dict[str, dict[int, list[float]]], *, by: str | None = "sums.accuracy", better: str = "higher"
) -> tuple[Results, SweepRecord]:
    """{setting: {seed: scores}} as a sweep; no scores is a run that failed."""
    runs = []
    for number, (value, seeds) in enumerate(scores.items()):
        for seed, given in seeds.items():
            name = f"{value}_seed-{seed}"
            if given:
                write_run(sweep, name, given)
            status, error = (DONE, None) if given else (FAILED, "no memory")
            runs.append(SweepRun(name, number, {"dpo.beta": value}, seed, status, error=error))
    record = SweepRecord(1, "mine", "grid", (), None, {}, tuple(runs), by, better)
    return results(sweep, record), record


def test_students_quantiles_are_those_of_the_tables() -> None:
    for freedom, expected in ((1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)):
        assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=6e-5)
    assert student_quantile(0.025, 2) == pytest.approx(-4.3027, abs=6e-5)
    assert student_quantile(0.5, 3) == pytest.approx(0, abs=1e-9)


def test_the_interval_over_seeds_by_hand() -> None:
    # The mean of 1, 2, 3 is 2, their deviation 1: 4.3027 / sqrt(3) to each side.
    score = over_runs([1.0, 2.0, 3.0])
    assert score is not None and score.n == 3
    assert (score.low, score.high) == (pytest.approx(2 - 2.48414, abs=1e-5), pytest.approx(2 + 2.48414, abs=1e-5))
    assert over_runs([0.5]) is None
    # Of normal draws it holds the truth as often as it says.
    rng = np.random.default_rng(0)
    held = [(s := over_runs(list(rng.normal(size=4)))) is not None and s.low < 0 < s.high for _ in range(2000)]
    assert 0.93 < sum(held) / len(held) < 0.97


def test_a_row_has_mean_interval_and_the_difference_by_seed(tmp_path: Path) -> None:
    # Seeds differ by more than settings do: unpaired the two overlap, by seed the difference is 0.2 each time.
    scores = {
        "0.1": {0: [1.0] * 6 + [0.0] * 4, 1: [1.0] * 2 + [0.0] * 8},
        "0.5": {0: [1.0] * 8 + [0.0] * 2, 1: [1.0] * 4 + [0.0] * 6},
    }
    found, record = made(tmp_path, scores)
    first, second = found.rows
    assert first.figures["sums.accuracy"].mean == pytest.approx(0.4)
    assert first.figures["sums.accuracy"].by_seed == {0: 0.6, 1: 0.2}
    assert found.best is not None and found.best.settings == {"dpo.beta": "0.5"} and found.reference == 1
    assert second.against is None and first.against is not None
    assert first.against.mean == pytest.approx(-0.2) and first.against.low == pytest.approx(-0.2)
    # What describes answers (length) is no column; what nobody knows, like `drift`, is one.
    assert [column.key for column in found.columns] == ["sums.accuracy", "old.drift"]
    text = text_of(found)
    assert "* 0.5" in text and "-20.0 points" in text and "chosen among 2 settings" in text
    page = write_page(tmp_path, found, record).read_text()
    assert "<b>★ 0.5</b>" in page and "0.1_seed-0/report.html" in page


def test_a_setting_that_lacks_a_seed_is_not_chosen(tmp_path: Path) -> None:
    found, record = made(tmp_path, {"lucky": {0: [1.0] * 4, 1: []}, "whole": {0: [1.0, 0, 0, 0], 1: [1.0, 1, 0, 0]}})
    assert found.best is not None and found.best.settings == {"dpo.beta": "whole"}
    assert "nothing was chosen" in found.best.said and found.best.expected is None
    assert found.rows[0].errors == {"lucky_seed-1": "no memory"} and "no memory" in text_of(found)
    assert "no memory" in write_page(tmp_path, found, record).read_text()


def test_a_figure_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    nan = float("nan")
    for better in ("higher", "lower"):
        found, record = made(tmp_path / better, {"lost": {0: [nan, 1.0]}, "well": {0: [1.0, 0.0]}}, better=better)
        assert found.best is not None and found.best.settings == {"dpo.beta": "well"}
        assert "the only setting" in found.best.said
        assert "lost_seed-0" in write_page(tmp_path / better, found, record).read_text()
    none, _ = made(tmp_path / "none", {"lost": {0: [nan]}})
    assert none.best is None


def test_the_interval_of_a_share_ends_at_none_and_all(tmp_path: Path) -> None:
    # 0 and 0.25: Student's with one degree of freedom reaches from -1.46 to 1.71.
    found, _ = made(tmp_path, {"a": {0: [0.0] * 4, 1: [0.0, 0, 0, 1]}})
    figure = found.rows[0].figures["sums.accuracy"]
    assert (figure.low, figure.high) == (0.0, 1.0) and found.best is not None and found.best.low == 0.0
    # A change has no such ends, also where it happens to lie between them.
    below = Measured.of({0: 0.0, 1: 0.25})
    assert below.low is not None and below.low < -1


def test_less_is_better_where_it_is_said_and_without_by_nothing_is_chosen(tmp_path: Path) -> None:
    scores = {"a": {0: [1.0, 1, 0, 0]}, "b": {0: [1.0, 0, 0, 0]}}
    found, _ = made(tmp_path / "down", scores, better="lower")
    assert found.best is not None and found.best.settings == {"dpo.beta": "b"}
    assert found.best.optimism is not None and found.best.optimism >= 0
    assert found.best.low is None  # of one seed
    plain, _ = made(tmp_path / "plain", scores, by=None)
    assert plain.best is None and plain.rows[1].against is not None  # against the first


def test_the_best_of_equals_looks_better_than_it_is_and_the_correction_takes_that_away() -> None:
    # Eight settings that are all right half of the time: the best of them looks better, by chance alone.
    rng = np.random.default_rng(1)
    seen, corrected, held = [], [], []
    for _ in range(40):
        scores_CSP = (rng.random((8, 3, 30)) < 0.5).astype(float)
        score = of_the_best(scores_CSP)
        assert score is not None
        seen.append(scores_CSP.mean(axis=(1, 2)).max())
        corrected.append(score.value)
        held.append(score.low < 0.5 < score.high)
    assert np.mean(seen) > 0.56
    assert abs(np.mean(corrected) - 0.5) < 0.02
    assert np.mean(held) > 0.9


def test_where_one_setting_is_plainly_better_nothing_is_taken_away() -> None:
    rng = np.random.default_rng(2)
    scores_CSP = np.stack([(rng.random((3, 60)) < p).astype(float) for p in (0.1, 0.2, 0.9)])
    score = of_the_best(scores_CSP)
    assert score is not None and score.n == 180
    assert score.value == pytest.approx(scores_CSP[2].mean(), abs=0.01)
    lowest = of_the_best(scores_CSP, lower=True)
    assert lowest is not None and lowest.value < 0.2


def test_chance_is_over_what_there_is_several_of() -> None:
    assert of_the_best(np.zeros((1, 3, 9))) is None  # nothing to choose among
    assert of_the_best(np.zeros((3, 1, 1))) is None  # nothing to draw
    # One prompt, which stands for a figure without scores: by seeds alone. Setting 0 wins with whatever seeds.
    by_seeds = of_the_best(np.array([[[0.9], [0.8], [0.7]], [[0.1], [0.2], [0.3]]]))
    assert by_seeds is not None and by_seeds.value == pytest.approx(0.8, abs=0.01) and by_seeds.n == 3


def test_figures_are_found_by_their_names(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [1.0, 0.0])
    run = RunFolder(tmp_path / "a")
    for text in ("sums.accuracy", "dpo:sums.accuracy"):
        by = By.parse(text)
        assert str(by) == text and by.of(run) == 0.5 and by.by_prompt(run) == {"0?": 1.0, "1?": 0.0}
    assert By.parse("sft:sums.accuracy").of(run) is None and By.parse("sums.match").of(run) is None


def test_a_setting_that_was_stopped_says_where(tmp_path: Path) -> None:
    runs = (SweepRun("a_seed-0", 0, {"dpo.beta": 1}, 0, PAUSED, rungs=(0.25,)),)
    record = SweepRecord(1, "mine", "grid", (), None, {}, runs, "sums.accuracy", "higher", halving=(3, 3))
    found = results(tmp_path, record)
    assert found.rows[0].said == "stopped after 11% of the steps, sums.accuracy 0.25 there"
    assert "none is chosen" in text_of(found) and math.isclose(1 / 9, 3.0**-2)
