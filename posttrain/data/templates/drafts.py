"""A row's messages to drafts of trees: which turns train, in which context, ending how. `Encoder` freezes the drafts.

A draft is a tree before truncation. Everything about single turns is `template.py`'s; here turns are put together:
a conversation whose contexts continue one another is one sequence, any other is several.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.round_trip import RoundTrip, RoundTrips
from posttrain.data.templates.builtin import template_source
from posttrain.data.templates.call_text import lost_part
from posttrain.data.templates.probe import rendered_or_none
from posttrain.data.templates.template import ChatTemplate, ContextMismatch, PlainMessage, Turn, first_difference
from posttrain.data.tokens import Tokens, pattern_of
from posttrain.data.truncate import Draft, Side, split_text
from posttrain.errors import EncodingError, PromptMismatchError, TemplateError
from posttrain.types import Demonstration, Message

SYSTEM_REPAIR = "; `repairs: {system_into_user: true}` under `data` puts them into the user's turns"


class SpecialTokenError(EncodingError):
    """A text holds a special token's name, and the settings refuse such rows."""


class RowFindings:
    """The findings about one row, gathered while it is encoded; the names are those of `encode.FINDINGS`."""

    def __init__(self, findings: Sequence[str] = ()) -> None:
        self.names: list[str] = list(findings)
        self.round_trip = RoundTrip()

    def add(self, names: Sequence[str]) -> None:
        self.names += [name for name in names if name not in self.names]


class _Sequence:
    """One sequence under construction: its text, ids, which of them train, and which of those end an answer."""

    def __init__(self) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.stops: list[int] = []

    def add(self, ids: Sequence[int], *, trains: bool) -> None:
        self.ids += ids
        self.mask += [trains] * len(ids)

    def add_stop(self, number: int, *, trains: bool) -> None:
        if trains:
            self.stops.append(len(self.ids))
        self.add([number], trains=trains)

    @property
    def first_trained(self) -> int:
        return self.mask.index(True) if True in self.mask else len(self.ids)

    def draft(self, prompt_length: int) -> Draft:
        stops = tuple(stop - prompt_length for stop in self.stops if stop >= prompt_length)
        side = Side(self.ids[prompt_length:], self.mask[prompt_length:], stops)
        return Draft(self.ids[:prompt_length], (side,))


