"""Operations of one step over all ranks, by part; a multiplication and an addition are two.

Two operations a weight and token forward, twice as many backward (Kaplan et al. 2020, arXiv:2001.08361, section 2.1),
of which a frozen weight needs half: no gradient of its own. Attention is counted beside it over the keys that a token
may see, backward 2.5 times as much, since flash kernels compute the scores again (Dao 2023, arXiv:2307.08691, section
4.1). The vocabulary is counted for trained tokens alone, as the chunked projection computes it (`models/tree`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from posttrain.planning.memory import Situation
from posttrain.planning.models import Models
from posttrain.planning.rows import Shape
from posttrain.planning.skeleton import Facts

ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True, slots=True)
class Operations:
    """Operations(forward=6.1e15, backward=1.2e16, ...), of one step."""

    forward: float = 0.0
    """Of the layers' matrices, over what trains."""
    backward: float = 0.0
    recomputed: float = 0.0
    """Layers that activation checkpointing computes again."""
    attention: float = 0.0
    """Scores and their product with the values, forward, backward and again."""
    projection: float = 0.0
    """Onto the vocabulary and back, of trained tokens."""
    value: float = 0.0
    """PPO's value model: values for the advantages, and its own training."""
    reference: float = 0.0
    """Passes without gradients: reference, teacher, and log-probs of what was sampled."""
    rewards: float = 0.0
    """Reward models."""
    prefill: float = 0.0
    """Prompts of the completions that are sampled."""
    decode: float = 0.0
    """Their tokens, one at a time."""

    def part(self, name: str) -> float:
        """Of one of the fields above."""
        return float(asdict(self)[name])

    @property
    def training(self) -> float:
        """What gradients are computed with."""
        return self.forward + self.backward + self.recomputed + self.attention + self.projection + self.value

    @property
    def total(self) -> float:
        return self.training + self.reference + self.rewards + self.prefill + self.decode


def operations_of(models: Models, where: Situation) -> Operations:
    facts, needs, row = models.facts(where.stage.adapter, where.needs.role), where.needs, where.rows.mean
    passes = needs.prompts * needs.updates
    again = where.stage.compute.activation_checkpointing
    tokens = row.tokens * passes
    forward = 2.0 * facts.multiplied * tokens
    backward = forward + 2.0 * facts.trained_multiplied * tokens
    attention = attention_forward(facts, row) * passes
    trained = sum(row.responses) * passes if needs.role == "policy" else 0
    once = forward_of(facts, row)
    return Operations(
        forward=forward,
        backward=backward,
        recomputed=forward if again else 0.0,
        attention=attention * (1 + ATTENTION_BACKWARD + again),
        projection=2.0 * facts.projection * trained * _projections(where),
        value=_value(models, where, row, needs.prompts),
        reference=_without_gradients(models, where, once),
        rewards=sum(forward_of(models.other(judge), row) for judge in needs.judges) * needs.prompts,
        **_sampled(facts, where),
    )


def attention_forward(facts: Facts, row: Shape) -> float:
    """Of one row's tree: two products of head size for each query and key, in each head of each layer."""
    return 4.0 * facts.layers * facts.heads * facts.head_size * row.pairs


def forward_of(facts: Facts, row: Shape) -> float:
    """A pass without gradients over one row's tree."""
    projected = 2.0 * facts.projection * sum(row.responses)
    return 2.0 * facts.multiplied * row.tokens + attention_forward(facts, row) + projected


def _projections(where: Situation) -> int:
    """How often a trained token is multiplied with the whole vocabulary, forward and backward."""
    if where.stage.adapter is None:
        return 4  # logits; logits again, the gradient of the states and that of the weight
    # Frozen: the states' gradient is formed with the logits, unless an entropy has a gradient too.
    return 3 if where.needs.entropy else 2


def _value(models: Models, where: Situation, row: Shape, prompts: int) -> float:
    kind = where.needs.value
    if kind in ("none", "shared"):
        return 0.0
    facts = models.facts(where.stage.adapter, "reward")
    forward = 2.0 * facts.multiplied * row.tokens + attention_forward(facts, row)
    if kind == "head":
        return forward * prompts * (1 + where.needs.updates)
    weights = 2.0 * facts.trained_multiplied * row.tokens
    trained = 2 * forward + weights + (ATTENTION_BACKWARD - 1) * attention_forward(facts, row)
    return (forward + trained * where.needs.updates) * prompts


def _without_gradients(models: Models, where: Situation, once: float) -> float:
    needs = where.needs
    passes = float(needs.measured_again)
    if needs.reference in ("live", "adapter_off"):
        passes += 1
    elif needs.reference == "cached":
        passes += 1 / needs.epochs
    total = once * passes * needs.prompts
    if needs.teacher is not None:
        total += forward_of(models.other(needs.teacher), where.rows.mean) * needs.prompts
    return total


def _sampled(facts: Facts, where: Situation) -> dict[str, float]:
    """Prompts once each, then every token of every completion over all that came before it."""
    if where.needs.engine is None:
        return {}
    prompt, answers = where.rows.mean.prompt, where.rows.mean.responses
    ahead = forward_of(facts, Shape(prompt, ())) * where.needs.prompts
    seen = sum(answer * prompt + answer * (answer + 1) / 2 for answer in answers) * where.needs.prompts
    weights = 2.0 * (facts.multiplied + facts.projection) * sum(answers) * where.needs.prompts
    return {"prefill": ahead, "decode": weights + 4.0 * facts.layers * facts.heads * facts.head_size * seen}
