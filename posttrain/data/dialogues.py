"""Texts that are dialogues: turns stored as text, and dialogues written out with marks for the speakers.

turns_in('[{"role": "user", "content": "Hi"}]', rules)                 # the list, for any column where turns may stand
turns_in("\\n\\nHuman: Hi\\n\\nAssistant:", rules)                          # as hh-rlhf writes a dialogue
turns_in('{"a": 1}', rules)                                            # None: an answer may well be JSON
refuse_dialogue("### Human: Hi### Assistant: Hello.", "'prompt'")      # RowError

Every column of text is read by this one rule (`formats/columns.py`, `messages.py`). Turns are turns, whatever they are
stored as. A dialogue in the published form of hh-rlhf is read. One with the marks of a chat template or a prompt format
is refused: nothing says which template is meant, and a model that trains on it as one text learns to write the user's
turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from posttrain.data.refusals import refuse, shown
from posttrain.data.roles import USUAL_ROLES, Rules
from posttrain.data.texts import stored

_TURNS = re.compile(r"""\s*"?\[\s*\{\s*\\?['"](?:role|from|content|value)\\?['"]\s*:""")
"""The beginning of a list of turns in JSON, in JSON of JSON, or in Python's notation."""
_HUMAN = re.compile(r"\s*Human:")
_HUMAN_OR_ASSISTANT = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HEAD, _HEAD_END = r"<\|start_header_id\|>", r"<\|end_header_id\|>\s*\S"
_FORMATS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        ("ChatML", r"\s*(?:<s>|<bos>)?\s*<\|im_start\|>(?:system|user)\b.*<\|im_start\|>assistant\s+\S"),
        (
            "Llama 3",
            rf"\s*(?:<\|begin_of_text\|>)?\s*{_HEAD}(?:system|user)<.*{_HEAD}assistant{_HEAD_END}",
        ),
        ("Llama 2", r"\s*(?:<s>)?\s*\[INST\].*\[/INST\]\s*\S"),
        ("Gemma", r"\s*(?:<bos>)?\s*<start_of_turn>user\b.*<start_of_turn>model\s+\S"),
        ("Zephyr", r"\s*<\|(?:system|user)\|>.*<\|assistant\|>\s*\S"),
        ("'### Human:'", r"\s*###\s*(?:Human|User):.*###\s*(?:Assistant|GPT|AI|Bot):\s*\S"),
        ("'USER:'", r"\s*USER:\s.*\bASSISTANT:\s*\S"),
        ("'User:'", r"\s*User:\s.*\n\s*Assistant:\s*\S"),
    )
)
"""Name -> a text that begins with a turn of the user (or system) and goes on with one of the assistant. A prompt that
ends at the assistant's mark is a prompt for a base model; it is a dialogue where an answer follows."""


def turns_in(text: str, rules: Rules) -> list[Any] | None:
    """The turns of a text that is a dialogue, or None for any other text.

    Raises:
        RowError: it begins as a list of turns, and cannot be read.
    """
    start = text.lstrip()[:1]  # rules most texts out, and costs next to nothing
    if start == "H" and not rules.keep_dialogues and _HUMAN.match(text) and "\n\nAssistant:" in text:
        # Read, and noted: a text that only quotes a dialogue in this form would be split as well.
        if rules.noted is not None:
            rules.noted.key("text", "Human:/Assistant: (a dialogue, read as turns)")
        return human_turns(text)
    if not start or start not in '[{"':
        return None
    if "role" not in text and "from" not in text:
        return None
    value = stored(text)
    if isinstance(value, list) and value and _is_turn(stored(value[0]), rules):
        return value
    if isinstance(value, Mapping) and _is_turn(value, rules):
        return [value]
    if isinstance(value, str) and _TURNS.match(text):
        raise refuse(
            "dialogue_as_text",
            "a text begins as a list of turns, and cannot be read as one",
            found=shown(text),
            expected='JSON, such as [{"role": "user", "content": "2 + 2?"}]',
            remedy="write the turns as a list, or their text with `json.dumps(turns)` instead of `str(turns)`",
        )
    return None


def holds_stored_turns(text: str) -> bool:
    """Whether a text begins as turns that were stored as text do; which format a row has depends on it."""
    if text.lstrip()[:1] not in ("[", "{", '"'):
        return False
    value = stored(text)
    return _TURNS.match(text) is not None or _is_turn(value[0] if isinstance(value, list) and value else value, Rules())


def _is_turn(value: Any, rules: Rules) -> bool:
    """Whether an object says who speaks and what; `{"role": "admin", "content": ...}` may be somebody's answer."""
    if not isinstance(value, Mapping):
        return False
    dialect = rules.dialect(value)
    name = value.get(dialect.role_key)
    # Both halves, and a role that somebody uses: an answer in JSON may have a key called "role" or "content".
    says = dialect.content_key in value or "tool_calls" in value or "function_call" in value
    return says and isinstance(name, str) and (name in dialect.roles or name in USUAL_ROLES)


def human_turns(text: str) -> list[dict[str, str]] | None:
    """hh-rlhf's form: "\\n\\nHuman: Hi\\n\\nAssistant: Hello." -> two turns; None for any other text.

    A last `Assistant:` without words is where a prompt ends, and no turn.
    """
    _, *parts = _HUMAN_OR_ASSISTANT.split(text.lstrip())
    if not parts or not _HUMAN_OR_ASSISTANT.match(text.lstrip()):
        return None
    turns = [
        {"role": "user" if speaker == "Human" else "assistant", "content": text_of_turn.strip()}
        for speaker, text_of_turn in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def dialogue_format(text: str) -> str | None:
    """The prompt format of a text that is a whole dialogue, by name; None for any other text."""
    # The first characters of all patterns above: they begin at the text's beginning.
    if text.lstrip()[:1] not in ("<", "#", "[", "U"):
        return None
    return next((name for name, pattern in _FORMATS if pattern.match(text)), None)


def refuse_dialogue(text: str, place: str, rules: Rules) -> None:
    """Raises RowError for a text that is a whole dialogue in some prompt format."""
    if rules.keep_dialogues:
        return
    name = dialogue_format(text)
    if name is not None:
        raise refuse(
            "dialogue_as_text",
            f"{place} is a whole dialogue, written out in the form of {name}",
            found=shown(text),
            expected="the turns as turns: the chat template writes the marks of the speakers",
            remedy='write the row as {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}; '
            "where the text is meant to train as it stands (`template: raw`), write `dialogues_in_text: keep`",
        )
