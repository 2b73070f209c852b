"""`/v1/chat/completions`: messages by the model's own template, its answers as thoughts, content and tool calls.

The prompt's ids are those of training: `Encoder.prompt` with the folder's own record of how it is spoken to.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from posttrain.serve.answer_parts import AnswerParts, Part
from posttrain.serve.body import read_object
from posttrain.serve.chat_prompts import ChatPrompt, prompt_of
from posttrain.serve.completions import Scores, reasons, score_prompts
from posttrain.serve.engine_thread import Row
from posttrain.serve.fields import Fields
from posttrain.serve.logprobs import TokenNames, chat_logprob, prompt_logprobs
from posttrain.serve.messages import messages_of, tools_in
from posttrain.serve.refusals import refused
from posttrain.serve.sampled import Choice, Piece, sampled
from posttrain.serve.sampling_fields import IGNORED, MOST_TOP, SampleFields, merge_extra_body, read_sampling
from posttrain.serve.served import ServedPolicy
from posttrain.serve.state import State, head, require_room, usage
from posttrain.serve.streaming import EventStream, guarded_events, while_connected
from posttrain.serve.text_stream import TextStream
from posttrain.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """ChatRequest(model="embedded", messages=(Message("user", "2 + 2?"),), sample=SampleFields(...), ...)"""

    model: str | None
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    """Empty under `tool_choice: none`: a model that is shown no tool calls none."""
    sample: SampleFields
    top_logprobs: int | None
    """None where no log-probs are asked for."""
    template_kwargs: Mapping[str, Any]
    reasoning_effort: str | None
    """OpenAI's name for a value that templates of thinking models read."""
    add_generation_prompt: bool
    continue_final_message: bool


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """
    Raises:
        RequestRefused: a field is wrong, unknown or not supported; the error names it.
    """
    fields = Fields(merge_extra_body(body))
    if fields.flag("echo"):
        raise fields.wrong("echo", "false: a chat has no text to repeat", "use `/v1/completions`")
    request = ChatRequest(
        model=fields.text("model"),
        messages=messages_of(fields.any("messages")),
        tools=_tools(fields),
        sample=read_sampling(fields, default_tokens=None),
        top_logprobs=_top_logprobs(fields),
        template_kwargs=template_kwargs(fields),
        reasoning_effort=fields.text("reasoning_effort"),
        continue_final_message=fields.flag("continue_final_message"),
        add_generation_prompt=fields.flag("add_generation_prompt", not fields.any("continue_final_message")),
    )
    _refuse_unsupported(fields)
    fields.finish(IGNORED)
    if request.sample.max_tokens == 0:
        raise fields.wrong("max_tokens", "at least 1", "leave it out, or ask for a token")
    _check_continuation(request)
    return request


