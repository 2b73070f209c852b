"""Answers to a file of prompts, as JSONL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.auditing.fix import turns_of_row
from posttrain.cli.outputs import echo_json
from posttrain.cli.progress import progress_on
from posttrain.cli.speaker import Speaker
from posttrain.cli.terminal import terminal
from posttrain.data.write import write_jsonl
from posttrain.runs.progress import Phase
from posttrain.types import Task


def answer_file(speaker: Speaker, tasks: Sequence[Task], out: Path | None, samples: int) -> None:
    """One line per answer: {"prompt", "tools", "completion", "tokens", "finish"}; the file appears when it is whole."""
    with (
        progress_on(terminal(stderr=True)) as progress,
        progress.phase("answering", total=len(tasks), unit="prompts") as phase,
    ):
        rows = _rows(speaker, tasks, samples, phase)
        if out is not None:
            count = write_jsonl(out, rows)
            progress.say(f"{count:,} answers in {out}")
        else:
            for row in rows:
                echo_json(row)


def _rows(speaker: Speaker, tasks: Sequence[Task], samples: int, phase: Phase) -> Iterator[dict[str, Any]]:
    prompts, tools = [task.prompt for task in tasks], [task.tools for task in tasks]
    for task, answers in zip(tasks, speaker.answers(prompts, samples, tools=tools), strict=True):
        phase.advance(1, tokens=sum(answer.tokens for answer in answers))
        for answer in answers:
            yield {
                **written(task),
                "completion": answer.text,
                "tokens": answer.tokens,
                "finish": answer.finish,
            }


def written(task: Task) -> dict[str, Any]:
    """{"prompt": ...}: plain text where it is one question, the messages where it is a conversation; and its `tools`.

    Training reads both. Without its tools and calls a row would train on another prompt than was answered.
    """
    prompt = task.prompt
    plain = len(prompt) == 1 and prompt[0].role == "user"
    tools = {"tools": list(task.tools)} if task.tools else {}
    return {"prompt": prompt[0].content if plain else turns_of_row(prompt)} | tools
