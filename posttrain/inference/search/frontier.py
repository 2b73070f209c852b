"""Answers that grow step by step, side by side: draw next steps, score what there is, keep some, choose at the end.

    search = Frontier(solving, settings.scorer, step="\\n\\n", max_steps=40)
    (candidates,) = await search.grow([None], 16)          # first steps
    await search.judge(candidates)
    kept = search.keep(candidates, search.best(candidates, 4))
    rows = await search.grow(kept, 4)                      # four next steps of each

Every strategy over steps is these calls in its own order. An answer is closed when the model ended it or it has all the
tokens that it may have; closed answers are what a choice is made among at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from posttrain.config.strategies.base import AnswerEquality, ScorerSettings
from posttrain.inference.scorers import label_of
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded, first_best
from posttrain.inference.strategies.best_of_n import weighted_best

PRUNED = "pruned"
CANDIDATES = ("step", "answer", "merge", "refine")
"""Kinds of nodes that are an answer to the prompt, whole or in part."""


class Frontier:
    """Answers of one prompt that are being written.

    Args:
        scorer: who judges them.
        step: what ends a step, as in `Solving.sample`.
        max_steps: most steps of an answer; the last one goes on to the answer's end.
        lookahead: a step is judged by the answer so many greedy steps later.
    """

    def __init__(
        self,
        solving: Solving,
        scorer: ScorerSettings,
        *,
        step: str | int | None = None,
        max_steps: int = 1,
        lookahead: int = 0,
    ):
        self.solving, self.scorer = solving, scorer
        self.step, self.max_steps, self.lookahead = step, max_steps, lookahead
        self.scores: dict[int, float] = {}
        """Of every node that was judged, by its number."""
        self.finished: list[Node] = []
        """Answers among which the end chooses."""
        self.rounds = 0
        self.facts: dict[str, float] = {}
        """What the strategy says of the whole."""

    # ------------------------------------------------------------ drawing

    async def grow(self, nodes: Sequence[Node | None], count: int | Sequence[int]) -> list[list[Node]]:
        """`count` next steps of each node (None: first steps), a list for each.

        Raises:
            SpendingEnded: nothing may be spent any more.
        """
        if not nodes:
            return []
        self.rounds += 1
        counts = [count] * len(nodes) if isinstance(count, int) else list(count)
        grown: list[list[Node]] = [[] for _ in nodes]
        # In the last step the answer is written to its end: a state that may neither go on nor end has no answer.
        for is_last in (False, True):
            places = [place for place, node in enumerate(nodes) if (self.depth(node) + 1 >= self.max_steps) == is_last]
            if places:
                rows = await self.solving.sample_each(
                    [nodes[place] for place in places],
                    [counts[place] for place in places],
                    step=None if is_last else self.step,
                    kind="step",
                )
                for place, row in zip(places, rows, strict=True):
                    grown[place] = row
        for row in grown:
            for node in row:
                # What is closed is a whole answer to the prompt, and no longer a step of one.
                node.kind = "step" if node.open else "answer"
        return grown

    def depth(self, node: Node | None) -> int:
        """Steps from the prompt to the node, itself counted."""
        depth = 0
        while node is not None:
            depth += 1
            node = self.solving.nodes[node.parents[0]] if node.parents else None
        return depth

    # ------------------------------------------------------------ judging

    async def judge(self, nodes: Sequence[Node]) -> list[float]:
        """The nodes' scores; each is asked for once. The best closed answer, or else the best open one, leads.

        Raises:
            SpendingEnded: nothing may be spent any more.
        """
        new = [node for node in dict.fromkeys(nodes) if node.number not in self.scores]
        if new:
            ends = await self._ahead(new) if self.lookahead else new
            partial = any(node.open for node in ends)
            for node, score in zip(new, await self.solving.score(ends, self.scorer, partial=partial), strict=True):
                node.scores[label_of(self.scorer)] = self.scores[node.number] = score
            self._lead(new)
        return [self.scores[node.number] for node in nodes]

    async def _ahead(self, nodes: Sequence[Node]) -> list[Node]:
        """The end of each node's greedy continuation by `lookahead` steps; a closed node is its own."""
        ends = list(nodes)
        for _ in range(self.lookahead):
            places = [place for place, end in enumerate(ends) if end.open]
            if not places:
                break
            rows = await self.solving.sample_each(
                [ends[place] for place in places], 1, step=self.step, kind="lookahead", temperature=0.0
            )
            for place, (end,) in zip(places, rows, strict=True):
                ends[place] = end
        return ends

    def _lead(self, nodes: Sequence[Node]) -> None:
        known = [node for node in (self.solving.leading, *nodes) if node is not None]
        self.solving.leading = max(known, key=lambda node: (not node.open, self.scores[node.number], -node.number))

    # ------------------------------------------------------------ keeping

    def best(self, nodes: Sequence[Node], count: int) -> list[Node]:
        """The `count` nodes with the highest scores, best first; of equal ones the earlier, of equal answers one."""
        # Rounded: log-probs differ in their 7th digit with what else is in the engine's batch, and of two draws of one
        # text the earlier must be kept whatever that is.
        ranked = sorted(nodes, key=lambda node: (-round(self.scores[node.number], 5), node.number))
        # Two draws that say the same are one answer: kept twice, they would crowd out the next best.
        different = {(node.answer, node.open): node for node in reversed(ranked)}
        return [node for node in ranked if different[node.answer, node.open] is node][:count]

    def keep(self, nodes: Sequence[Node], kept: Sequence[Node]) -> list[Node]:
        """Those of `kept` that can go on; the others of `nodes` are noted as pruned where they were not finished."""
        for node in nodes:
            if node.open and node not in kept:
                node.note = PRUNED
        return [node for node in kept if node.open]

    def finish(self, nodes: Sequence[Node]) -> list[Node]:
        """The closed ones among the nodes: they leave with their score, and are chosen among at the end."""
        closed = [node for node in nodes if not node.open]
        self.finished += [node for node in closed if node not in self.finished]
        return closed

    # ------------------------------------------------------------ the end

    async def interrupted(self, spending: SpendingEnded) -> Stopped:
        """What was drawn in the call that the spending ended is judged too, if that samples nothing, so that an answer
        which came to its end just before is not lost.

        Raises:
            SpendingEnded: nothing at all was judged; the caller takes the first answer that there is.
        """
        judges_steps = self.solving.asked.scorers.grader(self.scorer).judges_steps
        drawn = [node for node in self.solving.nodes if node.kind in CANDIDATES and node.number not in self.scores]
        drawn = [node for node in drawn if judges_steps or not node.open]
        for node in drawn:
            node.kind = "answer" if node.kind == "step" and not node.open else node.kind
        with contextlib.suppress(SpendingEnded):
            await self.judge(drawn)
        self.finish([node for node in drawn if node.number in self.scores])
        if self.solving.leading is None:
            raise spending
        return spending.reason

    def solution(
        self, stopped: Stopped = Stopped.DONE, *, choose: str = "best", answers: AnswerEquality | None = None
    ) -> Solution:
        """The best finished answer, or by weighted vote; without any, what leads."""
        # An answer that was cut says less than one that ended, whatever its score.
        candidates = [node for node in self.finished if node.ended] or self.finished
        if not candidates:
            assert self.solving.leading is not None, "something was judged: `interrupted` sees to it"
            return self.solution_of(self.solving.leading, stopped)
        scores = [self.scores[node.number] for node in candidates]
        if choose == "best":
            return self.solution_of(first_best(candidates, scores), stopped)
        equality = self.solving.asked.equality(answers or AnswerEquality())
        return self.solution_of(weighted_best(candidates, scores, self.scorer, equality)[0], stopped)

    def solution_of(self, chosen: Node, stopped: Stopped) -> Solution:
        chosen.note = "chosen"
        found = self.solving.solution(chosen, stopped)
        return replace(found, facts={"finished": len(self.finished), "rounds": self.rounds, **self.facts})
