"""What is served, by name: a policy with its engine and its words, or a reward model.

served = Served({"embedded": ServedPolicy("embedded", engine, encoder, longest=2048, vocabulary=49_152)})
served.policy("embedded").encoder.prompt(messages)
"""

from __future__ import annotations

import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from posttrain.data.encode import Encoder
from posttrain.data.templates.clock import LIVE, values_read
from posttrain.data.templates.header import split_header
from posttrain.data.templates.template import ChatTemplate
from posttrain.data.templates.thoughts import ThoughtMarks, marks_order, thought_state
from posttrain.errors import PosttrainError, did_you_mean, nearest
from posttrain.serve.call_format import CallFormat, call_format
from posttrain.serve.refusals import RequestRefused, refused
from posttrain.serve.token_text import TokenTexts

if TYPE_CHECKING:
    from posttrain.models.reward.scoring import RewardModel
    from posttrain.rollout.native import NativeEngine

_ENCODERS = 8
"""Encoders that are kept, by the values that requests give to the template; each was probed for a few milliseconds."""
LARGEST_VALUES = 2_000
"""Characters of the JSON of a request's `chat_template_kwargs`."""


@dataclass
class ServedPolicy:
    """A language model under one name: the base, or one of its adapters.

    Its tokenizer is asked from two threads: `encoder` from whoever holds `lock`, `detokenizer` from the server's loop;
    a tokenizer that is changed in one thread while another reads it raises, so each has its own copy.
    """

    name: str
    engine: NativeEngine
    encoder: Encoder
    longest: int
    """Most tokens of a prompt and its completion together."""
    vocabulary: int
    """Ids that the model has an embedding for."""
    fingerprint: str = ""
    is_adapter_of: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    _encoders: OrderedDict[str, Encoder] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.detokenizer = Detokenizer(copy.deepcopy(self.encoder.tokenizer))
        self.calls: CallFormat | None = call_format(self.encoder.template)
        # Special tokens are left out of answers, but these are how thoughts and calls are known.
        marks = [text for pair in thought_marks(self.encoder.template) for text in (pair.open, pair.close)]
        added = self.encoder.tokens.added
        self.thought_ids = frozenset(
            number for text, number in added.items() if text and any(text in mark for mark in marks)
        )
        _, sources = split_header(self.encoder.chat_template)  # the header sets what the template reads
        texts = [sources] if isinstance(sources, str) else list(dict(sources).values())
        self.template_values = frozenset().union(*map(values_read, texts)) - _SET_BY_THE_SERVER
        """What a request may give to the template."""
        written = self.calls.written if self.calls is not None else ""
        self.mark_ids = self.thought_ids | {number for text, number in added.items() if text and text in written}

    def encoder_with(self, values: Mapping[str, Any]) -> Encoder:
        """The encoder for a request's `chat_template_kwargs`; call it under `lock`.

        Raises:
            RequestRefused: a value that the template does not read, that the server sets, or that is too large.
        """
        if not values:
            return self.encoder
        key = json.dumps(values, sort_keys=True)
        if key not in self._encoders:
            self._encoders[key] = self._encoder_with(values, key)
            if len(self._encoders) > _ENCODERS:
                self._encoders.popitem(last=False)
        self._encoders.move_to_end(key)
        return self._encoders[key]

    def reads_no_value(self, name: str, param: str) -> RequestRefused:
        """The error for a value that the template does not read; `param` is how the client called it."""
        read = sorted(self.template_values)
        return refused(
            f"the model's chat template reads no value `{name[:80]}` of a request",
            param=param,
            expected=f"one of {', '.join(read)}" if read else "none: this template reads no values",
            remedy=did_you_mean(nearest(name, read), "leave it out"),
        )

    def _encoder_with(self, values: Mapping[str, Any], key: str) -> Encoder:
        param = "chat_template_kwargs"
        if len(key) > LARGEST_VALUES:
            raise refused(
                f"`{param}` is too large",
                param=param,
                found=f"{len(key):,} characters of JSON",
                expected=f"at most {LARGEST_VALUES:,}",
                remedy="give only what the template reads",
            )
        for name in values:
            if name not in self.template_values:
                raise self.reads_no_value(name, f"{param}.{name[:80]}")
        settings = self.encoder.settings
        try:
            settings = replace(settings, template_kwargs={**settings.template_kwargs, **values})
            return Encoder(self.encoder.tokenizer, settings)
        except PosttrainError as error:
            raise refused(
                f"the chat template cannot be used with these values: {error.problem}",
                param=param,
                found=error.found,
                expected=error.expected,
                remedy="correct `chat_template_kwargs`, or leave it out",
            ) from error


