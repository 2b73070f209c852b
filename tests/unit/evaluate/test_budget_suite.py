"""The suite `budget` on a tiny model: its figures are those of its answers, its strategies draw the pool's answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.config.budget import BudgetSuite
from posttrain.data.encode import Encoder
from posttrain.errors import ConfigError, RowError
from posttrain.evaluate.budget.selection import best_of
from posttrain.evaluate.runner import evaluate_model
from posttrain.evaluate.suites import budget as budget_suite
from posttrain.evaluate.suites import load_suite
from posttrain.inference import lines
from posttrain.inference.pool import draw_pools, score_pools
from posttrain.inference.run import solve_all
from posttrain.inference.scorers import Scorers
from posttrain.inference.solution import Spent, recounted
from posttrain.inference.solving import Asked
from posttrain.rollout.native import NativeEngine
from posttrain.runs.files import read_json, read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.read import read_run
from posttrain.runs.records.budget import BudgetCurves, SolutionLine
from posttrain.sampling import SamplingDistribution
from posttrain.types import RowRef, Task
from tests.fixtures import byte_tokenizer, chat, tiny_model

TOKENIZER = byte_tokenizer("CHATML")
LONG = {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]}
SHORT_ANSWER = {"kind": "function", "function": "tests.unit.evaluate.test_budget_suite:is_short"}


def is_short(prompt, completion, task) -> float:
    return float(len(completion) < 7)


def model():
    return tiny_model("llama", vocab=len(TOKENIZER))


def settings(tmp_path: Path, **changes) -> BudgetSuite:
    path = tmp_path / "sums.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"prompt": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(3)))
    given = {
        "kind": "budget",
        "name": "spent",
        "prompts": str(path),
        "samples": 4,
        "scorers": {"logprob": "logprob", "long": LONG},
        "strategies": [{"kind": "best_of_n", "n": 4, "scorer": LONG, "name": "longest"}],
        "at": {"longest": {"n": [1, 4]}},
        "rewards": [SHORT_ANSWER],
        "sampling": {"temperature": 1.0, "max_new_tokens": 8},
    }
    return BudgetSuite(**{**given, **changes})


def asked(tmp_path: Path, suite: BudgetSuite, folder: str = "start") -> dict:
    out = StageFolder(tmp_path / "run" / folder)
    figures = evaluate_model(
        model(), [suite], out, baseline=tmp_path / "run" / "start", tokenizer=TOKENIZER, device="cpu"
    )
    return dict(figures["spent"])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, BudgetCurves]:
    folder = tmp_path_factory.mktemp("budget")
    figures = asked(folder, settings(folder))
    written = folder / "run" / "start" / "evaluations"
    return written, figures, BudgetCurves.from_json(read_json(written / "spent.budget.json"))


def test_the_figures_are_those_of_the_answers(measured) -> None:
    written, figures, record = measured
    answers = read_jsonl(written / "spent.jsonl")
    assert len(answers) == 3 * 4
    by_prompt = [answers[index : index + 4] for index in range(0, 12, 4)]
    right = [[line["score"] for line in group] for group in by_prompt]
    assert [[float(len(line["completion"]) < 7) for line in group] for group in by_prompt] == right
    assert figures["pass_at_1"].value == pytest.approx(sum(map(sum, right)) / 12)
    assert figures["oracle_at_4"].value == pytest.approx(sum(any(group) for group in right) / 3)
    # the longest of the four, by hand and by the estimator
    lengths = [[len(line["completion"]) for line in group] for group in by_prompt]
    longest = [best_of(own, group, [4])[0] for own, group in zip(lengths, right, strict=True)]
    assert figures["best_of_4_long"].value == pytest.approx(sum(longest) / 3)
    assert record.samples == 4 and record.prompts == 3
    assert record.tokens_per_answer == pytest.approx(sum(line["tokens"] for line in answers) / 12)
    (majority,) = [curve for curve in record.curves if curve.kind == "majority"]
    assert [point.tokens for point in majority.points] == pytest.approx(
        [n * record.tokens_per_answer for n in (1, 2, 4)]
    )
    assert record.findings and all(one.said for one in record.findings)


def test_a_strategy_that_is_run_makes_the_pools_choice(measured) -> None:
    """Best-of-n run for real, with the pool's seed, is the estimator at n = N; its first draw is the pool's first."""
    written, figures, record = measured
    assert figures["solved_by_longest-4"].value == pytest.approx(figures["best_of_4_long"].value)
    answers = [line["completion"] for line in read_jsonl(written / "spent.jsonl")]
    trees = [SolutionLine.from_json(line) for line in read_jsonl(written / "spent.trees.jsonl")]
    assert [line.strategy for line in trees] == ["longest"] * 6
    assert [line.answer for line in trees[::2]] == answers[::4]
    assert [[node.text for node in line.nodes] for line in trees[1::2]] == [
        answers[index : index + 4] for index in (0, 4, 8)
    ]
    (run,) = [curve for curve in record.curves if curve.kind == "strategy"]
    assert [point.label for point in run.points] == ["longest-1", "longest-4"]
    spent = [sum(node.tokens for node in line.nodes) for line in trees[1::2]]
    assert run.points[1].tokens == pytest.approx(sum(spent) / 3) and run.points[1].stopped == {"done": 3}


def test_a_run_folder_with_trees_is_read_as_before(measured) -> None:
    written, _, record = measured
    run = written.parent.parent
    (run / "run.json").write_text('{"stages": []}')
    evaluated = read_run(run).start
    assert set(evaluated.answers) == {"spent"} and len(evaluated.answers["spent"]) == 12
    assert evaluated.budgets["spent"] == record


def test_it_is_asked_once_and_anew_for_another_scorer(tmp_path: Path, monkeypatch) -> None:
    first = asked(tmp_path, settings(tmp_path))
    calls = []
    monkeypatch.setattr(budget_suite, "draw_pools", lambda *a, **k: calls.append(1) or draw_pools(*a, **k))
    assert asked(tmp_path, settings(tmp_path)).keys() == first.keys() and calls == []
    asked(tmp_path, settings(tmp_path, scorers={"logprob": "logprob"}))
    assert calls == [1]


def test_answers_are_the_same_each_time(tmp_path: Path) -> None:
    suite = settings(tmp_path)
    asked(tmp_path, suite, "start")
    asked(tmp_path, suite, "again")
    first, again = (tmp_path / "run" / name / "evaluations" / "spent.jsonl" for name in ("start", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_a_scorer_that_names_a_stage_is_refused_outside_of_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names the stage `reward`") as caught:
        asked(tmp_path, settings(tmp_path, scorers={"judge": {"stage": "reward"}}))
    assert "scorers.judge" in str(caught.value)


def test_a_row_without_an_answer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"prompt": "Why?", "answer": "because"}\n')
    with pytest.raises(RowError, match="holds no number"):
        load_suite(settings(tmp_path, rewards=()))


def test_a_model_that_cannot_be_loaded_costs_no_pool(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(budget_suite, "draw_pools", lambda *a, **k: pytest.fail("something was drawn"))
    monkeypatch.setattr(budget_suite, "content", lambda settings: "")
    with pytest.raises(Exception, match="nowhere"):
        asked(tmp_path, settings(tmp_path, scorers={"judge": str(tmp_path / "nowhere")}))


# ---------------------------------------------------------------- the pool, and trees


def solved():
    encoder = Encoder(TOKENIZER)
    engine = NativeEngine(model(), decode=encoder.tokens.decode)
    tasks = [Task(chat(text), None, RowRef("t", row)) for row, text in enumerate(("Hi", "Hi", "Who?"), 1)]
    return Asked(engine, encoder, Scorers(), seed=3), tasks


def test_a_pool_has_the_draws_of_a_strategy_and_equal_prompts_their_own() -> None:
    asking, tasks = solved()
    (strategy,) = [
        run.settings
        for run in BudgetSuite(
            kind="budget",
            name="s",
            prompts="x",
            samples=4,
            sampling={"max_new_tokens": 6},
            strategies=[{"kind": "best_of_n", "n": 4, "scorer": "logprob"}],
        ).runs()
    ]
    pools = draw_pools(asking, tasks, SamplingDistribution(**strategy.sampling.model_dump()), 4)
    solutions = solve_all(asking, tasks, strategy)
    drawn = [[node.ids for node in pool.answers] for pool in pools.prompts]
    assert drawn == [[node.ids for node in solution.nodes] for solution in solutions]
    assert drawn[0] != drawn[1]
    assert [pool.solving.spent.sampled for pool in pools.prompts] == [recounted(pool.answers) for pool in pools.prompts]


def test_trees_end_before_their_file_grows_too_large(tmp_path: Path, monkeypatch) -> None:
    asking, tasks = solved()
    suite = settings(tmp_path, at={}, strategies=[{"kind": "best_of_n", "n": 2, "scorer": "logprob"}])
    solutions = solve_all(asking, tasks, next(suite.runs()).settings)
    path = tmp_path / "trees.jsonl"
    assert lines.write_trees(path, solutions, [True, False, None]) == 0
    whole = [SolutionLine.from_json(line) for line in read_jsonl(path)]
    assert [line.right for line in whole] == [True, False, None]
    monkeypatch.setattr(lines, "MOST_BYTES", len(path.read_bytes()) - 1)
    assert lines.write_trees(path, solutions, [True, False, None]) == 1 and len(read_jsonl(path)) == 2
    monkeypatch.setattr(lines, "MOST_BYTES", 1)
    assert lines.write_trees(path, solutions, [True, False, None]) == 2


def test_what_a_scorer_costs_is_spread_over_the_answers_that_it_scored(tmp_path: Path, monkeypatch) -> None:
    def scored(asking, pools, name, settings, **how) -> None:
        score_pools(asking, pools, name, settings, **how)
        pools.scoring_seconds[name] = 24.0
        for pool in pools.prompts:
            pool.scoring[name] = Spent(sampled=8, scored=12)

    monkeypatch.setattr(budget_suite, "score_pools", scored)
    asked(tmp_path, settings(tmp_path, scorers={"logprob": "logprob"}, strategies=[], at={}))
    record = BudgetCurves.from_json(read_json(tmp_path / "run" / "start" / "evaluations" / "spent.budget.json"))
    plain, best = (next(c for c in record.curves if c.kind == kind).points[-1] for kind in ("majority", "best"))
    # of the four answers to one prompt: what they cost together
    assert best.n == 4 and best.scored == pytest.approx(12) and best.tokens == pytest.approx(plain.tokens + 8)
    assert best.seconds == pytest.approx(plain.seconds + 24 / 3)


def test_a_strategys_seconds_are_those_of_one_prompt(tmp_path: Path) -> None:
    asking, tasks = solved()
    suite = settings(tmp_path, at={}, strategies=[{"kind": "best_of_n", "n": 2, "scorer": "logprob"}])
    runs = list(suite.runs())
    solutions = solve_all(asking, tasks, runs[0].settings)
    (curve,) = budget_suite._strategy_curves(runs, [(solutions, 6.0)], [[True, False, True]])
    assert curve.points[0].seconds == pytest.approx(2.0) and curve.points[0].value == pytest.approx(2 / 3)


def test_marks_of_a_model_are_counted_without_the_answers_that_they_judge(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(budget_suite, "draw_pools", lambda *a, **k: drawn.append(draw_pools(*a, **k)) or drawn[-1])
    asked(tmp_path, settings(tmp_path, scorers={"marks": "self"}, strategies=[], at={}))
    record = BudgetCurves.from_json(read_json(tmp_path / "run" / "start" / "evaluations" / "spent.budget.json"))
    best = next(curve for curve in record.curves if curve.kind == "best").points[-1]
    # with all answers of the pool, the price is all that was sampled
    assert 3 * best.tokens == pytest.approx(sum(pool.solving.spent.sampled for pool in drawn[0].prompts))