def _tools(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    tools, choice = tools_in(fields.any("tools")), fields.any("tool_choice")
    if choice not in (None, "auto", "none"):
        raise fields.wrong(
            "tool_choice",
            '"auto" or "none": the model alone decides whether it calls',
            'write `tool_choice: "auto"`, and ask for the tool in the prompt',
        )
    fields.must_be("parallel_tool_calls", [True], "a model's calls are given back, as many as it writes")
    fields.must_be("functions", [[]], "it is the older form of `tools`")
    fields.must_be("function_call", ["none"], "it is the older form of `tool_choice`")
    return () if choice == "none" else tools


def _top_logprobs(fields: Fields) -> int | None:
    wanted, top = fields.flag("logprobs"), fields.whole("top_logprobs", None, least=0, most=MOST_TOP)
    if top and not wanted:
        raise fields.wrong("top_logprobs", "none without `logprobs: true`", "write `logprobs: true` too")
    return (top or 0) if wanted else None


def template_kwargs(fields: Fields) -> dict[str, Any]:
    """What a request gives to the template; null is a value that is not given."""
    return {name: value for name, value in fields.mapping("chat_template_kwargs").items() if value is not None}


def _refuse_unsupported(fields: Fields) -> None:
    fields.must_be("modalities", [["text"]], "the model writes text alone")
    fields.must_be("audio", [], "the model writes text alone")
    fields.must_be("web_search_options", [], "nothing is searched")
    fields.must_be("verbosity", ["medium"], "ask for it in the prompt")
    fields.must_be("chat_template", [], "a model is asked with its own template")
    fields.must_be("documents", [[]], "write them into a message")
    fields.must_be("add_special_tokens", [False], "the template writes what a conversation begins with")


def _check_continuation(request: ChatRequest) -> None:
    if not request.continue_final_message:
        return
    last = request.messages[-1]
    if request.add_generation_prompt:
        raise refused(
            "a message that is continued has no generation prompt behind it",
            param="add_generation_prompt",
            found="true, beside `continue_final_message: true`",
            expected="one of the two",
            remedy="write `add_generation_prompt: false`",
        )
    if last.role != "assistant" or last.tool_calls:
        raise refused(
            "there is no text of the assistant to continue",
            param="continue_final_message",
            found=f"a last message of the {last.role}" + (" with tool calls" if last.tool_calls else ""),
            expected="a last message of the assistant with a text",
            remedy="end `messages` with the beginning of the answer, or leave `continue_final_message` out",
        )


async def chat_completions(request: Request) -> Response:
    """The route."""
    state: State = request.app.state.server
    asked = parse_chat(await read_object(request, state.settings.largest_body))
    answer = _Answer(state, state.served.policy(asked.model), asked)
    await while_connected(request, answer.prepare())
    if asked.sample.stream:
        return EventStream(guarded_events(answer.stream(), state.served.hidden))
    return JSONResponse(await while_connected(request, answer.whole()))


class _Answer:
    """One request on its way: its prompt's ids, its rows and what becomes of them."""

    def __init__(self, state: State, policy: ServedPolicy, asked: ChatRequest):
        self._state, self._policy, self._asked = state, policy, asked
        self._names = TokenNames(policy.detokenizer.texts, asked.sample.names_as_ids)
        self._prompt = ChatPrompt([], (), None)
        self._scores: Scores = ()
        self._rows: list[Row] = []

    async def prepare(self) -> None:
        """Everything that may be refused, so that a stream begins only where it can."""
        asked, policy = self._asked, self._policy
        if asked.tools and (policy.calls is None or not policy.encoder.template.calls.shows_tools):
            what = "shows no tools" if policy.calls is not None else "writes no tool calls that could be read back"
            raise refused(
                f"the model's chat template {what}",
                param="tools",
                expected="no tools for this model",
                remedy="leave `tools` out, or serve a model whose template calls them",
            )
        values = dict(asked.template_kwargs)
        if asked.reasoning_effort is not None:
            if "reasoning_effort" not in policy.template_values:
                raise policy.reads_no_value("reasoning_effort", "reasoning_effort")
            values.setdefault("reasoning_effort", asked.reasoning_effort)
        self._prompt = await prompt_of(
            policy,
            asked.messages,
            asked.tools,
            values,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
        )
        room = require_room(policy, self._prompt.ids, "messages")
        if asked.sample.prompt_logprobs is not None:
            (self._scores,) = await score_prompts(self._state, policy, [self._prompt.ids], asked.sample.prompt_logprobs)
        sampling = asked.sample.distribution(room, policy.encoder.stop_ids)
        self._rows = [
            Row(policy.engine, self._prompt.ids, sampling, completion=index, alternatives=asked.top_logprobs)
            for index in range(asked.sample.n)
        ]

    def _choices(self) -> list[Choice]:
        asked, policy, prompt = self._asked, self._policy, self._prompt
        shown_ids = policy.mark_ids if asked.tools else policy.thought_ids
        decode = policy.detokenizer.showing(shown_ids)
        return [
            Choice(
                TextStream(decode, asked.sample.stop, keep_stop=asked.sample.keep_stop),
                row.sampling.stop_ids,
                AnswerParts(
                    prompt.marks,
                    opened=prompt.opened,
                    calls=policy.calls if asked.tools else None,
                    tools=asked.tools,
                ),
            )
            for row in self._rows
        ]

    def _extras(self) -> dict[str, Any]:
        """vLLM's fields of the prompt, where they are asked for."""
        sample, extras = self._asked.sample, dict[str, Any]()
        if sample.return_token_ids:
            extras["prompt_token_ids"] = self._prompt.ids
        if sample.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(self._names, self._prompt.ids, self._scores)
        return extras

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        return [
            chat_logprob(self._names, token.id, token.alternatives)
            for token in piece.tokens
            if token.alternatives is not None
        ]

    # ------------------------------------------------------------ in pieces

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks: the role, then what comes, then why it ended."""
        asked, tokens = self._asked, 0
        begin = head("chat.completion.chunk", "chatcmpl", self._policy, asked.sample)
        unused = {"usage": None} if asked.sample.include_usage else {}

        def chunk(index: int, delta: dict[str, Any], **fields: Any) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
            return {**begin, "choices": [choice], **unused}

        for index in range(len(self._rows)):
            yield chunk(index, {"role": "assistant", "content": ""}) | (self._extras() if index == 0 else {})
        calls = [0] * len(self._rows)
        async with aclosing(sampled(self._state.thread, self._rows, self._choices())) as pieces:
            async for piece in pieces:
                tokens += len(piece.tokens)
                deltas = [_delta(part, calls, piece.choice) for part in piece.parts]
                extra: dict[str, Any] = {}
                if asked.sample.return_token_ids:
                    extra["token_ids"] = [token.id for token in piece.tokens]
                if asked.top_logprobs is not None:
                    extra["logprobs"] = {"content": self._logprobs(piece), "refusal": None}
                if extra and piece.tokens and not deltas:
                    deltas = [{}]
                for at, delta in enumerate(deltas):
                    # A piece's tokens are told once, with the first of its deltas.
                    yield chunk(piece.choice, delta, **(extra if at == 0 else {}))
                if piece.ended is not None:
                    yield chunk(piece.choice, {}, **_ended(piece, asked.sample, calls[piece.choice] > 0))
        if asked.sample.include_usage:
            yield {**begin, "choices": [], "usage": usage(len(self._prompt.ids), tokens)}

    # ------------------------------------------------------------ at once

    async def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""
        asked, tokens = self._asked, 0
        parts: list[list[Part]] = [[] for _ in self._rows]
        logprobs: list[list[dict[str, Any]]] = [[] for _ in self._rows]
        ids: list[list[int]] = [[] for _ in self._rows]
        reasons_of: dict[int, dict[str, Any]] = {}
        async with aclosing(sampled(self._state.thread, self._rows, self._choices())) as pieces:
            async for piece in pieces:
                tokens += len(piece.tokens)
                parts[piece.choice] += piece.parts
                logprobs[piece.choice] += self._logprobs(piece)
                ids[piece.choice] += [token.id for token in piece.tokens]
                if piece.ended is not None:
                    called = any(part.kind == "call" for part in parts[piece.choice])
                    reasons_of[piece.choice] = _ended(piece, asked.sample, called)
        choices = []
        for index in range(len(self._rows)):
            choice: dict[str, Any] = {"index": index, "message": _message(parts[index]), "logprobs": None}
            if asked.top_logprobs is not None:
                choice["logprobs"] = {"content": logprobs[index], "refusal": None}
            if asked.sample.return_token_ids:
                choice["token_ids"] = ids[index]
            choices.append(choice | reasons_of[index])
        begin = head("chat.completion", "chatcmpl", self._policy, asked.sample)
        return {**begin, "choices": choices, "usage": usage(len(self._prompt.ids), tokens), **self._extras()}


def _ended(piece: Piece, sample: SampleFields, called: bool) -> dict[str, Any]:
    why = reasons(piece, sample)
    # A call that the limit has cut is no call, so a call that was read is whole.
    return why | ({"finish_reason": "tool_calls"} if called and why["finish_reason"] == "stop" else {})


def _message(parts: list[Part]) -> dict[str, Any]:
    """The answer's message; its content is null only beside tool calls."""
    content = "".join(part.text for part in parts if part.kind == "content")
    reasoning = "".join(part.text for part in parts if part.kind == "reasoning")
    calls = [_call(part) for part in parts if part.call is not None]
    message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
    message["refusal"] = None
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _delta(part: Part, calls: list[int], choice: int) -> dict[str, Any]:
    if part.call is not None:
        calls[choice] += 1
        return {"tool_calls": [{"index": calls[choice] - 1, **_call(part)}]}
    return {"reasoning_content" if part.kind == "reasoning" else "content": part.text}


def _call(part: Part) -> dict[str, Any]:
    assert part.call is not None
    # Nine letters and digits: Mistral's templates refuse any other id when it comes back with the tool's result.
    number = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    arguments = json.dumps(part.call.arguments, ensure_ascii=False)
    return {"id": number, "type": "function", "function": {"name": part.call.name, "arguments": arguments}}
