"""Does the engine sample from the distribution that trains? Proven before step 1 on a few completions of the start.

Like is compared with like: the engine's log-prob of each sampled token, under the distribution that it was drawn from
(`SamplingDistribution`: temperature, penalties, cuts), against the trainer's under the same. How far apart two right
answers may be is not guessed but measured, on the same rows: the trainer against itself, on its other path, where the
same numbers are added in another order, and against itself in fp32, where it computes in less.

    SmolLM2-135M, 218 tokens       engine - trainer      other path         fp32            (mean / largest, nats)
        fp32                       2.7e-6 / 1.5e-5       6.8e-6 / 2.2e-5    0
        bf16                       0.026  / 0.25         0.028  / 0.16      0.021 / 0.11
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.config.online import SamplingStage
from posttrain.data.trees import collate, to_device
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.provable import Route
from posttrain.rollout.weight_sync import LARGEST_NOISE
from posttrain.sampling import SamplingDistribution
from posttrain.training.checks.preflight import Check, Preflight, Status
from posttrain.types import Batch, TokenTree, Wants

TITLE = "sampler = trainer at step 0"
SAMPLER_GAP = 1e-4
"""Nats between the engine's log-prob of a sampled token and the trainer's, as rounding in fp32 never exceeds: such a
gap is not looked into. An engine within it computes what the trainer computes (`same_arithmetic`)."""
APART_GAP = 1e-2
"""The same for an engine with weights and kernels of its own."""
WIDENING = 3.0
"""The band is this many times the measured noise. Engine and trainer are two draws of it, and the mean of a few dozen
tokens is itself uncertain; SmolLM2 in bf16 needs 1.5 times for the largest of 218."""
EDGE_SHARE = 0.05
"""Of the tokens: so many may lie outside what the trainer would have kept. A token at the very edge of a top-k or top-p
falls off by rounding."""
CHUNK = 64
"""Tokens whose logits exist at a time."""


@dataclass(frozen=True, slots=True)
class LogprobGap:
    """Mean and largest difference of two log-probs of the same tokens, in nats, and how many one side excludes."""

    mean: float
    largest: float
    outside: int = 0

    @staticmethod
    def of(ours_N: Tensor, theirs_N: Tensor) -> LogprobGap:
        kept_N = ~torch.isinf(ours_N)
        gaps_N = (ours_N - theirs_N.to(ours_N))[kept_N].abs()
        if not len(gaps_N):
            return LogprobGap(float("inf"), float("inf"), len(ours_N))
        return LogprobGap(float(gaps_N.mean()), float(gaps_N.max()), int((~kept_N).sum()))


@torch.no_grad()
def check_sampler(stage: SamplingStage, policy: Policy, rows: Sequence[TokenTree], *, shared: bool) -> Check:
    """The engine's log-prob of each sampled token is the trainer's, so that importance ratios begin at 1.

    Args:
        rows: completions with the column `sampler_logprobs`.
        shared: the engine samples from the trainer's own weights, with the trainer's precision.
    """
    sampling = stage.distribution(frozenset(), seed=0)
    batch = to_device(collate(rows), policy.device)
    ours_N = _logprobs(policy, rows, batch, sampling)
    gap = LogprobGap.of(ours_N, batch.columns_N["sampler_logprobs"])
    # Rounding alone explains a gap below this floor, so measuring the noise would be wasted.
    floor = SAMPLER_GAP if shared else APART_GAP
    noise = LogprobGap(0.0, 0.0)
    if not gap.largest <= floor:  # rounding that is worth a look; NaN too
        noise = _noise(policy, rows, batch, sampling, ours_N)
    mean, largest = max(floor, min(WIDENING * noise.mean, LARGEST_NOISE)), max(floor, WIDENING * noise.largest)
    # A cut that moves by one token moves every other log-prob of its place: the largest says nothing there.
    agrees = gap.mean <= mean and (gap.largest <= largest or not sampling.is_plain)
    agrees = agrees and gap.outside <= max(1, EDGE_SHARE * len(ours_N))
    detail = (
        f"log-probs of {len(ours_N)} sampled tokens differ by {gap.mean:.1e} nats on average and {gap.largest:.1e} "
        f"at most"
    )
    if noise.mean:
        detail += f"; rounding alone moves the trainer's own by {noise.mean:.1e} and {noise.largest:.1e}"
    evidence = {
        "largest_logprob_gap": gap.largest,
        "mean_logprob_gap": gap.mean,
        "outside": gap.outside,
        "noise": {"mean": noise.mean, "largest": noise.largest},
        "allowed": {"mean": mean, "largest": largest},
    }
    if agrees:
        return Check("identity", TITLE, "pass", detail, evidence)
    near = gap.mean <= LARGEST_NOISE
    status: Status = "warn" if near and not _ratio_matters(stage, shared) else "fail"
    return Check("identity", TITLE, status, detail, evidence, _remedy(stage, policy, near=near, shared=shared))


def same_arithmetic(policy: Policy, proven: Preflight) -> bool:
    """Whether the engine's log-probs were proven to be the trainer's own, to the rounding of fp32: then nothing that
    the engine has computed is computed again. Never below fp32, where a start whose probes agree proves nothing for the
    sharper policy of a later step."""
    wide = policy.autocast is None and policy.dtype in (torch.float32, torch.float64)
    gaps = [check.evidence["largest_logprob_gap"] for check in proven.checks if check.title == TITLE]
    return wide and bool(gaps) and gaps[0] <= SAMPLER_GAP


def _ratio_matters(stage: SamplingStage, shared: bool) -> bool:
    """Whether a gap of the size of noise spoils the loss: it begins at the engine's log-probs and weighs none out. An
    engine of its own in half precision is noisy, and of the right policy; its gap is watched in every step."""
    return shared and stage.ratio_from_sampler


def _remedy(stage: SamplingStage, policy: Policy, *, near: bool, shared: bool) -> str:
    remedies = []
    if policy.autocast is not None and shared:
        remedies.append("write `compute: {precision: fp32}`")
    if near and stage.ratio_from_sampler:
        remedies.append("write `choices: {correction: truncated}`, which weighs the difference of the two out")
    if not shared:
        remedies.append("serve the model in the precision that trains")
    return ", or ".join(remedies) or (
        "the engine and the trainer compute different models of these weights: train another architecture, or sample "
        "with vLLM (docs/generation.md)"
    )


def _noise(
    policy: Policy, rows: Sequence[TokenTree], batch: Batch, sampling: SamplingDistribution, ours_N: Tensor
) -> LogprobGap:
    """How far the trainer's own log-probs move by rounding alone: the larger of its two comparisons with itself."""
    own = policy.path_of(batch)
    other: Route | None = {"tree": "padded", "padded": "rows"}.get(own)  # type: ignore[assignment]
    gaps = []
    if other is not None:
        gaps.append(LogprobGap.of(_logprobs(policy, rows, batch, sampling, other), ours_N))
    if policy.autocast is not None:
        slow: Route = "padded" if own == "tree" else own
        narrow_N = _logprobs(policy, rows, batch, sampling, slow)
        with _in_fp32(policy):
            gaps.append(LogprobGap.of(_logprobs(policy, rows, batch, sampling, slow), narrow_N))
    finite = [gap for gap in gaps if gap.largest < float("inf")]
    return LogprobGap(max((gap.mean for gap in finite), default=0.0), max((gap.largest for gap in finite), default=0.0))


