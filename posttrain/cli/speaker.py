"""A model to talk to: messages in, text out. `generate` and `compare` share it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.text_file import read_text
from posttrain.types import Message, RowRef, Task

if TYPE_CHECKING:
    from posttrain.data.encoder_settings import EncoderSettings
    from posttrain.data.speech import Speech
    from posttrain.models.folders.own_code import ModelCode

Tools = Sequence[Mapping[str, Any]]
BATCH = 64
"""Prompts that are answered before their answers are handed on."""


@dataclass(frozen=True)
class SpokenAnswer:
    """SpokenAnswer("Pia.", tokens=3, finish="stop_token")"""

    text: str
    tokens: int
    finish: str


class Speaker:
    """A loaded model that answers: Speaker("embedded", system=None, temperature=0.7, max_new_tokens=64)."""

    def __init__(
        self,
        name: str,
        *,
        system: str | None = None,
        template: str = "auto",
        device: str = "auto",
        model_code: ModelCode = "refuse",
        say: Callable[[str], None] | None = None,
        prefix_tokens: int = 0,
        **sampling: Any,
    ):
        from posttrain.data.encode import Encoder
        from posttrain.models import load, resolve
        from posttrain.models.devices import device_of
        from posttrain.models.folders.own_code import folder_code, notice_of
        from posttrain.models.reward.folders import require_policy
        from posttrain.rollout.native import NativeEngine
        from posttrain.sampling import SamplingDistribution

        SamplingDistribution(**sampling)  # a mistake in it is shown before a model is loaded
        require_policy(resolve(name, say=say))
        with folder_code(model_code):
            loaded = load(name, device=device_of(device), say=say)
            if say is not None:
                for notice in notice_of(loaded.base.folder):
                    say(notice)
        self.tokenizer = loaded.tokenizer
        self.encoder = Encoder(loaded.tokenizer, _spoken(template, loaded.speech))
        self.engine = NativeEngine(loaded.model, decode=self.encoder.tokens.decode, prefix_tokens=prefix_tokens)
        self.sampling = SamplingDistribution(stop_ids=self.encoder.stop_ids, **sampling)
        self.opening = (Message("system", system),) if system else ()

    def answers(
        self, prompts: Sequence[Sequence[Message]], samples: int = 1, *, tools: Sequence[Tools] | None = None
    ) -> Iterator[list[SpokenAnswer]]:
        """`samples` answers to each prompt, in the order of the prompts; `tools` of each, as their rows have them."""
        from posttrain.rollout.text import completion_text

        asked = list(zip(prompts, [()] * len(prompts) if tools is None else tools, strict=True))
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            ids = [self.encoder.prompt((*self.opening, *prompt), own) for prompt, own in batch]
            for group in self.engine.generate(ids, self.sampling, completions_per_prompt=samples):
                yield [
                    SpokenAnswer(completion_text(completion, self._text), len(completion.ids), str(completion.finish))
                    for completion in group
                ]

    def stream(self, conversation: Sequence[Message], seed: int) -> Iterator[str]:
        """One answer as it is sampled, piece by piece; what may be the beginning of a stop string waits."""
        from dataclasses import replace

        from posttrain.rollout.text import cut_at_stop, settled

        ids, shown, stop = list[int](), "", self.sampling.stop
        prompt = self.encoder.prompt((*self.opening, *conversation))
        for number in self.engine.stream(prompt, replace(self.sampling, seed=seed)):
            if number in self.encoder.stop_ids:
                break
            ids.append(number)
            text = self._text(ids)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # the rest of a character is still to come
                text = settled(text, stop)
                yield text[len(shown) :]
                shown = text
        if stop:  # nothing comes any more that could complete what was held back
            yield cut_at_stop(self._text(ids), stop)[len(shown) :]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def _spoken(template: str, speech: Speech) -> EncoderSettings:
    """`auto` asks the model as it was trained; another template is named, and keeps the folder's day and ends.

    The record's values belong to its own template: `chat`, where the model was not trained on bare text.
    """
    from dataclasses import replace

    settings = speech.settings()
    if template in ("auto", settings.template):
        return settings
    return replace(settings, template=template, template_kwargs={})


def read_prompts(path: str | Path) -> list[Task]:
    """The prompts of a file with all that their rows hold: any format that training reads, or a .txt file with one
    prompt a line.

    Raises:
        SourceError: the file cannot be read.
        EmptyDatasetError: it holds no prompt.
    """
    from posttrain.data import read
    from posttrain.data.questions import as_task

    if not str(path).endswith(".txt"):
        return [as_task(row) for row in read(path)]
    lines = read_text(Path(path).expanduser(), "the file of prompts").splitlines()
    if not any(line.strip() for line in lines):
        raise EmptyDatasetError(
            "the file holds no prompt", where=path, expected="one prompt a line", remedy="write a prompt into it"
        )
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return [Task((Message("user", line),), None, RowRef(str(path), number)) for number, line in numbered]


def read_pipe() -> str:
    """All of standard input as one prompt, which may have many lines.

    UTF-8 whatever the terminal's encoding, as files of prompts are: read in a Windows code page, "Grüße" would be
    another prompt without a word.

    Raises:
        ConfigError: there is no prompt, or it is no UTF-8.
    """
    stream = sys.stdin
    try:  # a test's stream, or a notebook's, has no bytes below its text
        text = (
            stream.buffer.read().decode("utf-8-sig") if isinstance(stream, io.TextIOWrapper) else stream.read()
        ).strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the prompt on standard input is not UTF-8 text",
            found=f"the byte 0x{error.object[error.start]:02x} at position {error.start}",
            expected="UTF-8",
            remedy="convert it, `iconv -f ENCODING -t UTF-8`, or write the prompt to a file that is UTF-8 (--prompts)",
        ) from None
    if not text:
        raise ConfigError("the pipe holds no prompt", remedy="write `echo PROMPT | posttrain generate MODEL`")
    return text
