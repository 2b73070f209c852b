"""The win rate: outcomes by hand, answers that come before their judge, and what a judge scores only once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.config import load_recipe
from posttrain.config.suites import RewardModelOf, Sampling, WinRateSuite
from posttrain.data.write import write_jsonl
from posttrain.errors import ConfigError, DataError, ResumeError
from posttrain.evaluate.runner import evaluate_model
from posttrain.evaluate.suites import Question, win_rate
from posttrain.evaluate.suites.win_rate import judge_answers, outcome
from posttrain.rollout.native import NativeEngine
from posttrain.runs.files import read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.evaluation import Figure, SuiteScores
from posttrain.types import RowRef
from tests.fixtures import byte_tokenizer, chat, tiny_model

TOKENIZER = byte_tokenizer("CHATML")
QUESTIONS = [Question(chat(text), None, RowRef("q.jsonl", row)) for row, text in enumerate(("Hi", "Who?", "Bye"), 1)]


class Judge:
    """Counts letters, and how often it was asked."""

    def __init__(self, sign: float = 1.0):
        self.sign, self.asked = sign, 0

    def score(self, prompts, answers) -> list[float]:
        assert len(prompts) == len(answers)
        self.asked += len(answers)
        return [self.sign * len(answer) for answer in answers]


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Judge]:
    """Folders `long` and `short` with a judge in each."""
    found = {"long": Judge(), "short": Judge(-1.0)}
    for name in found:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
        (tmp_path / name / "pytorch_model.bin").write_bytes(name.encode())
    monkeypatch.setattr(win_rate, "open_scorer", lambda model, device: found[Path(model).name])
    return found


def suite(judge: Path | None, samples: int = 1) -> win_rate.WinRate:
    return win_rate.WinRate("judged", QUESTIONS, None if judge is None else str(judge), samples_per_prompt=samples)


def keep(folder: Path, texts: list[str], samples: int = 1) -> Path:
    prompts = [one.text for one in QUESTIONS for _ in range(samples)]
    lines = [
        {"prompt": prompt, "completion": text, "answer": None, "score": None, "tokens": len(text), "finish": "length"}
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    write_jsonl(folder / "evaluations" / "judged.jsonl", lines)
    return folder


def kept(folder: Path, key: str) -> list:
    return [record[key] for record in read_jsonl(folder / "evaluations" / "judged.jsonl")]


# ---------------------------------------------------------------- outcomes


def test_the_same_text_is_a_tie_whatever_the_rewards_say() -> None:
    assert outcome("a", 2.0, "b", 1.0) == 1.0
    assert outcome("a", 1.0, "b", 2.0) == 0.0
    assert outcome("a", 1.0, "b", 1.0) == 0.5
    assert outcome("a", 1.0000001, "a", 1.0) == 0.5


def test_win_rate_by_hand(judges: dict[str, Judge], tmp_path: Path) -> None:
    start, later = keep(tmp_path / "start", ["aa", "bbbb", "c"]), keep(tmp_path / "dpo", ["aaaa", "dddd", ""])
    found = judge_answers(suite(tmp_path / "long"), later, start)
    assert found["win_rate"].value == (1 + 0.5 + 0) / 3
    assert found["win_rate"].n == 3
    assert found["reward"].value == pytest.approx(8 / 3)
    assert kept(later, "score") == [1.0, 0.5, 0.0]
    assert kept(later, "start_reward") == [2.0, 4.0, 1.0]
    assert (kept(start, "reward"), kept(start, "score")) == ([2.0, 4.0, 1.0], [0.5] * 3)
    turned = judge_answers(suite(tmp_path / "short"), later, start)
    assert turned["win_rate"].value == (0 + 0.5 + 1) / 3


def test_several_answers_meet_each_of_the_starts(judges: dict[str, Judge], tmp_path: Path) -> None:
    start = keep(tmp_path / "start", ["a", "aaa", "b", "b", "c", "c"], samples=2)
    later = keep(tmp_path / "dpo", ["aa", "aaaa", "b", "b", "d", ""], samples=2)
    found = judge_answers(suite(tmp_path / "long", samples=2), later, start)
    assert kept(later, "score") == [0.5, 1.0, 0.5, 0.5, 0.5, 0.0]
    assert found["win_rate"].value == pytest.approx((0.75 + 0.5 + 0.25) / 3)
    assert found["win_rate"].n == 3


def test_the_start_has_half_by_definition_with_and_without_a_judge(judges: dict[str, Judge], tmp_path: Path) -> None:
    start = keep(tmp_path / "start", ["aa", "bbbb", "c"])
    before = judge_answers(suite(None), start, start)["win_rate"]
    after = judge_answers(suite(tmp_path / "long"), start, start)["win_rate"]
    assert before == after
    assert (after.value, after.low, after.high, after.n) == (0.5, 0.5, 0.5, 3)
    assert judge_answers(suite(None), keep(tmp_path / "sft", ["a", "b", "c"]), start) == {}


def test_a_judge_scores_an_answer_once_and_another_judge_again(judges: dict[str, Judge], tmp_path: Path) -> None:
    start, later = keep(tmp_path / "start", ["aa", "bbbb", "c"]), keep(tmp_path / "dpo", ["aaaa", "dddd", ""])
    first = judge_answers(suite(tmp_path / "long"), later, start)
    assert judges["long"].asked == 6
    assert judge_answers(suite(tmp_path / "long"), later, start) == first
    assert judges["long"].asked == 6
    (tmp_path / "long" / "pytorch_model.bin").write_bytes(b"trained anew")
    judge_answers(suite(tmp_path / "long"), later, start)
    assert judges["long"].asked == 12


def test_rewards_that_are_no_numbers_are_refused(judges: dict[str, Judge], tmp_path: Path) -> None:
    judges["long"].sign = float("nan")
    start = keep(tmp_path / "start", ["aa", "bbbb", "c"])
    with pytest.raises(DataError, match="not finite"):
        judge_answers(suite(tmp_path / "long"), start, start)


def test_a_start_that_was_not_asked_is_refused(judges: dict[str, Judge], tmp_path: Path) -> None:
    later = keep(tmp_path / "dpo", ["aaaa", "dddd", ""])
    with pytest.raises(ResumeError, match="no answers to these prompts"):
        judge_answers(suite(tmp_path / "long"), later, tmp_path / "start")


# ---------------------------------------------------------------- in a run


def settings(folder: Path, judge: Path | None) -> WinRateSuite:
    path = folder / "prompts.jsonl"
    if not path.exists():
        write_jsonl(path, [{"prompt": text} for text in ("Hi", "Who?", "Bye")])
    of = RewardModelOf(stage="reward") if judge is None else RewardModelOf(path=str(judge))
    sampling = Sampling(max_new_tokens=5)
    return WinRateSuite(name="judged", kind="win_rate", prompts=str(path), reward_model=of, sampling=sampling)


def test_answers_that_come_before_their_judge_are_judged_and_not_sampled_again(
    judges: dict[str, Judge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    generate = NativeEngine.generate

    def counted(engine: NativeEngine, prompts: list, *args: object, **options: object) -> object:
        asked.append(len(prompts))
        return generate(engine, prompts, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeEngine, "generate", counted)
    start, sft = StageFolder(tmp_path / "start"), StageFolder(tmp_path / "sft")
    first, second = (tiny_model(vocab=len(TOKENIZER), seed=seed) for seed in (0, 1))

    def evaluate(model: torch.nn.Module, folder: StageFolder, judge: Path | None) -> dict:
        one = settings(tmp_path, judge)
        return evaluate_model(model, [one], folder, baseline=start.path, tokenizer=TOKENIZER)["judged"]

    assert evaluate(first, start, None)["win_rate"] == Figure(0.5, 0.5, 0.5, 3)
    early = evaluate(second, sft, None)
    assert "win_rate" not in early and "length" in early
    assert (asked, judges["long"].asked) == ([3, 3], 0)

    begun = evaluate(first, start, tmp_path / "long")
    late = evaluate(second, sft, tmp_path / "long")
    assert (asked, judges["long"].asked) == ([3, 3], 6)
    assert begun["win_rate"].value == 0.5
    texts = [kept(folder.path, "completion") for folder in (sft, start)]
    wins = [outcome(own, len(own), other, len(other)) for own, other in zip(*texts, strict=True)]
    assert late["win_rate"].value == pytest.approx(sum(wins) / 3)
    assert {name: late[name] for name in early} == early, "what describes the answers stays"
    assert sft.document(SuiteScores).suites["judged"] == late

    assert evaluate(second, sft, tmp_path / "long") == late
    assert "win_rate" not in evaluate(second, sft, None), "a judge that is gone says nothing any more"
    assert (asked, judges["long"].asked) == ([3, 3], 6)


RECIPE = """
model: embedded
evaluate:
  suites:
    - {{name: judged, kind: win_rate, prompts: package://heldout_manners.jsonl, reward_model: {judge}}}
stages:
  - {{name: sft, method: sft, data: package://demonstrations.jsonl}}
  - {{name: mine, method: reward, data: package://preferences.jsonl}}
"""


def test_a_recipe_names_a_stage_that_trains_a_reward_model_or_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(judge="{stage: mine}"))
    (one,) = load_recipe(path).evaluate.suites
    assert isinstance(one, WinRateSuite) and one.reward_model == RewardModelOf(stage="mine")
    (tmp_path / "judge").mkdir()
    path.write_text(RECIPE.format(judge="./judge"))
    (one,) = load_recipe(path).evaluate.suites
    assert isinstance(one, WinRateSuite) and one.reward_model.path == str((tmp_path / "judge").resolve())


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("{stage: sft}", "one of mine"),
        ("{stage: mien}", "one of mine"),
        ("{}", "give one of the two"),
        ("{stage: mine, path: x}", "give one of the two"),
        ("./nowhere", "not there"),
    ],
)
def test_a_judge_that_cannot_be_is_refused_before_anything_runs(tmp_path: Path, judge: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(judge=judge))
    with pytest.raises(ConfigError, match=words):
        load_recipe(path)
