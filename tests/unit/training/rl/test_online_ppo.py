"""PPO in the loop: where the score and the KL stand, the values' clip, the entropy bonus, a shared backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.config.online import PPO
from posttrain.data.trees import collate
from posttrain.errors import ConfigError
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.value import value_head
from posttrain.training.loop import Loop
from posttrain.types import Wants
from tests.fixtures import random_trees, tiny_model
from tests.online import WHOLE, lines, loop_of, run, save_start, source_of

LORA = {"kind": "lora", "rank": 4}
MANY: dict[str, Any] = {**WHOLE, "updates_per_rollout": 2, "completions_per_prompt": 2, "held_out": 0}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"), num_hidden_layers=2)  # an adapter of one layer learns little


def steps(loop: Loop) -> list[dict[str, float]]:
    return [record.values for record in run(loop).folder.metrics("train")]


# ---------------------------------------------------------------- what a token earns


def test_the_score_stands_on_the_last_sampled_token(start: Path, tmp_path: Path) -> None:
    """With gamma 1, lam 1, values of 0 and no KL the return of each token is the score; with gamma 1/2 that of the last
    token is the score, and each one before it half of the next."""
    options = {"kl_beta": 0.0, "gamma": 0.5, "lam": 1.0, "steps": 1, **MANY}
    run(loop_of(start, tmp_path, "ppo", **options))
    for line in lines(tmp_path, "rollouts.jsonl"):
        count = len(line["ids"])
        expected = [line["reward"] * 0.5 ** (count - 1 - place) for place in range(count)]
        assert line["returns"] == pytest.approx(expected, abs=1e-5)


def test_each_token_pays_its_own_kl(start: Path, tmp_path: Path) -> None:
    """lam 1, gamma 1: return_t = score - beta * sum of (log old - log reference) from t on; the values add nothing."""
    run(loop_of(start, tmp_path, "ppo", kl_beta=0.5, lam=1.0, steps=4, **MANY))
    paid = 0.0
    for line in lines(tmp_path, "rollouts.jsonl"):
        ratio = np.subtract(line["old_logprobs"], line["reference_logprobs"])
        owed = ratio[::-1].cumsum()[::-1]
        assert line["returns"] == pytest.approx(line["reward"] - 0.5 * owed, abs=2e-4)
        paid = max(paid, float(np.abs(owed).max()))
    assert paid > 0.01  # the policy had left its start


def test_an_adaptive_kl_follows_its_target(start: Path, tmp_path: Path) -> None:
    """Above the target beta grows, by at most 2 % a step; below it, it falls."""
    tight = steps(loop_of(start, tmp_path / "a", "ppo", kl_beta=0.5, kl_target=1e-6, steps=4, **MANY))
    loose = steps(loop_of(start, tmp_path / "b", "ppo", kl_beta=0.5, kl_target=100.0, steps=4, **MANY))
    up, down = ([values["kl_coefficient"] for values in one] for one in (tight, loose))
    assert up[0] == down[0] == 0.5 and up[-1] > up[1] and down[-1] == pytest.approx(0.5 * 0.98**3)


def test_the_values_clip_holds_them_back(start: Path, tmp_path: Path) -> None:
    """Values may move from what they were at the rollout by so much: under a tight clip, later updates of the same
    rollout lose their gradient at tokens that have moved towards their return, and the values learn less."""
    options = {**MANY, "updates_per_rollout": 6, "value_learning_rate": 0.05, "kl_beta": 0.0, "steps": 3}
    tight = steps(loop_of(start, tmp_path / "a", "ppo", value_clip=1e-4, **options))
    free = steps(loop_of(start, tmp_path / "b", "ppo", value_clip=0.0, **options))
    assert max(values["value_clip_share"] for values in tight) > 0.2
    assert all(values["value_clip_share"] == 0 for values in free)
    assert abs(tight[-1]["value_mean"]) < 0.8 * abs(free[-1]["value_mean"])


def test_an_entropy_bonus_keeps_the_policy_broad(start: Path, tmp_path: Path) -> None:
    options = {**MANY, "kl_beta": 0.0, "steps": 12, "learning_rate": 2e-2}
    plain = steps(loop_of(start, tmp_path / "a", "ppo", **options))
    broad = steps(loop_of(start, tmp_path / "b", "ppo", entropy_weight=0.5, **options))
    assert broad[-1]["entropy_sampled"] > plain[-1]["entropy_sampled"] + 0.1
    assert broad[0]["entropy"] > 0


# ---------------------------------------------------------------- one backbone for both


@pytest.mark.parametrize("path", ["tree", "padded", "rows"])
def test_a_heads_values_are_of_the_policys_states(path: str) -> None:
    policy, batch = Policy(tiny_model()), collate(random_trees(3, branches=2, mask_probability=0.7))
    head = value_head(policy)
    assert not policy.values(batch, head).any()
    torch.manual_seed(0)
    torch.nn.init.normal_(head.weight)
    expected = policy.values(batch, head)
    found = policy(batch, Wants(value_head=head), path=path)
    assert found.values_N is not None and found.values_N.requires_grad
    torch.testing.assert_close(found.values_N, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logprobs_N, policy(batch).logprobs_N, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", [None, LORA])
def test_a_shared_backbone_learns_values(start: Path, tmp_path: Path, adapter: Any) -> None:
    loop = loop_of(start, tmp_path, "ppo", adapter=adapter, value_backbone="shared", steps=6, **MANY)
    head, _ = loop.hooks.parts["value"]
    assert [tuple(p.shape) for p in head.parameters()] == [(1, 32)]  # no second backbone, no second adapter
    found = steps(loop)
    assert found[-1]["value_loss"] < found[0]["value_loss"]
    assert all(np.isfinite(values["value_loss"]) and values["value_grad_norm"] > 0 for values in found)
    first = [value for line in lines(tmp_path, "rollouts.jsonl") if line["step"] == 1 for value in line["values"]]
    last = [value for line in lines(tmp_path, "rollouts.jsonl") if line["step"] == 6 for value in line["values"]]
    assert not any(first) and any(last)


def test_the_value_loss_trains_the_shared_backbone_by_its_weight(start: Path, tmp_path: Path) -> None:
    """The first update of a step has a head of zero and moves nothing but the head; later ones pull at the backbone."""

    def after(folder: str, weight: float) -> torch.Tensor:
        options = {"value_backbone": "shared", "value_weight": weight, "steps": 2, **MANY}
        loop = run(loop_of(start, tmp_path / folder, "ppo", **options))
        return torch.cat([p.detach().flatten() for p in loop.work.policy.model.parameters()])

    none, same, strong = after("a", 0.0), after("b", 0.0), after("c", 5.0)
    assert torch.equal(none, same) and not torch.equal(none, strong)


def test_a_shared_backbone_resumes_bit_for_bit(start: Path, tmp_path: Path) -> None:
    options = {**MANY, "value_backbone": "shared", "steps": 4, "checkpoint": {"every_steps": 2}}
    whole = run(loop_of(start, tmp_path / "whole", "ppo", **options))
    half = loop_of(start, tmp_path / "half", "ppo", **options)

    score = source_of(half).setup.rubric.score

    def interrupted(items: Any) -> Any:
        if half.step == 3:
            raise KeyboardInterrupt
        return score(items)

    source_of(half).setup.rubric.score = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(half)
    resumed = run(loop_of(start, tmp_path / "half", "ppo", **options))
    both = [(loop.work.policy, loop.hooks.parts["value"][0]) for loop in (whole, resumed)]
    for expected, found in zip(*both, strict=True):
        pairs = zip(expected.parameters(), found.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_weight_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"backbone and an optimizer of its own"):
        PPO(data="a.jsonl", value_weight=0.5)
    assert PPO(data="a.jsonl", value_backbone="shared", value_weight=0.5).parameters["value_weight"] == 0.5
    assert PPO(data="a.jsonl").value_backbone == "train"
