"""`/v1/score` and `/pooling`: a reward for each response, and the scores of its steps.

{"prompt": "2 + 2?", "response": "4"}                     one
{"prompt": "2 + 2?", "responses": ["4", "5"]}             several to one prompt, which is computed once
{"rows": [{"prompt": ..., "response": ...}, ...]}         a batch
{"text_1": "2 + 2?", "text_2": ["4", "5"]}                vLLM's names for the same
{"messages": [..., {"role": "assistant", ...}]}           `/pooling`: whole conversations
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from posttrain.errors import ConfigError, DataError, EncodingError
from posttrain.models.reward.scoring import Rating, RewardModel
from posttrain.serve.body import read_object
from posttrain.serve.fields import Fields, shown
from posttrain.serve.messages import messages_of
from posttrain.serve.refusals import TOO_LONG, RequestRefused, refused
from posttrain.serve.sampling_fields import merge_extra_body
from posttrain.serve.state import State, usage
from posttrain.serve.streaming import while_connected
from posttrain.types import Comparison, Feedback, Message, RowRef

MOST_RESPONSES = 1_024
ROWS_AT_ONCE = 8
"""Rows that are scored in one turn of the engines' thread."""
IGNORED = frozenset({"user", "encoding_format", "priority", "request_id", "task", "truncate_prompt_tokens"})


@dataclass(frozen=True, slots=True)
class Rated:
    """A prompt and its responses: Rated((Message("user", "2 + 2?"),), ((Message("assistant", "4"),),), "rows[0]")."""

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    param: str

    def example(self, index: int) -> Comparison | Feedback:
        """As a row that a reward model reads; which response is called better changes no score."""
        row = RowRef("the request", index + 1)
        if len(self.responses) == 1:
            return Feedback(self.prompt, self.responses[0], True, row)
        return Comparison(self.prompt, self.responses, 0, row, ranking=tuple(range(len(self.responses))))


async def score(request: Request) -> Response:
    """`/v1/score`."""
    state: State = request.app.state.server
    fields = Fields(merge_extra_body(await read_object(request, state.settings.largest_body)))
    model = state.served.rewarding(fields.text("model"))
    rows = _rows(fields)
    ratings, head = await _rate(request, state, model, fields, rows)
    data = [
        {
            "index": index,
            "object": "score",
            "score": reward,
            **({"steps": steps} if steps is not None else {}),
        }
        for index, (reward, steps) in enumerate(_flat(ratings))
    ]
    return JSONResponse({**head, "data": data})


async def pooling(request: Request) -> Response:
    """`/pooling`: `messages`, or `input` with a list of conversations; each ends with the response that is scored.

    The data of a row is its reward in a list, and of a step-wise model the scores of its steps, as vLLM gives them.
    """
    state: State = request.app.state.server
    fields = Fields(merge_extra_body(await read_object(request, state.settings.largest_body)))
    model = state.served.rewarding(fields.text("model"))
    given = fields.any("messages")
    conversations = fields.any("input") if given is None else [given]
    if given is not None:
        fields.must_be("input", [], "the conversation is under `messages`")
    if not isinstance(conversations, list) or not conversations or not isinstance(conversations[0], list):
        raise fields.wrong(
            "input",
            "a list of conversations, or one conversation under `messages`",
            "write each conversation as messages, the last one the assistant's; texts alone have no template",
        )
    single = given is not None
    rows = [
        _conversation(conversation, "messages" if single else f"input[{index}]")
        for index, conversation in enumerate(conversations)
    ]
    ratings, head = await _rate(request, state, model, fields, rows)
    data = [
        {"index": index, "object": "pooling", "data": steps if steps is not None else [reward]}
        for index, (reward, steps) in enumerate(_flat(ratings))
    ]
    return JSONResponse({**head, "data": data})


# ---------------------------------------------------------------- what is asked


def _rows(fields: Fields) -> list[Rated]:
    """The rows of `/v1/score`, in whichever of its shapes they come."""
    if "rows" in fields:
        rows = fields.any("rows")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise fields.wrong("rows", 'a list of objects such as {"prompt": "2 + 2?", "response": "4"}')
        return [_row(Fields(row, f"rows[{index}]."), ends=True) for index, row in enumerate(rows)]
    if "text_1" in fields or "text_2" in fields:
        return _pairs(fields)
    return [_row(fields, ends=False)]


def _row(fields: Fields, *, ends: bool) -> Rated:
    prompt = _turns(fields.any("prompt"), fields.param("prompt"), "user")
    single, several = fields.any("response"), fields.any("responses")
    if (single is None) == (several is None):
        raise fields.wrong("response", "one `response`, or a list of `responses`", "write one of the two")
    if several is not None and (not isinstance(several, list) or not several):
        raise fields.wrong("responses", "a list of at least one response")
    given = [single] if several is None else several
    name = fields.param("response" if several is None else "responses")
    responses = tuple(
        _turns(item, name if several is None else f"{name}[{index}]", "assistant") for index, item in enumerate(given)
    )
    if ends:
        fields.finish()
    return Rated(prompt, responses, name)


