"""`forward` is the only door to a model: nothing calls a model's layers around it.

Sharding, autocast and activation checkpointing act where the wrapped module is called. Hooks on every module of torch
see each call of a `TreeModel`, and each call of a model of `transformers`: the second kind only inside the first.
Sampling is apart: an engine has a model of its own, or the weights that train under its own cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import PreTrainedModel

from posttrain.data.trees import collate
from posttrain.models.reference import reference
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.parity import between, leak, looks_ahead
from posttrain.models.tree.value import ValueModel, value_head, value_model
from posttrain.rollout.native import NativeEngine
from posttrain.training.objectives import algorithm, reward_algorithm
from posttrain.training.step import accumulate, measure, step_routing
from posttrain.types import Against, Wants
from tests.fixtures import random_trees, tiny_model
from tests.online import loop_of, run, save_start

PAIRS = random_trees(4, branches=2, mask_probability=0.8)
BATCH = collate(PAIRS)


class Watch:
    """What was called: Counter({Policy: 3}) through the door, and the modules that were called around it."""

    def __init__(self) -> None:
        self.through: Counter[type] = Counter()
        self.around: list[str] = []
        self.depth = 0
        self.sampling = 0

    def enter(self, module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, TreeModel):
            self.through[type(module)] += 1
            self.depth += 1
        elif isinstance(module, PreTrainedModel) and not self.depth and not self.sampling:
            self.around.append(type(module).__name__)

    def leave(self, module: torch.nn.Module, *_: Any) -> None:
        self.depth -= isinstance(module, TreeModel)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch()
    for name in ("generate", "score"):
        monkeypatch.setattr(NativeEngine, name, sampled(getattr(NativeEngine, name), watch))
    hooks = [register_module_forward_pre_hook(watch.enter), register_module_forward_hook(watch.leave, always_call=True)]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def sampled(call: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        watch.sampling += 1
        try:
            return call(*arguments, **options)
        finally:
            watch.sampling -= 1

    return counted


@pytest.mark.parametrize("path", ["tree", "padded", "rows"])
def test_everything_that_a_policy_can_be_asked_is_one_call(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, other = Policy(tiny_model(), path), Policy(tiny_model(seed=1), path)
    for model in (policy, other):
        model.prove(PAIRS)
    head = value_head(policy)
    against = Against(other, 1.0)
    asked: dict[str, Callable[[], Any]] = {
        "log-probs": lambda: policy(BATCH),
        "all at once": lambda: policy(BATCH, Wants(entropy=True, collision=True, value_head=head, routing=True)),
        "values": lambda: policy.values(BATCH, head),
        "distributions": lambda: policy.distributions(BATCH, torch.tensor([0, 2])),
        "routing": lambda: policy.routing(BATCH),
        "compared": lambda: policy.compared(BATCH),
        "row outputs": lambda: policy.row_outputs(collate(random_trees(1, branches=1))),
    }
    for what, call in asked.items():
        with watched(monkeypatch) as watch:
            call()
        assert watch.through == {Policy: 1} and not watch.around, (what, watch.through, watch.around)
    with watched(monkeypatch) as watch:  # each model once
        policy(BATCH, Wants(against=against))
        policy.exact_kl(other, BATCH)
        policy.divergence(other, BATCH)
    assert watch.through == {Policy: 6} and not watch.around


def test_proofs_and_steps_go_through_the_door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy = Policy(tiny_model(), activation_checkpointing=True)
    scorer = ScoreModel(with_head(tiny_model()))
    experts = Policy(tiny_model("qwen3_moe"))
    with watched(monkeypatch) as watch:
        between(policy, PAIRS, "tree", "padded")
        leak(policy, PAIRS)
        looks_ahead(policy, PAIRS[0])
        for kind in ("live", "cached"):
            start = reference(kind, policy, trees=PAIRS, store=tmp_path, tokens_per_microbatch=40)
            for name in ("sft", "dpo", "wpo"):
                accumulate(policy, start, algorithm(name), PAIRS, 40, step=0)
        measure(scorer, None, reward_algorithm(), PAIRS, 40)
        accumulate(scorer, None, reward_algorithm(), PAIRS, 40, step=0)
        critic = value_model(policy)
        critic(BATCH).sum().backward()
        step_routing(experts, balanced_sft(experts), PAIRS, 10)
    assert not watch.around
    assert set(watch.through) == {Policy, ScoreModel, ValueModel}


def balanced_sft(policy: Policy) -> Any:
    from posttrain.config import SFT
    from posttrain.training.balance import balanced

    return balanced(algorithm("sft"), policy, SFT(router_aux_loss_coef=0.01))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grpo", {}),
        ("grpo", {"choices": {"kl": "exact"}}),
        ("ppo", {"value_backbone": "shared"}),
        ("ppo", {}),
        ("gkd", {"rewards": ()}),
        ("distil_reverse_kl", {"rewards": ()}),
        ("online_dpo", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())) or "plain",
)
def test_whole_online_stages_go_through_the_door(
    method: str, options: dict[str, Any], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method in ("gkd", "distil_reverse_kl"):
        options = {**options, "teacher": str(save_start(tmp_path / "teacher", seed=7))}
    with watched(monkeypatch) as watch:
        run(loop_of(start, tmp_path / "run", method, steps=1, **options))
    assert watch.through[Policy] > 0 and not watch.around


def test_a_call_around_the_door_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(tiny_model())
    with watched(monkeypatch) as watch:
        policy.model(input_ids=torch.tensor([[1, 2, 3]]))
    assert watch.around[0] == "LlamaForCausalLM" and not watch.through
