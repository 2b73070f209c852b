"""Process reward models: where steps end, what their labels cost; a stage that learns, is judged, saved and read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.cli.reward_rows import Tally, scored_rows
from posttrain.config import Reward
from posttrain.data import read
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.reward_encode import RewardEncoder
from posttrain.data.step_ends import step_ends
from posttrain.data.store import encode
from posttrain.data.trees import collate
from posttrain.errors import ConfigError, EncodingError, RowError
from posttrain.evaluate.steps import StepScores, evaluate_steps
from posttrain.losses.process import step_loss
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders.export import ExportSettings
from posttrain.models.reward.export import _write
from posttrain.models.reward.scoring import load_reward
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.outputs import Scores
from posttrain.runs.files import read_json, read_jsonl
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.objectives import objective_of
from posttrain.training.stages.reward import check_start, encoder_of
from posttrain.training.stages.reward_evaluation import untrained_scores, write_evaluation
from posttrain.training.step import accumulate
from posttrain.training.work import Work
from posttrain.types import Batch, Message, RowRef, StepwiseFeedback, TokenTree
from tests.fixtures import bpe_tokenizer, byte_tokenizer, tiny_model
from tests.training import run_loop

RULE = RewardRule("steps", steps="min", step_mark="\n")
TOKENIZER = byte_tokenizer("CHATML")


def row_of(steps: tuple[str, ...], labels: tuple[float | None, ...], row: int = 1) -> StepwiseFeedback:
    return StepwiseFeedback((Message("user", "Hi"),), steps, labels, RowRef("steps.jsonl", row))


def encoded(row: StepwiseFeedback, tokenizer: Any = TOKENIZER, **settings: Any) -> TokenTree:
    (tree,) = RewardEncoder(tokenizer, EncoderSettings(**settings), RULE, "steps").example(row).trees
    return tree


def segments(tree: TokenTree, tokenizer: Any = TOKENIZER) -> list[str]:
    """The response's text up to each scored token, from the one before."""
    (branch,) = tree.branches
    ends = [0, *(int(place) + 1 for place in branch.loss_mask.nonzero()[0])]
    return [tokenizer.decode(branch.ids[start:end]) for start, end in pairwise(ends)]


# ---------------------------------------------------------------- where steps end


@pytest.mark.parametrize(("tokenizer", "template"), [(TOKENIZER, "chat"), (bpe_tokenizer(), "raw")])
def test_each_step_is_scored_at_its_own_end(tokenizer: Any, template: str) -> None:
    """Also where a step holds the mark, repeats another, or has characters of several tokens."""
    steps = ("a\nb", "a", "a", "naïve 🙂", "c")
    tree = encoded(row_of(steps, (1.0, 0.0, 1.0, 0.0, 1.0)), tokenizer, template=template)
    assert tree.step_labels == (1.0, 0.0, 1.0, 0.0, 1.0)
    found = segments(tree, tokenizer)
    assert [text.removesuffix("\n") for text in found[:-1]] == list(steps[:-1])
    assert found[-1].startswith("c<")


def test_a_step_without_a_label_is_not_scored_in_training() -> None:
    tree = encoded(row_of(("a", "b", "c"), (1.0, None, 0.0)))
    assert tree.step_labels == (1.0, 0.0) and tree.num_trained == 2
    assert segments(tree)[0] == "a\n" and segments(tree)[1].startswith("b\nc")
    assert encoded(row_of(("a", "b"), (1.0, None))).num_trained == 1


def test_labels_are_part_of_the_key() -> None:
    keys = {encoded(row_of(("a", "b"), labels)).key for labels in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))}
    assert len(keys) == 3


def test_what_is_cut_off_has_no_label() -> None:
    row = row_of(("first", "second", "third"), (1.0, 0.0, 1.0))
    whole = encoded(row)
    tree = encoded(row, max_length=whole.num_tokens - 6, truncation="per_side_budget")
    assert tree.step_labels == (1.0, 0.0) and segments(tree) == ["first\n", "second\n"]
    with pytest.raises(RowError, match="no step with a label is left"):
        encoded(row, max_length=whole.num_tokens - 16, truncation="per_side_budget")


def test_steps_that_the_tokens_do_not_hold_are_refused() -> None:
    def decode(ids: Any) -> str:
        return "".join(map(chr, ids))

    ids = [ord(c) for c in "one\ntwo"]
    assert step_ends(decode, ids, ["one", "two"], "\n") == [3, 6]
    with pytest.raises(EncodingError, match="step 2 of the response is not in its tokens"):
        step_ends(decode, ids, ["one", "three"], "\n")
    with pytest.raises(EncodingError, match="end with the same token"):
        step_ends(lambda ids: "one\ntwo" if len(ids) else "", [5], ["one", "two"], "\n")
    assert step_ends(decode, ids, ["one", "twofold"], "\n", cut=True) == [3]


