"""What a turn trains, and the proof that the template renders it.

For every turn that trains: prompt + trained text is the beginning of what the template renders for the conversation up
to that turn, or one of DOCUMENTED_SPLITS. Two things are proven of the trained text itself: it shows the whole turn
(content, thoughts, each call with its arguments), and together with the generation prompt it opens and closes a thought
once or not at all. Whatever fails is refused with both texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.templates.call_text import lost_part
from posttrain.data.templates.probe import PlainMessage, StopToken
from posttrain.data.templates.thought_probe import ProbedTemplate, switches
from posttrain.data.templates.thoughts import (
    THINK,
    SplitContent,
    ThoughtMarks,
    ThoughtState,
    marks_order,
    split_thoughts,
    thought_state,
    trailing_marks,
)
from posttrain.errors import TemplateError

DOCUMENTED_SPLITS = {
    "moved_thoughts": "thoughts of the content are given to the template as `reasoning_content`, since it renders them "
    "from there alone",
    "hidden_thoughts": "the template hides the thoughts of a finished turn: they train as written, after the "
    "generation prompt and before the answer as the template shows it",
    "prompt_thoughts": "the generation prompt ends with a closed thought that finished turns do not show: the answer "
    "trains after it",
    "prompt_text": "the generation prompt ends with a text that finished turns do not show: the answer trains after it",
}
"""The only ways in which prompt and trained text may differ from what the template renders. In each of them the prompt
is what inference builds, and what trains is what the model has to write after it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn and its true context.

    Turn("<|im_start|>user\\nHi...assistant\\n", "Hello.", StopToken("<|im_end|>", 2))
    """

    context: str
    completion: str
    """What the model writes, without the stop token."""
    stop: StopToken | None
    """The token after it; None if the template writes none and the tokenizer has no eos."""
    finding: str | None = None
    """One of DOCUMENTED_SPLITS where the template renders context and completion otherwise; or `foreign_thoughts`."""


class ContextMismatch(TemplateError):
    """A finished turn is not rendered as a continuation of the context that inference builds for it."""

    def __init__(self, context: str, rendered: str):
        self.context = context
        self.rendered = rendered
        at = first_difference(context, rendered)
        super().__init__(
            "the chat template renders a finished turn otherwise than the prompt that asks for it",
            found=f"...{rendered[max(0, at - 30) : at + 30]!r} in the finished conversation",
            expected=f"...{context[max(0, at - 30) : at + 30]!r}, as the generation prompt has it",
            remedy="name a template file whose finished turns begin with its generation prompt, "
            "for example `template: chatml`",
        )


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """A turn's context, and the thought that it ends with: PromptEnd("...<|assistant|><think>\\n", "o", "<think>\\n").

    What a model may still write depends on it: after an opened thought, thoughts; after a closed one, only the answer.
    """

    context: str
    order: str
    prefill: str
    """The marks at the context's end."""

    @property
    def state(self) -> ThoughtState:
        return thought_state(self.order)


@dataclass(frozen=True, slots=True)
class TurnParts:
    """A message by its parts: TurnParts("2 and 2", "4.", written, calls)."""

    thoughts: str
    visible: str
    written: SplitContent | None
    """The content split into thoughts and answer, where it has both."""
    calls: Sequence[Mapping[str, Any]]


def prove_turn(
    template: ProbedTemplate, messages: Sequence[PlainMessage], index: int, tools: Sequence[Any], context: str
) -> Turn:
    """The assistant's turn messages[index], as the template renders it or as a documented split of that.

    Raises:
        TemplateError: the template hides part of the turn, or no split explains what it renders.
    """
    message = messages[index]
    prompt_end = read_prompt_end(template, messages[:index], context)
    parts = _turn_parts(template, message, prompt_end.state)
    if parts.thoughts and prompt_end.state == "closed":
        raise _closed_already(template, messages[:index], tools, prompt_end)
    # As the row has it first, then with its thoughts moved: the first that is proven is what trains. A split is the
    # last resort, since it trains a text that the template itself never renders.
    rendered = template.render(messages[: index + 1], tools)
    for form, split in ((message, None), *_with_moved_thoughts(template, message, parts)):
        text = rendered if split is None else template.render([*messages[:index], form], tools)
        turn = _as_rendered(template, [*messages[:index], form], prompt_end, parts, text, split)
        if turn is not None:
            return turn
    return _documented_split(template, messages[: index + 1], tools, prompt_end, parts, rendered)


