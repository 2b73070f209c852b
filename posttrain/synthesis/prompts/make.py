"""From a recipe's `make` to prompts, and to their answers where these are wanted too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from re import Pattern

from posttrain.config.prompts import EvolInstruct, Magpie, NewPrompts, Personas, SelfInstruct
from posttrain.config.teacher import EndpointTeacher
from posttrain.synthesis.journal import Journaled
from posttrain.synthesis.pairs.critique import drawn_seed
from posttrain.synthesis.prompts.asking import AT_ONCE, Asking
from posttrain.synthesis.prompts.evol import evolve
from posttrain.synthesis.prompts.made import MadePrompts
from posttrain.synthesis.prompts.magpie import write_user_turns
from posttrain.synthesis.prompts.personas import Persona, personas_of_rows, write_as_personas
from posttrain.synthesis.prompts.self_instruct import write_after_examples
from posttrain.synthesis.teacher import Ask, OnReply
from posttrain.synthesis.teachers import drawing_of
from posttrain.types import Message, Task


@dataclass(frozen=True, slots=True)
class Seeds:
    """What prompts are made of: Seeds(tasks=[...]); nothing for kinds that need nothing."""

    tasks: Sequence[Task] = ()
    personas: Sequence[Persona] = ()


def make_prompts(
    settings: NewPrompts,
    seeds: Seeds,
    teacher: Journaled,
    *,
    seed: int = 0,
    special: Pattern[str] | None = None,
    on_reply: OnReply | None = None,
) -> MadePrompts:
    """All prompts, with answers if `settings.answers` says how.

    What is asked depends on the settings, the seed and what came back alone: repeated with the same journal, it asks
    nothing that was answered.

    Args:
        special: what names a special token of the model that will train on the rows.

    Raises:
        EngineError, ConfigError: see `Teacher.ask`; what was answered by then is in the journal.
        TemplateError: `magpie` finds no user's turn in the teacher's template.
    """
    make = settings.make
    kept_system = make.system if isinstance(make, Magpie) and make.keep_system else None
    made = MadePrompts(
        f"prompts/{make.kind}",
        teacher.name,
        make.filters,
        drawing=drawing_of(make.sampling),
        special=special,
        system=kept_system,
        seeded=not isinstance(settings.teacher, EndpointTeacher) or settings.teacher.send_seed,
    )
    asking = Asking(teacher, made, on_reply)
    match make:
        case Magpie():
            write_user_turns(made, asking, make, seed=seed)
        case SelfInstruct():
            write_after_examples(made, asking, make, seeds.tasks, seed=seed)
        case EvolInstruct():
            evolve(made, asking, make, seeds.tasks, seed=seed)
        case Personas():
            personas = seeds.personas or personas_of_rows(made, asking, make, seeds.tasks, seed=seed)
            write_as_personas(made, asking, make, personas, seed=seed)
    if settings.answers is not None:
        _answer(made, asking, settings, seed)
    return made


def _answer(made: MadePrompts, asking: Asking, settings: NewPrompts, seed: int) -> None:
    """Ask the same teacher for an answer to each prompt that was kept."""
    assert settings.answers is not None
    drawing = drawing_of(settings.answers)
    make = settings.make
    # The message that drew the prompts stands before the answers too, also where it is not kept in the rows.
    system = (Message("system", make.system),) if isinstance(make, Magpie) and make.system is not None else ()
    asks = []
    for row in made.rows:
        text = row.prompt[-1].content or ""
        asks.append(Ask((*system, Message("user", text)), drawing, drawn_seed(seed, 0, f"answer {text}")))
    replies = [reply for start in range(0, len(asks), AT_ONCE) for reply in asking.ask(asks[start : start + AT_ONCE])]
    made.answered(replies, drawing, [ask.seed for ask in asks])
