"""`/v1/completions`: prompts as texts or ids, their completions, and the log-probs of both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from posttrain.rollout.engine import Alternatives
from posttrain.serve.body import read_object
from posttrain.serve.engine_thread import Row
from posttrain.serve.fields import Fields
from posttrain.serve.logprobs import CompletionLogprobs, TokenNames, prompt_logprobs
from posttrain.serve.prompts import Prompt, encoded, given_prompts
from posttrain.serve.refusals import refused
from posttrain.serve.sampled import FINISHES, Choice, Piece, sampled
from posttrain.serve.sampling_fields import IGNORED, MOST_TOP, SampleFields, merge_extra_body, read_sampling
from posttrain.serve.served import ServedPolicy
from posttrain.serve.state import State, head, in_thread, require_room, usage
from posttrain.serve.streaming import EventStream, guarded_events, while_connected
from posttrain.serve.text_stream import TextStream

DEFAULT_TOKENS = 16
"""OpenAI's."""

Scores = Sequence[Alternatives | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """CompletionRequest(model="embedded", prompts=["2 + 2 ="], sample=SampleFields(...), logprobs=1, echo=True)"""

    model: str | None
    prompts: list[str | list[int]]
    sample: SampleFields
    logprobs: int | None
    echo: bool
    add_special_tokens: bool

    @property
    def samples_nothing(self) -> bool:
        return self.sample.max_tokens == 0

    @property
    def scored(self) -> int | None:
        """How many alternatives the prompts' own log-probs are to have; None where they are not asked for."""
        wanted = [self.logprobs if self.echo else None, self.sample.prompt_logprobs]
        return max((count for count in wanted if count is not None), default=None)


def parse_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """
    Raises:
        RequestRefused: a field is wrong, unknown or not supported; the error names it.
    """
    fields = Fields(merge_extra_body(body))
    request = CompletionRequest(
        model=fields.text("model"),
        prompts=given_prompts(fields),
        sample=read_sampling(fields, default_tokens=DEFAULT_TOKENS),
        logprobs=_logprobs(fields),
        echo=fields.flag("echo"),
        # vLLM's default, and what `transformers` does with a text: Llama's begin with <s>.
        add_special_tokens=fields.flag("add_special_tokens", True),
    )
    fields.must_be("suffix", [""], "completions follow their prompt")
    fields.finish(IGNORED)
    if request.samples_nothing and not request.echo and request.sample.prompt_logprobs is None:
        raise fields.wrong(
            "max_tokens",
            "at least 1, or 0 together with `echo` or `prompt_logprobs`",
            "ask for a token, or for `echo: true` to get the prompt back",
        )
    if request.samples_nothing and request.sample.stream:
        raise refused(
            "a prompt's own log-probs come at once, not in pieces",
            param="stream",
            remedy="leave `stream` out where `max_tokens` is 0",
        )
    return request


def _logprobs(fields: Fields) -> int | None:
    # False is how some clients say that they want none.
    return None if fields.any("logprobs") is False else fields.whole("logprobs", None, least=0, most=MOST_TOP)


async def completions(request: Request) -> Response:
    """The route."""
    state: State = request.app.state.server
    asked = parse_completion(await read_object(request, state.settings.largest_body))
    policy = state.served.policy(asked.model)
    answer = _Answer(state, policy, asked)
    await while_connected(request, answer.prepare())
    if asked.sample.stream:
        return EventStream(guarded_events(answer.stream(), state.served.hidden))
    return JSONResponse(await while_connected(request, answer.whole()))


class _Answer:
    """One request on its way: its prompts' ids, their scores, its rows and what becomes of them."""

    def __init__(self, state: State, policy: ServedPolicy, asked: CompletionRequest):
        self._state, self._policy, self._asked = state, policy, asked
        self._head = head("text_completion", "cmpl", policy, asked.sample)
        self._names = TokenNames(policy.detokenizer.texts, asked.sample.names_as_ids)
        self._prompts: list[Prompt] = []
        self._scores: list[Scores] = []
        self._rows: list[Row] = []
        self._lists: list[CompletionLogprobs] = []

    async def prepare(self) -> None:
        """Everything that may be refused, so that a stream begins only where it can."""
        asked, policy, sample = self._asked, self._policy, self._asked.sample
        self._prompts = await in_thread(
            policy, lambda: encoded(policy, asked.prompts, add_special_tokens=asked.add_special_tokens)
        )
        new_tokens = 0 if asked.samples_nothing else 1
        rooms = [
            require_room(policy, prompt.ids, self._param(index), new_tokens=new_tokens)
            for index, prompt in enumerate(self._prompts)
        ]
        top = asked.scored
        if top is not None:
            self._scores = await score_prompts(self._state, policy, [prompt.ids for prompt in self._prompts], top)
        self._rows = [
            Row(
                policy.engine,
                prompt.ids,
                sample.distribution(room, policy.encoder.stop_ids),
                completion=completion,
                alternatives=asked.logprobs,
            )
            for prompt, room in zip(self._prompts, rooms, strict=True)
            for completion in range(sample.n)
        ]
        self._lists = [
            CompletionLogprobs(self._names, 0 if asked.echo else len(self._prompt(index).text))
            for index in range(len(self._rows))
        ]

    def _param(self, index: int) -> str:
        return f"prompt[{index}]" if len(self._prompts) > 1 else "prompt"

    def _prompt(self, choice: int) -> Prompt:
        return self._prompts[choice // self._asked.sample.n]

    def _choices(self) -> list[Choice]:
        sample = self._asked.sample
        return [
            Choice(TextStream(self._policy.detokenizer, sample.stop, keep_stop=sample.keep_stop), row.sampling.stop_ids)
            for row in self._rows
        ]

    # ------------------------------------------------------------ the pieces

    def _opening(self, choice: int) -> dict[str, Any]:
        """What a choice has before its first token: the prompt, where it is to be repeated."""
        asked, prompt = self._asked, self._prompt(choice)
        entry: dict[str, Any] = {"index": choice, "text": prompt.text if asked.echo else "", "logprobs": None}
        if asked.logprobs is not None and asked.echo:
            scores = self._scores[choice // asked.sample.n]
            for at, (number, said) in enumerate(zip(prompt.ids, scores, strict=True)):
                self._lists[choice].add(number, said, in_text=at >= prompt.unwritten)
        if asked.sample.prompt_logprobs is not None:
            entry["prompt_logprobs"] = prompt_logprobs(self._names, prompt.ids, self._scores[choice // asked.sample.n])
        if asked.sample.return_token_ids:
            entry["prompt_token_ids"] = prompt.ids
        return entry

    def _entry(self, piece: Piece) -> dict[str, Any]:
        asked, entry = self._asked, {"index": piece.choice, "text": piece.text, "logprobs": None}
        if asked.logprobs is not None:
            for token in piece.tokens:
                shown = token.id not in self._policy.detokenizer.special
                self._lists[piece.choice].add(token.id, token.alternatives, in_text=shown)
        if asked.sample.return_token_ids:
            entry["token_ids"] = [token.id for token in piece.tokens]
        entry |= reasons(piece, asked.sample)
        return entry

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks; what a choice has before its first token is a chunk of its own."""
        asked, tokens = self._asked, 0
        unused = {"usage": None} if asked.sample.include_usage else {}
        if asked.echo or asked.sample.prompt_logprobs is not None or asked.sample.return_token_ids:
            for index in range(len(self._rows)):
                entry = self._opening(index) | {"finish_reason": None, "stop_reason": None}
                if asked.logprobs is not None:
                    entry["logprobs"] = self._lists[index].take()
                yield {**self._head, "choices": [entry], **unused}
        async with aclosing(sampled(self._state.thread, self._rows, self._choices())) as pieces:
            async for piece in pieces:
                tokens += len(piece.tokens)
                entry = self._entry(piece)
                if asked.logprobs is not None:
                    entry["logprobs"] = self._lists[piece.choice].take()
                # Tokens whose text is still uncertain say nothing to a client that reads texts alone.
                silent = asked.logprobs is None and not asked.sample.return_token_ids
                if piece.text or piece.ended is not None or not silent:
                    yield {**self._head, "choices": [entry], **unused}
        if asked.sample.include_usage:
            yield {**self._head, "choices": [], "usage": self._usage(tokens)}

    async def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""
        asked = self._asked
        entries = [self._opening(index) for index in range(len(self._rows))]
        for entry in entries:
            entry |= {"finish_reason": "length", "stop_reason": None}
            if asked.sample.return_token_ids:
                entry["token_ids"] = []
        tokens = 0
        if not asked.samples_nothing:
            async with aclosing(sampled(self._state.thread, self._rows, self._choices())) as pieces:
                async for piece in pieces:
                    entry, fresh = entries[piece.choice], self._entry(piece)
                    tokens += len(piece.tokens)
                    entry["text"] += fresh["text"]
                    if asked.sample.return_token_ids:
                        entry["token_ids"] += fresh["token_ids"]
                    entry |= {name: fresh[name] for name in ("finish_reason", "stop_reason")}
        if asked.logprobs is not None:
            for entry, lists in zip(entries, self._lists, strict=True):
                entry["logprobs"] = lists.take()
        return {**self._head, "choices": entries, "usage": self._usage(tokens)}

    def _usage(self, tokens: int) -> dict[str, int]:
        return usage(sum(len(prompt.ids) for prompt in self._prompts), tokens)


def reasons(piece: Piece, sample: SampleFields) -> dict[str, Any]:
    """Why a choice ended, and by which of the request's own stops (vLLM's `stop_reason`)."""
    ended = piece.ended
    if ended is None:
        return {"finish_reason": None, "stop_reason": None}
    last = ended.ids[-1] if ended.ids else None
    by_id = last if last in sample.stop_token_ids else None
    return {
        "finish_reason": FINISHES[ended.finish],
        "stop_reason": ended.stopped_by if ended.stopped_by is not None else by_id,
    }


async def score_prompts(state: State, policy: ServedPolicy, prompts: list[list[int]], top: int) -> list[Scores]:
    """The raw log-probs of prompts, a few at a time, so that others' completions go on between them."""
    scores: list[Scores] = []
    batch: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        batch.append(prompt)
        if index + 1 == len(prompts) or sum(map(len, batch)) + len(prompts[index + 1]) > SCORED_TOKENS:
            asked, batch = batch, []
            scores += await state.thread.call(partial(policy.engine.prompt_scores, asked, top=top))
    state.thread.meter.scored_tokens += sum(map(len, prompts))
    return scores


SCORED_TOKENS = 4_096
"""Of prompts that are scored in one turn of the engines' thread."""