def read_prompt_end(template: ProbedTemplate, before: Sequence[PlainMessage], context: str) -> PromptEnd:
    """How a context ends. Marks that a message ends with are the message's own, and open nothing."""
    pairs = template.thoughts.marks
    if context.endswith(template.layout.generation):
        order = marks_order(template.layout.generation, pairs)
        return PromptEnd(context, order, trailing_marks(template.layout.generation, pairs) if order else "")
    prefill = trailing_marks(context, pairs)
    last = str(before[-1]["content"] or "").rstrip() if before else ""
    if prefill and last.endswith(prefill.strip()):
        return PromptEnd(context, "", "")
    return PromptEnd(context, marks_order(prefill, pairs), prefill)


# ---------------------------------------------------------------- as the template renders it


def _turn_parts(template: ProbedTemplate, message: PlainMessage, state: ThoughtState) -> TurnParts:
    # A content with the closing mark alone has thoughts only where the prompt or the template opens them; elsewhere the
    # mark is plain text, and trains as that.
    content = str(message["content"] or "")
    form = template.thoughts
    reasoning = str(message.get(form.key or "reasoning_content") or "")
    written = split_thoughts(content, form.marks, opened=state == "open" or bool(form.rewrites) or form.doubles)
    visible = content if written is None else written.visible
    thoughts = reasoning or ("" if written is None else written.thoughts.strip())
    return TurnParts(thoughts.strip(), visible, written, message.get("tool_calls") or ())


def _with_moved_thoughts(
    template: ProbedTemplate, message: PlainMessage, parts: TurnParts
) -> Iterator[tuple[PlainMessage, str]]:
    """The same turn with its thoughts where the template may render them instead."""
    key, written = template.thoughts.key, parts.written
    if written is not None and not message.get(key or "reasoning_content"):
        content = parts.visible or (template.null_content if parts.calls else "")
        if not parts.thoughts:
            yield {**message, "content": content}, "moved_thoughts"
        elif key is not None:
            yield {**message, "content": content, key: parts.thoughts}, "moved_thoughts"


def _as_rendered(
    template: ProbedTemplate,
    messages: Sequence[PlainMessage],
    prompt_end: PromptEnd,
    parts: TurnParts,
    rendered: str,
    split: str | None,
) -> Turn | None:
    """The turn, if the rendered text continues the context, shows all of it and has its marks in order."""
    if not rendered.startswith(prompt_end.context):
        return None
    content = str(messages[-1]["content"] or "")
    body, stop = template.cut_tail(rendered[len(prompt_end.context) :], messages)
    if _lost(content, parts, body) is not None or not _in_order(template, prompt_end, body, content):
        return None
    form = template.thoughts
    if split is None and form.key and not form.writes_think and parts.written is not None and content.strip() in body:
        split = "foreign_thoughts" if parts.written.marks == THINK else None
    return Turn(prompt_end.context, body, stop, split)


def _lost(content: str, parts: TurnParts, body: str) -> str | None:
    """The part of a turn that its text lacks: "the content", "the reasoning", a call or its argument; or None."""
    # The content in one piece, thoughts included, is the whole turn; else thoughts and answer are looked for in order.
    whole = content.strip()
    if whole and whole in body and (parts.written is not None or not parts.thoughts):
        return lost_part(parts.calls, body, content) if parts.calls else None
    at = 0
    if parts.thoughts:
        at = body.find(parts.thoughts)
        if at < 0:
            return "the reasoning"
        at += len(parts.thoughts)  # an answer that the thoughts have word for word may still be lost
    visible = parts.visible.strip()
    if visible not in body[at:]:
        return "the content"
    return lost_part(parts.calls, body, f"{parts.thoughts}\n{visible}") if parts.calls else None


def _in_order(template: ProbedTemplate, prompt_end: PromptEnd, completion: str, content: str) -> bool:
    """Whether prompt and completion open and close one thought, or none.

    A template that adds no mark to what the row has written leaves the row's own form as it is. One that writes a lone
    closing mark before an answer without thoughts says with it that there are none.
    """
    pairs = template.thoughts.marks
    order, own_order = marks_order(completion, pairs), marks_order(content, pairs)
    if prompt_end.state == "none":
        return order in ("", "oc") or (order == "c" and not own_order) or len(order) <= len(own_order)
    return order == ("c" if prompt_end.state == "open" else "")


# ---------------------------------------------------------------- documented splits


