"""The fields that completions and chat share: how tokens are drawn, when a completion ends, and how it is given back.

Defaults are OpenAI's (temperature 1), and a folder's generation_config.json changes none of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.sampling import SamplingDistribution
from posttrain.serve.fields import Fields

MOST_CHOICES = 128
MOST_STOPS = 16
"""More than OpenAI's four: a suite ends an answer at every word that may begin the next question."""
MOST_TOP = 20
LEAST_TEMPERATURE = 1e-3
LONGEST_STOP = 1_000

IGNORED = frozenset(
    [
        # Names, notes and accounting of OpenAI's platform, and hints about speed: they change no answer here.
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prediction", "request_id", "priority"),
    ]
)
"""Fields that are read by nobody and refused by nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFields:
    """SampleFields(drawing={"temperature": 0.7, "seed": 1, ...}, n=2, stop=("\\n",), ...)"""

    drawing: Mapping[str, Any]
    """Fields of `SamplingDistribution`: all but the limit and what ends an answer."""
    max_tokens: int | None
    n: int
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    keep_stop: bool
    """Whether the stop string that ends a text stays in it."""
    stream: bool
    include_usage: bool
    return_token_ids: bool
    names_as_ids: bool
    """Whether log-probs name a token "token_id:52" and not by its text."""
    prompt_logprobs: int | None

    @property
    def seed(self) -> int:
        """What was used, so that a request without one can be asked again."""
        return int(self.drawing["seed"])

    def distribution(self, room: int, stop_ids: frozenset[int]) -> SamplingDistribution:
        """The distribution of a prompt that leaves `room` for new tokens."""
        ends = frozenset() if self.ignore_eos else stop_ids
        limit = room if self.max_tokens is None else min(room, self.max_tokens)
        return SamplingDistribution(
            max_new_tokens=max(1, limit), stop_ids=ends | self.stop_token_ids, stop=self.stop, **self.drawing
        )


def read_sampling(fields: Fields, *, default_tokens: int | None) -> SampleFields:
    """Reads them all.

    Raises:
        RequestRefused: a field of the wrong type or range, or one that asks for what this server does not do.
    """
    top_k = fields.whole("top_k", None, least=-1)
    seed = fields.whole("seed", None)
    temperature = fields.number("temperature", 1.0, least=0, most=100)
    if 0 < temperature < LEAST_TEMPERATURE:
        # Logits divided by less are no finite numbers any more, or all but one of them are nothing.
        raise fields.wrong(
            "temperature", f"0, or at least {LEAST_TEMPERATURE}", "write `temperature: 0` for the likeliest token"
        )
    drawing: dict[str, Any] = {
        "temperature": temperature,
        "top_p": fields.number("top_p", 1.0, least=0, most=1),
        # vLLM writes "all" as -1 or 0.
        "top_k": None if top_k is None or top_k <= 0 else top_k,
        "min_p": fields.number("min_p", 0.0, least=0, most=1),
        "repetition_penalty": fields.number("repetition_penalty", 1.0, least=0.01, most=100),
        "presence_penalty": fields.number("presence_penalty", 0.0, least=-2, most=2),
        "frequency_penalty": fields.number("frequency_penalty", 0.0, least=-2, most=2),
        # Without a seed, equal requests are to give different answers: whoever asks 64 times wants 64 samples.
        "seed": secrets.randbits(63) if seed is None else seed,
    }
    if drawing["top_p"] == 0:
        raise fields.wrong("top_p", "above 0 and at most 1", "write `temperature: 0` for the likeliest token")
    _refuse_unsupported(fields)
    stream = fields.flag("stream")
    return SampleFields(
        drawing=drawing,
        max_tokens=_limit(fields, default_tokens),
        n=_count(fields),
        stop=_stops(fields),
        stop_token_ids=_stop_token_ids(fields),
        ignore_eos=fields.flag("ignore_eos"),
        keep_stop=fields.flag("include_stop_str_in_output"),
        stream=stream,
        include_usage=_stream_options(fields, stream),
        return_token_ids=fields.flag("return_token_ids"),
        names_as_ids=fields.flag("return_tokens_as_token_ids"),
        prompt_logprobs=fields.whole("prompt_logprobs", None, least=0, most=MOST_TOP),
    )


def _limit(fields: Fields, default: int | None) -> int | None:
    old = fields.whole("max_tokens", None, least=0)
    new = fields.whole("max_completion_tokens", None, least=0)
    if old is not None and new is not None and old != new:
        raise fields.wrong("max_tokens", f"the same as `max_completion_tokens`, which is {new}", "write one of the two")
    limit = new if new is not None else old
    return default if limit is None else limit


def _count(fields: Fields) -> int:
    count = fields.whole("n", 1, least=1, most=MOST_CHOICES)
    assert count is not None
    fields.must_be("best_of", [count], "all completions are given back; choose among them with `n`")
    return count


def _stops(fields: Fields) -> tuple[str, ...]:
    stops = fields.texts("stop", MOST_STOPS)
    if any(len(stop) > LONGEST_STOP for stop in stops):
        raise fields.wrong("stop", f"texts of at most {LONGEST_STOP:,} characters")
    return stops


def _stop_token_ids(fields: Fields) -> frozenset[int]:
    value = fields.any("stop_token_ids")
    if value is None:
        return frozenset()
    if not isinstance(value, list) or len(value) > MOST_STOPS or any(type(item) is not int for item in value):
        raise fields.wrong("stop_token_ids", f"a list of at most {MOST_STOPS} token ids")
    return frozenset(value)


def _stream_options(fields: Fields, stream: bool) -> bool:
    """Whether the stream is to end with its usage."""
    options = Fields(fields.mapping("stream_options"), "stream_options.")
    wanted = options.flag("include_usage")
    options.must_be("continuous_usage_stats", [False], "usage comes once, at the end")
    options.finish({"include_obfuscation"})
    return wanted and stream


def _refuse_unsupported(fields: Fields) -> None:
    """What is known to clients of OpenAI or vLLM and not done here, unless it asks for what happens anyway."""
    fields.must_be("logit_bias", [{}], "no token's logit is changed here")
    fields.must_be("skip_special_tokens", [True], "ask for `return_token_ids`, and decode them")
    fields.must_be("spaces_between_special_tokens", [True, False], "special tokens are not shown")
    fields.must_be("use_beam_search", [False], "tokens are sampled")
    fields.must_be("min_tokens", [0], "a completion ends where the model ends it")
    fields.must_be("bad_words", [[]], "no token is kept from being drawn")
    fields.must_be("truncate_prompt_tokens", [], "a prompt is never cut in silence")
    fields.must_be("logits_processors", [[]], "no code of a client runs here")
    for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"):
        fields.must_be(name, [], "completions are not bound to a grammar")
    response_format = fields.any("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        raise fields.wrong(
            "response_format",
            'none, or {"type": "text"}: completions are not bound to a grammar here',
            "leave `response_format` out, and ask for the form in the prompt",
        )


def merge_extra_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without its `extra_body`, whose fields were meant for the top level.

    OpenAI's client merges them itself; its-hub sends the object as it is, and beside it the same fields again.
    """
    extra = body.get("extra_body")
    if not isinstance(extra, dict):
        return dict(body)
    return {**extra, **{name: value for name, value in body.items() if name != "extra_body"}}
