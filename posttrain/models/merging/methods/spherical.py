"""Merges along spheres: directions are turned, lengths are kept or averaged.

slerp        θ = sin((1-t) ω)/sin ω θ_1 + sin(t ω)/sin ω θ_2, ω the angle between them          Shoemake 1985
nuslerp      the same with t = w_2 / (w_1 + w_2), of whole tensors, rows or columns, also of differences to a base
multislerp   u_i = θ_i/|θ_i|, m = Σ w_i u_i normalised, θ = (Σ w_i |θ_i|) m                      Goddard 2025
karcher      the point u of the unit sphere with Σ w_i log_u(u_i) = 0, found by steps u <- exp_u(Σ w_i log_u(u_i));
             θ = (Σ w_i |θ_i|) u                                                                  Karcher 1977

exp_m(v) = cos|v| m + sin|v| v/|v|, log_u(x) = ω/sin ω (x - cos ω u). Weights are shares: divided by their sum.

Deviations
 1. multislerp's author follows the mean of the tangents at m, Σ w_i (u_i - <u_i, m> m), from m along the sphere. As m
    is the direction of Σ w_i u_i, that sum is 0 whatever the weights are, and no step is taken.
 2. Angles are computed in float64: the arc cosine of a cosine near 1 keeps half of float32's digits.
 3. A tensor of zeros has no direction. slerp and nuslerp then interpolate linearly (mergekit takes a right angle, and
    makes the other tensor 1.41 times as long as its half); karcher and multislerp leave it out of the direction and
    keep its length of 0 in the mean, as mergekit does.
 4. Opposite tensors have no one arc between them: slerp and nuslerp interpolate linearly, as mergekit does. multislerp
    takes the weighted mean where directions cancel, also of three and more models, where mergekit ends with an error;
    karcher stays at a direction that has no unique way on, where mergekit divides by 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from posttrain.models.merging.methods.averages import sum_of_weights
from posttrain.models.merging.methods.parts import Parts

PARALLEL = 0.9995
"""slerp is linear beyond this cosine, as in the code that all merging tools took it from."""
SMALLEST_SINE = 1e-8
"""nuslerp is linear below it."""
OPPOSITE = 1e-3
"""Directions so near to opposite have no way on that is not made of rounding errors: a cosine of float32 numbers is off
by 1e-7, which is an angle of 5e-4 there."""


def slerp(parts: Parts) -> Tensor:
    first, second = parts.tensors
    cosine = _cosine(first.flatten(), second.flatten())
    shares = _shares(cosine, parts.number("t"), linear=cosine.abs() > PARALLEL)
    merged = shares[0].to(first.dtype) * first + shares[1].to(first.dtype) * second
    return merged.reshape(first.shape)  # a tensor without dimensions has gained one


def nuslerp(parts: Parts) -> Tensor:
    """slerp with weights; with a base, of the differences to it.

    Raises:
        ConfigError: the weights of this tensor sum to 0.
    """
    first, second = parts.deltas
    by_columns = parts.options["vectors"] == "columns" and first.dim() > 1
    if by_columns:
        first, second = first.transpose(0, -1), second.transpose(0, -1)
    shape = first.shape
    if parts.options["vectors"] == "tensor":
        first, second = first.flatten(), second.flatten()
    cosine = _cosine(first, second)
    linear = torch.sin(torch.acos(cosine)) < SMALLEST_SINE
    shares = _shares(cosine, parts.weights[1] / sum_of_weights(parts), linear=linear)
    merged = (shares[0].to(first.dtype) * first + shares[1].to(first.dtype) * second).reshape(shape)
    return parts.over_base(merged.transpose(0, -1) if by_columns else merged)


def multislerp(parts: Parts) -> Tensor:
    """The mean direction, with the mean of the lengths.

    Raises:
        ConfigError: the weights of this tensor sum to 0 and are to be shares.
    """
    if len(parts.tensors) == 1:
        return parts.tensors[0]
    deltas = parts.deltas
    total = sum_of_weights(parts) if parts.options["normalize"] else 1.0
    weights = [weight / total for weight in parts.weights]
    lengths = [_length(delta) for delta in deltas]
    units = [delta / length if length > 0 else delta for delta, length in zip(deltas, lengths, strict=True)]
    mean = _weighted(weights, units)
    size = _length(mean)
    if size < SMALLEST_SINE:
        return parts.over_base(_weighted(weights, deltas))
    length = sum(weight * one for weight, one in zip(weights, lengths, strict=True))
    return parts.over_base(length / size * mean)


def karcher(parts: Parts) -> Tensor:
    """The weighted centre of mass of the directions, with the weighted mean of the lengths.

    Raises:
        ConfigError: the weights of this tensor sum to 0.
    """
    if len(parts.tensors) == 1:
        return parts.tensors[0]
    tolerance = parts.number("tolerance")
    total = sum_of_weights(parts)
    lengths = [_length(tensor) for tensor in parts.tensors]
    length = sum(weight / total * one for weight, one in zip(parts.weights, lengths, strict=True))
    there = [(w, x / n) for w, x, n in zip(parts.weights, parts.tensors, lengths, strict=True) if n > 0]
    share = sum(weight for weight, _ in there)
    if not there or abs(share) < SMALLEST_SINE:
        return torch.zeros_like(parts.tensors[0])
    weights = [weight / share for weight, _ in there]
    units = [unit for _, unit in there]
    centre = _weighted(weights, units)
    size = _length(centre)
    # Directions that cancel have no mean to begin at; any of them is as good.
    centre = units[0] if size < tolerance else centre / size
    for _ in range(int(parts.number("iterations"))):
        step = _weighted(weights, [_logarithm(centre, unit, tolerance) for unit in units])
        if _length(step) < tolerance:
            break
        centre = _exponential(centre, step)
        centre = centre / _length(centre)
    return length * centre


def _exponential(point: Tensor, tangent: Tensor) -> Tensor:
    """Where the sphere's great circle leads from `point` along `tangent`."""
    size = _length(tangent)
    # sin|v|/|v| is 1 at 0, where the quotient is not.
    return math.cos(size) * point + (math.sin(size) / size if size > 0 else 1.0) * tangent