def _documented_split(
    template: ProbedTemplate,
    messages: Sequence[PlainMessage],
    tools: Sequence[Any],
    prompt_end: PromptEnd,
    parts: TurnParts,
    rendered: str,
) -> Turn:
    """The turn where no form of it continues the context word for word.

    Raises:
        TemplateError: it is none of DOCUMENTED_SPLITS.
    """
    content = str(messages[-1]["content"] or "")
    opened = _marks_of(template, prompt_end) if prompt_end.state == "open" else None
    if opened is not None and parts.written is not None and parts.written.close != opened.close:
        raise _other_marks(template, prompt_end, parts.written)

    thinks = _thinks_apart(template, prompt_end, parts)
    # Without its thoughts (or an empty one), which is all that a template with hidden thoughts shows of a turn.
    bare = thinks or (parts.written is not None and not parts.thoughts)
    history = _without_thoughts(template, messages, tools, parts) if bare else rendered
    # The finished turn may lack what only the generation prompt has (a closed empty thought, a prefill).
    base = _base(template, prompt_end, history)
    if base is None:
        raise _mismatch_error(template, messages, tools, prompt_end, parts, rendered)

    body, stop = template.cut_tail(history[len(base) :], messages)
    shown = split_thoughts(body, template.thoughts.marks, opened=True)
    # The empty thought of a finished turn: the prompt has it, or the row's own thoughts take its place. Where neither
    # is so, it is the model's to write.
    if shown is not None and not shown.thoughts.strip() and (prompt_end.state != "none" or thinks):
        body = shown.visible

    remaining = TurnParts("", parts.visible, None, parts.calls) if bare else parts
    lost = _lost(parts.visible if bare else content, remaining, body)
    if lost is None and parts.thoughts and parts.written is None and prompt_end.state == "none":
        lost = "the reasoning"  # in which form the model should write it, neither the row nor the template says
    if lost == "the reasoning" and parts.thoughts in rendered:
        raise ContextMismatch(prompt_end.context, rendered)
    if lost is not None:
        raise _hidden_error(template, lost, rendered, prompt_end, parts)

    completion, split = body, "prompt_thoughts" if prompt_end.state == "closed" else "prompt_text"
    if thinks:
        completion, split = _as_written(template, prompt_end, parts, content) + body.lstrip(), "hidden_thoughts"
    if not _in_order(template, prompt_end, completion, content):
        raise _mismatch_error(template, messages, tools, prompt_end, parts, rendered)
    return Turn(prompt_end.context, completion, stop, split)


def _thinks_apart(template: ProbedTemplate, prompt_end: PromptEnd, parts: TurnParts) -> bool:
    """Whether the model, and not the template, writes the thoughts of this turn.

    A template that passes contents on as they are shows their thoughts itself.
    """
    if prompt_end.state == "open":
        return bool(parts.thoughts) or parts.written is not None
    hides = parts.written is not None and parts.written.marks in template.thoughts.rewrites
    return bool(parts.thoughts) and hides


def _without_thoughts(
    template: ProbedTemplate, messages: Sequence[PlainMessage], tools: Sequence[Any], parts: TurnParts
) -> str:
    key = template.thoughts.key or "reasoning_content"
    bare = {name: value for name, value in messages[-1].items() if name != key}
    content = parts.visible or (template.null_content if parts.calls else "")
    return template.render([*messages[:-1], {**bare, "content": content}], tools)


def _base(template: ProbedTemplate, prompt_end: PromptEnd, history: str) -> str | None:
    """The beginning of the finished turn: the context without what its generation prompt adds for the answer alone."""
    context = prompt_end.context
    for prefill in dict.fromkeys((prompt_end.prefill, template.layout.prefill, "")):
        base = context.removesuffix(prefill)
        if context.endswith(prefill) and history.startswith(base):
            return base
    return None


def _as_written(template: ProbedTemplate, prompt_end: PromptEnd, parts: TurnParts, content: str) -> str:
    """The thoughts as inference sees them, up to the answer."""
    written = parts.written
    if written is None:
        return f"{parts.thoughts}\n{_marks_of(template, prompt_end).close}\n\n"
    if prompt_end.state == "open":
        return written.after_open
    return content[: len(content) - len(written.visible)].lstrip()


def _marks_of(template: ProbedTemplate, prompt_end: PromptEnd) -> ThoughtMarks:
    """The marks that the prompt has opened, or else the template's own."""
    pairs = template.thoughts.marks  # its own first
    return next((pair for pair in pairs if pair.open in prompt_end.prefill), pairs[0] if pairs else THINK)


# ---------------------------------------------------------------- errors


