"""How a plan is shown: a table of memory for each stage, its step in a few lines, and what to change."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.planning.items import MemoryPlan
from posttrain.planning.plan import Plan, StagePlan

OPERATIONS = {
    "forward": "forward",
    "backward": "backward",
    "recomputed": "computed again",
    "attention": "attention",
    "projection": "vocabulary",
    "value": "value model",
    "reference": "without gradients",
    "rewards": "reward models",
    "prefill": "prompts",
    "decode": "decoding",
}
"""Parts of `Operations`, as they are shown."""


def show_plan(console: Console, plan: Plan) -> None:
    card, mesh = plan.card, plan.mesh
    machines = f" on {mesh.nodes} machines" if mesh.nodes > 1 else ""
    count = f"{mesh.ranks} x {card.name}" if mesh.ranks > 1 else card.name
    _say(console, f"{plan.model}: shape from {plan.shape}")
    _say(console, f"{count}{machines}, mesh {mesh}; {card.memory / 1e9:,.0f} GB each ({card.source})")
    for stage in plan.stages:
        _stage(console, plan, stage)
    for skipped in plan.skipped:
        _say(console, f"\n{skipped}: trains nothing, and is not planned")
    _say(console, f"\nseconds are estimated: {plan.efficiency}")


def _stage(console: Console, plan: Plan, stage: StagePlan) -> None:
    trained = f"{stage.trained:,} of {stage.parameters:,} parameters train, {stage.precision}"
    _say(console, f"\n{stage.name} ({stage.method}): {trained}", "bold")
    _say(console, f"  rows       {stage.longest:,} tokens at most; from {stage.rows}")
    memory = stage.memory
    if memory.sampling is not None:
        console.print(_memory_table("while it samples, GB of a card", memory.sampling))
        console.print(_memory_table("while it trains, GB of a card", memory.training))
    else:
        console.print(_memory_table("GB of a card", memory.training))
    total, have = memory.fullest.total_bytes / 1e9, plan.card.memory / 1e9
    verdict = "fits" if stage.fits else "does not fit"
    _say(console, f"  {verdict}: {total:,.1f} of {have:,.0f} GB", "" if stage.fits else "bold red")
    for remedy in stage.remedies:
        _say(console, f"    {remedy.change}  -> {remedy.total_bytes / 1e9:,.1f} GB, tried ({remedy.cost})")
    if not stage.fits and not stage.remedies:
        _say(console, "    nothing that was tried makes it fit: take a smaller model")
    _step(console, stage)
    for note in stage.notes:
        _say(console, f"  note       {note}")


def _memory_table(title: str, memory: MemoryPlan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    for name, side in ((f"  {title}", "left"), ("GB", "right"), ("", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for item in sorted(memory.items, key=lambda item: -item.bytes):
        if item.bytes:
            table.add_row(f"  {item.name}", f"{item.bytes / 1e9:,.2f}", Text(item.detail))
    table.add_row("  together", f"{memory.total_bytes / 1e9:,.2f}", "", style="bold")
    return table


def _step(console: Console, stage: StagePlan) -> None:
    memory, operations, seconds, traffic = stage.memory, stage.operations, stage.seconds, stage.traffic
    _say(
        console,
        f"  step       {stage.tokens:,.0f} tokens in micro-batches of {memory.microbatch:,}, "
        f"{memory.microbatches:,} on a rank",
    )
    # A part that the stage does not have is left out.
    there = [(said, size) for name, said in OPERATIONS.items() if (size := operations.part(name))]
    parts = ", ".join(f"{said} {size / 1e12:,.1f}" for said, size in there)
    _say(console, f"  operations {operations.total / 1e12:,.1f} * 10^12: {parts}")
    sampling = f", {seconds.sampling:,.2f} of them sampling" if seconds.sampling else ""
    _say(console, f"  seconds    {seconds.total:,.2f} a step{sampling}: {stage.tokens_per_second:,.0f} tokens/s")
    if traffic.total:
        said = {
            "gathered weights": traffic.gathered,
            "gradients": traffic.reduced,
            "replicas' gradients": traffic.replicas,
            "weight sync": traffic.weight_sync,
        }
        shown = ", ".join(f"{name} {size / 1e9:,.2f}" for name, size in said.items() if size)
        _say(console, f"  traffic    {traffic.total / 1e9:,.2f} GB to each rank a step: {shown}")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
