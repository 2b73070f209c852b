"""Every row of every table as one step on a tiny model, for the tests that share it between processes.

    found = steps(RankedStep(dtype="float64", tokens=40))      # {"dpo": StepFigures(...), "grpo": ..., ...}

Called in each process of a group, or alone; what comes back is the step's: figures, values per tree and the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from posttrain.data.trees import collate
from posttrain.losses.feedback import FEEDBACK
from posttrain.losses.online import ONLINE
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.process import STEP_LABELS
from posttrain.losses.reward import OBJECTIVES
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.reference import LiveReference
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.value import value_head
from posttrain.training.objectives import Algorithm, algorithm, mix, objective_of, reward_algorithm
from posttrain.training.session_inputs import stage_of
from posttrain.training.step import Reference, accumulate, measure
from posttrain.types import Against, TokenTree
from tests.fixtures import random_trees, tiny_model

VOCAB = 97
TREES = 13  # no multiple of a number of ranks

REWARDS = (*OBJECTIVES, STEP_LABELS)
OTHERS = ("sft", "sft+moe", "mix", "mix of coupled", "grpo+exact", "grpo+entropy", "grpo+masks", "ppo+shared", "gkd")
NAMES: tuple[str, ...] = (
    *PAIRWISE,
    *FEEDBACK,
    *OTHERS,
    *ONLINE,
    *(f"reward {name}" for name in REWARDS),
)


@dataclass(frozen=True)
class RankedStep:
    dtype: str
    tokens: int
    """Of a micro-batch."""
    shard: bool = False


@dataclass(frozen=True)
class StepFigures:
    values: dict[str, float]
    counts: dict[str, float]
    per_tree: dict[str, dict[str, float]]
    """{figure: {row: value}}"""
    held_out: dict[str, float]
    """The same trees measured without a gradient."""
    gradient: Mapping[str, np.ndarray | None]


def steps(
    asked: RankedStep, names: Sequence[str] = NAMES, sharding: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Each row's step. sharding: called with every model of a step before it runs, where `asked.shard`."""
    dtype = getattr(torch, asked.dtype)
    return {name: _step(name, dtype, asked, sharding) for name in names}


def _step(name: str, dtype: torch.dtype, asked: RankedStep, sharding: Callable[..., Any] | None) -> StepFigures:
    model, objective, reference, trees = _subject(name, dtype)
    if asked.shard:
        assert sharding is not None
        model, reference = sharding(model, reference)
    given = (model, reference, objective, trees, asked.tokens)
    memory = objective.memory
    held_out = measure(*given, first=0, seed=5)
    measured = accumulate(*given, step=3, seed=5)
    if memory is not None:  # the second step reads what the first has left
        model.zero_grad()
        measured = accumulate(*given, step=4, seed=5)
    head = objective.wants.value_head
    named = [*model.model.named_parameters(), *([] if head is None else head.named_parameters())]
    return StepFigures(
        {key: metric.value for key, metric in measured.metrics.items()},
        {key: float(metric.count) for key, metric in measured.metrics.items() if hasattr(metric, "count")},
        {
            key: {str(row): value for row, value in zip(measured.rows, column, strict=True)}
            for key, column in measured.per_tree.items()
        },
        {key: metric.value for key, metric in held_out.metrics.items()},
        {key: _whole(p.grad) for key, p in named},
    )


def _whole(gradient: Any) -> np.ndarray | None:
    if gradient is None:
        return None
    full = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return full.numpy().copy()  # type: ignore[no-any-return]


def _moved(model: TreeModel, scale: float = 0.03) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
            parameter.add_((scale * noise).to(parameter.dtype))


def _subject(name: str, dtype: torch.dtype) -> tuple[TreeModel, Algorithm, Reference | None, list[TokenTree]]:
    if name.startswith("reward "):
        return _reward(name.removeprefix("reward "), dtype)
    arch = "qwen3_moe" if name == "sft+moe" else "llama"
    extra = {"num_experts": 4, "num_experts_per_tok": 2} if arch == "qwen3_moe" else {}
    policy = Policy(tiny_model(arch, vocab=VOCAB, dtype=dtype, **extra))
    reference = LiveReference(policy)
    _moved(policy)
    if name.partition("+")[0] in ONLINE or name == "gkd":
        return _online(name, policy, reference)
    if name == "mix":
        objective = mix([("dpo", 0.7, {}), ("sft", 1.0, {})])
    elif name == "mix of coupled":
        objective = mix([("aot", 0.5, {"beta": 1.0}), ("bco_pair", 0.5, {})])
    elif name == "sft+moe":
        from posttrain.models.tree.router import RouterLoss

        objective = replace(algorithm("sft"), router=RouterLoss(0.1))
        objective = replace(objective, wants=replace(objective.wants, routing=True))
    else:
        objective = algorithm(name)
    return policy, objective, reference, _rows(objective)


