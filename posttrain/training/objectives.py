"""Training methods by name: what data each takes, what it counts, and its loss.

    algorithm("dpo", {"beta": 0.2}).loss(policy, reference_N, batch, denominator) -> LossOutput

The names are `sft`, `conditional_sft`, `reward`, and the rows of the tables `posttrain.losses.pairwise.PAIRWISE` and
`posttrain.losses.feedback.FEEDBACK`; a row added there appears here. `mix` puts several rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from posttrain.errors import ConfigError, unknown
from posttrain.losses.feedback import FEEDBACK, feedback_loss, objective_owners, resolve_feedback
from posttrain.losses.online import ONLINE
from posttrain.losses.pairwise import PAIRWISE, resolve_parameters
from posttrain.losses.parameters import resolve
from posttrain.losses.preference import CHOSEN_NLL, Term, mixed_loss, pairwise_loss
from posttrain.losses.process import STEP_LABELS, step_loss
from posttrain.losses.responses import Coupling, Memory, Parameters, Responses, Told
from posttrain.losses.reward import resolve_parameters as resolve_reward
from posttrain.losses.reward import reward_loss
from posttrain.losses.reward_rule import RewardRule
from posttrain.losses.sft import sft_loss
from posttrain.models.tree.divergence import Against
from posttrain.types import (
    Batch,
    Comparison,
    Count,
    Demonstration,
    Feedback,
    LossOutput,
    Scores,
    StepwiseFeedback,
    Task,
    TokenLogprobs,
)

if TYPE_CHECKING:  # the table of algorithms loads no model library
    from posttrain.models.tree.router import RouterLoss

Kind = type[Demonstration] | type[Comparison] | type[Feedback] | type[StepwiseFeedback] | type[Task]
Loss = Callable[..., LossOutput]
"""loss(policy, reference_N or None, batch, global denominator); with `told=` too, where there is a coupling."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A method with its parameters settled.

    Algorithm("dpo", Comparison, unit="pairs", needs_reference=True, parameters={"beta": 0.1}, loss=...)
    """

    name: str
    kind: Kind
    """What one row of its data says."""
    unit: Literal["tokens", "pairs", "responses", "completions", "steps"]
    """What the loss is a mean over: the field of `Count` that it divides by (`steps`, whose ends train, are
    `Count.tokens`; all but these and `tokens` are `Count.trees`)."""
    needs_reference: bool
    parameters: Mapping[str, float]
    """Every parameter of the method, defaults included."""
    loss: Loss
    """(policy, reference_N or None, batch, global denominator) -> LossOutput"""
    coupling: Coupling | None = None
    """What a tree has to be told of its step; `settled` binds the parameters, so call `observe(responses, {})`."""
    memory: Memory | None = None
    """What it keeps from step to step: the one part of an algorithm that training changes."""
    needs_collision: bool = False
    """The policy has to give `log_collision_N`."""
    temperature: float = 1.0
    """Of the distribution whose log-probs it takes: that which sampled the tokens."""
    needs_entropy: bool = False
    """The policy has to give `entropy_N`, with its gradient."""
    against: Against | None = None
    """The policy has to give `divergence_N` from this model."""
    value_head: nn.Module | None = None
    """The policy has to give `values_N` by this head on its backbone."""
    router: RouterLoss | None = None
    """The load-balancing loss of a mixture of experts, added to the method's own; the policy has to give `routing`."""


ALONE = frozenset(name for name, row in PAIRWISE.items() if row.coupling and row.coupling.memory)
"""Rows that cannot be terms of a mix."""
ALGORITHMS: tuple[str, ...] = ("sft", "conditional_sft", *PAIRWISE, *FEEDBACK)


def algorithm(name: str, parameters: Mapping[str, float] | None = None) -> Algorithm:
    """The method called `name`, with `parameters` over its defaults.

    Raises:
        UnknownKeyError: no method of that name, or a parameter that it does not have.
        ConfigError: a parameter out of range.
    """
    given = parameters or {}
    if name == "reward":
        return reward_algorithm(parameters=given)
    if name in ("sft", "conditional_sft"):
        none = resolve(given, {}, {}, where=name, owners=objective_owners())
        kind = Demonstration if name == "sft" else Feedback
        return Algorithm(name, kind, "tokens", False, none, _sft)
    if name in FEEDBACK:
        feedback = FEEDBACK[name]
        settled = resolve_feedback(feedback, given, where=name)
        loss = partial(feedback_loss, feedback, settled)
        coupling = _settled(feedback.coupling, settled)
        return Algorithm(name, Feedback, "responses", True, settled, loss, coupling)
    if name not in PAIRWISE:
        raise unknown("method", name, ALGORITHMS, found=name)
    row = PAIRWISE[name]
    settled = resolve_parameters(row, given, where=name)
    return Algorithm(
        name,
        Comparison,
        "pairs",
        row.needs_reference,
        settled,
        partial(pairwise_loss, row, settled),
        _settled(row.coupling, settled),
        None if row.coupling is None or row.coupling.memory is None else row.coupling.memory(settled),
        row.needs_collision,
    )