def _hidden_error(
    template: ProbedTemplate, lost: str, rendered: str, prompt_end: PromptEnd, parts: TurnParts
) -> TemplateError:
    at = first_difference(prompt_end.context, rendered)
    if "call of" in lost:
        return TemplateError(
            f"the chat template hides a tool call of a turn that must train: {template.label} does not write {lost}",
            found=f"...{rendered[max(0, at - 30) :][-160:]!r} for {[dict(call['function']) for call in parts.calls]!r}",
            expected="the function's name and every argument in the assistant's own turn",
            remedy="name a template that writes tool calls (`template: chatml` does), or leave this turn untrained "
            "(`train: false`)",
        )
    return TemplateError(
        f"the chat template hides {lost} of an assistant's turn that must train",
        found=repr(rendered[-60:]),
        expected="the turn as it was written",
        remedy="put the text where the template shows it (reasoning inside the content, as "
        "<think>...</think>), or name another template",
    )


def _closed_already(
    template: ProbedTemplate, before: Sequence[PlainMessage], tools: Sequence[Any], prompt_end: PromptEnd
) -> TemplateError:
    return TemplateError(
        "the generation prompt closes the thought, and this turn has thoughts: they would train where the model is "
        "asked to answer without any",
        found=f"...{prompt_end.context[-40:]!r} before the turn",
        expected="a prompt that leaves the thought to the model, or a turn without thoughts",
        remedy=_thought_remedy(template, before, tools, ("open", "none"), "remove the thoughts from the rows"),
    )


def _other_marks(template: ProbedTemplate, prompt_end: PromptEnd, written: SplitContent) -> TemplateError:
    opened = _marks_of(template, prompt_end)
    return TemplateError(
        f"the generation prompt opens {opened.open}, and the thoughts of this turn end with {written.close}",
        found=f"{written.marks.open} {written.close} in the content, "
        f"{prompt_end.prefill.strip()!r} at the prompt's end",
        expected=f"thoughts that end with {opened.close}",
        remedy=f"write {opened.open} and {opened.close} around the thoughts, or name another template",
    )


def _mismatch_error(
    template: ProbedTemplate,
    messages: Sequence[PlainMessage],
    tools: Sequence[Any],
    prompt_end: PromptEnd,
    parts: TurnParts,
    rendered: str,
) -> TemplateError:
    """Why no split explains a turn: what is wrong with its marks, or else that the template renders it otherwise."""
    content = str(messages[-1]["content"] or "")
    pairs = template.thoughts.marks
    if prompt_end.state == "open" and parts.written is None and not parts.thoughts:
        marks = _marks_of(template, prompt_end)
        return TemplateError(
            f"the generation prompt opens {marks.open}, and the answer never closes it",
            found=repr(content[:60]),
            expected=f"thoughts, {marks.close}, then the answer",
            remedy=_thought_remedy(
                template,
                messages[:-1],
                tools,
                ("closed", "none"),
                "give the thoughts (`reasoning_content`, or inside the content)",
            ),
        )

    order = marks_order(content, pairs)
    if order not in ("", "oc", "c") or (order and messages[-1].get(template.thoughts.key or "reasoning_content")):
        return TemplateError(
            "this turn opens or closes a thought more than once",
            found=f"{content[:120]!r}; the template renders ...{rendered[-120:]!r}",
            expected="one thought at the beginning of the turn, then the answer without any of "
            + ", ".join(f"{pair.open} {pair.close}" for pair in pairs),
            remedy="join the thoughts into one at the beginning, write the marks otherwise where the answer only "
            "names them, or remove the row",
        )
    return ContextMismatch(prompt_end.context, rendered)


def _thought_remedy(
    template: ProbedTemplate,
    before: Sequence[PlainMessage],
    tools: Sequence[Any],
    wanted: Sequence[str],
    first_way: str,
) -> str:
    """What to do about a prompt in the wrong state; a value of the template is named only if it was tried."""

    def end(values: Mapping[str, Any]) -> str:
        text = template.render(before, tools, add_generation_prompt=True, values=values)
        return trailing_marks(text, template.thoughts.marks)

    value = next(switches(template, end, wanted, template.thoughts.marks), None)
    ways = [first_way, f"use `template_kwargs: {value}`" if value else None, "name another template"]
    return ", or ".join(way for way in ways if way)


def first_difference(left: Sequence[Any], right: Sequence[Any]) -> int:
    """The first index at which two texts or lists differ: first_difference("abc", "abd") -> 2.

    The shorter length if one is the beginning of the other.
    """
    pairs = zip(left, right, strict=False)
    return next((at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(left), len(right)))
