"""How long a stage's rows are: as its encoded data say, else as long as they may be.

rows = rows_of(stage, folder)         # Rows(longest=Shape(1024, (1024,)), mean_tokens=2048, said="max_length")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posttrain.config.base import RowStage, TrainingStage
from posttrain.config.online import SamplingStage
from posttrain.config.stages import FeedbackStage, PreferenceStage, Reward
from posttrain.data.dataset import EncodedDataset
from posttrain.errors import ConfigError, PosttrainError
from posttrain.types import Branch, RowRef, TokenTree

PROMPT = 512
"""Tokens of a prompt to sample from, where nothing says how long prompts are."""
LONGEST = 2048
"""Tokens of a row where `max_length` is null and nothing else says so."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A row's tree: Shape(prompt=512, responses=(512, 512)) is a pair of 1,536 tokens."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.responses)

    @property
    def pairs(self) -> float:
        """Queries times the keys that they see, of all tokens: a prompt of 2 and a response of 1 have 3 + 3."""
        own = sum(_triangle(length) for length in self.responses)
        return _triangle(self.prompt) + own + self.prompt * sum(self.responses)

    def tree(self) -> TokenTree:
        ids = lambda length: np.ones(length, dtype=np.int32)  # noqa: E731
        branches = tuple(Branch(ids(length), np.ones(length, dtype=bool)) for length in self.responses)
        return TokenTree(ids(self.prompt), branches, key="planned", row=RowRef("plan", 1))


def _triangle(length: int) -> float:
    return length * (length + 1) / 2


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows(longest=Shape(1024, (1024,)), mean=Shape(300, (200,)), said="the encoded rows of runs/mine/sft")."""

    longest: Shape
    """The largest row, which no micro-batch cuts."""
    mean: Shape
    """One row as large as they are on average."""
    said: str
    """Where the lengths come from."""


def rows_of(stage: TrainingStage, folder: Path | None = None, tokens: int | None = None) -> Rows:
    """
    Args:
        folder: the stage's, with its encoded rows if it ran or was checked before.
        tokens: of a row, where a user says so: prompt and answer.

    Raises:
        ConfigError: fewer tokens than a prompt and the answers need.
    """
    if isinstance(stage, SamplingStage):
        return _sampled(stage, tokens)
    encoded = _encoded(folder) if folder is not None and tokens is None else None
    if encoded is not None:
        return encoded
    if tokens is not None:
        length, said = tokens, "--tokens"
    elif stage.max_length is not None:
        length, said = stage.max_length, "max_length, as if every row were as long"
    else:
        length, said = LONGEST, f"{LONGEST:,} tokens assumed: max_length is null"
    if length < 2:
        raise ConfigError("a row has a prompt and an answer", found=f"{length} tokens", remedy="give at least 2")
    prompt = length // 2
    shape = Shape(prompt, (length - prompt,) * _responses(stage))
    return Rows(shape, shape, f"{said}; half of it the prompt")


def _responses(stage: TrainingStage) -> int:
    """Branches of a row's tree."""
    if isinstance(stage, FeedbackStage):
        coupling = stage.row.coupling
        return 2 if coupling is not None and coupling.mismatched else 1
    return 2 if isinstance(stage, PreferenceStage | Reward) else 1


def _sampled(stage: SamplingStage, tokens: int | None) -> Rows:
    new = stage.sampling.max_new_tokens
    if tokens is not None and tokens <= new:
        raise ConfigError(
            "a row has no room for its prompt",
            found=f"--tokens {tokens}, sampling.max_new_tokens: {new}",
            expected=f"more than {new}: prompt and completion together",
            remedy=f"write `--tokens {new + PROMPT}`, or lower max_new_tokens",
        )
    room = min(PROMPT, stage.max_length or PROMPT)
    prompt = tokens - new if tokens is not None else room
    said = "--tokens" if tokens is not None else f"prompts of {prompt:,} tokens assumed"
    shape = Shape(prompt, (new,) * stage.completions_per_prompt)
    return Rows(shape, shape, f"{said}; completions as if each took max_new_tokens")


def _encoded(folder: Path) -> Rows | None:
    """Of the newest encoded rows that can be opened."""
    stores = sorted((folder / "encoded").glob("encoded-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for store in stores:
        try:
            rows = EncodedDataset(store)
        except PosttrainError:  # torn or of another version: the next run makes it again, and the plan goes on without
            continue
        if len(rows):
            return _measured(rows, store)
    return None


def _measured(rows: EncodedDataset, store: Path) -> Rows:
    lengths = rows.num_tokens
    longest = rows[int(lengths.argmax())]
    prompt = max(1, round(float(lengths.mean() - rows.num_trained.mean())))
    branches = len(longest.branches)
    answer = max(1, round(float(rows.num_trained.mean()) / branches))
    shape = Shape(len(longest.prompt_ids), tuple(len(branch.ids) for branch in longest.branches))
    said = f"{len(rows):,} encoded rows in {store.parent.parent}: {lengths.mean():,.0f} tokens on average"
    return Rows(shape, Shape(prompt, (answer,) * branches), said)


def is_planned(stage: object) -> bool:
    """Whether the stage trains, so that there is a step to plan."""
    return isinstance(stage, RowStage | SamplingStage)
