"""The nouns of posttrain, in the order in which a row becomes a gradient.

    rows -> Example -> TokenTree -> Batch -> TokenLogprobs -> LossOutput -> step

Every noun is a small frozen record; its docstring shows one filled-in instance. This module imports
neither torch nor numpy when it is loaded, so that reading and auditing data stays light.

Shape suffixes used everywhere:

    T  tokens of one flat batch          N  trained tokens of one batch
    B  branches (responses) of a batch   P  trees of a batch (pairs, for comparisons)
    D  hidden size                       V  vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Role = Literal["system", "user", "assistant", "tool"]


# ---------------------------------------------------------------- examples: what a row says


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Message("assistant", None, tool_calls=({"type": "function",
            "function": {"name": "add", "arguments": {"a": 1, "b": 2}}},))
    """

    role: Role
    content: str | None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """In the OpenAI layout, as chat templates expect them; `arguments` is a mapping."""
    name: str | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    """The `reasoning_content` of a thinking turn; templates that know it render it."""
    train: bool | None = None
    """Overrides the role's rule: True trains this turn, False never does, None leaves it to the encoder."""
    complete: bool = True
    """False for an answer that was cut before its end: it is encoded without the stop token, which nobody wrote."""


@dataclass(frozen=True, slots=True)
class RowRef:
    """Where a row came from: RowRef("pairs.jsonl", 417); rows count from 1 within their file."""

    source: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}, row {self.row}"


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation to imitate.

    Demonstration((Message("user", "2 + 2?"), Message("assistant", "4")), RowRef("sft.jsonl", 1))
    """

    messages: tuple[Message, ...]
    row: RowRef
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Responses to one prompt, best first when `ranking` is not given.

    Comparison((Message("user", "Hi"),), ((Message("assistant", "Hello."),), (Message("assistant", "What."),)),
               winner=0, row=RowRef("pairs.jsonl", 1), scores=(4.5, 2.0))
    """

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    """K >= 2 continuations; each is the messages after the prompt and begins with the assistant."""
    winner: int
    row: RowRef
    ranking: tuple[int, ...] | None = None
    """Indices of all responses, best first; None for a pair, whose order `winner` gives."""
    margin: float | None = None
    scores: tuple[float, ...] | None = None
    votes: tuple[int, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Feedback:
    """One response that somebody called good or bad.

    Feedback((Message("user", "Hi"),), (Message("assistant", "Hello."),), good=True, row=RowRef("kto.jsonl", 1))
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    good: bool
    row: RowRef
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class StepwiseFeedback:
    """A response in steps, each of which somebody called right or wrong.

    StepwiseFeedback((Message("user", "2 + 3 * 4?"),), steps=("3 * 4 = 12", "2 + 12 = 15"), labels=(1.0, 0.0),
                     row=RowRef("steps.jsonl", 1))
    """

    prompt: tuple[Message, ...]
    steps: tuple[str, ...]
    """At least one, none of them blank."""
    labels: tuple[float | None, ...]
    """One per step: 1 right, 0 wrong, between them how likely it is right; None where nobody said."""
    row: RowRef
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt whose answer a verifier can check.

    Task((Message("user", "What is 17 + 25?"),), answer="42", metadata={"level": 2}, row=RowRef("sums.jsonl", 1))
    """

    prompt: tuple[Message, ...]
    answer: str | None
    row: RowRef
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()


Example = Demonstration | Comparison | Feedback | StepwiseFeedback | Task


# ---------------------------------------------------------------- token trees: what the model sees


@dataclass(frozen=True, slots=True)
class MediaRef:
    """An image or another medium that stands in a prompt: MediaRef("image", at=4, digest="9f2c...")."""

    kind: str
    at: int
    """Index among the prompt's ids."""
    digest: str
    """Of its content: two rows that differ in the image alone are two contents."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One continuation of a prompt, or of another branch: Branch(ids=[52, 2], loss_mask=[True, True], parent=None)."""

    ids: np.ndarray
    """int32, at least one token."""
    loss_mask: np.ndarray
    """bool, same length; True = this token trains. The one polarity, everywhere."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Numbers that each token carries, same length, by name: {"advantages": [0.7, 0.7]}; float32 or wider. What stands
    at a token that does not train is never read, so it may be NaN. No part of the tree's key."""
    parent: int | None = None
    """The branch of this tree that it continues, one before it; None: it continues the prompt."""


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A prompt's ids and the k >= 0 branches that continue it, or each other: a tree of any depth.

    A preference pair with a shared prompt of three tokens, the chosen response first:

    TokenTree(prompt_ids=[1, 70, 71], branches=(Branch([52, 2], [T, T]), Branch([53, 54, 2], [T, T, T])),
              key="9f2c...", row=RowRef("pairs.jsonl", 1))

    A demonstration is one branch, a pair two, a GRPO group G, a ranked list K. The prompt never trains.

    The turns of an agent, or the steps of a search, continue each other: Branch([52, 2], [T, T]),
    Branch([9, 55], [F, T], parent=0), Branch([9, 56], [F, T], parent=0). A branch has a sequence of its own, which is
    its own tokens after all that its path holds before them. So each token trains once, however many branches go on
    from it; a loss counts every branch as a response (`Count.branches`), and sums over a branch are over its own
    tokens. The log-prob of a whole path is the sum over its branches. Losses that compare responses with each other
    take trees whose branches all continue the prompt.
    """

    prompt_ids: np.ndarray
    """int32; may be empty only if the first token of every branch does not train (nothing predicts it)."""
    branches: tuple[Branch, ...]
    key: str
    """Content hash of ids, masks and annotations: the same tree has the same key in every file and order."""
    row: RowRef
    margin: float | None = None
    label: bool | None = None
    """Feedback: whether the response is good; None where nobody said so."""
    scores: tuple[float, ...] | None = None
    """What the annotators gave each branch, in branch order."""
    step_labels: tuple[float, ...] | None = None
    """Stepwise feedback: for each trained token, which ends a step, how right that step is, from 0 to 1."""
    media: tuple[MediaRef, ...] = ()
    """What stands in the prompt beside text. It is part of the key, and no batch takes it yet."""

    @property
    def is_nested(self) -> bool:
        """Whether a branch continues another."""
        return any(branch.parent is not None for branch in self.branches)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Tokens of each branch with all that its path holds before it, the prompt first."""
        lengths: list[int] = []
        for branch in self.branches:
            before = len(self.prompt_ids) if branch.parent is None else lengths[branch.parent]
            lengths.append(before + len(branch.ids))
        return tuple(lengths)

    @property
    def roles(self) -> tuple[str, ...]:
        """What each branch is: ("target",), ("good",), ("bad",), ("chosen", "rejected"), ("rank 1", "rank 2"...), or
        ("branch 1", "branch 2"...) where they continue each other."""
        if self.is_nested:
            return tuple(f"branch {i + 1}" for i in range(len(self.branches)))
        if self.label is not None:
            return ("good",) if self.label else ("bad",)
        if len(self.branches) == 2:
            return ("chosen", "rejected")
        return ("target",) if len(self.branches) == 1 else tuple(f"rank {i + 1}" for i in range(len(self.branches)))

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(branch.ids) for branch in self.branches)

    @property
    def num_trained(self) -> int:
        return sum(int(branch.loss_mask.sum()) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Count:
    """What a step trains on, over all micro-batches and ranks: Count(tokens=512, branches=16, trees=8).

    Losses divide by one of these, so it is known before the first forward.
    """

    tokens: int
    branches: int
    trees: int

    def __add__(self, other: Count) -> Count:
        return Count(self.tokens + other.tokens, self.branches + other.branches, self.trees + other.trees)

    @classmethod
    def summed(cls, parts: Iterable[Count]) -> Count:
        """Of several parts, such as the ranks of a step: Count.summed([Count(3, 2, 1), Count(4, 2, 1)])."""
        return sum(parts, cls(0, 0, 0))


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens in the flat sequence: Node(start=3, end=5, parent=0); parent -1 marks a root.

    Tokens of a node see all of its ancestors' tokens and the earlier tokens of the node itself, nothing else.
    """

    start: int
    end: int
    parent: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Trees laid end to end in one flat, padding-free sequence.

    The pair above (prompt 3 tokens, chosen 2, rejected 3) as a batch of one tree:

    Batch(input_ids_T=[1, 70, 71, 52, 2, 53, 54, 2], positions_T=[0, 1, 2, 3, 4, 3, 4, 5],
          nodes=(Node(0, 3, -1), Node(3, 5, 0), Node(5, 8, 0)),
          target_index_N=[3, 4, 5, 6, 7], predictor_index_N=[2, 3, 2, 5, 6], branch_N=[0, 0, 1, 1, 1],
          tree_B=[0, 0], branch_nodes=(1, 2), keys=("9f2c...",), rows=(RowRef("pairs.jsonl", 1),), margin_P=None)

    Branches are numbered in tree order, so a batch of pairs has its chosen sides at 0, 2, 4, ...
    and its rejected sides at 1, 3, 5, ... A branch's node stands after that of the branch that it continues.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    nodes: tuple[Node, ...]
    target_index_N: Tensor
    """Index in T of each trained token."""
    predictor_index_N: Tensor
    """Index in T of the token whose output predicts it: the one before on its path."""
    branch_N: Tensor
    tree_B: Tensor
    branch_nodes: tuple[int, ...]
    """The node of each branch; the others are prompts."""
    keys: tuple[str, ...]
    rows: tuple[RowRef, ...]
    margin_P: Tensor | None = None
    """Annotated margin of each pair; None when no tree has one."""
    label_P: Tensor | None = None
    """bool, True = good; None unless every tree is feedback."""
    scores_B: Tensor | None = None
    """Annotated score of each branch, NaN where a tree has none; None when no tree has any."""
    step_labels_N: Tensor | None = None
    """What was said of the step that each trained token ends, 0 to 1; None unless every tree is stepwise feedback."""
    columns_N: Mapping[str, Tensor] = field(default_factory=dict)
    """What the trained tokens carry, by name, in the order of `target_index_N`: {"advantages": [0.7, 0.7, ...]}."""

    @property
    def target_ids_N(self) -> Tensor:
        return self.input_ids_T[self.target_index_N]

    @property
    def is_nested(self) -> bool:
        """Whether a branch continues another."""
        branches = set(self.branch_nodes)
        return any(self.nodes[node].parent in branches for node in self.branch_nodes)

    @property
    def num_branches(self) -> int:
        return int(self.tree_B.shape[0])

    @property
    def num_trees(self) -> int:
        return len(self.keys)

    @property
    def count(self) -> Count:
        return Count(int(self.target_index_N.shape[0]), self.num_branches, self.num_trees)


# ---------------------------------------------------------------- what is asked of a model, and what comes back


class HasDistributions(Protocol):
    """A policy, or a reference that is a model: its next-token distributions at trained tokens [S] of a batch."""

    def distributions(self, batch: Batch, index_S: Tensor | None = None, *, temperature: float = 1.0) -> Any: ...


@dataclass(slots=True)
class Against:
    """Another model, whose whole distributions a policy's are compared with at the tokens that it trains on.

    Against(reference, mixture=1.0, every=4): KL(policy || reference) at a quarter of the tokens
    """

    other: HasDistributions
    """Read at each call: a stage puts its reference here once there is one."""
    mixture: float
    """0 is KL(other || policy), 1 is KL(policy || other); between them the generalised JSD."""
    every: int = 1
    """It is measured at one of so many tokens of each response."""

    def spread(self, values_S: Tensor, index_S: Tensor, tokens: int) -> Tensor:
        """[N]: each value `every` times as large at its token, 0 elsewhere."""
        return values_S.new_zeros(tokens).index_put((index_S.to(values_S.device),), self.every * values_S)


@dataclass(frozen=True, slots=True)
class Wants:
    """What is asked of a model's forward pass, by a method or by whoever else calls it.

    Wants(temperature=0.7, entropy=True): log-probs under softmax(logits / 0.7), and each distribution's entropy

    Nothing calls a model's layers but its `forward`, with one of these: a pass that began below it would run on weights
    that sharding has not gathered, in another precision, and without activation checkpointing.
    """

    temperature: float = 1.0
    """Of the distribution whose log-probs are taken: that which sampled the tokens."""
    logprobs: bool = True
    """Without them nothing is projected to the vocabulary, and `logprobs_N` is empty."""
    entropy: bool = False
    """Give `entropy_N`, with its gradient."""
    collision: bool = False
    """Give `log_collision_N`; on the tree path it is a second projection."""
    against: Against | None = None
    """Give `divergence_N` from this model; on the tree path of the same hidden states, on the others by a second
    forward pass."""
    value_head: nn.Module | None = None
    """[N, D] -> [N, 1]; give `values_N`, of the states that predict the tokens."""
    routing: bool = False
    """Give `routing`, if this is a mixture of experts whose family balances its router by a loss."""
    distributions_at: Tensor | None = None
    """[S], which of the N trained tokens; give `distributions` there. Off the tree path their logits are held."""
    hidden: bool = False
    """Give `hidden_ND`; log-probs are then made of these states by the head alone, on every path."""
    probe: Literal["compared", "row_outputs"] | None = None
    """Of the proofs before step 1: the call answers with this alone (`posttrain.models.tree.model`)."""


PLAIN = Wants()
"""Log-probs alone, at temperature 1."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What the routers of a mixture of experts did with a batch's tokens; the parts of a step add up.

    Routing(chosen_LE=[[3.0, 1.0], [2.0, 2.0]], probability_E=[4.4, 3.6], places=8.0): four tokens, two layers, and of
    two experts one for each token. A token counts once for each row that it stands in.
    """

    chosen_LE: Tensor
    """How many tokens each layer sent to each expert; no gradient."""
    probability_E: Tensor
    """The router's probability of each expert, summed over tokens and layers, with its gradient."""
    places: float
    """Tokens times layers."""

    def __add__(self, other: Routing) -> Routing:
        return Routing(
            self.chosen_LE + other.chosen_LE, self.probability_E + other.probability_E, self.places + other.places
        )

    def detach(self) -> Routing:
        return Routing(self.chosen_LE, self.probability_E.detach(), self.places)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """log p(token) of each trained token, and the entropy of its distribution if asked for.

    TokenLogprobs(logprobs_N=[-0.11, -2.30, ...], entropy_N=None); nats, fp32 or the model's wider type. What was not
    asked for (`Wants`) is None.
    """

    logprobs_N: Tensor
    entropy_N: Tensor | None = None
    log_collision_N: Tensor | None = None
    """log sum_v p(v)^2 of that distribution, without gradient: what a token sampled from it has on average."""
    divergence_N: Tensor | None = None
    """Divergence over the whole vocabulary from another model, nats, with its gradient. Where it is measured at one of
    k tokens, it is k times as large there and 0 elsewhere, so that sums are right on average."""
    values_N: Tensor | None = None
    """What the state before each token is worth, by a head on the policy's own backbone, with its gradient."""
    routing: Routing | None = None
    """Where the tokens went in a mixture of experts, if asked for."""
    hidden_ND: Tensor | None = None
    """The backbone's last hidden states where each token is predicted."""
    distributions: Any = None
    """A `posttrain.models.tree.divergence.Distributions` at some of the tokens."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a reward model gives each response: one number per branch and output of its head.

    Scores(scores_BH=[[0.7], [-0.2]]) for one pair and a head of one output; fp32 or the model's wider type.
    """

    scores_BH: Tensor
    steps_SH: Tensor | None = None
    """The score of each marked step, of which `scores_BH` is made; None where responses are scored as a whole."""
    branch_S: Tensor | None = None
    """The branch of each step."""
    routing: Routing | None = None
    """Where the tokens went in a mixture of experts, if asked for."""


# ---------------------------------------------------------------- metrics: numbers that know how they add up


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that carries its sum and its count: Mean(3.0, 12) merged with Mean(3.0, 4) is 0.375."""

    sum: float | Tensor
    count: float | Tensor
    empty: float | None = None
    """The value where nothing was counted; None: there is none. A loss has one, since what is minimised is then 0."""

    def merge(self, other: Mean) -> Mean:
        return Mean(self.sum + other.sum, self.count + other.count, self.empty)

    @property
    def value(self) -> float:
        """NaN where nothing was counted, unless `empty` says otherwise: an absent measurement is not a zero."""
        count = float(self.count)
        if count:
            return float(self.sum) / count
        return float("nan") if self.empty is None else self.empty


@dataclass(frozen=True, slots=True)
class Total:
    """A quantity that adds up over micro-batches and ranks: Total(512)."""

    sum: float | Tensor

    def merge(self, other: Total) -> Total:
        return Total(self.sum + other.sum)

    @property
    def value(self) -> float:
        return float(self.sum)


@dataclass(frozen=True, slots=True)
class Maximum:
    """The largest of what was seen: Maximum(3.5)."""

    largest: float | Tensor

    def merge(self, other: Maximum) -> Maximum:
        first, second = float(self.largest), float(other.largest)
        # max() keeps or drops a NaN by its place, and one that is dropped is a fault that nobody sees.
        return Maximum(first if math.isnan(first) or first >= second else second)

    @property
    def value(self) -> float:
        return float(self.largest)


@dataclass(frozen=True, slots=True)
class Deviation:
    """A standard deviation that carries what it needs to be merged: Deviation(count=3, mean=2.0, squares=2.0) is 0.816.

    `squares` is the sum of squared distances from the mean; merged as in Chan, Golub and LeVeque 1983, which loses no
    digits where the mean is large.
    """

    count: float
    mean: float | Tensor
    squares: float | Tensor

    def merge(self, other: Deviation) -> Deviation:
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return Deviation(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart * apart * (self.count * other.count / count),
        )

    @property
    def value(self) -> float:
        """NaN where nothing was counted."""
        return (float(self.squares) / self.count) ** 0.5 if self.count else float("nan")


@dataclass(frozen=True, slots=True)
class EffectiveSize:
    """What share of a weighted sample counts, (Σw)² / (n Σw²): EffectiveSize(sum=4.0, squares=10.0, count=2) is 0.8.

    Kish 1965. 1 where all weights are equal; 1/n where one of them is everything.
    """

    sum: float | Tensor
    squares: float | Tensor
    count: float

    def merge(self, other: EffectiveSize) -> EffectiveSize:
        return EffectiveSize(self.sum + other.sum, self.squares + other.squares, self.count + other.count)

    @property
    def value(self) -> float:
        """NaN where nothing was counted."""
        squares = float(self.squares) * self.count
        return float(self.sum) ** 2 / squares if squares else float("nan")


@dataclass(frozen=True, slots=True)
class ExplainedVariance:
    """How much of a target a prediction explains: 1 - Var(target - prediction) / Var(target).

    ExplainedVariance(residual=Deviation(3, 0.0, 0.5), target=Deviation(3, 2.0, 2.0)) is 0.75. 1 is a perfect
    prediction, 0 is one no better than the mean, and below 0 it is worse.
    """

    residual: Deviation
    target: Deviation

    def merge(self, other: ExplainedVariance) -> ExplainedVariance:
        return ExplainedVariance(self.residual.merge(other.residual), self.target.merge(other.target))

    @property
    def value(self) -> float:
        """NaN where the target is constant: there is nothing to explain."""
        squares = float(self.target.squares)
        return 1.0 - float(self.residual.squares) / squares if squares else float("nan")


Metric = Mean | Total | Maximum | Deviation | EffectiveSize | ExplainedVariance


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss to call backward on, and what is worth knowing about it.

    LossOutput(loss=tensor(0.6931), metrics={"loss": Mean(5.545, 8), "accuracy": Mean(5, 8)},
               per_tree={"rewards_chosen": tensor([...]), "rewards_rejected": tensor([...])})
    """

    loss: Tensor
    """Scalar, already divided by the *global* denominator: micro-batches add up to the step's loss."""
    metrics: dict[str, Metric]
    per_tree: dict[str, Tensor] = field(default_factory=dict)
    """Detached, one value per tree, for distributions and samples."""
    per_branch: dict[str, Tensor] = field(default_factory=dict)
    """Detached, one value per branch: what each response of a sample is shown with."""
    teaching: Tensor | None = None
    """The part of `loss` for which the method exists, without the penalties, bonuses and auxiliary losses beside it;
    None: all of it. A dead method cannot hide behind the gradient of those."""
