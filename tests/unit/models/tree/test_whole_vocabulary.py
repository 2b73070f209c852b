"""What reads whole distributions in the loop: the exact KL of an online row, and distillation (GKD)."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.config.online import GRPO, Online
from posttrain.data.trees import collate, count
from posttrain.errors import ConfigError, ModelError, UnknownKeyError
from posttrain.losses.kl import KLWeight
from posttrain.losses.online import ONLINE, variant
from posttrain.losses.policy import policy_loss
from posttrain.models.tree import projection
from posttrain.models.tree.divergence import Distributions, divergence, spaced_tokens
from posttrain.models.tree.logprobs import Policy
from posttrain.report.online_panels import GROUPS
from posttrain.training.objectives import objective_of
from posttrain.training.step import accumulate
from posttrain.types import Against, Batch, TokenTree, Wants
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, random_trees, tiny_model
from tests.online import lines, loop_of, run, save_start
from tests.online_batches import spread
from tests.unit.models.tree.test_divergence import dense

EXACT = variant(ONLINE["grpo"], kl="exact")
LORA = {"kind": "lora", "rank": 4}


def trees(branches: int = 3, advantage: float = 0.0) -> list[TokenTree]:
    found = random_trees(3, branches=branches, mask_probability=0.7)
    return [spread(tree, torch.full((branches,), advantage)) for tree in found]


def doubles(seed: int) -> Policy:
    return Policy(tiny_model(seed=seed, dtype=torch.float64))


def mean_of_means(values_N: Tensor, batch: Batch) -> Tensor:
    branches = [values_N[batch.branch_N == branch] for branch in range(len(batch.tree_B))]
    return torch.stack([own.mean() if len(own) else own.sum() for own in branches]).mean()


def gradients(policy: Policy, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.model.parameters()))])


@pytest.fixture(params=["tree", "padded"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(projection, "BUFFER_ELEMENTS", 4096)  # several chunks
    return str(request.param)


# ---------------------------------------------------------------- exact KL


def test_exact_kl_is_the_oracles_value_and_gradient(path: str) -> None:
    """In fp64 and with advantages of 0 the loss is beta KL(policy || reference), a mean over responses."""
    policy, reference, batch = doubles(0), doubles(1), collate(trees())
    out = policy_loss(
        EXACT,
        EXACT.resolve({"kl_beta": 0.3}),
        policy(batch, Wants(against=Against(reference, 1.0), temperature=0.7), path=path),
        batch,
        batch.count,
        on_policy=True,
    )
    own, theirs = dense(policy, batch, 0.7), dense(reference, batch, 0.7).detach()
    kl_N = (own.exp() * (own - theirs)).sum(-1)
    oracle = 0.3 * mean_of_means(kl_N, batch)
    assert out.loss.item() == pytest.approx(oracle.item(), rel=1e-6)
    found, expected = gradients(policy, out.loss), gradients(policy, oracle)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    metric = out.metrics["kl_exact_reverse"]
    assert metric.value == pytest.approx(kl_N.mean().item(), rel=1e-6)


def test_exact_kl_by_hand() -> None:
    """Policy (1/2, 1/2), reference (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 0.1438 nats at each token."""

    own = Distributions(torch.zeros(3, 2), None)
    theirs = Distributions(torch.tensor([[0.75, 0.25]] * 3).log(), None)
    assert divergence(own, theirs, 1.0).tolist() == pytest.approx([0.5 * math.log(2 / 3) + 0.5 * math.log(2)] * 3)


def test_a_stated_share_of_the_tokens_is_right_on_average() -> None:
    """Each place of a response is chosen as often as any other, over responses of many contents."""
    chosen: Counter[int] = Counter()
    found = random_trees(400, branches=1, mask_probability=1.0)
    found = [tree for tree in found if tree.num_trained >= 4]
    for tree in found:
        chosen.update(index for index in spaced_tokens(collate([tree]), 4).tolist() if index < 4)
    assert sum(chosen.values()) == len(found)  # of any four neighbours, one
    for place in range(4):
        assert chosen[place] / len(found) == pytest.approx(0.25, abs=0.09)


def test_the_choice_does_not_depend_on_the_micro_batch() -> None:
    several = trees()
    alone: list[int] = []
    before = 0
    for tree in several:
        alone += (spaced_tokens(collate([tree]), 3) + before).tolist()
        before += tree.num_trained
    assert spaced_tokens(collate(several), 3).tolist() == alone
    assert spaced_tokens(collate(several), 1).tolist() == list(range(before))


def test_a_share_counts_for_the_rest() -> None:
    policy, reference, batch = doubles(0), doubles(1), collate(trees())
    whole = policy(batch, Wants(against=Against(reference, 1.0))).divergence_N
    part = policy(batch, Wants(against=Against(reference, 1.0, every=3))).divergence_N
    index_S = spaced_tokens(batch, 3)
    expected = torch.zeros_like(whole)
    expected[index_S] = 3 * whole[index_S]
    torch.testing.assert_close(part, expected)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"), num_hidden_layers=2)


@pytest.mark.parametrize("adapter", [None, LORA])
def test_exact_kl_in_the_loop(start: Path, tmp_path: Path, adapter: Any) -> None:
    """0 at the start, where policy and reference are one; then near the estimate that is logged beside it."""
    options = {"choices": {"kl": "exact"}, "kl_beta": 0.01, "steps": 4, "held_out": 0, "adapter": adapter}
    steps = [r.values for r in run(loop_of(start, tmp_path, **options)).folder.metrics("train")]
    assert abs(steps[0]["kl_exact_reverse"]) < 1e-6 and steps[0]["kl_loss"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["kl_exact_reverse"] > 1e-4
    assert steps[-1]["kl_exact_reverse"] == pytest.approx(steps[-1]["kl_k3_reference"], rel=0.7)
    assert "reference_logprobs" in lines(tmp_path, "rollouts.jsonl")[0]
    drawn = {panel.title: panel for _, _, panels in GROUPS for panel in panels}["KL to the start, exact"]
    assert {name for name, _, _ in drawn.series} == {name for name in steps[0] if name.startswith("kl_exact")}


def test_exact_kl_has_its_own_parameter_and_place() -> None:
    stage = GRPO(data="a.jsonl", choices={"kl": "exact", "parameters": {"kl_every": 4}})
    assert stage.parameters["kl_every"] == 4 and stage.row.needs_reference and stage.row.kl_place == "loss"
    with pytest.raises(ConfigError, match="in a reward only an estimate's value counts"):
        GRPO(data="a.jsonl", choices={"kl": "exact", "kl_place": "reward"})
    with pytest.raises(ConfigError, match="kl_every"):
        GRPO(data="a.jsonl", choices={"kl": "exact", "parameters": {"kl_every": 0.5}})
    with pytest.raises(ConfigError, match="divergence from the reference was not computed"):
        batch = collate(trees())
        policy_loss(EXACT, EXACT.resolve({}), Policy(tiny_model())(batch), batch, batch.count, on_policy=True)


# ---------------------------------------------------------------- distillation


def plain_gkd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Per token, from dense log-probs, in the words of the paper's Eq. 1 with torch's own kl_div."""

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)

    if beta in (0.0, 1.0):
        return kl(teacher, student) if beta == 0 else kl(student, teacher)
    mixture = torch.logsumexp(torch.stack([teacher + math.log(beta), student + math.log(1 - beta)]), 0)
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_gkd_is_the_plain_implementation(path: str, beta: float, reduction: str) -> None:
    policy, teacher, batch = doubles(0), doubles(1), collate(trees())
    policy.path = path  # type: ignore[assignment]
    stage = Online("gkd", teacher="t", beta=beta, reduction=reduction, data="a.jsonl", sampling={"temperature": 0.8})
    objective = objective_of(stage, KLWeight(0.0), Against(teacher, beta))
    out = objective.loss(policy(batch, objective.wants), None, batch, batch.count)
    per_token = plain_gkd(dense(policy, batch, 0.8), dense(teacher, batch, 0.8).detach(), beta)
    expected = per_token.mean() if reduction == "token_mean" else mean_of_means(per_token, batch)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found, oracle = gradients(policy, out.loss), gradients(policy, expected)
    assert (found - oracle).norm() < 1e-5 * oracle.norm()