def _logarithm(point: Tensor, unit: Tensor, tolerance: float) -> Tensor:
    """The tangent that leads from `point` to `unit`; zeros where they are equal or opposite."""
    cosine = max(-1.0, min(1.0, _dot(point, unit)))
    angle = math.acos(cosine)
    if angle < tolerance or math.pi - angle < OPPOSITE:
        return torch.zeros_like(point)
    return angle / math.sin(angle) * (unit - cosine * point)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Of the last dimension: [..., 1] in float64, without a copy of the tensors. NaN where one of them is 0."""
    dot = (first * second).sum(dim=-1, keepdim=True, dtype=torch.float64)
    lengths = [torch.linalg.vector_norm(one, dim=-1, keepdim=True, dtype=torch.float64) for one in (first, second)]
    return (dot / lengths[0] / lengths[1]).clamp(-1, 1)


def _shares(cosine: Tensor, t: float, *, linear: Tensor) -> tuple[Tensor, Tensor]:
    """What both sides are multiplied with; linear where it says so, or where there is no angle."""
    angle = torch.acos(cosine)
    linear = linear | cosine.isnan()
    sine = torch.where(linear, 1.0, torch.sin(angle))
    first = torch.where(linear, 1 - t, torch.sin((1 - t) * angle) / sine)
    second = torch.where(linear, t, torch.sin(t * angle) / sine)
    return first, second


def _weighted(weights: list[float], tensors: list[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for weight, tensor in zip(weights, tensors, strict=True):
        total += weight * tensor
    return total


def _length(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _dot(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum(dtype=torch.float64))
