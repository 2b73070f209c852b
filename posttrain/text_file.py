"""A text file that a user wrote: recipes, steps, prompts, personas; rows of data have readers of their own, by format.

One place, so that a byte order mark is never part of the first key or the first persona, and a file in a Windows code
page is answered with the byte that shows it.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import SourceError


def read_text(path: Path, what: str) -> str:
    """The file's text, without the mark that Windows editors put first.

    Args:
        what: what errors call it, such as "the recipe".

    Raises:
        SourceError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(f"{what} cannot be read", where=path, found=error.strerror, remedy="check the path") from None
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{what} is not UTF-8 text",
            where=path,
            found=f"the byte {error.object[error.start]:#04x} at position {error.start:,}",
            expected="UTF-8",
            remedy="save it as UTF-8: `iconv -f ENCODING -t UTF-8`",
        ) from None
