"""JSON files as streams of rows: one object per line, or one array of objects, either larger than memory.

An array is read element by element with the standard library's own scanner over a buffer that is refilled as needed,
so it accepts exactly what `json.load` accepts, and an error names the row in which the file breaks.
"""

from __future__ import annotations

import codecs
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any, BinaryIO

from posttrain.data.refusals import quoted, shown
from posttrain.data.sources.not_rows import converted_name, refuse_one_object, refuse_other_content
from posttrain.data.sources.source import Broken, Numbered
from posttrain.errors import RowError, SourceError
from posttrain.types import RowRef

_SPACE = re.compile(r"[ \t\n\r]*")
_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_FRAGMENTS = (
    {literal[:length] for literal in _LITERALS for length in range(len(literal))}
    | {mark + sign for mark in "eE" for sign in ("", "+", "-")}
    | {"."}
)
"""What a cut can leave at the end of a text that the decoder cannot read: the start of a literal, a number's tail."""
_CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
MEGABYTE = 1 << 20
LONGEST_ROW = 64 * MEGABYTE
"""Bytes of one row, its Unicode text and its Python objects being some eight times that. Without a bound, two
megabytes of gzip are one row of two gigabytes, and the process dies before it can say which row it was."""
_EXCERPT_BYTES = 1 << 10
"""What is kept of a row that is too long, for its error and the file of skipped rows."""
_TURNS_ON_A_LINE = re.compile(rb'\[\s*\{\s*"(?:role|from|content|value)"[^\n]*\]\s*\n\s*\[')
"""A list of turns on each line, which is no array of rows; the reader of lines says what to do with it."""


