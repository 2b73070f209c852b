"""Every training method by name: what data it takes, what it counts, and its loss. All objectives are made here.

    algorithm("dpo", {"beta": 0.2}).loss(policy, reference_N, batch, denominator) -> LossOutput
    objective_of(stage)                        # the same from a recipe's stage, whatever its kind

`METHODS` names all of them. A row that is added to one of the tables of `posttrain.losses` (`pairwise.PAIRWISE`,
`feedback.FEEDBACK`, `online.ONLINE`) appears in it, and in recipes, by itself; the row and its formula stand there.
Parameters are resolved here, once: a loss trusts what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from posttrain.errors import ConfigError, unknown
from posttrain.losses.custom import custom_pairwise_loss, custom_token_loss
from posttrain.losses.distillation import distillation_loss, soft_target_loss
from posttrain.losses.feedback import FEEDBACK, feedback_loss, objective_owners
from posttrain.losses.kl import AdaptiveKL, KLWeight
from posttrain.losses.online import ONLINE
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.parameters import numbered, resolve
from posttrain.losses.policy import policy_loss
from posttrain.losses.preference import (
    CHOSEN_NLL,
    Term,
    coupling_of_terms,
    mixed_loss,
    pairwise_loss,
    statistics_of_terms,
)
from posttrain.losses.process import STEP_LABELS, step_loss
from posttrain.losses.responses import Coupling, Memory, Parameters, Responses, StepStatistics
from posttrain.losses.reward import OBJECTIVES as REWARD_OBJECTIVES
from posttrain.losses.reward import reward_loss
from posttrain.losses.reward_rule import RewardRule
from posttrain.losses.sft import sft_loss
from posttrain.losses.value import value_loss
from posttrain.outputs import LossOutput, Scores, TokenLogprobs
from posttrain.types import (
    PLAIN,
    Against,
    Batch,
    Comparison,
    Count,
    Demonstration,
    Feedback,
    StepwiseFeedback,
    Task,
    Wants,
)

if TYPE_CHECKING:  # the table of methods loads no model library, and no recipe
    from posttrain.config import ConditionalSFT, Mix, PreferenceStage, Reward
    from posttrain.config.custom import CustomStage
    from posttrain.config.online import GKD, RFT, OnlineDPO, OnlineStage
    from posttrain.config.stages import SFT, DistilSFT
    from posttrain.models.tree.router import RouterLoss

Kind = type[Demonstration] | type[Comparison] | type[Feedback] | type[StepwiseFeedback] | type[Task]
Loss = Callable[..., LossOutput]
"""loss(policy, reference_N or None, batch, global denominator); with `statistics=` too, where there is a coupling."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A method with its parameters resolved.

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
    coupling: Coupling | None = None
    """What its trees have to know of their step; the parameters are bound, so call `observe(responses, {})`."""
    memory: Memory | None = None
    """What it keeps from step to step: the one part of an algorithm that training changes."""
    wants: Wants = PLAIN
    """What the policy has to give."""
    router: RouterLoss | None = None
    """The load-balancing loss of a mixture of experts, added to the method's own; `wants.routing` goes with it."""
    own: bool = False
    """A function of the user's: nothing is known of it but what the preflight proves."""

    def __post_init__(self) -> None:
        # A router's loss on a policy that was not asked for its routing would be 0, and nobody would see it missing.
        if self.router is not None and not self.wants.routing:
            object.__setattr__(self, "wants", replace(self.wants, routing=True))


@dataclass(frozen=True, slots=True)
class OnlineInputs:
    """What an online objective reads besides its stage; a method without a KL, another model or a head has none.

    OnlineInputs(kl=KLWeight(0.04), against=None, value_head=None)
    """

    kl: KLWeight = field(default_factory=lambda: KLWeight(0.0))
    """Read anew at each call, since an adaptive weight moves."""
    against: Against | None = None
    """The model whose whole distributions the policy's are compared with."""
    value_head: nn.Module | None = None
    """PPO's, where it stands on the policy's own backbone."""


# ---------------------------------------------------------------- rows: by name and parameters