def test_labels_survive_the_store(tmp_path: Path) -> None:
    rows = [row_of(("a", "b"), (1.0, 0.5), 1), row_of(("c",), (0.0,), 2), row_of(("d", "e", "f"), (1.0, None, 0.0), 3)]
    encoder = RewardEncoder(TOKENIZER, rule=RULE, needs="steps")
    for _ in range(2):  # written, then found again
        stored = encode(rows, encoder, store=tmp_path)
        assert [tree.step_labels for tree in stored] == [(1.0, 0.5), (0.0,), (1.0, 0.0)]
        assert [tree.step_labels for tree in stored[[2, 0]]] == [(1.0, 0.0), (1.0, 0.5)]
    assert stored.reused
    batch = collate(list(stored))
    assert batch.step_labels_N is not None and batch.step_labels_N.tolist() == [1.0, 0.5, 0.0, 1.0, 0.0]


# ---------------------------------------------------------------- the loss


def batch_of(*labels: tuple[float, ...]) -> Batch:
    return collate([encoded(row_of(tuple("abcdef"[: len(own)]), own, row)) for row, own in enumerate(labels, 1)])


def loss_of(scores: list[float] | torch.Tensor, batch: Batch, tokens: int | None = None) -> Any:
    values = torch.as_tensor(scores, dtype=torch.float64)[:, None]
    whole = Scores(torch.zeros(batch.num_branches, 1, dtype=torch.float64), values, batch.branch_N)
    denominator = batch.count if tokens is None else replace(batch.count, tokens=tokens)
    return step_loss(RULE, whole, batch, denominator)


def test_the_loss_by_hand() -> None:
    """log(1 + e^-2) = 0.126928, log(1 + e^1) = 1.313262, log 2 = 0.693147; label 0.25 at score 1: 1.313262 - 0.25."""
    batch = batch_of((1.0, 0.0), (1.0,))
    assert float(loss_of([2.0, 1.0, 0.0], batch).loss) == pytest.approx((0.126928 + 1.313262 + 0.693147) / 3, abs=1e-6)
    assert float(loss_of([2.0, 1.0, 0.0], batch, tokens=6).loss) == pytest.approx(2.133337 / 6, abs=1e-6)
    assert float(loss_of([1.0], batch_of((0.25,))).loss) == pytest.approx(1.063262, abs=1e-6)
    assert float(loss_of([0.0], batch_of((0.25,))).loss) == pytest.approx(math.log(2))


def test_the_gradient_is_probability_minus_label() -> None:
    batch = batch_of((1.0, 0.0, 0.5))
    scores = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss_of(s, batch).loss, (scores,))
    loss_of(scores, batch).loss.backward()
    expected = (scores.detach().sigmoid() - torch.tensor([1.0, 0.0, 0.5])) / 3
    torch.testing.assert_close(scores.grad, expected)


def test_accuracies_by_hand() -> None:
    """Row 1: right, wrong, right, scored +, -, -: the first error is found, 2 of 3. Row 2: no error, called wrong."""
    metrics = loss_of([1.0, -1.0, -1.0, -0.5, 1.0], batch_of((1.0, 0.0, 1.0), (1.0, 1.0))).metrics
    assert metrics["step_accuracy"].value == pytest.approx(3 / 5)
    assert metrics["first_error_accuracy"].value == pytest.approx(1 / 2)
    assert metrics["right_steps"].value == pytest.approx(4 / 5)
    tie = loss_of([0.0, 0.0], batch_of((1.0, 0.0))).metrics
    assert tie["step_accuracy"].value == 0.5


def test_rows_or_a_head_without_steps_are_refused() -> None:
    batch = batch_of((1.0,))
    with pytest.raises(ConfigError, match="no score per step"):
        step_loss(RULE, Scores(torch.zeros(1, 1)), batch, batch.count)
    with pytest.raises(ConfigError, match="no labels in the rows"):
        step_loss(
            RULE,
            Scores(torch.zeros(1, 1), torch.zeros(1, 1), batch.branch_N),
            replace(batch, step_labels_N=None),
            batch.count,
        )
    with pytest.raises(ConfigError, match="head: steps"):
        Reward(objective="step_labels")


def test_every_split_gives_the_same_step() -> None:
    trees = [encoded(row_of(tuple("abcdef"[:n]), (1.0, 0.0, 1.0, 0.3, 1.0, 0.0)[:n], n)) for n in (1, 2, 3, 5, 6)]
    model = with_head(tiny_model("llama", vocab=len(TOKENIZER)), init="normal")
    stage = Reward(head="steps", objective="step_labels")
    found = []
    for budget in (10_000, 60, 1):
        policy = ScoreModel.of(model, stage.rule)
        policy.zero_grad()
        measured = accumulate(policy, None, objective_of(stage), trees, budget, step=0)
        found.append((measured.metrics["loss"].value, torch.cat([p.grad.flatten() for p in policy.parameters()])))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert float((gradient - found[0][1]).norm() / found[0][1].norm()) < 1e-5


