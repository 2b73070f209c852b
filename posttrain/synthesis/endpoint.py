"""A model behind an OpenAI-compatible endpoint as a teacher: many requests at once, retried, counted, within limits.

    teacher = EndpointModel(EndpointTeacher(url="http://localhost:8000/v1", model="qwen2.5-72b"))
    teacher.ask([Ask((Message("user", "2 + 2?"),))])

A question that fails after all retries is an error of its own, and the others go on. The whole stops where going on
would only repeat the same failure: a key or model that is refused, a port that nobody listens at, many failures in a
row. The key is read from its environment variable for each request and stands in no error, journal or record.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.teacher import EndpointTeacher
from posttrain.data.templates.call_text import call_in_form
from posttrain.data.templates.thoughts import THINK, split_thoughts
from posttrain.errors import ConfigError, EngineError, PosttrainError
from posttrain.rewards.endpoint import Endpoint, Failure
from posttrain.synthesis.cost import Meter, TokenPace
from posttrain.synthesis.teacher import UNASKED, Ask, OnReply, Reply
from posttrain.types import Message

ENDED = frozenset({"stop", "tool_calls", "function_call", "eos", "eos_token", "stop_sequence", "end_turn"})
"""What endpoints call an answer that its model ended itself."""
OF_THE_CALLER = frozenset({401, 403, 404, 405})
"""Refusals that every question would meet: the key, the model, the address."""
MOST_IN_A_ROW = 8
"""Questions given up one after another, before the whole is: it is no longer one question that is wrong."""
MOST_SHOWN = 200
"""Characters of a reply that is none."""
CHARACTERS_PER_TOKEN = 4
"""For a guess of what a question takes, where a rate of tokens is kept."""


class EndpointModel:
    """A `Teacher` behind an address.

    Args:
        settings: `config.teacher.EndpointTeacher`.
        meter: counts; with a limit in it no more is asked once that is spent.
    """

    def __init__(self, settings: EndpointTeacher, meter: Meter | None = None):
        self.settings = settings
        price = None if settings.price is None else (settings.price.prompt, settings.price.completion)
        self.spent = (
            meter if meter is not None else Meter(price, most_tokens=settings.most_tokens, most_cost=settings.most_cost)
        )
        self.endpoint = Endpoint(
            settings.url,
            settings.model,
            key_env=settings.key_env,
            retries=settings.retries,
            timeout=settings.timeout,
            per_minute=settings.per_minute,
            who="teacher",
        )
        self._pace = None if settings.tokens_per_minute is None else TokenPace(settings.tokens_per_minute)

    @property
    def name(self) -> str:
        return self.settings.model

    @property
    def identity(self) -> str:
        content = json.dumps([self.settings.url, self.settings.model, self.settings.extra_body], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def ask(self, asks: Sequence[Ask], on_reply: OnReply | None = None) -> list[Reply]:
        """See `Teacher.ask`; `on_reply` is called in this thread.

        Raises:
            ConfigError: the key or the model is refused, or the key's variable is not set; or a limit cannot be kept,
                since the endpoint does not count tokens.
            EngineError: nobody listens, or many questions in a row were given up.
        """
        return _Asking(self, asks, on_reply).run() if asks else []

    def exchange(self, ask: Ask) -> Reply | Failure:
        """One question, in a thread of its own."""
        body = request_body(ask, self.settings)
        if self._pace is None:
            return self.endpoint.exchange(body, read_reply)
        guess = len(json.dumps(body["messages"])) / CHARACTERS_PER_TOKEN + self._answer_guess(ask)
        self.endpoint.stopped.wait(self._pace.reserve(guess))
        reply = self.endpoint.exchange(body, read_reply)
        used = reply.prompt_tokens + reply.completion_tokens if isinstance(reply, Reply) else 0
        self._pace.correct(guess, used)
        return reply

    def _answer_guess(self, ask: Ask) -> float:
        """What answers took so far; the longest that it may be, before there is one."""
        spent = self.spent
        return spent.completion_tokens / spent.answers if spent.answers else ask.drawing.max_new_tokens


class _Asking:
    """One call of `ask`: threads that send, count and decide when to stop, and this one, which gives on."""

    def __init__(self, teacher: EndpointModel, asks: Sequence[Ask], on_reply: OnReply | None):
        self.teacher, self.asks, self.on_reply = teacher, asks, on_reply
        self.replies: list[Reply] = [Reply("", error=UNASKED)] * len(asks)
        self.done: queue.SimpleQueue[tuple[int, Reply]] = queue.SimpleQueue()
        self.failed = 0
        """Questions given up since the last answer."""
        self.error: BaseException | None = None
        self._next = 0
        # A question is taken only when the outcome before it was judged: else a limit is passed by one a thread.
        self._lock = threading.Lock()
        self._closed = False

    def run(self) -> list[Reply]:
        teacher = self.teacher
        teacher.endpoint.stopped.clear()
        self._closed = teacher.spent.limit_reached is not None
        workers = [
            # Daemons: at Ctrl-C nobody waits for an answer that may take minutes.
            threading.Thread(target=self._work, name=f"posttrain-teacher-{number}", daemon=True)
            for number in range(min(teacher.settings.concurrency, len(self.asks)))
        ]
        for worker in workers:
            worker.start()
        try:
            # Also once it is closed: what is under way was paid for.
            while (arrived := self._following(workers)) is not None:
                self._give(*arrived)
        finally:
            with self._lock:
                self._closed = True
        if self.error is not None:
            raise self.error
        for index, reply in enumerate(self.replies):
            if reply.error == UNASKED and self.on_reply is not None:
                self.on_reply(index, reply)
        return self.replies

    def _following(self, workers: Sequence[threading.Thread]) -> tuple[int, Reply] | None:
        """The next reply; None when there will be none."""
        while True:
            alive = any(worker.is_alive() for worker in workers)
            try:
                # A worker's last word lies in the queue before it ends, so an empty one behind dead workers is the end.
                return self.done.get(timeout=0.1) if alive else self.done.get_nowait()
            except queue.Empty:
                if not alive:
                    return None

    def _give(self, index: int, reply: Reply) -> None:
        self.replies[index] = reply
        if self.on_reply is not None:
            self.on_reply(index, reply)

    # ---------------------------------------------------------------- in the threads

    def _work(self) -> None:
        while (index := self._take()) is not None:
            try:
                outcome = self.teacher.exchange(self.asks[index])
            except BaseException as error:  # the boundary: carried over to the thread that waits
                self._end(error)
                return
            # One that was stopped before it was sent was not asked.
            if isinstance(outcome, Reply) or outcome.attempts:
                self.done.put((index, self._judged(outcome)))

    def _take(self) -> int | None:
        with self._lock:
            if self._closed or self._next >= len(self.asks):
                return None
            self._next += 1
            return self._next - 1

    def _judged(self, outcome: Reply | Failure) -> Reply:
        """The outcome as a reply, counted; whether it is the end of all is decided here."""
        spent = self.teacher.spent
        failed = isinstance(outcome, Failure)
        reply = (
            Reply("", error=outcome.trouble, details={"attempts": outcome.attempts})
            if isinstance(outcome, Failure)
            else outcome
        )
        with self._lock:
            spent.count(reply)
            self.failed = self.failed + 1 if failed else 0
            if isinstance(outcome, Failure):
                error = self._error_of_all(outcome)
            else:
                error = _uncounted(self.teacher) if spent.is_limited and spent.uncounted else None
            self._closed = self._closed or spent.limit_reached is not None
        if error is not None:
            self._end(error)
        return reply

    def _error_of_all(self, failure: Failure) -> PosttrainError | None:
        """The error that ends the whole, where a failure is not one question's alone."""
        endpoint = self.teacher.endpoint
        if failure.status in OF_THE_CALLER or (failure.refused and self.failed >= MOST_IN_A_ROW):
            return endpoint.refusal(failure)
        if not failure.nobody and self.failed < MOST_IN_A_ROW:
            return None
        in_a_row = f"; {self.failed} questions in a row" if self.failed > 1 else ""
        return EngineError(
            f"the teacher `{endpoint.model}` does not answer",
            where=endpoint.url,
            found=f"{failure.trouble} (asked {failure.attempts} times{in_a_row})",
            remedy="see that the endpoint runs, and run the same again: what was answered is kept and not asked twice",
        )

    def _end(self, error: BaseException) -> None:
        """No further question, no further retry; what is under way may still arrive."""
        with self._lock:
            self.error = self.error or error
            self._closed = True
        self.teacher.endpoint.stopped.set()


