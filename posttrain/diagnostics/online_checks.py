"""What the alarms look for while a policy trains on its own completions: is the reward what it seems?

`policy_checks.py` looks at the policy, `completion_checks.py` at its texts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from posttrain.diagnostics.detection import Detection
from posttrain.diagnostics.history import Change, History, change, mean

HELD_OUT = "tasks to measure on (`held_out`)"


@dataclass(frozen=True, slots=True)
class Lag:
    """Held-out scores that do not follow the reward."""

    fell: bool
    """From their best, or they never rose."""
    first: float
    best: float
    best_step: int
    last: float
    since: int

    @property
    def words(self) -> str:
        if self.fell:
            return f"fell from {self.best:.3g} at step {self.best_step} to {self.last:.3g}"
        return f"stays at {self.last:.3g}, where it began at {self.first:.3g}"

    @property
    def best_weights(self) -> str:
        """What becomes of the stage's weights."""
        return (
            f"the best held-out score was {self.best:.3g} at step {self.best_step}, and a stage ends with the weights "
            "of its best examination (`examine: {keep: best}`, the default)"
        )


@dataclass(frozen=True, slots=True)
class _FollowsReward:
    """What RewardHacking and LengthHacking share: does the held-out score go where the reward goes?"""

    evaluations: int = 3
    """Examinations in a row that must be low: one or two are noise of a small set of tasks."""
    window: int = 10
    """Steps in the means, against the first ten."""
    sigmas: float = 4.0
    """Standard errors by which the reward must have risen."""
    fall: float = 0.1
    """Share of the best held-out score that must be lost."""
    follow: float = 0.1
    """A held-out score that rose by less than this share of the reward's rise has not followed it."""
    score_sigmas: float = 3.0
    """Standard errors of the held-out score, whose tasks are few, by which it must lag."""

    def rise(self, history: History) -> Change | None:
        """Of the reward; None if it is noise, or too early to say."""
        found = change(history, "reward", self.window)
        # Only noise bounds it: rewards have any scale, so that no fixed size would do.
        return found if found is not None and found.rises(1e-9, self.sigmas) else None

    def lag(self, history: History, rise: float) -> Lag | None:
        """None where the held-out score follows, or nobody can tell."""
        points, count = history.points("held_out/score"), self.evaluations
        if len(points) <= count:
            return None
        scores = [score for _, score in points]
        last, now = scores[-count:], mean(scores[-count:])
        errors = history.recent("held_out/score_error", count)
        noise = self.score_sigmas * (mean(errors) if errors else 0.0)
        best_step, best = max(points, key=lambda point: (point[1], point[0]))  # of equals the later, as is kept
        # The best of many noisy scores is luck: what was lost is measured from the best mean of `count` in a row.
        plateau = max(mean(scores[i : i + count]) for i in range(len(scores) - count + 1))
        # Each of the last must be low, not their mean: one collapse is no trend.
        fell = all(score < best - self.fall * abs(best) for score in last)
        # Two means of `count` examinations, each with the error of one over the root of `count`.
        fell = fell and plateau - now > noise * math.sqrt(2 / count)
        first_step, first = history.first("held_out/score")
        # A share of the reward's rise, not of the score: a reward that doubled and a score that moved by a hair have
        # parted.
        flat = all(score < first + self.follow * rise for score in last)
        # One first examination against a mean of `count`: the first one's error is not averaged down.
        flat = flat and rise - (now - first) > noise * math.sqrt(1 + 1 / count)
        if not fell and not flat:
            return None
        # A score that never rose was wrong from the start; one that fell was well until its best step.
        return Lag(fell, first, best, best_step, last[-1], best_step if fell else first_step)


@dataclass(frozen=True, slots=True)
class RewardHacking(_FollowsReward):
    """The reward rises, and the score on held-out tasks falls or stays where it began.

    Either the reward is gamed (it pays for something else than what the held-out judge looks at) or the tasks are
    learnt by heart. Read the best-rewarded completions: that is what it pays for. With the stage's own reward as the
    judge, a gamed reward rises on held-out tasks too: `examine.rewards` names a verifier or a second reward model.
    """

    name: ClassVar[str] = "reward_hacking"
    metrics: ClassVar[tuple[str, ...]] = ("reward", "held_out/score", "held_out/score_error")
    needs: ClassVar[tuple[str, ...]] = ("reward", "held_out/score")
    absent: ClassVar[str] = HELD_OUT

    def look(self, history: History) -> Detection | None:
        reward = self.rise(history)
        lag = self.lag(history, reward.rise) if reward is not None else None
        if reward is None or lag is None:
            return None
        return Detection(
            severity="warning",
            message=f"the reward rose from {reward.before:.3g} to {reward.now:.3g} while the held-out score "
            f"{lag.words}: the reward is gamed, or the tasks are learnt by heart",
            evidence={
                "reward_at_start": reward.before,
                "reward": reward.now,
                "best_score": lag.best,
                "best_step": lag.best_step,
                "score": lag.last,
            },
            remedy="read the best-rewarded completions in rollouts.jsonl: they show what the reward pays for; mend it, "
            f"or add a KL; {lag.best_weights}",
            since=lag.since,
        )


