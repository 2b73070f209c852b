"""New tasks after examples: each question shows a few seeds and a few tasks made before, and asks for others.

    6 seeds + 2 made before  ->  "9. ...", "10. ...", ...  ->  filters (ROUGE-L < 0.7, length, keywords)  ->  the pool

Wang et al. 2022, arXiv:2212.10560, section 2.2.

Deviations:
1. The paper completes a list with a base model; here an aligned one is asked, and its numbered list is read.
2. Instances (inputs and outputs) and the classification of tasks are left out: a prompt is whole, and is answered by
   `answers` or by a stage `distil`.
3. A question's examples are drawn from the pool as it was before its batch of `at_once`, so that they run side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.config.prompts import SelfInstruct
from posttrain.inference.prompts import question_text
from posttrain.synthesis.pairs.critique import drawn_seed
from posttrain.synthesis.prompts.asking import Asking, cleaned, items_of
from posttrain.synthesis.prompts.made import Candidate, MadePrompts
from posttrain.synthesis.teacher import Ask, Reply
from posttrain.synthesis.teachers import drawing_of
from posttrain.types import Message, Task

_ASK = """Below are {count} tasks that people have given to an assistant.

{examples}

Write {more} more tasks of your own, numbered {first} to {last}, each in one line. They differ from those above and from
one another in subject and in what is asked. Write the tasks alone, and do not answer them."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A task that may be shown: _Shown("Name a red fruit.", "seeds.jsonl, row 3")."""

    text: str
    name: str


def write_after_examples(
    made: MadePrompts, asking: Asking, settings: SelfInstruct, seeds: Sequence[Task], *, seed: int
) -> None:
    """Ask until `count` tasks are kept, `most_asks` questions were asked or a limit is spent.

    Raises:
        EngineError, ConfigError: the teacher answers nothing at all.
    """
    pool = [_Shown(" ".join(question_text(task.prompt).split()), str(task.row)) for task in seeds]
    for task in seeds:
        made.known(question_text(task.prompt))
    own: list[_Shown] = []
    asked = round_number = 0
    while len(made.rows) < settings.count and asked < settings.asks_at_most and asking.may_go_on:
        round_number += 1
        drawn = [
            drawn_seed(seed, number, "self_instruct")
            for number in range(asked, min(asked + settings.at_once, settings.asks_at_most))
        ]
        shown = [_drawn_examples(pool, own, settings, one) for one in drawn]
        asks = [
            Ask((Message("user", _text(examples, settings.tasks_per_ask)),), drawing_of(settings.sampling), one)
            for examples, one in zip(shown, drawn, strict=True)
        ]
        for place, reply in enumerate(asking.ask(asks)):
            question = f"self_instruct {asked + place + 1}"
            if not made.usable(reply, question):
                continue
            details = {"examples": [example.name for example in shown[place]], "round": round_number}
            for text, whole in _tasks_of(reply, settings.tasks_per_ask):
                name = f"task {len(made.rows) + 1}"
                candidate = Candidate(text, question, drawn[place], details={"name": name, **details})
                if not text:
                    made.drop(candidate, "no_prompt")
                elif not whole:
                    made.drop(candidate, "cut")
                elif len(made.rows) >= settings.count:
                    made.drop(candidate, "surplus")
                elif made.take(candidate) is not None:
                    own.append(_Shown(" ".join(text.split()), name))
        asked += len(asks)


def _drawn_examples(seeds: Sequence[_Shown], own: Sequence[_Shown], settings: SelfInstruct, seed: int) -> list[_Shown]:
    """In an order of their own, so that the model does not learn that the last ones are of another make."""
    generator = np.random.default_rng(seed)
    shown = [
        pool[index]
        for pool, count in ((seeds, settings.examples), (own, settings.made_examples))
        for index in generator.choice(len(pool), min(count, len(pool)), replace=False).tolist()
    ]
    return [shown[index] for index in generator.permutation(len(shown)).tolist()]


def _text(examples: Sequence[_Shown], more: int) -> str:
    listed = "\n".join(f"{number}. {example.text}" for number, example in enumerate(examples, start=1))
    count = len(examples)
    return _ASK.format(count=count, examples=listed, more=more, first=count + 1, last=count + more)


def _tasks_of(reply: Reply, wanted: int) -> list[tuple[str, bool]]:
    """(a task, whether it is whole) of a reply; one empty text where there is none."""
    texts = items_of(reply.text)
    if not texts:
        texts = [cleaned(reply.text)] if wanted == 1 else [""]
    # Of a reply that was cut, the last task alone is torn.
    return [(text, reply.ended or place < len(texts) - 1) for place, text in enumerate(texts)]
