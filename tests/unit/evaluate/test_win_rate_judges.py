"""Win rates by a judge behind an URL and by people's votes; ratings of a run, and its section in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import load_recipe
from posttrain.config.suites import ComparingJudge, RewardModelOf, WinRateSuite
from posttrain.data.write import write_jsonl
from posttrain.errors import ConfigError, RewardError, RowError
from posttrain.evaluate.rating_runs import ratings_of_run, write_ratings
from posttrain.evaluate.suites.win_rate import WinRate, judge_answers, load
from posttrain.report.ratings import ratings_view
from posttrain.rewards.endpoint import Endpoint
from posttrain.runs.files import read_jsonl
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import Progress
from posttrain.runs.read import read_run
from posttrain.sampling import SamplingDistribution
from posttrain.types import RowRef, Task
from tests.fake_run import write_fake_run
from tests.fixtures import chat

PROMPTS = ("Hi", "Who?", "Bye")
QUESTIONS = [Task(chat(text), None, RowRef("q.jsonl", row), {}) for row, text in enumerate(PROMPTS, 1)]
Verdict = Callable[[str, str], str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A judge without a server: `verdict` gets both answers as they are shown; requests are counted."""
    state: dict[str, Any] = {"requests": 0, "verdict": lambda a, b: "[[A]]" if len(a) > len(b) else "[[B]]"}

    def exchange(self: Endpoint, body: dict[str, Any], read: Callable[[Any], Any]) -> Any:
        state["requests"] += 1
        shown = body["messages"][1]["content"]
        texts = [part.split(">\n", 1)[1].split("\n</", 1)[0] for part in shown.split("<answer_")[1:]]
        return read({"choices": [{"message": {"content": f"So.\n{state['verdict'](*texts)}"}}]})

    monkeypatch.setattr(Endpoint, "exchange", exchange)
    return state


def by_judge(**keys: Any) -> WinRateSuite:
    judge = ComparingJudge(url="http://localhost:1/v1", model="m", **keys)
    return WinRateSuite(name="judged", kind="win_rate", prompts="q.jsonl", judge=judge)


def by_votes(path: Path) -> WinRateSuite:
    return WinRateSuite(name="judged", kind="win_rate", prompts="q.jsonl", votes=str(path))


def loaded(settings: WinRateSuite) -> WinRate:
    return load(settings, list(QUESTIONS), SamplingDistribution())


def keep(folder: Path, texts: list[str], **more: Any) -> Path:
    lines = [
        {"prompt": prompt, "completion": text, "answer": None, "score": None, "tokens": 1, "finish": "length", **more}
        for prompt, text in zip(PROMPTS, texts, strict=True)
    ]
    write_jsonl(folder / "evaluations" / "judged.jsonl", lines)
    return folder


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return list(read_jsonl(folder / "evaluations" / f"judged.{kind}.jsonl"))


# ---------------------------------------------------------------- a judge


def test_a_judge_by_hand(asked: dict[str, Any], tmp_path: Path) -> None:
    start, later = keep(tmp_path / "start", ["aa", "b", "same"]), keep(tmp_path / "dpo", ["a", "bbb", "same"])
    suite = loaded(by_judge())
    assert judge_answers(suite, start, start)["lc_win_rate"].value == 0.5
    assert asked["requests"] == 2, "one trial, in both orders, before anything is trained"
    found = judge_answers(suite, later, start)
    assert asked["requests"] == 6, "equal texts tie unasked"
    assert (found["win_rate"].value, found["win_rate"].n) == ((0 + 1 + 0.5) / 3, 3)
    assert (found["order_agreement"].value, found["order_agreement"].n, found["abstained_share"].value) == (1.0, 2, 0.0)
    assert [line["score"] for line in read_jsonl(later / "evaluations" / "judged.jsonl")] == [0.0, 1.0, 0.5]
    games = rows(later, "games")
    assert [(one["model_a"], one["model_b"], one["score"]) for one in games] == [
        ("dpo", "start", 0.0),
        ("start", "dpo", 1.0),
        ("dpo", "start", 1.0),
        ("start", "dpo", 0.0),
        ("dpo", "start", 0.5),
        ("start", "dpo", 0.5),
    ]
    assert judge_answers(suite, later, start) == found and asked["requests"] == 6, "verdicts are kept with the start"
    assert any((start / "verdicts").rglob("*.json"))


