"""A stage's teacher: opened with its journal, its answers shown as they arrive, its spending told.

with teaching(ctx, stage.make.judge, title="pairs: verdicts", total=400) as judge:
    judge.teacher.ask(asks, judge.on_reply)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import Any

from posttrain.config.teacher import TeacherSettings
from posttrain.data.encode import Encoder
from posttrain.models.folders.loading import LoadedModel, resolve
from posttrain.models.folders.tokenizers import has_tokenizer, load_tokenizer
from posttrain.runs.folder import EARLIER, StageFolder
from posttrain.synthesis.journal import ASKED, Journaled
from posttrain.synthesis.teacher import OnReply
from posttrain.synthesis.teachers import teacher_of
from posttrain.training.stages.kind import StageContext


@dataclass(frozen=True, slots=True)
class Teaching:
    """A teacher that can be asked: Teaching(Journaled(...), on_reply)."""

    teacher: Journaled
    on_reply: OnReply
    """Moves the stage's progress; for `teacher.ask`."""

    @property
    def spent(self) -> dict[str, Any]:
        """What it has cost so far, for stage.json."""
        meter = self.teacher.teacher.spent
        spent = {
            "teacher": self.teacher.name,
            "teacher_prompt_tokens": meter.prompt_tokens,
            "teacher_tokens": meter.completion_tokens,
            "teacher_failures": meter.failures,
        }
        return spent if meter.cost is None else {**spent, "teacher_cost": meter.cost}


@contextmanager
def teaching(ctx: StageContext[Any], settings: TeacherSettings, *, title: str, total: int) -> Iterator[Teaching]:
    """The teacher of a stage. What its journal has from a run that was killed is not asked again.

    Args:
        total: answers that will be asked for.

    Raises:
        ConfigError, SourceError: see `teacher_of`.
    """
    ctx.folder.path.mkdir(parents=True, exist_ok=True)
    encoding = None if ctx.answers is None else ctx.answers.encoding
    with (
        teacher_of(
            settings,
            journal=ctx.folder.path / ASKED,
            earlier=earlier_journals(ctx.folder),
            policy=ctx.start,
            encoding=encoding,
            say=ctx.progress.say,
        ) as teacher,
        ctx.progress.phase(title, total=total, unit="answers") as phase,
    ):
        yield Teaching(
            teacher,
            lambda _, reply: phase.advance(1, tokens=reply.completion_tokens, note=teacher.spent.note() or None),
        )
    ctx.say(f"{teacher.name}: {teacher.spent}")


def earlier_journals(folder: StageFolder) -> list[Path]:
    """Those of the stage's earlier results, the oldest first: other filters over the same answers ask nobody."""
    beside = folder.path.parent.glob(f"{folder.name}.*")
    found = [(int(match[2]), path) for path in beside if (match := EARLIER.fullmatch(path.name)) is not None]
    return [path / ASKED for _, path in sorted(found)]


def special_tokens_of(ctx: StageContext[Any]) -> Pattern[str] | None:
    """What names a special token of the policy, which trains on these rows: in a text it would end the turn."""
    assert not isinstance(ctx.start, LoadedModel)  # a recipe's stage starts from a folder
    source = resolve(ctx.start)
    if not has_tokenizer(source.folder):  # of an adapter that lies apart from its model: the encoder counts such rows
        return None
    encoder = Encoder(load_tokenizer(source.folder), ctx.answers.encoding if ctx.answers else None)
    return encoder.tokens.special_pattern(encoder.template.stop_texts)