def _pairs(fields: Fields) -> list[Rated]:
    """vLLM's: one text with each of several, or two lists of one length, pair by pair."""
    first, second = (_as_list(fields, name) for name in ("text_1", "text_2"))
    if len(first) == 1:
        prompt = _turns(first[0], "text_1", "user")
        return [Rated(prompt, tuple(_turns(text, "text_2", "assistant") for text in second), "text_2")]
    if len(first) != len(second):
        raise fields.wrong("text_2", f"as many texts as `text_1`, which has {len(first)}; it has {len(second)}")
    return [
        Rated(_turns(prompt, f"text_1[{i}]", "user"), (_turns(response, f"text_2[{i}]", "assistant"),), f"text_2[{i}]")
        for i, (prompt, response) in enumerate(zip(first, second, strict=True))
    ]


def _as_list(fields: Fields, name: str) -> list[str]:
    value = fields.any(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise fields.wrong(name, "a text, or a list of texts")
    return texts


def _turns(value: Any, param: str, role: str) -> tuple[Message, ...]:
    """A text is a turn of `role`; messages are themselves."""
    if isinstance(value, str):
        return messages_of([{"role": role, "content": value}], param)
    turns = messages_of(value, param)
    if role == "assistant" and turns[0].role != "assistant":
        raise refused(
            f"`{param}` does not begin with the assistant",
            param=param,
            found=turns[0].role,
            expected="a text, or messages of which the first is the assistant's",
            remedy="put what comes before the response into `prompt`",
        )
    return turns


def _conversation(value: Any, param: str) -> Rated:
    turns = messages_of(value, param)
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise refused(
            f"`{param}` ends with no response",
            param=param,
            found=f"a last message of the {turns[-1].role}, of {len(turns)}",
            expected="a prompt, and a last message of the assistant",
            remedy="end the conversation with the response that is to be scored",
        )
    return Rated(turns[:-1], (turns[-1:],), param)


# ---------------------------------------------------------------- scores


async def _rate(
    request: Request, state: State, model: RewardModel, fields: Fields, rows: Sequence[Rated]
) -> tuple[list[Rating], Mapping[str, Any]]:
    """The ratings, and what the answer begins with.

    Raises:
        RequestRefused: a field is not known, a head is not the model's, or a row cannot be scored.
    """
    head, normalised = fields.text("head"), fields.flag("normalised")
    fields.must_be("softmax", [False], "a reward is given as the model gives it")
    fields.must_be("use_activation", [False], "a reward is given as the model gives it")
    fields.must_be("activation", [False], "a reward is given as the model gives it")
    fields.finish(IGNORED)
    count = sum(len(row.responses) for row in rows)
    if count > MOST_RESPONSES:
        raise RequestRefused(
            "the request has too many responses",
            found=f"{count:,}",
            expected=f"at most {MOST_RESPONSES:,}",
            remedy="score them in several requests",
        )
    ratings: list[Rating] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = [row.example(index) for index, row in enumerate(rows[start : start + ROWS_AT_ONCE], start)]
        ask = state.thread.call(partial(_scored, model, batch, head, normalised))
        try:
            ratings += await while_connected(request, ask)
        except (DataError, EncodingError) as error:
            raise _unscored(error, rows) from error
        except RequestRefused:
            raise
        except ConfigError as error:  # no such output, or none was named where the model judges by one
            raise refused(
                error.problem,
                param="normalised" if normalised and head is None else "head",
                expected=error.expected,
                remedy="name an output of the model as `head`, or leave `head` and `normalised` out",
            ) from error
    tokens = sum(sum(rating.tokens) for rating in ratings)
    state.thread.meter.scored_tokens += tokens
    begin = {
        "id": f"score-{secrets.token_hex(12)}",
        "object": "list",
        "created": int(time.time()),
        "model": state.served.reward_name,
        "usage": usage(tokens, 0),
    }
    return ratings, begin


def _scored(
    model: RewardModel, rows: Sequence[Comparison | Feedback], head: str | None, normalised: bool
) -> list[Rating]:
    return list(model.score_rows(rows, head=head, normalised=normalised))


def _unscored(error: DataError | EncodingError, rows: Sequence[Rated]) -> RequestRefused:
    where = error.where
    param = rows[where.row - 1].param if isinstance(where, RowRef) and where.row <= len(rows) else None
    too_long = getattr(error, "reason", None) in ("too_long", "prompt_too_long", "response_too_long")
    return refused(
        error.problem,
        param=param,
        found=error.found if error.found is None else shown(str(error.found)),
        expected=error.expected,
        remedy="shorten it, or leave it out" if too_long else error.remedy,
        code=TOO_LONG if too_long else None,
    )


def _flat(ratings: Sequence[Rating]) -> list[tuple[float, list[float] | None]]:
    """(reward, scores of its steps) of every response, in the order of the request."""
    flat: list[tuple[float, list[float] | None]] = []
    for rating in ratings:
        for index, reward in enumerate(rating.rewards):
            flat.append((reward, list(rating.steps[index]) if rating.steps is not None else None))
    return flat
