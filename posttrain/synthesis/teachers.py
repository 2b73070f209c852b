"""From a recipe's `teacher` to who answers.

with teacher_of(stage.teacher, policy=ctx.start, journal=folder / ASKED) as teacher:
    replies = teacher.ask(asks)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from posttrain.config.teacher import EndpointTeacher, LocalTeacher, TeacherSampling, TeacherSettings
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError
from posttrain.models.folders.loading import LoadedModel
from posttrain.synthesis.cost import Meter
from posttrain.synthesis.endpoint import EndpointModel
from posttrain.synthesis.journal import IdentifiedTeacher, Journaled
from posttrain.synthesis.local import LocalModel
from posttrain.synthesis.teacher import Drawing


def teacher_of(
    settings: TeacherSettings,
    *,
    journal: Path,
    earlier: Sequence[Path] = (),
    policy: str | Path | LoadedModel | None = None,
    encoding: EncoderSettings | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Journaled:
    """A teacher that keeps its answers; a context manager, which closes the journal.

    Args:
        journal: file of its answers; what stands in it is not asked again.
        earlier: journals that are read as well, and not written.
        policy: what `teacher: policy` stands for.
        encoding: how the policy is spoken to; None: as its folder says. Another model is spoken to as its own does.
        say: a line for each long step, as of `load`.

    Raises:
        ConfigError: a stage's model, which only its recipe knows, or the policy where there is none; no such device.
        SourceError: the journal is damaged.
    """
    return Journaled(_bare(settings, policy, encoding, say), journal, earlier)


def _bare(
    settings: TeacherSettings,
    policy: str | Path | LoadedModel | None,
    encoding: EncoderSettings | None,
    say: Callable[[str], None],
) -> IdentifiedTeacher:
    if isinstance(settings, EndpointTeacher):
        return EndpointModel(settings)
    assert isinstance(settings, LocalTeacher)
    if settings.stage is not None:  # a recipe puts the stage's folder in its place before
        raise ConfigError(
            "a stage is known in its recipe alone",
            where="teacher",
            found=f"stage: {settings.stage}",
            expected="the name or folder of a model",
            example="teacher: runs/quickstart/sft/model",
            remedy="give the folder that the stage has written",
        )
    model = settings.model if settings.model is not None else policy
    if model is None:
        raise ConfigError(
            "there is no policy to ask",
            where="teacher",
            found="policy",
            expected="the name or folder of a model, or an endpoint",
            example='teacher={"url": "http://localhost:8000/v1", "model": "qwen"}',
            remedy="name the model",
        )
    return LocalModel(
        model,
        encoding=encoding if settings.is_policy else None,
        device=settings.device,
        rows_at_once=settings.rows_at_once,
        say=say,
        meter=Meter(most_tokens=settings.most_tokens),
    )


def drawing_of(sampling: TeacherSampling) -> Drawing:
    """A recipe's sampling as a question carries it."""
    return Drawing(sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.stop)
