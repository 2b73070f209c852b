"""A stage's work from tiny parts, for tests of the loop; no file is read and no tokenizer is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from posttrain.config.stages import SFT, Preference, TrainingStage
from posttrain.models.reference import LiveReference
from posttrain.models.tree.logprobs import Policy
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.loop import Loop
from posttrain.training.objectives import Algorithm, algorithm
from posttrain.training.work import Work
from posttrain.types import Comparison, Feedback, TokenTree
from tests.fixtures import random_trees, tiny_model

VOCAB = 97


class Numbers:
    """A decoder that shows ids as numbers."""

    stop_ids = frozenset({2})

    def decode_marked(self, tree: TokenTree, branch: int = 0) -> list[tuple[str, bool]]:
        side = tree.branches[branch]
        marked = [(f" {i}", bool(m)) for i, m in zip(side.ids, side.loss_mask, strict=True)]
        return [(" ".join(map(str, tree.prompt_ids)), False), *marked]


def stage_of(method: str, **options: Any) -> TrainingStage:
    """A stage with settings that move a tiny model visibly in a few steps."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-2,
        "rows_per_step": 4,
        "epochs": 2,
        "checkpoint": {"every_steps": 3, "keep": 2},
        "log": {"held_out_every": 4, "samples_every": 5},
        **options,
    }
    return SFT(**settings) if method == "sft" else Preference(method, **settings)


def trees_for(objective: Algorithm, count: int, seed: int) -> list[TokenTree]:
    """Random trees of the shape that the method trains on; feedback is good twice as often as bad."""
    branches = 2 if objective.kind is Comparison else 1
    trees = random_trees(count, vocab=VOCAB, seed=seed, branches=branches)
    if objective.kind is Feedback:
        trees = [replace(tree, label=place % 3 > 0) for place, tree in enumerate(trees)]
    return trees


def work_of(
    method: str = "dpo",
    *,
    model: Any = None,
    rows: Sequence[TokenTree] | None = None,
    held_out: Sequence[TokenTree] | None = None,
    tokens_per_microbatch: int = 20,
    dropout: bool = False,
    **options: Any,
) -> Work:
    stage = stage_of(method, **options)
    policy = Policy(model if model is not None else tiny_model("llama", vocab=VOCAB), dropout=dropout)
    parameters = stage.parameters if method != "sft" else None  # type: ignore[attr-defined]
    objective = algorithm(method, parameters)
    return Work(
        stage=stage,
        algorithm=objective,
        policy=policy,
        reference=LiveReference(policy) if objective.needs_reference else None,
        rows=rows if rows is not None else trees_for(objective, 14, seed=7),
        held_out=held_out if held_out is not None else trees_for(objective, 5, seed=8),
        decoder=Numbers(),
        tokens_per_microbatch=tokens_per_microbatch,
        memory=None,
        seed=0,
        identity="the same",
    )


def run_loop(work: Work, folder: Path) -> Loop:
    stage_folder = StageFolder(folder)
    loop = Loop(work, stage_folder, Progress())
    try:
        loop.run()
    finally:
        stage_folder.close()
    return loop


def weights_of(work: Work) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in work.policy.model.named_parameters()}
