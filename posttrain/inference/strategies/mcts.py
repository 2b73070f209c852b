"""Monte Carlo tree search over steps, with UCT.

    repeat `simulations` times
        select    from the prompt down by  Q + c sqrt(ln N_parent / N), to a state with room for next steps
        expand    draw next steps until it has `width` of them; go to the first new one
        evaluate  the state's value v in [0, 1]: the score of the answer so far (`value: state`), or the mean score of
                  answers that are written to their end from there (`value: rollout`)
        back up   N + 1, W + v on the way to the prompt; Q = W / N

Kocsis, Szepesvári 2006 (UCT); as test-time compute Hao et al. 2023, arXiv:2305.14992 (the model's own reward), Feng et
al. 2023, arXiv:2309.17179 (a learned value), Qi et al. 2024, arXiv:2408.06195 (rollouts). A state without visits is
chosen before its siblings, and a new state is evaluated before it is expanded. `facts` of a step's node: its visits and
its mean value.

With `widening` a, a state of N visits has room for width * N^a next steps: siblings are added as it proves worth
(progressive widening, Coulom 2007, "Computing Elo ratings of move patterns in the game of Go").

Deviations
 1. A closed answer that is selected again is backed up again with its value and costs nothing, so that visits converge
    to the best leaf; rStar and others mark such paths as done.
 2. The search keeps all answers that it saw, and gives the best of them by default (`choose: completed`): the most
    visited move, which games play, is a move and not yet an answer.
 3. Of equal next steps of one state there is one; the others were paid for and fill their places.
 4. Values of reward models are the sigmoids of their logits, since c weighs against values from 0 to 1.
"""

from __future__ import annotations

from statistics import fmean

from posttrain.config.strategies.search import MCTS
from posttrain.inference.search.frontier import Frontier
from posttrain.inference.search.tree import State, back_up, best_path, descend
from posttrain.inference.search.values import value_of
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded


async def solve(solving: Solving, settings: MCTS) -> Solution:
    search = _Search(solving, settings)
    stopped = Stopped.DONE
    try:
        for _ in range(settings.simulations):
            state = await search.select()
            back_up(state, await search.evaluate(state))
    except SpendingEnded as ended:
        stopped = await search.steps.interrupted(ended)
    return await search.answer(stopped)


class _Search:
    def __init__(self, solving: Solving, settings: MCTS):
        self.solving, self.settings, self.root = solving, settings, State(None)
        self.steps = Frontier(solving, settings.scorer, step=settings.step, max_steps=settings.max_depth)
        grader = solving.asked.scorers.grader(settings.scorer)
        self.by_rollout = settings.value == "rollout" or (settings.value == "auto" and not grader.judges_steps)

    def room(self, state: State) -> int:
        return 0 if state.closed else int(self.settings.width * max(1, state.visits) ** self.settings.widening)

    async def select(self) -> State:
        """The state to evaluate: one that was not visited, a new one, or a closed one again."""
        while True:
            state = descend(self.root, self.settings.exploration, self.room)
            if state.closed or (state is not self.root and not state.visits):
                return state
            (drawn,) = await self.steps.grow([state.node], self.room(state) - state.drawn)
            new = state.add(drawn)
            if new:
                return new[0]
            # All were said before: the state has no room now, and the way down leads through it.

    async def evaluate(self, state: State) -> float:
        node = state.node
        assert node is not None, "the prompt alone is expanded and never judged"
        if node.open and self.by_rollout:
            return await self._rollout(node)
        # Judged once: a closed answer that is selected again costs nothing.
        (score,) = await self.steps.judge([node])
        self.steps.finish([node])
        return value_of(score, self.settings.scorer)

    async def _rollout(self, node: Node) -> float:
        answers = await self.solving.sample(self.settings.rollouts, after=node)
        scores = await self.steps.judge(answers)
        self.steps.finish(answers)
        return fmean(value_of(score, self.settings.scorer) for score in scores)

    async def answer(self, stopped: Stopped) -> Solution:
        search, chosen = self.steps, None
        search.facts |= {"simulations": self.root.visits, "states": sum(1 for _ in self.root.below()) - 1}
        if self.settings.choose == "visited":
            chosen = await self._completed(best_path(self.root, lambda state: state.visits), stopped)
        elif self.settings.choose == "value":
            chosen = await self._completed(best_path(self.root, lambda state: state.mean), stopped)
        elif not search.finished:
            # No answer came to its end: the most visited one is written to its end.
            chosen = await self._completed(best_path(self.root, lambda state: state.visits), stopped)
        if chosen is None:
            return search.solution(stopped)
        return search.solution_of(chosen, stopped)

    async def _completed(self, state: State, stopped: Stopped) -> Node | None:
        """The state's answer: itself, the best finished one after it, or one that is written now."""
        if state.node is None or state.closed:
            return state.node
        after = {below.node for below in state.below()}
        finished = [node for node in self.steps.finished if node in after or self._parent(node) in after]
        if finished:
            return self.steps.best(finished, 1)[0]
        if stopped is not Stopped.DONE:
            return state.node
        try:
            (node,) = await self.solving.sample(after=state.node)
        except SpendingEnded:
            return state.node
        return node

    def _parent(self, node: Node) -> Node | None:
        return self.solving.nodes[node.parents[0]] if node.parents else None
