"""A folder of documents as passages: read, cut at paragraph ends, indexed.

    library = library_of(asked, Retrieval(documents="handbook"))
    library.ranked("How long is the warranty?")       # passages, the likest first

.txt and .md files are a document each, and so is each row of a .jsonl file, whose `text` it is. Hidden files and those
in hidden folders are not read; any other file that `files` matches is refused, so that none is left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.strategies import Retrieval
from posttrain.config.strategies.demonstrations import EmbeddingSimilarity
from posttrain.data.sources.json_rows import encoding_error, line_rows
from posttrain.data.sources.source import Broken
from posttrain.errors import ConfigError, SourceError
from posttrain.inference.similarity import Similarity, likest, similarity_of
from posttrain.inference.solving import Asked
from posttrain.types import RowRef

TEXTS = (".txt", ".md")
ROWS = ".jsonl"
_ENDS = (
    re.compile(r"(?<=\n)[ \t]*\n+"),  # paragraphs
    re.compile(r"(?<=\n)"),  # lines
    re.compile(r"(?<=[.!?。！？])\s+"),  # sentences
    re.compile(r"(?<=\S)\s+"),  # words
)
"""Where a text that is too long is cut: the first of these that it has."""


@dataclass(frozen=True, slots=True)
class Document:
    """Document("handbook.md", "# Warranty\\n..."); a row's source is "faq.jsonl, row 3"."""

    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document: Passage("handbook.md", 3, "The warranty lasts two years.", block_tokens=14)."""

    source: str
    number: int
    """Counts from 1 within its document."""
    text: str
    block_tokens: int
    """Of `block`, what stands in a prompt."""

    @property
    def name(self) -> str:
        return f"{self.source} #{self.number}"

    @property
    def block(self) -> str:
        return f"[{self.name}]\n{self.text}"


class Library:
    """All passages of a folder, and how they are found."""

    def __init__(self, passages: Sequence[Passage], index: Similarity):
        self.passages = tuple(passages)
        self._index = index

    def ranked(self, question: str, *, unrelated: bool = False) -> list[Passage]:
        """Passages by how like the question they are, the likest first.

        Args:
            unrelated: also those that have nothing in common with it.
        """
        scores = self._index.scores(question)
        return [self.passages[at] for at in likest(scores) if unrelated or self._index.related(scores[at])]


def library_of(asked: Asked, settings: Retrieval) -> Library:
    """The passages that the settings name, made for the first question and kept for all.

    Raises:
        SourceError: the folder is empty, or a file in it cannot be read as text.
        ConfigError: there is no such folder; a text holds a special token.
        MissingExtraError: embeddings are asked for, and sentence-transformers is not installed.
    """
    key = ("library", repr((settings.documents, settings.files, settings.chunk_tokens, settings.overlap_tokens)))
    return asked.once((*key, repr(settings.similarity)), lambda: _made(asked, settings))


def _made(asked: Asked, settings: Retrieval) -> Library:
    tokens = asked.encoder.tokens

    def count(text: str) -> int:
        return len(tokens.ids(text))

    passages = []
    for document in documents_in(Path(asked.located(settings.documents)).expanduser(), settings.files):
        special = tokens.first_added(document.text)
        if special is not None:
            # It would become that token, and whoever wrote the document could end the user's turn and begin another.
            raise ConfigError(
                "a document holds the name of a special token, which would stand in the prompt as that token",
                where=document.source,
                found=f"{special[1]!r} at character {special[0]:,}",
                expected="text without the model's special tokens",
                remedy="write it otherwise, take the document out of the folder, or leave it out by `files`",
            )
        for number, text in enumerate(cut(document.text, settings.chunk_tokens, settings.overlap_tokens, count), 1):
            bare = Passage(document.source, number, text, 0)
            passages.append(Passage(document.source, number, text, count(bare.block + "\n\n")))
    similarity = settings.similarity
    folder = asked.located(similarity.model) if isinstance(similarity, EmbeddingSimilarity) else ""
    texts = [passage.text for passage in passages]
    return Library(passages, similarity_of(similarity, texts, folder=folder, device=asked.scorers.device))


# ---------------------------------------------------------------- reading


def documents_in(folder: Path, pattern: str = "**/*") -> list[Document]:
    """The documents of a folder, by path.

    Raises:
        ConfigError: there is no such folder, or the pattern leads out of it.
        SourceError: there is nothing to read in it, or a file is no text.
    """
    if not folder.is_dir():
        raise ConfigError(
            "the documents are no folder that is there",
            found=str(folder),
            expected=f"a folder with files that end in {', '.join((*TEXTS, ROWS))}",
            remedy=f"name its folder: `documents: {folder.parent}`" if folder.is_file() else "check the path",
        )
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or not pattern.strip():
        raise ConfigError(
            "the pattern leads out of the folder of documents",
            found=f"files: {pattern}",
            expected="a pattern within the folder, such as `**/*.md`",
            remedy="name another folder as `documents`",
        )
    # Sorted, since the order in which a file system lists a folder differs between machines.
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and not _hidden(path.relative_to(folder)))
    documents = [document for path in files for document in _read(path, path.relative_to(folder).as_posix())]
    if not any(document.text.strip() for document in documents):
        raise SourceError(
            "the folder of documents holds no text",
            where=str(folder),
            found=f"{len(files)} files that `{pattern}` matches, without text"
            if files
            else f"no file like `{pattern}`",
            expected=f"files with text that end in {', '.join((*TEXTS, ROWS))}",
            remedy="put documents there, or name another folder",
        )
    return [document for document in documents if document.text.strip()]


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _read(path: Path, name: str) -> Iterator[Document]:
    ending = path.suffix.lower()
    if ending not in (*TEXTS, ROWS):
        raise SourceError(
            "the file is no document that can be read",
            where=str(path),
            found=f"the ending `{path.suffix}`" if path.suffix else "no ending",
            expected=f"one of {', '.join((*TEXTS, ROWS))}",
            remedy='turn it into text, take it out of the folder, or name the files that are meant: `files: "**/*.md"`',
        )
    try:
        if ending == ROWS:
            with path.open("rb") as stream:
                yield from _rows(line_rows(stream, str(path)), name)
            return
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(
            "the document cannot be read",
            where=str(path),
            found=f"{type(error).__name__}: {error.strerror or error}",
            remedy="check the file and its permissions",
        ) from error
    yield Document(name, _text(content, path))


def _text(content: bytes, path: Path) -> str:
    if b"\0" in content:
        raise SourceError(
            "the document is binary, in spite of its name",
            where=str(path),
            found=f"a NUL byte at byte {content.index(0):,}",
            expected="text in UTF-8",
            remedy="turn it into text, or take it out of the folder",
        )
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise encoding_error(content, error, 0, RowRef(str(path), 1)) from None


def _rows(rows: Iterator[tuple[int, object, str]], name: str) -> Iterator[Document]:
    for row, value, _ in rows:
        if isinstance(value, Broken):
            raise value.error
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise SourceError(
                "the row is no document",
                where=RowRef(name, row),
                found=f"the keys {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__,
                expected="an object whose `text` is the document",
                remedy='write {"text": "..."}, one a line',
            )
        yield Document(f"{name}, row {row}", text)


# ---------------------------------------------------------------- cutting


def cut(text: str, limit: int, overlap: int, count: Callable[[str], int]) -> list[str]:
    """Passages of about `limit` tokens, which end where a paragraph does, else a line, a sentence, a word.

    A passage begins with the last pieces of the one before it, as many whole ones as `overlap` has room for; where the
    last piece is longer than that, there is no overlap.

    Args:
        count: tokens of a text. Pieces are counted alone, so that a passage may have some tokens more or fewer.
    """
    pieces = [(piece, count(piece)) for piece in _pieces(text, limit, count, _ENDS)]
    passages: list[str] = []
    current: list[tuple[str, int]] = []
    fresh = False
    for piece, tokens in pieces:
        if current and sum(size for _, size in current) + tokens > limit:
            passages.append("".join(part for part, _ in current).strip())
            current, fresh = _tail(current, min(overlap, limit - tokens)), False
        current.append((piece, tokens))
        fresh = True
    if fresh:
        passages.append("".join(part for part, _ in current).strip())
    return [passage for passage in passages if passage]


def _tail(pieces: Sequence[tuple[str, int]], room: int) -> list[tuple[str, int]]:
    kept: list[tuple[str, int]] = []
    for piece, tokens in reversed(pieces):
        room -= tokens
        if room < 0:
            break
        kept.insert(0, (piece, tokens))
    return kept


def _pieces(text: str, limit: int, count: Callable[[str], int], ends: Sequence[re.Pattern[str]]) -> list[str]:
    """The text in pieces of at most `limit` tokens, cut at the coarsest ends that make them small enough."""
    if not ends:
        # One word longer than a passage: encoded data, or a language without blanks.
        if len(text) < 2 or count(text) <= limit:
            return [text]
        half = len(text) // 2
        return [part for side in (text[:half], text[half:]) for part in _pieces(side, limit, count, ends)]
    parts, start = [], 0
    for match in ends[0].finditer(text):
        if match.end() > start:
            parts.append(text[start : match.end()])
            start = match.end()
    parts.append(text[start:])
    return [
        piece
        for part in parts
        if part
        for piece in ([part] if count(part) <= limit else _pieces(part, limit, count, ends[1:]))
    ]