def test_what_is_always_shorter_has_no_rate_at_equal_length(asked: dict[str, Any], tmp_path: Path) -> None:
    class Heard(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    start, later = keep(tmp_path / "start", ["aaaa", "bbb", "cc"]), keep(tmp_path / "dpo", ["a", "bb", "c"])
    found = judge_answers(loaded(by_judge()), later, start, progress=Heard())
    assert found["win_rate"].n == 3 and "lc_win_rate" not in found
    assert any("judged: of the answers 100% are shorter than the start's" in text for text in said)


def test_a_judge_that_goes_by_the_order_ties_and_is_found_out(asked: dict[str, Any], tmp_path: Path) -> None:
    asked["verdict"] = lambda a, b: "[[A]]"
    start, later = keep(tmp_path / "start", ["a", "b", "c"]), keep(tmp_path / "dpo", ["d", "e", "f"])
    found = judge_answers(loaded(by_judge()), later, start)
    assert (found["win_rate"].value, found["order_agreement"].value) == (0.5, 0.0)
    record = ratings_of_run({"start": start, "dpo": later}, [by_judge()])
    orders = record.suites["judged"].orders  # type: ignore[union-attr]
    assert orders and orders.agreement and orders.lean
    assert (orders.comparisons, orders.agreement.value, orders.lean.value) == (3, 0.0, 0.5)


def test_pairs_without_a_verdict_are_left_out_and_counted(asked: dict[str, Any], tmp_path: Path) -> None:
    asked["verdict"] = lambda a, b: "well" if "b" in a + b else "[[A]]" if len(a) > len(b) else "[[B]]"
    start, later = keep(tmp_path / "start", ["aa", "b", "c"]), keep(tmp_path / "dpo", ["a", "bbb", "cc"])
    found = judge_answers(loaded(by_judge()), later, start)
    assert (found["win_rate"].value, found["win_rate"].n) == (0.5, 2)
    assert found["abstained_share"].value == pytest.approx(1 / 3)
    asked["verdict"] = lambda a, b: "well"
    with pytest.raises(RewardError, match="no verdict on any pair"):
        judge_answers(loaded(by_judge(standard="another")), later, start)


def test_a_judge_that_refuses_does_so_before_training(tmp_path: Path) -> None:
    start = keep(tmp_path / "start", ["a", "b", "c"])
    with pytest.raises(RewardError, match="did not answer"):
        judge_answers(loaded(by_judge(retries=0, timeout=5)), start, start)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        judge_answers(loaded(by_judge(key_env="NO_SUCH_KEY")), start, start)


# ---------------------------------------------------------------- votes


def test_votes_by_hand(tmp_path: Path) -> None:
    start, later = keep(tmp_path / "start", ["aa", "b", "c"]), keep(tmp_path / "dpo", ["a", "bbb", "c"])
    votes = tmp_path / "votes.jsonl"
    write_jsonl(votes, [{"prompt": "Hi", "model_a": "x", "model_b": "y", "winner": None}])
    suite = loaded(by_votes(votes))
    assert judge_answers(suite, start, start)["win_rate"].value == 0.5
    assert set(judge_answers(suite, later, start)) == {"abstained_share"}, "a tie of equal texts is nobody's vote"
    ballot = rows(later, "ballot")
    assert [(row["prompt"], row["winner"]) for row in ballot] == [("Hi", None), ("Who?", None)]
    assert {row["model_a"] for row in ballot} | {row["model_b"] for row in ballot} == {"start", "dpo"}
    # One pair is voted on twice, by two people who disagree; the other once.
    first, second = ({**row, "winner": winner} for row, winner in zip(ballot, ("start", "dpo"), strict=True))
    write_jsonl(votes, [first, {**first, "winner": "dpo"}, second])
    found = judge_answers(suite, later, start)
    assert (found["win_rate"].value, found["win_rate"].n) == (pytest.approx((0.5 + 1 + 0.5) / 3), 3)
    assert rows(later, "ballot") == [] and found["abstained_share"].value == 0
    # Trained anew, it answers otherwise: the votes were on other texts.
    keep(later, ["zz", "yy", "xx"])
    assert set(judge_answers(suite, later, start)) == {"abstained_share"}


def test_a_vote_counts_alike_whichever_side_its_answers_stood_on(tmp_path: Path) -> None:
    start, later = keep(tmp_path / "start", ["a", "b", "c"]), keep(tmp_path / "dpo", ["x", "y", "z"])
    votes, points = tmp_path / "votes.jsonl", []
    for sides in (("x", "a"), ("a", "x")):
        row = {"prompt": "Hi", "model_a": "1", "model_b": "2", "response_a": sides[0], "response_b": sides[1]}
        write_jsonl(votes, [{**row, "winner": "model_a" if sides[0] == "x" else "model_b"}])
        points.append(judge_answers(loaded(by_votes(votes)), later, start)["win_rate"].value)
    assert points == [1.0, 1.0]


def test_a_vote_without_its_texts_is_refused(tmp_path: Path) -> None:
    start, votes = keep(tmp_path / "start", ["a", "b", "c"]), tmp_path / "votes.jsonl"
    write_jsonl(votes, [{"prompt": "Hi", "model_a": "x", "model_b": "y", "winner": "x"}])
    with pytest.raises(RowError, match="on which answers"):
        judge_answers(loaded(by_votes(votes)), start, start)


def test_votes_rate_all_policies_that_they_join(tmp_path: Path) -> None:
    texts = {
        "start": ["a1", "a2", "a3"],
        "sft": ["b1", "b2", "b3"],
        "dpo": ["c1", "c2", "c3"],
        "odd": ["d1", "d2", "d3"],
    }
    folders = {name: keep(tmp_path / name, answers) for name, answers in texts.items()}
    votes = tmp_path / "votes.jsonl"
    met = [("start", "sft"), ("sft", "dpo")]
    write_jsonl(
        votes,
        [
            {"prompt": prompt, "model_a": "?", "model_b": "!", "winner": "model_b", "response_a": a, "response_b": b}
            for one, other in met
            for prompt, a, b in zip(PROMPTS, texts[one], texts[other], strict=True)
        ],
    )
    record = ratings_of_run(folders, [by_votes(votes)])
    assert record is not None
    assert [one.policy for one in record.suites["judged"].policies] == ["dpo", "sft", "start"]
    assert "`odd` with `start`: not rated" in record.suites["judged"].notes[0]
    assert ratings_of_run({"start": folders["start"]}, [by_votes(votes)]) is None


# ---------------------------------------------------------------- reward models, the report, recipes


def test_by_rewards_every_policy_meets_every_other_and_the_report_shows_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_fake_run(run)
    names = ("start", "sft", "dpo")
    for name in names:
        keep(run / name, ["x" * length for length in (3, 1, 2)], judge="j")
    for name, values in zip(names, ([1.0, 2.0, 3.0], [2.0, 1.0, 3.5], [3.0, 3.0, 4.0]), strict=True):
        path = run / name / "evaluations" / "judged.jsonl"
        lines = [
            {**line, "reward": reward, "completion": f"{name} {reward}"}
            for line, reward in zip(read_jsonl(path), values, strict=True)
        ]
        write_jsonl(path, lines)
    settings = WinRateSuite(name="judged", kind="win_rate", prompts="q.jsonl", reward_model=RewardModelOf(path="judge"))
    record = ratings_of_run({name: run / name for name in names}, [settings])
    assert record is not None
    met = {(one.policy, one.other): one.win_rate.value for one in record.suites["judged"].meetings if one.win_rate}
    assert met == {("dpo", "sft"): 1.0, ("dpo", "start"): 1.0, ("sft", "start"): pytest.approx(2 / 3)}
    write_ratings(run, record)
    contents = read_run(run)
    assert contents.ratings == record
    (shown,) = ratings_view(contents)
    assert (shown.suite, shown.anchor, shown.rows[0].policy) == ("judged", "start", "dpo")
    assert [cell.column for cell in shown.rows[0].cells][::3] == ["rating", "at equal length"]
    from posttrain.report.page import render

    page = render(contents)
    assert 'id="ratings"' in page and "`dpo` won every game" in page.replace("&#96;", "`")
    assert RunFolder(run).path == run


def test_rewards_of_two_reward_models_are_not_compared(tmp_path: Path) -> None:
    of = RewardModelOf(path="judge")
    settings = WinRateSuite(name="judged", kind="win_rate", prompts="q.jsonl", reward_model=of)
    start = keep(tmp_path / "start", ["a", "b", "c"], judge="old", reward=1.0)
    sft = keep(tmp_path / "sft", ["x", "y", "z"], judge="old", reward=2.0)
    dpo = keep(tmp_path / "dpo", ["x", "y", "z"], judge="new", reward=2.0)
    record = ratings_of_run({"start": start, "sft": sft, "dpo": dpo}, [settings])
    assert record is not None and [one.policy for one in record.suites["judged"].policies] == ["sft", "start"]
    assert "`dpo`" in record.suites["judged"].notes[0]


RECIPE = """
model: embedded
evaluate:
  suites:
    - {{name: judged, kind: win_rate, prompts: package://heldout_manners.jsonl, {judge}}}
stages:
  - {{name: sft, method: sft, data: package://demonstrations.jsonl}}
"""


def test_a_recipe_says_who_judges(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    (tmp_path / "votes.jsonl").write_text("{}\n")
    path.write_text(RECIPE.format(judge="judge: {url: 'http://localhost:1/v1', model: m, cache: kept}"))
    (one,) = load_recipe(path).evaluate.suites
    assert isinstance(one, WinRateSuite) and one.judge and one.judge.cache == str(tmp_path / "kept")
    path.write_text(RECIPE.format(judge="votes: votes.jsonl"))
    (one,) = load_recipe(path).evaluate.suites
    assert isinstance(one, WinRateSuite) and one.votes == str(tmp_path / "votes.jsonl")
    for judge, words in (
        ("limit: 3", "nobody judges"),
        ("votes: votes.jsonl, reward_model: x", "both judge"),
        ("votes: vote.jsonl", "not there"),
        ("judge: {url: 'http://k:secret@localhost/v1', model: m}", "credential"),
        ("judge: {model: m}", "url"),
    ):
        path.write_text(RECIPE.format(judge=judge))
        with pytest.raises(ConfigError, match=words):
            load_recipe(path)


def test_what_a_suite_writes_is_what_rate_reads(asked: dict[str, Any], tmp_path: Path) -> None:
    import posttrain as pt

    start, later = keep(tmp_path / "start", ["aa", "b", "c"]), keep(tmp_path / "dpo", ["a", "bbb", "cc"])
    judge_answers(loaded(by_judge()), later, start)
    record = pt.rate(str(later / "evaluations" / "judged.games.jsonl"), anchor="start")
    assert (
        record.games == 6 and record.policies[0].win_rate and record.policies[0].win_rate.value == pytest.approx(2 / 3)
    )
    assert json.loads(json.dumps(record.to_json()))["orders"]["comparisons"] == 3
