"""What the alarms look for while a policy trains on its own completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.diagnostics.finding import Finding
from posttrain.diagnostics.history import RECENT, START, History, mean, noise


@dataclass(frozen=True, slots=True)
class RewardHacking:
    """The reward rises, and the score on held-out tasks falls or stays where it began.

    Either the reward is gamed (it pays for something else than what the held-out judge looks at) or the tasks are
    learnt by heart. Read the best-rewarded completions: that is what it pays for.
    """

    name: ClassVar[str] = "reward_hacking"
    metrics: ClassVar[tuple[str, ...]] = ("reward", "held_out/score")

    evaluations: int = 3
    """In a row that must be low: one or two are noise of a small set of tasks."""
    window: int = 10
    sigmas: float = 4.0
    """Standard errors by which the reward must have risen."""
    fall: float = 0.1
    """Share of the best held-out score that must be lost."""
    follow: float = 0.1
    """A held-out score that rose by less than this share of the reward's rise has not followed it."""

    def look(self, history: History) -> Finding | None:
        scores = history.points("held_out/score")
        first, recent = history.start("reward", START), history.recent("reward", self.window)
        if len(scores) <= self.evaluations or history.seen("reward") < START + self.window:
            return None
        at_start, now = mean(first), mean(recent)
        error = noise(history.recent("reward", RECENT), START, self.window)
        rise = now - at_start
        if rise <= max(self.sigmas * error, 1e-9):
            return None
        best_step, best = max(scores, key=lambda point: point[1])
        last = [score for _, score in scores[-self.evaluations :]]
        fell = all(score < best - self.fall * abs(best) for score in last)
        flat = all(score < scores[0][1] + self.follow * rise for score in last)
        if not fell and not flat:
            return None
        since = best_step if fell else scores[0][0]
        how = f"fell from {best:.3g} at step {best_step} to {last[-1]:.3g}" if fell else f"stays at {last[-1]:.3g}"
        return Finding(
            severity="warning",
            message=f"the reward rose from {at_start:.3g} to {now:.3g} while the held-out score {how}: the reward is "
            "gamed, or the tasks are learnt by heart",
            evidence={
                "reward_at_start": at_start,
                "reward": now,
                "best_score": best,
                "best_step": best_step,
                "score": last[-1],
            },
            remedy="read the best-rewarded completions in rollouts.jsonl: they show what the reward pays for; mend it, "
            "add a KL, or end at the best step (`examine: {keep: best}` does)",
            since=since,
        )


@dataclass(frozen=True, slots=True)
class NoRewardSignal:
    """Nearly all groups have equal rewards, step after step: there is nothing to compare, and nothing is learned.

    Where nearly all completions are cut at the limit too, that is the reason: no answer is ever finished.
    """

    name: ClassVar[str] = "no_reward_signal"
    metrics: ClassVar[tuple[str, ...]] = ("zero_signal_share", "reward_deviation", "truncated_share", "reward")

    window: int = 10
    share: float = 0.95
    """Groups without a signal, of all groups of the window."""
    at_limit: float = 0.9
    """Share of completions that were cut, from which on the limit is named as the reason."""

    def look(self, history: History) -> Finding | None:
        share, deviation = (
            history.recent("zero_signal_share", self.window),
            history.recent("reward_deviation", self.window),
        )
        silent = len(share) == self.window and mean(share) >= self.share
        # Methods without groups have no share; rewards that are all the same say it as well.
        dead = len(deviation) == self.window and max(deviation) == 0
        if not silent and not dead:
            return None
        cut, reward = history.recent("truncated_share", self.window), history.recent("reward", self.window)
        truncated = mean(cut) if cut else float("nan")
        at_limit = truncated >= self.at_limit
        watched = "zero_signal_share" if silent else "reward_deviation"
        because = f", and {truncated:.0%} of the completions are cut at the limit" if at_limit else ""
        return Finding(
            severity="critical",
            message=f"for {self.window} steps the completions of a prompt have all had the same reward "
            f"(mean {mean(reward):.3g}){because}: nothing is being learned",
            evidence={"zero_signal_share": mean(share) if share else 1.0, "truncated_share": truncated}
            if cut
            else {"zero_signal_share": mean(share) if share else 1.0},
            remedy="raise sampling.max_new_tokens, or train the policy first to finish its answers (sft)"
            if at_limit
            else "take tasks that the policy solves now and then, sample more completions of each, or train it first "
            "(sft); if all rewards are the same number, look whether the reward reads the answer at all",
            since=history.step_before(watched, self.window),
        )
