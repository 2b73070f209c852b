"""A model on this machine as a teacher: questions side by side in one batch, the same seeds the same answers.

    teacher = LocalModel("smollm2-135m-instruct", say=print)
    teacher.ask([Ask((Message("user", "2 + 2?"),), Drawing(temperature=0))])

The model is loaded with the first question that has to be asked: a run that finds all answers in its journal loads
none.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.templates.thoughts import split_thoughts
from posttrain.data.templates.user_turn import user_turn
from posttrain.errors import ConfigError, EncodingError, EngineError
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import LoadedModel, load, resolve
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.models.folders.spoken import speech_of
from posttrain.models.reward.folders import require_policy
from posttrain.rewards.scorer import run_async
from posttrain.rollout.engine import Completion, FinishReason, Request
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.text import completion_text
from posttrain.sampling import SamplingDistribution
from posttrain.synthesis.cost import Meter
from posttrain.synthesis.teacher import UNASKED, Ask, OnReply, Reply

AT_ONCE = 256
"""Questions that wait in the engine's queue: more than it holds in a batch, so that it never runs empty."""
MOST_IN_A_ROW = 8
"""Questions in a row that cannot be asked, before one says so: it is no longer one row that is wrong."""

ENDED = (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.EMPTY)


@dataclass(slots=True)
class _Loaded:
    engine: NativeEngine
    encoder: Encoder


class LocalModel:
    """A `Teacher` by a model's name, folder, or what `load` gave.

    Args:
        encoding: how it is spoken to; None: as its folder says.
        device: auto, cpu, cuda, cuda:N or mps.
        rows_at_once: of the engine.
        say: a line for each long step of loading.
        meter: counts; with a limit in it no more is asked once that is spent.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        encoding: EncoderSettings | None = None,
        device: str = "auto",
        rows_at_once: int | None = None,
        say: Callable[[str], None] = lambda line: None,
        meter: Meter | None = None,
    ):
        self.model, self.encoding, self.device, self.rows_at_once, self.say = model, encoding, device, rows_at_once, say
        self.spent = meter if meter is not None else Meter()
        device_of(device)  # one that is not there is refused before anything is asked
        self._loaded: _Loaded | None = None
        self._identity: str | None = None

    @property
    def name(self) -> str:
        return self.model.source.name if isinstance(self.model, LoadedModel) else str(self.model)

    @property
    def identity(self) -> str:
        if self._identity is None:
            if isinstance(self.model, LoadedModel):
                weights, spoken = self.model.fingerprint, self.model.speech.settings()
            else:
                source = resolve(self.model, say=self.say)
                weights, spoken = folder_fingerprint(source.folder), speech_of(source).settings()
            content = f"{weights} {(self.encoding or spoken).template_identity}"
            self._identity = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self._identity

    def ask(self, asks: Sequence[Ask], on_reply: OnReply | None = None) -> list[Reply]:
        """See `Teacher.ask`.

        Raises:
            ModelError: the model cannot be loaded.
            EngineError: none of many questions in a row can be asked.
        """
        if not asks:
            return []
        loaded = self._load()
        replies: list[Reply] = [Reply("", error=UNASKED)] * len(asks)
        failed = 0

        async def one(index: int, places: asyncio.Semaphore) -> None:
            nonlocal failed
            async with places:
                if self.spent.limit_reached is not None:
                    reply = Reply("", error=UNASKED)
                else:
                    reply = await _answer(loaded, asks[index])
                    self.spent.count(reply)
                    failed = failed + 1 if reply.error is not None else 0
            replies[index] = reply
            if on_reply is not None:
                on_reply(index, reply)
            if failed >= MOST_IN_A_ROW:
                raise EngineError(
                    f"the teacher `{self.name}` cannot be asked",
                    found=f"{reply.error} ({failed} questions in a row)",
                    remedy="see what the questions have in common: their length, a system turn, tools",
                )

        async def all_of_them() -> None:
            places = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for index in range(len(asks)):
                    group.create_task(one(index, places))

        try:
            run_async(all_of_them())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return replies

    def _load(self) -> _Loaded:
        if self._loaded is None:
            model = self.model
            if not isinstance(model, LoadedModel):
                require_policy(resolve(model, say=self.say))
                model = load(model, device=device_of(self.device), say=self.say)
            encoder = Encoder(model.tokenizer, self.encoding or model.speech.settings())
            engine = NativeEngine(model.model, decode=encoder.tokens.decode, max_rows=self.rows_at_once)
            self._loaded = _Loaded(engine, encoder)
        return self._loaded


async def _answer(loaded: _Loaded, ask: Ask) -> Reply:
    """One question; what cannot be asked is an error of its own and stops no other."""
    if ask.tools:
        return Reply("", error="a local teacher's tool calls are not read; serve it and ask its endpoint")
    drawing, encoder = ask.drawing, loaded.encoder
    stop, stop_ids = drawing.stop, encoder.stop_ids
    if ask.speaker == "user":
        # Outside of the `try`: a template without a user's turn is no fault of one question.
        turn = user_turn(encoder.template, [encoder.template.plain(message) for message in ask.messages])
        stop = (*stop, turn.stop_text) if turn.stop_text is not None else stop
        stop_ids = stop_ids | {turn.stop.id} if turn.stop is not None else stop_ids
    try:
        ids = encoder.tokens.ids(turn.prefix) if ask.speaker == "user" else encoder.prompt(ask.messages)
        sampling = SamplingDistribution(
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            max_new_tokens=drawing.max_new_tokens,
            stop=stop,
            stop_ids=stop_ids,
            seed=ask.seed,
        )
        completion = await loaded.engine.generate_one(Request(ids, sampling))
    except (EncodingError, ConfigError) as error:
        return Reply("", error=error.problem, details={"found": str(error.found)})
    return _reply(encoder, ids, completion, thinks=ask.speaker == "assistant")


def _reply(encoder: Encoder, prompt_ids: Sequence[int], completion: Completion, *, thinks: bool) -> Reply:
    text = completion_text(completion, encoder.tokens.decode)
    reasoning, ended = None, completion.finish in ENDED
    marks = encoder.template.thoughts.marks if thinks else ()
    # Where the prompt opens the thought, the answer has its closing mark alone.
    opened = any(pair.close in text and pair.open not in text for pair in marks)
    split = split_thoughts(text, marks, opened=opened)
    if split is not None:
        reasoning, text = split.thoughts.strip(), split.visible
    elif any(text.lstrip().startswith(pair.open) for pair in marks):
        # A thought that never closes is no answer.
        reasoning, text = text.strip(), ""
    return Reply(
        text,
        reasoning,
        ended,
        prompt_tokens=len(prompt_ids),
        completion_tokens=len(completion.ids),
        details={"finish": str(completion.finish)},
    )
