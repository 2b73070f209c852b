"""A conversation through the tokenizer's chat template, by the library's own way or by a shorter one to the same text.

`apply_chat_template` copies every message and looks through every value, so that no object of a caller's reaches a
template of a stranger's: half of what a rendering costs. Messages of roles and plain texts need neither, and they are
nearly all. For them the template that the library has compiled is called with what the library would call it with; the
first renderings of a run are made both ways, and where they differ the shorter way is off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_CHECKED = 64
"""Renderings that are also made by the library's own way."""
_PLAIN_KEYS = frozenset({"role", "content"})


class Rendering:
    """render = Rendering(tokenizer)
    render(source, [{"role": "user", "content": "Hi"}], add_generation_prompt=True)     # the template's text
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._unchecked = _CHECKED
        self._is_short = _renders_as_the_library_does(tokenizer)
        self._special: Mapping[str, Any] = dict(tokenizer.special_tokens_map) if self._is_short else {}

    def __call__(
        self,
        source: Any,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] = (),
        add_generation_prompt: bool = False,
        values: Mapping[str, Any],
    ) -> Any:
        """What `apply_chat_template` gives; raises whatever the template raises.

        Args:
            source: the template's text.
            values: variables of the template.
        """
        if not (self._is_short and isinstance(source, str) and not tools and _are_plain(messages, values)):
            return self._long(source, messages, tools, add_generation_prompt, values)
        text = self._short(source, messages, add_generation_prompt, values)
        if self._unchecked:
            self._unchecked -= 1
            expected = self._long(source, messages, tools, add_generation_prompt, values)
            if text != expected:
                self._is_short = False  # for good: a way that was wrong once may be wrong anywhere
            return expected
        return text

    def _long(
        self,
        source: Any,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any],
        add_generation_prompt: bool,
        values: Mapping[str, Any],
    ) -> Any:
        return self._tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) or None,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **values,
        )

    def _short(
        self, source: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, values: Mapping[str, Any]
    ) -> str:
        from transformers.utils.chat_template_utils import _compile_jinja_template  # keeps what it has compiled

        compiled: Any = _compile_jinja_template(source)
        variables = {**self._special, **values}
        text: str = compiled.render(
            messages=list(messages),
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        return text


def _renders_as_the_library_does(tokenizer: Any) -> bool:
    """Whether rendering is the library's own: a tokenizer with an `apply_chat_template` of its own is asked itself."""
    from transformers import PreTrainedTokenizerBase

    own, theirs = getattr(type(tokenizer), "apply_chat_template", None), PreTrainedTokenizerBase.apply_chat_template
    return own is theirs and "apply_chat_template" not in vars(tokenizer)


def _are_plain(messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> bool:
    """Roles and texts alone, and at least one: of anything else the library has something to say."""
    # By exact type: a subclass of str could bring methods that a template should not call.
    return (
        bool(messages)
        and all(
            type(message) is dict and message.keys() == _PLAIN_KEYS and all(type(v) is str for v in message.values())
            for message in messages
        )
        and all(type(value) in (str, bool, int, float) for value in values.values())
    )
