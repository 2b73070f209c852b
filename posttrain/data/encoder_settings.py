"""How rows become token trees: the options of the encoder, checked when they are made.

The `encoding` group of a recipe becomes one of these; it is part of the key of every store of encoded rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from posttrain.arguments import checked_list, checked_text, checked_whole, wrong_argument
from posttrain.data.templates.clock import date_of
from posttrain.data.templates.header import check_values
from posttrain.data.truncate import TRUNCATIONS, Truncation
from posttrain.errors import ConfigError, unknown

TrainOn = Literal["assistant_only", "last_assistant", "completion_only", "all"]
TRAIN_ON: tuple[str, ...] = get_args(TrainOn)


@dataclass(frozen=True)
class EncoderSettings:
    """How rows become trees: EncoderSettings(max_length=1024, truncation="keep_prompt_end").

    Raises:
        ConfigError: a value that no option has, or options that exclude each other.
    """

    max_length: int | None = None
    """The most tokens of a prompt with one response; None is no limit."""
    truncation: Truncation = "drop"
    """What becomes of a longer row; see `posttrain.data.truncate`."""
    train_on: TrainOn = "assistant_only"
    """assistant_only: every assistant turn. last_assistant: the last one. completion_only: the assistant turns after
    the last user turn. all: every token of a demonstration, as in pretraining. A comparison's prompt never trains."""
    train_roles: Mapping[str, bool] = field(default_factory=dict)
    """Overrides `train_on` for a role, e.g. {"tool": True}; a message's own `train` overrides both."""
    stop_token: Literal["train", "ignore"] = "train"
    """Whether the token that ends an answer trains. A model that never trains on it may not learn to stop."""
    template: str = "chat"
    """chat (the tokenizer's own), chatml, raw (texts and eos, for base models), or the path of a Jinja file."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Values for the template, e.g. {"enable_thinking": False}; they win over those that the model was trained with."""
    date: str | None = None
    """The day that a template writes which asks for today's, as "2026-11-30". None is the one that the model was
    trained with, else today; an encoder keeps the day on which it was made."""
    stop_ids: tuple[int, ...] = ()
    """Further ids that end an answer, as the model's folder lists them, beside the template's and the tokenizer's."""
    special_tokens_in_text: Literal["keep", "refuse"] = "keep"
    """What to do with a text that holds the name of a special token: keep it, as inference does, and count the row; or
    refuse the row."""
    lossy: Literal["refuse", "allow"] = "refuse"
    """What to do where the tokenizer cannot write the text of more than 1 % of the rows: refuse them all before
    training, or count them."""

    @property
    def template_identity(self) -> str:
        """What prompts and the ends of answers depend on: the template, a file by its content, its values, the day, and
        the stop ids."""
        # A file counts by its content: the same name may hold another template tomorrow.
        path = Path(self.template)
        name = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else self.template
        parts = [name, dict(self.template_kwargs), self.date, sorted(self.stop_ids)]
        return json.dumps(parts, sort_keys=True, default=repr)

    def __post_init__(self) -> None:
        _one_of("truncation", self.truncation, TRUNCATIONS)
        _one_of("train_on", self.train_on, TRAIN_ON)
        _one_of("stop_token", self.stop_token, ("train", "ignore"))
        _one_of("special_tokens_in_text", self.special_tokens_in_text, ("keep", "refuse"))
        _one_of("lossy", self.lossy, ("refuse", "allow"))

        self._require_types()
        check_values(self.template_kwargs)
        if self.date is not None:
            date_of(self.date)
        for role in self.train_roles:
            _one_of("train_roles", role, ("system", "user", "assistant", "tool"))

        # One token has no other before it that could predict it.
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(
                f"max_length is {self.max_length}, and a token trains only after another",
                found=self.max_length,
                expected="at least 2",
                remedy="raise max_length, or leave it out for no limit",
            )
        # Refused rather than ignored: whoever wrote `train_roles` believes that it changes something.
        if self.train_on == "all" and self.train_roles:
            raise ConfigError(
                "`train_on: all` trains every token, so `train_roles` has no effect",
                found=dict(self.train_roles),
                expected="one of the two",
                remedy="use `train_on: assistant_only` with `train_roles`, or leave `train_roles` out",
            )

    def _require_types(self) -> None:
        """From Python anything may come in; what YAML cannot write is refused here and not inside an encoding."""
        if self.max_length is not None:
            # Also for a length below 2, which has a refusal of its own.
            checked_whole("max_length", self.max_length, least=-(2**63), example=1024)
        checked_text("template", self.template, "chat")
        for name, value, example in (
            ("template_kwargs", self.template_kwargs, {"enable_thinking": False}),
            ("train_roles", self.train_roles, {"tool": True}),
        ):
            if not isinstance(value, Mapping):
                raise wrong_argument(
                    name,
                    value,
                    expected="a map from a name to its value",
                    remedy=f"write it as `{name}={example}`, or leave `{name}` out",
                )
        if self.date is not None:
            checked_text("date", self.date, "2026-11-30")
        numbers = checked_list("stop_ids", self.stop_ids, of="token ids", example="(2, 107)")
        # A tuple of Python's ints whatever was given: settings are compared, and saved as JSON.
        object.__setattr__(self, "stop_ids", tuple(checked_whole("stop_ids", number, example=2) for number in numbers))


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if isinstance(value, str) and value in allowed:
        return
    raise unknown(
        key,
        value,
        allowed,
        error=ConfigError,
        problem=f"`{key}` has no value `{value}`",
        found=value,
        expected=", ".join(allowed),
        otherwise=f"choose one of them; `{allowed[0]}` is usual",
    )
