"""The chat template as the encoder sees it: contexts, completions and the token that ends a turn.

`drafts.py` asks it for one turn after another; `probe.py` finds its layout, `proof.py` proves every turn.

A template is a program and says nowhere which of its text the model must write. It is found out by rendering:

    context    = render(messages before the turn, add_generation_prompt=True)   # what inference builds
    rendered   = render(messages up to the turn)
    completion = what `rendered` has beyond `context`, up to the token that ends the turn

What ends a turn is what follows a known answer in a rendered probe: the first added token after it. Nothing
is recognised by its name or id, so a template of any layout works, and one that hides or rewrites what must
train is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from posttrain.data.templates.bounds import bounded
from posttrain.data.templates.builtin import jinja_string, template_source
from posttrain.data.templates.call_text import call_in_form, plain_data
from posttrain.data.templates.faults import render_fault
from posttrain.data.templates.header import template_for, with_header
from posttrain.data.templates.probe import (
    ANSWER,
    QUESTION,
    USER,
    Ends,
    PlainMessage,
    StopToken,
    Tail,
    TemplateLayout,
    first_stop,
    probe_calls,
    rendered_or_none,
    turn_kind,
)
from posttrain.data.templates.proof import (
    DOCUMENTED_SPLITS,
    ContextMismatch,
    Turn,
    first_difference,
    prove_turn,
    read_prompt_end,
)
from posttrain.data.templates.rendering import Rendering
from posttrain.data.templates.thought_probe import probe_thoughts
from posttrain.data.templates.thoughts import split_thoughts
from posttrain.data.tokens import Tokens
from posttrain.errors import TemplateError
from posttrain.types import Message

__all__ = [
    "DOCUMENTED_SPLITS",
    "ChatTemplate",
    "ContextMismatch",
    "PlainMessage",
    "StopToken",
    "Turn",
    "first_difference",
]


class ChatTemplate:
    """A tokenizer's chat template (or a named one), probed once.

    template = ChatTemplate(Tokens(tokenizer), "chat", {})
    template.prompt([{"role": "user", "content": "Hi"}])  # "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n"
    template.stops  # (StopToken("<|im_end|>", 2),)

    Raises:
        TemplateError: there is no template, it cannot be rendered, hides the assistant's text, or ends a turn with
            text that is no single token.
        ConfigError: the named template is neither built in nor a file.
    """

    def __init__(self, tokens: Tokens, name: str, kwargs: Mapping[str, Any], date: str | None = None):
        self.tokens = tokens
        self.name = name
        always_set = tokens.tokenizer.special_tokens_map
        spoken = with_header(template_source(tokens, name), kwargs, date, always_set)
        self.kwargs, self.date, self.notes = dict(spoken.values), spoken.date, list(spoken.notes)
        self.source: Any = spoken.source
        """The Jinja text that is rendered (a mapping of them where the tokenizer has several); export saves it."""
        # The order matters: each probe needs what those before it have found.
        self._eos = None
        if tokens.eos_text is not None and tokens.eos_id is not None:
            self._eos = StopToken(tokens.eos_text, tokens.eos_id)
        self._lead = ""
        self._rendering = Rendering(tokens.tokenizer)
        self.layout, plain = self._probe()
        self._prefill = self.layout.prefill
        self.calls = probe_calls(self, self.layout.prefill)
        source = self.source if isinstance(self.source, str) else "\n".join(map(str, dict(self.source).values()))
        self.thoughts = probe_thoughts(self, source, self.layout, self.calls)
        self.ends = Ends(self, plain, self.layout, self.calls, self.thoughts.key)
        self._hidden: dict[str, bool] = {}
        tails = self.ends.all
        self.stops: tuple[StopToken, ...] = tuple(dict.fromkeys(tail.stop for tail in tails if tail.stop is not None))
        self.stop_texts = tuple(dict.fromkeys(stop.text for stop in (*self.stops, *([self._eos] if self._eos else ()))))
        kept = [token for tail in tails for token in tokens.added_at_end(tail.kept)]
        self.end_texts = tuple(dict.fromkeys((*self.stop_texts, *kept)))
        """What may stand at an answer's end: the stop tokens, and those that a template writes before one."""

    @property
    def null_content(self) -> str | None:
        """What an absent content is for this template."""
        return self.calls.null_content

    # ------------------------------------------------------------ rendering

    def render(
        self,
        messages: Sequence[PlainMessage],
        tools: Sequence[Any] = (),
        *,
        add_generation_prompt: bool = False,
        values: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The template's text; `values` take precedence over those of the settings.

        Raises:
            TemplateError: the template refuses the messages, by its own check or by a fault.
        """
        source = template_for(self.source, tools)
        try:
            with bounded(source):
                result = self._rendering(
                    source,
                    messages,
                    tools=[plain_data(tool) for tool in tools],
                    add_generation_prompt=add_generation_prompt,
                    values={**self.kwargs, **values},
                )
        except TemplateError:
            raise
        except Exception as error:  # whatever a template's code may do wrong becomes an error that says so
            raise render_fault(error, self.label, self.source, messages) from error
        return self._text(result)

    def prompt(self, messages: Sequence[PlainMessage], tools: Sequence[Any] = ()) -> str:
        """What inference gives the model to continue."""
        return self.render(self._history(messages), tools, add_generation_prompt=True)

    def _history(self, messages: Sequence[PlainMessage]) -> Sequence[PlainMessage]:
        """Earlier turns for a template that would show a thought of the content beside one of its own.

        The turn that trains is moved by its proof, which says so; the same turn must not stand otherwise in the
        context of a later one.
        """
        key = self.thoughts.key if self.thoughts.doubles else None
        return messages if key is None else [self._with_thoughts_moved(message, key) for message in messages]

    def _with_thoughts_moved(self, message: PlainMessage, key: str) -> PlainMessage:
        if message["role"] != "assistant" or message.get(key):
            return message
        written = split_thoughts(str(message["content"] or ""), self.thoughts.marks, opened=True)
        if written is None:
            return message
        content = written.visible or (self.null_content if message.get("tool_calls") else "")
        return {**message, "content": content, **({key: written.thoughts.strip()} if written.thoughts.strip() else {})}

    def turn(
        self, messages: Sequence[PlainMessage], index: int, tools: Sequence[Any] = (), context: str | None = None
    ) -> Turn:
        """The assistant's turn messages[index]: its context (rendered here if not given), its text, and how it ends.

        Raises:
            TemplateError: the template hides part of the turn, or the turn cannot follow the generation prompt; see
                `posttrain.data.templates.proof`.
        """
        messages = [*self._history(messages[:index]), *messages[index:]]
        if context is None:
            context = self.prompt(messages[:index], tools)
        return prove_turn(self, messages, index, tools, context)

    def cut_turn(
        self, messages: Sequence[PlainMessage], index: int, tools: Sequence[Any] = (), context: str | None = None
    ) -> Turn:
        """An assistant's turn that was cut before its end: its text as it was written, and no stop token.

        Nothing is rendered, for a template takes a turn to be whole: it would end it, and close its thoughts.

        Raises:
            TemplateError: the turn has parts that only a template can write.
        """
        message = messages[index]
        if message.get("tool_calls") or message.get(self.thoughts.key or "reasoning_content"):
            raise TemplateError(
                "a turn with more than text says that it was cut before its end (`complete: false`)",
                found="tool calls" if message.get("tool_calls") else "`reasoning_content`",
                expected="the text as the model wrote it, thoughts included",
                remedy="put all that was written into the content, or remove `complete: false`",
            )

        if context is None:
            context = self.prompt(messages[:index], tools)
        written = str(message["content"] or "")
        prompt_end = read_prompt_end(self, messages[:index], context)
        split = split_thoughts(written, self.thoughts.marks, opened=prompt_end.state == "open")
        if prompt_end.state == "closed" and split is not None and split.thoughts.strip():
            raise TemplateError(
                "the generation prompt closes the thought, and this cut turn has thoughts",
                found=f"...{context[-40:]!r} before {written[:40]!r}",
                expected="a prompt that leaves the thought to the model, or a turn without thoughts",
                remedy="remove the thoughts from the rows, or name another template",
            )

        # The prompt has written the opening mark; a row that has it, too, would train a second one.
        if prompt_end.state == "open":
            opening = next((pair.open for pair in self.thoughts.marks if written.lstrip().startswith(pair.open)), None)
            if opening is not None:
                written = written.lstrip().removeprefix(opening).removeprefix("\n")
        lead = "" if written[:1].isspace() else self._lead  # white space that the template puts before each answer
        return Turn(context, lead + written, None)

    def other_turn(self, messages: Sequence[PlainMessage], index: int, tools: Sequence[Any] = ()) -> Turn:
        """A turn of another role, trained on request: its text and its terminator, after the role's header.

        Raises:
            TemplateError: the turn's text cannot be found in the rendered conversation.
        """
        messages = [*self._history(messages[:index]), *messages[index:]]
        marked = dict(messages[index], content=ANSWER)
        header, has_text, tail_text = self.render([*messages[:index], marked], tools).partition(ANSWER)
        rendered = self.render(messages[: index + 1], tools)
        if not has_text or not rendered.startswith(header) or not rendered.endswith(tail_text):
            raise TemplateError(
                f"the text of this {messages[index]['role']} turn cannot be found in the rendered conversation",
                found=rendered[-60:],
                expected=f"...{header[-30:]}TEXT{tail_text}",
                remedy="leave this turn untrained, or name another template",
            )
        stop = first_stop(self.tokens, tail_text)
        return Turn(header, rendered[len(header) : len(rendered) - len(tail_text)], stop[1] if stop else None)

    def plain(self, message: Message) -> PlainMessage:
        """A message as templates read it.

        An answer that already ends with a stop token's text loses it, since the template writes it again: exactly one
        is trained, whether the data have it or not.
        """
        content = message.content
        if content is None:
            content = self.null_content
        elif message.role == "assistant":
            content = self.without_stops(content)
        result: PlainMessage = {"role": message.role, "content": content}
        if message.tool_calls:
            result["tool_calls"] = [call_in_form(call, self.calls.form) for call in message.tool_calls]
        if message.name is not None:
            result["name"] = message.name
        if message.tool_call_id is not None:
            result["tool_call_id"] = message.tool_call_id
        if message.reasoning is not None:
            result[self.thoughts.key or "reasoning_content"] = message.reasoning
        return result

    def without_stops(self, content: str) -> str:
        """without_stops("b</s></s>\\n") -> "b"; a text without a stop token at its end is left as it is."""
        while True:
            bare = content.rstrip()
            stop = next((text for text in self.end_texts if bare.endswith(text)), None)
            if stop is None:
                return content
            content = bare.removesuffix(stop)

    def hides(self, role: str) -> bool:
        """Whether the template leaves out the text of such turns without a word."""
        if role not in self._hidden:
            self._hidden[role] = self._probe_hidden(role)
        return self._hidden[role]

    def cut_tail(self, text: str, messages: Sequence[PlainMessage]) -> tuple[str, StopToken | None]:
        """A turn's text, the last of `messages`, without what ends it; and the token that ends it.

        Raises:
            TemplateError: it ends in no way that a probe has seen.
        """
        last = messages[-1]
        thoughts = bool(self.thoughts.key and last.get(self.thoughts.key))
        own_end = self.ends.of(turn_kind(messages, len(messages) - 1, thoughts=thoughts))
        if own_end is not None and text.endswith(own_end.text):
            return text[: len(text) - len(own_end.text)] + own_end.kept, own_end.stop
        # The probe of this kind saw another end; any end that the template has anywhere is still an end.
        for tail in self.ends.all:
            if tail.text and text.endswith(tail.text):
                return text[: len(text) - len(tail.text)] + tail.kept, tail.stop
        plain = self.ends.plain
        if own_end is None and not plain.text.strip():  # a template that ends no turn, and no probe of this kind
            return text.removesuffix(plain.text), plain.stop
        raise TemplateError(
            "the chat template ends this turn otherwise than it ends others",
            found=repr(text[-40:]),
            expected="an end like " + " or ".join(repr(tail.text) for tail in self.ends.all),
            remedy="name a template file that ends every assistant turn the same way",
        )

    # ------------------------------------------------------------ probes

    def _probe(self) -> tuple[TemplateLayout, Tail]:
        """Finds the generation prompt and what follows an answer; completes a template that has no such prompt."""
        answered = [QUESTION, {"role": "assistant", "content": ANSWER}]
        prompted, finished = self.render([QUESTION], add_generation_prompt=True), self.render(answered)
        lead, has_answer, tail = finished.rpartition(ANSWER)
        if not has_answer or USER not in prompted:
            raise self._broken("shows neither question nor answer as they are", finished)

        header = lead[len(prompted) :] if lead.startswith(prompted) else ""
        unprompted = self.render([QUESTION])
        # Asking adds nothing, and answers begin with a header: without it the model would have to write it first.
        if header.strip() and prompted == unprompted:
            prompted = self._complete(header)
        self._lead = header if header.isspace() else ""

        closing = self.tokens.first_added(prompted.rpartition(USER)[2])
        closes = closing[1] if closing is not None else None
        between = self._between_turns(answered)
        user_header = prompted.partition(USER)[0]
        stop = first_stop(self.tokens, tail, closes)
        if stop is None and between:
            # Nothing after the last answer; the mark may come with the next turn only.
            stop = first_stop(self.tokens, between)
            # The next turn's header is no terminator: it would teach the model to begin the user's turn.
            stop = None if stop is None or stop[1].text in user_header else stop

        generation = prompted[self.tokens.not_inside(prompted, first_difference(prompted, unprompted)) :]
        layout = TemplateLayout(
            generation=generation,
            # Where the two part otherwise, the first row is refused, by its name.
            prefill=prompted[len(lead) :] if prompted.startswith(lead) else "",
            between=between,
            headers=self._headers(
                [generation, between, lead.rpartition(USER)[2]],
                [stop[1].text if stop is not None else "", closes if closes and closes not in generation else ""],
            ),
            closes=closes,
            header_is_prompt=prompted.rstrip() == lead.rstrip(),
        )

        if stop is None:
            return layout, self._ended_by_eos(tail, finished)
        kept, end = stop
        if end.text == closes and self.tokens.added_at_end(kept):
            self.notes.append(
                f"{self.label} ends a turn with the two tokens {kept.strip() + end.text!r}: both train, and generation "
                "stops at the second"
            )
        return layout, Tail(tail, kept if end.text in tail else "", end)

    def _between_turns(self, answered: list[PlainMessage]) -> str:
        """What stands between an answer and the next question."""
        rendered = rendered_or_none(self, [*answered, QUESTION])
        return "" if rendered is None else rendered.rpartition(ANSWER)[2].partition(USER)[0]

    def _headers(self, headers: list[str], ends: list[str]) -> str:
        """Texts that begin turns of the assistant, the user and the system, without the tokens that end turns."""
        system = rendered_or_none(self, [{"role": "system", "content": ANSWER}, QUESTION]) or ""
        text = "\n".join([*headers, system.partition(ANSWER)[0] if ANSWER in system else ""])
        for end in filter(None, ends):
            text = text.replace(end, "")
        return text

    def _ended_by_eos(self, tail: str, finished: str) -> Tail:
        """The end of a turn after which the template writes no token."""
        if tail.strip():
            raise TemplateError(
                f"{self.label} ends the assistant's turn with text that is not one token, so that no sampler can stop",
                found=f"{tail.strip()!r} is {len(self.tokens.whole(tail.strip()))} tokens",
                expected="a single token after the answer, as <|im_end|> is where the tokenizer knows it",
                remedy="add it to the tokenizer as a special token, name a template that ends turns with the eos token "
                "(`template: chatml` does where <|im_end|> is unknown), or use `template: raw`",
            )
        if self._eos is None:
            raise self._broken("ends the assistant's turn with no token, and the tokenizer has no eos", finished)
        self.notes.append(
            f"{self.label} ends the assistant's turn with no token; the eos token {self._eos.text!r} is put there"
        )
        return Tail(tail, "", self._eos)

    def _complete(self, header: str) -> str:
        """Adds the missing generation prompt, which training, rollout and the saved model then share."""
        if not isinstance(self.source, str):
            raise self._broken("has no generation prompt", header)
        prompt = f"{{% if add_generation_prompt %}}{{{{ {jinja_string(header)} }}}}{{% endif %}}"
        self.source = self.source.removesuffix("\n") + prompt
        self.notes.append(
            f"{self.label} has no generation prompt; {header!r} is added as one, and is saved with the model"
        )
        return self.render([QUESTION], add_generation_prompt=True)

    def _probe_hidden(self, role: str) -> bool:
        probed: PlainMessage = {"role": role, "content": ANSWER}
        calling, result = self.calls.exchange()
        probes = {"system": [probed, QUESTION], "tool": [QUESTION, calling, {**result, "content": ANSWER}]}
        text = rendered_or_none(self, probes.get(role, [probed]), add_generation_prompt=True)
        return text is not None and ANSWER not in text  # such a turn that is refused is refused aloud

    # ------------------------------------------------------------ small parts

    @property
    def label(self) -> str:
        """How errors and notes name the template."""
        return "the tokenizer's chat template" if self.name == "chat" else f"the template {self.name!r}"

    def _broken(self, problem: str, found: str) -> TemplateError:
        return TemplateError(
            f"{self.label} {problem}",
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