class _Decoder(json.JSONDecoder):
    """The standard decoder, which also says of the text that it decoded last which key an object names twice.

    The standard keeps the last of two values and says nothing; which one a row means, nobody can tell.
    """

    def __init__(self) -> None:
        self.repeated: str | None = None
        super().__init__(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            seen = set[str]()
            self.repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return value


def _repeated_key(key: str, content: str, ref: RowRef) -> Broken:
    return Broken(
        RowError(
            f"an object of the row names the key {quoted([key])} twice",
            reason="duplicate_key",
            where=ref,
            found=shown(content),
            expected="each key once in an object",
            example='{"prompt": "2 + 2?", "completion": "4"}',
            remedy="remove one of the two; `bad_rows: skip` leaves such rows out and counts them",
        ),
        "duplicate_key",
        content,
    )


# ---------------------------------------------------------------- one object per line


def line_rows(stream: BinaryIO, name: str, longest_row: int = LONGEST_ROW) -> Iterator[Numbered]:
    """Rows of a JSONL file. Blank lines are no rows; a byte order mark and CRLF are no part of one."""
    row = offset = number = 0
    decoder = _Decoder()
    # `readline` with a size, and not iteration: a line is never in memory beyond the longest row.
    while line := stream.readline(longest_row + 2):
        number += 1
        start, offset = offset, offset + len(line)
        too_long = len(line.rstrip(b"\r\n")) > longest_row
        while too_long and not line.endswith(b"\n") and (more := stream.readline(_CHUNK_BYTES)):
            offset += len(more)
            line = line[:_EXCERPT_BYTES] + more[-1:]
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            line, start = line[3:], 3
        if not line.strip():
            continue
        row += 1
        note = "" if row == number else f"line {number}"
        ref = RowRef(name, row)
        if too_long:
            yield row, _too_long(line, offset - start, longest_row, ref), note
            continue
        try:
            decoder.repeated = None  # of this line alone
            value = decoder.decode(line.decode())
        except UnicodeDecodeError as error:
            yield row, _bad_encoding(line, error, start, ref), note
        except (ValueError, RecursionError) as error:
            # Only the last line can lack its line break, and then it may be half a row and not a wrong one.
            at_end = not line.endswith(b"\n")
            yield row, _bad_line(line.decode(), error, at_end, ref), note
        else:
            key = decoder.repeated
            yield row, value if key is None else _repeated_key(key, line.decode().rstrip("\r\n"), ref), note


def _too_long(line: bytes, size: int, longest_row: int, ref: RowRef) -> Broken:
    beginning = line[:_EXCERPT_BYTES].decode(errors="backslashreplace").rstrip("\r\n")
    return Broken(
        RowError(
            f"the row has {size / MEGABYTE:,.1f} MB of text",
            reason="too_long",
            where=ref,
            found=f"{shown(beginning)} and so on",
            expected=f"at most {longest_row / MEGABYTE:,.1f} MB in one row (`longest_row_mb`)",
            example='{"prompt": "2 + 2?", "completion": "4"}',
            remedy="write one row a line; if the row is meant, set `longest_row_mb` higher: reading it takes some "
            "eight times its size in memory. `bad_rows: skip` leaves such rows out and counts them",
        ),
        "too_long",
        beginning,
    )


def _bad_encoding(line: bytes, error: UnicodeDecodeError, start: int, ref: RowRef) -> Broken:
    content = line.decode(errors="backslashreplace").rstrip("\r\n")
    return Broken(encoding_error(line, error, start, ref), "bad_encoding", content)


def encoding_error(data: bytes, error: UnicodeDecodeError, start: int, ref: RowRef) -> SourceError:
    """`data` begins at byte `start` of the file and failed to decode with `error`."""
    around = data[max(0, error.start - 20) : error.start + 20]
    return SourceError(
        f"the text is not valid UTF-8 at byte {start + error.start:,} of the file",
        where=ref,
        found=f"the byte 0x{data[error.start]:02X} in {around!r}",
        expected="UTF-8",
        remedy="if the file is in an older encoding, convert it, for example "
        f"`iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(ref.source)} > {converted_name(ref.source)}`; "
        "otherwise write the row again from its source",
    )


def _bad_line(line: str, error: Exception, at_end: bool, ref: RowRef) -> Broken:
    line = line.rstrip("\r\n")
    if at_end and isinstance(error, json.JSONDecodeError) and _cut_off(error, line):
        return Broken(
            _truncated_file(ref, f"the last line ends with {shown(line[-60:])}", lines=True), "truncated", line
        )

    problem = "the line is not valid JSON"
    excerpt = shown(line)
    if isinstance(error, json.JSONDecodeError):
        problem += f": {_lower(error.msg)} at character {error.pos + 1:,}"
        excerpt = f"{shown(line[max(0, error.pos - 40) : error.pos + 40])} around that character"
    elif isinstance(error, RecursionError):
        problem = "the line is nested too deeply to be a row"
    else:
        problem += f": {error}"

    return Broken(
        RowError(
            problem,
            reason="bad_json",
            where=ref,
            found=excerpt,
            expected="one JSON object per line",
            example='{"prompt": "2 + 2?", "completion": "4"}',
            remedy=_line_remedy(line, ref.source),
        ),
        "bad_json",
        line,
    )


def _lower(message: str) -> str:
    """The decoder's message as a part of a sentence; it ends in "at" where the decoder adds a position itself."""
    message = message.removesuffix(" at").removesuffix(" starting")
    return message[:1].lower() + message[1:]


def _line_remedy(line: str, source: str) -> str:
    text = line.strip()
    if "[[[[" in text or text.count("{") > 500 + text.count("}"):
        return "this is no row of data: remove the line"
    if text in ("{", "[") or (text.startswith("{") and text.count("{") > text.count("}")):
        return f"if each object spans several lines, write one per line: `jq -c . {shlex.quote(source)} > rows.jsonl`"
    if re.match(r"\{\s*'", text):
        return "this is Python's notation, not JSON: write rows with `json.dumps(row)`, not with `str(row)`"
    if re.search(r",\s*[}\]]", text):
        return "remove the comma before the closing bracket"
    if re.search(r"\}\s*\{", text):
        return f"two objects share the line: write one per line, `jq -c . {shlex.quote(source)} > rows.jsonl`"
    if "\0" in text:
        return "the line holds NUL bytes, as after a crash or on a full disk: write the file again"
    if not text.startswith("{"):
        return "remove the line, or write it as a JSON object; comments and headings have no place in JSONL"
    return "write the row again with a JSON library; `bad_rows: skip` leaves such rows out and counts them"


def _truncated_file(
    ref: RowRef, found: str, *, lines: bool, problem: str = "the file ends in the middle of this row"
) -> SourceError:
    cut = f", or delete its last line (`sed -i '$ d' {shlex.quote(ref.source)}`)" if lines else ""
    return SourceError(
        problem,
        where=ref,
        found=found,
        expected="a whole JSON object" if lines else "a whole array, up to its closing ']'",
        remedy=f"the file was cut off, as by a broken download or a full disk: fetch or write it again{cut}",
    )


# ---------------------------------------------------------------- one array


def array_rows(
    stream: BinaryIO, name: str, chunk_bytes: int = _CHUNK_BYTES, longest_row: int = LONGEST_ROW
) -> Iterator[Numbered]:
    """Elements of one JSON array, in order, holding no more of the file than a chunk and the element in hand.

    Raises SourceError, with the row and byte where it happens, for an array that is cut off or broken, or whose element
    is longer than a row may be: nothing that follows can be told apart, so these rows cannot be skipped.
    """
    window = _Window(stream, name, chunk_bytes, longest_row)
    row = 0
    window.expect("[", 0)
    closing = window.peek(0) == "]"
    while not closing:
        row += 1
        yield row, window.element(row), ""
        mark = window.peek(row)
        if mark not in (",", "]"):
            raise window.broken(row, f"expected ',' or ']' after row {row}, found {mark!r}")
        window.at += 1
        closing = mark == "]"
        if not closing and window.peek(row + 1) == "]":
            raise window.broken(row + 1, "a comma before the closing ']'")
    window.at += 1 if row == 0 else 0
    if window.peek(row, at_end=True):
        raise window.broken(row, "something follows the closing ']' of the array")


class _Window:
    """The part of the file in memory, and the place in it that is read next."""

    def __init__(self, stream: BinaryIO, name: str, chunk_bytes: int, longest_row: int):
        self.stream, self.name, self.chunk_bytes, self.longest_row = stream, name, chunk_bytes, longest_row
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.json = _Decoder()
        self.text = ""
        self.at = 0
        self.offset = 0
        """Bytes of the file before `text`, plus those the decoder still holds."""
        self.ended = False
        self.failure: tuple[bytes, UnicodeDecodeError, int] | None = None
        while not self.text and not self.ended:
            self.fill()
        self.text = self.text.removeprefix("\ufeff")

    def fill(self) -> None:
        """Drops what was read and appends more; doubles with the element in hand, so that no element costs a square."""
        unread = self.text[self.at :]
        data = self.stream.read(max(self.chunk_bytes, len(unread)))
        pending = self.decoder.getstate()[0]
        start = self.offset
        self.offset += len(data)
        # Incremental: a chunk may end in the middle of a character. What comes before a bad byte is still read, so that
        # the error names the row in which the byte stands.
        try:
            more = self.decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            data_with_pending = pending + data
            more = data_with_pending[: error.start].decode()
            self.failure = (data_with_pending, error, start - len(pending))
            self.offset = start - len(pending) + error.start
            self.decoder.reset()
            self.ended = True
        self.ended = self.ended or not data
        self.text, self.at = unread + more, 0

    def peek(self, row: int, at_end: bool = False) -> str:
        """The next character that is no white space, with `at` on it; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                break
            self.fill()
        if self.failure is not None or not at_end:
            raise self.cut_off(max(row, 1), "the file ends here, and the array is not closed")
        return ""

    def expect(self, mark: str, row: int) -> None:
        if self.peek(row) != mark:
            raise self.broken(max(row, 1), f"expected {mark!r}, found {self.text[self.at]!r}")
        self.at += 1

    def element(self, row: int) -> Any:
        """The value at `at`, which moves behind it; Broken for one with a key named twice."""
        self.peek(row)
        ref = RowRef(self.name, row)
        # Tried again with more text until it can be decoded; `fill` doubles, so that the retries cost twice at most.
        while True:
            try:
                self.json.repeated = None
                value, end = self.json.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if not _cut_off(error, self.text):
                    raise self.broken(row, _lower(error.msg), error.pos) from None
                if self.ended:
                    raise self.cut_off(row) from None
            except RecursionError:
                raise self.broken(row, "it is nested too deeply") from None
            except ValueError as error:
                raise self.broken(row, str(error)) from None
            else:
                # "1" may go on as "12", "1." as "1.5": a value counts only when what follows it is in sight.
                if self.ended or self._is_complete(end):
                    if end - self.at > self.longest_row:
                        raise _too_long(self.text[self.at :][:200].encode(), end - self.at, self.longest_row, ref).error
                    content, self.at = self.text[self.at : end], end
                    key = self.json.repeated
                    return value if key is None else _repeated_key(key, content, ref)
            # Characters, which are no more than the bytes: a row of the limit in bytes is never refused here.
            if len(self.text) - self.at > self.longest_row:
                raise _too_long(
                    self.text[self.at :][:200].encode(), len(self.text) - self.at, self.longest_row, ref
                ).error
            self.fill()

    def _is_complete(self, end: int) -> bool:
        match = _SPACE.match(self.text, end)
        after = match.end() if match else end
        if after == len(self.text):
            return False
        return self.text[after] in ",]" or not _is_fragment(self.text, after)

    def byte_at(self, at: int) -> int:
        pending = len(self.decoder.getstate()[0])
        return self.offset - pending - len(self.text[at:].encode(errors="surrogatepass"))

    def broken(self, row: int, problem: str, at: int | None = None) -> SourceError:
        at = self.at if at is None else at
        return SourceError(
            f"the JSON array is broken here: {problem} (byte {self.byte_at(at):,} of the file)",
            where=RowRef(self.name, row),
            found=shown(self.text[max(0, at - 40) : at + 40]),
            expected="[{...}, {...}, ...]: objects, a comma between any two",
            remedy="correct the file there, or write it again with a JSON library, best as JSONL "
            "(one object per line), of which broken rows can be skipped",
        )

    def cut_off(self, row: int, problem: str = "the file ends in the middle of this row") -> SourceError:
        if self.failure is not None:
            data, error, start = self.failure
            return encoding_error(data, error, start, RowRef(self.name, row))
        tail = shown(self.text[-60:]) if self.text else "nothing more"
        return _truncated_file(
            RowRef(self.name, row), f"the file ends with {tail} at byte {self.offset:,}", lines=False, problem=problem
        )


def _cut_off(error: json.JSONDecodeError, text: str) -> bool:
    """Whether more text might have made this right: the decoder failed at the very end, or inside a string."""
    if error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\uXXXX"):
        return len(text) - error.pos < 6 and '"' not in text[error.pos :]
    return _is_fragment(text, error.pos)


def _is_fragment(text: str, at: int) -> bool:
    return len(text) - at < 16 and text[at:].strip() in _FRAGMENTS


# ---------------------------------------------------------------- which of the two


def json_rows(stream: Any, name: str, longest_row: int = LONGEST_ROW) -> Iterator[Numbered]:
    """Rows of a JSON file of either layout; `stream` is buffered and has `peek`. The first character decides."""
    head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]  # `peek` gives all that is buffered
    refuse_other_content(head, name)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()  # a byte order mark is no part of the first row
    if text.startswith(b"[") and not _TURNS_ON_A_LINE.match(text):
        return array_rows(stream, name, longest_row=longest_row)
    if text.startswith(b"{"):
        refuse_one_object(text, name)
    return line_rows(stream, name, longest_row)
