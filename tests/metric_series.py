"""Metric series of runs that never were: healthy and noisy ones, and ones with a planted fault.

Each generator yields the values of one step after another, as the training loop would hand them to the alarms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

Values = dict[str, float]


def _mean_of(draws: list[float]) -> float:
    return sum(draws) / len(draws)


def _lengths(random: Random, rows: int, typical: float = 4.5, spread: float = 0.6) -> float:
    return _mean_of([math.exp(random.gauss(typical, spread)) for _ in range(rows)])


# ---------------------------------------------------------------- healthy


def healthy_sft(random: Random, steps: int = 200, rows: int = 8) -> Iterator[Values]:
    """The loss falls from 3 to 1.2 in noise; lengths scatter by a factor of e."""
    for step in range(steps):
        length = _lengths(random, rows, 4.0, 0.9)
        yield {
            "loss": 1.2 + 1.8 * math.exp(-step / 40) + random.gauss(0, 0.15),
            "grad_norm": math.exp(random.gauss(0, 0.5)),
            "learning_rate": 1e-4 * min(1.0, step / 20),
            "length": length,
            "supervised_tokens": rows * length,
        }


def healthy_sft_one_row_a_step(random: Random) -> Iterator[Values]:
    return healthy_sft(random, rows=1)


def healthy_sft_whose_loss_scatters(random: Random) -> Iterator[Values]:
    """One row a step from texts of all kinds: the loss varies by a factor of two, and the first five may be easy."""
    for values in healthy_sft(random, rows=1):
        yield values | {"loss": math.exp(random.gauss(0.5, 0.7))}


def healthy_dpo(
    random: Random, steps: int = 200, rows: int = 16, chosen: float = 1.5, spread: float = 1.5, rejected: float = -8.0
) -> Iterator[Values]:
    """Chosen responses end `chosen` nats from the start and rejected ones `rejected`, with pairs scattered around."""
    for step in range(steps):
        done = 1 - math.exp(-step / 60)
        w = [random.gauss(chosen * done, spread * done + 0.01) for _ in range(rows)]
        v = [random.gauss(rejected * done, 2 * done + 0.01) for _ in range(rows)]
        margins = [0.1 * (a - b) for a, b in zip(w, v, strict=True)]
        yield {
            "loss": _mean_of([math.log1p(math.exp(-margin)) for margin in margins]),
            "reward_margin": _mean_of(margins),
            "reward_accuracy": _mean_of([float(margin > 0) for margin in margins]),
            "logprob_chosen_change": _mean_of(w),
            "logprob_rejected_change": _mean_of(v),
            "logprob_per_token_chosen": random.gauss(-1.2, 0.1),
            "length_chosen": _lengths(random, rows),
            "length_rejected": _lengths(random, rows),
            "grad_norm": 3 * math.exp(-2 * done + random.gauss(0, 0.6)),
            "learning_rate": 1e-5 * min(1.0, (step + 1) / 20),
            "supervised_tokens": rows * 180.0,
        }


def healthy_dpo_that_gives_a_little(random: Random) -> Iterator[Values]:
    """Chosen responses of about 90 tokens lose half a nat in all: less than one token in a hundred feels."""
    return healthy_dpo(random, chosen=-0.5, spread=3.0, rejected=-14.0)


def healthy_dpo_two_rows_a_step(random: Random) -> Iterator[Values]:
    return healthy_dpo(random, rows=2)


def healthy_dpo_with_hard_pairs_late(random: Random) -> Iterator[Values]:
    """The gradient has faded to a tenth when a hard pair brings it back to what it was at the start."""
    for step, values in enumerate(healthy_dpo(random)):
        yield values | ({"grad_norm": 2.5} if step % 50 == 49 else {})


def healthy_simpo(random: Random, steps: int = 200) -> Iterator[Values]:
    """No reference, so the log-prob per token scatters with the texts of the batch."""
    for step in range(steps):
        done = 1 - math.exp(-step / 80)
        yield {
            "loss": 1.0 - 0.4 * done + random.gauss(0, 0.08),
            "reward_margin": 0.1 + 1.2 * done + random.gauss(0, 0.2),
            "reward_accuracy": min(1.0, max(0.0, 0.5 + 0.3 * done + random.gauss(0, 0.12))),
            "logprob_per_token_chosen": random.gauss(-1.3, 0.15),
            "length_chosen": _lengths(random, 8),
            "length_rejected": _lengths(random, 8),
            "grad_norm": math.exp(random.gauss(0.5, 0.5)),
            "learning_rate": 5e-7,
            "supervised_tokens": 900.0,
        }


def healthy_hinge_that_is_done(random: Random) -> Iterator[Values]:
    """All pairs are separated after 100 steps: no gradient is left, and nothing is wrong."""
    for step, values in enumerate(healthy_dpo(random)):
        done = {"grad_norm": 0.0, "reward_accuracy": 1.0, "loss": 0.0}
        yield values | (done if step >= 100 else {})


def healthy_short_run(random: Random) -> Iterator[Values]:
    return healthy_dpo(random, steps=25)


def healthy_reward_model(random: Random, steps: int = 120, rows: int = 8) -> Iterator[Values]:
    """The head begins at zero: no spread and half of the pairs right; both grow."""
    for step in range(steps):
        done = 1 - math.exp(-step / 25)
        right = [float(random.random() < 0.5 + 0.25 * done) if step else 0.5 for _ in range(rows)]
        yield {
            "loss": math.log(2) - 0.2 * done + random.gauss(0, 0.06),
            "reward_std": 1.5 * done * math.exp(random.gauss(0, 0.2)),
            "reward_accuracy": _mean_of(right),
            "reward_confidence": 0.5 + 0.2 * done,
            "grad_norm": math.exp(random.gauss(0.5, 0.5)),
            "learning_rate": 1e-5,
            "supervised_tokens": 900.0,
        }


def healthy_reward_model_of_small_scale(random: Random) -> Iterator[Values]:
    """Rewards divided by a length: a spread of 0.004, and the order is right."""
    for values in healthy_reward_model(random):
        yield values | {"reward_std": 0.004, "reward_accuracy": 0.5 + 0.125 * random.choice((2, 3, 4))}


HEALTHY = (
    healthy_reward_model,
    healthy_reward_model_of_small_scale,
    healthy_sft,
    healthy_sft_one_row_a_step,
    healthy_sft_whose_loss_scatters,
    healthy_dpo,
    healthy_dpo_that_gives_a_little,
    healthy_dpo_two_rows_a_step,
    healthy_dpo_with_hard_pairs_late,
    healthy_simpo,
    healthy_hinge_that_is_done,
    healthy_short_run,
)

# ---------------------------------------------------------------- planted faults


def displaced_dpo(random: Random) -> Iterator[Values]:
    """Both sides fall, the rejected one faster: margin and accuracy look as in a healthy run."""
    return healthy_dpo(random, chosen=-8.0, spread=2.0, rejected=-18.0)


def displaced_simpo(random: Random) -> Iterator[Values]:
    """The same without a reference: from step 40 to 100, a hundredth of a nat per token and step."""
    for step, values in enumerate(healthy_simpo(random)):
        values["logprob_per_token_chosen"] -= 0.01 * min(60, max(0, step - 40))
        yield values


def one_gradient_spike(random: Random) -> Iterator[Values]:
    for step, values in enumerate(healthy_sft(random)):
        yield values | ({"grad_norm": 60.0} if step == 120 else {})


def diverging_sft(random: Random) -> Iterator[Values]:
    """Sound until step 60, then the loss climbs by a tenth of a nat per step."""
    for step, values in enumerate(healthy_sft(random)):
        values["loss"] += 0.1 * max(0, step - 60)
        yield values


def frozen_dpo(random: Random) -> Iterator[Values]:
    """The optimizer's updates never reach the model; rounding moves the figures a little."""
    for values in healthy_dpo(random):
        still = {name: random.gauss(0, 1e-6) for name in ("logprob_chosen_change", "logprob_rejected_change")}
        yield values | still | {"reward_margin": 0.0, "reward_accuracy": 0.5, "loss": math.log(2)}