def test_gkd_by_hand() -> None:
    """Student (1/2, 1/2), teacher (3/4, 1/4), beta 1/2: m = (5/8, 3/8), (0.1367 - 0.1014)/2 + (-0.1116 + 0.1438)/2."""
    half = 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) + 0.5 * (
        0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    )
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    assert plain_gkd(student, teacher, 0.5).item() == pytest.approx(half) == pytest.approx(0.03382, abs=1e-5)
    assert plain_gkd(student, teacher, 0.0).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_gkd_is_the_same_however_a_step_is_cut() -> None:
    several, found = trees(), []
    for budget in (1, 10_000):
        policy = doubles(0)
        stage = Online("gkd", teacher="t", data="a.jsonl")
        objective = objective_of(stage, KLWeight(0.0), Against(doubles(1), 0.5))
        accumulate(policy, None, objective, several, budget, step=0)
        found.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() < 1e-6 * found[1].norm()
    assert count(several).tokens > 0


@pytest.mark.parametrize("adapter", [None, LORA])
def test_gkd_brings_the_policy_to_its_teacher(start: Path, tmp_path: Path, adapter: Any) -> None:
    options = {
        "teacher": str(save_start(tmp_path / "teacher", seed=7, num_hidden_layers=2)),
        "rewards": (),
        "held_out": 0,
        "steps": 12,
    }
    loop = loop_of(start, tmp_path / "run", "gkd", adapter=adapter, **options)
    before = [p.clone() for p in loop.work.algorithm.wants.against.other._policy.parameters()]  # type: ignore[union-attr]
    run(loop)
    away = [record.values["teacher_divergence"] for record in loop.folder.metrics("train")]
    assert sum(away[-3:]) < (0.8 if adapter is None else 0.95) * sum(away[:3]), away
    after = loop.work.algorithm.wants.against.other._policy.parameters()  # type: ignore[union-attr]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_gkd_resumes_bit_for_bit(start: Path, tmp_path: Path) -> None:
    options = {
        "teacher": str(save_start(tmp_path / "teacher", seed=7, num_hidden_layers=2)),
        "rewards": (),
        "checkpoint": {"every_steps": 1},
    }
    whole = run(loop_of(start, tmp_path / "whole", "gkd", steps=3, **options))
    half = loop_of(start, tmp_path / "half", "gkd", steps=3, **options)
    at = half.source.at

    def killed(step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return at(step)

    half.source.at = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(half)
    resumed = run(loop_of(start, tmp_path / "half", "gkd", steps=3, **options))
    pairs = zip(whole.work.policy.parameters(), resumed.work.policy.parameters(), strict=True)
    assert resumed.step == 3 and all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_teacher_with_another_vocabulary_is_refused_before_training(start: Path, tmp_path: Path) -> None:
    tiny_model(vocab=300).save_pretrained(tmp_path / "teacher")
    byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>")).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ModelError, match="vocabularies of different sizes"):
        loop_of(start, tmp_path / "run", "gkd", teacher=str(tmp_path / "teacher"), rewards=())


def test_gkd_keys() -> None:
    made = partial(Online, "gkd", data="a.jsonl")
    assert made(teacher="t").completions_per_prompt == 1
    for wrong in ({"teacher": "t", "beta": 1.5}, {}):
        with pytest.raises(ConfigError):
            made(**wrong)
    with pytest.raises(UnknownKeyError):
        made(teacher="t", kl_beta=0.1)
