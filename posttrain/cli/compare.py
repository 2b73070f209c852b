"""posttrain compare: two models, the same prompts, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.options import Device, Longest, ModelCode, Seed, System, Temperature, Template

First = Annotated[str, typer.Argument(metavar="A", help="The first model: a catalogue name, a folder or a hub id.")]
Second = Annotated[str, typer.Argument(metavar="B", help="The second.")]


def compare(
    a: First,
    b: Second,
    prompts: Annotated[str, typer.Option("--prompts", metavar="FILE", help="The prompts that both answer.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the answers here as JSONL, too.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Only the first so many prompts.")] = 20,
    system: System = None,
    template: Template = "auto",
    temperature: Temperature = 0.0,
    max_new_tokens: Longest = 128,
    seed: Seed = 0,
    device: Device = "auto",
    model_code: ModelCode = "refuse",
) -> None:
    """Show what two models answer to the same prompts; at temperature 0, so that only the models differ."""
    from posttrain.cli.outputs import check_out
    from posttrain.models import require_known, resolve

    check_out(out)
    for name in (a, b):  # before torch is loaded, which the next lines do
        require_known(name)
    from posttrain.cli.progress import progress_on
    from posttrain.cli.speaker import Speaker, read_prompts
    from posttrain.cli.tables import side_by_side
    from posttrain.cli.terminal import terminal
    from posttrain.cli.unused import note_unused
    from posttrain.data import write_jsonl
    from posttrain.data.questions import questions
    from posttrain.models.reward.folders import require_policy

    if temperature == 0:
        note_unused("at temperature 0 the likeliest token is taken", seed=seed != 0)
    asked = read_prompts(prompts)[:limit]
    conversations, tools = [task.prompt for task in asked], [task.tools for task in asked]
    columns: list[list[str]] = []
    with progress_on(terminal(stderr=True)) as progress:
        for name in (a, b):  # before the first one answers for a long time
            require_policy(resolve(name, say=progress.say))
        for name in (a, b):
            speaker = Speaker(
                name,
                system=system,
                template=template,
                device=device,
                model_code=model_code,
                say=progress.say,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                seed=seed,
            )
            with progress.phase(f"{name} answers", total=len(asked), unit="prompts") as phase:
                columns.append(
                    [answers[0].text for answers in phase.track(speaker.answers(conversations, tools=tools))]
                )
            del speaker  # two models at a time need not fit
    texts = [question.text for question in questions(asked)]
    terminal().print(side_by_side(texts, [("A", a), ("B", b)], columns))
    if out is not None:
        rows = zip(texts, *columns, strict=True)
        write_jsonl(out, ({"prompt": prompt, "a": first, "b": second} for prompt, first, second in rows))