def _uncounted(teacher: EndpointModel) -> ConfigError:
    return ConfigError(
        "a limit is set, and the endpoint does not say how many tokens its answers take",
        where=teacher.endpoint.url,
        found="a reply without `usage`",
        expected="`usage` with `prompt_tokens` and `completion_tokens`",
        remedy="leave `most_tokens` and `most_cost` out and limit the rows instead: `data: {limit: 1000}`",
    )


# ---------------------------------------------------------------- requests and replies


def request_body(ask: Ask, settings: EndpointTeacher) -> dict[str, Any]:
    """What is sent for a question."""
    drawing = ask.drawing
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [turn_of(message) for message in ask.messages],
        "temperature": drawing.temperature,
        settings.limit_key: drawing.max_new_tokens,
    }
    # Only what differs from the interface's own default: some endpoints refuse keys that they do not know.
    if drawing.top_p != 1:
        body["top_p"] = drawing.top_p
    if drawing.stop:
        body["stop"] = list(drawing.stop)
    if settings.send_seed:
        # Some servers take 32 bits, and fewer seeds still tell answers to one question apart.
        body["seed"] = ask.seed % 2**31
    assert ask.speaker == "assistant", "an endpoint plays no user: the stage's settings refuse it"
    if ask.tools:
        body["tools"] = [dict(tool) for tool in ask.tools]
    return {**body, **settings.extra_body}


