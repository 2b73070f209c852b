"""posttrain quickstart: the recipe that comes with the package, on the model that comes with it."""

from __future__ import annotations

from posttrain.cli.options import Fresh, Out
from posttrain.cli.run import execute


def quickstart(out: Out = None, fresh: Fresh = False) -> None:
    """Train the small model that comes with posttrain, and see what each stage did to it. No network is needed."""
    execute("quickstart", [], out, fresh)