_SET_BY_THE_SERVER = frozenset(
    [
        *("messages", "conversation", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("raise_exception", "strftime_now", LIVE, "bos_token", "eos_token", "pad_token"),
        *("unk_token", "tokenizer_kwargs", "return_assistant_tokens_mask", "namespace"),
        *("range", "dict", "cycler", "joiner", "lipsum", "loop"),
    ]
)
"""What no request may give to a template: its text, what is rendered, and how."""


def thought_marks(template: ChatTemplate) -> Sequence[ThoughtMarks]:
    """The marks of a template that knows thoughts. <think> stands in every list of marks, as a guess: in the answers of
    a model whose template has no thoughts it is text."""
    form = template.thoughts
    opens = thought_state(marks_order(template.layout.generation, form.marks)) != "none"
    return form.marks if form.key is not None or form.rewrites or opens else ()


class Detokenizer:
    """Ids to text for answers. Special tokens are left out, but for those that are told to be shown."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.texts = TokenTexts(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {int(number) for number, token in added.items() if token.special}
        self.special = frozenset(special | {int(number) for number in tokenizer.all_special_ids})

    def __call__(self, ids: Sequence[int]) -> str:
        """Without special tokens."""
        return self.showing(frozenset())(ids)

    def showing(self, shown: frozenset[int]) -> Callable[[Sequence[int]], str]:
        """A function of ids that leaves special tokens out, but for these: the marks of thoughts and calls."""
        hidden = self.special - shown

        def decode(ids: Sequence[int]) -> str:
            visible = [number for number in ids if number not in hidden]
            text = self.tokenizer.decode(visible, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return str(text)

        return decode

    def whole(self, ids: Sequence[int]) -> str:
        """Special tokens shown as they are written, as `/detokenize` gives them back."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


@dataclass
class Served:
    """All that one process serves: policies by name, the base first, or one reward model."""

    policies: Mapping[str, ServedPolicy] = field(default_factory=dict)
    reward: RewardModel | None = None
    reward_name: str = ""
    created: int = 0
    hidden: tuple[str, ...] = ()
    """Texts that no answer may show: the folders of the models."""

    @property
    def names(self) -> list[str]:
        return [self.reward_name] if self.reward is not None else list(self.policies)

    def require(self, name: str | None, param: str | None = "model") -> str:
        """The name itself, or that of the first model where none is said.

        Raises:
            RequestRefused: 404, with the names that there are.
        """
        if name is None:
            return self.names[0]
        if name in self.names:
            return name
        raise RequestRefused(
            f"no model is served under the name `{name[:120]}`",
            param=param,
            code="model_not_found",
            status=404,
            expected=f"one of {', '.join(self.names)}",
            remedy=did_you_mean(nearest(name[:120], self.names), "ask `/v1/models` for the names"),
        )

    def policy(self, name: str | None) -> ServedPolicy:
        """
        Raises:
            RequestRefused: no such name, or a reward model, which gives scores and no answers.
        """
        known = self.require(name)
        if self.reward is not None:
            raise RequestRefused(
                "this server has a reward model, which gives scores and no answers",
                param="model",
                found=known,
                expected="a language model",
                remedy="ask `/v1/score` with a prompt and a response, or serve a policy",
            )
        return self.policies[known]

    def rewarding(self, name: str | None) -> RewardModel:
        """
        Raises:
            RequestRefused: no such name, or a language model, which gives no rewards.
        """
        known = self.require(name)
        if self.reward is None:
            raise RequestRefused(
                "this server has a language model, which gives no rewards",
                param="model",
                found=known,
                expected="a reward model",
                remedy="serve one: `posttrain serve REWARD_MODEL`; for log-probs of a text ask `/v1/completions` with "
                "`echo` and `logprobs`",
            )
        return self.reward
