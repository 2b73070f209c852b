"""Pairs of a model's own mistakes: what it answers now is rejected, what it should answer is chosen.

    answering = Answering(encoder, engine, sampling, samples_per_prompt=2)
    pairs = correction_pairs(rows, answering, out=Path("data.jsonl"))
    pairs.counts          # CorrectionCounts(prompts=200, pairs=371, truncated=12, skipped={"duplicate": 29})

The rejected side is on the policy's own distribution, which is where a preference loss has something to push down; a
rejected answer that the model would never give teaches it nothing.

Each line is an ordinary preference row, with how the rejected answer ended:

    {"prompt": [...], "chosen": [...], "rejected": [...], "finish": "stop_token", "truncated": false,
     "row": "who.jsonl, row 3"}

Prompts of `keep` are there to hold the rest of the model in place: their chosen side is the model's own likeliest
answer (greedy, with the same limit), so that the pair says "as you are" where the others say "not like that".

`truncated` marks an answer that was cut by the length limit. Its turn says `"complete": false`, so that encoding does
not end it with a stop token, which the model did not sample: training would push down the very token that it lacks.
Such pairs are kept by default, since a model that rambles would otherwise have none, and counted. Raise
`max_new_tokens`, or leave them out with `keep_truncated=False`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.questions import bare_text_asks_nothing
from posttrain.data.write import JsonlWriter
from posttrain.errors import EmptyDatasetError, RowError
from posttrain.inference.rows import unfit
from posttrain.rollout.engine import Completion, Engine, FinishReason, OnFinish
from posttrain.rollout.text import completion_text
from posttrain.runs.records.logs import DroppedRow
from posttrain.types import Demonstration, Example, Message, RowRef, Task

if TYPE_CHECKING:
    from posttrain.data.encode import Encoder
    from posttrain.sampling import SamplingDistribution

SKIPPED = {
    "same_as_wanted": "the model's answer is the wanted one: nothing to correct",
    "empty": "the model answered nothing",
    "duplicate": "the model gave this answer to this prompt before",
    "special_tokens": "the answer holds the name of a special token: encoded, it would end or begin a turn",
    "bad_character": "the answer holds a NUL character, which no reader of rows takes",
    "truncated": "the answer was cut by the length limit, and `keep_truncated` is off",
    "aborted": "sampling was stopped",
}
"""Why an answer made no pair."""


@dataclass(slots=True)
class CorrectionCounts:
    """CorrectionCounts(prompts=200, answers=400, pairs=371, truncated=12, skipped={"duplicate": 29}).

    `answers` is always `pairs` plus the sum of `skipped`.
    """

    prompts: int = 0
    answers: int = 0
    pairs: int = 0
    truncated: int = 0
    """Pairs whose rejected answer was cut by the length limit."""
    skipped: dict[str, int] = field(default_factory=dict)
    prompts_without_pair: int = 0

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
        return (
            f"{self.pairs:,} pairs from {self.prompts:,} prompts"
            + (f", {self.truncated:,} with a cut rejected answer" if self.truncated else "")
            + (f"; answers left out: {reasons}" if reasons else "")
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A prompt and the answer that it should get."""

    prompt: tuple[Message, ...]
    answer: Message
    row: RowRef
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Answering:
    """How the model's own answers are drawn: Answering(encoder, engine, SamplingDistribution(temperature=0.7))."""

    encoder: Encoder
    engine: Engine
    sampling: SamplingDistribution
    """Its stop ids are replaced by the encoder's."""
    samples_per_prompt: int = 1
    on_finish: OnFinish | None = None
    """See `Engine.generate`."""

    def draw(self, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[Completion]]:
        """The answers to each prompt."""
        sampling = replace(self.sampling, stop_ids=self.encoder.stop_ids)
        return self.engine.generate(
            prompts, sampling, completions_per_prompt=self.samples_per_prompt, on_finish=self.on_finish
        )

    def likeliest(self, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[Completion]]:
        """The greedy answer to each prompt, with the same limit."""
        greedy = replace(
            self.sampling, temperature=0.0, top_k=None, top_p=1.0, min_p=0.0, stop_ids=self.encoder.stop_ids
        )
        return self.engine.generate(prompts, greedy, on_finish=self.on_finish)


def correction_pairs(
    rows: Iterable[Example],
    answering: Answering,
    *,
    keep: Iterable[Example] = (),
    out: Path,
    dropped: Path | None = None,
    keep_truncated: bool = True,
) -> CorrectionCounts:
    """Sample the model's own answers, pair each with the row's, and write the pairs to `out`.

    Args:
        rows: demonstrations (the last answer is the wanted one) or tasks with an answer.
        keep: rows whose prompts are asked and whose own answers, if they have any, do not count.
        dropped: a file for the answers that made no pair, as `DroppedRow`s.

    Raises:
        RowError: a row without a wanted answer.
        EmptyDatasetError: no pair came out, because the model answers as wanted already, or answers nothing.
    """
    encoder = answering.encoder
    wanted = [*map(_wanted, rows), *_likeliest(keep, answering)]
    # All prompts at once: the engine fills its batch from them, whatever row they came from.
    groups = answering.draw([encoder.prompt(row.prompt, row.tools) for row in wanted])
    counts = CorrectionCounts(prompts=len(wanted), answers=len(wanted) * answering.samples_per_prompt)
    with JsonlWriter(out) as pairs, JsonlWriter(dropped) as skips:
        for row, group in zip(wanted, groups, strict=True):
            before = counts.pairs
            for text, completion, reason in _judged(row, group, encoder, keep_truncated):
                if reason is None:
                    pairs.write(_pair(row, text, completion))
                    counts.pairs += 1
                    counts.truncated += completion.finish is FinishReason.LENGTH
                else:
                    skips.write(DroppedRow(str(row.row), reason, SKIPPED[reason], text).to_json())
                    counts.skipped[reason] = counts.skipped.get(reason, 0) + 1
            counts.prompts_without_pair += counts.pairs == before
        if not counts.pairs:
            raise EmptyDatasetError(
                "no pair came out: every answer of the model was left out",
                where=wanted[0].row.source if wanted else None,
                found=str(counts),
                expected="at least one answer that differs from the wanted one",
                remedy="if the model answers as wanted already, there is nothing to correct; else raise the"
                " temperature or max_new_tokens of the sampling",
            )
    return counts


