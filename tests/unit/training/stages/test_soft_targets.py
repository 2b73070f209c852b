"""`distil_sft`: the loss by hand, and a stage that follows its teacher."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import posttrain as pt
from posttrain.config.stages import DistilSFT
from posttrain.data.trees import collate
from posttrain.errors import ConfigError, ModelError
from posttrain.losses.distillation import soft_target_loss
from posttrain.losses.sft import sft_loss
from posttrain.models.tree.logprobs import Policy
from posttrain.outputs import TokenLogprobs
from posttrain.runs.files import read_jsonl
from posttrain.training.rl.teacher import Teacher
from posttrain.training.stages.soft_targets import require_same_tokens
from posttrain.types import Against, Count, Wants
from tests.fixtures import byte_tokenizer, random_trees, tiny_model

ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(8)
]


def saved(folder: Path, seed: int, template: str = "CHATML") -> str:
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(template, eos="<|im_end|>", pad_is_eos=True)
    model = tiny_model("llama", vocab=len(tokenizer))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_loss_by_hand() -> None:
    # Two trained tokens. Teacher (1/2, 1/2) and policy (4/5, 1/5): KL = ln(5/8)/2 + ln(5/2)/2 = 0.2231436.
    kl = 0.5 * math.log(5 / 8) + 0.5 * math.log(5 / 2)
    assert kl == pytest.approx(0.2231436)
    tree = random_trees(1, vocab=97, branches=1, seed=0)[0]
    batch = collate([tree])
    tokens = batch.count.tokens
    given = TokenLogprobs(
        torch.full((tokens,), math.log(0.2), dtype=torch.float64),
        divergence_N=torch.full((tokens,), kl, dtype=torch.float64),
    )
    step = Count(2 * tokens, 2, 2)  # the other half of the step is elsewhere
    assert float(soft_target_loss(given, batch, step).loss) == pytest.approx(kl / 2)
    mixed = soft_target_loss(given, batch, step, weight=0.25)
    assert float(mixed.loss) == pytest.approx((0.25 * kl + 0.75 * math.log(5)) / 2)
    assert mixed.metrics["teacher_divergence"].value == pytest.approx(kl)
    assert mixed.metrics["nll"].value == pytest.approx(math.log(5))


def test_the_divergence_is_the_forward_kl_of_whole_distributions() -> None:
    policy, teacher = (tiny_model("llama", vocab=97, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.mul_(1.3)
    batch = collate(random_trees(2, vocab=97, branches=1, seed=1))
    given = Policy(policy)(batch, Wants(against=Against(Teacher(Policy(teacher)), 0.0)))

    def log_probs(model: torch.nn.Module) -> torch.Tensor:
        rows = []
        for index, target in zip(batch.predictor_index_N.tolist(), batch.target_index_N.tolist(), strict=True):
            node = next(node for node in batch.nodes if node.start <= target < node.end)
            before = batch.nodes[node.parent]
            path = [*range(before.start, before.end), *range(node.start, target)]
            assert path[-1] == index
            rows.append(torch.log_softmax(model(batch.input_ids_T[path][None]).logits[0, -1], -1))
        return torch.stack(rows)

    p_NV, q_NV = log_probs(teacher), log_probs(policy)
    expected_N = (p_NV.exp() * (p_NV - q_NV)).sum(-1)
    # Rotary angles are fp32 in both, whatever the weights are.
    torch.testing.assert_close(given.divergence_N, expected_N, rtol=1e-5, atol=1e-6)
    # At weight 0 it would be imitation of the tokens alone.
    near = soft_target_loss(given, batch, batch.count, weight=1e-12).loss
    torch.testing.assert_close(near, sft_loss(given, batch, batch.count).loss)


def test_a_stage_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    student, teacher = saved(tmp_path / "student", 0), saved(tmp_path / "teacher", 1)
    stage = DistilSFT(teacher=teacher, steps=12, rows_per_step=8, learning_rate=5e-3, held_out=0)
    pt.train(stage, student, ROWS, out=tmp_path / "run", progress=False)
    lines = [line for line in run_lines(tmp_path / "run") if "teacher_divergence" in line]
    assert lines[-1]["teacher_divergence"] < 0.8 * lines[0]["teacher_divergence"]
    assert lines[0]["loss"] == pytest.approx(lines[0]["teacher_divergence"])


def test_a_model_that_is_its_own_teacher_learns_nothing(tmp_path: Path) -> None:
    student = saved(tmp_path / "student", 0)
    stage = DistilSFT(teacher=student, steps=1, rows_per_step=8, held_out=0)
    pt.train(stage, student, ROWS, out=tmp_path / "run", progress=False)
    (line,) = [line for line in run_lines(tmp_path / "run") if "teacher_divergence" in line]
    assert abs(line["teacher_divergence"]) < 1e-6 and line["grad_norm"] < 1e-4 and line["nll"] > 1


def run_lines(folder: Path) -> list[dict[str, float]]:
    (path,) = folder.rglob("metrics.jsonl")
    return [line.get("values", line) for line in read_jsonl(path)]


def test_a_teacher_of_other_tokens_is_refused() -> None:
    own = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1})
    stage = DistilSFT(teacher="big")
    require_same_tokens(own, own, stage)
    for other in ({"a": 1, "b": 0}, {"a": 0}, {"a": 0, "b": 1, "c": 2}):
        with pytest.raises(ModelError, match="another tokenizer"):
            require_same_tokens(SimpleNamespace(get_vocab=lambda other=other: other), own, stage)


def test_a_teacher_of_another_template_has_other_tokens(tmp_path: Path) -> None:
    student, teacher = saved(tmp_path / "student", 0), saved(tmp_path / "teacher", 1, "LLAMA3_LIKE")
    with pytest.raises(ModelError, match="another tokenizer"):
        pt.train(DistilSFT(teacher=teacher, steps=1, held_out=0), student, ROWS, out=tmp_path / "run", progress=False)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="`teacher` is missing"):
        DistilSFT()
    with pytest.raises(ConfigError, match="weight"):
        DistilSFT(teacher="big", weight=0)
