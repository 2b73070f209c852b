"""Particle filtering: n answers so far, drawn anew after each step with weights softmax(score).

    x_i        a first step each, i = 1..n
    repeat     w_i = softmax_i(score(x_i) / temperature)
               draw n of the x with weights w
               continue each by one step                   until all have ended
    answer     argmax_i score(x_i), or the weighted vote

Puri et al. 2025, arXiv:2502.01618, algorithm 1: the scores of a process reward model are taken as likelihoods of an
imperfect observation, so that a low one makes an answer rare and not impossible. Their weights are softmax of the logit
of the model's probability, which is what our process reward models give. Ended answers stay particles: they are drawn
again beside the others.

The draws are from a stream of the prompt's own (seed, prompt), and each copy of a particle is continued by a draw of
its own. `facts` of a node: its weight, and the copies that were drawn of it.

Deviations
 1. `resampling: systematic` by default, which has the same expectation as the paper's multinomial draws and less
    variance (Kitagawa 1996; Douc, Cappé, Moulines 2005, arXiv:cs/0507025).
 2. `weight_temperature`, 1 as in the paper, for scorers whose scores are no logits.
"""

from __future__ import annotations

from posttrain.config.strategies.search import ParticleFilter
from posttrain.inference.search.frontier import Frontier
from posttrain.inference.search.values import copies, softmax
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded


async def solve(solving: Solving, settings: ParticleFilter) -> Solution:
    search = Frontier(solving, settings.scorer, step=settings.step, max_steps=settings.max_steps)
    stream, stopped = solving.stream("particles"), Stopped.DONE
    particles: list[Node] = []
    try:
        (particles,) = await search.grow([None], settings.n)
        while True:
            scores = await search.judge(particles)
            if not any(node.open for node in particles):
                break
            weights = softmax(scores, settings.weight_temperature)
            drawn = copies(weights, settings.n, stream, settings.resampling)
            survivors: dict[Node, int] = {}
            for node, weight, times in zip(particles, weights, drawn, strict=True):
                # A particle of several copies stands several times among the particles: its weights add up.
                node.facts["weight"] = node.facts.get("weight", 0.0) + weight if node in survivors else weight
                survivors[node] = survivors.get(node, 0) + times
            for node, times in survivors.items():
                node.facts["copies"] = times
            live = search.keep(particles, [node for node, times in survivors.items() if times])
            grown = await search.grow(live, [survivors[node] for node in live])
            closed = [node for node, times in survivors.items() if not node.open for _ in range(times)]
            particles = closed + [node for row in grown for node in row]
    except SpendingEnded as ended:
        stopped = await search.interrupted(ended)
    search.finish([node for node in particles if node.number in search.scores])
    return search.solution(stopped, choose=settings.choose, answers=settings.answers)
