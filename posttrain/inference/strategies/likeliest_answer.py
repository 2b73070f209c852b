"""Beam search by log-prob over tokens: the likeliest answer that a beam of `beams` beginnings comes by.

    B_t  = the `beams` likeliest of {b + v : b in B_(t-1), v any token that does not end an answer}
    score(y) = log p(y) / length(y) ** length_penalty             over all y that ended among the likeliest `beams`

length(y) is the number of tokens, stop token included, or (5 + tokens) / 6 (Wu et al. 2016, arXiv:1609.08144, eq. 14,
without its coverage penalty). Log-probs are the model's own: temperature 1, nothing truncated. The search is that of
`transformers` with `early_stopping="never"`: an answer that reaches its longest length counts like one that ended, and
an ending that is not among the likeliest `beams` continuations is not looked at. With beams for all beginnings it is
exact.

It stops as soon as no beginning can come to a higher score than the best answer: log p only falls, so a score is at
most log p / longest ** penalty (penalty above 0), or log p / (tokens + 1) ** penalty (else). `transformers` goes on
until the worst of its finished beams cannot be beaten; the best is the same.

Cost: one request and one sampled token for each beginning that is continued, `beams` a step. The token that the request
samples is the likeliest, of which the search makes no use: it takes the log-probs beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.config.strategies import LikeliestAnswer
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded


@dataclass(frozen=True, slots=True)
class Beam:
    """An answer or its beginning: Beam(ids=(52, 2), logprob=-1.3, ended=True, proposed=7)."""

    ids: tuple[int, ...]
    logprob: float
    """Of all ids, in nats."""
    ended: bool = False
    """Whether the last id is a stop token."""
    proposed: int | None = None
    """The node whose log-probs it is made of."""


async def solve(solving: Solving, settings: LikeliestAnswer) -> Solution:
    search = Search(solving, settings)
    stopped = Stopped.DONE
    try:
        await search.run()
    except SpendingEnded as ended:
        stopped = ended.reason
    # Without a finished answer the likeliest beginning is what there is.
    best = search.best or search.running[0]
    if best.proposed is None:
        return solving.solution(None, stopped)
    answer = solving.compose(best.ids, ended=best.ended, parents=(best.proposed,))
    answer.scores["logprob"] = best.logprob
    return solving.solution(answer, stopped, logprob=best.logprob, score=search.score(best), tokens=len(best.ids))


class Search:
    """The beams of one prompt."""

    def __init__(self, solving: Solving, settings: LikeliestAnswer):
        self.solving, self.settings = solving, settings
        prompt = solving.prompt_ids(solving.prompt)
        # A prompt without room for an answer is refused by the engine, which says by how much.
        self.longest = max(1, solving.longest_answer(len(prompt)))
        self.stop_ids = solving.sampling.stop_ids
        self.running = [Beam((), 0.0)]
        self.best: Beam | None = None

    async def run(self) -> None:
        # Each beginning has at most so many continuations that end: `beams` that do not are always among these.
        wanted = max(2, 1 + len(self.stop_ids)) * self.settings.beams
        for length in range(1, self.longest + 1):
            nodes = await self.solving.expand(
                [beam.ids for beam in self.running],
                wanted,
                parents=[() if beam.proposed is None else (beam.proposed,) for beam in self.running],
                kind="beam",
            )
            likeliest = self._continued(nodes)[:wanted]
            finished = [beam for beam in likeliest[: self.settings.beams] if beam.ended or length == self.longest]
            self.best = max([*([self.best] if self.best else []), *finished], key=self.score, default=None)
            self.running = [beam for beam in likeliest if not beam.ended][: self.settings.beams]
            if not self.running or not self._can_be_beaten(length):
                return

    def _continued(self, nodes: Sequence[Node]) -> list[Beam]:
        """All continuations that were given, likeliest first; of equal ones, that of the likelier beginning."""
        beams = []
        for beam, node in zip(self.running, nodes, strict=True):
            node.scores["logprob"] = beam.logprob
            (alternatives,) = node.alternatives
            beams += [
                Beam((*beam.ids, number), beam.logprob + logprob, number in self.stop_ids, node.number)
                for number, logprob in alternatives.top
                # A token that the model can never say.
                if logprob > float("-inf")
            ]
        return sorted(beams, key=lambda beam: -beam.logprob)

    def _can_be_beaten(self, length: int) -> bool:
        """Whether the likeliest beginning, of `length` tokens, could come to a higher score than the best answer."""
        if self.best is None:
            return True
        farthest = self.longest if self.settings.length_penalty > 0 else length + 1
        return self._normalised(self.running[0].logprob, farthest) > self.score(self.best)

    def score(self, beam: Beam) -> float:
        return self._normalised(beam.logprob, len(beam.ids))

    def _normalised(self, logprob: float, tokens: int) -> float:
        length = (5 + tokens) / 6 if self.settings.length == "gnmt" else tokens
        return float(logprob / length**self.settings.length_penalty)