def stand_in_pairs(rows: Iterable[Example], out: Path) -> int:
    """Pairs as `correction_pairs` writes them, with another row's answer where the model's own would stand; returns
    how many. What a check can see of the stage that trains on them before a model has answered anything.

    Raises:
        RowError: a row without a wanted answer.
    """
    wanted = [*map(_wanted, rows)]
    with JsonlWriter(out) as pairs:
        for at, row in enumerate(wanted):
            others = (wanted[(at + step) % len(wanted)].answer.content or "" for step in range(1, len(wanted)))
            text = next((other for other in others if other.strip() != (row.answer.content or "").strip()), "...")
            pair = {
                "prompt": [_turn(message) for message in row.prompt],
                "chosen": [_turn(row.answer)],
                "rejected": [_turn(Message("assistant", text))],
                "row": str(row.row),
            }
            pairs.write({**pair, "tools": [dict(tool) for tool in row.tools]} if row.tools else pair)
    return len(wanted)


def _judged(
    row: Wanted, group: Sequence[Completion], encoder: Encoder, keep_truncated: bool
) -> Iterator[tuple[str, Completion, str | None]]:
    """(text, completion, None or the reason for which it makes no pair)"""
    seen: set[str] = set()
    special = encoder.tokens.special_pattern(encoder.template.stop_texts)
    for completion in group:
        text = completion_text(completion, encoder.tokens.decode)
        reason = None
        if completion.finish is FinishReason.ABORTED:
            reason = "aborted"
        elif not text.strip():
            reason = "empty"
        elif text.strip() == (row.answer.content or "").strip():
            reason = "same_as_wanted"
        elif (bad := unfit(text, special)) is not None:
            reason = bad
        elif completion.finish is FinishReason.LENGTH and not keep_truncated:
            reason = "truncated"
        # A pair twice would weigh twice in the loss, for an accident of sampling.
        elif text in seen:
            reason = "duplicate"
        seen.add(text)
        yield text, completion, reason


def _pair(row: Wanted, text: str, completion: Completion) -> dict[str, Any]:
    pair: dict[str, Any] = {
        "prompt": [_turn(message) for message in row.prompt],
        "chosen": [_turn(row.answer)],
        "rejected": [_turn(Message("assistant", text, complete=completion.finish is not FinishReason.LENGTH))],
        "finish": str(completion.finish),
        "truncated": completion.finish is FinishReason.LENGTH,
        "row": str(row.row),
    }
    if row.tools:
        pair["tools"] = [dict(tool) for tool in row.tools]
    return pair


def _turn(message: Message) -> dict[str, Any]:
    """A message in the layout that `read` knows, without the fields that say nothing."""
    optional = {
        "tool_calls": list(message.tool_calls) or None,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning,
        "complete": None if message.complete else False,
    }
    return {
        "role": message.role,
        "content": message.content,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _likeliest(rows: Iterable[Example], answering: Answering) -> list[Wanted]:
    """The prompts of `rows`, each with the model's greedy answer as the wanted one."""
    asked = [_asked(row) for row in rows]
    if not asked:
        return []
    encoder = answering.encoder
    special = encoder.tokens.special_pattern(encoder.template.stop_texts)
    groups = answering.likeliest([encoder.prompt(prompt, tools) for prompt, tools, _ in asked])
    return [
        Wanted(prompt, Message("assistant", text, complete=answer.finish is not FinishReason.LENGTH), row, tools)
        for (prompt, tools, row), (answer,) in zip(asked, groups, strict=True)
        if (text := completion_text(answer, encoder.tokens.decode)).strip() and unfit(text, special) is None
    ]


def _asked(example: Example) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...], RowRef]:
    if isinstance(example, Demonstration):
        wanted = _wanted(example)
        return wanted.prompt, wanted.tools, wanted.row
    return example.prompt, example.tools, example.row


def _wanted(example: Example) -> Wanted:
    if isinstance(example, Task) and example.answer is not None:
        return Wanted(example.prompt, Message("assistant", example.answer), example.row, example.tools)
    if isinstance(example, Demonstration) and example.is_text:
        raise bare_text_asks_nothing(example)
    if isinstance(example, Demonstration) and example.messages and example.messages[-1].role == "assistant":
        return Wanted(example.messages[:-1], example.messages[-1], example.row, example.tools)
    raise RowError(
        "the row says no wanted answer",
        reason="no_answer",
        where=example.row,
        found=type(example).__name__.lower(),
        expected="a prompt with the answer that the model should give",
        example='{"prompt": "Who are you?", "completion": "I am Pia."}',
        remedy="add the wanted answer to the row",
    )
