"""A stage's work from tiny parts, for tests of the loop; no file is read and no tokenizer is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.config.stages import SFT, Preference, TrainingStage
from posttrain.diagnostics.progress import Progress
from posttrain.diagnostics.run_store import StageFolder
from posttrain.models.logprobs import Policy
from posttrain.models.reference import LiveReference
from posttrain.training.algorithms import algorithm
from posttrain.training.loop import Loop, Work
from posttrain.types import TokenTree
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
    branches = 1 if method == "sft" else 2
    stage = stage_of(method, **options)
    policy = Policy(model if model is not None else tiny_model("llama", vocab=VOCAB), dropout=dropout)
    parameters = stage.parameters if method != "sft" else None  # type: ignore[attr-defined]
    objective = algorithm(method, parameters)
    return Work(
        stage=stage,
        algorithm=objective,
        policy=policy,
        reference=LiveReference(policy) if objective.needs_reference else None,
        rows=rows if rows is not None else random_trees(14, vocab=VOCAB, seed=7, branches=branches),
        held_out=held_out if held_out is not None else random_trees(5, vocab=VOCAB, seed=8, branches=branches),
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
