"""Which curves of an online stage share a picture, and under which heading the pictures stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.report.bands import layer_chart
from posttrain.report.charts import Chart, LineStyle
from posttrain.report.panels import PANELS, POSITIVE, SIGNED, SPLITS, AlarmGroup, Panel, draw, own_panel, present
from posttrain.runs.read import Stage

SHARE = LineStyle(unit="share", bounds=(0.0, 1.0))
COUNT = LineStyle(zero=True)
MOST_PARTS = 6
"""Parts of the reward in one picture; more get several."""
PART_COLOURS = ("accent", "second", "chosen", "rejected", "good", "ink-3")
PHASES = (
    ("generate", "generation", "chosen"),
    ("waiting", "waiting for groups", "chosen"),
    ("score", "rewards", "second"),
    ("logprobs", "log-probs", "ink-3"),
    ("update", "updates", "accent"),
    ("value", "values", "rejected"),
    ("sync", "weight sync", "good"),
    ("write", "writing", "ink"),
)
"""seconds_<phase>, its name, its colour; the order of a step."""
VISIBLE_PHASE = 0.002
"""A phase that takes less than this share of all time is not drawn."""


@dataclass(frozen=True, slots=True)
class CurveGroup:
    """Pictures under one heading, and how to read them in a sentence."""

    title: str
    said: str
    charts: list[Chart]
    wide: bool = False


def _one(metric: str) -> tuple[tuple[str, str, str], ...]:
    return ((metric, "", "accent"),)


def _ages() -> tuple[tuple[str, str, str], ...]:
    """Of the ages that have a colour; a bound beyond them is rare, and the largest age has a picture of its own."""
    return tuple((f"staleness_{age}", f"{age} steps", colour) for age, colour in enumerate(PART_COLOURS))


GROUPS: tuple[tuple[str, str, tuple[Panel, ...]], ...] = (
    (
        "Reward",
        "Training judges what it trains on; the held-out tasks judge what was learned.",
        (
            Panel(
                "Reward and held-out score",
                "mean",
                (("reward", "sampled", "accent"), ("score", "held-out tasks", "second")),
            ),
            Panel("Solved", "share of held-out answers", _one("solved_share"), SHARE),
            Panel("Spread of the rewards", "standard deviation", _one("reward_deviation"), LineStyle(zero=True)),
        ),
    ),
    (
        "Signal",
        "What a step has to learn from: groups whose completions differ in reward.",
        (
            Panel("Groups without a signal", "share", _one("zero_signal_share"), SHARE),
            Panel("Groups", "of a step", (("groups", "sampled", "ink-3"), ("groups_trained", "trained", "accent"))),
            Panel(
                "Advantages",
                "over tokens",
                (
                    ("advantage_magnitude", "magnitude", "accent"),
                    ("advantage_std", "std", "second"),
                    ("advantage_mean", "mean", "ink-3"),
                ),
                SIGNED,
            ),
            Panel("Duplicates", "share of completions", _one("duplicate_share"), SHARE),
            Panel(
                "Curriculum",
                "of the tasks drawn",
                (("curriculum_pass_rate", "pass rate", "accent"), ("curriculum_unseen_share", "never asked", "ink-3")),
                SHARE,
            ),
            Panel("Unjudged", "share of completions", _one("abstained_share"), SHARE),
        ),
    ),
    (
        "Completions",
        "Length that grows while the score does not is length hacking; at entropy 0 a policy says one thing only.",
        (
            Panel(
                "Entropy",
                "nats per token",
                (("entropy_sampled", "sampled", "accent"), ("entropy", "exact", "second")),
                LineStyle(zero=True),
            ),
            Panel(
                "Length",
                "tokens, mean",
                (("length_sampled", "sampled", "accent"), ("length_generated", "trained, held-out", "second")),
            ),
            Panel(
                "Cut and empty",
                "share of completions",
                (("truncated_share", "cut at the limit", "accent"), ("empty_share", "empty", "rejected")),
                LineStyle(unit="share", zero=True),
            ),
            Panel(
                "Refused and malformed",
                "share of completions",
                (("refusal_share", "refusals", "accent"), ("malformed_share", "malformed", "rejected")),
                LineStyle(unit="share", zero=True),
            ),
        ),
    ),
    (
        "Distance",
        "How far the policy is from its start, and how far an update goes; each KL by its kind.",
        (
            Panel(
                "KL to the start, sampled",
                "nats per token",
                (
                    ("kl_k1_reference", "k1", "accent"),
                    ("kl_k2_reference", "k2", "second"),
                    ("kl_k3_reference", "k3", "chosen"),
                ),
                SIGNED,
            ),
            Panel("KL to the start, sequence", "k1, nats per response", _one("kl_sequence_reference"), SIGNED),
            Panel("KL to the start, exact", "nats per token", _one("kl_exact_reverse"), SIGNED),
            Panel("KL coefficient", "", _one("kl_coefficient"), LineStyle(exact=True)),
            Panel(
                "KL of an update, sampled",
                "nats per token",
                (("kl_k1_old", "k1", "accent"), ("kl_k2_old", "k2", "second"), ("kl_k3_old", "k3", "chosen")),
                SIGNED,
            ),
            Panel(
                "Ratio to the old policy", "", (("ratio_max", "largest", "rejected"), ("ratio_mean", "mean", "accent"))
            ),
            Panel(
                "Clipped tokens",
                "share",
                (("clip_share_high", "above", "accent"), ("clip_share_low", "below", "second")),
                LineStyle(unit="share", zero=True),
            ),
            Panel("Divergence to the teacher", "nats per token", _one("teacher_divergence"), POSITIVE),
            Panel(
                "KL to the teacher, sampled",
                "nats per token",
                (
                    ("kl_k1_teacher", "k1", "accent"),
                    ("kl_k2_teacher", "k2", "second"),
                    ("kl_k3_teacher", "k3", "chosen"),
                ),
                SIGNED,
            ),
        ),
    ),
    (
        "Engine against trainer",
        "Both should give a sampled token the same probability: ratio 1, gap 0, effective sample 100 %.",
        (
            Panel(
                "Sampler ratio",
                "trainer over engine",
                (("sampler_ratio_max", "largest", "rejected"), ("sampler_ratio_mean", "mean", "accent")),
            ),
            Panel(
                "Sampler gap",
                "nats",
                (
                    ("sampler_gap_max", "largest", "rejected"),
                    ("sampler_gap_p99", "99th percentile", "second"),
                    ("sampler_gap_p50", "median", "accent"),
                ),
                POSITIVE,
            ),
            Panel("KL, engine to trainer", "k3, nats per token", _one("sampler_kl"), POSITIVE),
            Panel(
                "KL, engine to trainer, by staleness",
                "k3, nats per token",
                tuple(
                    (f"sampler_kl_stale_{steps}", f"{steps}{' or more' if steps == 4 else ''} steps old", colour)
                    for steps, colour in enumerate(("accent", "second", "chosen", "rejected", "good"))
                ),
                POSITIVE,
            ),
            Panel(
                "Effective sample",
                "share",
                (
                    ("sampler_effective_size", "of the tokens", "accent"),
                    ("sampler_effective_responses", "of the responses", "second"),
                ),
                SHARE,
            ),
            Panel(
                "Masked tokens",
                "share, by rule",
                (
                    ("masked_share", "any", "accent"),
                    ("masked_by_token_mask", "token_mask", "second"),
                    ("masked_by_sequence_mask", "sequence_mask", "chosen"),
                    ("masked_by_outliers", "outliers", "rejected"),
                ),
                LineStyle(unit="share", zero=True),
            ),
            Panel(
                "Sampler ratio, clipped",
                "share of tokens",
                _one("sampler_clipped_share"),
                LineStyle(unit="share", zero=True),
            ),
            Panel("Sync gap", "nats per token", _one("sync_gap"), POSITIVE),
        ),
    ),
    (
        "Sampling beside training",
        "How old the weights were that sampled, what was sampled in vain, and which of the two waits for the other.",
        (
            Panel(
                "Staleness", "steps", (("staleness_max", "largest", "rejected"), ("staleness", "mean", "accent")), COUNT
            ),
            Panel("Completions by staleness", "share", _ages(), SHARE),
            Panel("Groups dropped for their age", "of a step", _one("groups_dropped_stale"), COUNT),
            Panel(
                "Queue",
                "groups, at the begin of a step",
                (("queue_depth", "whole", "accent"), ("queue_in_flight", "in flight", "ink-3")),
                COUNT,
            ),
            Panel(
                "Load",
                "share",
                (
                    ("engine_utilisation", "engine", "accent"),
                    ("generation_share", "generation", "second"),
                    ("waiting_share", "trainer waits", "rejected"),
                ),
                SHARE,
            ),
        ),
    ),
    (
        "Value model",
        "Explained variance 1 is perfect, 0 no better than a constant.",
        (
            Panel("Explained variance", "share", _one("value_explained_variance"), LineStyle(unit="share", zero=True)),
            Panel("Value loss", "", _one("value_loss"), POSITIVE),
            Panel(
                "Values and returns", "mean", (("value_mean", "value", "accent"), ("return_mean", "return", "second"))
            ),
            Panel("Clipped values", "share", _one("value_clip_share"), LineStyle(unit="share", zero=True)),
            Panel("Gradient norm, values", "before clipping", _one("value_grad_norm"), POSITIVE),
        ),
    ),
    (
        "Objective",
        "A policy gradient's loss says little: advantages add up to 0, so that it is about 0 whatever is learned.",
        (
            Panel("Loss", "", _one("loss"), SIGNED),
            Panel(
                "Terms of the loss",
                "unweighted",
                (("policy_loss", "policy", "accent"), ("kl_loss", "KL", "second")),
                SIGNED,
            ),
        ),
    ),
)
OBJECTIVE = "Objective"
"""Takes the pictures that all stages have, too."""


def is_online(stage: Stage) -> bool:
    """Whether a stage trained on what it sampled itself."""
    # By what it wrote and not by its method's name, so that a method that is not known here has its section too.
    return stage.sampled is not None or "length_sampled" in stage.curves.get("train", {})


def curve_groups(stage: Stage, alarms: Sequence[AlarmGroup]) -> tuple[list[CurveGroup], list[Chart]]:
    """The headings with a picture under them, and the pictures of everything that no heading names."""
    names = present(stage)
    drawn = {metric for _, _, panels in GROUPS for panel in panels for metric, _, _ in panel.series}
    parts = [name for name in names if name.startswith("reward/")]
    # The error is drawn as the score's interval, the seconds as layers; alone they would be shown a second time.
    drawn |= {*parts, "score_error", *(name for name in names if name.startswith("seconds_"))}
    # What both kinds of stage measure has its picture from PANELS, unless a heading here shows it already.
    general = [panel for panel in PANELS if not any(metric in drawn for metric, _, _ in panel.series)]
    found, idle = [], []
    for title, said, panels in GROUPS:
        more = _part_panels(parts) if title == "Reward" else general if title == OBJECTIVE else []
        own = [panel for panel in (*panels, *more) if any(metric in names for metric, _, _ in panel.series)]
        telling = [panel for panel in own if _telling(panel, stage)]
        idle += [panel for panel in own if panel not in telling]
        if telling:
            found.append(CurveGroup(title, said, [draw(panel, stage, alarms) for panel in telling]))
    time = _time(stage)
    if time is not None:
        found.append(CurveGroup("Time", "Where a step's seconds went.", [time], wide=True))
    drawn |= {metric for panel in general for metric, _, _ in panel.series}
    rest = [*idle, *(own_panel(name) for name in names if name not in drawn)]
    return found, [draw(panel, stage, alarms) for panel in rest]


def _telling(panel: Panel, stage: Stage) -> bool:
    """Not one that is 0 throughout, says what another picture says, or draws one line over the other."""
    curves = [
        curve for metric, _, _ in panel.series for split in SPLITS if (curve := stage.curves.get(split, {}).get(metric))
    ]
    # 0 throughout is good news of most of these, and a wall of flat pictures hides the one that moved.
    if all(value == 0 for curve in curves for value in curve.values):
        return False
    if panel.title == "Solved":
        held_out = stage.curves.get("held_out", {})
        # Of rewards that are 0 or 1 the score is the solved share.
        return held_out.get("score") != held_out.get("solved_share")
    if panel.title == "Terms of the loss":
        # Without a KL the loss is its policy term.
        return len(curves) > 1 or curves[0] != stage.curves.get("train", {}).get("loss")
    return panel.title != "Groups" or len(curves) < 2 or curves[0] != curves[1]


def _part_panels(parts: Sequence[str]) -> list[Panel]:
    """The parts of the reward together; a single one is the reward itself, and says nothing more."""
    if len(parts) < 2:
        return []
    found = []
    for first in range(0, len(parts), MOST_PARTS):
        some = parts[first : first + MOST_PARTS]
        series = tuple(
            (name, name.removeprefix("reward/"), colour)
            for name, colour in zip(some, PART_COLOURS[: len(some)], strict=True)
        )
        found.append(Panel("Parts of the reward", "before their weights", series))
    return found


def _time(stage: Stage) -> Chart | None:
    curves = stage.curves.get("train", {})
    known = {phase: curves[f"seconds_{phase}"] for phase, _, _ in PHASES if f"seconds_{phase}" in curves}
    if not known:
        return None
    steps = sorted({int(step) for curve in known.values() for step in curve.steps})
    layers = []
    for phase, label, colour in PHASES:
        if phase in known:
            own = dict(zip(known[phase].steps, known[phase].values, strict=True))
            # A step that lacks a phase spent no time on it; the update's time is a difference, and may round below 0.
            layers.append((label, colour, [max(0.0, own.get(step) or 0.0) for step in steps]))
    whole = sum(sum(values) for _, _, values in layers)
    layers = [layer for layer in layers if sum(layer[2]) >= VISIBLE_PHASE * whole]
    return layer_chart("Seconds of a step", steps, layers, subtitle="s") if layers else None
