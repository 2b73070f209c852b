"""A GRPO step against TRL's: sampling, rewards, reference and update, the same prompts, model and machine, in turns.

    python -m benchmarks.grpo --peer .venv-peer/bin/python [--case short] [--rounds 1] [--steps 2]
    python -m benchmarks.grpo --groups          # ours alone: what a step costs as groups grow

Both sides sample their own completions, so these differ in length; the table gives the sampled tokens of both. The
first step of each run is not counted where there is another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import text
from benchmarks.grpo_settings import QUESTIONS
from benchmarks.record import GIGABYTE, Record, run_module

PROMPT_TOKENS = 600


@dataclass(frozen=True, slots=True)
class Case:
    """Case("short", prompts=8, completions=8, speed=1.5)."""

    name: str
    prompts: int
    completions: int
    speed: float
    """Aim: the peer's seconds per step over ours, at least."""
    micro: int = 16
    """Completions of one micro-batch of the peer."""
    memory: float = 0.5
    """Aim: our peak memory over the peer's, at most."""

    def arguments(self, steps: int, new_tokens: int) -> list[str]:
        given = {"prompts": self.prompts, "completions": self.completions, "micro": self.micro}
        given |= {"steps": steps, "new-tokens": new_tokens}
        return [part for name, value in given.items() for part in (f"--{name}", str(value))]


CASES = (Case("short", 8, 8, speed=1.5), Case("long", 2, 8, speed=2.5, micro=8))
GROUPS = (2, 4, 8, 16)


def write_prompts(path: Path, case: Case, folder: str) -> None:
    """Questions of a line each, or English of `PROMPT_TOKENS` tokens."""
    prompts = list(QUESTIONS) if case.name == "short" else long_prompts(folder, case.prompts)
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")


def long_prompts(folder: str, count: int) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(" ".join(text.words()), add_special_tokens=False)["input_ids"]
    return [tokenizer.decode(ids[PROMPT_TOKENS * i : PROMPT_TOKENS * (i + 1)]) for i in range(count)]


def row(case: Case, peer: Sequence[Record], ours: Sequence[Record]) -> str:
    theirs, mine = (statistics.median(record.seconds for record in side) for side in (peer, ours))
    peaks = [max(record.peak_bytes for record in side) / GIGABYTE for side in (peer, ours)]
    tokens = [statistics.mean(record.tokens[-1] for record in side) for side in (peer, ours)]
    return (
        f"| {case.name}: {case.prompts} x {case.completions} | {tokens[0]:,.0f} | {tokens[1]:,.0f} | {theirs:.1f} | "
        f"{mine:.1f} | {theirs / mine:.2f} | {case.speed} | {peaks[0]:.2f} | {peaks[1]:.2f} | "
        f"{peaks[1] / peaks[0]:.2f} | {case.memory} |"
    )


HEADER = (
    "| prompts x completions | tokens TRL | tokens posttrain | s TRL | s posttrain | faster | aim | GB TRL | "
    "GB posttrain | of it | aim |\n|" + "---|" * 11
)


def against_peer(peer: str, folder: str, cases: Sequence[Case], rounds: int, steps: int, new_tokens: int) -> None:
    print(HEADER, flush=True)
    for case in cases:
        records: dict[str, list[Record]] = {"peer": [], "ours": []}
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(scratch) / "prompts.jsonl"
            write_prompts(data, case, folder)
            arguments = ["--model", folder, "--data", str(data), *case.arguments(steps, new_tokens)]
            for _ in range(rounds):
                for side, python in (("peer", peer), ("ours", sys.executable)):
                    record = Record.parse(run_module(python, f"benchmarks.{side}_grpo", arguments))
                    records[side].append(record)
                    seconds = " ".join(f"{one:.1f}" for one in record.step_seconds)
                    said = f"{seconds} s; {record.peak_bytes / GIGABYTE:.2f} GB; tokens {record.tokens}"
                    print(f"{case.name} {record.who}: {said}", file=sys.stderr, flush=True)
        print(row(case, records["peer"], records["ours"]), flush=True)


def by_group_size(folder: str, steps: int, new_tokens: int) -> None:
    """One prompt of `PROMPT_TOKENS` tokens and ever more completions: the prompt's share is paid once."""
    print("| completions of a 600-token prompt | seconds a step | seconds a completion |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "prompts.jsonl"
        write_prompts(data, Case("long", 1, 1, speed=1.0), folder)
        for size in GROUPS:
            case = replace(CASES[1], prompts=1, completions=size)
            arguments = ["--model", folder, "--data", str(data), *case.arguments(steps, new_tokens)]
            seconds = Record.parse(run_module(sys.executable, "benchmarks.ours_grpo", arguments)).seconds
            print(f"| {size} | {seconds:.1f} | {seconds / size:.2f} |", flush=True)


def main() -> None:
    from posttrain.models import resolve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of the environment that has TRL")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="catalogue name or folder")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="only this one")
    parser.add_argument("--groups", action="store_true", help="ours alone, by the size of the group")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    given = parser.parse_args()
    if given.peer is None and not given.groups:
        parser.error("name the environment that has TRL: --peer PYTHON; or ask for --groups, which needs none")
    folder = str(resolve(given.model).folder.resolve())
    if given.peer is not None:
        cases = [case for case in CASES if given.case in (None, case.name)]
        against_peer(given.peer, folder, cases, given.rounds, given.steps, given.new_tokens)
    if given.groups:
        by_group_size(folder, given.steps, given.new_tokens)


if __name__ == "__main__":
    main()
