"""beta-DPO: a beta of its own for every step, and pairs dropped whose margin is far from the usual one.

    M_i   = log π/π_ref (y_w) - log π/π_ref (y_l)              the pair's gap, nats, without gradient
    M_0   = momentum * M_0 + (1 - momentum) * mean(M)          so the usual gap, and likewise its standard deviation
    kept  = `keep` of the pairs, drawn with weights exp(-((M_i - M_0) / std_0)^2 / 2), without replacement
    beta' = beta * (1 + gain * (mean of the kept M - M_0))
    loss  = mean over the kept pairs of -log sigma(beta' * (gap with gradient))

Wu et al. 2024 (beta-DPO), arXiv:2407.08639; M, the order of the updates and the floor as in the authors' code.

Deviations
 1. M_0 and its deviation begin with the first step's own values, where the code begins with 0; the first step's gaps
    are 0 in either case, but for what dropout or a resumed policy makes of them.
 2. Mean and deviation are those of the *step*, whatever its split into micro-batches; where all gaps are equal, every
    pair is as likely to be kept (the code divides by 0).
 3. Held-out rows are measured with the current M_0, which they leave as it is, and none is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.lazy_torch import F, torch
from posttrain.losses.links import Rewards
from posttrain.losses.responses import Coupling, Pairs, Parameters, Responses

if TYPE_CHECKING:
    import numpy as np  # the losses need torch alone
    from torch import Tensor

LEAST_BETA = 1e-3
"""Below, a step would hardly be a preference."""


def rescaled_logistic(rewards: Rewards, parameters: Parameters) -> Tensor:
    """-log sigmoid(lead * beta' / beta), beta' the step's."""
    return -F.logsigmoid(rewards.lead_Q * rewards.responses.statistics["beta_scale"].to(rewards.lead_Q))


def kept_weight(responses: Responses, pairs: Pairs) -> Tensor:
    """0 for a pair that is dropped, pairs / kept pairs for the others: the step's mean is that of the kept ones."""
    return responses.statistics["weight"].to(responses.logprob_B)


class DynamicBeta:
    """What beta-DPO remembers from step to step: the usual gap and its deviation.

    memory = DynamicBeta({"beta": 0.1, "gain": 0.6, "keep": 0.8, "momentum": 0.9})
    memory.statistics({"gap": tensor([...])}, draw)   # {"beta_scale": [P], "weight": [P]}
    """

    def __init__(self, parameters: Parameters):
        self._parameters = dict(parameters)
        self._usual: tuple[float, float] | None = None

    def statistics(self, observed: Mapping[str, Tensor], draw: np.random.Generator | None) -> dict[str, Tensor]:
        """The step's beta and each pair's weight, [P].

        Args:
            observed: {"gap": [P]}, nats.
            draw: the step's random stream; None where rows are only measured: nothing is remembered then, and no pair
                is dropped.
        """
        gap_P = observed["gap"].double()
        own = (float(gap_P.mean()), float(gap_P.std(correction=1)) if len(gap_P) > 1 else 0.0)
        usual = self._usual or own
        if draw is not None:
            if self._usual is not None:
                # First the update and then the use, as in the authors' code: a step is measured against a mean that
                # includes it.
                usual = (self._moved(usual[0], own[0]), self._moved(usual[1], own[1]))
            self._usual = usual
        centre, spread = usual
        kept_P = torch.ones(len(gap_P), dtype=torch.bool)
        if draw is not None:
            kept_P = _drawn(gap_P.cpu(), centre, spread, self._parameters["keep"], draw)
        kept_P = kept_P.to(gap_P.device)
        beta = self._parameters["beta"]
        scale = 1 + self._parameters["gain"] * (float(gap_P[kept_P].mean()) - centre)
        # Kept gaps far below the usual one would make beta negative and train preferences backwards.
        scale = max(scale, LEAST_BETA / beta)
        like = observed["gap"]
        return {
            "beta_scale": torch.full_like(like, scale),
            # The loss divides by all pairs of the step: this turns its mean into that of the kept ones.
            "weight": kept_P.to(like) * (len(gap_P) / int(kept_P.sum())),
        }

    def _moved(self, was: float, now: float) -> float:
        momentum = self._parameters["momentum"]
        return momentum * was + (1 - momentum) * now

    def state_dict(self) -> dict[str, Any]:
        return {"usual": self._usual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        usual = state["usual"]
        self._usual = None if usual is None else (float(usual[0]), float(usual[1]))


def _drawn(gap_P: Tensor, centre: float, spread: float, keep: float, draw: np.random.Generator) -> Tensor:
    """`keep` of the pairs without replacement (Gumbel top-k), as a mask."""
    apart = (gap_P - centre) / spread if spread else torch.zeros_like(gap_P)
    # Log-weights plus Gumbel noise, largest first, is a draw without replacement; on the CPU, so that every device
    # keeps the same pairs.
    scores = -0.5 * apart.square() + torch.from_numpy(draw.gumbel(size=len(gap_P)))
    chosen = scores.topk(max(1, int(len(gap_P) * keep))).indices
    return torch.zeros(len(gap_P), dtype=torch.bool).index_fill(0, chosen, True)


def _gaps(responses: Responses, parameters: Parameters) -> dict[str, Tensor]:
    pairs = Pairs.of(responses.batch, responses.logprob_B)
    pairs.require_trees("a beta for each step")
    chosen_P, rejected_P = pairs.sides(responses.against_reference())
    return {"gap": chosen_P - rejected_P}


def _unremembered(observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A step without a past: its mean gap is the usual one, so beta is what it is, and no pair is dropped."""
    ones_P = torch.ones_like(observed["gap"])
    return {"beta_scale": ones_P, "weight": ones_P}


STEP_BETA = Coupling(_gaps, _unremembered, memory=DynamicBeta)
