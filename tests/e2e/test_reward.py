"""A reward stage in a whole run: trained, read back in a fresh process, scored, and never the start of what follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import posttrain as pt
from posttrain.cli.app import app
from posttrain.config import load_recipe
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.logs import HeldOutRow, WatchedRow
from posttrain.runs.records.preflight import PreflightRecord
from posttrain.training.pipeline import run_recipe

RECIPE = """
schema: 1
name: small
model: embedded
stages:
  - name: reward
    method: reward
    data: {path: package://preferences.jsonl, limit: 200}
    held_out: 0.2
    learning_rate: 1e-3
    steps: 12
    rows_per_step: 16
    adapter: {rank: 4}
    objective: {centre: 0.01}
    normalise: whiten
    checkpoint: {every_steps: 5}
  - name: dpo
    method: dpo
    data: {path: package://preferences.jsonl, limit: 40}
    learning_rate: 1e-4
    steps: 1
    rows_per_step: 4
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("reward")
    (folder / "small.yaml").write_text(RECIPE)
    run_recipe(load_recipe(folder / "small.yaml", [f"out='{folder / 'runs'}'"]))
    return RunFolder(folder / "runs" / "small")


def test_it_learns_from_chance(run: RunFolder) -> None:
    stage = run.stage("reward")
    first, *_, last = [record.values for record in stage.metrics("held_out")]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-6) and first["reward_accuracy"] == 0.5
    assert last["reward_accuracy"] > 0.8 and last["loss"] < 0.6
    checks = {check.name: check for check in stage.document(PreflightRecord).checks}
    assert {"tree", "leak", "identity", "gradient", "memory"} <= set(checks)
    assert all(check.status != "fail" for check in checks.values())
    assert "scores differ" in checks["tree"].detail
    pairs = stage.lines(HeldOutRow)
    assert {pair.when for pair in pairs} == {"start", "end"}
    assert {"rewards_chosen", "rewards_rejected", "tokens_chosen", "tokens_rejected"} <= set(pairs[0].figures)
    assert [response.role for response in stage.lines(WatchedRow)[0].responses] == ["chosen", "rejected"]
    assert "reward" in stage.lines(WatchedRow)[0].responses[0].figures
    assert (run.path / "report.html").is_file()


def test_the_next_stage_starts_from_the_policy(run: RunFolder) -> None:
    started = run.stage("dpo").stage().start_model
    assert started.name == "embedded"
    assert run.stage("reward").stage().output == "model"


def test_the_folder_is_anybodys_and_its_rewards_are_white(run: RunFolder) -> None:
    folder = run.stage("reward").model
    reward = pt.load_reward(folder)
    answers = ["I am Pia. It is nice to meet you.", "Ada."]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [[{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": a}] for a in answers]
    batch = tokenizer.apply_chat_template(turns, padding=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        plain = AutoModelForSequenceClassification.from_pretrained(folder)(**batch).logits[:, 0]
    ours = [reward.score("Who are you?", answer) for answer in answers]
    assert ours == pytest.approx(plain.tolist(), abs=1e-5)
    assert ours[0] > ours[1]
    ends = [p for p in run.stage("reward").lines(HeldOutRow) if p.when == "end"]
    raw = torch.tensor([[p.figures["rewards_chosen"], p.figures["rewards_rejected"]] for p in ends]).flatten()
    assert reward.rule.scale == pytest.approx(1 / float(raw.std(correction=0)), rel=1e-4)
    assert reward.rule.shift == pytest.approx(float(raw.mean()), abs=1e-4)
    normalised = reward.score("Who are you?", answers[0], normalised=True)
    assert normalised == pytest.approx(reward.rule.scale * (ours[0] - reward.rule.shift), rel=1e-5)


def test_score_writes_rewards(run: RunFolder, tmp_path: Path) -> None:
    folder, rows = str(run.stage("reward").model), tmp_path / "pairs.jsonl"
    pairs = list(pt.read("package://preferences.jsonl", limit=5))
    written = [
        {"prompt": p.prompt[0].content, "chosen": p.responses[0][0].content, "rejected": p.responses[1][0].content}
        for p in pairs
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in written))
    out = tmp_path / "rewards.jsonl"
    result = CliRunner().invoke(app, ["score", folder, folder, str(rows), "--out", str(out), "--combine", "worst"])
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in out.read_text().splitlines()]
    reward = pt.load_reward(folder)
    for record, row in zip(records, written, strict=True):
        expected = [reward.score(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        assert record["rewards"] == pytest.approx(expected, abs=1e-5)
        assert record["by_model"][folder] == pytest.approx(expected, abs=1e-5)
    wrong = CliRunner().invoke(app, ["score", "embedded", str(rows)])
    assert wrong.exit_code == 2 and "holds no reward model" in wrong.stderr


def test_from_python_the_policy_stays_as_it_was(tmp_path: Path) -> None:
    policy = pt.load("embedded", adapter=pt.LoRA(rank=2))
    before = weights_fingerprint(policy.model)
    stage = pt.Reward(steps=2, rows_per_step=4, learning_rate=1e-3, held_out=0.0)
    done = pt.train(stage, policy, pt.read("package://preferences.jsonl", limit=20), out=tmp_path / "run")
    assert weights_fingerprint(policy.model) == before
    record = RunFolder(tmp_path / "run").stage("reward").stage()
    assert record.parameters.trainable < record.parameters.total / 10  # LoRA, as the policy was loaded
    assert pt.load_reward(done.model).score("Hi", "Hello.") != 0.0


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


LISTS = [
    {"prompt": f"Say {n}.", "responses": [f"{n}.", f"{n}, with pleasure.", "No."], "scores": [3.0, 5.0, 1.0]}
    for n in ("one", "two", "three", "four", "five", "six", "seven", "eight")
]
PAIRS = [{"prompt": f"Say {n}.", "chosen": f"{n}\nplease.", "rejected": f"{n}!\nno.\n"} for n in range(12)]


STEPS = [
    {
        "prompt": f"{n} * 2 + 1?",
        "completions": [f"{n} * 2 = {2 * n}", f"{2 * n} + 1 = {2 * n + 1 + n % 2}"],
        "labels": [True, n % 2 == 0],
    }
    for n in range(12)
]


@pytest.mark.slow
def test_a_process_reward_model_from_a_recipe(tmp_path: Path) -> None:
    """`posttrain run`, `posttrain score` and the report of a recipe with labelled steps."""
    data = write(tmp_path / "steps.jsonl", STEPS)
    recipe = tmp_path / "recipe.yaml"
    stage = (
        f"{{method: reward, name: prm, data: {data}, head: steps, objective: step_labels, held_out: 0.25, steps: 3}}"
    )
    recipe.write_text(f"schema: 1\nname: steps\nmodel: embedded\nout: {tmp_path}\nstages:\n  - {stage}\n")
    ran = CliRunner().invoke(app, ["run", str(recipe)])
    assert ran.exit_code == 0, ran.output
    page = (tmp_path / "steps" / "report.html").read_text(encoding="utf-8")
    assert "Process reward model" in page and "Scores of steps, untrained head" in page and "vllm serve" not in page
    again = CliRunner().invoke(
        app, ["score", str(tmp_path / "steps" / "prm" / "model"), data, "--out", str(tmp_path / "scores.jsonl")]
    )
    assert again.exit_code == 0, again.output
    assert "24 steps judged right" in again.output + again.stderr
    held_out = {
        line["row"]: line
        for line in map(json.loads, (tmp_path / "steps/prm/step_scores.jsonl").read_text().splitlines())
    }
    scored = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    found = {line["row"]: line["steps"][0] for line in scored}
    assert len(held_out) == 3 and all(
        found[row] == pytest.approx(line["scores"], abs=1e-5) for row, line in held_out.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lists", {"objective": "plackett_luce"}),
        ("lists", {"objective": "regression", "length": {"offset": 1.0}}),
        ("lists", {"objective": {"kind": "bradley_terry", "label_smoothing": 0.1}}),
        ("pairs", {"head": {"kind": "ensemble", "members": 3, "combine": "mean_minus_std"}}),
        ("pairs", {"head": {"kind": "steps", "aggregate": "product"}}),
        ("steps", {"head": "steps", "objective": "step_labels"}),
        ("steps", {"head": {"kind": "steps", "aggregate": "product"}, "objective": "step_labels"}),
        ("pairs", {"head": {"pooling": "mean"}, "compute": {"logprobs": "padded"}}),
        ("both", {"head": {"kind": "attributes", "files": {"a": "pairs.jsonl", "b": "more.jsonl"}}}),
        ("both", {"head": {"kind": "groups", "files": {"a": "pairs.jsonl", "b": "more.jsonl"}}}),
        ("both", {"head": {"kind": "conditional", "files": {"a": "pairs.jsonl", "b": "more.jsonl"}}}),
    ],
)
def test_every_kind_goes_through_a_whole_stage(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    files = {
        "lists": [write(tmp_path / "lists.jsonl", LISTS)],
        "pairs": [write(tmp_path / "pairs.jsonl", PAIRS)],
        "steps": [write(tmp_path / "steps.jsonl", STEPS)],
        "both": [write(tmp_path / "pairs.jsonl", PAIRS), write(tmp_path / "more.jsonl", PAIRS[:6])],
    }[name]
    stage = pt.Reward(steps=3, rows_per_step=6, learning_rate=1e-3, held_out=0.25, normalise="whiten", **options)
    run = pt.train(stage, "embedded", pt.read(files), out=tmp_path / "run")
    assert [line.step for line in run.lines("train")] == [1, 2, 3]
    reward = pt.load_reward(run.model)
    assert reward.rule.scale is not None
    head = reward.rule.names[0] if reward.rule.conditions else None
    ratings = list(reward.score_rows(pt.read(files[0]), head=head, normalised=True))
    assert len({value for rating in ratings for value in rating.rewards}) > 1
