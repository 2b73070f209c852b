"""Prompts out of nothing but the template: the model is left where a user's turn begins, and writes a request.

    <|im_start|>user\\n  ->  "How do I keep basil alive in winter?<|im_end|>"

An aligned model has learned its users' requests beside its own answers, and gives them away when nobody speaks (Xu et
al. 2024, arXiv:2406.08464, section 2.2). What it writes is drawn from what it was trained on: memorised rows too, so
that `against` and near-duplicates are worth a look.

Deviation: the paper draws answers greedily; here they are drawn as `answers` says.
"""

from __future__ import annotations

from posttrain.config.prompts import Magpie
from posttrain.synthesis.pairs.critique import drawn_seed
from posttrain.synthesis.prompts.asking import AT_ONCE, Asking
from posttrain.synthesis.prompts.made import Candidate, MadePrompts
from posttrain.synthesis.teacher import Ask
from posttrain.synthesis.teachers import drawing_of
from posttrain.types import Message


def write_user_turns(made: MadePrompts, asking: Asking, settings: Magpie, *, seed: int) -> None:
    """Draw user turns until `count` are kept, `most_asks` were drawn or a limit is spent.

    Raises:
        TemplateError: the teacher's template has no user's turn that could be left open.
        ModelError: the model cannot be loaded.
    """
    before = () if settings.system is None else (Message("system", settings.system),)
    drawn = 0
    while len(made.rows) < settings.count and drawn < settings.asks_at_most and asking.may_go_on:
        # Depends on what was kept alone, so that a run that is resumed asks the same questions.
        size = min(settings.count - len(made.rows), settings.asks_at_most - drawn, AT_ONCE)
        seeds = [drawn_seed(seed, drawn + place, "magpie") for place in range(size)]
        asks = [Ask(before, drawing_of(settings.sampling), own, speaker="user") for own in seeds]
        for place, reply in enumerate(asking.ask(asks)):
            question = f"magpie {drawn + place + 1}"
            if not made.usable(reply, question):
                continue
            details = {} if settings.system is None else {"system": settings.system}
            candidate = Candidate(reply.text, question, seeds[place], details=details)
            if reply.ended:
                made.take(candidate)
            else:
                made.drop(candidate, "cut")
        drawn += size
