"""Critique by another model: it criticises the answer, and the model revises it.

    y_0 = answer(x);   f_t = critique of the other model(x, y_t);   stop?   y_t+1 = revise(x, y_t, f_t)

The rounds and rules of `self_refine`; a critic of its own is Saunders et al. 2022, arXiv:2206.05802 (self-critiquing
models), sections 2 and 5, where critiques and refinements come from models of different sizes.

Deviations:
1. Saunders et al. train the critic for it; here it is any model.
2. Tokens of the critic count as sampled ones, though they may cost more or less than the model's own; the fact
   `critic_tokens` has them apart.
"""

from __future__ import annotations

from dataclasses import replace

from posttrain.config.strategies import CritiqueBy
from posttrain.data.encode import Encoder
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Asked, Solving
from posttrain.inference.strategies.self_refine import refine
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import load
from posttrain.models.folders.source import resolve
from posttrain.models.reward.folders import require_policy
from posttrain.rollout.native import NativeEngine


async def solve(solving: Solving, settings: CritiqueBy) -> Solution:
    asked = solving.asked
    critic = asked.once(critic_key(settings.critic), lambda: loaded_critic(asked, settings.critic))
    return await refine(solving, settings, critic)


def critic_key(name: str) -> tuple[str, str]:
    """Under which a critic is kept for all prompts."""
    return ("critic", name)


def loaded_critic(asked: Asked, name: str) -> Asked:
    """Another model with an engine of its own.

    Raises:
        ModelError: it cannot be loaded, or is a reward model, which has no words.
    """
    source = resolve(asked.located(name))
    require_policy(source)
    loaded = load(source.name, device=device_of(asked.scorers.device))
    encoder = Encoder(loaded.tokenizer, loaded.speech.settings())
    engine = NativeEngine(loaded.model, decode=encoder.tokens.decode)
    return replace(asked, engine=engine, encoder=encoder)
