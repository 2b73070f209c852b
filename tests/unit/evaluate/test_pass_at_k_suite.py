"""The suite of kind pass_at_k: from a recipe's entry to counts, figures and files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.cli.tables import final_table
from posttrain.config.suites import PassAtKSuite as Settings
from posttrain.config.suites import Sampling
from posttrain.errors import ConfigError, DataError, RowError
from posttrain.evaluate.asking import EvaluatedModel
from posttrain.evaluate.runner import evaluate_model, evaluate_suites
from posttrain.evaluate.suites import load_suite
from posttrain.evaluate.suites.pass_at_k import PassAtK, judge_samples
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.rollout.native import NativeEngine
from posttrain.runs.files import read_json, read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.evaluation import Figure, SuiteScores
from posttrain.sampling import SamplingDistribution
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer("CHATML")


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(path: Path | str, **changes: Any) -> Settings:
    return Settings(**{"kind": "pass_at_k", "name": "sums", "prompts": str(path), "samples": 4, **changes})


def loaded(path: Path | str, **changes: Any) -> PassAtK:
    suite = load_suite(settings(path, **changes))
    assert isinstance(suite, PassAtK)
    return suite


def done(finish: FinishReason = FinishReason.STOP_TOKEN) -> Completion:
    return Completion((5, 2), (-1.0, -0.5), finish)


def judged(suite: PassAtK, texts: Sequence[Sequence[str]], out: Path) -> dict[str, Any]:
    groups = [[done() for _ in answers] for answers in texts]
    return judge_samples(suite, groups, texts, out)


TEXTS = [["1", "It is 1.", "2", "no"], ["3", "3", "4", "5"], ["2 + 1 = 3", "3", "3", "3.0"]]
"""2, 0 and 4 of four are right."""


@pytest.mark.parametrize("rewards", [[], [{"kind": "math"}]])
def test_counts_figures_and_files(sums: Path, tmp_path: Path, rewards: list[dict[str, str]]) -> None:
    suite = loaded(sums, k=[4, 1, 2], rewards=rewards)
    figures = judged(suite, TEXTS, tmp_path)
    assert list(figures) == ["pass_at_1", "pass_at_2", "pass_at_4"]
    assert figures["pass_at_1"].value == pytest.approx(6 / 12)
    assert figures["pass_at_2"].value == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert figures["pass_at_4"].value == pytest.approx(2 / 3)
    record = read_json(tmp_path / "evaluations" / "sums.counts.json")
    assert record["correct"] == [2, 0, 4] and record["samples"] == 4
    assert record["prompts"] == ["0 + 1 = ?", "1 + 1 = ?", "2 + 1 = ?"]
    assert [point["k"] for point in record["curve"]] == [1, 2, 4]
    lines = read_jsonl(tmp_path / "evaluations" / "sums.jsonl")
    assert [line["score"] for line in lines] == [1.0, 1.0, 0.0, 0.0, *[0.0] * 4, *[1.0] * 4]
    assert set(lines[0]) == {"prompt", "completion", "answer", "score", "reward", "tokens", "finish"}


def test_a_sum_of_rewards_and_a_threshold_say_what_is_right(sums: Path, tmp_path: Path) -> None:
    rewards = [{"kind": "math"}, {"kind": "regex", "pattern": "=", "weight": 0.5}]
    assert judged(loaded(sums, rewards=rewards, right_from=1.5), TEXTS, tmp_path)["pass_at_1"].value == pytest.approx(
        1 / 12
    )
    assert judged(loaded(sums, rewards=rewards, right_from=0.5), TEXTS, tmp_path)["pass_at_1"].value == pytest.approx(
        6 / 12
    )


def test_an_answer_that_nobody_judged_is_not_right(sums: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def one(prompt, completion, task):\n    return 1.0 if completion == '3' else None\n"
    )
    suite = loaded(sums, rewards=[{"kind": "function", "function": "mine:one"}], modules=str(tmp_path))
    figures = judged(suite, TEXTS, tmp_path)
    assert figures["pass_at_1"].value == pytest.approx(4 / 12)
    assert figures["abstained_share"].value == pytest.approx(8 / 12)
    aborted = [[done(FinishReason.ABORTED)] * 4, [done()] * 4, [done()] * 4]
    assert judge_samples(suite, aborted, [["3"] * 4] * 3, tmp_path)["pass_at_1"].value == pytest.approx(8 / 12)


def test_tasks_of_reasoning_gym(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    address = "reasoning_gym:chain_sum?size=5&seed=1&min_terms=2&max_terms=2"
    suite = loaded(address, rewards=[{"kind": "reasoning_gym"}], limit=3)
    assert len(suite.tasks) == 3
    texts = [[str(task.answer), "0.5", "no", str(task.answer)] for task in suite.tasks]
    assert judged(suite, texts, tmp_path)["pass_at_1"].value == pytest.approx(0.5)


# ---------------------------------------------------------------- asked of a model


class CountingEngine(NativeEngine):
    """Remembers how it was asked."""

    def generate(self, prompts: Any, sampling: SamplingDistribution, **options: Any) -> Any:
        self.asked = (len(prompts), options["completions_per_prompt"], sampling.temperature)
        return super().generate(prompts, sampling, **options)


def test_a_prompt_is_given_once_for_all_its_samples(sums: Path, tmp_path: Path) -> None:
    model = tiny_model(vocab=len(TOKENIZER), seed=0)
    engine = CountingEngine(model)
    asked = EvaluatedModel(model, EvaluatedModel.of(model, TOKENIZER).encoder, engine)
    found = evaluate_suites(asked, [loaded(sums, sampling={"max_new_tokens": 5})], tmp_path)["sums"]
    assert engine.asked == (3, 4, 1.0)
    assert list(found)[:2] == ["pass_at_1", "pass_at_4"] and {"length", "cut_share", "distinct_2"} <= set(found)
    assert len(read_jsonl(tmp_path / "evaluations" / "sums.jsonl")) == 12


def test_suites_that_ask_the_same_share_the_answers(sums: Path, tmp_path: Path) -> None:
    model = tiny_model(vocab=len(TOKENIZER), seed=0)

    class Once(NativeEngine):
        calls = 0

        def generate(self, *given: Any, **options: Any) -> Any:
            self.calls += 1
            return super().generate(*given, **options)

    engine = Once(model)
    asked = EvaluatedModel(model, EvaluatedModel.of(model, TOKENIZER).encoder, engine)
    short = {"max_new_tokens": 5}
    names = [("one", short), ("two", short), ("longer", {"max_new_tokens": 6})]
    evaluate_suites(asked, [loaded(sums, name=name, sampling=drawn) for name, drawn in names], tmp_path)
    assert engine.calls == 2
    one, two, longer = (read_jsonl(tmp_path / "evaluations" / f"{name}.jsonl") for name, _ in names)
    assert one == two and max(line["tokens"] for line in longer) == 6


def test_it_is_not_asked_again_until_something_changes(sums: Path, tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "start")
    model = tiny_model(vocab=len(TOKENIZER), seed=0)
    suite = settings(sums, sampling={"max_new_tokens": 5})

    def ask(one: Settings) -> int:
        evaluate_model(model, [one], folder, baseline=folder.path, tokenizer=TOKENIZER)
        return (folder.path / "evaluations" / "sums.jsonl").stat().st_mtime_ns

    first = ask(suite)
    assert ask(suite) == first
    assert ask(suite.changed(modules=str(tmp_path))) == first  # where a recipe lies changes no answer
    assert ask(suite.changed(samples=5, k=(1,))) != first
    assert isinstance(model, torch.nn.Module)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "problem", "remedy"),
    [
        ({"k": [1, 8]}, "fewer than k answers", "write `samples: 8`, or smaller k"),
        ({"k": [0, 1]}, "there is no pass@0", "write k of 1 or more"),
        ({"sampling": {"temperature": 0.0}}, "draws the same answer", "write `sampling: {temperature: 1.0}`"),
        ({"rewards": [{"kind": "math"}, {"kind": "math"}]}, "two rewards are named", "another name"),
        ({"rewards": [{"kind": "maths"}]}, "maths", "math"),
        ({"samples": 0}, "samples", "greater than or equal to 1"),
    ],
)
def test_bad_settings(sums: Path, changes: dict[str, Any], problem: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(sums, **changes)
    assert problem in str(caught.value) and remedy in str(caught.value)


def test_one_greedy_answer_is_allowed(sums: Path) -> None:
    suite = settings(sums, samples=1, sampling={"temperature": 0.0})
    assert suite.k == (1,) and isinstance(suite.sampling, Sampling)
    assert settings(sums).sampling.temperature == 1.0 and settings(sums).k == (1, 4)
    assert settings(sums, k=2).k == (2,)


def test_a_file_without_rows(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        loaded(tmp_path / "none.jsonl")


@pytest.mark.parametrize("rewards", [[], [{"kind": "math"}]])
def test_rows_that_no_model_can_get_right(tmp_path: Path, rewards: list[dict[str, str]]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "2 + 1?", "answer": "%s"}\n' % ("" if rewards else "many")
    )
    if rewards:
        path.write_text('{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "2 + 1?", "answer": "\\\\boxed{"}\n')
    with pytest.raises(RowError, match=r"row 2|own answers of 1 of 2|no number"):
        loaded(path, rewards=rewards)


# ---------------------------------------------------------------- on the terminal


def test_the_final_table_says_pass_at_k_with_intervals() -> None:
    def figures(one: float, eight: float) -> dict[str, Any]:
        share = {"abstained_share": Figure(0.5, 0.4, 0.6, 9)}
        return {f"pass_at_{k}": Figure(v, v - 0.1, v + 0.1, 9) for k, v in ((1, one), (8, eight))} | share

    table = final_table(
        {"start": SuiteScores({"sums": figures(0.1, 0.3)}), "grpo": SuiteScores({"sums": figures(0.45, 0.875)})}
    )
    labels, before, after = ([*column.cells] for column in table.columns)
    assert labels == ["sums pass@1", "sums pass@8"]
    assert before == ["10 % [0, 20]", "30 % [20, 40]"]
    assert after == ["45 % [35, 55]", "88 % [78, 98]"]
