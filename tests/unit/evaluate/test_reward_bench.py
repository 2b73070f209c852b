"""RewardBench 2: rows by name, best of four and Ties by hand, and the benchmark's own arithmetic as an oracle."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from posttrain.cli import reward_rows
from posttrain.cli.app import app
from posttrain.errors import DataError, RowError
from posttrain.evaluate.reward_bench import looks_like_reward_bench, read_reward_bench, score_reward_bench
from posttrain.models.reward.scoring import Rating
from posttrain.types import Comparison, RowRef

MATH = {
    "id": "1",
    "prompt": "2 + 2?",
    "chosen": ["4"],
    "rejected": ["5", "3", "22"],
    "num_correct": 1,
    "subset": "Math",
}


def tie(kind: str, number: int, right: int = 2) -> dict[str, Any]:
    answers = [str(place) for place in range(right)]
    return {
        "id": f"{kind}:{number}",
        "prompt": "A colour?",
        "chosen": answers,
        "rejected": ["x", "y"],
        "subset": "Ties",
    }


def test_best_of_four_by_hand() -> None:
    rows = read_reward_bench([MATH] * 4 + [{**MATH, "subset": "Focus"}])
    rewards = [[2, 1, 0, 1], [1, 2, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [3, 1, 1, 1]]
    record = score_reward_bench(rows, rewards)
    assert record.domains["Math"].value == pytest.approx((1 + 0 + 1 / 3 + 1 / 4) / 4)
    assert record.domains["Focus"].value == 1.0 and record.domains["Focus"].low == pytest.approx(0.2065, abs=1e-3)
    assert record.average and record.average.value == pytest.approx((0.395833 + 1) / 2, abs=1e-5)
    assert record.chance == {"Math": 0.25, "Focus": 0.25} and record.prompts == 5 and record.ties == {}


def reference_ties(rows: Sequence[dict[str, Any]], rewards: Sequence[Sequence[float]]) -> float:
    """The score as the paper's appendix states it, a prompt at a time."""
    stats: dict[tuple[str, str], tuple[bool, float, float]] = {}
    for row, own in zip(rows, rewards, strict=True):
        right, wrong = own[: len(row["chosen"])], own[len(row["chosen"]) :]
        kind, number = row["id"].split(":")
        stats[kind, number] = (min(right) > max(wrong), min(right) - max(wrong), max(right) - min(right))
    of = {kind: {n: value for (k, n), value in stats.items() if k == kind} for kind in ("tied", "ref")}
    both = sorted(set(of["tied"]) & set(of["ref"]))
    gaps = [(of["tied"][n][1], of["ref"][n][1], of["tied"][n][2]) for n in both]
    return (
        0.3 * float(np.mean([value[0] for value in of["tied"].values()]))
        + 0.3 * float(np.mean([value[0] for value in of["ref"].values()]))
        + 0.2 * float(np.mean([gap > spread for gap, _, spread in gaps]))
        + 0.2 * float(np.mean([min(gap, ref) > spread for gap, ref, spread in gaps]))
        + 0.01 * float(np.mean([math.tanh(min(gap, ref) / spread - 1) for gap, ref, spread in gaps]))
    )


def test_ties_by_hand_and_by_the_papers_formula() -> None:
    rows = [tie("tied", 1), tie("ref", 1, right=1)]
    # Right answers 1.0 apart, the worst of them 2 above the best wrong one; in `ref` 0.5 above.
    record = score_reward_bench(read_reward_bench(rows), [[4, 3, 1, 0], [2, 1.5, 0]])
    assert record.domains["Ties"].value == pytest.approx(0.3 + 0.3 + 0.2 + 0 + 0.01 * math.tanh(-0.5))
    assert {name: part.value for name, part in record.ties.items()} == {
        "tied": 1.0,
        "ref": 1.0,
        "preferred": 1.0,
        "preferred_hard": 0.0,
        "margin": pytest.approx(math.tanh(-0.5)),
    }
    rng = np.random.default_rng(0)
    many = [tie(kind, number, right=3 if kind == "tied" else 1) for number in range(30) for kind in ("tied", "ref")]
    many = many[:-1]  # a tied prompt without its partner counts in `tied` alone
    rewards = [
        list(rng.normal(size=len(row["chosen"]) + 2) + np.r_[np.full(len(row["chosen"]), 2.0), 0, 0]) for row in many
    ]
    found = score_reward_bench(read_reward_bench(many), rewards).domains["Ties"]
    assert found.value == pytest.approx(reference_ties(many, rewards))
    assert found.low and found.high and found.low < found.value < found.high and found.n == 30


