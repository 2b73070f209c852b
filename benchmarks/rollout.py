"""Useful tokens a second: the native engine against `transformers` `generate`, side by side.

    python -m benchmarks.rollout --model smollm2-135m-instruct [--prompts 8] [--completions 8] [--rounds 3]

Both sample 64 completions at temperature 1 from the same weights and prompts, once with lengths as mixed as answers
are (log-normal) and once all equally long. Each completion ends at a length that is drawn beforehand, the same on
both sides, so that both do the same work whatever they sample. Useful tokens are those of the completions; what a
finished row computes while it waits for the others is not useful.

The sides take turns within one process; medians are compared. The engine gives the log-prob of each token too;
`generate` is not asked for them.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from benchmarks import text
from posttrain.data.encode import Encoder
from posttrain.models import load
from posttrain.models.folders.quiet import quiet
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.rows import Row
from posttrain.sampling import SamplingDistribution
from posttrain.types import Message

MEDIAN, SPREAD = 64, 0.7
SHORTEST, LONGEST = 8, 256
UNIFORM = 96
AIMS = {"mixed": 1.3, "uniform": 1.0}
Lengths = list[list[int]]
"""Of each completion: [prompt][completion]."""


@dataclass(frozen=True, slots=True)
class Result:
    """Result("mixed", tokens=5210, ours=(30.1, 29.8, 30.3), theirs=(52.0, 51.7, 52.4))."""

    lengths: str
    tokens: int
    ours: tuple[float, ...]
    """Seconds of each round."""
    theirs: tuple[float, ...]

    @property
    def faster(self) -> float:
        return statistics.median(self.theirs) / statistics.median(self.ours)

    def __str__(self) -> str:
        rates = [self.tokens / statistics.median(seconds) for seconds in (self.theirs, self.ours)]
        return (
            f"| {self.lengths} | {self.tokens:,} | {rates[0]:,.0f} | {rates[1]:,.0f} | {self.faster:.2f} | "
            f"{AIMS[self.lengths]} |"
        )


HEADER = "| lengths | useful tokens | tokens/s generate | tokens/s native | faster | aim |\n|---|---|---|---|---|---|"


class Scripted(NativeEngine):
    """The native engine, each of whose completions ends at a given length."""

    lengths: Lengths

    def _rows(
        self, prompts: Sequence[tuple[int, ...]], sampling: SamplingDistribution, completions_per_prompt: int
    ) -> list[Row]:
        rows = super()._rows(prompts, sampling, completions_per_prompt)
        for row in rows:
            row.limit = self.lengths[row.prompt_index][row.completion_index]
        return rows


class EndsAt(LogitsProcessor):
    """The same for `generate`: row r's eos comes as token lengths[r], and never before."""

    def __init__(self, lengths: Sequence[int], prompt: int, eos: int):
        self._last = torch.tensor(lengths) - 1
        self._prompt = prompt
        self._eos = eos

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self._eos] = float("-inf")
        ended = (self._last <= input_ids.shape[1] - self._prompt).nonzero()[:, 0]
        if len(ended):
            scores[ended] = float("-inf")
            scores[ended, self._eos] = 0.0
        return scores


def mixed_lengths(prompts: int, completions: int, longest: int = LONGEST, seed: int = 0) -> Lengths:
    rng = random.Random(seed)

    def one() -> int:
        return min(max(round(MEDIAN * rng.lognormvariate(0.0, SPREAD)), SHORTEST), longest)

    return [[one() for _ in range(completions)] for _ in range(prompts)]


def ours(engine: Scripted, prompts: Sequence[Sequence[int]], lengths: Lengths, seed: int) -> int:
    """Sample; how many tokens came."""
    engine.lengths = lengths
    longest = max(map(max, lengths))
    sampling = SamplingDistribution(max_new_tokens=longest, seed=seed)
    groups = engine.generate(prompts, sampling, completions_per_prompt=len(lengths[0]))
    return sum(len(completion.ids) for group in groups for completion in group)


def theirs(model: Any, prompts: Sequence[Sequence[int]], lengths: Lengths, seed: int) -> int:
    """Prompts padded on the left in one batch, as `generate` wants them; how many tokens came, up to each row's end."""
    longest = max(map(len, prompts))
    flat = [length for group in lengths for length in group]
    eos = pad = 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(flat),
        num_return_sequences=len(lengths[0]),
        eos_token_id=eos,
        pad_token_id=pad,
    )
    torch.manual_seed(seed)
    processors = LogitsProcessorList([EndsAt(flat, longest, eos)])
    with torch.no_grad(), quiet():
        rows = model.generate(ids, attention_mask=mask, generation_config=config, logits_processor=processors)
    answers = rows[:, longest:]
    # A row is useful up to its first eos; the padding after it has the same id.
    return int(((answers == eos).cumsum(dim=1) - (answers == eos).int() == 0).sum())


def prompts_of(encoder: Encoder, count: int) -> list[list[int]]:
    return [list(encoder.prompt([Message("user", row["prompt"])])) for row in text.rows(count)]


def measure(
    engine: Scripted, prompts: Sequence[Sequence[int]], lengths: dict[str, Lengths], rounds: int
) -> list[Result]:
    """Rounds of both sides in turns, after one short round that warms both up."""
    short = [[SHORTEST] * len(group) for group in next(iter(lengths.values()))]
    ours(engine, prompts, short, 0)
    theirs(engine.model, prompts, short, 0)
    return [_compare(name, engine, prompts, wanted, rounds) for name, wanted in lengths.items()]


def _compare(name: str, engine: Scripted, prompts: Sequence[Sequence[int]], lengths: Lengths, rounds: int) -> Result:
    useful = sum(map(sum, lengths))
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        sides: list[tuple[str, Callable[[], int]]] = [
            ("ours", partial(ours, engine, prompts, lengths, number)),
            ("theirs", partial(theirs, engine.model, prompts, lengths, number)),
        ]
        for side, run in sides if number % 2 == 0 else sides[::-1]:
            began = time.perf_counter()
            tokens = run()
            spent[side].append(time.perf_counter() - began)
            if tokens != useful:
                raise AssertionError(f"{side} sampled {tokens} tokens, {useful} were wanted")
    return Result(name, useful, tuple(spent["ours"]), tuple(spent["theirs"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="catalogue name, folder or hub id")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--completions", type=int, default=8, help="of each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=int, default=LONGEST)
    given = parser.parse_args()
    loaded = load(given.model)
    prompts = prompts_of(Encoder(loaded.tokenizer), given.prompts)
    shape = given.prompts, given.completions
    lengths = {
        "mixed": mixed_lengths(*shape, longest=given.longest),
        "uniform": [[min(UNIFORM, given.longest)] * shape[1] for _ in range(shape[0])],
    }
    results = measure(Scripted(loaded.model), prompts, lengths, given.rounds)
    print(HEADER)
    for result in results:
        print(result, flush=True)
    print(json.dumps([asdict(result) for result in results]))


if __name__ == "__main__":
    main()