def sft_without_gradient(random: Random) -> Iterator[Values]:
    for values in healthy_sft(random):
        yield values | {"grad_norm": 0.0}


def sft_without_learning_rate(random: Random) -> Iterator[Values]:
    for values in healthy_sft(random):
        yield values | {"learning_rate": 0.0}


def one_step_without_answers(random: Random) -> Iterator[Values]:
    for step, values in enumerate(healthy_sft(random)):
        yield values | ({"supervised_tokens": 0.0, "loss": math.nan} if step == 30 else {})


def rows_sorted_by_length(random: Random) -> Iterator[Values]:
    for step, values in enumerate(healthy_sft(random)):
        yield values | {"length": 30 + step + random.gauss(0, 3)}


def generations_grow(random: Random) -> Iterator[Values]:
    for step, values in enumerate(healthy_sft(random)):
        yield values | {"length_generated": 80 * math.exp(step / 150 + random.gauss(0, 0.1))}


def collapsing_reward_model(random: Random) -> Iterator[Values]:
    """Sound until step 40; then every response gets the same reward but for rounding."""
    for step, values in enumerate(healthy_reward_model(random)):
        constant = {"reward_std": 1e-4 * random.random(), "reward_accuracy": random.choice((0.375, 0.5, 0.625))}
        yield values | (constant if step >= 40 else {})


def reward_model_with_a_dead_head(random: Random) -> Iterator[Values]:
    """The head never leaves zero, while the backbone's gradient looks alive."""
    for values in healthy_reward_model(random):
        yield values | {"reward_std": 0.0, "reward_accuracy": 0.5}
