"""What must stay flat: cost per token as a step grows, and memory as the vocabulary grows.

    python -m benchmarks.scaling --model FOLDER

1. Seconds per 1,000 tokens of a DPO step (live reference, all weights) with 1k to 16k tokens in the step.
2. Peak memory of an SFT step of a small random Llama with 8k to 256k ids. Its weights, gradients and moments grow with
   the vocabulary whatever is done, so the column to read is what the step needs beyond them. Beside it: what the
   step's logits would take if they were kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import ours, text
from benchmarks.record import peak_rss, run_module
from benchmarks.settings import BETA
from benchmarks.trees import pair_trees
from posttrain.data.tree_key import make_tree
from posttrain.models import Policy, load
from posttrain.models.reference import LiveReference
from posttrain.training.objectives import algorithm
from posttrain.types import RowRef, TokenTree

STEP_TOKENS = (1024, 2048, 4096, 8192, 16384)
VOCABULARIES = (8_192, 32_768, 131_072, 262_144)
PROMPT, RESPONSE, ROWS = 128, 256, 8
"""Of the vocabulary's measurement: 2,048 trained tokens in a step."""
HIDDEN = 64


# ---------------------------------------------------------------- tokens per step


def cost_per_token(model: str, step_tokens: Sequence[int] = STEP_TOKENS) -> Iterator[tuple[int, float]]:
    """(tokens, seconds per 1,000 tokens) of one step of each size, in one process, after a step that warms up."""
    loaded = load(model)
    policy = Policy(loaded.model)
    reference = LiveReference(policy)
    pool = pair_trees(text.rows(64), loaded.tokenizer, max_length=1024)
    for size in (step_tokens[0], *step_tokens):
        trees = fill(pool, size)
        record = ours.train(
            policy, reference, algorithm("dpo", {"beta": BETA}), trees, batch=len(trees), steps=1,
            tokens_per_microbatch=None,
        )  # fmt: skip
        yield record.tokens[0], 1000 * record.seconds / record.tokens[0]


def fill(pool: Sequence[TokenTree], tokens: int) -> list[TokenTree]:
    """Trees from `pool`, around and around, until they hold `tokens` tokens."""
    taken: list[TokenTree] = []
    size = 0
    for tree in cycle(pool):
        if size >= tokens:
            return taken
        taken.append(tree)
        size += tree.num_tokens
    raise ValueError("the pool is empty")


# ---------------------------------------------------------------- vocabulary


def step_memory(vocabulary: int) -> dict[str, int]:
    """Bytes of one SFT step; to be called in a process of its own, because a peak never goes down.

    `rest` is the peak over what the process had loaded, less weights, gradients and moments: activations, the logits
    buffer, and what the allocator keeps.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    before = peak_rss()
    policy = Policy(LlamaForCausalLM(config))
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    ours.train(
        policy, None, algorithm("sft"), _random_trees(vocabulary), batch=ROWS, steps=2, tokens_per_microbatch=None
    )
    kept = 4 * weights
    trained = ROWS * RESPONSE
    return {
        "vocabulary": vocabulary,
        "weights_gradients_moments": kept,
        "rest": peak_rss() - before - kept,
        "full_logits": trained * vocabulary * 4,
    }


def _random_trees(vocabulary: int) -> list[TokenTree]:
    rng = np.random.default_rng(0)
    trees = []
    for row in range(2 * ROWS):
        prompt, response = rng.integers(0, vocabulary, PROMPT), rng.integers(0, vocabulary, RESPONSE)
        trees.append(make_tree(prompt.tolist(), [(response.tolist(), [True] * RESPONSE)], RowRef("random", row + 1)))
    return trees


def memory_by_vocabulary(vocabularies: Sequence[int] = VOCABULARIES) -> Iterator[dict[str, int]]:
    for vocabulary in vocabularies:
        yield json.loads(run_module(sys.executable, "benchmarks.scaling", ["--vocabulary", str(vocabulary)]))


def main() -> None:
    parser = argparse.ArgumentParser()
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="print both tables")
    which.add_argument("--vocabulary", type=int, help="measure one vocabulary in this process")
    given = parser.parse_args()
    if given.vocabulary:
        print(json.dumps(step_memory(given.vocabulary)))
        return
    print(f"{'tokens in a step':>17} {'s per 1,000 tokens':>19}")
    for tokens, seconds in cost_per_token(given.model):
        print(f"{tokens:17,} {seconds:19.2f}", flush=True)
    print(f"\n{'vocabulary':>10} {'weights, gradients, moments':>28} {'all else':>10} {'full logits would be':>21}")
    for row in memory_by_vocabulary():
        kept, rest, logits = (row[name] / 1e6 for name in ("weights_gradients_moments", "rest", "full_logits"))
        print(f"{row['vocabulary']:10,} {kept:25,.0f} MB {rest:7,.0f} MB {logits:18,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