def kind_of(method: str) -> Kind:
    """What one row of a method's data says, whatever its parameters: kind_of("kto") is Feedback."""
    if method in ONLINE or method in ("online_dpo", "rft", "gkd"):
        return Task
    return Comparison if method == "mix" else algorithm(method).kind


def mix(terms: Sequence[tuple[str, float, Mapping[str, float]]]) -> Algorithm:
    """Several objectives of pairs at once: mix([("dpo", 0.8, {"beta": 0.1}), ("sft", 1.0, {})]).

    terms: (name, weight, parameters over the defaults); a row of the pairwise table, or `sft`, the negative
        log-likelihood of the chosen response. The rewards that are reported are those of the first.

    Raises:
        ConfigError: no term, or a parameter out of range.
        UnknownKeyError: no row of that name, or a parameter that it does not have.
    """
    if not terms:
        raise ConfigError("a mix needs at least one objective", where="mix", remedy="name one under `losses`")
    built = [_term(*term) for term in terms]
    rows = [term.row for term in built]
    return Algorithm(
        "mix",
        Comparison,
        "pairs",
        any(row.needs_reference for row in rows),
        {f"{name}.{key}": value for (name, _, _), term in zip(terms, built, strict=True) for key, value in _flat(term)},
        partial(_mixed, built),
        _coupling_of_mix(built),
        needs_collision=any(row.needs_collision for row in rows),
    )


def reward_algorithm(
    objective: str = "bradley_terry", parameters: Mapping[str, float] | None = None, rule: RewardRule | None = None
) -> Algorithm:
    """A reward model's training: a row of `posttrain.losses.reward.OBJECTIVES` on the rewards that `rule` makes, or
    `step_labels` on the scores of steps.

    Its loss takes the model's `Scores` where those of the others take log-probs.
    """
    settled_rule = rule or RewardRule()
    if objective == STEP_LABELS:
        none = resolve(parameters or {}, {}, {}, where=objective, owners={})

        def of_steps(scores: Scores, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
            return step_loss(settled_rule, scores, batch, denominator)

        return Algorithm("reward", StepwiseFeedback, "steps", False, none, of_steps)
    settled = resolve_reward(objective, parameters or {})

    def loss(scores: Scores, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
        return reward_loss(objective, settled, settled_rule, scores, batch, denominator)

    return Algorithm("reward", Comparison, "pairs", False, settled, loss)


# ---------------------------------------------------------------- small parts


def _sft(policy: TokenLogprobs, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
    return sft_loss(policy, batch, denominator)


def _settled(coupling: Coupling | None, parameters: Parameters) -> Coupling | None:
    """The coupling with the method's parameters bound."""
    if coupling is None:
        return None

    def observe(responses: Responses, _: Parameters) -> dict[str, Tensor]:
        return coupling.observe(responses, parameters)

    return Coupling(observe, coupling.settle, coupling.mismatched)


def _term(name: str, weight: float, parameters: Mapping[str, float]) -> Term:
    if name != "sft" and name not in PAIRWISE:
        raise unknown("method", name, ("sft", *PAIRWISE), found=name)
    if name in ALONE:
        raise ConfigError(
            f"`{name}` keeps a running mean of its own steps and is no term of a mix",
            where="mix",
            expected="an objective without a memory",
            remedy=f"use `method: {name}` by itself, or `dpo` in the mix",
        )
    row = CHOSEN_NLL if name == "sft" else PAIRWISE[name]
    return Term(row, resolve_parameters(row, parameters, where=f"mix, {name}"), weight)


def _flat(term: Term) -> list[tuple[str, float]]:
    return [("weight", term.weight), *term.parameters.items()]


def _coupling_of_mix(terms: Sequence[Term]) -> Coupling | None:
    """All terms' couplings as one; each term's values go under its place in the mix."""
    coupled = {f"{place}/": term for place, term in enumerate(terms) if term.row.coupling is not None}
    if not coupled:
        return None

    def observe(responses: Responses, _: Parameters) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place, term in coupled.items():
            assert term.row.coupling is not None
            values = term.row.coupling.observe(responses, term.parameters)
            found |= {place + key: value for key, value in values.items()}
        return found

    def settle(observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        said: dict[str, Tensor] = {}
        for place, term in coupled.items():
            assert term.row.coupling is not None
            said |= {place + key: value for key, value in term.row.coupling.settle(_under(place, observed)).items()}
        return said

    return Coupling(observe, settle)


def _under(place: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(place): value for key, value in values.items() if key.startswith(place)}


def _mixed(
    terms: Sequence[Term],
    policy: TokenLogprobs,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count,
    told: Told | None = None,
) -> LossOutput:
    each = None if told is None else [_under(f"{place}/", told) for place in range(len(terms))]
    return mixed_loss(terms, policy, reference_N, batch, denominator, each)
