"""The nouns of posttrain, in the order in which a row becomes a gradient.

    rows -> Example -> TokenTree -> Batch -> TokenLogprobs -> LossOutput -> step

The last two are in `posttrain.outputs`, with the metrics. Every noun is a small frozen record; its docstring shows one
filled-in instance. This module imports neither torch nor numpy when it is loaded, so that reading and auditing data
stays light.

Shape suffixes used everywhere:

    T  tokens of one flat batch          N  trained tokens of one batch
    B  branches (responses) of a batch   P  trees of a batch (pairs, for comparisons)
    D  hidden size                       V  vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

# Only for annotations: `posttrain --help`, reading and auditing must not wait seconds for torch.
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
    # None and "" differ: some templates write a turn of tool calls alone otherwise than one with empty text.
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

    @property
    def is_text(self) -> bool:
        """Bare text, which nobody asked for: one turn of the assistant alone. All of it trains, without a template."""
        return len(self.messages) == 1 and self.messages[0].role == "assistant"


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
    # The responses stay in the order of the row, so that an error can name one by its place there.
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
    part: str | None = None
    """Name of the source of a mixture that it comes from, for figures by source; no part of the key."""

    @property
    def is_nested(self) -> bool:
        """Whether a branch continues another."""
        return any(branch.parent is not None for branch in self.branches)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Tokens of each branch with all that its path holds before it, the prompt first."""
        lengths: list[int] = []
        # A parent stands before its children, so its length is known by the time that they need it.
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
        # Before the count: a single branch that somebody called bad is no target to imitate.
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
        # The start is a Count: `sum` alone would begin with the int 0.
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
    # Not target - 1: the token before a branch in T may be its sibling's last, and one branch would be trained on
    # another.
    predictor_index_N: Tensor
    """Index in T of the token whose output predicts it: the one before on its path."""
    branch_N: Tensor
    # Not branches // 2: trees of one batch may have different numbers of branches.
    tree_B: Tensor
    branch_nodes: tuple[int, ...]
    """The node of each branch; the others are prompts."""
    keys: tuple[str, ...]
    rows: tuple[RowRef, ...]
    margin_P: Tensor | None = None
    """Annotated margin of each pair; None when no tree has one."""
    label_P: Tensor | None = None
    """bool, True = good; None unless every tree is feedback."""
    # NaN rather than 0 where there is none: 0 is a score.
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
        # A prompt's node is no branch, so a branch that continues it is not nested.
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


# ---------------------------------------------------------------- what is asked of a model


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
    # Of each response, not of the batch: the same tokens are measured however a step is cut into micro-batches.
    every: int = 1
    """It is measured at one of so many tokens of each response."""

    def spread(self, values_S: Tensor, index_S: Tensor, tokens: int) -> Tensor:
        """[N]: each value `every` times as large at its token, 0 elsewhere."""
        # Scaled up by `every`, so that a sum over the tokens keeps its expectation and kl_beta its meaning.
        return values_S.new_zeros(tokens).index_put((index_S.to(values_S.device),), self.every * values_S)


@dataclass(frozen=True, slots=True)
class Wants:
    """What is asked of a model's forward pass, by a method or by whoever else calls it.

    Wants(temperature=0.7, entropy=True): log-probs under softmax(logits / 0.7), and each distribution's entropy

    Nothing calls a model's layers but its `forward`, with one of these: a pass that began below it would run on weights
    that sharding has not gathered, in another precision, and without activation checkpointing.
    """

    # At another temperature than the rollout's, every ratio is wrong from the first update on, and nothing fails.
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