def _rows(objective: Algorithm) -> list[TokenTree]:
    branches = 2 if objective.unit == "pairs" else 1
    trees = random_trees(TREES, vocab=VOCAB, seed=2, branches=branches, margins=branches == 2, mask_probability=0.8)
    if objective.unit == "responses":
        return [replace(tree, label=place % 3 > 0) for place, tree in enumerate(trees)]
    if objective.name not in ("dpo", "sft") or objective.router is not None:
        return trees
    # Two sources of a mixture: figures are kept of each, and no micro-batch holds trees of both.
    return [replace(tree, part="letters" if place % 4 else "numbers") for place, tree in enumerate(trees)]


def _reward(name: str, dtype: torch.dtype) -> tuple[TreeModel, Algorithm, Reference | None, list[TokenTree]]:
    plain = tiny_model("llama", vocab=VOCAB, dtype=dtype)
    if name == STEP_LABELS:
        rule = RewardRule(pooling="steps", steps="min")
        trees = random_trees(TREES, vocab=VOCAB, seed=2, branches=1, mask_probability=0.4)
        trees = [
            replace(tree, step_labels=tuple(float(place % 2) for place in range(tree.num_trained))) for tree in trees
        ]
    else:
        rule = RewardRule()
        trees = random_trees(TREES, vocab=VOCAB, seed=2, branches=2, margins=True)
        trees = [replace(tree, scores=(1.0 + place % 3, 0.5)) for place, tree in enumerate(trees)]
    model = ScoreModel.of(with_head(plain, ("reward",), seed=0, init="normal"), rule)
    _moved(model)
    return model, reward_algorithm(name, rule=rule), None, trees


def _online(
    name: str, policy: Policy, reference: LiveReference
) -> tuple[TreeModel, Algorithm, Reference | None, list[TokenTree]]:
    method, _, how = name.partition("+")
    described: dict[str, Any] = {"method": method}
    if method == "gkd" or ONLINE[method].needs_teacher:
        described["teacher"] = "smollm2-135m-instruct"  # a name that the record needs; nothing loads it here
    if how == "exact":
        described["choices"] = {"kl": "exact", "kl_place": "loss"}
    if how == "masks":
        masks = {"token_mask": "ratio", "sequence_mask": "geometric", "outliers": "drop"}
        bands = {"token_low": 0.9, "geometric_low": 0.95, "geometric_high": 1.05}
        described["choices"] = {"correction": "sequence_truncated", **masks, "parameters": bands}
    if how == "entropy":
        described["entropy_weight"] = 0.01
    stage = stage_of(described)
    exact = how == "exact" or method == "gkd"
    against = Against(reference, 1.0 if how == "exact" else 0.5, every=2) if exact else None
    head = value_head(policy).to(policy.dtype) if how == "shared" else None
    if head is not None:
        _moved_head(head)
    return policy, objective_of(stage, None, against, head), None, _columned(policy)


def _moved_head(head: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1)


def _columned(policy: Policy) -> list[TokenTree]:
    """Groups of three completions whose tokens carry all that any row reads, near the policy's own log-probs."""
    draw = np.random.default_rng(4)
    trees = []
    for tree in random_trees(TREES, vocab=VOCAB, seed=3, branches=3, mask_probability=0.9):
        with torch.no_grad():
            own_N = policy(collate([tree])).logprobs_N.double().numpy()
        branches, start = [], 0
        for branch in tree.branches:
            mask = branch.loss_mask
            own = np.full(len(mask), np.nan)
            own[mask] = own_N[start : start + int(mask.sum())]
            start += int(mask.sum())
            columns = {
                "advantages": np.where(mask, draw.normal(), np.nan),
                "old_logprobs": own + draw.normal(0, 0.2, len(own)),
                "reference_logprobs": own + draw.normal(0, 0.3, len(own)),
                "sampler_logprobs": own + draw.normal(0, 0.1, len(own)),
                "teacher_logprobs": own + draw.normal(0, 0.3, len(own)),
                # Of some ages a rank has no token.
                "staleness": np.full(len(own), float(len(trees) // 5)),
                "values": np.where(mask, draw.normal(size=len(own)), np.nan),
                "returns": np.where(mask, draw.normal(size=len(own)), np.nan),
            }
            branches.append(replace(branch, columns=columns))
        trees.append(replace(tree, branches=tuple(branches)))
    return trees
