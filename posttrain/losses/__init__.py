"""Objectives as pure functions: log-probs in, `LossOutput` out. Imports with nothing but torch present.

A loss knows no model, config, device group or file. It divides by the step's *global* count, so the gradients of
micro-batches and ranks add up to the gradient of the whole step, however the step is cut.

    sft.py       imitation
    pairwise.py  the offline preference family, one literal row per objective
    kl.py        KL between policy and reference: estimators and exact values, named by direction
    reduce.py    sums and means over tokens, branches and sides
"""

from posttrain.losses.pairwise import PAIRWISE, PARAMETERS, PairwiseRow, pairwise_loss, resolve_parameters
from posttrain.losses.sft import sft_loss

__all__ = ["PAIRWISE", "PARAMETERS", "PairwiseRow", "pairwise_loss", "resolve_parameters", "sft_loss"]
