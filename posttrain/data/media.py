"""Images, audio and video in rows: refused by name, since only text is trained on.

refuse_media({"messages": ..., "images": ["1.jpg"]})      # RowError
refuse_placeholder("<image>What is this?", "turn 1")       # RowError
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.data.refusals import refuse, shown

MEDIA = frozenset({"image", "images", "audio", "audios", "video", "videos"})
"""Columns of a row, and keys of a turn, that hold what is no text."""
_PLACEHOLDER = re.compile(
    r"\A\s*<(?:image|audio|video)>|^[ \t]*<(?:image|audio|video)>[ \t]*$"
    r"|<\|(?:image|audio|video)(?:_pad)?\|>|<\|vision_start\|>|<image_placeholder>",
    re.MULTILINE,
)
"""Where an image was: a mark at the beginning of a text, or alone on a line. Inside a line it may be HTML, or
`docker run <image>`, unless the row has a column for images."""
_ANYWHERE = re.compile(r"<(?:image|audio|video)>")


def holds_media(value: Any) -> bool:
    """Whether a media column has something in it; nulls, empty texts and empty lists are a column that is not used."""
    if isinstance(value, Mapping):
        return any(map(holds_media, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_media, value))
    return value not in (None, "", b"") and value == value


def refuse_media(row: Mapping[str, Any]) -> None:
    """Raises RowError for a row with an image, audio or video column in use."""
    keys = _media_keys(tuple(row))
    for key in keys:
        if holds_media(row[key]):
            raise refuse(
                "content_not_text",
                f"the row carries {key!r}",
                found=f"{key!r}: {shown(row[key])}",
                expected="text only",
                remedy="only text is trained on here: leave such rows out (`bad_rows: skip` counts them); where the "
                f"texts stand without it, remove the column {key!r} from the file",
            )

    found = next((mark for text in _texts(row) if (mark := _ANYWHERE.search(text))), None) if keys else None
    if found is not None:
        raise refuse(
            "content_not_text",
            f"a text of the row has {found[0]!r}, and {keys[0]!r} is empty",
            found=shown(found.string),
            expected="text only",
            remedy="only text is trained on here: remove the mark where the text stands without it, or the row",
        )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


@functools.lru_cache(maxsize=1024)
def _media_keys(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([column for column in columns if column.lower() in MEDIA])


def refuse_placeholder(text: str | None, place: str) -> None:
    """Raises RowError for a text with the mark of an image, which would train as that word."""
    found = _PLACEHOLDER.search(text) if text and "<" in text else None
    if found is None or not text:
        return
    mark = found[0].strip()
    if f"</{mark[1:]}" in text:  # an element of XML or HTML
        return
    raise refuse(
        "content_not_text",
        f"{place} has {mark!r} where an image, audio or video was",
        found=shown(text),
        expected="text only",
        remedy="only text is trained on here: remove the mark where the text stands without it, or the row",
    )