def turn_of(message: Message) -> dict[str, Any]:
    """A turn as the interface has it; thoughts of earlier turns are left out, as its chat templates do."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": f"call_{number}", "type": "function", **call_in_form(call, "text")}
            for number, call in enumerate(message.tool_calls)
        ]
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def read_reply(reply: Any) -> Reply:
    """A reply of chat completions.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is none; it is worth asking again.
    """
    message, finish = _message_of(reply)
    text, refused = _content_of(message), message.get("refusal")
    reasoning = _reasoning_of(message)
    calls = tuple(_call_of(call) for call in message.get("tool_calls") or ())
    if not text and isinstance(refused, str):
        text = refused
    if reasoning is None and (split := split_thoughts(text, [THINK], opened=THINK.open not in text)) is not None:
        # A server without a parser for thoughts leaves them in the content.
        reasoning, text = split.thoughts.strip(), split.visible
    elif reasoning is None and text.lstrip().startswith(THINK.open):
        reasoning, text = text.strip(), ""  # cut within its thoughts: there is no answer
    usage = _counted(reply.get("usage"))
    details: dict[str, Any] = {"finish": finish}
    if isinstance(refused, str):
        details["refusal"] = refused
    error = "the endpoint's own filter withheld the answer" if finish == "content_filter" else None
    return Reply(
        text,
        reasoning if isinstance(reasoning, str) and reasoning.strip() else None,
        # One of unknown end counts as cut: a row must not teach to stop in the middle.
        ended=finish in ENDED,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        error=error,
        tool_calls=calls,
        details=details,
    )


def _message_of(reply: Any) -> tuple[Mapping[str, Any], Any]:
    """(the answer's turn, why it ended); a ValueError shows what came instead, as a gateway's words of a failure."""
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(message, Mapping):
        raise ValueError(f"the reply is no answer of chat completions: {json.dumps(reply)[:MOST_SHOWN]}")
    # Half of a surrogate pair cannot be written as UTF-8: one such answer would end the stage when its rows are saved.
    json.dumps(message, ensure_ascii=False).encode()
    return message, choice.get("finish_reason")


def _counted(usage: Any) -> dict[str, int]:
    """Tokens as the reply counts them; 0 where it does not. An answer is not thrown away, and paid for twice, for a
    count that cannot be read: where a limit needs it, its lack ends the whole."""
    counts = usage if isinstance(usage, Mapping) else {}
    names = ("prompt_tokens", "completion_tokens")
    return {name: max(0, value) if isinstance(value := counts.get(name), int) else 0 for name in names}


def _reasoning_of(message: Mapping[str, Any]) -> Any:
    """Thoughts, by either name that servers give them."""
    return message.get("reasoning_content") or message.get("reasoning")


def _content_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        # Thoughts alone are an answer that was cut, and paid for: asked again, it would be cut again.
        if not (message.get("tool_calls") or message.get("refusal") or _reasoning_of(message)):
            raise ValueError("the answer holds no text")
        return ""
    if isinstance(content, list):  # parts, as some servers write them
        return "".join(str(part["text"]) for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise ValueError("the answer's content is no text")
    return content


def _call_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as rows have it, its arguments a mapping."""
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, Mapping):
        raise ValueError("the arguments of a tool call are no object")
    return {"type": "function", "function": {"name": str(function["name"]), "arguments": dict(arguments)}}
