"""Texts that a strategy asks the model with: which `{name}`s they may and must have."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter

from posttrain.config.values import refuse
from posttrain.errors import did_you_mean, nearest


def require_placeholders(text: str, key: str, needed: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Refuses a prompt that names what it is not given, or leaves out what it is about.

    require_placeholders("Check this: {answer}", "check_prompt", ["question", "answer"])    # `{question}` is missing

    Raises:
        PydanticCustomError: for a validator to raise.
    """
    known = (*needed, *optional)
    listed = ", ".join(f"`{{{name}}}`" for name in known)
    try:
        parts = [(name, form, conversion) for _, name, form, conversion in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise refuse(
            "the prompt has a brace that belongs to no placeholder",
            path=(key,),
            found=str(error),
            expected=f"the placeholders {listed}",
            remedy="write `{{` and `}}` for braces themselves",
        ) from None
    for name, form, conversion in parts:
        # `{answer.__class__}` and `{answer!r}` are Python's, and would show the model what nobody wrote.
        if name not in known or form or conversion:
            written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise refuse(
                f"the prompt has no value for `{{{written}}}`",
                path=(key,),
                found=f"{{{written}}}",
                expected=f"the placeholders {listed}",
                remedy=did_you_mean(f"{{{near}}}" if (near := nearest(name, known)) and near != name else None)
                or "write `{{` and `}}` for braces themselves",
            )
    missing = [name for name in needed if name not in [part[0] for part in parts]]
    if missing:
        raise refuse(
            f"the prompt leaves out `{{{missing[0]}}}`, which the model must see",
            path=(key,),
            found=repr(text if len(text) < 80 else text[:77] + "..."),
            expected=f"the placeholders {listed}",
            remedy=f"write `{{{missing[0]}}}` where it is to stand",
        )


def require_text(text: str | None, key: str, instead: str) -> None:
    """Refuses a text of blanks, which says nothing: null is how a text is left out.

    Raises:
        PydanticCustomError: for a validator to raise.
    """
    if text is not None and not text.strip():
        raise refuse("the text is empty", path=(key,), found=repr(text), expected="a text", remedy=instead)
