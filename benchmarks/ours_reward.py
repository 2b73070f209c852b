"""Our reward-model step on the peer's rows and ids: Bradley-Terry, all weights trained, fp32.

python -m benchmarks.ours_reward --model REWARD_FOLDER --data rows.jsonl
"""

from __future__ import annotations

from benchmarks import ours
from benchmarks.record import read_rows
from benchmarks.trees import whole_pair_trees
from posttrain.models.reward.folders import load_reward_folder
from posttrain.models.tree.heads import ScoreModel
from posttrain.training.objectives import reward_algorithm


def main() -> None:
    given = ours.arguments(batch=4, steps=6)
    loaded = load_reward_folder(given.model).loaded
    ours.train(
        ScoreModel(loaded.model),
        None,
        reward_algorithm(),
        whole_pair_trees(read_rows(given.data), loaded.tokenizer, given.max_length),
        batch=given.batch,
        steps=given.steps,
        tokens_per_microbatch=given.tokens_per_microbatch,
    ).emit()


if __name__ == "__main__":
    main()
