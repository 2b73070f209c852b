"""The user's file: its rows, whether they are of the kind that the recipe needs, and what is said of them otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from posttrain.data.formats import KIND_NAMES, ExampleKind
from posttrain.data.read import Examples, read
from posttrain.errors import ConfigError, DataError, SourceError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, StepwiseFeedback, Task

WANTED: Mapping[str, ExampleKind] = {
    "identity": Demonstration,
    "chat": Demonstration,
    "dpo": Comparison,
    "reward": Comparison,
    "grpo": Task,
}
"""What each kind of recipe trains on."""

OTHERWISE: Mapping[ExampleKind, tuple[str, str]] = {
    Demonstration: (
        "conversations to imitate",
        "type `posttrain new chat`, or `posttrain new identity` where they teach a name",
    ),
    Comparison: ("pairs of a better and a worse answer", "type `posttrain new dpo`, or `posttrain new reward`"),
    Feedback: (
        "single answers, each called good or bad",
        "begin with `recipes/kto_feedback.yaml`: the method `kto` trains on such rows",
    ),
    StepwiseFeedback: (
        "answers whose steps are judged one by one",
        "write a stage `method: reward` with `objective: {kind: steps}` (docs/reward-models.md)",
    ),
    Task: (
        "tasks: a prompt, and an answer that is checked and not imitated",
        "type `posttrain new grpo`; to imitate the answers, name their column `completion`",
    ),
}
"""What rows of a kind are, in words, and what to type for them."""

CHARACTERS_PER_TOKEN = 4.0
"""Of English text under the tokenizers of language models; for an estimate of time, and nothing else."""
TOKENS_AROUND = 30
"""That a chat template writes around a row: roles, ends of turns, a short system prompt. For the same estimate."""
SAMPLED_ROWS = 2_000
"""Rows whose length is measured; more would change no estimate."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of the file: Rows("chats.jsonl", "messages", 60, Examples(...), tokens=46.0, longest=71)."""

    data: str
    format: str
    count: int
    examples: Examples
    tokens: float
    """Mean length of a row, all of its answers included; estimated from characters."""
    longest: int
    """The longest of the rows that were measured, estimated likewise."""

    @property
    def is_few(self) -> bool:
        """Too few to learn more than a manner of speaking, or to tell what was learned."""
        return self.count < 50


def read_rows(kind: str, data: str) -> Rows:
    """Every row of the file, counted, of the kind that the recipe trains on.

    Raises:
        SourceError, RowError, EmptyDatasetError: the file cannot be read; a row is wrong.
        ConfigError: its rows are of another kind; says of which, and what to type for them.
    """
    examples = _of_kind(data, kind)
    lengths = [estimated_tokens(example) for example in examples.head(SAMPLED_ROWS)]
    return Rows(data, examples.format, len(examples), examples, sum(lengths) / len(lengths), max(lengths))


def _of_kind(data: str, kind: str) -> Examples:
    wanted = WANTED[kind]
    first = read(data, scan=False)
    if first.kind is not wanted:
        _refuse_other(first.kind, kind, data)
    examples = read(data, kind=wanted, scan=False)
    examples.scan()
    return examples


def _refuse_other(found: ExampleKind, kind: str, data: str) -> None:
    """Unless the rows can be read as the wanted kind as well: a file may hold `messages` and `chosen`.

    Raises:
        ConfigError: they cannot.
    """
    try:
        read(data, kind=WANTED[kind], scan=False).head(1)
    except SourceError:
        raise
    except (DataError, ConfigError):
        words, remedy = OTHERWISE[found]
        raise ConfigError(
            f"`posttrain new {kind}` needs {KIND_NAMES[WANTED[kind]]}, and these are {words}",
            where=data,
            found=KIND_NAMES[found],
            expected=OTHERWISE[WANTED[kind]][0],
            remedy=remedy,
        ) from None


def estimated_tokens(example: Example) -> int:
    """Of a row as the model sees it, a prompt counted once for all of its answers."""
    match example:
        case Demonstration():
            texts = [_text(example.messages)]
        case Comparison():
            texts = [_text(example.prompt), *(_text(response) for response in example.responses)]
        case Feedback():
            texts = [_text(example.prompt), _text(example.response)]
        case StepwiseFeedback():
            texts = [_text(example.prompt), *example.steps]
        case Task():
            texts = [_text(example.prompt)]
    return TOKENS_AROUND + round(sum(map(len, texts)) / CHARACTERS_PER_TOKEN)


def typical(values: list[int]) -> int:
    """The median, as a whole number; 0 of none."""
    return round(median(values)) if values else 0


def _text(messages: tuple[Message, ...]) -> str:
    return "\n".join(message.content or "" for message in messages)
