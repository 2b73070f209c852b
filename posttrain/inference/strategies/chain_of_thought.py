"""Chain of thought: the model reasons before it answers.

    zero-shot    question + "Let's think step by step."                 Kojima et al. 2022, arXiv:2205.11916
    few-shot     (question, reasoning, answer) * k + question           Wei et al. 2022, arXiv:2201.11903
    votes        argmax over answers a of how many of n chains end on a    Wang et al. 2022, arXiv:2203.11171

Deviations:
1. Kojima begins the answer with the sentence and asks a second time for the answer ("Therefore, the answer is"). Here
   the sentence stands in the user's or the system turn, as models that are trained on chats take it, and the answer is
   read off the one reply by `answers`.
2. Demonstrations are chosen as `few_shot` does, from any file; Wei wrote eight by hand.
3. Of answers with equally many votes the earlier counts.
"""

from __future__ import annotations

from posttrain.config.strategies import ChainOfThought
from posttrain.config.strategies.reasoning import STEP_BY_STEP
from posttrain.inference.choosing import candidates, vote_of
from posttrain.inference.demonstrations import shots_of, with_shots
from posttrain.inference.prompts import last_user, with_question, with_system
from posttrain.inference.solution import Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded


async def solve(solving: Solving, settings: ChainOfThought) -> Solution:
    instruction = settings.instruction
    if settings.demonstrations is not None:
        shots = shots_of(solving.asked, settings.demonstrations).chosen(solving.prompt)
        solving.prompt = with_shots(solving.prompt, shots, settings.demonstrations.form)
        solving.facts["demonstrations"] = len(shots)
    elif instruction is None:
        instruction = STEP_BY_STEP
    if instruction is not None:
        if settings.place == "system":
            solving.prompt = with_system(solving.prompt, instruction)
        else:
            question = solving.prompt[last_user(solving.prompt)].content or ""
            solving.prompt = with_question(solving.prompt, f"{question}\n{instruction}")
    stopped = Stopped.DONE
    try:
        await solving.sample(settings.votes)
    except SpendingEnded as ended:
        # Fewer chains than asked for still vote.
        stopped = ended.reason
    answers = candidates(solving, stopped)
    if not answers:
        return solving.solution(None, stopped)
    if settings.votes == 1:
        return solving.solution(answers[0], stopped)
    vote = vote_of(answers, solving.asked.equality(settings.answers))
    chosen = answers[vote.members[0]] if vote.members else answers[0]
    return solving.solution(chosen, stopped, votes=vote.count, answers=len(answers))
