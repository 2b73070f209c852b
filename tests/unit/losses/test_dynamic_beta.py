"""beta-DPO: the step's beta and its kept pairs by hand, the same step for every split, and a past that survives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.config import Preference
from posttrain.errors import ConfigError
from posttrain.losses.dynamic_beta import DynamicBeta
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.training.objectives import algorithm, mix
from posttrain.training.step import accumulate, measure
from tests.fixtures import random_trees
from tests.training import run_loop, work_of
from tests.unit.training.test_step_coupling import VOCAB, gradient, moved_policy

PARAMETERS = {"beta": 0.1, "gain": 0.5, "keep": 0.5, "momentum": 0.9}


def gaps(*values: float) -> dict[str, torch.Tensor]:
    return {"gap": torch.tensor(values, dtype=torch.float64)}


def scale(statistics: dict[str, torch.Tensor]) -> float:
    (only,) = statistics["beta_scale"].unique().tolist()
    return only


def test_beta_follows_the_kept_gaps_by_hand() -> None:
    """Step 1 sets M_0 = 2; step 2, of mean 6: M_0 = 0.9 * 2 + 0.1 * 6 = 2.4, scale 1 + 0.5 * (6 - 2.4) = 2.8."""
    memory = DynamicBeta({**PARAMETERS, "keep": 1.0})
    assert scale(memory.statistics(gaps(1.0, 3.0), np.random.default_rng(0))) == pytest.approx(1.0)
    statistics = memory.statistics(gaps(5.0, 7.0), np.random.default_rng(0))
    assert scale(statistics) == pytest.approx(2.8)
    assert statistics["weight"].tolist() == [1.0, 1.0]
    # The deviation: sqrt(2) in both steps, as a sample's.
    assert memory.state_dict()["usual"] == pytest.approx((2.4, 2**0.5))


def test_beta_has_a_floor() -> None:
    memory = DynamicBeta({**PARAMETERS, "keep": 1.0})
    memory.statistics(gaps(50.0, 50.0), np.random.default_rng(0))
    assert scale(memory.statistics(gaps(-50.0, -50.0), np.random.default_rng(0))) == pytest.approx(1e-3 / 0.1)


def test_unusual_pairs_are_left_out_and_the_others_weigh_more() -> None:
    memory = DynamicBeta({**PARAMETERS, "keep": 0.75})
    memory.statistics(gaps(0.9, 1.0, 1.1, 1.0), np.random.default_rng(0))
    for seed in range(20):
        memory.load_state_dict({"usual": (1.0, 0.1)})
        statistics = memory.statistics(gaps(1.0, 90.0, 1.02, 0.98), np.random.default_rng(seed))
        assert statistics["weight"].tolist() == pytest.approx([4 / 3, 0.0, 4 / 3, 4 / 3])


def test_pairs_are_drawn_by_their_weights() -> None:
    """One of two is kept; at 0 and 2 deviations from the usual gap their weights are 1 and e^-2, so 11.9 % of draws."""
    memory = DynamicBeta({**PARAMETERS, "momentum": 0.999999999})
    draw, far = np.random.default_rng(0), 0
    for _ in range(2000):
        memory.load_state_dict({"usual": (0.0, 1.0)})
        far += int(memory.statistics(gaps(0.0, 2.0), draw)["weight"][1]) // 2
    assert far / 2000 == pytest.approx(np.exp(-2) / (1 + np.exp(-2)), abs=0.025)


def test_equal_gaps_are_kept_by_chance_and_measuring_remembers_nothing() -> None:
    memory = DynamicBeta(PARAMETERS)
    statistics = memory.statistics(gaps(0.0, 0.0, 0.0, 0.0), np.random.default_rng(1))
    assert sorted(statistics["weight"].tolist()) == [0.0, 0.0, 2.0, 2.0]
    before = memory.state_dict()
    statistics = memory.statistics(gaps(4.0, 4.0), None)
    assert statistics["weight"].tolist() == [1.0, 1.0] and scale(statistics) == pytest.approx(3.0)
    assert memory.state_dict() == before


def test_every_split_gives_the_same_step() -> None:
    trees = random_trees(10, vocab=VOCAB, branches=2, seed=4)
    found = [gradient(algorithm("beta_dpo", {"keep": 0.6}), trees, budget) for budget in (10_000, 60, 1)]
    for values, slope in found[1:]:
        assert values["loss"] == pytest.approx(found[0][0]["loss"], rel=1e-5)
        assert values["beta"] == pytest.approx(found[0][0]["beta"], rel=1e-5)
        assert float((slope - found[0][1]).norm() / found[0][1].norm()) < 1e-4
    assert found[0][0]["pair_weight"] == pytest.approx(1.0)


def test_held_out_rows_leave_the_past_alone() -> None:
    objective = algorithm("beta_dpo")
    policy, reference = moved_policy()
    accumulate(policy, reference, objective, random_trees(6, vocab=VOCAB, branches=2), 100, step=0)
    assert objective.memory is not None
    before = objective.memory.state_dict()
    measured = measure(policy, reference, objective, random_trees(6, vocab=VOCAB, branches=2, seed=9), 100)
    assert objective.memory.state_dict() == before
    assert measured.metrics["pair_weight"].value == 1.0


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    from tests.contracts.test_t64_bitwise_resume import Killed

    whole = work_of("beta_dpo")
    run_loop(whole, tmp_path / "whole")
    dying = work_of("beta_dpo")
    memory = dying.algorithm.memory
    assert isinstance(memory, DynamicBeta)
    statistics, taken = memory.statistics, []

    def killed(observed, draw):  # type: ignore[no-untyped-def]
        if draw is not None:
            taken.append(draw)
            if len(taken) == 6:  # after the checkpoint of step 3
                raise Killed
        return statistics(observed, draw)

    memory.statistics = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run_loop(dying, tmp_path / "resumed")
    resumed = work_of("beta_dpo")
    run_loop(resumed, tmp_path / "resumed")
    assert weights_fingerprint(resumed.policy.model) == weights_fingerprint(whole.policy.model)
    assert resumed.algorithm.memory is not None and whole.algorithm.memory is not None
    assert resumed.algorithm.memory.state_dict() == whole.algorithm.memory.state_dict()


def test_it_is_no_term_of_a_mix() -> None:
    with pytest.raises(ConfigError, match="keeps a running mean"):
        mix([("dpo", 1.0, {}), ("beta_dpo", 1.0, {})])
    from posttrain.config.stages import Mix

    with pytest.raises(ConfigError, match="keeps a running mean"):
        Mix(losses=[{"loss": "beta_dpo"}])
    assert Preference("beta_dpo", gain=0.3).parameters["gain"] == 0.3
