"""The log-probs and the settings on which our losses and TRL's are compared; imported by both sides, needs no torch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHOSEN_TOKENS = 6
"""Every chosen response has as many, so that a mean of means is TRL's mean over all tokens of its NLL terms."""


@dataclass(frozen=True, slots=True)
class Case:
    """One objective on both sides: Case("dpo", "dpo", {"loss_type": ["sigmoid"], "beta": 0.1}, {"beta": 0.1})."""

    name: str
    """Ours."""
    trainer: str
    """Whose loss on TRL's side: dpo, cpo, orpo or kto."""
    theirs: Mapping[str, Any]
    ours: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""


def _dpo(name: str, loss_type: str, beta: float, remark: str = "", **ours: float) -> Case:
    return Case(name, "dpo", {"loss_type": [loss_type], "beta": beta}, {"beta": beta, **ours}, remark)


def _with(case: Case, **theirs: Any) -> Case:
    return Case(case.name, case.trainer, {**case.theirs, **theirs}, case.ours, case.remark)


CASES = (
    _dpo("dpo", "sigmoid", 0.1),
    _with(_dpo("robust", "robust", 0.1, label_smoothing=0.1), label_smoothing=0.1),
    _dpo("hinge", "hinge", 0.1),
    _dpo("ipo", "ipo", 0.1),
    _dpo("dpo_norm", "sigmoid_norm", 5.0),
    _with(_dpo("exo_pair", "exo_pair", 0.1, "TRL holds epsilon in fp32", label_epsilon=0.001), label_smoothing=0.001),
    _dpo("nca_pair", "nca_pair", 0.01),
    _dpo("bco_pair", "bco_pair", 0.01, "ours told a shift of 0, which TRL leaves out"),
    _dpo("sppo_hard", "sppo_hard", 0.001),
    _dpo("apo_zero", "apo_zero", 0.1),
    _dpo("apo_down", "apo_down", 0.1),
    _with(_dpo("discopop", "discopop", 0.05, tau=0.05), discopop_tau=0.05),
    _dpo("aot", "aot", 0.01),
    _dpo("aot_unpaired", "aot_unpaired", 0.01),
    _with(_dpo("dpo_forward_kl", "sigmoid", 0.1), f_divergence_type="forward_kl"),
    _with(_dpo("dpo_js", "sigmoid", 0.1), f_divergence_type="js_divergence"),
    _with(
        _dpo("dpo_alpha", "sigmoid", 0.1, "TRL's coefficient is 1 - alpha; its side in fp32", divergence_alpha=0.3),
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=0.7,
    ),
    _with(_dpo("ld_dpo", "sigmoid", 0.1, tail_weight=0.5), ld_alpha=0.5),
    _with(_dpo("wpo", "sigmoid", 0.01, "no pair here weighs more than 1, where ours ends"), use_weighting=True),
    Case(
        "dpo_nll",
        "dpo",
        {"loss_type": ["sigmoid", "sft"], "beta": 0.1},
        {"beta": 0.1},
        "equal lengths of the chosen sides",
    ),
    Case(
        "mpo",
        "dpo",
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.1},
        {"beta": 0.1},
        "shift 0; equal lengths of the chosen sides",
    ),
    Case("cpo", "cpo", {"loss_type": "sigmoid", "beta": 0.1}, {"nll_weight": 0.0}, "the preference term"),
    Case("simpo", "cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}, {}),
    Case("alphapo", "cpo", {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.1, "alpha": 0.25}, {}),
    Case("orpo", "orpo", {"beta": 0.1}, {}, "the odds term, which TRL computes in fp32"),
    Case("kto", "kto", {"loss_type": "kto", "beta": 0.1, "undesirable_weight": 1.33}, {"undesirable_weight": 1.33}),
    Case("apo_zero_unpaired", "kto", {"loss_type": "apo_zero_unpaired", "beta": 0.1}, {}),
)


@dataclass(frozen=True, slots=True)
class Sides:
    """Per-token log-probs of P pairs: chosen responses first, then rejected ones, as TRL lays them."""

    policy: list[list[float]]
    reference: list[list[float]]
    collision: list[list[float]]
    """log sum_v p(v)^2 at each token."""
    mismatched: list[float]
    """Sequence log-ratios of mismatched completions, one for each response."""


def sides(pairs: int = 8, seed: int = 0) -> Sides:
    """The same numbers on both sides, made from a seed."""
    rng = random.Random(seed)
    lengths = [CHOSEN_TOKENS] * pairs + [rng.randint(2, 12) for _ in range(pairs)]
    policy = [[-3 * rng.random() - 0.05 for _ in range(length)] for length in lengths]
    return Sides(
        policy,
        [[min(value + rng.gauss(0.0, 0.5), -0.01) for value in row] for row in policy],
        [[-2 * rng.random() - 0.05 for _ in row] for row in policy],
        [rng.gauss(0.8, 1.0) for _ in policy],
    )