@contextmanager
def _in_fp32(policy: Policy) -> Iterator[None]:
    narrow, policy.autocast = policy.autocast, None
    try:
        yield
    finally:
        policy.autocast = narrow


def _logprobs(
    policy: Policy,
    rows: Sequence[TokenTree],
    batch: Batch,
    sampling: SamplingDistribution,
    path: Route | None = None,
) -> Tensor:
    """The trainer's log-prob of each sampled token [N] under the distribution that the engine draws from."""
    if sampling.is_plain:
        return policy(batch, Wants(temperature=sampling.temperature), path=path).logprobs_N
    places = [
        (tree.prompt_ids.tolist(), branch.ids[:place].tolist())
        for tree in rows
        for branch in tree.branches
        for place in np.flatnonzero(branch.loss_mask)
    ]
    whole = policy.distributions(batch, path=path)
    parts = []
    for first in range(0, len(places), CHUNK):
        here = places[first : first + CHUNK]
        logprobs_RV = sampling.log_probs(
            whole.logits(whole.states_SD[first : first + CHUNK]),
            prompts=[prompt for prompt, _ in here],
            answers=[answer for _, answer in here],
        )
        targets_R = batch.target_ids_N[first : first + CHUNK].to(logprobs_RV.device)
        parts.append(logprobs_RV.gather(1, targets_R[:, None])[:, 0])
    return torch.cat(parts)
