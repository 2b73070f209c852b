"""The verbs, and the one place where they are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from posttrain.cli.audit import audit
from posttrain.cli.boundary import guarded
from posttrain.cli.check import check
from posttrain.cli.compare import compare
from posttrain.cli.completion import completion
from posttrain.cli.convert import convert
from posttrain.cli.evaluate import evaluate
from posttrain.cli.export import export
from posttrain.cli.generate import generate
from posttrain.cli.launch import launch
from posttrain.cli.merge import merge
from posttrain.cli.models import models
from posttrain.cli.new import new
from posttrain.cli.plan import plan
from posttrain.cli.push import push
from posttrain.cli.quickstart import quickstart
from posttrain.cli.rate import rate
from posttrain.cli.report import report
from posttrain.cli.run import run
from posttrain.cli.samples import samples
from posttrain.cli.score import score
from posttrain.cli.select import select
from posttrain.cli.serve import serve
from posttrain.cli.solve import solve
from posttrain.cli.summary import summary
from posttrain.cli.sweep import sweep
from posttrain.cli.terminal import echo
from posttrain.cli.usage import Verb, Verbs

VERBS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "new": new,
    "convert": convert,
    "run": run,
    "sweep": sweep,
    "check": check,
    "plan": plan,
    "solve": solve,
    "eval": evaluate,
    "audit": audit,
    "select": select,
    "generate": generate,
    "compare": compare,
    "rate": rate,
    "score": score,
    "serve": serve,
    "merge": merge,
    "export": export,
    "push": push,
    "samples": samples,
    "report": report,
    "summary": summary,
    "completion": completion,
}

app = typer.Typer(
    name="posttrain",
    cls=Verbs,
    help="Post-training of language models: from raw rows to a reported model.",
    epilog="Begin with `posttrain quickstart`. Recipes: docs/recipes.md. Commands: docs/cli.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # errors are shown by `guarded`
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        echo(f"posttrain {version('posttrain')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Post-training of language models: from raw rows to a reported model."""


for name, verb in VERBS.items():
    app.command(name, cls=Verb)(guarded(verb))
app.add_typer(launch, name="launch")
app.add_typer(models, name="models")
