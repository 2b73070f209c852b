"""The metrics of a rollout, and of held-out tasks; part of `posttrain.diagnostics.metrics.METRICS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from posttrain.diagnostics.metric_info import MetricInfo

ROLLOUT_METRICS: Mapping[str, MetricInfo] = MappingProxyType(
    {
        # Over all that was sampled, not over what trains: a filter that drops solved groups would make the mean fall as
        # the policy learns.
        "reward": MetricInfo(
            "Reward",
            "",
            "up",
            "Mean reward of all sampled completions, weighted and shaped as it trains. Each part is `reward/NAME`.",
        ),
        "reward_deviation": MetricInfo(
            "Reward, spread", "", "none", "Standard deviation over the completions; 0, nothing can be learned."
        ),
        "score": MetricInfo(
            "Held-out score", "", "up", "Mean reward of answers to held-out tasks, by the judge of `examine.rewards`."
        ),
        # Over tasks: several answers to one task are not independent, and counting each would make the error too small.
        "score_error": MetricInfo(
            "Held-out score, error", "", "none", "Standard error of the held-out score over its tasks."
        ),
        "solved_share": MetricInfo("Solved", "share", "up", "Share of held-out answers with a score of 1 or more."),
        "zero_signal_share": MetricInfo(
            "Groups without a signal",
            "share",
            "down",
            "Share of groups whose rewards, before the overlong penalty, are all equal. Near 1 the tasks are too hard "
            "or too easy. Not given where a group is one completion.",
        ),
        "groups": MetricInfo("Groups sampled", "", "none", "Prompts asked in the step, resampled ones included."),
        "groups_trained": MetricInfo("Groups trained", "", "none", "Prompts whose completions train."),
        "completions": MetricInfo("Completions", "", "none", "Completions sampled in the step."),
        "length_sampled": MetricInfo("Length, sampled", "tokens", "none", "Mean tokens of all sampled completions."),
        "truncated_share": MetricInfo(
            "Truncated", "share", "down", "Share of completions that were cut at `max_new_tokens`."
        ),
        "empty_share": MetricInfo(
            "Empty", "share", "down", "Share of completions that are a stop token alone, or no token at all."
        ),
        "abstained_share": MetricInfo(
            "Unjudged", "share", "none", "Share of completions that every reward abstained from; they do not train."
        ),
        "duplicate_share": MetricInfo(
            "Duplicates", "share", "none", "Share of completions that another of their group already is, id for id."
        ),
        "refusal_share": MetricInfo(
            "Refusals", "share", "none", "Share of completions that decline to answer, by what refusals say."
        ),
        "malformed_share": MetricInfo(
            "Malformed",
            "share",
            "down",
            "Share of completions that end by themselves and leave thoughts, a code fence or a `\\boxed{` open.",
        ),
        # Estimated, since it costs nothing: the sampled tokens come with their log-probs.
        "entropy_sampled": MetricInfo(
            "Entropy, sampled",
            "nats/token",
            "none",
            "Mean -log p of the sampled tokens, which estimates the policy's entropy. Near 0, it says one thing only.",
        ),
        "staleness": MetricInfo(
            "Staleness",
            "steps",
            "down",
            "Mean steps between the oldest weights that sampled a completion and those that train on it; 0 where "
            "sampling and training take turns.",
        ),
        "staleness_max": MetricInfo(
            "Staleness, largest", "steps", "down", "Of the completions of the step. Never above `max_staleness`."
        ),
        "groups_dropped_stale": MetricInfo(
            "Groups dropped for their age",
            "",
            "down",
            "Prompts whose completions were not whole before they were too old for every step (`max_staleness`): what "
            "was sampled of them is lost.",
        ),
        "groups_asked_again": MetricInfo(
            "Groups asked again", "", "down", "Prompts that were being sampled when the run was stopped, and are anew."
        ),
        "queue_depth": MetricInfo(
            "Groups that wait", "", "none", "Prompts whose completions are whole and scored when the step begins."
        ),
        "queue_in_flight": MetricInfo(
            "Groups in flight", "", "none", "Prompts that are sampled or scored when the step begins."
        ),
        "waiting_share": MetricInfo(
            "Trainer waits",
            "share",
            "down",
            "Share of the step's time in which the trainer waits for groups that are whole. Not given in turns.",
        ),
        "engine_utilisation": MetricInfo(
            "Engine's load",
            "share",
            "up",
            "Completions in flight, a mean over the step's time, of the most that there may be at a time.",
        ),
        "generation_share": MetricInfo(
            "Share of generation",
            "share",
            "none",
            "Seconds in which the engine had a request, of these and those in which the trainer did not wait: what "
            "sampling would take of a step in turns. Above 0.5 a faster engine helps, below a faster trainer.",
        ),
        "kl_coefficient": MetricInfo("KL coefficient", "", "none", "Weight of the KL in this step."),
        "sync_gap": MetricInfo(
            "Sync gap", "nats/token", "down", "How far engine and trainer score the probe apart after the sync."
        ),
        "engine_servers": MetricInfo(
            "Servers that answer", "", "up", "Of the engine's, when the step had been sampled."
        ),
        "engine_restarts": MetricInfo(
            "Servers lost and back", "", "down", "Times since the stage began that a server was lost and came back."
        ),
        "engine_asked_again": MetricInfo(
            "Prompts asked again", "", "down", "Prompts since the stage began that a lost server had been asked."
        ),
        "curriculum_pass_rate": MetricInfo(
            "Pass rate of the tasks drawn",
            "share",
            "none",
            "Mean estimate, before the step asked them, over the drawn tasks that were asked before.",
        ),
        "curriculum_unseen_share": MetricInfo(
            "Unseen tasks drawn", "share", "none", "Share of the step's tasks that were never asked before."
        ),
        "value_grad_norm": MetricInfo("Gradient norm, values", "", "none", "Of the value model, before clipping."),
        **{
            # `update` is what the other phases leave of a step, so that together they are all of its time.
            f"seconds_{phase}": MetricInfo(f"Time, {words}", "s", "down", f"Seconds of the step spent on {words}.")
            for phase, words in (
                ("sync", "weight sync"),
                ("waiting", "waiting for groups that are whole"),
                ("generate", "generation"),
                ("score", "rewards"),
                ("logprobs", "log-probs to start from"),
                ("write", "writing rollouts"),
                ("value", "the value model's updates"),
                ("update", "the policy's updates"),
            )
        },
    }
)
