"""TRL's own losses on given log-probs: `python -m benchmarks.peer_losses` in an environment that holds trl.

Each trainer's loss method runs as it is, on a stand-in for the trainer that holds the settings, and for the model that
holds the log-probs. Prints one JSON line: {name: {"loss": ..., "gradient": [[...], ...]}}.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from benchmarks.loss_cases import CASES, Case, Sides, sides


class Given(torch.nn.Module):
    """A model that answers with log-probs made beforehand."""

    is_gradient_checkpointing = False

    def __init__(self, logprobs: Tensor, collisions: Tensor | None = None):
        super().__init__()
        self.logprobs, self.collisions = logprobs, collisions

    def forward(self, **_: Any) -> SimpleNamespace:
        zeros = torch.zeros_like(self.logprobs).detach()
        return SimpleNamespace(
            log_probs=self.logprobs,
            log_sum_sq_probs=self.collisions,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )


def padded(rows: list[list[float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[rows, longest], 0 where there is no token, and the mask of the tokens."""
    longest = max(map(len, rows))
    values = torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], dtype=dtype)
    return values, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def trainer_of(settings: dict[str, Any], **more: Any) -> SimpleNamespace:
    """All that a loss method asks of its trainer."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    return SimpleNamespace(
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        label_smoothing=settings.get("label_smoothing", 0.0),
        beta=settings["beta"],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **more,
    )


def dpo(case: Case, given: Sides) -> tuple[Tensor, Tensor]:
    settings = dict(case.theirs)
    alpha = settings.get("f_divergence_type") == "alpha_divergence"
    dtype = torch.float32 if alpha else torch.float64  # its clamp knows no fp64
    policy, mask = padded(given.policy, dtype)
    policy.requires_grad_()
    model = Given(policy * mask, padded(given.collision, dtype)[0])
    trainer = trainer_of(
        settings,
        model=model.train(),
        ref_model=Given(padded(given.reference, dtype)[0]),
        args=SimpleNamespace(discopop_tau=settings.get("discopop_tau", 0.05), gradient_checkpointing_kwargs=None),
        ld_alpha=settings.get("ld_alpha"),
        f_divergence_type=settings.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=settings.get("f_alpha_divergence_coef", 0.5),
        loss_types=settings["loss_type"],
        loss_weights=settings.get("loss_weights", [1.0] * len(settings["loss_type"])),
        use_weighting=settings.get("use_weighting", False),
    )
    prompt = torch.zeros(len(mask), 1, dtype=mask.dtype)
    whole = torch.cat([prompt, mask], dim=1)
    inputs = {"input_ids": torch.zeros_like(whole), "attention_mask": torch.ones_like(whole), "completion_mask": whole}
    return DPOTrainer._compute_loss(trainer, model, inputs, False), policy


def cpo(case: Case, given: Sides) -> tuple[Tensor, Tensor]:
    settings = dict(case.theirs)
    policy, mask = padded(given.policy, torch.float64)
    policy.requires_grad_()
    sums = (policy * mask).sum(1)
    scores = sums / mask.sum(1) if settings["loss_type"] == "simpo" else sums
    trainer = trainer_of(
        settings,
        alpha=settings.get("alpha", 0.0),
        loss_type=settings["loss_type"],
        simpo_gamma=settings.get("simpo_gamma", 0.0),
    )
    losses, *_ = CPOTrainer.cpo_loss(trainer, *scores.chunk(2))
    return losses.mean(), policy


def orpo(case: Case, given: Sides) -> tuple[Tensor, Tensor]:
    policy, mask = padded(given.policy, torch.float64)
    policy.requires_grad_()
    means = (policy * mask).sum(1) / mask.sum(1)
    losses, *_ = ORPOTrainer.odds_ratio_loss(trainer_of(dict(case.theirs)), *means.chunk(2))
    return -losses.mean(), policy  # TRL subtracts it from the NLL


def kto(case: Case, given: Sides) -> tuple[Tensor, Tensor]:
    """Chosen responses are good ones, rejected responses bad ones, as one batch."""
    settings = dict(case.theirs)
    policy, mask = padded(given.policy, torch.float64)
    policy.requires_grad_()
    model, reference = Given(policy * mask), Given(padded(given.reference, torch.float64)[0])
    mismatched = torch.tensor(given.mismatched, dtype=torch.float64)
    trainer = trainer_of(
        settings,
        model=model.train(),
        ref_model=reference,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        loss_type=settings["loss_type"],
        calculate_KL=settings["loss_type"] == "kto",
        desirable_weight=1.0,
        undesirable_weight=settings.get("undesirable_weight", 1.0),
        _compute_kl_logps=lambda whose, _: mismatched if whose is model else torch.zeros_like(mismatched),
    )
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=mask.dtype), mask], dim=1)
    good = torch.arange(len(mask)) < len(mask) // 2
    inputs = {
        "input_ids": torch.zeros_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "label": good,
    }
    return KTOTrainer._compute_loss(trainer, model, inputs, False), policy


LOSSES = {"dpo": dpo, "cpo": cpo, "orpo": orpo, "kto": kto}


def main() -> None:
    warnings.simplefilter("ignore")
    given = sides()
    found = {}
    for case in CASES:
        loss, policy = LOSSES[case.trainer](case, given)
        (gradient,) = torch.autograd.grad(loss, policy)
        rows = [slope[: len(row)].tolist() for slope, row in zip(gradient, given.policy, strict=True)]
        found[case.name] = {"loss": float(loss), "gradient": rows}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
