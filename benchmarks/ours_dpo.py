"""Our DPO step on the peer's rows and ids: live reference, all weights trained, fp32.

python -m benchmarks.ours_dpo --model FOLDER --data rows.jsonl
"""

from __future__ import annotations

from benchmarks import ours
from benchmarks.record import read_rows
from benchmarks.settings import BETA
from benchmarks.trees import pair_trees
from posttrain.models import Policy, load
from posttrain.models.reference import LiveReference
from posttrain.training.objectives import algorithm


def main() -> None:
    given = ours.arguments(batch=4, steps=6)
    loaded = load(given.model)
    policy = Policy(loaded.model)
    ours.train(
        policy,
        LiveReference(policy),
        algorithm("dpo", {"beta": BETA}),
        pair_trees(read_rows(given.data), loaded.tokenizer, given.max_length),
        batch=given.batch,
        steps=given.steps,
        tokens_per_microbatch=given.tokens_per_microbatch,
    ).emit()


if __name__ == "__main__":
    main()
