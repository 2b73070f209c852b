"""Rewards: plain functions `(prompt, completion, task) -> float | None`, weighed in a rubric. See docs/rewards.md.

    rubric = Rubric([resolve({"kind": "math"}), resolve({"kind": "overlong", "max_length": 512, "buffer": 64})])
    rubric.score([Sampled(prompt, "\\\\boxed{4}", task, FinishReason.STOP_TOKEN, tokens=6, group=0)])

scorer.py rubric.py registry.py     what a reward is, several together, and from a recipe's entry to one
text.py maths.py code.py gym.py     verifiers: the response against the row
shape.py language.py refusal.py instructions.py     how the response is, whatever it says
model.py judge.py endpoint.py       other models' opinions
sandbox/                            where code runs
"""

from posttrain.rewards.registry import resolve, rubric_of
from posttrain.rewards.rubric import GoldFailure, Rubric, Scored, gold_check, unjudged
from posttrain.rewards.scorer import BatchReward, Reward, Sampled, Scorer

__all__ = [
    "BatchReward",
    "GoldFailure",
    "Reward",
    "Rubric",
    "Sampled",
    "Scored",
    "Scorer",
    "gold_check",
    "resolve",
    "rubric_of",
    "unjudged",
]
