"""Answers to a file of prompts, as JSONL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.cli.outputs import echo_json
from posttrain.cli.progress import progress_on
from posttrain.cli.speaker import Speaker
from posttrain.cli.terminal import terminal
from posttrain.data.write import write_jsonl
from posttrain.runs.progress import Phase
from posttrain.types import Message


def answer_file(speaker: Speaker, prompts: Sequence[Sequence[Message]], out: Path | None, samples: int) -> None:
    """One line per answer: {"prompt", "completion", "tokens", "finish"}; the file appears when it is whole."""
    with (
        progress_on(terminal(stderr=True)) as progress,
        progress.phase("answering", total=len(prompts), unit="prompts") as phase,
    ):
        rows = _rows(speaker, prompts, samples, phase)
        if out is not None:
            count = write_jsonl(out, rows)
            progress.say(f"{count:,} answers in {out}")
        else:
            for row in rows:
                echo_json(row)


def _rows(
    speaker: Speaker, prompts: Sequence[Sequence[Message]], samples: int, phase: Phase
) -> Iterator[dict[str, Any]]:
    for prompt, answers in zip(prompts, speaker.answers(prompts, samples), strict=True):
        phase.advance(1, tokens=sum(answer.tokens for answer in answers))
        for answer in answers:
            yield {
                "prompt": written(prompt),
                "completion": answer.text,
                "tokens": answer.tokens,
                "finish": answer.finish,
            }


def written(prompt: Sequence[Message]) -> Any:
    """Plain text where it is one question; the messages where it is a conversation. Training reads both."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return [{"role": message.role, "content": message.content} for message in prompt]
