r"""Budget forcing: how long the model thinks is forced (Muennighoff et al. 2025, s1, arXiv:2501.19393, section 3.1).

    cap      the thought has N tokens:  put the closing mark there and "Final Answer:", and let the model go on
    floor    the thought ends:          take the closing mark back, put "Wait" there, and let the model go on (m times)

What is put in is not sampled: later draws read it, so it counts as read, and it has no log-prob. What is taken back was
sampled and is counted. Facts of a solution, whose means over prompts are the paper's (section 3.2):

    thinking_tokens    length of the thought, every "Wait" included, the marks not
    within_budget      1 where it is no longer than the cap and no shorter than the floor (its tokens, or else all waits
                       were made before the cap): its mean is their "control"
    waits, forced      how often the thought was made to go on, and whether its end was put there

Deviations:
1. The marks are those of the model's own template, or the settings'; s1 writes "<|im_start|>think" and "answer".
2. A thought that the model ends with a stop token, and not with its closing mark, ends there too: the stop token is
   taken back, and the closing mark put in its place.
3. "Final Answer:" follows where the end was put there; an end that the model wrote stays as it was sampled.
4. `min_thinking_tokens` takes the end back of short thoughts alone.
"""

from __future__ import annotations

from posttrain.config.strategies import BudgetForcing
from posttrain.data.encode import Encoder
from posttrain.data.templates.thoughts import THINK, ThoughtMarks, marks_order, thought_state, trailing_marks
from posttrain.errors import ConfigError
from posttrain.inference.solution import Node, Solution
from posttrain.inference.solving import Solving, SpendingEnded
from posttrain.rollout.engine import FinishReason

GAP = "\n\n"
"""Between the closing mark and the answer, as templates of thinking models write it."""
_TAIL = 64
"""Ids at the end of a prompt in which an opening mark is looked for."""


async def solve(solving: Solving, settings: BudgetForcing) -> Solution:
    try:
        return await _forced(solving, settings)
    except SpendingEnded as ended:
        # The last draw and not the longest: one whose end was taken back may be longer than what followed it.
        return solving.solution(solving.nodes[-1] if solving.nodes else None, ended.reason)


async def _forced(solving: Solving, settings: BudgetForcing) -> Solution:
    prompt_ids = solving.prompt_ids(solving.prompt)
    marks = marks_of(solving.asked.encoder, settings)
    opening = opening_ids(solving, prompt_ids, marks)
    wait = solving.text_ids(settings.wait)
    longest, cap = solving.sampling.max_new_tokens, settings.max_thinking_tokens
    thought: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    waits = 0

    async def draw(before: tuple[int, ...], limit: int, kind: str, step: str | None) -> Node:
        [node] = await solving.continue_ids(
            solving.prompt, prompt_ids, before, 1, parents=parents, kind=kind, step=step, max_new_tokens=limit
        )
        return node

    while True:
        # What was put in takes no room from the answer: `max_new_tokens` is of what the model may write.
        put_in = len(opening) + waits * len(wait)
        room = longest + put_in if cap is None else len(opening) + cap
        node = await draw((*opening, *thought), room, "step", marks.close)
        parents = (node.number,)
        kept = without_end(solving, node, marks)
        written = (*thought, *kept)
        goes_on = waits < settings.waits and (
            settings.min_thinking_tokens is None or len(written) < settings.min_thinking_tokens
        )
        if goes_on and node.finish is not FinishReason.LENGTH and (cap is None or len(written) + len(wait) < cap):
            thought, waits = (*written, *wait), waits + 1
            node.note = f"its end was taken back, and `{settings.wait}` put there"
            continue
        forced = node.finish is not FinishReason.STOP_STRING
        _note(solving, settings, len(written), waits, node.finish)
        # Shorter than it might be: the model has no further position, and none for an answer.
        if node.finish is FinishReason.LENGTH and (cap is None or len(node.path_ids) < room):
            node.note = "the whole answer's length ended within the thought"
            return solving.solution(node)
        break
    if forced:
        node.note = "cut at the cap" if node.finish is FinishReason.LENGTH else "ended without its mark"
        closing = solving.text_ids(f"{marks.close}{GAP}{settings.final or ''}")
        before = (*opening, *written, *closing)
        limit = longest + put_in + len(closing)
    else:
        before, limit = node.path_ids, longest + put_in
        if len(before) >= limit:
            node.note = "the whole answer's length ended with the thought"
            return solving.solution(node)
    return solving.solution(await draw(before, limit, "answer", None))


