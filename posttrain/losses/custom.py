"""Objectives of a user's own: a plain function, what it needs said by a decorator, its denominators handled here.

    @pt.objective(kind="pairwise", reference=True)
    def hinge_squared(chosen_P, rejected_P, ref_chosen_P, ref_rejected_P, beta=0.1):
        margin_P = beta * ((chosen_P - ref_chosen_P) - (rejected_P - ref_rejected_P))
        return torch.relu(1 - margin_P).square()

    @pt.objective(kind="tokens", entropy=True)
    def confident_sft(policy, weight=0.01):
        return -policy.logprobs_N + weight * policy.entropy_N

A pairwise function is given each response's log-prob, summed over its trained tokens, in nats: one value for each pair.
A function of tokens is given `TokenLogprobs` of the N trained tokens (and, with a reference, its log-probs [N]). It
returns one loss for each pair or token, or (losses, {name: values}) with metrics of its own, one value each as well.
The step's loss is the mean over the *step's* rows or tokens, whatever its split into micro-batches.

By their names a function may ask for more (`PAIRWISE_MORE`, `TOKENS_MORE`); every other parameter is one of the
recipe's `parameters`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from posttrain.arguments import checked_flag, checked_name, wrong_argument
from posttrain.errors import FOREIGN, ConfigError, PosttrainError, TrainingError, place_of, unknown
from posttrain.lazy_torch import torch
from posttrain.losses import scores
from posttrain.losses.links import Rewards
from posttrain.losses.pairwise import PairwiseRow
from posttrain.losses.preference import kl_metrics, pairwise_loss
from posttrain.losses.reduce import loss_mean, over_denominator
from posttrain.losses.responses import Pairs
from posttrain.losses.sft import sft_loss
from posttrain.outputs import LossOutput, Mean, Metric, TokenLogprobs
from posttrain.types import Batch, Count

if TYPE_CHECKING:  # a recipe's reader knows this file, and starts without torch
    from torch import Tensor

ObjectiveKind = Literal["pairwise", "tokens"]

PLACES: Mapping[tuple[str, bool], tuple[str, ...]] = {
    ("pairwise", True): ("chosen_P", "rejected_P", "ref_chosen_P", "ref_rejected_P"),
    ("pairwise", False): ("chosen_P", "rejected_P"),
    ("tokens", True): ("policy", "reference_N"),
    ("tokens", False): ("policy",),
}
"""What a function is given by place, under whatever names, by its kind and whether it has a reference."""
PAIRWISE_MORE = ("chosen_tokens_P", "rejected_tokens_P")
"""Trained tokens of each response."""
TOKENS_MORE = ("batch",)
"""The `Batch`: which response and row each token belongs to."""


@dataclass(frozen=True, slots=True)
class ObjectiveFunction:
    """A declared function: ObjectiveFunction(hinge_squared, "pairwise", reference=True). Called, it is the function."""

    function: Callable[..., Any]
    kind: ObjectiveKind
    reference: bool = False
    """Whether it compares the policy with its start."""
    entropy: bool = False
    """Whether it reads `policy.entropy_N`, which costs another pass over the vocabulary's chunks."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.function(*given, **named)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.function

    @property
    def name(self) -> str:
        return self.function.__qualname__

    @property
    def more(self) -> tuple[str, ...]:
        """What it asks for by name."""
        known = PAIRWISE_MORE if self.kind == "pairwise" else TOKENS_MORE
        return tuple(name for name in known if name in inspect.signature(self.function).parameters)

    def resolve(self, given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
        """Its defaults with `given` over them.

        Raises:
            UnknownKeyError: a parameter that the function does not have.
            ConfigError: one without a default is missing.
        """
        first = len(PLACES[self.kind, self.reference])
        own = [p for p in list(inspect.signature(self.function).parameters.values())[first:] if p.name not in self.more]
        named = {p.name: p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        open_ended = any(p.kind is p.VAR_KEYWORD for p in own)
        for key in given:
            if key not in named and not open_ended:
                raise unknown(
                    "parameter",
                    key,
                    named,
                    where=where,
                    problem=f"the objective `{self.name}` has no parameter `{key}`",
                    found=f"{self.name}{inspect.signature(self.function)}",
                    expected=f"of {', '.join(named)}" if named else "no `parameters`: it has none of its own",
                    otherwise=f"remove `{key}`, or add it to the function",
                )
        missing = [name for name, p in named.items() if p.default is p.empty and name not in given]
        if missing:
            raise ConfigError(
                f"the objective `{self.name}` needs a value for `{missing[0]}`",
                where=where,
                found=f"parameters: {dict(given)}",
                expected=f"a value for {', '.join(missing)}",
                remedy=f"write `parameters: {{{missing[0]}: ...}}`, or give it a default in the function",
            )
        return {**{name: p.default for name, p in named.items() if p.default is not p.empty}, **given}


def objective(
    *, kind: ObjectiveKind, reference: bool = False, entropy: bool = False
) -> Callable[[Callable[..., Any]], ObjectiveFunction]:
    """Declare a function as an objective: @objective(kind="pairwise", reference=True); see the module's docstring.

    Args:
        kind: what it gives a loss of: "pairwise", or "tokens".
        reference: it is given the log-probs of the policy's start too.
        entropy: of kind "tokens": `policy.entropy_N` is computed for it.

    Raises:
        ConfigError: no such kind, an entropy of pairs, or a signature that cannot be called so.
    """
    checked_name("kind", kind, ("pairwise", "tokens"))
    checked_flag("reference", reference)
    checked_flag("entropy", entropy)
    if entropy and kind == "pairwise":
        raise ConfigError(
            "a pairwise objective is given sums over responses, and an entropy is one of tokens",
            where="@pt.objective",
            remedy='leave `entropy` out, or declare it with kind="tokens"',
        )

    def declare(function: Callable[..., Any]) -> ObjectiveFunction:
        _require_places(function, PLACES[kind, reference])
        return ObjectiveFunction(function, kind, reference, entropy)

    return declare


def _require_places(function: Callable[..., Any], places: tuple[str, ...]) -> None:
    if not inspect.isfunction(function):
        raise wrong_argument(
            "function",
            function,
            expected=f"a function ({', '.join(places)}, ...parameters)",
            remedy="put the decorator above a `def`",
        )
    parameters = list(inspect.signature(function).parameters.values())
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) or (
        # One with a default would be taken for a parameter of the recipe's, and filled with log-probs.
        len(by_place) >= len(places) and all(p.default is p.empty for p in by_place[: len(places)])
    ):
        return
    raise ConfigError(
        f"the objective `{function.__name__}` cannot be called with {', '.join(places)}",
        found=f"{function.__name__}{inspect.signature(function)}",
        expected=f"({', '.join(places)}, ...parameters)",
        remedy="take them first and in this order, without defaults; `reference` of the decorator says how many",
    )


# ---------------------------------------------------------------- the losses


def custom_pairwise_loss(
    objective: ObjectiveFunction,
    parameters: Mapping[str, Any],
    policy: TokenLogprobs,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count,
) -> LossOutput:
    """Mean over the step's rows of the function's losses; of a ranked list the mean over its pairs.

    The rewards in the metrics are the log-ratios to the reference (without one, the log-probs), times the parameter
    `beta` where the function has one. Other arguments and figures as `pairwise_loss`.

    Raises:
        TrainingError: the function raised, or gave something else than one loss for each pair.
    """
    own: dict[str, Metric] = {}

    def link(rewards: Rewards, _: Mapping[str, float]) -> Tensor:
        responses = rewards.responses
        pairs = Pairs.of(batch, responses.logprob_B)
        given = [*pairs.sides(responses.logprob_B)]
        if objective.reference:
            # The policy's sum less the sum of differences: at step 0 these are exactly 0, as in every row of the table.
            given += pairs.sides((responses.logprob_B - responses.against_reference()).detach())
        tokens = dict(zip(PAIRWISE_MORE, pairs.sides(responses.tokens_B), strict=True))
        losses_Q, metrics = _called(objective, given, tokens, parameters, like=given[0], each="pair")
        own.update(metrics)
        return losses_Q

    beta = parameters.get("beta")
    scale = {"beta": float(beta)} if isinstance(beta, (int, float)) and not isinstance(beta, bool) else {}
    score = scores.LOG_RATIO_SUM if objective.reference else scores.LOGPROB_SUM
    row = PairwiseRow(score, link, {}, "a function of the user's own")
    out = pairwise_loss(row, scale, policy, reference_N, batch, denominator)
    return replace(out, metrics=_joined(objective, out.metrics, own))


def custom_token_loss(
    objective: ObjectiveFunction,
    parameters: Mapping[str, Any],
    policy: TokenLogprobs,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count,
) -> LossOutput:
    """Mean over the step's trained tokens of the function's losses; figures as `sft_loss`, and with a reference the KL
    on the data's tokens.

    Raises:
        TrainingError: the function raised, or gave something else than one loss for each token.
    """
    given: list[Any] = [policy]
    more: dict[str, Metric] = {}
    if objective.reference:
        assert reference_N is not None
        given.append(reference_N.detach().to(policy.logprobs_N))
        more = kl_metrics(policy, reference_N)
    losses_N, own = _called(objective, given, {"batch": batch}, parameters, like=policy.logprobs_N, each="token")
    out = sft_loss(policy, batch, denominator)
    metrics = {**out.metrics, "loss": loss_mean(losses_N.sum(), batch.count.tokens), **more}
    return replace(
        out,
        loss=over_denominator(losses_N.sum(), denominator.tokens),
        metrics=_joined(objective, metrics, own),
    )


def _called(
    objective: ObjectiveFunction,
    given: list[Any],
    more: Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    like: Tensor,
    each: str,
) -> tuple[Tensor, dict[str, Metric]]:
    """The function's losses and metrics, checked."""
    named = {name: more[name] for name in objective.more}
    try:
        said = objective.function(*given, **named, **parameters)
    except PosttrainError:
        raise
    except FOREIGN as error:  # the boundary: other people's code
        raise TrainingError(
            f"the objective `{objective.name}` raised {type(error).__name__}",
            found=f"{type(error).__name__}: {error}{place_of(error, caller=__file__)}",
            remedy="mend the function",
        ) from error
    losses, metrics = said if isinstance(said, tuple) and len(said) == 2 else (said, {})
    _require_one_each(objective, "its losses", losses, like, each)
    if not isinstance(metrics, Mapping):
        raise TrainingError(
            f"the objective `{objective.name}` gave metrics without names",
            found=f"beside its losses a {type(metrics).__name__}",
            expected="the losses alone, or (losses, {name: values})",
            remedy='write `return losses, {"margin": values}`',
        )
    found: dict[str, Metric] = {}
    for name, values in metrics.items():
        _require_one_each(objective, f"its metric `{name}`", values, like, each)
        found[str(name)] = Mean(values.detach().sum(), values.shape[0])
    return losses, found


def _require_one_each(objective: ObjectiveFunction, what: str, values: Any, like: Tensor, each: str) -> None:
    # A mean in their place would be divided once more, by the step's count: a loss that depends on the split.
    if isinstance(values, torch.Tensor) and values.shape == like.shape:
        return
    shown = f"a {type(values).__name__}"
    if isinstance(values, torch.Tensor):
        shown = f"a tensor of shape {list(values.shape)}"
    raise TrainingError(
        f"the objective `{objective.name}` did not give one value for each {each}",
        found=f"{what}: {shown}",
        expected=f"a tensor of shape {list(like.shape)}, or (losses, {{name: values}})",
        remedy="return the losses before any mean or sum; posttrain divides by the step's count",
    )


def _joined(objective: ObjectiveFunction, metrics: dict[str, Metric], own: dict[str, Metric]) -> dict[str, Metric]:
    if taken := [name for name in own if name in metrics]:
        raise TrainingError(
            f"the objective `{objective.name}` calls a metric `{taken[0]}`, which every run has",
            expected=f"a name beside {', '.join(metrics)}",
            remedy=f"call it `{objective.name}_{taken[0]}`, for instance",
        )
    return metrics | own
