"""Self-refine: answer, critique, revise (Madaan et al. 2023, arXiv:2303.17651, algorithm 1).

    y_0 = answer(x);   f_t = critique(x, y_t);   stop?   y_t+1 = revise(x, y_t, f_t)

It stops after `rounds`, or where
    the critique has the phrase that it was asked for (`stop_phrase`),
    the revision comes to the same answer (`stop_unchanged`), or
    the scorer finds it no better than the best so far (`scorer`); the best is kept, else the last.

Without an outside signal revising may well make answers worse (Huang et al. 2024, arXiv:2310.01798): compare it with a
vote at equal tokens.

Deviations:
1. A critique and a revision see the question, the last answer and its critique, not the history of all rounds.
2. Prompts are our own and bare of examples; the paper has few-shot prompts for each of its tasks.
3. A revision that was cut, or says nothing, is no answer: the one before it stays, and the rounds end.
"""

from __future__ import annotations

from posttrain.config.strategies import SelfRefine
from posttrain.config.strategies.reasoning import RefiningStrategy
from posttrain.inference.prompts import asking, question_text
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Asked, Solving


async def solve(solving: Solving, settings: SelfRefine) -> Solution:
    return await refine(solving, settings, critic=None)


async def refine(solving: Solving, settings: RefiningStrategy, critic: Asked | None) -> Solution:
    """The rounds, with critiques by the model itself or by another one."""
    question = question_text(solving.prompt)
    equality = solving.asked.equality(settings.answers)
    [answer] = await solving.sample(1)
    solving.leading = answer
    best = await _score(solving, settings, answer)
    stopped = Stopped.DONE
    for round_number in range(1, settings.rounds + 1):
        phrase = settings.stop_phrase
        asked = settings.critique_text.format(question=question, answer=answer.answer, stop_phrase=phrase)
        [critique] = await solving.ask(asking(solving.prompt, asked), kind="critique", about=[answer], by=critic)
        solving.facts["rounds"] = round_number
        if critic is not None:
            solving.facts["critic_tokens"] = solving.facts.get("critic_tokens", 0) + len(critique.ids)
        if phrase is not None and phrase.casefold() in critique.text.casefold():
            critique.note, stopped = "content", Stopped.AGREED
            break
        asked = settings.revise_prompt.format(question=question, answer=answer.answer, critique=critique.text)
        [revision] = await solving.ask(asking(solving.prompt, asked), kind="revision", about=[answer, critique])
        if not revision.ended or not revision.text.strip():
            revision.note = "cut" if revision.text.strip() else "says nothing"
            break
        score = await _score(solving, settings, revision)
        if score > best or settings.scorer is None:
            solving.leading, best = revision, score
        elif settings.scorer is not None:
            revision.note, stopped = "no better", Stopped.AGREED
            break
        before, after = equality.final(answer.answer), equality.final(revision.answer)
        if settings.stop_unchanged and before is not None and after is not None and equality.same(before, after):
            revision.note, stopped = "the same answer", Stopped.AGREED
            break
        answer = revision
    return solving.solution(solving.leading, stopped)


async def _score(solving: Solving, settings: RefiningStrategy, answer: Node) -> float:
    if settings.scorer is None:
        return 0.0
    [score] = await solving.score([answer], settings.scorer)
    return score