def _note(solving: Solving, settings: BudgetForcing, length: int, waits: int, finish: FinishReason) -> None:
    """The facts of the thought, also for a solution that the end of the spending makes."""
    cap, floor = settings.max_thinking_tokens, settings.min_thinking_tokens
    # A thought that ran into the cap is as long as it may be, however few of its ends were taken back.
    long_enough = waits == settings.waits or finish is FinishReason.LENGTH if floor is None else length >= floor
    solving.facts.update(
        thinking_tokens=length,
        waits=waits,
        forced=float(finish is not FinishReason.STOP_STRING),
        within_budget=float(long_enough and (cap is None or length <= cap)),
    )


def without_end(solving: Solving, node: Node, marks: ThoughtMarks) -> tuple[int, ...]:
    """The ids of a draw without the closing mark or the stop token that ended it, and without a mark half written.

    A mark may begin within a token ("x<" and "/think>"): what stands before it in that token is written anew.
    """
    if node.finish in (FinishReason.STOP_TOKEN, FinishReason.EMPTY):
        return node.ids[:-1]
    decode = solving.asked.encoder.tokens.decode
    whole = decode(node.ids)
    if node.finish is FinishReason.STOP_STRING:
        text = whole[: whole.find(marks.close)]
    else:
        # The cap may fall within a mark of several tokens: "</thi</think>" would be no thought that a model knows.
        begun = next((size for size in range(len(marks.close) - 1, 0, -1) if whole.endswith(marks.close[:size])), 0)
        if not begun:
            return node.ids
        text = whole[: len(whole) - begun]
    for length in range(len(node.ids), -1, -1):
        start = decode(node.ids[:length])
        if text.startswith(start):
            return (*node.ids[:length], *solving.text_ids(text[len(start) :]))
    raise AssertionError("no ids are the beginning of every text")


def marks_of(encoder: Encoder, settings: BudgetForcing) -> ThoughtMarks:
    """What opens and closes a thought.

    Raises:
        ConfigError: neither the settings nor the model's template say it.
    """
    if settings.begin is not None and settings.end is not None:
        return ThoughtMarks(settings.begin, settings.end)
    thoughts = encoder.template.thoughts
    # <think> is among every template's marks, since rows have it: it counts where the template deals with it.
    source = encoder.template.source
    named = not isinstance(source, str) or THINK.close in source or THINK.open in source
    if thoughts.key is None and not thoughts.rewrites and thoughts.marks == (THINK,) and not named:
        raise ConfigError(
            "budget forcing needs a model that thinks, and this model's chat template knows no thoughts",
            expected="a template that renders, rewrites or opens thoughts, such as <think>...</think>",
            remedy="write `begin: <think>` and `end: </think>`, if the model was trained to write them",
        )
    return thoughts.marks[0]


def opening_ids(solving: Solving, prompt_ids: tuple[int, ...], marks: ThoughtMarks) -> tuple[int, ...]:
    """What has to be put behind the prompt so that the model thinks: nothing, if the template opens the thought.

    Raises:
        ConfigError: the prompt ends with a thought that is closed already.
    """
    end = trailing_marks(solving.asked.encoder.tokens.decode(prompt_ids[-_TAIL:]), [marks])
    state = thought_state(marks_order(end, [marks]))
    if state == "closed":
        raise ConfigError(
            "the prompt ends with a thought that is closed already, so that the model would not think",
            found=repr(end),
            expected=f"a prompt that leaves `{marks.open}` open, or to the model",
            remedy="switch the template's thoughts on: `template_kwargs: {enable_thinking: true}` where the model is "
            "trained, or an own template",
        )
    return () if state == "open" else solving.text_ids(f"{marks.open}\n")
