"""A process that makes one run of a sweep: `python -m posttrain.sweeps.worker runs/mine-sweep/.jobs/NAME.json`.

It is told by a file and answers by one (`runner.Processes`), since what it says on its output is its log.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from posttrain.config.load import parse_recipe
from posttrain.runs.escapes import escaping
from posttrain.runs.files import write_json
from posttrain.runs.progress import PlainProgress
from posttrain.sweeps.runner import Job, run_job
from posttrain.training.interrupts import Stopped, ending_signals
from posttrain.training.loop import Interrupted
from posttrain.training.pausing import Pause


def main(path: str) -> int:
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    recipe = parse_recipe(told["recipe"], source=told["run"], name=told["run"])
    pause = None if told["pause"] is None else Pause(**told["pause"])
    job = Job(told["run"], recipe, pause, told["by"])
    try:
        with ending_signals(), PlainProgress(escaping(sys.stderr)) as progress:
            outcome = run_job(job, Path(told["sweep"]), told["date"], progress)
    except Interrupted as stop:
        return 128 + stop.number
    except KeyboardInterrupt as stop:
        return stop.code if isinstance(stop, Stopped) else 130
    write_json(Path(path).with_suffix(".outcome.json"), asdict(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
