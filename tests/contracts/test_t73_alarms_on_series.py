"""T73, of preferences: series whose proxy improves while what it stands for gets worse raise alarms of their own names.

The proxy is the margin (or the training loss); what it stands for is the chosen responses' probability (or the
held-out rows). Each alarm names the last checkpoint from before the trouble.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from random import Random

from posttrain.diagnostics.alarms import Alarm, Alarms


def _displacement() -> list[Alarm]:
    """Sound until step 40, then the chosen responses fall while the margin rises on; a checkpoint every 20 steps."""
    random, alarms, raised = Random(0), Alarms(), []
    for step in range(80):
        values = {
            "loss": 0.69 - 0.005 * step,
            "reward_margin": 0.03 * step + random.gauss(0, 0.05),
            "reward_accuracy": min(1.0, 0.5 + 0.01 * step),
            "logprob_chosen_change": 0.5 - 0.5 * max(0, step - 40) + random.gauss(0, 0.3),
            "logprob_rejected_change": -0.8 * step,
            "length_chosen": 30.0,
            "length_rejected": 30.0,
        }
        raised += alarms.check(step, values, last_good_checkpoint=f"step-{step // 20 * 20}" if step >= 20 else None)
    return raised


def _held_out_falls() -> list[Alarm]:
    """The training loss falls all the way; the held-out loss turns at step 40."""
    random, alarms, raised = Random(0), Alarms(), []
    for step in range(100):
        checkpoint = f"step-{step // 20 * 20}" if step >= 20 else None
        raised += alarms.check(
            step, {"loss": 2.0 - 0.015 * step + random.gauss(0, 0.03)}, last_good_checkpoint=checkpoint
        )
        if step % 10 == 0:
            held_out = {"loss": 2.0 - 0.015 * min(step, 40) + 0.015 * max(0, step - 40)}
            raised += alarms.check(step, held_out, split="held_out", last_good_checkpoint=checkpoint)
    return raised


def test_t73_two_different_named_alarms_each_with_the_last_good_checkpoint() -> None:
    (displacement,) = _displacement()
    (overfitting,) = _held_out_falls()
    assert (displacement.name, overfitting.name) == ("likelihood_displacement", "overfitting")
    assert 43 <= displacement.step <= 55
    assert displacement.last_good_checkpoint in ("step-20", "step-40")
    assert overfitting.last_good_checkpoint == "step-40"
    assert overfitting.evidence["best_step"] == 40


def test_t73_silent_when_both_improve() -> None:
    alarms, raised = Alarms(), []
    for step in range(80):
        values = {
            "reward_margin": 0.03 * step,
            "reward_accuracy": min(1.0, 0.5 + 0.01 * step),
            "logprob_chosen_change": 0.02 * step,
            "length_chosen": 30.0,
            "loss": 0.69 - 0.005 * step,
        }
        raised += alarms.check(step, values)
        if step % 10 == 0:
            raised += alarms.check(step, {"loss": 0.69 - 0.004 * step}, split="held_out")
    assert raised == []
