"""What came of one prompt: the answer, all that was tried on the way, what it cost, and why it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from posttrain.rollout.engine import Alternatives, FinishReason
from posttrain.types import Message, Task


class Stopped(StrEnum):
    """Why a strategy ended."""

    DONE = "done"
    """It did all that it sets out to do."""
    AGREED = "agreed"
    """Its own rule for stopping early held: answers agree, a verifier is content, a revision changed nothing."""
    TOKENS = "tokens"
    """The limit of sampled tokens was reached."""
    SECONDS = "seconds"
    """The limit of time was reached."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a prompt cost: Spent(sampled=1_520, read=64, scored=3_100, requests=16, seconds=2.1).

    Every token that a strategy causes is in one of the three counts, whoever asked for it.
    """

    sampled: int = 0
    """Tokens that the model drew, stop tokens included: what budgets and pictures count."""
    read: int = 0
    """Prompt tokens of the requests, a prompt's once however many draws it has in one call."""
    scored: int = 0
    """Tokens that reward models read: of the answers, prompts not counted."""
    requests: int = 0
    """Draws."""
    seconds: float = 0.0
    """From the prompt's first request to its end; other prompts were answered at the same time."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.sampled + other.sampled,
            self.read + other.read,
            self.scored + other.scored,
            self.requests + other.requests,
            self.seconds + other.seconds,
        )


@dataclass(slots=True, eq=False)
class Node:
    """Something that the model wrote: a whole answer, a step of one, a critique, a vote.

    Node(3, kind="step", parents=(1,), prompt_ids=(1, 70, 71), before_ids=(52,), ids=(53, 10), text="12\\n", ...)

    Nodes with one parent are a tree; a merge of several thoughts has them all as parents (graph of thoughts).
    """

    number: int
    """Its place in `Solution.nodes`."""
    kind: str
    """`answer` and `step` continue what stands before them; others (`critique`, `value`, `vote`, `merge`, ...) were
    asked for in a conversation of their own, about their parents."""
    parents: tuple[int, ...]
    """Numbers of the nodes that it continues, or is about."""
    messages: tuple[Message, ...]
    """The conversation that it answers."""
    prompt_ids: tuple[int, ...]
    """Of that conversation, without what was written of the answer before this node."""
    before_ids: tuple[int, ...]
    """Of the answer before this node: sampled by its ancestors, or put there (a "Wait")."""
    ids: tuple[int, ...]
    """Sampled here, exactly."""
    logprobs: tuple[float, ...]
    """One per id, under the distribution that it was drawn from."""
    finish: FinishReason
    text: str
    """Of `ids`, the stop token left off; a step keeps the separator that ended it."""
    answer: str
    """The whole answer so far: of `before_ids` and `ids`, cut before a stop string."""
    ended: bool = False
    """Whether the model ended the answer here: by a stop token, or a stop string of the sampling."""
    open: bool = False
    """Whether the answer can be continued: it has not ended, and may have more tokens."""
    alternatives: tuple[Alternatives, ...] = ()
    """One per id where they were asked for."""
    scores: dict[str, float] = field(default_factory=dict)
    """By what gave them: {"reward": 1.7, "value": 0.62}."""
    step_scores: tuple[float, ...] = ()
    """Of a process reward model: one for each step of the answer so far."""
    facts: dict[str, float] = field(default_factory=dict)
    """What a strategy notes: visits of a tree search, a particle's weight, a vote's count."""
    note: str = ""
    """In words, for people who look at the tree: "pruned", "chosen", "the budget ended here"."""

    @property
    def path_ids(self) -> tuple[int, ...]:
        """The answer's ids up to here."""
        return self.before_ids + self.ids


@dataclass(frozen=True, slots=True)
class Solution:
    """What a strategy found: Solution("best_of_n", task, answer="42", chosen=3, nodes=(...), spent=..., stopped=...).

    A strategy that merges or rewrites has an answer of its own; else it is that of `nodes[chosen]`.
    """

    strategy: str
    """The strategy's label."""
    task: Task
    answer: str
    """The text that was found; empty where nothing could be."""
    chosen: int | None
    """Number of the node that is the answer; None where there is none."""
    nodes: tuple[Node, ...]
    """All that the model wrote, in the order in which it was asked for."""
    spent: Spent
    stopped: Stopped
    facts: Mapping[str, float] = field(default_factory=dict)
    """What the strategy says of the whole: {"votes": 11, "answers": 16}."""

    @property
    def answers(self) -> list[Node]:
        """The candidates: nodes that are whole answers to the prompt itself, or were cut while they became one."""
        return [node for node in self.nodes if node.kind == "answer"]

    def path(self, node: Node | int) -> list[Node]:
        """A node's first ancestor to the node itself, along first parents."""
        at = self.nodes[node] if isinstance(node, int) else node
        path = [at]
        while at.parents:
            at = self.nodes[at.parents[0]]
            path.append(at)
        return path[::-1]


def recounted(nodes: Sequence[Node]) -> int:
    """Sampled tokens by the nodes alone: what `Spent.sampled` must be."""
    return sum(len(node.ids) for node in nodes)