# ---------------------------------------------------------------- the figures


def test_the_evaluation_by_hand() -> None:
    """Four responses: error found; error missed; no error and none called; no error but one called."""
    scores = [[1.0, -1.0], [1.0, 1.0, -1.0], [2.0], [1.0, -2.0]]
    labels = [[1.0, 0.0], [1.0, 0.0, 0.0], [1.0], [1.0, 1.0]]
    rows = [RowRef("steps.jsonl", row) for row in range(1, 5)]
    record = evaluate_steps(
        StepScores.of(scores, labels, rows), untrained=StepScores.of([[0.0] * len(own) for own in labels], labels, rows)
    )
    assert (record.responses, record.steps) == (4, 8)
    values = {name: figure.value for name, figure in record.trained.items()}
    assert values["step_accuracy"] == pytest.approx(6 / 8)
    assert values["first_error_accuracy"] == pytest.approx(2 / 4)
    assert (values["error_found"], values["no_error_found"]) == (0.5, 0.5)
    assert values["first_error_f1"] == pytest.approx(0.5)
    assert values["right_steps"] == pytest.approx(5 / 8)
    before = {name: figure.value for name, figure in record.untrained.items()}
    assert (before["step_accuracy"], before["error_found"], before["no_error_found"]) == (0.5, 0.0, 1.0)
    assert record.gain["step_accuracy"].value == pytest.approx(2 / 8)
    assert record.gain["first_error_accuracy"].value == pytest.approx(0.0)


# ---------------------------------------------------------------- a stage


def sums(path: Path, rows: int, first: int = 0) -> Path:
    """Two-step solutions whose step says `ok` where it is right and `no` where it is wrong."""
    lines = []
    for index in range(first, first + rows):
        labels = [index % 3 != 0, index % 2 == 0]
        steps = [f"{index}{place} {'ok' if label else 'no'}" for place, label in enumerate(labels)]
        lines.append(json.dumps({"prompt": f"{index}?", "completions": steps, "labels": labels}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_stage_learns_is_judged_saved_and_scores_the_same(tmp_path: Path) -> None:
    stage = Reward(
        head={"kind": "steps", "aggregate": "product"},
        objective="step_labels",
        learning_rate=2e-2,
        rows_per_step=8,
        steps=30,
        log={"samples_every": 20},
    )
    encoder = encoder_of(stage, TOKENIZER, EncoderSettings())
    store = tmp_path / "encoded"
    rows = encode(read(sums(tmp_path / "train.jsonl", 24)), encoder, store=store)
    held_out = encode(read(sums(tmp_path / "test.jsonl", 12, first=50)), encoder, store=store)
    causal = tiny_model("llama", vocab=len(TOKENIZER))
    policy = ScoreModel.of(with_head(causal, pad_token_id=TOKENIZER.pad_token_id), stage.rule)
    work = Work(stage, objective_of(stage), policy, None, rows, held_out, encoder, 400, None, 0, "the same")
    start = check_start(policy, work.algorithm, rows)
    assert start.status == "pass" and start.evidence["expected_loss"] == pytest.approx(math.log(2))

    untrained = untrained_scores(work)
    run_loop(work, tmp_path / "run")
    write_evaluation(work, encoder, StageFolder(tmp_path / "run"), untrained=untrained, steps=30, progress=Progress())
    record = read_json(tmp_path / "run" / "step_evaluation.json")
    assert record["trained"]["step_accuracy"]["value"] > 0.9 > record["untrained"]["step_accuracy"]["value"]
    assert record["trained"]["first_error_accuracy"]["value"] > 0.9
    lines = read_jsonl(tmp_path / "run" / "step_scores.jsonl")
    assert len(lines) == 12 and lines[0]["labels"] == list(held_out[0].step_labels or ())
    assert not (tmp_path / "run" / "reward_evaluation.json").exists()

    settings = ExportSettings(merge=True, stop_ids=(), info={})
    folder = tmp_path / "model"
    folder.mkdir()
    _write(policy.model, TOKENIZER, folder, settings, None, rule=stage.rule, encoding=encoder.given, statistics={})
    examples = read(tmp_path / "test.jsonl")
    with Progress().phase("scoring") as phase:
        scored = list(scored_rows([load_reward(folder)], examples, "mean", 1.0, None, False, phase))
    tally = Tally()
    for written, found in zip(lines, scored, strict=True):
        assert found["steps"][0] == pytest.approx(written["scores"], abs=1e-5)
        assert found["rewards"][0] == pytest.approx(
            sum(-math.log1p(math.exp(-score)) for score in written["scores"]), abs=1e-4
        )
        tally.counted(found)
    assert f"{record['trained']['step_accuracy']['value']:.1%} of 24 steps judged right" in str(tally)
