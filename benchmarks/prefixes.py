"""What kept prefixes save in search: the native engine with and without `prefix_tokens`, in turns.

    python -m benchmarks.prefixes --model embedded [--prompts 8] [--steps 6] [--rounds 3]

A load like that of a beam search over steps: for each of 8 prompts 4 beams, each continued 4 times by 16 tokens, of
which the 4 likeliest are the next beams; 6 steps. Both sides get the same prompts and sample the same ids, which is
held; without prefixes each step computes its prompts from the first token. Seconds of processor are counted beside
those of the clock: on a machine that others use, the clock's are theirs too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.rollout import prompts_of
from posttrain.data.encode import Encoder
from posttrain.models import load
from posttrain.rollout.native import NativeEngine
from posttrain.sampling import SamplingDistribution

BEAMS, CONTINUATIONS, STEP_TOKENS = 4, 4, 16
PREFIX_TOKENS = 32_768
SIDES = {"without": 0, "with": PREFIX_TOKENS}

Beam = tuple[tuple[int, ...], float]
"""(ids with the prompt, sum of log-probs)."""


@dataclass(frozen=True, slots=True)
class Search:
    """What one search came to: Search(seconds=12.1, processor=11.8, prefilled=31_000, reused=0, decoded=12_288)."""

    seconds: float
    processor: float
    """Seconds of all threads."""
    prefilled: int
    """Prompt tokens that were computed."""
    reused: int
    decoded: int

    @property
    def computed(self) -> int:
        return self.prefilled + self.decoded


def search(engine: NativeEngine, prompts: Sequence[Sequence[int]], steps: int) -> tuple[Search, list[list[Beam]]]:
    """One beam search over all prompts, and the beams that it ends with."""
    # Continuations of one prompt number from 0 on, so the first step samples as many as a later one of all beams.
    sampling = SamplingDistribution(max_new_tokens=STEP_TOKENS, seed=5)
    beams: list[list[Beam]] = [[(tuple(prompt), 0.0)] for prompt in prompts]
    prefilled = reused = decoded = 0
    began, began_processor = time.perf_counter(), time.process_time()
    for step in range(steps):
        asked = [beam for group in beams for beam in group]
        count = CONTINUATIONS if step else BEAMS * CONTINUATIONS
        groups = iter(engine.generate([ids for ids, _ in asked], sampling, completions_per_prompt=count))
        prefilled, reused = prefilled + engine.stats.prefilled, reused + engine.stats.reused
        decoded += engine.stats.decoded
        for index, group in enumerate(beams):
            grown = [
                ((*ids, *completion.ids), score + sum(completion.logprobs))
                for ids, score in group
                for completion in next(groups)
            ]
            beams[index] = sorted(grown, key=lambda beam: beam[1], reverse=True)[:BEAMS]
    seconds, processor = time.perf_counter() - began, time.process_time() - began_processor
    return Search(seconds, processor, prefilled, reused, decoded), beams


def measure(model: str, prompts: int, steps: int, rounds: int) -> dict[str, list[Search]]:
    loaded = load(model)
    ids = prompts_of(Encoder(loaded.tokenizer), prompts)
    for tokens in SIDES.values():  # warm, and the engine's proof of its cache is not counted
        search(NativeEngine(loaded.model, prefix_tokens=tokens), ids[:1], 1)
    spent: dict[str, list[Search]] = {side: [] for side in SIDES}
    for number in range(rounds):
        ends = []
        for side in list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]:
            # An engine of its own for each round: what an earlier search has left would make this one cheaper.
            engine = NativeEngine(loaded.model, prefix_tokens=SIDES[side])
            result, beams = search(engine, ids, steps)
            spent[side].append(result)
            print(f"round {number}, {side}: {result.seconds:.1f} s, {result.processor:.1f} of processor", flush=True)
            ends.append([[beam for beam, _ in group] for group in beams])
        if ends[0] != ends[1]:
            raise AssertionError("the two sides sampled different tokens")
    return spent


def table(model: str, spent: dict[str, list[Search]]) -> str:
    lines = [
        "| model | prefixes | prompt tokens computed | reused | sampled | computed | s of processor | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, searches in spent.items():
        one = searches[0]
        counts = one.prefilled, one.reused, one.decoded, one.computed
        seconds = statistics.median(search.seconds for search in searches)
        processor = statistics.median(search.processor for search in searches)
        cells = [model, side, *(f"{count:,}" for count in counts), f"{processor:.1f}", f"{seconds:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="catalogue name, folder or hub id")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    spent = measure(given.model, given.prompts, given.steps, given.rounds)
    print(table(given.model, spent))
    print(json.dumps({side: [asdict(search) for search in searches] for side, searches in spent.items()}))


if __name__ == "__main__":
    main()