class Drafter:
    """Drafts for one template and one set of options."""

    def __init__(self, tokens: Tokens, template: ChatTemplate, settings: EncoderSettings, stop_ids: frozenset[int]):
        self.tokens = tokens
        self.template = template
        self.settings = settings
        self.stop_ids = stop_ids
        self._round_trips = RoundTrips(tokens)
        self._special = tokens.special_pattern([stop.text for stop in template.stops])
        self._ends = pattern_of([*template.stop_texts, *([tokens.bos_text] if tokens.bos_text else [])])

    # ------------------------------------------------------------ drafts

    def demonstration(self, row: Demonstration, findings: RowFindings) -> list[Draft]:
        if row.is_text:
            return self._text(row, findings)
        messages = [self.template.plain(message) for message in row.messages]
        if self.settings.train_on == "all":
            return [self._everything(row, messages, findings)]
        trained = self._trained(row.messages)
        if not trained:  # a draft without a trained token, which `fit_length` drops under its reason
            ids = self.tokens.ids(self.template.render(messages, row.tools))
            return [Draft([], (Side(ids, [False] * len(ids)),))]
        paths, context = self._paths(messages, trained, row.tools, findings, cut=_cut_turns(row.messages))
        findings.add(self.check_shown(row.messages[: trained[-1]], row.tools, context))
        if len(paths) > 1:
            findings.add(["split_turns"])
        for path in paths:
            self._compare(findings, path.text, path.ids)
        return [path.draft(path.first_trained) for path in paths]

    def _text(self, row: Demonstration, findings: RowFindings) -> list[Draft]:
        """Bare text as the tokenizer writes it, and eos: every token trains but the first, which nothing predicts."""
        text = row.messages[0].content or ""
        # The template that would put marks of speakers around it is not what the text is to be learned in.
        if self.template.source != template_source(self.tokens, "raw"):
            raise EncodingError(
                "the row is bare text, and a chat template would train it as an answer to nothing",
                found=f"`template: {self.settings.template}`, and the text {text[:40]!r}",
                expected="`template: raw`, under which a text trains as it stands",
                remedy="write `encoding: {template: raw}`; rows that are conversations need a format of turns",
            )
        bos_id, bos = self.tokens.bos_id, self.tokens.bos_text
        writes_bos = bos_id is not None and bos_id in self.tokens.added_by_default()
        begin = [bos_id] if bos_id is not None and writes_bos and not (bos and text.startswith(bos)) else []
        ids = self.tokens.ids(text)
        self._compare(findings, text, ids)
        assert self.tokens.eos_id is not None  # `raw` refuses a tokenizer without one
        trains_stop = self.settings.stop_token == "train"
        mask = [False, *[True] * (len(begin) + len(ids) - 1), trains_stop]
        stops = (len(mask) - 1,) if trains_stop else ()
        side = Side([*begin, *ids, self.tokens.eos_id], mask, stops)
        if self.settings.truncation != "split":
            return [Draft([], (side,))]
        return [Draft([], (piece,)) for piece in split_text(side, self.settings.max_length)]

    def _everything(self, row: Demonstration, messages: list[PlainMessage], findings: RowFindings) -> Draft:
        """Every token but the first, which nothing predicts."""
        if any(message.train is False for message in row.messages):
            raise EncodingError(
                "`train_on: all` trains every token, but a message of this row says `train: false`",
                expected="no such mark under `train_on: all`",
                remedy="use `train_on: assistant_only`, which honours the mark",
            )
        path = _Sequence()
        if messages and messages[-1]["role"] == "assistant":
            turn = self._turn(messages, len(messages) - 1, row.tools, whole=row.messages[-1].complete)
            self._extend(path, self.tokens.ids(turn.context), turn)
            findings.add([turn.finding] if turn.finding else [])
            findings.add(self.check_shown(row.messages[:-1], row.tools, turn.context))
        else:
            path.text = self.template.render(messages, row.tools)
            path.add(self.tokens.ids(path.text), trains=True)
            findings.add(self.check_shown(row.messages, row.tools, path.text))
        self._compare(findings, path.text, path.ids)
        mask = [False] + [True] * (len(path.ids) - 1)
        # By id, unlike elsewhere: under `all` every token trains, and this only counts those that end an answer.
        stops = tuple(at for at, number in enumerate(path.ids) if number in self.stop_ids and at)
        return Draft([], (Side(path.ids, mask[: len(path.ids)], stops),))

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Any], findings: RowFindings | None = None
    ) -> list[int]:
        """The ids of a conversation with its generation prompt; what there is to say of it goes to `found`."""
        text = self._prompt_text(messages, tools)
        ids = self.tokens.ids(text)
        shown = self.check_shown(messages, tools, text)
        if findings is not None:
            findings.add(shown)
            self._compare(findings, text, ids)
        return ids

    def _compare(self, findings: RowFindings, text: str, ids: list[int]) -> None:
        """Text through ids and back; see `posttrain.data.round_trip`."""
        trip = self._round_trips.of(text, ids)
        findings.round_trip += trip
        findings.add((["lost_text"] if trip.lost else []) + (["altered_by_tokenizer"] if trip.altered else []))

    def _prompt_text(self, messages: Sequence[Message], tools: Sequence[Any]) -> str:
        return self.template.prompt([self.template.plain(message) for message in messages], tools)

    def shared_prompt(
        self,
        prompt: Sequence[Message],
        responses: Sequence[Sequence[Message]],
        tools: Sequence[Any],
        findings: RowFindings,
    ) -> Draft:
        """All responses behind one prompt, whose ids each of them must share token by token."""
        text = self._prompt_text(prompt, tools)
        findings.add(self.check_shown(prompt, tools, text))
        shared = self.tokens.ids(text)
        self._compare(findings, text, shared)
        sides = [self._side(text, shared, prompt, response, tools, findings) for response in responses]
        return Draft(shared, tuple(sides))

    def _side(
        self,
        text: str,
        shared: list[int],
        prompt: Sequence[Message],
        response: Sequence[Message],
        tools: Sequence[Any],
        findings: RowFindings,
    ) -> Side:
        turns = [*prompt, *response]
        messages = [self.template.plain(message) for message in turns]
        trained = self._trained(turns, start=len(prompt))
        if not trained:
            return Side([], [])
        try:
            paths, context = self._paths(
                messages, trained, tools, findings, known={len(prompt): text}, cut=_cut_turns(turns)
            )
        except ContextMismatch as error:
            raise self._mismatch(self.tokens.ids(error.context), self.tokens.ids(error.rendered)) from error

        if len(response) > 1:
            findings.add(self.check_shown(turns[: trained[-1]], tools, context))
        if len(paths) > 1:
            raise TemplateError(
                "the chat template rewrites the earlier turns of a response with several assistant turns, so that no "
                "single sequence is what inference saw",
                found=f"{len(trained)} trained turns that need {len(paths)} contexts",
                expected="one",
                remedy="train on the last turn only (`train: false` on the others), or name another template",
            )

        # Equal texts may still have other ids where the tokenizer merges across the end of the prompt.
        path = paths[0]
        if path.ids[: len(shared)] != shared:
            raise self._mismatch(shared, path.ids)
        self._compare(findings, path.text.removeprefix(text), path.ids[len(shared) :])
        return path.draft(len(shared)).sides[0]

    def _mismatch(self, shared: list[int], other: list[int]) -> PromptMismatchError:
        at = first_difference(shared, other)
        near = slice(max(0, at - 12), at + 12)
        return PromptMismatchError(
            "a response changes the ids of the prompt that all responses must share",
            found=f"{self.tokens.decode(other[near])!r} around token {at} with the response",
            expected=f"{self.tokens.decode(shared[near])!r}, as the prompt alone has it",
            remedy="name a template that renders the prompt the same way whatever follows it",
        )

    def _trained(self, messages: Sequence[Message], start: int = 0) -> list[int]:
        """The indices of the messages that train, from `start` on."""
        roles = [message.role for message in messages]
        train_on = self.settings.train_on
        last_assistant = max((i for i, role in enumerate(roles) if role == "assistant"), default=-1)
        last_user = max((i for i, role in enumerate(roles) if role == "user"), default=-1)

        def trains(index: int) -> bool:
            message = messages[index]
            if message.train is not None:
                return message.train
            if message.role in self.settings.train_roles:
                return self.settings.train_roles[message.role]
            if message.role != "assistant":
                return False
            first = {"last_assistant": last_assistant, "completion_only": last_user}.get(train_on, 0)
            return index >= first

        return [index for index in range(start, len(messages)) if trains(index)]

    def _paths(
        self,
        messages: list[PlainMessage],
        trained: list[int],
        tools: Sequence[Any],
        findings: RowFindings,
        known: Mapping[int, str] | None = None,
        cut: Collection[int] = (),
    ) -> tuple[list[_Sequence], str]:
        """The trained turns in their true contexts: one path as long as each context continues the one before.

        known: contexts by turn that are already rendered.
        cut: turns that were cut before their end. Also returns the last turn's context.
        """
        # Compared by ids and not by text: what must hold is that the model has seen exactly these ids before the turn.
        paths: list[_Sequence] = []
        shown = ""
        for index in trained:
            if messages[index]["role"] == "assistant":
                turn = self._turn(messages, index, tools, (known or {}).get(index), whole=index not in cut)
            else:
                turn = self.template.other_turn(messages, index, tools)
            shown = turn.context
            findings.add([turn.finding] if turn.finding else [])
            context = self.tokens.ids(shown)
            if not paths or context[: len(paths[-1].ids)] != paths[-1].ids:
                paths.append(_Sequence())
            self._extend(paths[-1], context, turn)
        return paths, shown

    def _turn(
        self,
        messages: list[PlainMessage],
        index: int,
        tools: Sequence[Any],
        context: str | None = None,
        *,
        whole: bool,
    ) -> Turn:
        read = self.template.turn if whole else self.template.cut_turn
        return read(messages, index, tools, context=context)

    def _extend(self, path: _Sequence, context: list[int], turn: Turn) -> None:
        # What the context has beyond the path so far is the other side's turn: it is read, and does not train.
        path.add(context[len(path.ids) :], trains=False)
        text, stop = turn.completion, turn.stop
        ids = self.tokens.continuation(turn.context, context, text + stop.text if stop else text)
        if stop is not None and ids[-1:] != [stop.id]:  # a stop token that the tokenizer would merge with the text
            ids = [*self.tokens.continuation(turn.context, context, text), stop.id]
        path.add(ids[:-1] if stop else ids, trains=True)
        path.text = turn.context + text + (stop.text if stop else "")
        if stop is not None:
            path.add_stop(stop.id, trains=self.settings.stop_token == "train")

    # ------------------------------------------------------------ checks

    def special_findings(self, messages: Sequence[Message]) -> list[str]:
        """Finds special tokens that somebody wrote in a text.

        They become control tokens, as they do at inference: a user's "<|im_end|>" ends the user's turn. The mask is
        safe, since it does not go by ids, but the row is seldom what its owner meant. In an answer only a token that
        ends or begins a sequence counts: the marks of thoughts and tools are the answer's own.

        Raises:
            SpecialTokenError: there is one, and the settings refuse such rows.
        """
        for message in messages:
            pattern, content = self._special, message.content
            if content and message.role == "assistant":
                pattern, content = self._ends, self.template.without_stops(content)
            match = pattern.search(content) if pattern is not None and content else None
            if match is None or not content:
                continue
            if self.settings.special_tokens_in_text == "refuse":
                raise SpecialTokenError(
                    f"a {message.role} turn holds the name of a special token",
                    found=repr(content[max(0, match.start() - 20) : match.end() + 20]),
                    expected="text without control tokens",
                    remedy="remove it from the text, or use `special_tokens_in_text: keep`, which counts such rows",
                )
            return ["special_tokens_in_text"]
        return []

    def check_shown(self, messages: Sequence[Message], tools: Sequence[Any], text: str) -> list[str]:
        """Refuses a template that leaves out a turn or the tools, and notes one that changes words."""
        for tool in tools:
            name = tool.get("function", tool).get("name", "")
            if name not in text:
                raise TemplateError(
                    f"the chat template leaves out the tools of this row: {name!r} is not in the rendered prompt",
                    expected="the schema of every tool in the context",
                    remedy="name a template that knows tools (`template: chatml` does), or remove the tools",
                )
        # A name that stands in the text only because the tool was called is no schema.
        findings = ["hidden_tools"] if tools and not self.template.calls.shows_tools else []
        for message in messages:
            content = message.content
            if message.tool_calls and self._loses_calls(messages, message, tools, text):
                findings.append(self._lost_call(message))
            if message.role == "assistant" or not content or content.strip() in text:
                continue
            if self.template.hides(message.role):
                raise TemplateError(
                    f"the chat template leaves out the {message.role} turns of this row",
                    found=f"nothing of {content[:40]!r} in the rendered prompt",
                    expected="every turn in the context",
                    remedy="name a template that knows this role (`template: chatml` does), or remove such turns"
                    + (SYSTEM_REPAIR if message.role == "system" else ""),
                )
            findings.append("altered_text")
        return list(dict.fromkeys(findings))

    def _loses_calls(self, messages: Sequence[Message], calling: Message, tools: Sequence[Any], text: str) -> bool:
        """Whether the context shows a turn without its calls, though other texts may name the same things."""
        # Words of the call may stand in questions, answers and thoughts too: only what goes beyond those is the call.
        beside = "\n".join([text for message in messages for text in (message.content, message.reasoning) if text])
        if lost_part(calling.tool_calls, text, beside) is None:
            return False
        # Perhaps what is beside them: the same context without the calls says how often it has each word anyway.
        bare = [replace(message, tool_calls=()) if message is calling else message for message in messages]
        plain = [self.template.plain(message) for message in bare]
        without = rendered_or_none(self.template, plain, tools) or ""
        return lost_part(calling.tool_calls, text, without) is not None

    def _lost_call(self, message: Message) -> str:
        """The finding for a call that the context does not show whole; an error if the template never shows one."""
        if self.template.calls.in_history:
            return "hidden_calls"
        raise TemplateError(
            "the chat template leaves out the tool calls of earlier turns of this row",
            found=f"nothing of {[dict(call['function']) for call in message.tool_calls]!r} in the rendered prompt",
            expected="every call in the context, before its result",
            remedy="name a template that writes tool calls (`template: chatml` does), or remove such turns",
        )


def _cut_turns(messages: Sequence[Message]) -> frozenset[int]:
    """The turns that were cut before their end."""
    return frozenset(index for index, message in enumerate(messages) if not message.complete)
