"""States of a tree search, with visits and values.

root = State(None)
state = descend(root, exploration=1.4, room=lambda state: 4)     # UCT, to a state that can be expanded or judged
back_up(state, 0.7)                                              # N + 1 and W + 0.7 from there to the root

UCT(s) = W(s) / N(s) + c sqrt(ln N(parent) / N(s))               Kocsis, Szepesvári 2006
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from posttrain.inference.solution import Node


@dataclass(slots=True, eq=False)
class State:
    """An answer so far, as a place of the tree: State(node, parent=root, visits=3, total=1.9)."""

    node: Node | None
    """None: the prompt itself."""
    parent: State | None = None
    children: list[State] = field(default_factory=list)
    drawn: int = 0
    """Next steps that were drawn from it; equal ones are one child."""
    visits: int = 0
    """N."""
    total: float = 0.0
    """W: the sum of the values that were backed up through it."""

    @property
    def mean(self) -> float:
        """Q; 0 before the first visit."""
        return self.total / self.visits if self.visits else 0.0

    @property
    def closed(self) -> bool:
        """Whether nothing can follow."""
        return self.node is not None and not self.node.open

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    def add(self, nodes: Sequence[Node]) -> list[State]:
        """Next steps as children; the new ones, for a step that says what another does is no state of its own."""
        self.drawn += len(nodes)
        known = {child.node.ids: child.node for child in self.children if child.node is not None}
        new = []
        for node in nodes:
            if node.ids in known:
                # One dict for both: what the first is found to be worth, the second is worth too. Labels of steps are
                # shares of all draws, also of those that agree.
                node.note, node.scores = "said before", known[node.ids].scores
                continue
            known[node.ids] = node
            new.append(State(node, self))
        self.children += new
        return new

    def below(self) -> Iterator[State]:
        """Itself and all states after it."""
        yield self
        for child in self.children:
            yield from child.below()


def uct(state: State, exploration: float) -> float:
    """The bound by which a state is chosen among its siblings; one that was never visited comes first."""
    assert state.parent is not None, "the root has no siblings"
    if not state.visits:
        return math.inf
    return state.mean + exploration * math.sqrt(math.log(state.parent.visits) / state.visits)


def descend(root: State, exploration: float, room: Callable[[State], int]) -> State:
    """Down by UCT, of equal bounds to the earlier child, to a state with room for more next steps than were drawn."""
    state = root
    while state.children and state.drawn >= room(state):
        bounds = [uct(child, exploration) for child in state.children]
        state = state.children[bounds.index(max(bounds))]
    return state


def back_up(state: State | None, value: float) -> None:
    """One visit with this value, from the state up to the root."""
    while state is not None:
        state.visits += 1
        state.total += value
        if state.node is not None:
            state.node.facts["visits"] = state.visits
            state.node.facts["value"] = state.mean
        state = state.parent


def best_path(root: State, key: Callable[[State], float]) -> State:
    """Down by the highest key among visited children, of equal ones by the earlier, to a state without any."""
    state = root
    while visited := [child for child in state.children if child.visits]:
        keys = [key(child) for child in visited]
        state = visited[keys.index(max(keys))]
    return state
