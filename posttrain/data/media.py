"""Images, audio and video in rows: refused by name, since only text is trained on.

A row whose picture is silently dropped trains an answer to a question that nobody can see.

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
_NAMED = re.compile(
    r"(?:^|_)(?:images?|imgs?|pictures?|photos?|screenshots?|frames?|pixels?|audios?|videos?|media)(?:_|$)"
)
"""Words in the names of further columns that may hold media: `image_path`, `decoded_image`, `pixel_values`. Such a
column may also be a text (`image_caption`) or a number (`num_images`), so that its value decides."""
_FILE = re.compile(
    r"\.(?:jpe?g|png|gif|bmp|webp|tiff?|svg|mp4|mov|avi|mkv|webm|wav|mp3|flac|ogg|m4a)(?:[?#]\S*)?\Z"
    r"|\A(?:data:(?:image|audio|video)/|https?://\S+\Z)",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"\A\s*<(?:image|audio|video)>|^[ \t]*<(?:image|audio|video)>[ \t]*$"
    r"|<\|(?:image|audio|video)(?:_pad)?\|>|<\|vision_start\|>|<image_placeholder>",
    re.MULTILINE,
)
"""Where an image was: a mark at the beginning of a text, or alone on a line. Inside a line it may be HTML, or
`docker run <image>`, unless the row has a column for images."""
_ANYWHERE = re.compile(r"<(?:image|audio|video)>")


def has_media(value: Any) -> bool:
    """Whether a media column has something in it; nulls, empty texts and empty lists are a column that is not used."""
    if isinstance(value, Mapping):
        return any(map(has_media, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_media, value))
    return value not in (None, "", b"") and value == value  # NaN, an empty cell of pandas, is not equal to itself


def is_media(value: Any) -> bool:
    """Whether a value is an image, audio or video by itself: its bytes, its file's name, or numbers in rows of rows."""
    if isinstance(value, Mapping):
        return _is_feature(value) or any(map(is_media, value.values()))
    if isinstance(value, list | tuple):
        nested = value and isinstance(value[0], list | tuple) and value[0] and isinstance(value[0][0], int | float)
        return bool(nested) or any(map(is_media, value))
    if isinstance(value, bytes):
        return bool(value)
    return isinstance(value, str) and (_FILE.match(value) or _FILE.search(value[-64:].rstrip())) is not None


def _is_feature(value: Any) -> bool:
    """The form in which `datasets` stores an image or a sound, whatever its column is called."""
    return isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes) and bool(value["bytes"])


def refuse_media(row: Mapping[str, Any]) -> None:
    """Raises RowError for a row with an image, audio or video column in use."""
    # A column called `image` is media whatever it holds; one called `image_path` only if it holds a file's name.
    keys, named = _media_keys(tuple(row))
    for key, value in row.items():
        if not (_is_feature(value) or (key in named and is_media(value)) or (key in keys and has_media(value))):
            continue
        raise refuse(
            "content_not_text",
            f"the row carries {key!r}",
            found=f"{key!r}: {shown(value)}",
            expected="text only",
            remedy="only text is trained on here: leave such rows out (`bad_rows: skip` counts them); where the "
            f"texts stand without it, remove the column `{key}` from the file",
        )

    placeholder = next((mark for text in _strings_in(row) if (mark := _ANYWHERE.search(text))), None) if keys else None
    if placeholder is not None:
        raise refuse(
            "content_not_text",
            f"a text of the row has {placeholder[0]!r}, and {keys[0]!r} is empty",
            found=shown(placeholder.string),
            expected="text only",
            remedy="only text is trained on here: remove the mark where the text stands without it, or the row",
        )


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings_in(item)


# Cached, since a file has few sets of columns and this runs for every row.
@functools.lru_cache(maxsize=1024)
def _media_keys(columns: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns that hold media whenever they hold anything, and those whose value decides."""
    sure = tuple([column for column in columns if column.lower() in MEDIA])
    return sure, tuple([column for column in columns if column not in sure and _NAMED.search(column.lower())])


def refuse_placeholder(text: str | None, place: str) -> None:
    """Raises RowError for a text with the mark of an image, which would train as that word."""
    match = _PLACEHOLDER.search(text) if text and "<" in text else None
    if match is None or not text:
        return
    mark = match[0].strip()
    if f"</{mark[1:]}" in text:  # an element of XML or HTML, with its closing tag
        return
    raise refuse(
        "content_not_text",
        f"{place} has {mark!r} where an image, audio or video was",
        found=shown(text),
        expected="text only",
        remedy="only text is trained on here: remove the mark where the text stands without it, or the row",
    )
