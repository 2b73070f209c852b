"""posttrain plan: what a recipe will take on given cards, before there is one."""

from __future__ import annotations

from typing import Annotated

import typer

from posttrain.cli.options import Overrides, RecipeName

Gpus = Annotated[int | None, typer.Option("--gpus", metavar="N", help="Cards of all machines together (default: 1).")]
Gpu = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="Kind of card: h100-80gb (default), a100-40gb, l40s, ...")
]
Nodes = Annotated[int, typer.Option("--nodes", metavar="N", help="Machines that the cards are spread over.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Plan for this machine's CPU, whose speed is timed.")]
MeshText = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        metavar="SHAPE",
        help="shard=8,replicate=4: how many cards share the weights, and how many such groups. Without it: shared "
        "within a machine.",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens",
        metavar="N",
        help="Tokens of a row (prompt and completion), in place of what encoded rows or max_length say.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")]


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpus: Gpus = None,
    gpu: Gpu = None,
    nodes: Nodes = 1,
    mesh: MeshText = None,
    cpu: Cpu = False,
    tokens: Tokens = None,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe will take: memory of each card, operations, seconds, bytes between the cards.

    No card is needed and no weight is read. Exits with 1 if a stage does not fit; what to change stands beneath it.
    `model=qwen3-8b` plans with a published shape.
    """
    from posttrain.config.find import find_recipe

    path = find_recipe(recipe)  # before torch is loaded
    import json

    from posttrain.cli.planning import show_plan
    from posttrain.cli.terminal import echo_exact, terminal
    from posttrain.planning.plan import plan as make

    found = make(path, overrides=overrides or [], gpus=gpus, gpu=gpu, nodes=nodes, cpu=cpu, mesh=mesh, tokens=tokens)
    if as_json:
        echo_exact(json.dumps(found.record(), indent=1), json=True)
    else:
        show_plan(terminal(), found)
    if not found.fits:
        raise typer.Exit(1)
