"""What a refusal costs: `python -m benchmarks.refusals [--rounds 5]`, in seconds of processor (user + system).

A mistake that is known without torch should be shown within 0.6 s. Each command is a fresh process, as a user starts
it; bytecode is kept in a folder of its own and written by a first round that does not count, as an installation has it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

AIM = 0.6
RECIPE = "schema: 1\nmodel: {model}\nstages:\n- method: sft\n  data: {data}\n{more}"
COMMANDS = {
    "missing recipe": ("run", "nothere.yaml"),
    "typo in a key": ("run", "typo.yaml"),
    "typo in a key of a shipped recipe": ("run", "quickstart", "sft.learnin_rate=1"),
    "unknown model": ("run", "no_model.yaml"),
    "unknown verb": ("trian", "good.yaml"),
    "missing data file": ("run", "no_data.yaml"),
}


def once(command: tuple[str, ...], folder: Path) -> float:
    """Seconds of processor of one refused command.

    Raises:
        SystemExit: it was not refused, so its time says nothing.
    """
    kept = {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = "from posttrain.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=folder,
        env={**os.environ, **kept},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode != 2:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n' * 4)
        recipes = {
            "good": ("embedded", "rows.jsonl", ""),
            "typo": ("embedded", "rows.jsonl", "  learnin_rate: 1\n"),
            "no_model": ("nosuchmodel", "rows.jsonl", ""),
            "no_data": ("embedded", "raws.jsonl", ""),
        }
        for recipe, (model, data, more) in recipes.items():
            (folder / f"{recipe}.yaml").write_text(RECIPE.format(model=model, data=data, more=more))
        print(f"seconds of processor, {rounds} rounds; the aim is {AIM}")
        for title, command in COMMANDS.items():
            once(command, folder)  # writes the bytecode
            times = [once(command, folder) for _ in range(rounds)]
            print(f"{title:36} median {statistics.median(times):.2f}   {min(times):.2f} to {max(times):.2f}")


if __name__ == "__main__":
    main()
