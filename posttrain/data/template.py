"""The chat template as the encoder sees it: contexts, completions and the token that ends a turn.

A template is a program and says nowhere which of its text the model must write. It is found out by rendering:

    context    = render(messages before the turn, add_generation_prompt=True)   # what inference builds
    rendered   = render(messages up to the turn)
    completion = what `rendered` has beyond `context`, up to the token that ends the turn

What ends a turn is what follows a known answer in a rendered probe: the first added token after it. Nothing
is recognised by its name or id, so a template of any layout works, and one that hides or rewrites what must
train is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.builtin_templates import template_source
from posttrain.data.template_header import chosen, spoken_template
from posttrain.data.tokens import Tokens
from posttrain.errors import TemplateError
from posttrain.types import Message

PlainMessage = dict[str, Any]
"""A message as templates read it: {"role": "user", "content": "Hi"}."""

_USER, _ANSWER, _TOOL = "posttrainprobequestion", "posttrainprobeanswer", "posttrainprobetool"
_PROBE_CALL = {"id": "call00001", "type": "function", "function": {"name": _TOOL, "arguments": {"a": 1}}}
_PROBE_SCHEMA = {
    "type": "function",
    "function": {
        "name": _TOOL,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "A number."}}},
    },
}
_OPEN_TAG = re.compile(r"<([A-Za-z][\w-]*)>\s*\Z")


@dataclass(frozen=True, slots=True)
class Stop:
    """The token that ends an assistant's turn: Stop("<|im_end|>", 2)."""

    text: str
    id: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn and its true context: Turn("<|im_start|>user\\nHi...assistant\\n", "Hello.", Stop("<|im_end|>", 2))."""

    context: str
    completion: str
    """What the model writes, without the stop token."""
    stop: Stop | None
    """None where the template ends the turn with nothing and the tokenizer has no eos."""


@dataclass(frozen=True, slots=True)
class _Tail:
    """What a template writes after an answer: _Tail("<|im_end|>\\n", kept="", stop=Stop("<|im_end|>", 2))."""

    text: str
    kept: str
    """The part before the stop token, which the model writes too."""
    stop: Stop | None


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


class ChatTemplate:
    """A tokenizer's chat template (or a named one), probed once.

    template = ChatTemplate(Tokens(tokenizer), "chat", {})
    template.prompt([{"role": "user", "content": "Hi"}])  # "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"
    template.stops  # (Stop("<|im_end|>", 2),)

    Raises:
        TemplateError: there is no template, it cannot be rendered, hides the assistant's text, or ends a turn with
            text that is no single token.
        ConfigError: the named template is neither built in nor a file.
    """

    def __init__(self, tokens: Tokens, name: str, kwargs: Mapping[str, Any], date: str | None = None):
        self.tokens = tokens
        self.name = name
        always_set = tokens.tokenizer.special_tokens_map
        spoken = spoken_template(template_source(tokens, name), kwargs, date, always_set)
        self.kwargs, self.date, self.notes = dict(spoken.values), spoken.date, list(spoken.notes)
        self.source: Any = spoken.source
        """The Jinja text that is rendered (a mapping of them where the tokenizer has several); export saves it."""
        self._null_content: str | None = None
        self._prefill = ""
        self._lead = ""
        self._eos = None
        if tokens.eos_text is not None and tokens.eos_id is not None:
            self._eos = Stop(tokens.eos_text, tokens.eos_id)
        self._tail = self._probe()
        self._call_tail = self._probe_calls()
        self._hidden: dict[str, bool] = {}
        found = [tail.stop for tail in (self._tail, self._call_tail) if tail is not None and tail.stop is not None]
        self.stops: tuple[Stop, ...] = tuple(dict.fromkeys(found))
        self.stop_texts = tuple(dict.fromkeys(stop.text for stop in (*self.stops, *([self._eos] if self._eos else ()))))

    # ------------------------------------------------------------ rendering

    def render(self, messages: Sequence[PlainMessage], tools: Sequence[Any] = (), *, ask: bool = False) -> str:
        """The template's text; `ask` adds the generation prompt.

        Raises:
            TemplateError: the template refuses the messages, by its own check or by a fault.
        """
        try:
            result = self.tokens.tokenizer.apply_chat_template(
                list(messages),
                tools=[_unfrozen(tool) for tool in tools] or None,
                chat_template=chosen(self.source, tools),
                add_generation_prompt=ask,
                tokenize=False,
                **self.kwargs,
            )
        except Exception as error:  # whatever a template's code may do wrong, the row and the roles are worth knowing
            roles = ", ".join(str(message["role"]) for message in messages) or "no messages"
            raise TemplateError(
                f"the chat template refuses this conversation: {error}",
                found=f"roles: {roles}",
                expected="roles and order that the template knows",
                remedy="change the rows, or name another template (`template: chatml`, or a file)",
            ) from error
        return self._text(result)

    def prompt(self, messages: Sequence[PlainMessage], tools: Sequence[Any] = ()) -> str:
        """What inference gives the model to continue."""
        return self.render(messages, tools, ask=True)

    def turn(
        self, messages: Sequence[PlainMessage], index: int, tools: Sequence[Any] = (), context: str | None = None
    ) -> Turn:
        """The assistant's turn messages[index]: its context (rendered here if not given), its text, and how it ends.

        Raises:
            TemplateError: the template hides part of the turn, or the turn cannot follow the generation prompt.
        """
        message = messages[index]
        if context is None:
            context = self.prompt(messages[:index], tools)
        rendered = self.render(messages[: index + 1], tools)
        if rendered.startswith(context):
            body, stop = self._cut_tail(rendered[len(context) :], message)
            if _missing(message, body) is None:
                self._refuse_open_tag(body)
                return Turn(context, body, stop)
        elif not (self._prefill and rendered.startswith(context.removesuffix(self._prefill))):
            raise ContextMismatch(context, rendered)
        return Turn(context, self._unrendered(message, rendered), self._tail.stop)

    def cut_turn(
        self, messages: Sequence[PlainMessage], index: int, tools: Sequence[Any] = (), context: str | None = None
    ) -> Turn:
        """An assistant's turn that was cut before its end: its text as it was written, and no stop token.

        Nothing is rendered, for a template takes a turn to be whole: it would end it, and close its thoughts.

        Raises:
            TemplateError: the turn has parts that only a template can write.
        """
        message = messages[index]
        if message.get("tool_calls") or (message.get("reasoning_content") and not self._prefill):
            raise TemplateError(
                "a turn with more than text says that it was cut before its end (`complete: false`)",
                found="tool calls" if message.get("tool_calls") else "`reasoning_content`",
                expected="the text as the model wrote it, thoughts included",
                remedy="put all that was written into the content, or remove `complete: false`",
            )
        if context is None:
            context = self.prompt(messages[:index], tools)
        written = self._written(message)
        lead = "" if written[:1].isspace() else self._lead
        return Turn(context, lead + written, None)

    def other_turn(self, messages: Sequence[PlainMessage], index: int, tools: Sequence[Any] = ()) -> Turn:
        """A turn of another role, trained on request: its text and its terminator, after the role's header.

        Raises:
            TemplateError: the turn's text cannot be found in the rendered conversation.
        """
        marked = dict(messages[index], content=_ANSWER)
        header, found, tail_text = self.render([*messages[:index], marked], tools).partition(_ANSWER)
        rendered = self.render(messages[: index + 1], tools)
        if not found or not rendered.startswith(header) or not rendered.endswith(tail_text):
            raise TemplateError(
                f"the text of this {messages[index]['role']} turn cannot be found in the rendered conversation",
                found=rendered[-60:],
                expected=f"...{header[-30:]}TEXT{tail_text}",
                remedy="leave this turn untrained, or name another template",
            )
        stop = self._first_stop(tail_text)
        return Turn(header, rendered[len(header) : len(rendered) - len(tail_text)], stop[1] if stop else None)

    def plain(self, message: Message) -> PlainMessage:
        """A message as templates read it.

        An answer that already ends with a stop token's text loses it, since the template writes it again: exactly one
        is trained, whether the data have it or not.
        """
        content = message.content
        if content is None:
            content = self._null_content
        elif message.role == "assistant":
            content = self.without_stops(content)
        result: PlainMessage = {"role": message.role, "content": content}
        if message.tool_calls:
            result["tool_calls"] = [_unfrozen(call) for call in message.tool_calls]
        if message.name is not None:
            result["name"] = message.name
        if message.tool_call_id is not None:
            result["tool_call_id"] = message.tool_call_id
        if message.reasoning is not None:
            result["reasoning_content"] = message.reasoning
        return result

    def without_stops(self, content: str) -> str:
        """without_stops("b</s></s>\\n") -> "b"; a text without a stop token at its end is left as it is."""
        while True:
            bare = content.rstrip()
            stop = next((text for text in self.stop_texts if bare.endswith(text)), None)
            if stop is None:
                return content
            content = bare.removesuffix(stop)

    def hides(self, role: str) -> bool:
        """Whether the template leaves out the text of such turns without a word."""
        if role not in self._hidden:
            self._hidden[role] = self._probe_hidden(role)
        return self._hidden[role]

    # ------------------------------------------------------------ completions

    def _cut_tail(self, text: str, message: PlainMessage) -> tuple[str, Stop | None]:
        tails = [self._tail]
        if self._call_tail is not None:
            tails.insert(0 if message.get("tool_calls") else 1, self._call_tail)
        for tail in tails:
            if text.endswith(tail.text):
                return text[: len(text) - len(tail.text)] + tail.kept, tail.stop
        raise TemplateError(
            "the chat template ends this turn otherwise than it ends others",
            found=repr(text[-40:]),
            expected=f"an end like {self._tail.text!r}",
            remedy="name a template file that ends every assistant turn the same way",
        )

    def _unrendered(self, message: PlainMessage, rendered: str) -> str:
        """What the model wrote, where the template shows a finished turn without its thoughts.

        Inference sees the text that the model wrote, not what the template makes of it later.
        """
        written = self._written(message)
        if self._prefill:
            self._refuse_open_tag(written)
        closing = f"</{self._open_tag or 'think'}>"
        visible = written.rpartition(closing)[2] if closing in written else written
        lost = _missing({**message, "content": visible, "reasoning_content": None}, rendered)
        if lost is None and message.get("reasoning_content") and not self._prefill:
            lost = "the reasoning"
        if lost is not None:
            raise TemplateError(
                f"the chat template hides {lost} of an assistant's turn that must train",
                found=repr(rendered[-60:]),
                expected="the turn as it was written",
                remedy="put the text where the template shows it (reasoning inside the content, as "
                "<think>...</think>), or name another template",
            )
        return written

    def _written(self, message: PlainMessage) -> str:
        """The text that follows the generation prompt; what that has opened already is left out."""
        written = str(message["content"] or "")
        tag = self._open_tag or "think"
        opening, closing = f"<{tag}>", f"</{tag}>"
        if self._prefill and message.get("reasoning_content"):
            return f"{message['reasoning_content']}\n{closing}\n\n{written}"
        if self._open_tag and written.lstrip().startswith(opening):
            return written.lstrip().removeprefix(opening).removeprefix("\n")
        return written

    def _refuse_open_tag(self, completion: str) -> None:
        """A generation prompt that opens <think> needs an answer that closes it."""
        if self._open_tag is None or f"</{self._open_tag}>" in completion:
            return
        raise TemplateError(
            f"the generation prompt opens <{self._open_tag}>, and the answer never closes it",
            found=repr(completion[:60]),
            expected=f"thoughts, </{self._open_tag}>, then the answer",
            remedy="give the thoughts (`reasoning_content`, or inside the content), render without them where the "
            "template can (`template_kwargs: {enable_thinking: false}`), or name another template",
        )

    @property
    def _open_tag(self) -> str | None:
        match = _OPEN_TAG.search(self._prefill)
        return match.group(1) if match else None

    # ------------------------------------------------------------ probes

    def _probe(self) -> _Tail:
        """Finds the generation prompt and what follows an answer; completes a template that has no such prompt."""
        question = [{"role": "user", "content": _USER}]
        answered = [*question, {"role": "assistant", "content": _ANSWER}]
        asked, finished = self.render(question, ask=True), self.render(answered)
        lead, found, tail = finished.rpartition(_ANSWER)
        if not found or _USER not in asked:
            raise self._broken("shows neither question nor answer as they are", finished)
        header = lead[len(asked) :] if lead.startswith(asked) else ""
        if header.strip() and asked == self.render(question):
            asked = self._complete(header, question)
        self._lead = header if header.isspace() else ""
        if asked.startswith(lead):
            self._prefill = asked[len(lead) :]  # where the two part otherwise, the first row is refused, by its name
        stop = self._first_stop(tail) or self._stop_between_turns(answered, asked.partition(_USER)[0])
        if stop is not None:
            kept, end = stop
            return _Tail(tail, kept if end.text in tail else "", end)
        if tail.strip():
            raise TemplateError(
                f"{self._label} ends the assistant's turn with text that is not one token, so that no sampler can stop",
                found=f"{tail.strip()!r} is {len(self.tokens.whole(tail.strip()))} tokens",
                expected="a single token after the answer, as <|im_end|> is where the tokenizer knows it",
                remedy="add it to the tokenizer as a special token, name a template that ends turns with the eos token "
                "(`template: chatml` does where <|im_end|> is unknown), or use `template: raw`",
            )
        if self._eos is None:
            raise self._broken("ends the assistant's turn with no token, and the tokenizer has no eos", finished)
        self.notes.append(
            f"{self._label} ends the assistant's turn with no token; the eos token {self._eos.text!r} is put there"
        )
        return _Tail(tail, "", self._eos)

    def _complete(self, header: str, question: list[PlainMessage]) -> str:
        """Adds the missing generation prompt, which training, rollout and the saved model then share."""
        if not isinstance(self.source, str):
            raise self._broken("has no generation prompt", header)
        quoted = header.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        self.source = self.source.removesuffix("\n") + "{% if add_generation_prompt %}{{ '" + quoted + "' }}{% endif %}"
        self.notes.append(
            f"{self._label} has no generation prompt; {header!r} is added as one, and is saved with the model"
        )
        return self.render(question, ask=True)

    def _first_stop(self, tail: str) -> tuple[str, Stop] | None:
        """The first added token after an answer, or the one token that the whole tail is."""
        added = self.tokens.first_added(tail)
        if added is not None:
            at, text = added
            return tail[:at], Stop(text, self.tokens.added[text])
        bare = tail.strip()
        number = self.tokens.single_id(bare) if bare else None
        return (tail[: tail.index(bare)], Stop(bare, number)) if number is not None else None

    def _stop_between_turns(self, answered: list[PlainMessage], user_header: str) -> tuple[str, Stop] | None:
        """The stop token of a template that writes it only where another turn follows."""
        rendered = self.render([*answered, {"role": "user", "content": _USER}])
        between = rendered.rpartition(_ANSWER)[2].partition(_USER)[0]
        stop = self._first_stop(between)
        # The next turn's header is no terminator: it would teach the model to begin the user's turn.
        return None if stop is None or stop[1].text in user_header else stop

    def _probe_calls(self) -> _Tail | None:
        """How a turn that calls a tool ends, and whether an absent content must be None or empty."""
        question: list[PlainMessage] = [{"role": "user", "content": _USER}]
        calling: PlainMessage = {"role": "assistant", "tool_calls": [_PROBE_CALL]}
        for null_content in (None, ""):
            try:
                context = self.prompt(question, [_PROBE_SCHEMA])
                rendered = self.render([*question, {**calling, "content": null_content}], [_PROBE_SCHEMA])
            except TemplateError:
                continue
            extra = rendered[len(context.removesuffix(self._prefill)) :]
            if "None" in extra:  # Jinja prints an absent content as this word, and the model would learn it
                continue
            self._null_content = null_content
            return self._call_tail_of(extra) if _TOOL in extra else None
        self._null_content = ""
        return None

    def _call_tail_of(self, text: str) -> _Tail:
        if text.endswith(self._tail.text):
            return self._tail
        for name in sorted(self.tokens.added, key=len, reverse=True):
            if name and text.rstrip().endswith(name):
                return _Tail(text[text.rindex(name) :], "", Stop(name, self.tokens.added[name]))
        return self._tail

    def _probe_hidden(self, role: str) -> bool:
        question: PlainMessage = {"role": "user", "content": _USER}
        calling: PlainMessage = {"role": "assistant", "content": self._null_content, "tool_calls": [_PROBE_CALL]}
        probed: PlainMessage = {"role": role, "content": _ANSWER}
        probes = {
            "system": [probed, question],
            "tool": [question, calling, {**probed, "name": _TOOL, "tool_call_id": "call00001"}],
        }
        try:
            return _ANSWER not in self.prompt(probes.get(role, [probed]))
        except TemplateError:
            return False  # such a turn is refused aloud

    # ------------------------------------------------------------ small parts

    @property
    def _label(self) -> str:
        return "the tokenizer's chat template" if self.name == "chat" else f"the template {self.name!r}"

    def _broken(self, problem: str, found: str) -> TemplateError:
        return TemplateError(
            f"{self._label} {problem}",
            found=repr(found[-80:]),
            expected="a template that writes the question, a generation prompt, the answer and a stop token",
            remedy="name a template file, `template: chatml`, or `template: raw` for a base model",
        )

    def _text(self, result: Any) -> str:
        """A tokenizer may answer with a text, with ids, or with a mapping that holds ids; all become the text."""
        if isinstance(result, str):
            return result
        ids = result["input_ids"] if isinstance(result, Mapping) else result
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)  # a foreign object: list, array or tensor
        if len(ids) == 1 and isinstance(ids[0], list):
            ids = ids[0]
        text = self.tokens.decode(ids)
        if self.tokens.ids(text) != ids:
            raise TemplateError(
                "the tokenizer renders conversations as ids that its own text does not give back",
                found=f"{len(ids)} ids, {len(self.tokens.ids(text))} after decoding and encoding",
                expected="text from `apply_chat_template(..., tokenize=False)`",
                remedy="use a tokenizer whose apply_chat_template honours tokenize=False",
            )
        return text


def first_difference(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Where two texts or lists part: first_difference("abc", "abd") -> 2; the shorter length where one ends first."""
    pairs = zip(left, right, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def _missing(message: PlainMessage, text: str) -> str | None:
    """What of a message a rendered text does not show: None, "the content", "the reasoning" or "a tool call"."""
    if message["content"] and message["content"].strip() not in text:
        return "the content"
    if message.get("reasoning_content") and message["reasoning_content"].strip() not in text:
        return "the reasoning"
    calls = message.get("tool_calls") or ()
    return "a tool call" if any(call["function"]["name"] not in text for call in calls) else None


def _unfrozen(value: Any) -> Any:
    """Plain dicts and lists all the way down: `tojson` knows no other mapping."""
    if isinstance(value, Mapping):
        return {key: _unfrozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unfrozen(item) for item in value]
    return value