def _sft(name: str, parameters: Parameters) -> Algorithm:
    # It has no parameters; one that is given by mistake is refused by name, as anywhere.
    none = resolve(parameters, {}, {}, where=name, owners=objective_owners())

    def loss(policy: TokenLogprobs, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
        return sft_loss(policy, batch, denominator)

    return Algorithm(name, METHODS[name].kind, "tokens", False, none, loss)


def _pairwise(name: str, parameters: Parameters) -> Algorithm:
    row = PAIRWISE[name]
    resolved = row.resolve(parameters, where=name)
    return Algorithm(
        name,
        Comparison,
        "pairs",
        row.needs_reference,
        resolved,
        partial(pairwise_loss, row, resolved),
        _bound(row.coupling, resolved),
        None if row.coupling is None or row.coupling.memory is None else row.coupling.memory(resolved),
        Wants(collision=row.needs_collision),
    )


def _feedback(name: str, parameters: Parameters) -> Algorithm:
    row = FEEDBACK[name]
    resolved = row.resolve(parameters, where=name)
    loss = partial(feedback_loss, row, resolved)
    return Algorithm(name, Feedback, "responses", True, resolved, loss, _bound(row.coupling, resolved))


def _reward(name: str, parameters: Parameters) -> Algorithm:
    return reward_algorithm(parameters=parameters)


def _bound(coupling: Coupling | None, parameters: Parameters) -> Coupling | None:
    """The coupling with the method's parameters in it."""
    if coupling is None:
        return None

    def observe(responses: Responses, _: Parameters) -> dict[str, Tensor]:
        return coupling.observe(responses, parameters)

    # Without its memory, which is made once per algorithm and saved with checkpoints: there must not be two of it.
    return Coupling(observe, coupling.reduce, coupling.mismatched)


def reward_algorithm(
    objective: str = "bradley_terry", parameters: Parameters | None = None, rule: RewardRule | None = None
) -> Algorithm:
    """A reward model's training: a row of `posttrain.losses.reward.OBJECTIVES` on the rewards that `rule` makes, or
    `step_labels` on the scores of steps.

    Its loss takes the model's `Scores` where those of the others take log-probs.
    """
    rule = rule or RewardRule()
    if objective == STEP_LABELS:
        none = resolve(parameters or {}, {}, {}, where=objective, owners={})

        def of_steps(scores: Scores, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
            return step_loss(rule, scores, batch, denominator)

        return Algorithm("reward", StepwiseFeedback, "steps", False, none, of_steps)
    resolved = REWARD_OBJECTIVES[objective].resolve(parameters or {}, where=objective)

    def loss(scores: Scores, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
        return reward_loss(objective, resolved, rule, scores, batch, denominator)

    return Algorithm("reward", Comparison, "pairs", False, resolved, loss)


# ---------------------------------------------------------------- a mix of rows


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
    parameters: dict[str, float] = {}
    # Numbered, for the same row may stand in a mix twice, with other parameters.
    for name, term in zip(numbered([name for name, _, _ in terms]), built, strict=True):
        parameters |= {f"{name}.weight": term.weight}
        parameters |= {f"{name}.{key}": value for key, value in term.parameters.items()}

    def loss(
        policy: TokenLogprobs,
        reference_N: Tensor | None,
        batch: Batch,
        denominator: Count,
        statistics: StepStatistics | None = None,
    ) -> LossOutput:
        of_terms = statistics_of_terms(built, statistics)
        return mixed_loss(built, policy, reference_N, batch, denominator, of_terms)

    return Algorithm(
        "mix",
        Comparison,
        "pairs",
        any(term.row.needs_reference for term in built),
        parameters,
        loss,
        coupling_of_terms(built),
        wants=Wants(collision=any(term.row.needs_collision for term in built)),
    )


def _term(name: str, weight: float, parameters: Parameters) -> Term:
    if name != "sft" and name not in PAIRWISE:
        raise unknown("method", name, ("sft", *PAIRWISE), found=name)
    row = CHOSEN_NLL if name == "sft" else PAIRWISE[name]
    if row.remembers:
        raise ConfigError(
            f"`{name}` keeps a running mean of its own steps and is no term of a mix",
            where="mix",
            expected="an objective without a memory",
            remedy=f"use `method: {name}` by itself, or `dpo` in the mix",
        )
    return Term(row, row.resolve(parameters, where=f"mix, {name}"), weight)


# ---------------------------------------------------------------- samples: by their stage


def kl_weight(stage: Any) -> KLWeight:
    """The weight that the KL of a stage starts with: 0 for one without a KL; with `kl_target` it follows the KL."""
    if stage.method not in ONLINE:
        return KLWeight(0.0)
    beta = stage.parameters.get("kl_beta", 0.0)
    return KLWeight(beta, AdaptiveKL(beta, stage.kl_target) if stage.kl_target is not None else None)


def _policy_gradient(stage: OnlineStage, inputs: OnlineInputs) -> Algorithm:
    """A row of the online table; with a head on the policy's backbone, and the value loss beside it."""
    # Both are made anew from the table at each reading: once here, not once per micro-batch.
    row, resolved, on_policy = stage.row, stage.parameters, stage.on_policy

    def loss(policy: TokenLogprobs, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
        # In the loss the weight may move from step to step; a KL in the reward was charged when advantages were made.
        parameters = {**resolved, "kl_beta": inputs.kl.beta} if row.kl_place == "loss" else resolved
        out = policy_loss(row, parameters, policy, batch, denominator, on_policy=on_policy)
        # A value model with a backbone of its own trains by itself; here is only the head on the policy's backbone.
        if policy.values_N is None:
            return out
        clip, weight = parameters["value_clip"], parameters["value_weight"]
        value = value_loss(policy.values_N, batch, denominator, clip=clip, weight=weight)
        return replace(out, loss=out.loss + value.loss, metrics={**out.metrics, **value.metrics})

    return Algorithm(
        stage.method,
        Task,
        "completions",
        False,
        resolved,
        loss,
        wants=Wants(
            # The sampler's own: at any other, the ratio of the first update would not be 1.
            temperature=stage.sampling.temperature,
            entropy=bool(resolved.get("entropy_weight")),
            against=inputs.against,
            value_head=inputs.value_head,
        ),
    )


def _distillation(stage: GKD, inputs: OnlineInputs) -> Algorithm:
    """The divergence from a teacher's distributions at the policy's own tokens."""
    reduction = stage.reduction

    def loss(policy: TokenLogprobs, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
        assert policy.divergence_N is not None
        return distillation_loss(policy.divergence_N, batch, denominator, reduction=reduction, policy=policy)

    return Algorithm(
        stage.method,
        Task,
        "completions",
        False,
        {"beta": stage.beta},
        loss,
        # 1 where the sampler is greedy: the trainer's logits cannot be divided by its 0.
        wants=Wants(temperature=stage.trainer_temperature, against=inputs.against),
    )


def _soft_targets(stage: DistilSFT, inputs: OnlineInputs) -> Algorithm:
    """The teacher's distributions at the rows' own tokens."""
    weight = stage.weight

    def loss(policy: TokenLogprobs, reference_N: Tensor | None, batch: Batch, denominator: Count) -> LossOutput:
        return soft_target_loss(policy, batch, denominator, weight=weight)

    return Algorithm(
        stage.method, Demonstration, "tokens", False, {"weight": weight}, loss, wants=Wants(against=inputs.against)
    )


def _sampled_pairs(stage: OnlineDPO, inputs: OnlineInputs) -> Algorithm:
    return algorithm(stage.objective, stage.parameters)


def _best_of_samples(stage: RFT, inputs: OnlineInputs) -> Algorithm:
    return algorithm("sft")


def _imitation(stage: SFT | ConditionalSFT, inputs: OnlineInputs) -> Algorithm:
    return algorithm(stage.method)


def _preference(stage: PreferenceStage, inputs: OnlineInputs) -> Algorithm:
    return algorithm(stage.method, stage.parameters)


def _mixture(stage: Mix, inputs: OnlineInputs) -> Algorithm:
    return mix([(term.loss, term.weight, term.parameters) for term in stage.losses])


def _custom(stage: CustomStage, inputs: OnlineInputs) -> Algorithm:
    """The user's own function; what kind of rows it takes is the method's."""
    # Here, since it reads the recipe's records: the table of algorithms is loaded without a recipe.
    from posttrain.training.own_objective import load_objective

    declared, parameters = load_objective(stage)
    pairwise = declared.kind == "pairwise"
    return Algorithm(
        stage.address,
        METHODS[stage.method].kind,
        "pairs" if pairwise else "tokens",
        declared.reference,
        parameters,
        partial(custom_pairwise_loss if pairwise else custom_token_loss, declared, parameters),
        wants=Wants(entropy=declared.entropy),
        own=True,
    )


def _reward_model(stage: Reward, inputs: OnlineInputs) -> Algorithm:
    return reward_algorithm(stage.objective.kind, stage.objective.parameters, stage.rule)


# ---------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class Method:
    """One method: Method(Comparison, "pairwise", _preference, _pairwise)."""

    kind: Kind
    """What one row of its data says, whatever its parameters."""
    home: str
    """The module of `posttrain.losses` where its row or its loss stands, formula and paper included."""
    of_stage: Callable[[Any, OnlineInputs], Algorithm]
    """(a stage of this method, what it reads besides) -> its objective"""
    by_name: Callable[[str, Parameters], Algorithm] | None = None
    """(name, parameters over the defaults) -> its objective; None where it takes a stage to know it."""


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "sft": Method(Demonstration, "sft", _imitation, _sft),
        "distil_sft": Method(Demonstration, "distillation", _soft_targets),
        # Rows say good or bad, but what trains is imitation: each behind a line that says which.
        "conditional_sft": Method(Feedback, "sft", _imitation, _sft),
        **{name: Method(Comparison, "pairwise", _preference, _pairwise) for name in PAIRWISE},
        **{name: Method(Feedback, "feedback", _preference, _feedback) for name in FEEDBACK},
        "mix": Method(Comparison, "preference", _mixture),
        "custom_pairwise": Method(Comparison, "custom", _custom),
        "custom_tokens": Method(Demonstration, "custom", _custom),
        "reward": Method(Comparison, "reward", _reward_model, _reward),
        **{name: Method(Task, "online", _policy_gradient) for name in ONLINE},
        "online_dpo": Method(Task, "pairwise", _sampled_pairs),
        "rft": Method(Task, "sft", _best_of_samples),
        "gkd": Method(Task, "distillation", _distillation),
    }
)
# Without `reward`, whose loss takes scores where the others take log-probs.
ALGORITHMS: tuple[str, ...] = tuple(
    name for name, method in METHODS.items() if method.by_name is not None and method.home != "reward"
)
"""Methods that `algorithm` makes by name, and whose loss takes log-probs."""


def algorithm(name: str, parameters: Parameters | None = None) -> Algorithm:
    """The method called `name`, with `parameters` over its defaults.

    Raises:
        UnknownKeyError: no method of that name that parameters alone make, or a parameter that it does not have.
        ConfigError: a parameter out of range.
    """
    make = METHODS[name].by_name if name in METHODS else None
    if make is None:
        raise unknown("method", name, ALGORITHMS, found=name)
    return make(name, parameters or {})


def objective_of(
    stage: Any, weight: KLWeight | None = None, against: Against | None = None, head: nn.Module | None = None
) -> Algorithm:
    """The objective of any stage that trains.

    Args:
        weight, against, head: see `OnlineInputs`; of stages that sample.

    Raises:
        UnknownKeyError, ConfigError: as `algorithm`.
    """
    return METHODS[stage.method].of_stage(stage, OnlineInputs(weight or KLWeight(0.0), against, head))


def kind_of(method: str) -> Kind:
    """What one row of a method's data says, whatever its parameters: kind_of("kto") is Feedback.

    Raises:
        UnknownKeyError: no method of that name.
    """
    if method not in METHODS:
        raise unknown("method", method, tuple(METHODS), found=method)
    return METHODS[method].kind
