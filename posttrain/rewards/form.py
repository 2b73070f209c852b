"""Whether a response is whole: what it opens, it closes."""

from __future__ import annotations

from posttrain.rewards.answers import last_box_is_open


def is_malformed(text: str) -> bool:
    """Whether tags of thoughts, a code fence or a `\\boxed{` are left open, or thoughts are closed that were not begun.

    A template may write `<think>` itself: one `</think>` before any `<think>` is sound. A text that was cut at its
    limit is malformed by that alone; ask only of texts that ended by themselves.
    """
    return _thoughts_unbalanced(text) or text.count("```") % 2 == 1 or last_box_is_open(text)


def _thoughts_unbalanced(text: str) -> bool:
    opens, closes = text.count("<think>"), text.count("</think>")
    if opens == closes:
        return opens > 0 and text.find("</think>") < text.find("<think>")
    begun_by_template = closes == opens + 1 and (not opens or text.find("</think>") < text.find("<think>"))
    return not begun_by_template
