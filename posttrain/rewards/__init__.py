"""Rewards: plain functions `(prompt, completion, task) -> float | None`, weighed in a rubric. See docs/rewards.md.

    rubric = Rubric([resolve({"kind": "math"}), resolve({"kind": "overlong", "max_length": 512, "buffer": 64})])
    rubric.score([Sampled(prompt, "\\\\boxed{4}", task, FinishReason.STOP_TOKEN, tokens=6, group=0)])

scorer.py rubric.py                 what a reward is, and several together
registry.py building.py imported.py from a recipe's entry to one, functions of the user's own among them
text.py maths.py code.py gym.py     verifiers: the response against the row
answers.py notation.py formula.py reading.py forms.py equality.py     what an answer says as mathematics, for maths.py
shape.py language.py refusal.py instructions.py instructions_own.py     how the response is, whatever it says
bounded.py bounded_server.py        what may take for ever on a hostile response, ended in time
model.py judge.py endpoint.py       other models' opinions
sandbox/                            where code runs
"""

from posttrain.rewards.registry import require_rewards, resolve, rubric_of
from posttrain.rewards.rubric import GoldFailure, Rubric, Scored, gold_check, unjudged
from posttrain.rewards.scorer import BatchReward, Sampled, Scorer, SingleReward

__all__ = [
    "BatchReward",
    "GoldFailure",
    "Rubric",
    "Sampled",
    "Scored",
    "Scorer",
    "SingleReward",
    "gold_check",
    "require_rewards",
    "resolve",
    "rubric_of",
    "unjudged",
]
