"""Another model beside the policy: a teacher, whose log-probs are the advantage or whose distributions are the target.

Which stages have one, and what it is compared with, is said by their settings; `stages/sampling.py` asks here for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.config.online import GKD, OnlineStage, SamplingStage
from posttrain.models.folders.loading import load
from posttrain.models.tree.divergence import Distributions
from posttrain.models.tree.logprobs import Policy
from posttrain.runs.progress import Progress
from posttrain.types import Against, Batch, Wants


class Teacher:
    """Another model's log-probs of the policy's tokens, and its whole distributions."""

    kind = "teacher"

    def __init__(self, policy: Policy):
        self._policy = policy

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        return self._policy(batch, Wants(temperature=temperature)).logprobs_N

    @torch.no_grad()
    def distributions(self, batch: Batch, index_S: Tensor | None = None, *, temperature: float = 1.0) -> Distributions:
        return self._policy.distributions(batch, index_S, temperature=temperature)


def load_teacher(name: str, policy: Policy, progress: Progress) -> Teacher:
    teacher = load(name, device=policy.device, say=progress.say, sharding=policy.sharding)
    for parameter in teacher.model.parameters():
        parameter.requires_grad_(False)
    # Its path is its own: a teacher of another architecture may not be what the student's proof was made on.
    return Teacher(Policy(teacher.model, autocast=policy.autocast, sharding=policy.sharding))


def compared_with(stage: SamplingStage, policy: Policy, progress: Progress) -> Against | None:
    """What the policy's whole distributions are held against. A reference is the policy itself until there is one."""
    if isinstance(stage, GKD):
        return Against(load_teacher(stage.teacher, policy, progress), stage.beta)
    if isinstance(stage, OnlineStage) and stage.row.exact_kl:
        return Against(policy, 1.0, round(stage.parameters["kl_every"]))
    return None


def advantage_teacher(stage: SamplingStage, policy: Policy, progress: Progress) -> Teacher | None:
    """The model whose log-probs are the advantage. Beside the start, to which a KL pulls: they are two models."""
    if isinstance(stage, OnlineStage) and stage.row.needs_teacher:
        return load_teacher(stage.teacher, policy, progress)  # type: ignore[attr-defined]
    return None
