"""T89: whatever scores runs on a path that was proven for it: reward models, judges, teachers, critics, references.

Bloom adds ALiBi to its attention scores, which the token tree does not know: scored there without a proof, every
response got the same reward, or a wrong one, and nobody was told.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from benchmarks.families import pairs, plain
from benchmarks.tiny_families import tiny_family
from posttrain.cli.app import app
from posttrain.data.trees import collate
from posttrain.evaluate.reward_scorers import open_scorer
from posttrain.evaluate.suites.perplexity import FixedAnswer, FixedAnswerScorer
from posttrain.models.reference import LiveReference
from posttrain.models.reward.scoring import load_reward
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.value import value_model
from posttrain.rewards.model import RatingModel
from posttrain.rollout.engine import FinishReason
from posttrain.training.rl.teacher import load_teacher
from posttrain.types import Message, RowRef, Task
from tests.fixtures import byte_tokenizer, tiny_model

PROMPT, ANSWERS = "Who are you?", ("I am Pia.", "Nobody, and you? Tell me all about yourself.")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A public reward model on a Bloom backbone."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = byte_tokenizer(template="CHATML", eos="<|im_end|>")
    model = tiny_family("bloom", vocab_size=len(tokenizer))
    with_head(model, ("LABEL_0",), init="normal", pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_scores(folder: Path) -> list[float]:
    """What anybody gets from `transformers`, one row at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for answer in ANSWERS:
        turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]
        row = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            found.append(float(model(**row).logits[0, 0]))
    return found


def test_posttrain_score(judge: Path, tmp_path: Path) -> None:
    rows, out = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    rows.write_text(json.dumps({"prompt": PROMPT, "chosen": ANSWERS[0], "rejected": ANSWERS[1]}) + "\n")
    result = CliRunner().invoke(app, ["score", str(judge), str(rows), "--out", str(out)])
    assert result.exit_code == 0, result.output
    expected = plain_scores(judge)
    assert json.loads(out.read_text())["rewards"] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-2


def test_load_reward_judge_and_reward_function(judge: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = plain_scores(judge)
    with caplog.at_level(logging.WARNING, logger="posttrain.models"):
        loaded = load_reward(judge)
        assert [loaded.score(PROMPT, answer) for answer in ANSWERS] == pytest.approx(expected, abs=1e-5)
    (said,) = {record.getMessage() for record in caplog.records}
    assert said.startswith("BloomForSequenceClassification runs padded: its layers have an attention of their own")
    prompt = (Message("user", PROMPT),)
    assert open_scorer(judge, device="cpu").score([prompt] * 2, ANSWERS) == pytest.approx(expected, abs=1e-5)
    reward = RatingModel(str(judge))
    task = Task(prompt, None, RowRef("tasks", 1))
    found = reward([prompt] * 2, ANSWERS, [task] * 2, groups=[0, 0], finishes=[FinishReason.STOP_TOKEN] * 2)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["bloom", "gpt_oss", "qwen3_next"])
def test_a_teacher_of_another_architecture(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student runs on the tree; its teacher ran there too, by up to 1.9 nats off."""
    student, model = Policy(tiny_model("llama", vocab=128)), tiny_family(family)
    student.prove(pairs())
    loaded = type("Loaded", (), {"model": model})
    monkeypatch.setattr("posttrain.training.rl.teacher.load", lambda *args, **options: loaded)
    progress: Any = type("Silent", (), {"say": lambda self, line: None})()
    found = load_teacher("teacher", student, progress).logprobs(collate(pairs()))
    torch.testing.assert_close(found, plain(model, pairs()).detach(), atol=2e-5, rtol=0)


def test_every_other_forward_of_a_padded_family() -> None:
    """Policy, live reference, critic and perplexity, each made by itself and asked first of all."""
    model, trees = tiny_family("bloom"), pairs()
    expected = plain(model, trees).detach()
    for policy in (Policy(model), Policy(model, autocast=torch.bfloat16)):
        policy(collate(trees))
        assert policy.path == "padded"
    torch.testing.assert_close(Policy(model)(collate(trees)).logprobs_N.detach(), expected, atol=2e-5, rtol=0)
    reference = LiveReference(Policy(model))
    torch.testing.assert_close(reference.logprobs(collate(trees)), expected, atol=2e-5, rtol=0)
    values = value_model(Policy(model))
    values(collate(trees))
    assert values.path == "padded"
    answers = [
        FixedAnswer(tuple(t.prompt_ids.tolist()), tuple(t.branches[0].ids.tolist()), "stop_token") for t in trees
    ]
    rows = expected.split([len(branch.ids) for tree in trees for branch in tree.branches])
    assert FixedAnswerScorer(model).nats(answers) == pytest.approx([-float(row.sum()) for row in rows[::2]], abs=1e-3)


def test_a_model_that_the_tree_serves_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    model = ScoreModel(with_head(tiny_model("llama", vocab=128), init="normal"))
    with caplog.at_level(logging.WARNING, logger="posttrain.models"):
        model(collate(pairs()))
    assert model.path == "tree" and not caplog.records