def test_equal_rewards_of_all_right_answers_have_no_infinite_margin() -> None:
    rows = read_reward_bench([tie("tied", 1), tie("ref", 1, right=1), tie("tied", 2), tie("ref", 2, right=1)])
    record = score_reward_bench(rows, [[2, 2, 1, 0], [2, 1, 0], [1, 1, 1, 1], [1, 1, 1]])
    assert record.ties["margin"].value == 0.5, "1 where right answers lie above, 0 for 0 / 0"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "1", "chosen": "4", "rejected": "5"}, "not of RewardBench 2"),
        ({**MATH, "chosen": []}, "not of RewardBench 2"),
        ({**MATH, "rejected": ["5", None]}, "no text"),
        ({**MATH, "num_correct": 2}, "`num_correct`"),
        ({**MATH, "prompt": 3}, "`prompt` is no prompt"),
        ({**MATH, "subset": ""}, "`subset`"),
        ({**MATH, "subset": "Ties"}, "another form"),
        (tie("tied", 1, right=1), "one right answer"),
    ],
)
def test_a_bad_row_is_refused_by_name(row: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words) as error:
        read_reward_bench([MATH, row])
    assert "row 2" in str(error.value.where)


def test_rewards_that_cannot_be_ranked_are_refused_by_row() -> None:
    rows = read_reward_bench([MATH, MATH])
    for odd in ([1.0, 2.0], [1.0, float("nan"), 0.0, 0.0]):
        with pytest.raises(DataError, match="cannot be ranked") as error:
            score_reward_bench(rows, [[4, 3, 2, 1], odd])
        assert "row 2" in str(error.value.where)


class LongestWins:
    """A reward model that counts letters."""

    name = "letters"

    def score_rows(self, examples: Sequence[Comparison], **options: Any) -> Any:
        for example in examples:
            lengths = [len(response[-1].content or "") for response in example.responses]
            yield Rating(example.row, tuple(map(float, lengths)), tuple(lengths), None)


def test_score_tells_the_layout_and_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_rows, "open_models", lambda *arguments: [LongestWins()])
    file, out = tmp_path / "bench.jsonl", tmp_path / "out.jsonl"
    long = {**MATH, "chosen": ["four, that is"]}
    file.write_text("".join(json.dumps(row) + "\n" for row in (long, MATH, tie("tied", 1), tie("ref", 1, right=1))))
    assert looks_like_reward_bench(str(file))
    assert not looks_like_reward_bench([{"prompt": "1", "chosen": "4", "rejected": "5", "subset": "x"}])
    result = CliRunner().invoke(app, ["score", "embedded", str(file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "RewardBench 2" in result.stderr and "Math" in result.stderr and "chance 25.0 %" in result.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    told = [(line["subset"], line["right"], "best" in line) for line in lines]
    assert told[1:3] == [("Math", 1, False), ("Ties", 2, False)]
    record = json.loads((tmp_path / "out.reward_bench.json").read_text())
    assert record["domains"]["Math"]["value"] == 0.5
    limited = CliRunner().invoke(app, ["score", "embedded", str(file), "--limit", "1"])
    assert "1 rows" in limited.stderr and len(limited.stdout.splitlines()) == 1
    assert str(RowRef(str(file), 1)) == lines[0]["row"]
