"""Tree of thoughts: states are answers so far in thoughts; the model proposes next ones, judges them, and is searched.

    breadth   S_0 = {question};  for t = 1..T
                  S'_t  = k next thoughts of each state of S_{t-1}
                  V     = values of, or votes on, S'_t
                  S_t   = the b best of S'_t
              the answer from the best of S_T                                     (algorithm 1)
    depth     the next thoughts of a state by value, best first; those of at least the floor are gone on with, until one
              comes to its end; back where there is none, for at most `max_states` states   (algorithm 2)

Yao et al. 2023, arXiv:2305.10601, section 3. Thoughts are sampled (each goes on with the answer) or proposed (one
request lists k). States are valued one by one (sure 20, maybe 1, impossible 0.001, or marks from 1 to 10; means of
several) or voted on (a state's value is its votes), or judged by a scorer.

Deviations
 1. Means and not sums of values, which order alike; a judgement that says no value counts as none, and a state without
    any is last.
 2. Equal texts among the next thoughts are one state, as the paper's code has it for proposals.
 3. In depth the first end that is reached is the answer; the paper goes on to a number of steps and takes the best.
 4. From proposed thoughts the final answer is asked for in a request of its own; a sampled answer is written to its
    end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from posttrain.config.strategies.search import TreeOfThoughts
from posttrain.inference.prompts import asking, question_text
from posttrain.inference.scorers import ABSTAINED
from posttrain.inference.search.frontier import PRUNED
from posttrain.inference.search.thoughts import (
    filled,
    listed,
    mark_value,
    numbered,
    vote_of,
    word_value,
)
from posttrain.inference.solution import Node, Solution
from posttrain.inference.solving import Solving
from posttrain.types import Message

FLOORS = {"words": 1.0, "marks": 5.0, "scorer": 0.0}


@dataclass(slots=True, eq=False)
class _State:
    """An answer so far: _State(node, "3 * 4 = 12\\n2 + 12 = 14", depth=2, value=20.0)."""

    node: Node | None
    text: str = ""
    depth: int = 0
    value: float = 0.0

    @property
    def closed(self) -> bool:
        return self.node is not None and self.node.kind == "answer"

    @property
    def about(self) -> list[Node]:
        """What a request about it has as its parents."""
        return [] if self.node is None else [self.node]


async def solve(solving: Solving, settings: TreeOfThoughts) -> Solution:
    thoughts = _Thoughts(solving, settings)
    best = await (thoughts.breadth() if settings.search == "breadth" else thoughts.depth())
    return solving.solution(await thoughts.final(best), states=thoughts.judged)


class _Thoughts:
    def __init__(self, solving: Solving, settings: TreeOfThoughts):
        self.solving, self.settings, self.prompts = solving, settings, settings.prompts
        self.question = question_text(solving.prompt)
        self.judged = 0
        self.best: _State | None = None

    # ------------------------------------------------------------ the two searches

    async def breadth(self) -> _State:
        states = [_State(None)]
        for _ in range(self.settings.max_steps):
            ended = [state for state in states if state.closed]
            new = await self.expand([state for state in states if not state.closed])
            # Answers that have ended compete for their places with those that go on.
            candidates = ended + new
            if not new:
                break
            await self.judge(candidates if self.settings.judge == "voted" else new)
            states = sorted(candidates, key=lambda state: -state.value)[: self.settings.keep]
            for state in candidates:
                _note(state, "" if state in states else PRUNED)
            self._lead(states[0])
        return states[0]

    async def depth(self) -> _State:
        floor = self.settings.floor
        if floor is None:
            floor = FLOORS["scorer" if self.settings.judge == "scorer" else self.settings.scale]
        # Last in, first out: what stands on top is the best next thought of the deepest state.
        stack = [_State(None)]
        furthest: _State | None = None
        while stack:
            state = stack.pop()
            if state.node is not None:
                if furthest is None or (state.depth, state.value) > (furthest.depth, furthest.value):
                    furthest = state
                    self._lead(state)
                if state.closed or state.depth >= self.settings.max_steps:
                    return state
            if self.judged >= self.settings.max_states:
                break
            new = await self.expand([state])
            await self.judge(new)
            for lower in (one for one in new if one.value < floor):
                _note(lower, PRUNED)
            worth = sorted((one for one in new if one.value >= floor), key=lambda one: -one.value)
            stack += reversed(worth)
        return furthest or self.best or _State(None)

    # ------------------------------------------------------------ thoughts

    async def expand(self, states: Sequence[_State]) -> list[_State]:
        """Next thoughts of each state; of equal texts the first."""
        if not states:
            return []
        sampled = self.settings.thoughts == "sampled"
        new = await (self._sampled(states) if sampled else self._proposed(states))
        first: dict[tuple[str, bool], _State] = {}
        for state in new:
            if first.setdefault((state.text, state.closed), state) is not state:
                _note(state, "said before")
        return list(first.values())

    async def _sampled(self, states: Sequence[_State]) -> list[_State]:
        rows = await self.solving.sample_each(
            [state.node for state in states], self.settings.k, step=self.settings.step, kind="step"
        )
        new = []
        for state, row in zip(states, rows, strict=True):
            for node in row:
                node.kind = "step" if node.open else "answer"
                new.append(_State(node, node.answer, state.depth + 1))
        return new

    async def _proposed(self, states: Sequence[_State]) -> list[_State]:
        count = str(self.settings.k)
        conversations = [(self._asked(self.prompts.propose, state, count=count), state.about) for state in states]
        rows = await self.solving.ask_each(conversations, 1, kind="proposal")
        new = []
        for state, (reply,) in zip(states, rows, strict=True):
            for thought in listed(reply.text)[: self.settings.k]:
                text = f"{state.text}\n{thought}" if state.text else thought
                node = self.solving.part(reply, thought, kind="thought", answer=text)
                new.append(_State(node, text, state.depth + 1))
        return new

    def _asked(self, prompt: str, state: _State, **places: str) -> tuple[Message, ...]:
        thoughts = state.text.strip() or "(none yet)"
        return asking(self.solving.prompt, filled(prompt, question=self.question, thoughts=thoughts, **places))

    # ------------------------------------------------------------ judging

    async def judge(self, states: Sequence[_State]) -> None:
        """Sets each state's value."""
        if not states:
            return
        self.judged += len(states)
        nodes = [state.node for state in states if state.node is not None]
        if self.settings.judge == "scorer":
            assert self.settings.scorer is not None, "settings refuse this judge without a scorer"
            partial = any(node.open for node in nodes)
            values = await self.solving.score(nodes, self.settings.scorer, partial=partial)
        elif self.settings.judge == "voted":
            values = await self._votes(states, nodes)
        else:
            values = await self._valued(states)
        for state, node, value in zip(states, nodes, values, strict=True):
            state.value = value
            if value != ABSTAINED:
                node.facts["value"] = value

    async def _valued(self, states: Sequence[_State]) -> list[float]:
        words = self.settings.scale == "words"
        read, prompt = (word_value, self.prompts.words) if words else (mark_value, self.prompts.marks)
        asked = [(self._asked(prompt, state), state.about) for state in states]
        rows = await self.solving.ask_each(
            asked, self.settings.judgements, kind="value", max_new_tokens=self.settings.judge_tokens
        )
        means = []
        for row in rows:
            said = [value for reply in row if (value := read(reply.text)) is not None]
            means.append(fmean(said) if said else ABSTAINED)
        return means

    async def _votes(self, states: Sequence[_State], nodes: Sequence[Node]) -> list[float]:
        choices = numbered([state.text for state in states])
        text = filled(self.prompts.vote, question=self.question, choices=choices)
        replies = await self.solving.ask(
            asking(self.solving.prompt, text),
            self.settings.judgements,
            kind="vote",
            about=nodes,
            max_new_tokens=self.settings.judge_tokens,
        )
        votes = [0.0] * len(states)
        for reply in replies:
            choice = vote_of(reply.text, len(states))
            if choice is not None:
                votes[choice] += 1
        return votes

    # ------------------------------------------------------------ the end

    def _lead(self, state: _State) -> None:
        self.best, self.solving.leading = state, state.node

    async def final(self, state: _State) -> Node | None:
        """The answer from the best state: itself, the rest of it, or the answer that its thoughts lead to."""
        node = state.node
        if node is None or self.settings.thoughts == "proposed":
            asked = self._asked(self.prompts.final, state)
            (node,) = await self.solving.ask(asked, kind="answer", about=state.about)
        elif node.open:
            (node,) = await self.solving.sample(after=node)
        node.note = "chosen"
        return node


def _note(state: _State, note: str) -> None:
    if state.node is not None:
        state.node.note = note