@dataclass(frozen=True, slots=True)
class LengthHacking(_FollowsReward):
    """Reward and length rise together, and the score on held-out tasks does not: the reward is won by length.

    The commonest way to game a reward model (Singhal et al. 2023, arXiv:2310.03716). Lengths are compared by their
    logarithms. Answers that grow because longer ones are better raise the held-out score too.
    """

    name: ClassVar[str] = "length_hacking"
    metrics: ClassVar[tuple[str, ...]] = ("reward", "length_sampled", "held_out/score", "held_out/score_error")
    needs: ClassVar[tuple[str, ...]] = ("reward", "length_sampled", "held_out/score")
    absent: ClassVar[str] = HELD_OUT

    factor: float = 1.3
    """Growth of the mean length."""

    def look(self, history: History) -> Detection | None:
        reward = self.rise(history)
        length = change(history, "length_sampled", self.window, lambda tokens: math.log(max(tokens, 1.0)))
        if reward is None or length is None or not length.rises(math.log(self.factor), self.sigmas):
            return None
        lag = self.lag(history, reward.rise)
        if lag is None:
            return None
        before, now = math.exp(length.before), math.exp(length.now)
        return Detection(
            severity="warning",
            message=f"the reward rose from {reward.before:.3g} to {reward.now:.3g} and the completions from "
            f"{before:.0f} to {now:.0f} tokens, while the held-out score {lag.words}: the reward is won by length",
            evidence={
                "reward_at_start": reward.before,
                "reward": reward.now,
                "length_at_start": before,
                "length": now,
                "best_score": lag.best,
                "best_step": lag.best_step,
                "score": lag.last,
            },
            remedy="take length out of the reward (a `length` reward with a weight below 0, a reward model trained "
            f"against length), or lower sampling.max_new_tokens; {lag.best_weights}",
            since=lag.since,
        )


@dataclass(frozen=True, slots=True)
class NoRewards:
    """Not one completion of a step was judged: every reward abstained. There is nothing to learn from."""

    name: ClassVar[str] = "no_rewards"
    metrics: ClassVar[tuple[str, ...]] = ("abstained_share",)
    needs: ClassVar[tuple[str, ...]] = ()
    absent: ClassVar[str] = "rewards"

    critical_steps: int = 3
    """In a row; one may be a judge that could not be reached."""

    def look(self, history: History) -> Detection | None:
        shares = history.recent("abstained_share", self.critical_steps)
        # Exactly all: a judge that answers for some completions still gives the step something to learn from.
        if not shares or shares[-1] < 1:
            return None
        steps = next((place for place, share in enumerate(reversed(shares)) if share < 1), len(shares))
        critical = steps >= self.critical_steps
        since = f"for {steps} steps in a row " if critical else ""
        return Detection(
            severity="critical" if critical else "warning",
            message=f"{since}every reward abstained from all completions of the step: nothing is being learned",
            evidence={"abstained_share": shares[-1], "steps": steps},
            remedy="look at `reward` and `parts` in rollouts.jsonl; a verifier abstains where a row has no answer "
            "(`columns: {answer: YOUR_COLUMN}`), a function where it returns None",
            since=history.step_before("abstained_share", steps),
        )


@dataclass(frozen=True, slots=True)
class NoRewardSignal:
    """Nearly all groups have equal rewards, step after step: there is nothing to compare, and little is learned.

    Where nearly all completions are cut at the limit too, that is the reason: no answer is ever finished.
    """

    name: ClassVar[str] = "no_reward_signal"
    metrics: ClassVar[tuple[str, ...]] = ("zero_signal_share", "reward_deviation", "truncated_share", "reward")
    needs: ClassVar[tuple[str, ...]] = ("reward_deviation",)
    absent: ClassVar[str] = "rewards"

    window: int = 10
    share: float = 0.95
    """Groups without a signal, of all groups of the window."""
    warning_share: float = 0.85
    """From here on it is a warning: one group in seven, or fewer, teaches."""
    at_limit: float = 0.9
    """Share of completions that were cut, from which on the limit is named as the reason."""

    def look(self, history: History) -> Detection | None:
        shares = history.recent("zero_signal_share", self.window)
        deviations = history.recent("reward_deviation", self.window)
        # Until the window is full nothing is said: a few groups without a signal are common.
        share = mean(shares) if len(shares) == self.window else 0.0
        judged, seen = history.points("reward"), history.points("zero_signal_share")
        if not judged or (seen and judged[-1][0] < seen[-1][0]):
            return None  # nobody judged anything: NoRewards says it
        # Methods without groups have no share; rewards that are all the same say it as well.
        dead = len(deviations) == self.window and max(deviations) == 0
        if not dead and share < self.warning_share:
            return None
        dead = dead or share >= self.share
        cut, rewards = history.recent("truncated_share", self.window), history.recent("reward", self.window)
        truncated = mean(cut) if cut else 0.0
        at_limit = truncated >= self.at_limit
        because = f", and {truncated:.0%} of the completions are cut at the limit" if at_limit else ""
        reward = f"mean {mean(rewards):.3g}"
        said = (
            f"the completions of a prompt have all had the same reward ({reward}){because}: nothing is being learned"
            if dead
            else f"{share:.0%} of the groups have had no signal, their rewards all equal ({reward}){because}: most of "
            "what is sampled teaches nothing"
        )
        return Detection(
            severity="critical" if dead else "warning",
            message=f"for {self.window} steps {said}",
            evidence={"zero_signal_share": share if shares else 1.0, "truncated_share": truncated},
            remedy="raise sampling.max_new_tokens, or train the policy first to finish its answers (sft)"
            if at_limit
            else "take tasks that the policy solves now and then, sample more completions of each, or train it first "
            "(sft); if all rewards are the same number, look whether the reward reads the answer at all",
            since=history.step_before("zero_signal_share" if shares else "reward_deviation", self.window),
        )
