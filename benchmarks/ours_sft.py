"""Our SFT step on the peer's rows and ids: all weights trained, fp32.

python -m benchmarks.ours_sft --model FOLDER --data rows.jsonl
"""

from __future__ import annotations

from benchmarks import ours
from benchmarks.record import read_rows
from benchmarks.trees import demonstration_trees
from posttrain.models import Policy, load
from posttrain.training.objectives import algorithm


def main() -> None:
    given = ours.arguments(batch=8, steps=6)
    loaded = load(given.model)
    ours.train(
        Policy(loaded.model),
        None,
        algorithm("sft"),
        demonstration_trees(read_rows(given.data), loaded.tokenizer, given.max_length),
        batch=given.batch,
        steps=given.steps,
        tokens_per_microbatch=given.tokens_per_microbatch,
    ).emit()


if __name__ == "__main__":
    main()
